//! The index partition: key digest -> newest record of the key; and its checkpoint pages.
//!
//! It does not know keys (only their digests), the device, or a clock. Memory is given to it.
#![allow(dead_code, unused_variables, missing_docs)]
/// 128-bit keyed digest of (stream, key): SipHash-1-3-128, stable on disk. Two keys with one digest are one key to the index;
/// readers compare the key in the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Digest(pub u128);
#[derive(Clone, Copy, Debug)]
pub struct DigestKey([u8; 16]);
impl DigestKey {
    pub fn new(key: [u8; 16]) -> DigestKey { DigestKey(key) }
    #[inline] pub fn digest(&self, stream: u32, key: &[u8]) -> Digest { todo!() }
}
/// The newest record of a key. 20 bytes packed beside 12 bytes of digest: one 32-byte slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Entry { pub lsn: u64, pub version: u32, pub tombstone: bool, pub location: wal::Location, /// at least the record's length: rounded up to a size class
    pub bytes: u32 }
/// 64-byte-aligned storage unit; plain bytes, valid when zeroed.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub struct Bucket { pub words: [u64; 64] }
/// Memory for the table: zeroed buckets, committed when touched.
pub trait TableMemory { fn buckets(&self) -> &[Bucket]; fn buckets_mut(&mut self) -> &mut [Bucket]; #[inline] fn prefetch(&self, bucket: usize) { let _ = bucket; } }
impl TableMemory for Vec<Bucket> { fn buckets(&self) -> &[Bucket] { self } fn buckets_mut(&mut self) -> &mut [Bucket] { self } }
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IndexError { #[error("index memory is full at {keys} keys: give the shard more with --memory")] Full { keys: u64 } }
pub struct Index<M> { memory: M }
impl<M: TableMemory> Index<M> {
    pub fn new(memory: M) -> Index<M> { todo!() }
    #[inline] pub fn prefetch(&self, digest: Digest) { todo!() }
    #[inline] pub fn get(&self, digest: Digest) -> Option<Entry> { todo!() }
    /// Insert or replace; returns what was there.
    #[inline] pub fn put(&mut self, digest: Digest, entry: Entry) -> Result<Option<Entry>, IndexError> { todo!() }
    pub fn len(&self) -> u64 { todo!() }
    /// Bytes of buckets in use (what the 40 bytes a key are measured on).
    pub fn bytes(&self) -> u64 { todo!() }
    /// Buckets that the table can hold before `Full`.
    pub fn capacity_keys(&self) -> u64 { todo!() }
    /// Entries in digest order from `cursor` on, at least one page's worth unless at the end, roughly `at_most`; returns the next cursor, None at the end.
    /// Stays right while the table changes between calls: an entry present before the first call and never replaced is given exactly once.
    pub fn export(&self, cursor: Digest, at_most: usize, out: &mut Vec<(Digest, Entry)>) -> Option<Digest> { todo!() }
}
pub mod checkpoint {
    //! A checkpoint file: header page, then pages of sections, each with its own checksum. Written in slices, valid once its header is.
    use super::{Digest, Entry};
    use wal::{LogIdentity, chain::ChainPoint};
    pub const PAGE_BYTES: usize = 256 * 1024;
    pub const HEADER_BYTES: usize = 4096;
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CheckpointHeader { pub identity: LogIdentity, /// +1 each time; pages carry it
        pub sequence: u64, /// replay starts here
        pub replay_from: ChainPoint, /// the largest lsn that any entry may name; valid only if the log holds it
        pub max_lsn: u64, pub pages: u64, pub keys: u64, pub log_time_us: u64 }
    impl CheckpointHeader { pub fn encode(&self, block: &mut [u8]) { todo!() } pub fn decode(block: &[u8]) -> Result<Self, wal::FormatError> { todo!() } }
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    #[repr(u8)]
    pub enum Section { Entries = 1, Streams = 2, Producers = 3, IdempotencyKeys = 4 }
    /// Fill `page` (PAGE_BYTES) with as many entries as fit; returns how many.
    pub fn encode_entries(identity: &LogIdentity, sequence: u64, page_number: u64, entries: &[(Digest, Entry)], page: &mut [u8]) -> usize { todo!() }
    /// Free-form bytes of a section (at most PAGE_BYTES - header).
    pub fn encode_bytes(identity: &LogIdentity, sequence: u64, page_number: u64, section: Section, bytes: &[u8], page: &mut [u8]) { todo!() }
    pub const SECTION_BYTES_MAX: usize = PAGE_BYTES - 64;
    pub enum Page<'a> { Entries(Box<dyn Iterator<Item = (Digest, Entry)> + 'a>), Bytes(Section, &'a [u8]) }
    pub fn decode_page<'a>(header: &CheckpointHeader, page_number: u64, page: &'a [u8]) -> Result<Page<'a>, wal::FormatError> { todo!() }
}
