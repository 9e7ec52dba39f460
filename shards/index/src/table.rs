//! The table: lookup and insertion.
//!
//! Every digest has a **home** bucket, and the map from digest to home is *monotone*: home = high * buckets / 2^64.
//! While the table grows, digests up to `old_until` use the old number of buckets and the others the new one; as
//! the new homes lie higher, that map is monotone as well, and nothing below depends on which of them is in force.
//!
//! Invariants, which insertion and growth keep and `check` in the tests walks:
//! 1. *Reachable*: an entry lies at its home or after it, and every bucket from its home up to there is full.
//! 2. Occupied slots of a bucket come first.
//!
//! From 1: a probe starts at home and ends at the first bucket that is not full; and what lies between two buckets
//! that are not full is a *closed run*: the keys with homes in it are the keys that lie in it. It can be taken out and put back
//! under another map without looking at the rest, and as the map is monotone, run after run is digest order.
//! This is linear probing on buckets. Robin Hood exchange, which keeps the buckets sorted, was tried: insertion took more than
//! twice the time, and nothing here needs the order.
//!
//! The last home bucket overflows into the buckets behind it: they are memory that later growth turns into homes; when
//! the table is as large as it gets, a few buckets are kept for that.
//!
//! It does not know keys, the device or a clock.

use crate::bucket::{self, Item, SLOTS};
use crate::digest::{Digest, TableKey};
use crate::entry::Entry;
use crate::memory::{Bucket, TableMemory};

/// Buckets that only ever hold overflow of the last home bucket. At 15 of 16 slots in use the odds that the overflow passes
/// n buckets are about e^(-2n).
const TAIL: usize = 32;

/// Keys per bucket when the table cannot grow any further and is full.
const FULL_PER_BUCKET: u64 = 15;

/// Why a key was not inserted. Nothing was changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IndexError {
    /// The memory holds no more keys; existing keys can still be replaced.
    #[error("index memory is full at {keys} keys: give the shard more with --memory")]
    Full {
        /// Keys in the index.
        keys: u64,
    },
}

/// The index partition of one shard.
pub struct Index<M> {
    pub(crate) memory: M,
    /// Home buckets of digests with `high <= old_until`.
    pub(crate) old_buckets: usize,
    /// Home buckets of the others. The same number unless the table grows.
    pub(crate) new_buckets: usize,
    /// See above; u64::MAX unless the table grows.
    pub(crate) old_until: u64,
    pub(crate) keys: u64,
    /// Keys above `old_until`.
    pub(crate) moved: u64,
    /// Buckets up to here have held something.
    pub(crate) touched: usize,
    /// Growth stopped for good: the digests are so uneven that moving on would run past the end of memory.
    pub(crate) blocked: bool,
    /// Entries on their way from old to new homes; empty between calls.
    pub(crate) moving: Vec<Item>,
}

/// Home of `high` among `buckets`.
#[inline]
#[allow(clippy::cast_possible_truncation)] // less than `buckets`
pub(crate) fn home_among(buckets: usize, high: u64) -> usize {
    ((u128::from(high) * buckets as u128) >> 64) as usize
}

/// Where a key stands in the table.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    bucket: usize,
    slot: usize,
}

/// Buckets for `keys`: 14 of 16 slots, below the load at which the table grows.
fn wanted_buckets(keys: u64) -> usize {
    usize::try_from(keys.div_ceil(14)).unwrap_or(usize::MAX)
}

impl<M: TableMemory> Index<M> {
    /// An empty table in zeroed memory; it starts with one bucket in use.
    ///
    /// # Panics
    /// When the memory has no bucket at all.
    pub fn new(memory: M) -> Index<M> {
        Index::with_keys(memory, 0)
    }

    /// An empty table already sized for `keys` keys (as far as the memory goes), so that loading a checkpoint
    /// moves nothing twice. At that many keys it takes 37 bytes a key.
    ///
    /// # Panics
    /// When the memory has no bucket at all.
    pub fn with_keys(memory: M, keys: u64) -> Index<M> {
        assert!(!memory.buckets().is_empty(), "an index needs memory");
        let mut index = Index {
            memory,
            old_buckets: 1,
            new_buckets: 1,
            old_until: u64::MAX,
            keys: 0,
            moved: 0,
            touched: 1,
            blocked: false,
            moving: Vec::new(),
        };
        index.new_buckets = wanted_buckets(keys).clamp(1, index.most_buckets());
        index.old_buckets = index.new_buckets;
        index
    }

    /// Home buckets that the memory allows.
    pub(crate) fn most_buckets(&self) -> usize {
        let all = self.memory.buckets().len();
        all - TAIL.min(all / 4)
    }

    #[inline]
    pub(crate) fn home(&self, high: u64) -> usize {
        let buckets = if high <= self.old_until {
            self.old_buckets
        } else {
            self.new_buckets
        };
        home_among(buckets, high)
    }

    /// Bucket and slot of a key.
    #[inline]
    fn find(&self, key: TableKey) -> Option<(usize, usize)> {
        let home = self.home(key.high);
        for (distance, bucket) in self.memory.buckets()[home..].iter().enumerate() {
            if let Some(slot) = bucket::find(bucket, key) {
                return Some((home + distance, slot));
            }
            if !bucket::is_full(bucket) {
                break;
            }
        }
        None
    }

    /// Ask for the cache line that a lookup of `digest` reads first.
    #[inline]
    pub fn prefetch(&self, digest: Digest) {
        self.memory.prefetch(self.home(TableKey::of(digest).high));
    }

    /// Second step, once [`Index::prefetch`] had time to arrive: asks for the lines of the slot that matches, else of the
    /// slot that a new key would get, or for the next bucket when the home is full and has no match.
    #[inline]
    pub fn prefetch_slot(&self, digest: Digest) {
        let key = TableKey::of(digest);
        let home = self.home(key.high);
        let bucket = &self.memory.buckets()[home];
        let full = bucket::is_full(bucket);
        let known = bucket::first_match(bucket, key.fingerprint);
        if let Some(slot) = known.or_else(|| (!full).then(|| bucket::count(bucket))) {
            let (first, last) = bucket::slot_lines(slot);
            self.memory.prefetch_line(home, first);
            if last != first {
                self.memory.prefetch_line(home, last);
            }
        } else if home + 1 < self.memory.buckets().len() {
            self.memory.prefetch(home + 1);
        }
    }

    /// Both steps for a batch: all first lines, then all slots, so that the cache misses of the batch overlap.
    /// Call with the digests of a frame, then apply the frame.
    pub fn prefetch_many(&self, digests: &[Digest]) {
        for digest in digests {
            self.prefetch(*digest);
        }
        for digest in digests {
            self.prefetch_slot(*digest);
        }
    }

    /// What is known of the key.
    #[inline]
    pub fn get(&self, digest: Digest) -> Option<Entry> {
        let (at, slot) = self.find(TableKey::of(digest))?;
        Some(Entry::unpack(bucket::packed(
            &self.memory.buckets()[at],
            slot,
        )))
    }

    /// Where a key stands and what is known of it: for a caller that reads before it writes. The place holds until the next
    /// insertion of a new key.
    #[inline]
    pub fn locate(&self, digest: Digest) -> Option<(Place, Entry)> {
        let (bucket, slot) = self.find(TableKey::of(digest))?;
        let entry = Entry::unpack(bucket::packed(&self.memory.buckets()[bucket], slot));
        Some((Place { bucket, slot }, entry))
    }

    /// Replace what [`Index::locate`] found.
    ///
    /// # Panics
    /// When an entry cannot be packed: see [`Entry`] for the bounds.
    #[inline]
    pub fn replace(&mut self, place: Place, entry: Entry) {
        *bucket::packed_mut(&mut self.memory.buckets_mut()[place.bucket], place.slot) =
            entry.pack();
    }

    /// Insert or replace; returns what was there.
    ///
    /// # Errors
    /// [`IndexError::Full`] for a new key when memory is used up; nothing changed then.
    ///
    /// # Panics
    /// When an entry cannot be packed: see [`Entry`] for the bounds.
    #[inline]
    pub fn put(&mut self, digest: Digest, entry: Entry) -> Result<Option<Entry>, IndexError> {
        let key = TableKey::of(digest);
        let packed = entry.pack();
        if let Some((at, slot)) = self.find(key) {
            let place = bucket::packed_mut(&mut self.memory.buckets_mut()[at], slot);
            let before = Entry::unpack(place);
            *place = packed;
            return Ok(Some(before));
        }
        self.insert(Item { key, packed })?;
        Ok(None)
    }

    /// Insert a key that [`Index::locate`] has just not found: saves the second lookup of [`Index::put`].
    ///
    /// # Errors
    /// [`IndexError::Full`] when memory is used up; nothing changed then.
    ///
    /// # Panics
    /// When an entry cannot be packed: see [`Entry`] for the bounds.
    pub fn insert_new(&mut self, digest: Digest, entry: Entry) -> Result<(), IndexError> {
        debug_assert!(self.get(digest).is_none(), "the key is in the index");
        self.insert(Item {
            key: TableKey::of(digest),
            packed: entry.pack(),
        })
    }

    /// Forget a key; returns what was known of it. Places that [`Index::locate`] gave do not hold any more.
    ///
    /// # Panics
    /// When the table's invariants do not hold.
    pub fn remove(&mut self, digest: Digest) -> Option<Entry> {
        let key = TableKey::of(digest);
        let (at, slot) = self.find(key)?;
        let entry = Entry::unpack(bucket::packed(&self.memory.buckets()[at], slot));
        // A bucket that is not full ends a probe: whatever overflowed this one may have to move back. The closed run is
        // all that can be concerned.
        let (low, high) = self.closed_run(at, at);
        let mut moving = std::mem::take(&mut self.moving);
        for bucket in &mut self.memory.buckets_mut()[low..=high] {
            let items = (0..bucket::count(bucket)).map(|slot| bucket::item(bucket, slot));
            moving.extend(items.filter(|item| item.key != key));
            *bucket = bytemuck::Zeroable::zeroed();
        }
        for item in &moving {
            assert!(self.place(item), "what lay in a run fits into it");
        }
        moving.clear();
        self.moving = moving;
        self.keys -= 1;
        self.moved -= u64::from(key.high > self.old_until);
        Some(entry)
    }

    /// Add a key that is not there.
    #[inline(never)]
    fn insert(&mut self, item: Item) -> Result<(), IndexError> {
        self.make_room();
        if self.keys >= self.capacity_keys() || !self.place(&item) {
            return Err(IndexError::Full { keys: self.keys });
        }
        self.keys += 1;
        self.moved += u64::from(item.key.high > self.old_until);
        Ok(())
    }

    /// Put `item` where the invariants want it; counts nothing. False, and nothing changed, when there is no room
    /// between its home and the end of memory.
    #[inline]
    pub(crate) fn place(&mut self, item: &Item) -> bool {
        let home = self.home(item.key.high);
        let buckets = self.memory.buckets_mut();
        let Some(distance) = buckets[home..].iter().position(|b| !bucket::is_full(b)) else {
            return false;
        };
        let free = home + distance;
        bucket::push(&mut buckets[free], item);
        self.touched = self.touched.max(free + 1);
        true
    }

    /// The closed run around the buckets `low..=high`.
    pub(crate) fn closed_run(&self, mut low: usize, mut high: usize) -> (usize, usize) {
        let buckets = self.memory.buckets();
        while low > 0 && bucket::is_full(&buckets[low - 1]) {
            low -= 1;
        }
        while high + 1 < buckets.len() && bucket::is_full(&buckets[high]) {
            high += 1;
        }
        (low, high)
    }

    /// Keys, tombstones included.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.keys
    }

    /// No key yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys == 0
    }

    /// Bytes of buckets in use (what the 40 bytes a key are measured on).
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.new_buckets.max(self.touched) * size_of::<Bucket>()) as u64
    }

    /// Keys that the table can hold before [`IndexError::Full`].
    #[must_use]
    pub fn capacity_keys(&self) -> u64 {
        self.most_buckets() as u64 * FULL_PER_BUCKET
    }

    /// Keys for which the table has room before it grows.
    #[must_use]
    pub fn sized_for(&self) -> u64 {
        self.new_buckets as u64 * 14
    }

    /// The table is moving entries to new homes (a metric).
    #[must_use]
    pub fn is_growing(&self) -> bool {
        self.old_buckets != self.new_buckets
    }

    /// Forget every key and size the table for `keys`, in the same memory.
    pub fn reset(&mut self, keys: u64) {
        let used = self.new_buckets.max(self.touched);
        for bucket in &mut self.memory.buckets_mut()[..used] {
            *bucket = bytemuck::Zeroable::zeroed();
        }
        let wanted = wanted_buckets(keys).clamp(1, self.most_buckets());
        (self.old_buckets, self.new_buckets, self.old_until) = (wanted, wanted, u64::MAX);
        (self.keys, self.moved, self.touched, self.blocked) = (0, 0, 1, false);
        self.moving.clear();
    }
}

const _: () = assert!(size_of::<Bucket>() == SLOTS * 32);
