//! What the index knows of a key: a keyed digest of (stream, key).
//!
//! Invariant: the digest of a key never changes between versions, machines or CPUs: it is on disk in
//! checkpoints and decides order there. It does not know what a stream or a key means.

use siphasher::sip128::{Hasher128, SipHasher13};
use std::hash::Hasher;

/// Low bits of [`Digest`] that are always zero in a digest that [`DigestKey::digest`] made.
pub const UNUSED_BITS: u32 = 32;

/// Keyed digest of (stream, key). 96 bits count: bits 127..64 order the table and pick the home bucket, bits
/// 63..32 are the fingerprint and never all zero, bits 31..0 are zero. All 96 are stored with the entry, so two
/// different digests are never mixed up, and the table can be exported and grown without the keys.
///
/// Two keys with one digest are one key to the index; readers compare the key in the record. With 10^9 keys
/// in one shard the odds that any two share a digest are 6 in 10^12.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default, PartialOrd, Ord)]
pub struct Digest(pub u128);

impl Digest {
    /// The digest that the index keeps for any 128 bits: the low 32 cleared, a zero fingerprint made 1.
    #[inline]
    #[must_use]
    pub fn canonical(bits: u128) -> Digest {
        TableKey::of(Digest(bits)).digest()
    }
}

/// The secret that keys a store's digests (superblock), so that nobody outside can choose colliding keys.
#[derive(Clone, Copy)]
pub struct DigestKey {
    hasher: SipHasher13,
}

impl std::fmt::Debug for DigestKey {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DigestKey").finish_non_exhaustive()
    }
}

impl DigestKey {
    /// From the 16 bytes in the superblock.
    #[must_use]
    pub fn new(key: [u8; 16]) -> DigestKey {
        DigestKey {
            hasher: SipHasher13::new_with_key(&key),
        }
    }

    /// SipHash-1-3-128 over stream id (4 bytes, little-endian) then key; first half of the output is the high
    /// half of the number. Then [`Digest::canonical`].
    #[inline]
    #[must_use]
    pub fn digest(&self, stream: u32, key: &[u8]) -> Digest {
        /// Keys up to here are hashed in one call over a copy: streaming two pieces costs more than the copy.
        const ONE_SHOT: usize = 60;
        let hash = if key.len() <= ONE_SHOT {
            let mut joined = [0u8; 4 + ONE_SHOT];
            joined[..4].copy_from_slice(&stream.to_le_bytes());
            joined[4..4 + key.len()].copy_from_slice(key);
            self.hasher.hash(&joined[..4 + key.len()])
        } else {
            let mut hasher = self.hasher;
            hasher.write(&stream.to_le_bytes());
            hasher.write(key);
            hasher.finish128()
        };
        Digest::canonical((u128::from(hash.h1) << 64) | u128::from(hash.h2))
    }

    /// Under which an older version of a key is found that was moved away from where the next version's link names it.
    /// There is no stream 0, so no key has this digest.
    #[must_use]
    pub fn forward(&self, lsn: u64) -> Digest {
        self.digest(0, &lsn.to_le_bytes())
    }
}

/// A digest as the table holds it. Ordered as the digest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TableKey {
    /// Orders the table; picks the home bucket.
    pub high: u64,
    /// Never 0: 0 marks a free slot.
    pub fingerprint: u32,
}

impl TableKey {
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // taking the parts of a number is the purpose
    pub(crate) fn of(digest: Digest) -> TableKey {
        TableKey {
            high: (digest.0 >> 64) as u64,
            fingerprint: ((digest.0 >> UNUSED_BITS) as u32).max(1),
        }
    }

    #[inline]
    pub(crate) fn digest(self) -> Digest {
        Digest((u128::from(self.high) << 64) | (u128::from(self.fingerprint) << UNUSED_BITS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SipHash-1-3-128 written out again from its description, so that a change in the dependency cannot
    /// change what is on disk without a test that fails.
    fn reference(key: &[u8; 16], bytes: &[u8]) -> (u64, u64) {
        fn round(v: &mut [u64; 4]) {
            v[0] = v[0].wrapping_add(v[1]);
            v[1] = v[1].rotate_left(13) ^ v[0];
            v[0] = v[0].rotate_left(32);
            v[2] = v[2].wrapping_add(v[3]);
            v[3] = v[3].rotate_left(16) ^ v[2];
            v[0] = v[0].wrapping_add(v[3]);
            v[3] = v[3].rotate_left(21) ^ v[0];
            v[2] = v[2].wrapping_add(v[1]);
            v[1] = v[1].rotate_left(17) ^ v[2];
            v[2] = v[2].rotate_left(32);
        }
        let word = |b: &[u8]| u64::from_le_bytes(b.try_into().unwrap());
        let (k0, k1) = (word(&key[..8]), word(&key[8..]));
        let mut v = [
            k0 ^ 0x736f_6d65_7073_6575,
            k1 ^ 0x646f_7261_6e64_6f6d ^ 0xee,
            k0 ^ 0x6c79_6765_6e65_7261,
            k1 ^ 0x7465_6462_7974_6573,
        ];
        let mut padded = bytes.to_vec();
        padded.resize((bytes.len() / 8 + 1) * 8, 0);
        *padded.last_mut().unwrap() = u8::try_from(bytes.len() % 256).unwrap();
        for chunk in padded.chunks(8) {
            v[3] ^= word(chunk);
            round(&mut v);
            v[0] ^= word(chunk);
        }
        v[2] ^= 0xee;
        (0..3).for_each(|_| round(&mut v));
        let first = v[0] ^ v[1] ^ v[2] ^ v[3];
        v[1] ^= 0xdd;
        (0..3).for_each(|_| round(&mut v));
        (first, v[0] ^ v[1] ^ v[2] ^ v[3])
    }

    #[test]
    fn digest_is_siphash_of_stream_then_key_at_every_length() {
        let secret: [u8; 16] = std::array::from_fn(|i| u8::try_from(i).unwrap());
        let key = DigestKey::new(secret);
        for length in 0..200usize {
            let bytes: Vec<u8> = (0..length)
                .map(|i| u8::try_from(i * 7 % 256).unwrap())
                .collect();
            let mut joined = 0x0102_0304u32.to_le_bytes().to_vec();
            joined.extend(&bytes);
            let (h1, h2) = reference(&secret, &joined);
            let wanted = Digest::canonical((u128::from(h1) << 64) | u128::from(h2));
            assert_eq!(key.digest(0x0102_0304, &bytes), wanted, "length {length}");
        }
    }

    #[test]
    fn canonical_clears_unused_bits_and_keeps_the_fingerprint_from_zero() {
        assert_eq!(Digest::canonical(u128::MAX).0, u128::MAX << 32);
        assert_eq!(Digest::canonical(5 << 64 | 77).0, 5 << 64 | 1 << 32);
        let digest = Digest::canonical(0x1234_5678_9abc_def0_1111_2222_3333_4444);
        assert_eq!(Digest::canonical(digest.0), digest);
    }
}
