//! What is written: which key is drawn next, how it is spelled, and the payload that goes with it.
//!
//! Same seed, same flags: same keys and payloads. Nothing here allocates or formats per record: keys are digits written into
//! one buffer, payloads are slices of a pool that was filled at the start.

use std::ops::Range;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use rand_distr::{Distribution as _, Zipf};
use xxhash_rust::xxh3::xxh3_64;

use crate::flags::decimal_digits;

/// Keys that the Zipf distribution draws ahead: drawing costs two powers, which is too much per record, so the generator
/// walks over this many draws again and again.
const ZIPF_DRAWS: usize = 1 << 20;
/// Different places of the pool that payloads start at (a power of two; the pool then stays in the second-level cache).
const POOL_STARTS: usize = 1 << 16;
/// Bytes at the start of a payload that make it unlike every other in `--verify`.
pub const STAMP_BYTES: usize = 16;

/// Draws key numbers.
pub struct KeyDraw {
    rng: SmallRng,
    how: Draw,
}

enum Draw {
    Uniform { keys: u64 },
    Table { draws: Vec<u32>, next: usize },
    InOrder { left: Range<u64> },
}

impl KeyDraw {
    /// Every key below `keys` equally often.
    pub fn uniform(keys: u64, seed: u64) -> KeyDraw {
        KeyDraw {
            rng: SmallRng::seed_from_u64(seed),
            how: Draw::Uniform { keys },
        }
    }

    /// Key `i` with a probability that goes like `1 / (i + 1)^exponent`.
    pub fn zipf(keys: u64, exponent: f64, seed: u64) -> KeyDraw {
        let mut rng = SmallRng::seed_from_u64(seed);
        let zipf = Zipf::new(keys as f64, exponent)
            .expect("flags are checked: at least one key, exponent above 0");
        // Ranks are 1..=keys and keys is at most 2^32.
        let draws = (0..ZIPF_DRAWS)
            .map(|_| (zipf.sample(&mut rng) as u64 - 1).min(keys - 1) as u32)
            .collect();
        KeyDraw {
            rng,
            how: Draw::Table { draws, next: 0 },
        }
    }

    /// Every key of `range` once.
    pub fn in_order(range: Range<u64>) -> KeyDraw {
        KeyDraw {
            rng: SmallRng::seed_from_u64(0),
            how: Draw::InOrder { left: range },
        }
    }

    /// How many keys are left to draw.
    #[inline]
    pub fn left(&self) -> u64 {
        match &self.how {
            Draw::InOrder { left } => left.end - left.start,
            _ => u64::MAX,
        }
    }

    /// The next key number; the last one again when none is left.
    #[inline]
    pub fn draw(&mut self) -> u64 {
        match &mut self.how {
            // Multiply and shift: the bias is below keys / 2^64.
            Draw::Uniform { keys } => {
                ((u128::from(self.rng.next_u64()) * u128::from(*keys)) >> 64) as u64
            }
            Draw::Table { draws, next } => {
                let key = draws[*next];
                *next = (*next + 1) & (ZIPF_DRAWS - 1);
                u64::from(key)
            }
            Draw::InOrder { left } => {
                let key = left.start.min(left.end - 1);
                left.start = (left.start + 1).min(left.end);
                key
            }
        }
    }
}

/// Spells key numbers: `key:` (as much of it as fits) and the number with leading zeros.
#[derive(Clone)]
pub struct KeyText {
    text: Vec<u8>,
    digits: usize,
}

const PAIRS: &[u8; 200] = b"0001020304050607080910111213141516171819202122232425262728293031323334353637383940414243444546474849\
5051525354555657585960616263646566676869707172737475767778798081828384858687888990919293949596979899";

impl KeyText {
    /// Keys of `bytes` bytes for numbers below `keys`.
    pub fn new(bytes: usize, keys: u64) -> KeyText {
        let digits = decimal_digits(keys - 1);
        assert!(
            bytes >= digits,
            "flags are checked: keys fit into their bytes"
        );
        let mut text = vec![b'0'; bytes];
        let prefix = (bytes - digits).min(4);
        text[..prefix].copy_from_slice(&b"key:"[..prefix]);
        KeyText { text, digits }
    }

    /// The spelling of `number`, valid until the next one.
    #[inline]
    pub fn spell(&mut self, mut number: u64) -> &[u8] {
        let end = self.text.len();
        let start = end - self.digits;
        let mut at = end;
        while at >= start + 2 {
            let pair = (number % 100) as usize * 2;
            number /= 100;
            at -= 2;
            self.text[at..at + 2].copy_from_slice(&PAIRS[pair..pair + 2]);
        }
        if at > start {
            self.text[start] = b'0' + (number % 10) as u8;
        }
        &self.text
    }
}

/// Deals out payloads of one size: printable ASCII that needs no escaping in JSON.
pub struct Payloads {
    pool: Vec<u8>,
    start: usize,
    bytes: usize,
    /// Composed payloads: quoted as a JSON string, stamped, or both.
    composed: Vec<u8>,
    quoted: bool,
    stamp: Option<u64>,
}

impl Payloads {
    /// Payloads of `bytes` bytes. `quoted`: a JSON string, its quotes counted. `stamp`: the first number of a sequence that makes
    /// every payload different.
    pub fn new(bytes: usize, quoted: bool, stamp: Option<u64>, seed: u64) -> Payloads {
        const ALPHABET: &[u8; 64] =
            b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x7061_796c_6f61_6473);
        let pool = (0..POOL_STARTS + bytes)
            .map(|_| ALPHABET[rng.random_range(0..64)])
            .collect();
        Payloads {
            pool,
            start: 0,
            bytes,
            composed: Vec::with_capacity(bytes),
            quoted,
            stamp,
        }
    }

    /// The next payload, valid until the one after.
    #[inline]
    pub fn deal(&mut self) -> &[u8] {
        // An odd step visits every start before one comes again.
        self.start = (self.start + 4_093) & (POOL_STARTS - 1);
        let plain = &self.pool[self.start..self.start + self.bytes];
        if !self.quoted && self.stamp.is_none() {
            return plain;
        }
        self.composed.clear();
        self.composed.extend_from_slice(plain);
        let body = if self.quoted {
            self.composed[0] = b'"';
            self.composed[self.bytes - 1] = b'"';
            1..self.bytes - 1
        } else {
            0..self.bytes
        };
        if let Some(stamp) = &mut self.stamp {
            for (byte, shift) in self.composed[body].iter_mut().zip((0..STAMP_BYTES).rev()) {
                *byte = b"0123456789abcdef"[(*stamp >> (shift * 4)) as usize & 15];
            }
            *stamp += 1;
        }
        &self.composed
    }
}

/// A write that is on its way: which key, and what its payload hashes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// Key number.
    pub key: u64,
    /// XXH3 of the payload.
    pub hash: u64,
}

/// The records of one generator thread.
pub struct Records {
    /// Which key comes next.
    pub draw: KeyDraw,
    /// How it is spelled.
    pub text: KeyText,
    /// What is written to it.
    pub payloads: Payloads,
    /// With `--verify`: what was dealt since this was last emptied.
    pub written: Option<Vec<Written>>,
}

impl Records {
    /// Key and payload of the next record, valid until the one after.
    #[inline]
    pub fn deal(&mut self) -> (&[u8], &[u8]) {
        let number = self.draw.draw();
        let payload = self.payloads.deal();
        if let Some(written) = &mut self.written {
            written.push(Written {
                key: number,
                hash: xxh3_64(payload),
            });
        }
        (self.text.spell(number), payload)
    }

    /// The key of the next read.
    #[inline]
    pub fn deal_key(&mut self) -> &[u8] {
        let number = self.draw.draw();
        self.text.spell(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_the_same_for_the_same_seed_and_others_for_another() {
        let draws = |mut draw: KeyDraw| (0..1_000).map(|_| draw.draw()).collect::<Vec<_>>();
        assert_eq!(
            draws(KeyDraw::uniform(1_000_000, 7)),
            draws(KeyDraw::uniform(1_000_000, 7))
        );
        assert_ne!(
            draws(KeyDraw::uniform(1_000_000, 7)),
            draws(KeyDraw::uniform(1_000_000, 8))
        );
        assert_eq!(
            draws(KeyDraw::zipf(1_000_000, 0.99, 7)),
            draws(KeyDraw::zipf(1_000_000, 0.99, 7))
        );
        assert_ne!(
            draws(KeyDraw::zipf(1_000_000, 0.99, 7)),
            draws(KeyDraw::zipf(1_000_000, 0.99, 8))
        );
    }

    #[test]
    fn uniform_and_zipf_have_their_shapes() {
        let share_of_first = |mut draw: KeyDraw| {
            let hits = (0..100_000).filter(|_| {
                let key = draw.draw();
                assert!(key < 1_000);
                key == 0
            });
            hits.count() as f64 / 100_000.0
        };
        assert!((0.0005..0.002).contains(&share_of_first(KeyDraw::uniform(1_000, 1))));
        // 1 / H(1000, 0.99) is 0.129.
        assert!((0.12..0.14).contains(&share_of_first(KeyDraw::zipf(1_000, 0.99, 1))));
    }

    #[test]
    fn in_order_visits_every_key_once() {
        let mut draw = KeyDraw::in_order(3..6);
        assert_eq!(
            [
                draw.left(),
                draw.draw(),
                draw.draw(),
                draw.draw(),
                draw.left()
            ],
            [3, 3, 4, 5, 0]
        );
    }

    #[test]
    fn keys_are_spelled_in_their_width() {
        let mut text = KeyText::new(16, 1_000_000);
        assert_eq!(text.spell(42), b"key:000000000042");
        assert_eq!(text.spell(999_999), b"key:000000999999");
        assert_eq!(text.spell(0), b"key:000000000000");
        assert_eq!(KeyText::new(3, 1_000).spell(7), b"007");
        assert_eq!(KeyText::new(5, 1_000).spell(123), b"ke123");
    }

    #[test]
    fn stamped_payloads_differ_and_quoted_ones_are_json() {
        let mut payloads = Payloads::new(20, true, Some(0), 1);
        let first = payloads.deal().to_vec();
        let second = payloads.deal().to_vec();
        assert_ne!(first, second);
        assert!(
            first.starts_with(b"\"0000000000000000"),
            "{}",
            String::from_utf8_lossy(&first)
        );
        let text: String = serde_json::from_slice(&second).unwrap();
        assert_eq!(text.len(), 18);
        assert_eq!(Payloads::new(0, false, None, 1).deal(), b"");
    }
}
