//! The table in digest order, in slices, while it changes.
//!
//! The cursor is a digest, not a place: it means the same before and after entries moved. It does not know what the slices
//! are for.

use crate::bucket;
use crate::digest::{Digest, TableKey};
use crate::entry::Entry;
use crate::memory::TableMemory;
use crate::table::{Index, home_among};

impl<M: TableMemory> Index<M> {
    /// Append entries in digest order from `cursor` on, until `out` has grown by at least `at_most` (by up to 15 more: whole
    /// buckets) or the end is reached; returns the next cursor, None at the end. Start with `Digest(0)`.
    ///
    /// Stays right while the table changes between calls: a key present before the first call is given exactly once, with its entry
    /// as of the call that gives it.
    pub fn export(
        &self,
        cursor: Digest,
        at_most: usize,
        out: &mut Vec<(Digest, Entry)>,
    ) -> Option<Digest> {
        let buckets = self.memory.buckets();
        let before = out.len();
        let mut at = self.home(TableKey::of(cursor).high);
        while at < self.touched {
            let bucket = &buckets[at];
            let from = out.len();
            for slot in 0..bucket::count(bucket) {
                let item = bucket::item(bucket, slot);
                if item.key.digest() >= cursor {
                    out.push((item.key.digest(), Entry::unpack(&item.packed)));
                }
            }
            out[from..].sort_unstable_by_key(|(digest, _)| *digest);
            if out.len() - before >= at_most.max(1) {
                let (last, _) = out[out.len() - 1];
                return last.0.checked_add(1).map(Digest);
            }
            at = self.next_bucket(at);
        }
        None
    }

    /// The next bucket that may hold something: in the middle of growth there is a gap between the entries under the old map
    /// and those under the new one, which can be a seventh of the table.
    fn next_bucket(&self, at: usize) -> usize {
        let next = at + 1;
        if bucket::is_full(&self.memory.buckets()[at])
            || next <= home_among(self.old_buckets, self.old_until)
        {
            return next;
        }
        match self.old_until.checked_add(1) {
            Some(first_new) => next.max(home_among(self.new_buckets, first_new)),
            None => next,
        }
    }
}
