//! `pinion repair DIR`: cut a damaged log behind its last good batch, when asked to with `--cut`; without it, say what that
//! would lose.
//!
//! One machine can find corruption but not mend it: what is behind the damage was acknowledged and is given up here, so nothing
//! is destroyed. Files are moved and bytes are copied into `left-out-<time>/` in the data directory, with a report and
//! every record behind the cut that still verifies. Order of the steps: first the copies, then what a restart would hold
//! against the cut (later segments, checkpoints, the durable lsn of the superblock), last the bytes in the cut segment.
//! Interrupted anywhere, a second run finishes the work. The verdict before and after is the survey's, which is recovery's.

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use base64::Engine as _;
use serde_json::json;
use wal::record::{Kind, RecordCodec, RecordView};
use wal::segment::SegmentHeader;
use wal::superblock::Superblock;
use wal::{BLOCK_BYTES, LogIdentity};

use super::dir::{Directory, SUPERBLOCKS, sync_folder, write_superblock};
use super::loose::{Loose, Segment};
use super::report::{CutPoint, LogSurvey, Spot, Verdict};
use crate::cli::RepairFlags;
use crate::exit::{Failure, output};
use crate::text::counted;

/// Shows what a cut would leave out, or makes it.
pub fn run(flags: &RepairFlags) -> Result<(), Failure> {
    let directory = Directory::open_alone(&flags.directory)?;
    let surveys = super::survey_all(&directory)?;
    let damaged: Vec<&LogSurvey> = surveys
        .iter()
        .filter(|survey| matches!(survey.verdict, Verdict::Damage(_)))
        .collect();
    let mut out = std::io::stdout().lock();
    if damaged.is_empty() {
        output(writeln!(out, "no log is damaged: nothing to repair"))?;
        return Ok(());
    }
    let mut plans = Vec::new();
    for survey in damaged {
        let plan = Plan::new(&directory, survey)?;
        output(writeln!(out, "{plan}"))?;
        plans.push(plan);
    }
    if !flags.cut {
        return Err(anyhow::anyhow!(
            "nothing was changed: `pinion repair --cut {}` makes the cut and keeps what it leaves out",
            flags.directory.display()
        )
        .into());
    }
    let left_out = left_out_folder(&directory.path)?;
    for plan in &plans {
        let salvaged = plan.carry_out(&directory, &left_out)?;
        let records = counted(salvaged, "record");
        output(writeln!(
            out,
            "log {}: cut behind lsn {}; {records} behind it still verify and are in {}",
            plan.number,
            plan.cut.next_lsn - 1,
            plan.folder(&left_out).join("records.ndjson").display()
        ))?;
    }
    drop(directory);
    let directory = Directory::open_alone(&flags.directory)?;
    for survey in super::survey_all(&directory)? {
        if let Verdict::Damage(spot) = survey.verdict {
            return Err(anyhow::anyhow!("still damaged: {spot}").into());
        }
    }
    output(writeln!(
        out,
        "no damage is left. Cursors that clients got from behind the cut name records that are gone: start those clients anew"
    ))?;
    Ok(())
}

/// What one log's cut takes.
struct Plan {
    number: u32,
    spot: Spot,
    cut: CutPoint,
    /// Segment files behind the cut, and files that are no segment of this log.
    behind: Vec<PathBuf>,
    /// Checkpoints that speak of lsns behind the cut, or that cannot be read.
    checkpoints: Vec<PathBuf>,
}

impl Plan {
    fn new(directory: &Directory, survey: &LogSurvey) -> anyhow::Result<Plan> {
        let Verdict::Damage(spot) = &survey.verdict else {
            bail!("log {} is not damaged", survey.number);
        };
        let Some(cut) = survey.cut.clone() else {
            bail!(
                "log {}: {spot}: there is no good batch before it to cut behind; put the missing file back, or restore a backup",
                survey.number
            );
        };
        let (mut behind, mut first) = (Vec::new(), None);
        for row in &survey.segments {
            match row.segment {
                Some(segment) if segment > cut.segment => {
                    behind.push(directory.path.join(&row.file))
                }
                Some(segment) => first = Some(first.map_or(segment, |f: u32| f.min(segment))),
                None if row.is_unused() => {}
                None => behind.push(directory.path.join(&row.file)),
            }
        }
        let (kept, given_up): (Vec<_>, Vec<_>) = survey
            .checkpoints
            .iter()
            .filter(|copy| copy.sequence.is_some() || copy.flaw.is_some())
            .partition(|copy| copy.flaw.is_none() && copy.max_lsn < Some(cut.next_lsn));
        if kept.is_empty() && first != Some(1) {
            bail!(
                "log {}: its first segments were given back, and no checkpoint from before lsn {} is left to enter it by; restore a backup",
                survey.number,
                cut.next_lsn
            );
        }
        Ok(Plan {
            number: survey.number,
            spot: spot.clone(),
            cut,
            behind,
            checkpoints: given_up
                .iter()
                .map(|copy| directory.path.join(&copy.file))
                .collect(),
        })
    }

    fn folder(&self, left_out: &Path) -> PathBuf {
        left_out.join(format!("log-{:08}", self.number))
    }

    /// Returns how many records behind the cut could be saved.
    fn carry_out(&self, directory: &Directory, left_out: &Path) -> anyhow::Result<u64> {
        let superblock = directory
            .superblock
            .as_ref()
            .context("neither superblock can be read: put one back first")?;
        let folder = self.folder(left_out);
        std::fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let cut_file = directory.path.join(&self.cut.file);
        let tail = Tail::read(&cut_file, u64::from(self.cut.offset))?;
        std::fs::write(
            folder.join(format!("{}.tail", name(&cut_file))),
            &tail.bytes,
        )?;
        let salvaged = self.save_records(superblock, &cut_file, &folder)?;
        let report = json!({
            "log": self.number,
            "damage": self.spot,
            "cut": { "file": self.cut.file, "offset": self.cut.offset, "last_lsn_kept": self.cut.next_lsn - 1 },
            "tail_bytes": tail.bytes.len(),
            "segments_moved": self.behind.iter().map(|path| name(path)).collect::<Vec<_>>(),
            "checkpoints_moved": self.checkpoints.iter().map(|path| name(path)).collect::<Vec<_>>(),
            "records_that_still_verify": salvaged,
        });
        std::fs::write(folder.join("report.json"), format!("{report:#}\n"))?;
        for entry in std::fs::read_dir(&folder)? {
            File::open(entry?.path())?.sync_all()?;
        }
        sync_folder(&folder)?;
        sync_folder(left_out)?;
        sync_folder(&directory.path)?;

        for path in self.behind.iter().chain(&self.checkpoints) {
            std::fs::rename(path, folder.join(name(path)))
                .with_context(|| path.display().to_string())?;
        }
        sync_folder(&folder)?;
        if let Some(parent) = cut_file.parent() {
            sync_folder(parent)?;
        }
        lower_durable_lsn(&directory.path, self.number, self.cut.next_lsn - 1)?;
        tail.erase(&cut_file)?;
        Ok(salvaged)
    }

    /// Every record behind the cut that verifies on its own, a line each.
    fn save_records(
        &self,
        superblock: &Superblock,
        cut_file: &Path,
        folder: &Path,
    ) -> anyhow::Result<u64> {
        let log = superblock
            .logs
            .iter()
            .find(|log| log.number == self.number)
            .context("the superblock does not name this log")?;
        let identity = LogIdentity {
            store: superblock.store,
            log: log.log,
            number: log.number,
            timeline: log.timeline,
        };
        let codec = RecordCodec::new(&identity);
        let mut out = BufWriter::new(File::create(folder.join("records.ndjson"))?);
        let mut written = Ok(());
        let mut records = 0;
        for path in std::iter::once(cut_file).chain(self.behind.iter().map(PathBuf::as_path)) {
            let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
            let Ok(header) = SegmentHeader::decode(&bytes) else {
                continue;
            };
            let from = if path == cut_file {
                self.cut.offset
            } else {
                BLOCK_BYTES as u32
            };
            let segment = Segment {
                identity: &identity,
                header: &header,
                bytes: &bytes,
            };
            Loose::default().read(&codec, &segment, from..u32::MAX, |_, _, record| {
                records += 1;
                if written.is_ok() {
                    written = writeln!(out, "{}", line(record));
                }
            });
        }
        written?;
        out.flush()?;
        Ok(records)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "log {}: damage: {}", self.number, self.spot)?;
        write!(
            f,
            "  the cut keeps everything up to lsn {} and leaves out {} from offset {} on, {} and {}",
            self.cut.next_lsn - 1,
            self.cut.file,
            self.cut.offset,
            counted(self.behind.len() as u64, "later file"),
            counted(self.checkpoints.len() as u64, "checkpoint"),
        )
    }
}

/// What lies behind the cut in its own segment.
struct Tail {
    offset: u64,
    bytes: Vec<u8>,
}

impl Tail {
    fn read(path: &Path, offset: u64) -> anyhow::Result<Tail> {
        let mut bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let bytes = bytes.split_off((offset as usize).min(bytes.len()));
        Ok(Tail { offset, bytes })
    }

    fn erase(&self, path: &Path) -> anyhow::Result<()> {
        let file = OpenOptions::new().write(true).open(path)?;
        file.write_all_at(&vec![0; self.bytes.len()], self.offset)?;
        file.sync_all().with_context(|| path.display().to_string())
    }
}

/// A record as `pinion history` shows one, its payload as bytes.
fn line(record: &RecordView<'_>) -> serde_json::Value {
    let bytes = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let kind = match record.kind {
        Kind::Put => "put",
        Kind::Tombstone => "tombstone",
        Kind::StreamDefinition => "stream",
        Kind::Note => "note",
    };
    let key = match std::str::from_utf8(record.key) {
        Ok(key) => json!({ "key": key }),
        Err(_) => json!({ "key_base64": bytes(record.key) }),
    };
    let mut line = json!({
        "lsn": record.lsn, "kind": kind, "stream_id": record.stream, "version": record.version,
        "timestamp": record.timestamp_us, "value_base64": bytes(record.payload),
    });
    if let (Some(line), serde_json::Value::Object(key)) = (line.as_object_mut(), key) {
        line.extend(key);
    }
    line
}

/// A folder that is not there yet, named by the time.
fn left_out_folder(directory: &Path) -> anyhow::Result<PathBuf> {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs());
    let free = (seconds..)
        .map(|at| directory.join(format!("left-out-{at}")))
        .find(|path| !path.exists());
    let path = free.context("every name is taken")?;
    std::fs::create_dir(&path).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// What the superblock remembers must not stand against the cut.
fn lower_durable_lsn(directory: &Path, number: u32, lsn: u64) -> anyhow::Result<()> {
    let [a, b] = SUPERBLOCKS.map(|name| std::fs::read(directory.join(name)).unwrap_or_default());
    let mut superblock = Superblock::choose(&a, &b)?;
    for log in &mut superblock.logs {
        if log.number == number {
            log.durable_lsn = log.durable_lsn.min(lsn);
        }
    }
    write_superblock(directory, &mut superblock)
}

fn name(path: &Path) -> String {
    path.file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default()
}
