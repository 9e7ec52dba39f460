//! `pinion inspect DIR`: what is in a data directory, for people or as one JSON object. Judges nothing: a damaged directory is
//! shown as far as it can be decoded, and that is success. `verify` is the judge.

use std::fmt::{self, Write as _};
use std::io::Write as _;

use serde::Serialize;

use super::dir::Directory;
use super::report::{CheckpointSurvey, LogSurvey, SegmentSurvey, Verdict, hex};
use crate::cli::InspectFlags;
use crate::exit::{Failure, output};
use crate::text::{counted, human};

/// Everything that is shown; the JSON object is this.
#[derive(Serialize)]
struct Report {
    directory: String,
    superblocks: Vec<SuperblockReport>,
    /// Of a change of the number of shards that ended early.
    #[serde(skip_serializing_if = "Option::is_none")]
    unfinished: Option<String>,
    logs: Vec<LogSurvey>,
}

#[derive(Serialize)]
struct SuperblockReport {
    file: String,
    /// Whether the newer good copy is this one.
    in_force: bool,
    #[serde(flatten)]
    content: Content,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Content {
    Good {
        sequence: u64,
        features: u64,
        store: String,
        shards: u32,
        segment_bytes: u64,
        map_epoch: u64,
        logs: usize,
    },
    Bad {
        error: String,
    },
}

/// Shows the directory.
pub fn run(flags: &InspectFlags) -> Result<(), Failure> {
    let directory = Directory::open(&flags.directory)?;
    let logs = super::survey_all(&directory)?;
    let report = Report {
        directory: directory.path.display().to_string(),
        superblocks: superblocks(&directory),
        unfinished: super::unfinished(&directory),
        logs,
    };
    let text = if flags.json {
        serde_json::to_string(&report)? + "\n"
    } else {
        report.to_string()
    };
    output(std::io::stdout().write_all(text.as_bytes()))?;
    Ok(())
}

fn superblocks(directory: &Directory) -> Vec<SuperblockReport> {
    let newest = directory.superblock.as_ref().map(|block| block.sequence);
    let mut reports = Vec::new();
    for copy in &directory.copies {
        let (in_force, content) = match &copy.content {
            Ok(block) => (
                newest == Some(block.sequence)
                    && !reports
                        .iter()
                        .any(|report: &SuperblockReport| report.in_force),
                Content::Good {
                    sequence: block.sequence,
                    features: block.features,
                    store: hex(&block.store),
                    shards: block.shards,
                    segment_bytes: block.segment_bytes,
                    map_epoch: block.map_epoch,
                    logs: block.logs.len(),
                },
            ),
            Err(error) => (
                false,
                Content::Bad {
                    error: error.clone(),
                },
            ),
        };
        reports.push(SuperblockReport {
            file: super::shown(&copy.path, &directory.path),
            in_force,
            content,
        });
    }
    reports
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.directory)?;
        if let Some(unfinished) = &self.unfinished {
            writeln!(f, "  {unfinished}")?;
        }
        for block in &self.superblocks {
            let mark = if block.in_force { " (in force)" } else { "" };
            match &block.content {
                Content::Bad { error } => writeln!(f, "  {}: {error}", block.file)?,
                Content::Good {
                    sequence,
                    features,
                    store,
                    shards,
                    segment_bytes,
                    map_epoch,
                    logs,
                } => writeln!(
                    f,
                    "  {}: sequence {sequence}{mark}, store {store}, {shards} shards, {logs} logs, segments of {}, map epoch {map_epoch}, features {features:#x}",
                    block.file,
                    human(*segment_bytes),
                )?,
            }
        }
        self.logs.iter().try_for_each(|log| write_log(f, log))
    }
}

fn write_log(f: &mut fmt::Formatter<'_>, log: &LogSurvey) -> fmt::Result {
    let mut head = format!("log {}", log.number);
    if let Some(uuid) = &log.log {
        let _ = write!(
            head,
            "  {uuid}, timeline {}",
            log.timeline.unwrap_or_default()
        );
    }
    if let (Some(epoch), Some((first, last))) = (log.epoch, log.slots) {
        let _ = write!(head, ", epoch {epoch}, slots {first}-{last}");
    }
    writeln!(f, "\n{head}")?;
    writeln!(
        f,
        "  {} batches, {} records, last lsn {}, durable at the last clean close {}, {} on disk",
        log.batches,
        log.records,
        log.last_lsn,
        log.durable_lsn_at_close
            .map_or("unknown".to_owned(), |lsn| lsn.to_string()),
        human(log.bytes),
    )?;
    match &log.verdict {
        Verdict::Whole => writeln!(f, "  whole")?,
        Verdict::TornTail(spot) => writeln!(f, "  torn tail, never acked: {spot}")?,
        Verdict::Damage(spot) => writeln!(f, "  DAMAGE: {spot}")?,
    }
    write_segments(f, &log.segments)?;
    if !log.streams.is_empty() {
        writeln!(
            f,
            "  {:>6}  {:<32} {:>12} {:>12} {:>10}",
            "stream", "name", "records", "tombstones", "bytes"
        )?;
        for stream in &log.streams {
            let name = stream.name.as_deref().unwrap_or("(definition not read)");
            let bytes = human(stream.bytes);
            writeln!(
                f,
                "  {:>6}  {name:<32} {:>12} {:>12} {bytes:>10}",
                stream.id, stream.records, stream.tombstones
            )?;
        }
    }
    log.checkpoints
        .iter()
        .try_for_each(|checkpoint| write_checkpoint(f, checkpoint))
}

fn write_segments(f: &mut fmt::Formatter<'_>, segments: &[SegmentSurvey]) -> fmt::Result {
    let (in_use, idle): (Vec<_>, Vec<_>) = segments
        .iter()
        .partition(|segment| segment.segment.is_some());
    if !in_use.is_empty() {
        writeln!(
            f,
            "  {:>7} {:>4} {:>10} {:>9} {:>10} {:>24}  {:<36} stop",
            "segment", "life", "used", "batches", "records", "lsn", "file"
        )?;
    }
    for segment in in_use {
        let lsns = match (segment.first_lsn, segment.last_lsn) {
            (Some(first), Some(last)) => format!("{first}-{last}"),
            _ => "-".to_owned(),
        };
        let mut notes = segment.stop.clone().unwrap_or_else(|| "-".to_owned());
        for (batches, where_) in [
            (segment.batches_before_entry, "before the replay point"),
            (segment.loose_batches, "behind the end of the log"),
        ] {
            if batches > 0 {
                let _ = write!(notes, "; {} {where_}", counted(batches, "batch"));
            }
        }
        writeln!(
            f,
            "  {:>7} {:>4} {:>10} {:>9} {:>10} {lsns:>24}  {:<36} {notes}",
            segment.segment.unwrap_or_default(),
            segment.generation.unwrap_or_default(),
            human(segment.bytes_used),
            segment.batches,
            segment.records,
            segment.file,
        )?;
    }
    idle.into_iter()
        .try_for_each(|segment| writeln!(f, "  {}: {}", segment.file, segment.state))
}

fn write_checkpoint(f: &mut fmt::Formatter<'_>, checkpoint: &CheckpointSurvey) -> fmt::Result {
    write!(f, "  {}: ", checkpoint.file)?;
    if let (Some(sequence), Some(keys), Some(pages), Some(replay), Some(max)) = (
        checkpoint.sequence,
        checkpoint.keys,
        checkpoint.pages,
        checkpoint.replay_from_lsn,
        checkpoint.max_lsn,
    ) {
        write!(
            f,
            "checkpoint {sequence}, {keys} keys in {pages} pages, replay from lsn {replay}, names up to lsn {max}"
        )?;
    }
    match &checkpoint.flaw {
        Some(flaw) if checkpoint.sequence.is_some() => {
            writeln!(f, "; at offset {}: {}", flaw.offset, flaw.why)
        }
        Some(flaw) => writeln!(f, "{}", flaw.why),
        None if checkpoint.sequence.is_none() => writeln!(f, "never written"),
        None => writeln!(f),
    }
}
