//! Growing in place, a few buckets an insertion.
//!
//! From B to B' = B + B/7 home buckets. As the map is monotone, entries only move up; so the move begins with the highest
//! digests and goes down. `old_until` says how far it is: digests above it are under the new map. One step takes
//! a closed run of buckets out (see the invariants of the table), lowers `old_until` by the homes of that run, and puts
//! the entries back by ordinary insertion. Between steps every invariant holds, whatever `old_until` is, so the move may
//! stop anywhere, for any time, or for good.
//!
//! Figures, with 16 slots of 32 bytes: growth starts at 14.75 keys a bucket (34.7 bytes a key) and leaves 12.9 (39.7). Four
//! buckets or more move per insertion, so the move is over after B/4 insertions, while the part not moved yet gets no
//! denser than 15 a bucket, and the next growth is 2 B insertions away. Averaged over all insertions a key is moved
//! seven times. A closed run is a handful of buckets; the longest of a table of 10M keys is a few hundred, under
//! 0.1 ms; one insertion in a thousand takes over 10 µs.
//!
//! It does not know what the entries mean.

use crate::bucket::{self, SLOTS};
use crate::memory::{LINES, TableMemory};
use crate::table::{Index, home_among};

/// Growth starts at this many keys in four buckets.
const GROW_AT_PER_FOUR_BUCKETS: u64 = 59;

/// B' = B + B / this.
const GROWTH_DIVISOR: usize = 7;

/// Least buckets moved by one insertion while the table grows.
const BUCKETS_PER_INSERTION: usize = 4;

impl<M: TableMemory> Index<M> {
    /// Before a key is inserted: start growing when it is time, move a part when growing.
    pub(crate) fn make_room(&mut self) {
        if self.blocked {
            return;
        }
        if !self.is_growing() {
            if self.keys * 4 < self.new_buckets as u64 * GROW_AT_PER_FOUR_BUCKETS {
                return;
            }
            let more = (self.old_buckets / GROWTH_DIVISOR).max(1);
            self.new_buckets = (self.old_buckets + more).min(self.most_buckets());
            self.moved = 0;
            if !self.is_growing() {
                return;
            }
        }
        self.move_some();
    }

    /// One step: see the module's header.
    fn move_some(&mut self) {
        let top = home_among(self.old_buckets, self.old_until);
        let (low, high) = self.closed_run((top + 1).saturating_sub(BUCKETS_PER_INSERTION), top);
        let mut moving = std::mem::take(&mut self.moving);
        let mut moved_before = 0;
        for taken in &mut self.memory.buckets_mut()[low..=high] {
            for slot in 0..bucket::count(taken) {
                let item = bucket::item(taken, slot);
                moved_before += u64::from(item.key.high > self.old_until);
                moving.push(item);
            }
            *taken = bytemuck::Zeroable::zeroed();
        }
        if self.fits(&mut moving, self.moved - moved_before) {
            self.moved += moving.len() as u64 - moved_before;
            if low == 0 {
                self.old_buckets = self.new_buckets;
                self.old_until = u64::MAX;
            } else {
                self.old_until = last_before(self.old_buckets, low);
            }
        } else {
            self.blocked = true;
        }
        self.prefetch_next_step();
        for item in &moving {
            let placed = self.place(item);
            assert!(placed, "a key had no room in an index run that was checked");
        }
        moving.clear();
        self.moving = moving;
    }

    /// Ask for the lines that the next step will read and write: it comes with the next insertion, a whole
    /// key's work away.
    fn prefetch_next_step(&self) {
        if !self.is_growing() {
            return;
        }
        let top = home_among(self.old_buckets, self.old_until);
        let low = (top + 1).saturating_sub(BUCKETS_PER_INSERTION);
        let onto = home_among(self.new_buckets, self.old_until);
        let onto_low = (onto + 1).saturating_sub(BUCKETS_PER_INSERTION + 1);
        for at in (low..=top).chain(onto_low..=onto) {
            for line in 0..LINES {
                self.memory.prefetch_line(at, line);
            }
        }
    }

    /// Whether `moving` fits under the new map, with `above` other keys under it already, all of them larger. It fits when for
    /// each bucket the keys with homes from there on are no more than the slots from there on (Hall's condition). With
    /// digests of a real hash the first test always says yes.
    fn fits(&self, moving: &mut [bucket::Item], above: u64) -> bool {
        let end = self.memory.buckets().len();
        let slots_from = |high: u64| ((end - home_among(self.new_buckets, high)) * SLOTS) as u64;
        let Some(largest) = moving.iter().map(|item| item.key.high).max() else {
            return true;
        };
        if above + moving.len() as u64 <= slots_from(largest) {
            return true;
        }
        moving.sort_unstable_by_key(|item| std::cmp::Reverse(item.key));
        (1u64..)
            .zip(moving.iter())
            .all(|(rank, item)| above + rank <= slots_from(item.key.high))
    }
}

/// The largest `high` whose home among `buckets` is before bucket `at` (which is not 0).
#[allow(clippy::cast_possible_truncation)] // at < buckets, so the quotient is below 2^64
fn last_before(buckets: usize, at: usize) -> u64 {
    ((at as u128) << 64).div_ceil(buckets as u128) as u64 - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_before_is_the_border_of_the_map() {
        for buckets in 2..200 {
            for at in 1..buckets {
                let last = last_before(buckets, at);
                assert_eq!(home_among(buckets, last), at - 1);
                assert_eq!(home_among(buckets, last + 1), at);
            }
        }
    }
}
