//! Which records of segments that are still there were copied forward as the newest of their keys.
//!
//! A superseded record looks like any older version, and must not be copied twice. Of older versions the index knows it: their
//! copies have entries of their own. What was copied before this run is told apart, because a crash brings such records back,
//! whole segments of them that had been released, and scans show them where their copies lie. It does not know the index.

use ahash::AHashSet;
use wal::extension::Relocated;

/// See the module's header.
#[derive(Default)]
pub struct Copies {
    here: AHashSet<u64>,
    before: AHashSet<u64>,
    /// Nothing from here on was copied before this run.
    before_below: u64,
    /// The log's last lsn when this run began.
    before_upto: u64,
}

impl Copies {
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
            set.retain(|lsn| *lsn >= first);
            if set.is_empty() {
                *set = AHashSet::new();
            }
        }
    }

    /// Whether the record at `lsn` was copied as the newest of its key.
    pub fn contains(&self, lsn: u64) -> bool {
        self.here.contains(&lsn) || self.before.contains(&lsn)
    }

    /// The same, before this run.
    pub fn contains_before(&self, lsn: u64) -> bool {
        self.before.contains(&lsn)
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
        self.len() == 0 && self.before_below == 0
    }

    /// Records that were copied as the newest of their keys.
    pub fn len(&self) -> usize {
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
}
