//! `pinion verify DIR`: every checksum, and the verdict that a starting server would come to. Ends with 1 at damage.

use std::io::Write as _;
use std::time::Instant;

use super::dir::Directory;
use super::report::{LogSurvey, Spot, Verdict};
use crate::cli::VerifyFlags;
use crate::exit::{Failure, output};
use crate::text::{counted, human};

/// Reads everything and says what does not verify.
pub fn run(flags: &VerifyFlags) -> Result<(), Failure> {
    let directory = Directory::open(&flags.directory)?;
    let started = Instant::now();
    let surveys = super::survey_all(&directory)?;
    let seconds = started.elapsed().as_secs_f64();

    let mut damages = superblock_damages(&directory);
    damages.extend(surveys.iter().flat_map(LogSurvey::damages).cloned());
    let mut out = std::io::stdout().lock();
    if let Some(told) = super::unfinished(&directory) {
        output(writeln!(out, "{told}"))?;
    }
    for survey in &surveys {
        output(writeln!(out, "{}", log_line(survey)))?;
        if let Verdict::TornTail(spot) = &survey.verdict {
            output(writeln!(
                out,
                "  torn tail, never acked, cut by the next start: {spot}"
            ))?;
        }
        for flaw in survey.harmless() {
            output(writeln!(out, "  not needed by a restart: {flaw}"))?;
        }
    }
    for damage in &damages {
        output(writeln!(out, "damage: {damage}"))?;
    }
    let bytes: u64 = surveys.iter().map(|survey| survey.bytes_checked).sum();
    let records: u64 = surveys.iter().map(|survey| survey.records).sum();
    output(writeln!(
        out,
        "{} in {}, {} in {seconds:.2} s ({:.2} GB/s)",
        counted(records, "record"),
        counted(surveys.len() as u64, "log"),
        human(bytes),
        bytes as f64 / 1e9 / seconds.max(1e-9),
    ))?;
    match damages.first() {
        None => output(writeln!(out, "no damage")).map_err(Failure::Failed),
        Some(first) => Err(anyhow::anyhow!("damage: {first}").into()),
    }
}

/// Copies that do not verify, and logs that the superblock names and that are not there.
fn superblock_damages(directory: &Directory) -> Vec<Spot> {
    let mut damages = Vec::new();
    for copy in &directory.copies {
        // The first write makes one copy; a copy that a crash left without bytes was never used.
        let absent = copy.bytes == 0 && directory.superblock.is_some();
        if let (Err(why), false) = (&copy.content, absent) {
            let file = super::shown(&copy.path, &directory.path);
            damages.push(Spot {
                file,
                offset: 0,
                lsn: None,
                why: why.clone(),
            });
        }
    }
    for log in directory.superblock.iter().flat_map(|block| &block.logs) {
        if !directory
            .logs
            .iter()
            .any(|files| files.number == log.number)
        {
            let folder = format!("log-{:08}", log.number);
            let why = "the superblock names this log, and its folder is not there".to_owned();
            damages.push(Spot {
                file: folder,
                offset: 0,
                lsn: Some(1),
                why,
            });
        }
    }
    damages
}

fn log_line(survey: &LogSurvey) -> String {
    format!(
        "log {}: {}, {} in {}, last lsn {}",
        survey.number,
        counted(survey.records, "record"),
        counted(survey.batches, "batch"),
        counted(
            survey
                .segments
                .iter()
                .filter(|segment| segment.batches > 0)
                .count() as u64,
            "segment"
        ),
        survey.last_lsn,
    )
}
