//! Which records of segments that are still there were copied forward as the newest of their keys.
//!
//! A superseded record looks like any older version, and must not be copied twice. Of older versions the index knows it: their
//! copies have entries of their own. What was copied before this run is told apart, because a crash brings such records back,
//! whole segments of them that had been released, and scans show them where their copies lie; of older versions only one mark
//! is kept, behind which none of them was copied before. Lsns are dense, so a set of them is a compressed bitmap (Chambi,
//! Lemire et al., "Better bitmap performance with Roaring bitmaps", 2016). It does not know the index.

use roaring::RoaringTreemap;
use wal::extension::Relocated;

/// A container of the bitmap: what it spans, and the most that it takes with what names it.
const CONTAINER_LSNS: u64 = 1 << 16;
const CONTAINER_BYTES: u64 = 8 * 1024 + 64;

/// See the module's header.
#[derive(Default)]
pub struct Copies {
    here: RoaringTreemap,
    before: RoaringTreemap,
    /// Nothing from here on was copied before this run, in whatever way.
    before_below: u64,
    /// The log's last lsn when this run began.
    before_upto: u64,
}

impl Copies {
    /// Most that it holds: whatever is copied lies in the oldest segment, or in one that a crash has brought back before it.
    pub fn plan_bytes(segment_bytes: u64) -> u64 {
        let lsns = segment_bytes / wal::record::HEADER_BYTES as u64;
        // A set may begin and end in the middle of a container.
        2 * (lsns / CONTAINER_LSNS + 2) * CONTAINER_BYTES
    }

    /// The record at `lsn` was copied.
    pub fn insert(&mut self, lsn: u64) {
        self.here.insert(lsn);
    }

    /// A replay has come to a copy.
    pub fn replay(&mut self, copy: &Relocated) {
        if copy.link == 0 {
            self.before.insert(copy.from);
        }
        self.before_below = self.before_below.max(copy.from + 1);
    }

    /// A replay has come to its end: the log begins at `first` and ends with `last`.
    pub fn replayed(&mut self, first: u64, last: u64) {
        self.before_upto = last;
        self.released(first);
    }

    /// The log begins at `first` now.
    pub fn released(&mut self, first: u64) {
        if self.before_below <= first {
            self.before_below = 0;
        }
        for set in [&mut self.here, &mut self.before] {
            set.remove_range(..first);
        }
    }

    /// Whether the record at `lsn` was copied as the newest of its key.
    pub fn contains(&self, lsn: u64) -> bool {
        self.here.contains(lsn) || self.before.contains(lsn)
    }

    /// The same, before this run.
    pub fn contains_before(&self, lsn: u64) -> bool {
        self.before.contains(lsn)
    }

    /// Whether nothing at `lsn` was copied before this run, in whatever way.
    #[inline]
    pub fn is_behind(&self, lsn: u64) -> bool {
        lsn >= self.before_below
    }

    /// Where copies from before this run end.
    pub fn before_upto(&self) -> u64 {
        self.before_upto
    }

    /// Nothing that is still there was copied; of older versions: before this run.
    pub fn is_empty(&self) -> bool {
        self.here.is_empty() && self.before.is_empty() && self.before_below == 0
    }

    /// Records that were copied as the newest of their keys.
    pub fn len(&self) -> u64 {
        self.here.len() + self.before.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkpoint that forgot it would have a replay begin behind the copies, and scans would not know of them any more.
    #[test]
    fn older_versions_copied_before_are_remembered_until_their_segment_goes() {
        let mut copies = Copies::default();
        for from in [110, 150, 130] {
            copies.replay(&Relocated {
                from,
                first: 5,
                link: 5,
            });
        }
        copies.replayed(100, 400);
        assert!(!copies.is_empty(), "a replay must see them again");
        assert!(!copies.is_behind(150) && copies.is_behind(151));
        copies.released(150);
        assert!(!copies.is_empty());
        copies.released(151);
        assert!(copies.is_empty() && copies.is_behind(0));
    }

    #[test]
    fn a_segment_of_the_smallest_records_stays_within_the_plan() {
        let segment_bytes = 64 << 20;
        let lsns = segment_bytes / wal::record::HEADER_BYTES as u64;
        let mut copies = Copies::default();
        // Neither long runs nor short arrays: the least that compression gives.
        for lsn in (1_000_000_007..1_000_000_007 + lsns).step_by(2) {
            copies.insert(lsn);
            copies.replay(&Relocated {
                from: lsn + 1,
                first: lsn,
                link: 0,
            });
        }
        let held = copies.here.serialized_size() + copies.before.serialized_size();
        let planned = Copies::plan_bytes(segment_bytes);
        assert!(held as u64 <= planned, "{held} of {planned} bytes");
        copies.released(1_000_000_008 + lsns);
        assert_eq!(copies.len(), 0);
    }
}
