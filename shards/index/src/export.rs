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
    /// Append up to `at_most` entries in digest order from `cursor` on; returns the next cursor, None at the end.
    /// Start with `Digest(0)`. Fewer than `at_most` come only at the end.
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
        let room_until = out.len() + at_most.max(1);
        let mut at = self.home(TableKey::of(cursor).high);
        while at < self.touched {
            let (low, high) = self.closed_run(at, at);
            let from = out.len();
            for bucket in &buckets[low..=high] {
                for slot in 0..bucket::count(bucket) {
                    let item = bucket::item(bucket, slot);
                    if item.key.digest() >= cursor {
                        out.push((item.key.digest(), Entry::unpack(&item.packed)));
                    }
                }
            }
            out[from..].sort_unstable_by_key(|(digest, _)| *digest);
            if out.len() >= room_until {
                out.truncate(room_until);
                let (last, _) = out[room_until - 1];
                return last.0.checked_add(1).map(Digest);
            }
            at = self.after_run(high);
        }
        None
    }

    /// The first bucket behind the run that ends with bucket `high` that may hold something: in the middle of growth there is a
    /// gap between the entries under the old map and those under the new one, which can be a seventh of the table.
    fn after_run(&self, high: usize) -> usize {
        let next = high + 1;
        match self.old_until.checked_add(1) {
            Some(first_new) if next > home_among(self.old_buckets, self.old_until) => {
                next.max(home_among(self.new_buckets, first_new))
            }
            _ => next,
        }
    }
}
