//! Slots: which shard a key belongs to, by the rule of Redis Cluster.
//!
//! Invariant: the ranges of all shards are contiguous, in order, and cover every slot exactly once. It does not
//! know where a shard listens; that is the topology's business.

use crc::{CRC_16_XMODEM, Crc, Table};

/// Number of slots.
pub const SLOTS: u16 = 16384;

/// Sixteen tables (8 KiB): sixteen bytes a step, the fastest that the crate has.
const CRC16: Crc<u16, Table<16>> = Crc::<u16, Table<16>>::new(&CRC_16_XMODEM);
static CRC16_TABLES: Crc<u16, Table<16>> = CRC16;

/// CRC16/XMODEM of the key (or of what is in the first non-empty `{braces}`) mod 16384: Redis Cluster's rule.
#[inline]
pub fn slot_of(key: &[u8]) -> u16 {
    CRC16_TABLES.checksum(hash_tag(key).unwrap_or(key)) % SLOTS
}

/// What stands between the first `{` and the first `}` behind it, where that is at least one byte.
#[inline]
fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = memchr::memchr(b'{', key)?;
    let inner = &key[open + 1..];
    match memchr::memchr(b'}', inner)? {
        0 => None,
        close => Some(&inner[..close]),
    }
}

/// Contiguous equal ranges: the shard of a slot when there are `shards`.
#[inline]
pub fn shard_of_slot(slot: u16, shards: u16) -> u16 {
    debug_assert!(slot < SLOTS && (1..=SLOTS).contains(&shards));
    // Below `shards`, because slot / SLOTS is below one; so the cast drops nothing.
    ((u32::from(slot) * u32::from(shards)) / u32::from(SLOTS)) as u16
}

/// The slots of a shard; the inverse of [`shard_of_slot`]. `shard` is below `shards`, which is 1 to [`SLOTS`].
pub fn range_of_shard(shard: u16, shards: u16) -> std::ops::RangeInclusive<u16> {
    debug_assert!(shard < shards && shards <= SLOTS);
    let first_of = |shard: u32| (shard * u32::from(SLOTS)).div_ceil(u32::from(shards));
    // Both are at most SLOTS.
    let first = first_of(u32::from(shard)) as u16;
    let end = first_of(u32::from(shard) + 1) as u16;
    first..=end - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_redis_cluster() {
        assert_eq!(CRC16.checksum(b"123456789"), 0x31C3);
        assert_eq!(slot_of(b"foo"), 12182);
        assert_eq!(slot_of(b"bar"), 5061);
        assert_eq!(slot_of(b"123456789"), 0x31C3 % SLOTS);
        assert_eq!(
            slot_of(b"{user1000}.following"),
            slot_of(b"{user1000}.followers")
        );
        assert_eq!(slot_of(b"{user1000}.following"), slot_of(b"user1000"));
    }

    #[test]
    fn the_hash_tag_is_the_first_brace_pair_and_never_empty() {
        assert_eq!(hash_tag(b"foo{}{bar}"), None);
        assert_eq!(hash_tag(b"foo{{bar}}zap"), Some(&b"{bar"[..]));
        assert_eq!(hash_tag(b"foo{bar}{zap}"), Some(&b"bar"[..]));
        assert_eq!(hash_tag(b"foo}bar{zap"), None);
        assert_eq!(hash_tag(b"}{a}"), Some(&b"a"[..]));
        assert_eq!(hash_tag(b""), None);
    }

    #[test]
    fn ranges_cover_every_slot_once_and_agree_with_shard_of_slot() {
        for shards in [1, 2, 3, 5, 7, 8, 48, 127, 1000, SLOTS] {
            let mut next = 0;
            for shard in 0..shards {
                let range = range_of_shard(shard, shards);
                assert_eq!(*range.start(), next, "{shard} of {shards}");
                next = range.end() + 1;
                for slot in range {
                    assert_eq!(shard_of_slot(slot, shards), shard);
                }
            }
            assert_eq!(next, SLOTS);
        }
    }
}
