//! `pinion reshard DIR --shards N`: all records of a store laid down anew in another number of logs.
//!
//! The old logs are read and judged first, without a change; then new logs are written beside them under new numbers, read
//! back and compared; then one write of the superblock makes the store the new one; then the old logs go. A note in the
//! directory (`shard::Reshard`) names both sets meanwhile. Killed before that write the store is the old one, behind it the new
//! one, and whoever comes next, this command or a server, removes what is not the store's.
//!
//! What is laid down, and what of the old logs must not be forgotten, is `shard::reshard`'s.

mod read;
mod steps;
mod write;

use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use shard::reshard::{Merge, Source, identity, superblock_with};
use shard::{Progress, Reshard, log_directory};
use wal::BLOCK_BYTES;
use wal::superblock::Superblock;

use super::dir::{Directory, LogFiles, SUPERBLOCKS, log_files, sync_folder, write_superblock};
use super::report::{LogSurvey, Verdict};
use super::survey::Nothing;
use crate::cli::ReshardFlags;
use crate::exit::{Failure, output};
use crate::text::{counted, human};
use read::{Learning, Records};
use steps::Steps;
use write::{Place, Writer};

/// Makes the change.
pub fn run(flags: &ReshardFlags) -> Result<(), Failure> {
    let started = Instant::now();
    let steps = Steps::new();
    let mut out = std::io::stdout().lock();
    let mut directory = Directory::open_alone(&flags.directory)?;
    let mut superblock = superblock_of(&directory.path)?;
    if directory.reshard.is_some() {
        let told = settle(&directory.path, &mut superblock, &steps)?;
        output(writeln!(out, "{told}"))?;
        drop(directory);
        directory = Directory::open_alone(&flags.directory)?;
        superblock = superblock_of(&directory.path)?;
    }
    if superblock.shards == flags.shards {
        output(writeln!(
            out,
            "{} has {} already: nothing to do",
            flags.directory.display(),
            counted(flags.shards.into(), "shard")
        ))?;
        return Ok(());
    }
    let old = superblock.shards;
    let made = Change::plan(&directory, superblock, flags.shards)?.make(&steps)?;
    let seconds = started.elapsed().as_secs_f64();
    output(writeln!(
        out,
        "{} in {} now in {}: {} read twice, {} written and read back in {seconds:.2} s ({:.0} MB/s)",
        counted(made.records, "record"),
        counted(old.into(), "shard"),
        flags.shards,
        human(made.bytes_read / 2),
        human(made.bytes_written),
        (made.bytes_read + 2 * made.bytes_written) as f64 / 1e6 / seconds.max(1e-9),
    ))?;
    output(writeln!(
        out,
        "type `pinion serve --data {}`. Cursors from before are refused by name: start those clients without one",
        flags.directory.display()
    ))?;
    Ok(())
}

/// As a server would choose it: a copy of a newer format is not passed over.
fn superblock_of(directory: &Path) -> anyhow::Result<Superblock> {
    let [a, b] = SUPERBLOCKS.map(|name| std::fs::read(directory.join(name)).unwrap_or_default());
    Superblock::choose(&a, &b).with_context(|| {
        format!(
            "{}: no superblock can be used; run `pinion verify` on it",
            directory.display()
        )
    })
}

/// An earlier run ended early: what is not the store's is removed.
fn settle(directory: &Path, superblock: &mut Superblock, steps: &Steps) -> anyhow::Result<String> {
    // The older copy may still name the other logs.
    write_superblock(directory, superblock)?;
    steps.passed();
    let path = Reshard::path(directory);
    let settled = Reshard::settle(directory, superblock, &mut || steps.passed())
        .with_context(|| path.display().to_string())?;
    Ok(match settled {
        Some(settled) if settled.progress == Progress::Unfinished => format!(
            "an earlier change to {} was not finished: what it had written is removed",
            counted(settled.shards as u64, "shard")
        ),
        Some(settled) => format!(
            "an earlier change to {} had only its old logs left to remove: that is done",
            counted(settled.shards as u64, "shard")
        ),
        None => "nothing was left of an earlier change".to_owned(),
    })
}

/// What was done.
struct Made {
    records: u64,
    bytes_read: u64,
    bytes_written: u64,
}

/// A change whose old logs were read once and found whole.
struct Change {
    directory: std::path::PathBuf,
    old: Superblock,
    new: Superblock,
    logs: Vec<LogFiles>,
    surveys: Vec<LogSurvey>,
    sources: Vec<Source>,
    /// Records that each old log must give.
    expected: Vec<u64>,
    bytes_read: u64,
    progress: ProgressBar,
}

impl Change {
    fn plan(directory: &Directory, old: Superblock, shards: u32) -> anyhow::Result<Change> {
        let mut logs = Vec::new();
        for log in &old.logs {
            let files = directory
                .logs
                .iter()
                .find(|files| files.number == log.number);
            let files = files.with_context(|| {
                format!(
                    "damage: the superblock names log-{:08}, and its folder is not there: put it back, or run `pinion verify {}`",
                    log.number,
                    directory.path.display()
                )
            })?;
            logs.push(files.clone());
        }
        let bytes: u64 = logs.iter().map(LogFiles::bytes).sum();
        let progress = super::progress(3 * bytes);
        let learning = old.logs.iter().zip(&logs).map(|(log, files)| {
            let slots = (log.slot_first, log.slot_last);
            let sink = Learning {
                source: Source::new(
                    log.number,
                    slots,
                    old.digest_key,
                    (old.logs.len() as u32, shards),
                ),
                originals: 0,
                error: None,
            };
            (files.clone(), sink)
        });
        let learned = super::survey_each(learning.collect(), &Some(old.clone()), &progress)?;
        let (mut surveys, mut sources, mut expected) = (Vec::new(), Vec::new(), Vec::new());
        for (survey, sink) in learned {
            if let Verdict::Damage(spot) = &survey.verdict {
                bail!(
                    "damage: {spot}: nothing was changed; run `pinion verify {0}` to see all of it, `pinion repair {0}` to see what a cut would lose",
                    directory.path.display()
                );
            }
            if let Some(error) = sink.error {
                bail!("log {}: {error}: nothing was changed", survey.number);
            }
            let mut source = sink.source;
            source.read_once(survey.log_time_us);
            expected.push(sink.originals + source.copied().len() as u64);
            surveys.push(survey);
            sources.push(source);
        }
        let numbers = directory.logs.iter().map(|files| files.number);
        let above = numbers.chain(old.logs.iter().map(|log| log.number)).max();
        let new = superblock_with(&old, shards, above.unwrap_or(0));
        let change = Change {
            directory: directory.path.clone(),
            old,
            new,
            logs,
            surveys,
            sources,
            expected,
            bytes_read: 2 * bytes,
            progress,
        };
        change.check_room()?;
        Ok(change)
    }

    /// Both sets of logs are there for a while.
    fn check_room(&self) -> anyhow::Result<()> {
        let segment = self.new.segment_bytes;
        let mut needed = 0;
        for target in 0..self.new.logs.len() {
            let records: u64 = self.sources.iter().map(|s| s.bytes_for(target)).sum();
            let answers: usize = self.sources.iter().map(Source::answers).sum();
            // Headers and padding of batches, the ends of segments, and what is carried, all taken large.
            let bytes = records + records / 16 + 256 * answers as u64 + (1 << 20);
            needed += (bytes / (segment - BLOCK_BYTES as u64) + 1) * segment;
        }
        let free = uring::limits::free_bytes(&self.directory)
            .with_context(|| self.directory.display().to_string())?;
        if free < needed {
            bail!(
                "{} has {} free, and the new logs may need {} beside the old ones: nothing was changed; make room, or move the directory to a larger disk",
                self.directory.display(),
                human(free),
                human(needed)
            );
        }
        Ok(())
    }

    fn make(mut self, steps: &Steps) -> anyhow::Result<Made> {
        let reshard = Reshard {
            from: self.old.logs.iter().map(|log| log.number).collect(),
            to: self.new.logs.iter().map(|log| log.number).collect(),
        };
        reshard
            .write(&self.directory)
            .with_context(|| Reshard::path(&self.directory).display().to_string())?;
        steps.passed();
        let made = match self.write_all(steps) {
            Ok(made) => made,
            Err(error) => {
                // The store is the old one, and room may be what was missing.
                let removed = Reshard::settle(&self.directory, &self.old, &mut || ());
                let fate = match removed {
                    Ok(_) => "the store is as it was; what was written is removed",
                    Err(_) => "the store is as it was; the next start removes what was written",
                };
                return Err(error.context(fate));
            }
        };
        // The switch: before it the store is the old one.
        write_superblock(&self.directory, &mut self.new)?;
        steps.passed();
        settle(&self.directory, &mut self.new, steps)?;
        self.progress.finish_and_clear();
        Ok(made)
    }

    /// New logs, written, durable, read back.
    fn write_all(&mut self, steps: &Steps) -> anyhow::Result<Made> {
        let mut places = Vec::new();
        for log in &self.new.logs {
            let folder = log_directory(&self.directory, log.number);
            std::fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
            places.push(Place {
                folder,
                identity: identity(&self.new, log),
                segment_bytes: self.new.segment_bytes,
            });
        }
        sync_folder(&self.directory)?;
        steps.passed();
        let mut records = Vec::new();
        for (at, files) in self.logs.iter().enumerate() {
            records.push(Records::read(
                files.clone(),
                &self.old,
                identity(&self.old, &self.old.logs[at]),
                &self.surveys[at],
                self.sources[at].copied(),
                &self.progress,
            )?);
        }
        let mut merge = Merge::new(std::mem::take(&mut self.sources), &self.new)
            .context("memory for the keys of the new logs")?;
        let mut writer = Writer::start(places.clone(), steps, &self.progress)?;
        let taken = merge_all(&mut merge, records, &mut writer)?;
        if taken != self.expected {
            bail!(
                "the second reading gave {taken:?} records and the first {:?}: the old logs changed meanwhile, or a device does not give back what it has",
                self.expected
            );
        }
        merge.finish();
        hand_over(&mut merge, None, &mut writer)?;
        let bytes_written = writer.finish()?;
        for (log, place) in self.new.logs.iter_mut().zip(&places) {
            sync_folder(&place.folder)?;
            steps.passed();
            let target = merge
                .targets()
                .iter()
                .find(|t| t.identity() == place.identity);
            log.durable_lsn = target.map_or(0, |target| target.last_lsn());
        }
        self.read_back(&mut merge)?;
        Ok(Made {
            records: taken.iter().sum(),
            bytes_read: self.bytes_read,
            bytes_written,
        })
    }

    /// Every checksum of the new logs, and as many records of every stream as were laid down.
    fn read_back(&self, merge: &mut Merge) -> anyhow::Result<()> {
        let mut logs = Vec::new();
        for log in &self.new.logs {
            let folder = log_directory(&self.directory, log.number);
            logs.push((log_files(&self.directory, &folder, log.number)?, Nothing));
        }
        let surveys = super::survey_each(logs, &Some(self.new.clone()), &self.progress)?;
        let names: Vec<String> = merge
            .streams()
            .iter()
            .map(|stream| String::from_utf8_lossy(&stream.name).into_owned())
            .collect();
        for ((survey, _), target) in surveys.iter().zip(merge.targets()) {
            if survey.verdict != Verdict::Whole || survey.last_lsn != target.last_lsn() {
                bail!(
                    "log {} does not read back: it ends at lsn {} instead of {} ({:?})",
                    survey.number,
                    survey.last_lsn,
                    target.last_lsn(),
                    survey.verdict
                );
            }
            for (id, name) in (1..).zip(&names) {
                let found = survey.streams.iter().find(|stream| stream.id == id);
                let found = found.map_or(0, |stream| stream.records);
                if found != target.records_of(id) {
                    bail!(
                        "log {} does not read back: {found} records of {name} instead of {}",
                        survey.number,
                        target.records_of(id)
                    );
                }
            }
        }
        Ok(())
    }
}

/// All records in the order of their times; those of one log in the order of that log. Gives how many each gave.
fn merge_all(
    merge: &mut Merge,
    mut records: Vec<Records>,
    writer: &mut Writer,
) -> anyhow::Result<Vec<u64>> {
    let mut taken = vec![0; records.len()];
    let mut times = Vec::new();
    for log in &mut records {
        times.push(log.next_us()?);
    }
    // Of equal times the first log's: the records of one request stay together.
    while let Some((at, _)) = times
        .iter()
        .enumerate()
        .filter_map(|(at, time)| Some((at, (*time)?)))
        .min_by_key(|(at, time)| (*time, *at))
    {
        let number = merge.sources()[at].number;
        let (first, record) = records[at]
            .take()
            .with_context(|| format!("log {number}"))?;
        let target = merge.take(at, first, &record)?;
        taken[at] += 1;
        hand_over(merge, target, writer)?;
        times[at] = records[at].next_us()?;
    }
    Ok(taken)
}

/// Batches that are closed go to the device: of one new log, or of all.
fn hand_over(merge: &mut Merge, target: Option<usize>, writer: &mut Writer) -> anyhow::Result<()> {
    for (at, log) in merge.targets().iter_mut().enumerate() {
        if target.is_none_or(|target| target == at) {
            for write in log.take_writes() {
                writer.write(at, write)?;
            }
        }
    }
    Ok(())
}
