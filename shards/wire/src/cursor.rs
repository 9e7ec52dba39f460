//! Cursors: where a scan or a tail goes on, opaque to clients.
//!
//! Invariant: text that this module did not write (another version, cut, mistyped, made up) does not decode. It
//! does not know whether the timeline or the logs exist; the shard refuses those by name.
//!
//! Bytes, little-endian: magic `pc`, version u8 = 1, timeline u32, count u16, then per log number u32 and next
//! lsn u64, then CRC32 (ISO-HDLC) of all before it. Text: base64url without padding.
//! Version 3, written only where it says more: behind the entries a count u16, then per log number u32 and [`Walked`]:
//! base u64, until u64, holes u16, and from u64 and to u64 of each. (Version 2 knew one hole, and was never released.)

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::bytes::Reader;

const MAGIC: [u8; 3] = *b"pc\x01";
/// The same with what was walked.
const MAGIC_WALKED: [u8; 3] = *b"pc\x03";
const FIXED_BYTES: usize = MAGIC.len() + 4 + 2 + 4;
const ENTRY_BYTES: usize = 12;
/// Holes that are told apart: with them a cursor stays below 500 bytes for each log that has any.
const HOLES_MAX: usize = 16;
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

/// What a scan has walked of a log before its next lsn, where compaction has overtaken it: segments were freed that it had
/// not come to, and their records were copied to where it will come. This tells copies of what it has met from the others.
///
/// A scan that comes to where the log ended when it was last overtaken has met every record from before: it is as if it had
/// walked everything, and nothing needs to be remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walked {
    /// It began here: what lay before was gone.
    base: u64,
    /// Behind this lsn everything before the next one counts as walked.
    until: u64,
    /// (from, to): from here to before there the log was gone when the scan came to it. Ascending, apart.
    holes: Vec<(u64, u64)>,
}

impl Default for Walked {
    fn default() -> Walked {
        Walked {
            base: 1,
            until: 0,
            holes: Vec::new(),
        }
    }
}

impl Walked {
    /// Whether what lay at `lsn`, which is before the scan's next one, was walked.
    pub fn covers(&self, lsn: u64) -> bool {
        lsn >= self.base
            && !self
                .holes
                .iter()
                .any(|(from, to)| (*from..*to).contains(&lsn))
    }

    /// A record that the scan meets at `lsn` is shown where its copy lies, at `end` at the latest. `again`: it has shown nothing
    /// since it passed over another one.
    pub fn pass_over(&mut self, lsn: u64, end: u64, again: bool) {
        self.settle(lsn);
        let last = self.holes.last().filter(|_| again);
        self.skip(last.map_or(lsn, |(_, to)| *to), lsn + 1, end);
    }

    /// A scan that was to go on at `next` finds that the log begins at `first` now. All copies of what lay between are at `end` at the latest. So many holes are told apart; then what lies
    /// between the two that are closest counts as not walked: copies of it may be shown a second time, but none is left out.
    pub fn skip(&mut self, next: u64, first: u64, end: u64) {
        self.settle(next);
        self.until = self.until.max(end);
        if next <= self.base {
            self.base = self.base.max(first);
            return;
        }
        match self.holes.last_mut() {
            // Nothing was walked since.
            Some((_, to)) if *to >= next => *to = first.max(*to),
            _ => self.holes.push((next, first)),
        }
        if self.holes.len() > HOLES_MAX {
            let between = |at: &usize| self.holes[at + 1].0 - self.holes[*at].1;
            let at = (0..HOLES_MAX).min_by_key(between).unwrap_or(0);
            let (_, to) = self.holes.remove(at + 1);
            self.holes[at].1 = to;
        }
    }

    /// The scan has come to `next`.
    pub fn settle(&mut self, next: u64) {
        if next > self.until {
            *self = Walked::default();
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.base.to_le_bytes());
        out.extend_from_slice(&self.until.to_le_bytes());
        out.extend_from_slice(&(self.holes.len() as u16).to_le_bytes());
        for (from, to) in &self.holes {
            out.extend_from_slice(&from.to_le_bytes());
            out.extend_from_slice(&to.to_le_bytes());
        }
    }

    fn decode(reader: &mut Reader<'_>) -> Option<Walked> {
        let (base, until) = (reader.u64()?, reader.u64()?);
        let count = usize::from(reader.u16()?);
        let mut holes = Vec::new();
        for _ in 0..count {
            holes.push((reader.u64()?, reader.u64()?));
        }
        let apart = holes.iter().all(|(from, to)| from < to)
            && holes.windows(2).all(|pair| pair[0].1 < pair[1].0);
        (apart && count <= HOLES_MAX).then_some(Walked { base, until, holes })
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
                walked.encode(&mut out);
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
            for _ in 0..count {
                walked.push((reader.u32()?, Walked::decode(&mut reader)?));
            }
            if count == 0 || !reader.rest.is_empty() {
                return None;
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
        walked.skip(1, 50, 120);
        walked.skip(60, 80, 130);
        walked.skip(90, 100, 140);
        walked.skip(100, 102, 140);
        let plain = Cursor {
            timeline: 1,
            next: vec![(0, 60), (1, 70)],
            walked: vec![(0, walked.clone())],
        };
        let text = plain.encode();
        assert_eq!(Cursor::decode(text.as_bytes()), Some(plain));
        for at in 0..text.len() {
            assert_eq!(Cursor::decode(&text.as_bytes()[..at]), None, "cut at {at}");
        }
        let covered: Vec<u64> = (48..104).filter(|lsn| walked.covers(*lsn)).collect();
        let expected: Vec<u64> = (50..60).chain(80..90).chain(102..104).collect();
        assert_eq!(covered, expected);
        // The log of the last time has been walked to its end.
        walked.settle(140);
        assert!(!walked.covers(70));
        walked.settle(141);
        assert_eq!(walked, Walked::default());
    }

    /// A scan walks through what is shown elsewhere, and may be overtaken in the middle of it.
    #[test]
    fn what_is_skipped_twice_is_one_hole() {
        let mut from_the_start = Walked::default();
        from_the_start.skip(1, 50, 120);
        from_the_start.skip(60, 80, 120);
        from_the_start.skip(70, 75, 120);
        from_the_start.skip(72, 90, 120);
        assert_eq!(from_the_start.holes, [(60, 90)]);
        let covered = |walked: &Walked, lsns: std::ops::Range<u64>| {
            lsns.filter(|lsn| walked.covers(*lsn)).collect::<Vec<_>>()
        };
        assert_eq!(
            covered(&from_the_start, 1..95),
            (50..60).chain(90..95).collect::<Vec<_>>()
        );
        let mut before_it = Walked::default();
        before_it.skip(1, 50, 120);
        before_it.skip(20, 40, 120);
        assert_eq!(covered(&before_it, 1..55), (50..55).collect::<Vec<_>>());
    }

    #[test]
    fn what_is_passed_over_one_by_one_is_one_hole_unless_something_is_shown_between() {
        let mut walked = Walked::default();
        walked.skip(1, 50, 120);
        for (lsn, again) in [(52, false), (53, true), (58, true), (70, false), (72, true)] {
            walked.pass_over(lsn, 120, again);
        }
        assert_eq!(walked.holes, [(52, 59), (70, 73)]);
        // At the end of what is passed over all of it was met.
        walked.pass_over(130, 140, true);
        assert_eq!(walked.holes, [(130, 131)]);
    }

    #[test]
    fn holes_are_bounded_and_what_is_forgotten_counts_as_not_walked() {
        let mut walked = Walked::default();
        for turn in 1..=100 {
            // A hundred are freed, ten and some more are walked.
            walked.skip(turn * 1000, turn * 1000 + 900 - turn % 7, 1_000_000);
        }
        assert_eq!(walked.holes.len(), HOLES_MAX);
        for turn in 1..=100 {
            assert!(!walked.covers(turn * 1000 + 10), "turn {turn}");
        }
        let cursor = Cursor {
            timeline: 1,
            next: vec![(0, 200_000)],
            walked: vec![(0, walked)],
        };
        let text = cursor.encode();
        assert!(text.len() < 500, "{} bytes", text.len());
        assert_eq!(Cursor::decode(text.as_bytes()), Some(cursor));
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
