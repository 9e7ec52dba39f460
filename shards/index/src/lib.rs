//! The index partition: key digest -> newest record of the key; and its checkpoint pages.
//!
//! One shard owns one [`Index`]: a table in one contiguous region of memory that the caller gives
//! ([`TableMemory`]), at most 40 bytes a key from about 100,000 keys up, at any moment, growth included.
//! There is no pause: each insertion of a new key moves a bounded part of the table while it grows.
//!
//! | module | owns |
//! |---|---|
//! | [`digest`] | key -> 96-bit keyed digest, stable on disk |
//! | [`entry`] | what is known of a key's newest record, packed into 20 bytes |
//! | [`memory`] | the region that holds the table |
//! | `bucket` | 512 bytes: 16 fingerprints in the first cache line, 16 slots behind it |
//! | [`table`] | lookup and insertion: the invariants, and why a probe may stop |
//! | `growth` | growing in place, a few buckets an insertion |
//! | `export` | the table in digest order, in slices, while it changes |
//! | [`checkpoint`] | the bytes of a checkpoint file (drawn in CHECKPOINT.md) |
//!
//! Tombstones stay: a deleted key keeps its slot with `tombstone` set, because its version numbers go on
//! from there and its history can still be read. A key is removed when its only record has left the log.
//!
//! It does not know keys (only their digests), the device, or a clock.

mod bucket;
pub mod checkpoint;
pub mod digest;
pub mod entry;
mod export;
mod growth;
pub mod memory;
pub mod table;

#[cfg(test)]
mod model_tests;

pub use digest::{Digest, DigestKey};
pub use entry::{Entry, SIZE_CLASSES, class_of};
pub use memory::{Bucket, TableMemory};
pub use table::{Index, IndexError, Place};
