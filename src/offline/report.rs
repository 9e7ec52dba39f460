//! What a survey finds, as data: rendered by `inspect`, judged by `verify`, printed as JSON as it stands.

use std::fmt;

use index::checkpoint::CheckpointHeader;
use serde::Serialize;

/// State of a file that was prepared and never written to.
pub(super) const UNUSED: &str = "prepared, not in use";

/// What is in a log.
#[derive(Debug, Serialize)]
pub struct LogSurvey {
    /// Number in the store.
    pub number: u32,
    /// Its uuid in hex; None when neither superblock nor segment says it.
    pub log: Option<String>,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// Term of the last writer, from the superblock.
    pub epoch: Option<u32>,
    /// First and last slot, from the superblock.
    pub slots: Option<(u16, u16)>,
    /// Durable lsn at the last clean close, from the superblock.
    pub durable_lsn_at_close: Option<u64>,
    /// Bytes of its files.
    pub bytes: u64,
    /// Bytes of them that were read and checked: all but files that hold nothing.
    pub bytes_checked: u64,
    /// Batches of the verified log.
    pub batches: u64,
    /// Records of the verified log.
    pub records: u64,
    /// Last lsn of the verified log, 0 when it is empty.
    pub last_lsn: u64,
    /// In order of the segment's number; files that hold none come last.
    pub segments: Vec<SegmentSurvey>,
    /// By id.
    pub streams: Vec<StreamSurvey>,
    /// As they lie on disk.
    pub checkpoints: Vec<CheckpointSurvey>,
    /// Log time of the last verified batch.
    #[serde(skip)]
    pub log_time_us: u64,
    /// Where the log ends for a reader that trusts nothing behind it; None where it cannot even be entered.
    pub cut: Option<CutPoint>,
    /// What recovery would make of the log.
    pub verdict: Verdict,
}

/// The end of the last good batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CutPoint {
    /// Relative to the data directory.
    pub file: String,
    /// Segment in that file.
    pub segment: u32,
    /// Byte offset behind the batch.
    pub offset: u32,
    /// First lsn that is not there.
    pub next_lsn: u64,
}

/// A place where something is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Spot {
    /// Relative to the data directory.
    pub file: String,
    /// Byte offset of the block, batch or page.
    pub offset: u64,
    /// First lsn that cannot be read there; None where no record is concerned.
    pub lsn: Option<u64>,
    /// What was found.
    pub why: String,
}

/// What recovery would make of a log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Verdict {
    /// Everything verifies up to a clean end.
    Whole,
    /// What follows the end was never acked: recovery cuts it.
    TornTail(Spot),
    /// Something that was durable does not verify: recovery stops the shard.
    Damage(Spot),
}

/// One segment file.
#[derive(Debug, Default, Serialize)]
pub struct SegmentSurvey {
    /// Relative to the data directory.
    pub file: String,
    /// What the header says, or why it cannot be read.
    pub state: String,
    /// Number in the log.
    pub segment: Option<u32>,
    /// Life of the file.
    pub generation: Option<u32>,
    /// Up to the end of the last verified batch, the header included.
    pub bytes_used: u64,
    /// Verified batches of the log.
    pub batches: u64,
    /// Of them, those before the place where a checkpoint enters the log: held to each other by their numbers, because what
    /// the chain would hold the first of them to has been given back.
    pub batches_before_entry: u64,
    /// Records of the verified batches.
    pub records: u64,
    /// The first of them.
    pub first_lsn: Option<u64>,
    /// The last of them.
    pub last_lsn: Option<u64>,
    /// Why reading stopped.
    pub stop: Option<String>,
    /// Batches behind the end of the log that verify on their own.
    pub loose_batches: u64,
}

impl SegmentSurvey {
    /// Records of verified batches, by their lsns; they come in order.
    pub(super) fn note_records(&mut self, lsns: std::ops::Range<u64>) {
        if !lsns.is_empty() {
            self.records += lsns.end - lsns.start;
            self.first_lsn.get_or_insert(lsns.start);
            self.last_lsn = Some(lsns.end - 1);
        }
    }
}

/// One stream of the log.
#[derive(Debug, Default, Serialize)]
pub struct StreamSurvey {
    /// Log-local id.
    pub id: u32,
    /// From its definition; None when that was not read.
    pub name: Option<String>,
    /// Records, tombstones among them.
    pub records: u64,
    /// Tombstones.
    pub tombstones: u64,
    /// Bytes of keys and payloads.
    pub bytes: u64,
}

/// One checkpoint file.
#[derive(Debug, Serialize)]
pub struct CheckpointSurvey {
    /// Relative to the data directory.
    pub file: String,
    /// Number, when the header can be read; None without a flaw is a file that was never written.
    pub sequence: Option<u64>,
    /// Entries that the header promises.
    pub keys: Option<u64>,
    /// Pages that the header promises.
    pub pages: Option<u64>,
    /// First lsn that a restart replays behind it.
    pub replay_from_lsn: Option<u64>,
    /// Largest lsn that it names.
    pub max_lsn: Option<u64>,
    /// What is wrong with it.
    pub flaw: Option<Spot>,
    #[serde(skip)]
    pub(super) header: Option<CheckpointHeader>,
}

impl SegmentSurvey {
    /// Of a file that was prepared and never written to.
    pub fn is_unused(&self) -> bool {
        self.segment.is_none() && self.state == UNUSED
    }
}

impl LogSurvey {
    /// Everything here that does not verify and should, the log itself first.
    pub fn damages(&self) -> impl Iterator<Item = &Spot> {
        let log = match &self.verdict {
            Verdict::Damage(spot) => Some(spot),
            Verdict::Whole | Verdict::TornTail(_) => None,
        };
        let newest = self.newest_checkpoint().and_then(|copy| copy.flaw.as_ref());
        log.into_iter().chain(newest)
    }

    /// Flaws that cost nothing: the older checkpoint is written over while the newer one is in force, and one without a good
    /// header was never finished.
    pub fn harmless(&self) -> impl Iterator<Item = &Spot> {
        let newest = self.newest_checkpoint().map(|copy| &copy.file);
        self.checkpoints
            .iter()
            .filter(move |copy| Some(&copy.file) != newest)
            .filter_map(|copy| copy.flaw.as_ref())
    }

    fn newest_checkpoint(&self) -> Option<&CheckpointSurvey> {
        self.checkpoints
            .iter()
            .filter(|copy| copy.header.is_some())
            .max_by_key(|copy| copy.sequence)
    }
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at offset {}", self.file, self.offset)?;
        if let Some(lsn) = self.lsn {
            write!(f, ", lsn {lsn}")?;
        }
        write!(f, ": {}", self.why)
    }
}

/// Bytes as lower-case hex, as uuids are shown.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}
