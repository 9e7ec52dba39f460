//! Cursors: where a scan or a tail goes on, opaque to clients.
//!
//! Invariant: text that this module did not write (another version, cut, mistyped, made up) does not decode. It
//! does not know whether the timeline or the logs exist; the shard refuses those by name.
//!
//! Bytes, little-endian: magic `pc`, version u8 = 1, timeline u32, count u16, then per log number u32 and next
//! lsn u64, then CRC32 (ISO-HDLC) of all before it. Text: base64url without padding.
//! Version 2, written only where it says more: behind the entries a count u16, then per log number u32 and three u64
//! of [`Walked`].

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::bytes::Reader;

const MAGIC: [u8; 3] = *b"pc\x01";
/// The same with what was walked.
const MAGIC_WALKED: [u8; 3] = *b"pc\x02";
const FIXED_BYTES: usize = MAGIC.len() + 4 + 2 + 4;
const ENTRY_BYTES: usize = 12;
const WALKED_BYTES: usize = 28;
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// Opaque to clients: timeline and the next lsn of every log. Text form base64url, no padding.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Timeline of the data directory that gave it.
    pub timeline: u32,
    /// Per log number, ascending: (log, next lsn).
    pub next: Vec<(u32, u64)>,
    /// Per log number, ascending: what was walked before `next`, where that is not everything from lsn 1 on.
    pub walked: Vec<(u32, Walked)>,
}

/// What a scan has walked of a log before its next lsn. A record that compaction copies forward is met again behind the
/// scan: this tells the copies that it has shown already from those that it has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walked {
    /// It began here: what lay before was gone.
    pub base: u64,
    /// From here ..
    pub hole_from: u64,
    /// .. to before here the log was gone when the scan came to it. Empty where both are equal.
    pub hole_to: u64,
}

impl Default for Walked {
    fn default() -> Walked {
        Walked {
            base: 1,
            hole_from: 0,
            hole_to: 0,
        }
    }
}

impl Walked {
    /// Whether what lay at `lsn`, which is before the scan's next one, was walked.
    pub fn covers(&self, lsn: u64) -> bool {
        lsn >= self.base && !(self.hole_from..self.hole_to).contains(&lsn)
    }

    /// A scan that was to go on at `next` finds that the log begins at `first` now. One hole is remembered: of an earlier
    /// one and what lies between, copies may be shown a second time, but none is left out.
    pub fn skip(&mut self, next: u64, first: u64) {
        if next <= self.base {
            self.base = first;
        } else {
            if self.hole_from == self.hole_to {
                self.hole_from = next;
            }
            self.hole_to = first;
        }
    }
}

impl Cursor {
    /// The text that clients send back. `next` must be ascending by log, which decoding insists on.
    pub fn encode(&self) -> String {
        let count = u16::try_from(self.next.len()).expect("a log per shard, 16384 at most");
        let mut out = Vec::with_capacity(FIXED_BYTES + self.next.len() * ENTRY_BYTES);
        let plain = self.walked.is_empty();
        out.extend_from_slice(if plain { &MAGIC } else { &MAGIC_WALKED });
        out.extend_from_slice(&self.timeline.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for (log, lsn) in &self.next {
            out.extend_from_slice(&log.to_le_bytes());
            out.extend_from_slice(&lsn.to_le_bytes());
        }
        if !plain {
            let count = u16::try_from(self.walked.len()).expect("a log per shard, 16384 at most");
            out.extend_from_slice(&count.to_le_bytes());
            for (log, walked) in &self.walked {
                out.extend_from_slice(&log.to_le_bytes());
                for lsn in [walked.base, walked.hole_from, walked.hole_to] {
                    out.extend_from_slice(&lsn.to_le_bytes());
                }
            }
        }
        out.extend_from_slice(&CRC.checksum(&out).to_le_bytes());
        URL_SAFE_NO_PAD.encode(out)
    }

    /// `None` for anything that [`encode`](Self::encode) did not write.
    pub fn decode(text: &[u8]) -> Option<Cursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (covered, crc) = bytes.split_last_chunk::<4>()?;
        if CRC.checksum(covered) != u32::from_le_bytes(*crc) {
            return None;
        }
        let mut reader = Reader::new(covered);
        let magic = reader.array()?;
        if magic != MAGIC && magic != MAGIC_WALKED {
            return None;
        }
        let timeline = reader.u32()?;
        let count = usize::from(reader.u16()?);
        if magic == MAGIC && reader.rest.len() != count * ENTRY_BYTES {
            return None;
        }
        let mut next = Vec::with_capacity(count);
        for _ in 0..count {
            next.push((reader.u32()?, reader.u64()?));
        }
        let mut walked = Vec::new();
        if magic == MAGIC_WALKED {
            let count = usize::from(reader.u16()?);
            if count == 0 || reader.rest.len() != count * WALKED_BYTES {
                return None;
            }
            for _ in 0..count {
                let log = reader.u32()?;
                let (base, hole_from, hole_to) = (reader.u64()?, reader.u64()?, reader.u64()?);
                walked.push((
                    log,
                    Walked {
                        base,
                        hole_from,
                        hole_to,
                    },
                ));
            }
        }
        let ascending = next.windows(2).all(|pair| pair[0].0 < pair[1].0)
            && walked.windows(2).all(|pair| pair[0].0 < pair[1].0);
        ascending.then_some(Cursor {
            timeline,
            next,
            walked,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_is_stable_and_any_changed_letter_is_noticed() {
        let cursor = Cursor {
            timeline: 1,
            next: vec![(0, 7), (1, u64::MAX)],
            walked: Vec::new(),
        };
        let text = cursor.encode();
        assert_eq!(text, "cGMBAQAAAAIAAAAAAAcAAAAAAAAAAQAAAP__________pv4chQ");
        assert_eq!(Cursor::decode(text.as_bytes()), Some(cursor));
        for at in 0..text.len() {
            let mut changed = text.clone().into_bytes();
            changed[at] = if changed[at] == b'x' { b'y' } else { b'x' };
            assert_eq!(Cursor::decode(&changed), None, "letter {at}");
            assert_eq!(Cursor::decode(&text.as_bytes()[..at]), None, "cut at {at}");
        }
        assert_eq!(Cursor::decode(b"not a cursor"), None);
    }

    #[test]
    fn a_cursor_of_a_log_that_lost_its_beginning_says_what_was_walked() {
        let mut walked = Walked::default();
        walked.skip(1, 50);
        let plain = Cursor {
            timeline: 1,
            next: vec![(0, 60), (1, 70)],
            walked: vec![(0, walked)],
        };
        let text = plain.encode();
        assert_eq!(Cursor::decode(text.as_bytes()), Some(plain));
        for at in 0..text.len() {
            assert_eq!(Cursor::decode(&text.as_bytes()[..at]), None, "cut at {at}");
        }
        assert!(!walked.covers(49) && walked.covers(50));
        walked.skip(60, 80);
        walked.skip(90, 100);
        let covered: Vec<u64> = (48..104).filter(|lsn| walked.covers(*lsn)).collect();
        assert_eq!(
            covered,
            [50, 51, 52, 53, 54, 55, 56, 57, 58, 59, 100, 101, 102, 103]
        );
    }

    #[test]
    fn logs_out_of_order_do_not_decode() {
        let cursor = Cursor {
            timeline: 1,
            next: vec![(1, 7), (1, 8)],
            walked: Vec::new(),
        };
        assert_eq!(Cursor::decode(cursor.encode().as_bytes()), None);
    }

    #[test]
    fn an_empty_cursor_is_a_cursor() {
        let cursor = Cursor::default();
        assert_eq!(Cursor::decode(cursor.encode().as_bytes()), Some(cursor));
    }
}
