//! Safe retries: what makes a repeated request get its first answer instead of a second effect.
//!
//! Two windows, one log's each. [`Producers`] remembers the last sequences of every producer id (native protocol), [`IdempotencyKeys`]
//! the answers given under an `Idempotency-Key` (HTTP). Both are bounded in number and bytes, and both say in counters when a bound cost
//! somebody the memory of an answer.
//!
//! # Invariants
//! - The window lives in the log: every entry is made from an extension block of a record, so replay makes it again. A checkpoint saves only
//!   replay time. `record` and `import` may therefore be given what is there already and end in the same state, as long as no
//!   bound evicts (which of two is older is all that a checkpoint written in slices may tell differently).
//! - Time is log time, which the log stores and which never goes back: a replay forgets what the first run forgot.
//! - An answer may be asked for before its records are durable. These structures answer at once and name the
//!   [`last_lsn`](Answer::last_lsn): the caller holds the reply until that is durable.
//!
//! Beside them stands [`Carried`]: what earlier logs left when the number of shards was changed. It is asked first where a sequence is old, last
//! where a key is unknown.
//!
//! # What it cannot do
//! A producer or key that was forgotten (evicted by a bound, or out of its window) is a stranger: its next request is new, even if it is a
//! repeat of something done before. How long a retry is safe is the window, and the bounds as long as `evicted()` stays 0.
//!
//! It does not know the log, its extensions' framing, requests, or a clock.

mod answer;
mod carried;
mod chunk;
mod extension;
mod keys;
mod producers;

pub use answer::{Answer, Versions};
pub(crate) use carried::{
    Carried, CarriedCursor, CarriedKey, CarriedSequence, Item, Slots, export,
};
pub use chunk::ChunkError;
pub(crate) use chunk::{ChunkReader, ChunkWriter, Kind};
pub use extension::{IdempotencyExtension, ProducerExtension};
pub use keys::{IdempotencyKeys, KeyCheck, KeyLimits};
pub use producers::{ProducerCheck, ProducerLimits, Producers, ProducersCursor};

use siphasher::sip128::{Hasher128, SipHasher13 as SipHasher13Wide};
use std::hash::Hasher;

/// How long an answer is remembered unless a stream's policy says otherwise.
pub const WINDOW_SECONDS_DEFAULT: u32 = 24 * 60 * 60;

/// Of the digest below. On disk by what they make: never to be changed.
const HASH_KEY: (u64, u64) = (0x7069_6e69_6f6e_2064, 0x6564_7570_2076_3031);

/// 64-bit digest of what a request asks for, to notice that a sequence or key is used again for something else. Never 0, which means unknown.
///
/// XXH3-64, seed 0: stable by its specification, and fast enough for every byte of every frame. It must be stable: the value is compared
/// with one that stands in the log, written by an older binary or on another CPU. A hasher like ahash, whose output may change with either,
/// would turn an honest retry after an upgrade into a mismatch. Who makes two of their own requests collide fools only themselves.
pub fn fingerprint(request: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(request).max(1)
}

/// The same, of what a producer sends to a stream. Earlier versions left the stream out; what they wrote is
/// [`fingerprint_without_stream`].
pub fn fingerprint_in(stream: &[u8], request: &[u8]) -> u64 {
    (fingerprint(request) ^ fingerprint(stream)).max(1)
}

/// See [`fingerprint_in`].
pub fn fingerprint_without_stream(stream: &[u8], fingerprint_in: u64) -> u64 {
    fingerprint_in ^ fingerprint(stream)
}

/// 128-bit digest of an `Idempotency-Key` and what it is scoped to. Stable for the same reason as [`fingerprint`]. Each part is hashed after
/// its length, so that `["ab", "c"]` and `["a", "bc"]` differ.
pub fn scope_digest(parts: &[&[u8]]) -> u128 {
    let mut hasher = SipHasher13Wide::new_with_keys(HASH_KEY.0, HASH_KEY.1);
    for part in parts {
        hasher.write(&(part.len() as u64).to_le_bytes());
        hasher.write(part);
    }
    hasher.finish128().as_u128()
}

#[cfg(test)]
mod tests {
    use super::{fingerprint, scope_digest};

    /// The values are in logs that people keep: they may never change.
    #[test]
    fn fingerprints_and_digests_are_stable() {
        let given = (
            fingerprint(b""),
            fingerprint(b"{\"amount\":1}"),
            scope_digest(&[b"orders", b"key"]),
        );
        let wanted = (
            3_244_421_341_483_603_138,
            16_941_764_599_195_627_347,
            50_746_054_472_919_564_857_378_969_834_565_968_664,
        );
        assert_eq!(given, wanted);
    }

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(scope_digest(&[b"ab", b"c"]), scope_digest(&[b"a", b"bc"]));
        assert_ne!(scope_digest(&[b"ab"]), scope_digest(&[b"ab", b""]));
    }
}
