//! Safe retries: what makes a repeated request get its first answer instead of a second effect.
//!
//! Two windows, one log's each. [`Producers`] remembers the last sequences of every producer id (native protocol), [`IdempotencyKeys`]
//! the answers given under an `Idempotency-Key` (HTTP). Both are bounded in number and bytes, and both say in counters when a bound cost
//! somebody the memory of an answer.
//!
//! # Invariants
//! - The window lives in the log: every entry is made from an [`extension`] of a record, so replay makes it again. A checkpoint saves only
//!   replay time. `record` and `import` may therefore be given what is there already and end in the same state, as long as no
//!   bound evicts (which of two is older is all that a checkpoint written in slices may tell differently).
//! - Time is log time, which the log stores and which never goes back: a replay forgets what the first run forgot.
//! - An answer may be asked for before its records are durable. These structures answer at once and name the
//!   [`last_lsn`](Answer::last_lsn): the caller holds the reply until that is durable.
//!
//! # What it cannot do
//! A producer or key that was forgotten (evicted by a bound, or out of its window) is a stranger: its next request is new, even if it is a
//! repeat of something done before. How long a retry is safe is the window, and the bounds as long as `evicted()` stays 0.
//!
//! It does not know the log, its extensions' framing, requests, or a clock.

mod chunk;
pub mod extension;
mod keys;
mod producers;

pub use chunk::{CHUNK_BYTES_MAX, ChunkError};
pub(crate) use chunk::{ChunkReader, ChunkWriter, Kind};
pub use keys::{IdempotencyKeys, KeyAnswer, KeyCheck, KeyLimits};
pub use producers::{
    Answer, Gaps, ProducerCheck, ProducerLimits, Producers, ProducersCursor, Versions,
    WINDOW_SEQUENCES,
};

use siphasher::sip::SipHasher13;
use std::hash::Hasher;

/// 64-bit digest of what a request asks for, to notice that a sequence or key is used again for something else. Never 0, which means unknown.
///
/// SipHash-1-3 under a fixed key, each part after its length (so that `["ab", "c"]` and `["a", "bc"]` differ). It must be stable: the value
/// is compared with one that stands in the log, written by an older binary or on another CPU. A hasher like ahash, whose output may
/// change with either, would turn an honest retry after an upgrade into a mismatch. The key is public; who makes two of their
/// own requests collide fools only themselves.
pub fn fingerprint(parts: &[&[u8]]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(0x7069_6e69_6f6e_2064, 0x6564_7570_2076_3031);
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish().max(1)
}

#[cfg(test)]
mod tests {
    use super::fingerprint;

    /// The values are in logs that people keep: they may never change.
    #[test]
    fn fingerprints_are_stable() {
        assert_eq!(fingerprint(&[]), FINGERPRINT_OF_NOTHING);
        assert_eq!(
            fingerprint(&[b"orders", b"key", b"{\"amount\":1}"]),
            FINGERPRINT_OF_PARTS
        );
    }
    const FINGERPRINT_OF_NOTHING: u64 = 9_565_573_460_910_786_126;
    const FINGERPRINT_OF_PARTS: u64 = 10767218764307055018;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(fingerprint(&[b"ab", b"c"]), fingerprint(&[b"a", b"bc"]));
        assert_ne!(fingerprint(&[b"ab"]), fingerprint(&[b"ab", b""]));
    }
}
