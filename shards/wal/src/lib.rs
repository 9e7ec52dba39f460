//! The log: records, batches, segments, superblock and recovery. Bytes in, plans out; performs no I/O.
//!
//! Every byte that this crate lays down is drawn in `FORMAT.md` beside it. It does not know sockets,
//! shards, the index, files or a clock: callers pass bytes, times and buffers, and get bytes, plans
//! and verdicts back.
//!
//! | module | owns |
//! |---|---|
//! | [`record`], [`extension`] | one record: laid down, verified, read in place |
//! | [`segment`], [`superblock`] | the blocks that say whose bytes these are |
//! | [`chain`] | what the next batch must continue |
//! | [`writer`] | the open end: records into batches, batches into segments, completions into the durable lsn |
//! | [`scan`] | reading a segment batch by batch |
//! | [`recovery`] | the decision table: what it means where reading stops |

mod batch;
pub mod chain;
mod commits;
pub mod extension;
mod layout;
pub mod record;
pub mod recovery;
pub mod scan;
pub mod segment;
pub mod superblock;
pub mod writer;

/// Alignment of every device write and of every batch (physical block of the devices we meet).
pub const BLOCK_BYTES: usize = 4096;
/// Bytes before the first record of a batch: local envelope (64) + portable header (128).
pub const BATCH_HEADER_BYTES: usize = batch::ENVELOPE_BYTES + batch::PORTABLE_BYTES;
/// Longest key of a record.
pub const KEY_BYTES_MAX: usize = 1024;

/// Who a log is. Seeds every checksum, so that bytes of another log, or of another life of this one, never verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity {
    /// The data directory's uuid; in local envelopes only, never sent anywhere.
    pub store: [u8; 16],
    /// The log's uuid, the same on every machine that holds a copy.
    pub log: [u8; 16],
    /// The log's number in its store.
    pub number: u32,
    /// Changes when a directory is restored to an earlier point. A timeline begins at a segment's start.
    pub timeline: u32,
}

/// Where a record lies. `segment` is the segment's sequence number in its log (never reused; a file is recycled under a new one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Location {
    /// Segment number, from 1.
    pub segment: u32,
    /// Byte offset of the record in the segment file.
    pub offset: u32,
}

/// A pointer to a record: who it is (lsn, 0 = none) and where it was when the pointer was written.
///
/// The location is a hint. It is stored and carried as it was written, so on another machine it may
/// name another place: what is read there counts only if it decodes under `lsn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Link {
    /// The record's number, 0 for no record.
    pub lsn: u64,
    /// Where it was.
    pub location: Location,
}

/// Why a segment header or a superblock could not be used.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum FormatError {
    /// Something else, or nothing, is stored here.
    #[error("not a pinion {0}: magic bytes differ")]
    Magic(&'static str),
    /// Written by a binary of another format.
    #[error("{what} has format version {found}; this binary reads {known}")]
    Version {
        /// What was read.
        what: &'static str,
        /// Its version.
        found: u32,
        /// The version that this binary reads.
        known: u32,
    },
    /// Damaged.
    #[error("{0} checksum does not match")]
    Checksum(&'static str),
    /// Fewer bytes than the thing has.
    #[error("{0} is cut short")]
    Short(&'static str),
    /// Intact, yet it cannot be meant.
    #[error("{what}: {why}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
}
