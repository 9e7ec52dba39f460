//! Cursors: where a scan or a tail goes on, opaque to clients.
//!
//! Invariant: text that this module did not write (another version, cut, mistyped, made up) does not decode. It
//! does not know whether the timeline or the logs exist; the shard refuses those by name.
//!
//! Bytes, little-endian: magic `pc`, version u8 = 1, timeline u32, count u16, then per log number u32 and next
//! lsn u64, then CRC32 (ISO-HDLC) of all before it. Text: base64url without padding.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::bytes::Reader;

const MAGIC: [u8; 3] = *b"pc\x01";
const FIXED_BYTES: usize = MAGIC.len() + 4 + 2 + 4;
const ENTRY_BYTES: usize = 12;
const CRC: crc::Crc<u32> = crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC);

/// Opaque to clients: timeline and the next lsn of every log. Text form base64url, no padding.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cursor {
    /// Timeline of the data directory that gave it.
    pub timeline: u32,
    /// Per log number, ascending: (log, next lsn).
    pub next: Vec<(u32, u64)>,
}

impl Cursor {
    /// The text that clients send back. `next` must be ascending by log, which decoding insists on.
    pub fn encode(&self) -> String {
        let count = u16::try_from(self.next.len()).expect("a log per shard, 16384 at most");
        let mut out = Vec::with_capacity(FIXED_BYTES + self.next.len() * ENTRY_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.timeline.to_le_bytes());
        out.extend_from_slice(&count.to_le_bytes());
        for (log, lsn) in &self.next {
            out.extend_from_slice(&log.to_le_bytes());
            out.extend_from_slice(&lsn.to_le_bytes());
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
        if reader.array()? != MAGIC {
            return None;
        }
        let timeline = reader.u32()?;
        let count = usize::from(reader.u16()?);
        if reader.rest.len() != count * ENTRY_BYTES {
            return None;
        }
        let mut next = Vec::with_capacity(count);
        for _ in 0..count {
            next.push((reader.u32()?, reader.u64()?));
        }
        let ascending = next.windows(2).all(|pair| pair[0].0 < pair[1].0);
        ascending.then_some(Cursor { timeline, next })
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
    fn logs_out_of_order_do_not_decode() {
        let cursor = Cursor {
            timeline: 1,
            next: vec![(1, 7), (1, 8)],
        };
        assert_eq!(Cursor::decode(cursor.encode().as_bytes()), None);
    }

    #[test]
    fn an_empty_cursor_is_a_cursor() {
        let cursor = Cursor::default();
        assert_eq!(Cursor::decode(cursor.encode().as_bytes()), Some(cursor));
    }
}
