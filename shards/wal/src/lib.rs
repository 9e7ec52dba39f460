//! The log: records, batches, segments, superblock and recovery. Bytes in, plans out; performs no I/O.
//!
//! It does not know sockets, shards, the index or a clock: callers pass bytes, times and buffers.
#![allow(dead_code, unused_variables, missing_docs)]
/// Alignment of every device write and of every batch (physical block of the devices we meet).
pub const BLOCK_BYTES: usize = 4096;
/// Bytes before the first record of a batch: local envelope (64) + portable header (128).
pub const BATCH_HEADER_BYTES: usize = 192;
pub const KEY_BYTES_MAX: usize = 1024;

/// Who a log is. Seeds every checksum, so that bytes of another log, or of another life of this one, never verify.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogIdentity { pub store: [u8; 16], pub log: [u8; 16], pub number: u32, pub timeline: u32 }

/// Where a record lies. `segment` is the segment's sequence number in its log (never reused; a file is recycled under a new one).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct Location { pub segment: u32, pub offset: u32 }

/// A pointer to a record: who it is (lsn, 0 = none) and where it was when the pointer was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Link { pub lsn: u64, pub location: Location }

pub mod record {
    use super::*;
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum Kind { Put = 1, Tombstone = 2, /// key = stream name, payload = policy (JSON); `stream` is the id it defines
        StreamDefinition = 3, /// no key; carries only extensions (e.g. the answer of a request that appended nothing)
        Note = 4 }
    /// Content types with a code of their own; `Other` is spelled out in a ContentType extension.
    pub mod content_type { pub const OCTET_STREAM: u8 = 0; pub const JSON: u8 = 1; pub const TEXT_PLAIN: u8 = 2; pub const NDJSON: u8 = 3; pub const OTHER: u8 = 255; }
    /// What the writer is asked to append. `extensions` are encoded blocks (see `extension::push`).
    #[derive(Clone, Copy, Debug)]
    pub struct NewRecord<'a> { pub kind: Kind, pub content_type: u8, pub stream: u32, pub version: u32, pub timestamp_us: u64, pub previous: Link, pub key: &'a [u8], pub payload: &'a [u8], pub extensions: &'a [u8] }
    /// Bytes of the record in a batch: header + extensions + key + payload, rounded up to 8.
    pub fn encoded_bytes(record: &NewRecord<'_>) -> usize { todo!() }
    /// A record read in place. `lsn` is what the caller expected and the checksum confirmed.
    #[derive(Clone, Copy, Debug)]
    pub struct RecordView<'a> { pub lsn: u64, pub kind: Kind, pub content_type: u8, pub stream: u32, pub version: u32, pub timestamp_us: u64, pub previous: Link, pub key: &'a [u8], pub payload: &'a [u8], pub extensions: &'a [u8], /// encoded length, a multiple of 8
        pub bytes: usize }
    #[derive(Debug, thiserror::Error, PartialEq, Eq)]
    pub enum RecordError { #[error("record is cut short: needs {needed} bytes, {given} given")] Short { needed: usize, given: usize }, #[error("record header makes no sense: {0}")] Malformed(&'static str), #[error("record checksum is {found:08x}, should be {wanted:08x}")] Checksum { found: u32, wanted: u32 } }
    /// Seeded once per log: decode verifies that `bytes` starts with record `lsn` of that log.
    #[derive(Clone, Copy, Debug)]
    pub struct RecordCodec { seed: u32 }
    impl RecordCodec {
        pub fn new(identity: &LogIdentity) -> RecordCodec { todo!() }
        pub fn decode<'a>(&self, lsn: u64, bytes: &'a [u8]) -> Result<RecordView<'a>, RecordError> { todo!() }
        /// Total length of the record that starts here, from its header alone (to size a second read).
        pub fn peek_bytes(bytes: &[u8]) -> Option<usize> { todo!() }
    }
}

pub mod extension {
    //! Typed blocks after a record's fixed header. Unknown types are kept and skipped.
    pub const CONTENT_TYPE: u16 = 1;
    /// producer id (16), sequence (u64), records of the request in this log (u32): on the first record of a request's part in this log
    pub const PRODUCER: u16 = 2;
    /// digest of the Idempotency-Key scope (16), request fingerprint (u64), records in this log (u32)
    pub const IDEMPOTENCY: u16 = 3;
    // reserved, see FORMAT.md: not-before 16, expiry 17, running total 18, claim 19, origin 20, trace context 21, skip pointer 22
    pub fn push(out: &mut Vec<u8>, kind: u16, bytes: &[u8]) { todo!() }
    pub fn iter(extensions: &[u8]) -> impl Iterator<Item = (u16, &[u8])> { std::iter::empty() }
    pub fn find(extensions: &[u8], kind: u16) -> Option<&[u8]> { todo!() }
}

pub mod segment {
    use super::*;
    /// First block of a segment file.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct SegmentHeader { pub identity: LogIdentity, pub segment: u32, pub generation: u32, pub segment_bytes: u64 }
    impl SegmentHeader {
        pub fn encode(&self, block: &mut [u8]) { todo!() }
        pub fn decode(block: &[u8]) -> Result<SegmentHeader, super::FormatError> { todo!() }
    }
}

#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum FormatError { #[error("not a pinion {0}: magic bytes differ")] Magic(&'static str), #[error("{what} has format version {found}; this binary reads {known}")] Version { what: &'static str, found: u32, known: u32 }, #[error("{0} checksum does not match")] Checksum(&'static str), #[error("{0} is cut short")] Short(&'static str), #[error("{what}: {why}")] Malformed { what: &'static str, why: String } }

pub mod chain {
    /// What the next batch must continue: carried by recovery, the writer and the checkpoint.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct ChainPoint { /// writer's term of the last batch (0 before the first)
        pub epoch: u32, pub next_batch: u64, pub next_lsn: u64, pub hash: [u8; 16], pub log_time_us: u64, /// where the next batch would start
        pub segment: u32, pub offset: u32 }
    impl ChainPoint { pub fn genesis(first_segment: u32) -> ChainPoint { todo!() } }
}

pub mod writer {
    //! The open end of a log: lays records into batches, batches into segments. One batch is open at a time.
    use super::{chain::ChainPoint, record::NewRecord, *};
    /// A prepared (zero-filled, header durable) segment, ready to be written.
    #[derive(Clone, Copy, Debug)]
    pub struct ReadySegment { pub segment: u32, pub generation: u32, pub bytes: u32, /// the caller's handle of the file
        pub file: u32 }
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Appended { pub lsn: u64, pub location: Location, pub bytes: u32 }
    /// A batch ready for the device: write buffer[..bytes] at `offset` of `file`.
    #[derive(Debug)]
    pub struct SealedBatch<B> { pub batch: u64, pub file: u32, pub segment: u32, pub offset: u32, pub bytes: u32, pub buffer: B, pub first_lsn: u64, pub last_lsn: u64, pub records: u32, /// acks may be released once this and all earlier batches are durable
        pub commits: bool }
    pub struct Writer<B> { _p: std::marker::PhantomData<B> }
    impl<B: AsRef<[u8]> + AsMut<[u8]>> Writer<B> {
        /// `epoch` is this writer's term, larger than any before it.
        pub fn new(identity: LogIdentity, epoch: u32, at: ChainPoint, current: ReadySegment) -> Writer<B> { todo!() }
        /// Queue the segment that follows the last one given (its number must be +1).
        pub fn add_segment(&mut self, segment: ReadySegment) { todo!() }
        /// Segments ready behind the current one.
        pub fn segments_ahead(&self) -> usize { todo!() }
        /// Open a batch in `buffer` (at least BATCH_HEADER_BYTES + one record). Rolls to the next segment when less than `least_room` would be left in this one;
        /// gives the buffer back when there is no segment to roll to.
        pub fn open(&mut self, buffer: B, least_room: usize) -> Result<(), B> { todo!() }
        pub fn is_open(&self) -> bool { todo!() }
        /// Record bytes that still fit into the open batch (0 when none is open).
        pub fn room(&self) -> usize { todo!() }
        pub fn records(&self) -> u32 { todo!() }
        /// Next lsn to be given out.
        pub fn next_lsn(&self) -> u64 { todo!() }
        /// Copy a record into the open batch. Precondition: encoded_bytes(record) <= room(). Checksums it.
        pub fn append(&mut self, record: &NewRecord<'_>) -> Appended { todo!() }
        /// Bytes of a record that is still in the open batch.
        pub fn open_bytes(&self, location: Location) -> Option<&[u8]> { todo!() }
        /// Close the open batch. `commits = false`: a unit goes on in the next batch, a crash between them takes both back. `durable_lsn`: what is known durable now.
        pub fn seal(&mut self, commits: bool, durable_lsn: u64, log_time_us: u64) -> Option<SealedBatch<B>> { todo!() }
        /// Chain position after the last sealed batch (for the checkpoint).
        pub fn chain(&self) -> ChainPoint { todo!() }
    }
    /// Turns out-of-order write completions into the durable lsn.
    #[derive(Debug, Default)]
    pub struct Commits { _p: () }
    impl Commits {
        pub fn new(durable_lsn: u64, next_batch: u64) -> Commits { todo!() }
        pub fn submitted(&mut self, batch: u64, last_lsn: u64, commits: bool) { todo!() }
        /// A batch is on stable storage. Returns the new durable lsn if it moved.
        pub fn completed(&mut self, batch: u64) -> Option<u64> { todo!() }
        pub fn durable_lsn(&self) -> u64 { todo!() }
        pub fn in_flight(&self) -> usize { todo!() }
    }
}

pub mod scan {
    //! Reading a segment's bytes batch by batch, and deciding what an invalid batch means.
    use super::{chain::ChainPoint, record::RecordView, *};
    #[derive(Clone, Copy, Debug)]
    pub struct BatchInfo { pub batch: u64, pub epoch: u32, pub segment: u32, pub offset: u32, pub bytes: u32, pub first_lsn: u64, pub records: u32, pub commits: bool, pub durable_mark: u64, pub log_time_us: u64 }
    /// Why reading stopped.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub enum Stop { /// no batch of this generation starts here (zeroes, or an older life of the file)
        NoBatch, /// something of this generation is here but does not verify
        Invalid(String), /// a valid batch that does not continue the chain
        Unchained { batch: u64, epoch: u32 }, /// end of the segment file
        End }
    /// Walks `bytes` (a whole segment, header block included) from `at`. `visit` sees every record of every verified batch.
    /// Returns the chain position after the last good batch and why it stopped.
    pub fn walk<'a>(identity: &LogIdentity, header: &segment::SegmentHeader, bytes: &'a [u8], at: ChainPoint, visit: &mut dyn FnMut(&BatchInfo, Location, RecordView<'a>)) -> (ChainPoint, Stop) { todo!() }
    /// Any batch of this log and generation at or after `from` that verifies on its own and says (durable mark) that lsn >= `lsn` was durable.
    pub fn proof_of_durability(identity: &LogIdentity, header: &segment::SegmentHeader, bytes: &[u8], from: u32, lsn: u64) -> Option<BatchInfo> { todo!() }
    /// First valid batch header at or after `from` (for binary search by lsn), whatever the chain.
    pub fn find_batch(identity: &LogIdentity, header: &segment::SegmentHeader, bytes: &[u8], bytes_offset: u32) -> Option<BatchInfo> { todo!() }
}

pub mod recovery {
    //! The decision table: what recovery does where the chain stops. See FORMAT.md.
    use super::scan::Stop;
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub enum Decision { /// the next segment continues the chain
        NextSegment, /// torn tail, never acked: cut here
        Cut, /// damage below the durable mark: stop the shard
        Damage }
    #[derive(Clone, Debug)]
    pub struct Evidence { pub stop: Stop, /// the next segment's header is valid and its first batch continues the chain
        pub next_continues: bool, /// a later batch, checkpoint or superblock proves that the lsn at the stop was durable
        pub proven_durable: bool }
    pub fn decide(evidence: &Evidence) -> Decision { todo!() }
}

pub mod superblock {
    use super::FormatError;
    /// One block, two copies, the larger sequence wins.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Superblock { pub sequence: u64, pub features: u64, pub store: [u8; 16], /// keys the digest of every key in this store
        pub digest_key: [u8; 16], pub shards: u32, pub segment_bytes: u64, pub map_epoch: u64, pub logs: Vec<LogEntry> }
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct LogEntry { pub log: [u8; 16], pub number: u32, pub timeline: u32, /// writer's term: +1 at every open
        pub epoch: u32, pub slot_first: u16, pub slot_last: u16, /// durable lsn at the last clean close
        pub durable_lsn: u64 }
    impl Superblock {
        pub fn encode(&self, block: &mut [u8]) -> Result<(), FormatError> { todo!() }
        pub fn decode(block: &[u8]) -> Result<Superblock, FormatError> { todo!() }
        /// The newer valid copy; Err when neither is.
        pub fn choose(a: &[u8], b: &[u8]) -> Result<Superblock, FormatError> { todo!() }
    }
}
