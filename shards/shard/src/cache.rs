//! A bounded cache of record bytes by lsn, for records that are read more often than the device should be asked.
//!
//! Owns one arena, given to it (huge pages, say), and a table over it. Nothing is allocated after the start; what is in the arena is bounded by
//! its length, whatever the sizes of the records.
//!
//! ```text
//! arena   a ring:  … | lsn u64, length u32, _ u32 | bytes, padded to 16 | lsn … |      the write end overtakes the oldest
//! table   lsn -> place in the arena; open addressing, linear probing, no tombstones
//! ```
//!
//! The oldest entry makes room. One that was read since it was laid down goes round again (second chance), as long as that costs no more
//! copying than a few times the insert at hand: an insert is never a sweep through the cache.
//!
//! # Invariants
//! - Bytes returned for an lsn are those of the last insert under it. An entry in the arena that the table does not name is dead.
//! - `[tail, head)`, or `[tail, wrap)` and `[0, head)` when the write end has wrapped, is filled with entries without a hole.
//!
//! It does not know what a record is and verifies nothing: the caller's bytes were checksummed when they were read.

use std::cell::Cell;

/// lsn u64, length u32, 4 bytes unused: keeps bytes and entries at multiples of 16.
const HEADER_BYTES: usize = 16;
const UNIT_BYTES: usize = 16;
/// Arena bytes per place of the table: with its header, next to no entry is smaller.
const ARENA_BYTES_PER_PLACE: usize = 64;
/// Entries that are kept at most, as a share of the table's places: longer probes cost more than they keep.
const LOAD_MAX: (usize, usize) = (3, 4);
/// A record larger than this share of the arena would push out too much for one.
const RECORD_SHARE: usize = 16;
/// What second chances may copy per insert: so many times the record, and at least so many bytes.
const COPY_FACTOR: usize = 4;
const COPY_BYTES_MIN: usize = 4096;

/// A place of the table: 16 bytes, four to a cache line.
#[derive(Clone, Debug)]
struct Place {
    /// 0 = free
    lsn: u64,
    /// of the entry's header, in units
    at: u32,
    /// of the record; the top bit: read since it was laid down
    length: Cell<u32>,
}

const READ: u32 = 1 << 31;

/// See the module's header. `M` is the arena's memory.
#[derive(Debug)]
pub struct ReadCache<M> {
    arena: M,
    table: Vec<Place>,
    entries: usize,
    entries_max: usize,
    record_bytes_max: usize,
    /// oldest entry
    tail: usize,
    /// where the next entry goes
    head: usize,
    /// set while the write end is behind the tail: where the entries before it end
    wrap: Option<usize>,
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl<M: AsRef<[u8]> + AsMut<[u8]>> ReadCache<M> {
    /// A cache in the memory given; its length is the bound, and 0 turns it off. The table beside it takes a quarter to a half more ([`table_bytes`](Self::table_bytes)).
    pub fn new(arena: M) -> ReadCache<M> {
        let bytes_max = arena.as_ref().len();
        assert!(
            bytes_max / UNIT_BYTES <= u32::MAX as usize,
            "a cache of 64 GiB or more"
        );
        let places = (bytes_max / ARENA_BYTES_PER_PLACE)
            .max(1)
            .next_power_of_two();
        ReadCache {
            arena,
            table: vec![
                Place {
                    lsn: 0,
                    at: 0,
                    length: Cell::new(0)
                };
                places
            ],
            entries: 0,
            entries_max: places * LOAD_MAX.0 / LOAD_MAX.1,
            record_bytes_max: (bytes_max / RECORD_SHARE).min(READ as usize - 1),
            tail: 0,
            head: 0,
            wrap: None,
            hits: Cell::new(0),
            misses: Cell::new(0),
        }
    }

    /// The bytes of record `lsn`, if they are here.
    #[inline]
    pub fn get(&self, lsn: u64) -> Option<&[u8]> {
        let Ok(place) = self.lookup(lsn) else {
            self.misses.set(self.misses.get() + 1);
            return None;
        };
        self.hits.set(self.hits.get() + 1);
        let Place { at, length, .. } = &self.table[place];
        let bytes = length.get();
        if bytes & READ == 0 {
            length.set(bytes | READ);
        }
        let start = *at as usize * UNIT_BYTES + HEADER_BYTES;
        Some(&self.arena.as_ref()[start..start + (bytes & !READ) as usize])
    }

    /// Lay down the bytes of record `lsn`, in place of what was known under it. Records larger than a sixteenth of the cache are not kept.
    pub fn insert(&mut self, lsn: u64, bytes: &[u8]) {
        self.remove(lsn);
        if lsn == 0 || bytes.len() > self.record_bytes_max || self.entries_max == 0 {
            return;
        }
        let needed = entry_bytes(bytes.len());
        let mut copy_budget = (needed * COPY_FACTOR).max(COPY_BYTES_MIN);
        while self.entries >= self.entries_max {
            self.pass_oldest(&mut copy_budget);
        }
        while !self.has_room(needed) {
            self.pass_oldest(&mut copy_budget);
        }
        let at = self.head;
        let arena = self.arena.as_mut();
        arena[at..at + 8].copy_from_slice(&lsn.to_le_bytes());
        arena[at + 8..at + 12].copy_from_slice(&(bytes.len() as u32).to_le_bytes());
        arena[at + HEADER_BYTES..at + HEADER_BYTES + bytes.len()].copy_from_slice(bytes);
        self.head += needed;
        let (Ok(place) | Err(place)) = self.lookup(lsn);
        self.table[place] = Place {
            lsn,
            at: (at / UNIT_BYTES) as u32,
            length: Cell::new(bytes.len() as u32),
        };
        self.entries += 1;
    }

    /// Forget record `lsn`. Its bytes leave when the write end comes round.
    pub fn remove(&mut self, lsn: u64) {
        if let Ok(place) = self.lookup(lsn) {
            self.free(place);
        }
    }

    /// Records kept.
    pub fn len(&self) -> usize {
        self.entries
    }

    /// No record is kept.
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Arena bytes in use, headers and dead entries included.
    pub fn bytes(&self) -> usize {
        match self.wrap {
            Some(wrap) => wrap - self.tail + self.head,
            None => self.head - self.tail,
        }
    }

    /// The bound of `bytes()`.
    pub fn bytes_max(&self) -> usize {
        self.arena.as_ref().len()
    }

    /// Memory of the table, which does not lie in the arena.
    pub fn table_bytes(&self) -> usize {
        self.table.len() * size_of::<Place>()
    }

    /// Reads that found their record.
    pub fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// Reads that did not.
    pub fn misses(&self) -> u64 {
        self.misses.get()
    }

    /// Lsns are dense, so a multiplication spreads them; its high bits are the good ones.
    #[inline]
    fn home(&self, lsn: u64) -> usize {
        (lsn.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & (self.table.len() - 1)
    }

    /// The place that names `lsn`, or the free one where it would go. There always is one: the load is bounded.
    #[inline]
    fn lookup(&self, lsn: u64) -> Result<usize, usize> {
        let mut place = self.home(lsn);
        loop {
            match self.table[place].lsn {
                0 => return Err(place),
                found if found == lsn => return Ok(place),
                _ => place = (place + 1) & (self.table.len() - 1),
            }
        }
    }

    /// Take a place out of the table and close the gap, so that no search stops short of what it looks for.
    fn free(&mut self, place: usize) {
        let mask = self.table.len() - 1;
        self.entries -= 1;
        let mut gap = place;
        let mut next = (gap + 1) & mask;
        while self.table[next].lsn != 0 {
            let home = self.home(self.table[next].lsn);
            // what stands at `next` may move into the gap unless its search begins behind the gap
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.table[gap] = self.table[next].clone();
                gap = next;
            }
            next = (next + 1) & mask;
        }
        self.table[gap].lsn = 0;
    }

    /// Whether `needed` bytes fit at the head, wrapping it where the end of the arena is too near.
    fn has_room(&mut self, needed: usize) -> bool {
        if self.wrap.is_some() {
            return self.tail - self.head >= needed;
        }
        if self.tail == self.head {
            (self.tail, self.head) = (0, 0); // empty: begin anew
        }
        if self.arena.as_ref().len() - self.head >= needed {
            return true;
        }
        self.wrap = Some(self.head);
        self.head = 0;
        self.tail >= needed
    }

    /// Take the oldest entry out of the ring: drop it, or lay it down again at the head if it was read and the budget allows.
    fn pass_oldest(&mut self, copy_budget: &mut usize) {
        let at = self.tail;
        let arena = self.arena.as_mut();
        let (lsn, length) = read_header(&arena[at..at + HEADER_BYTES]);
        let bytes = entry_bytes(length);
        self.tail += bytes;
        let live = self
            .lookup(lsn)
            .ok()
            .filter(|&place| self.table[place].at as usize * UNIT_BYTES == at);
        if let Some(place) = live {
            let again = self.table[place].length.get() & READ != 0 && *copy_budget >= bytes;
            // Laying it down needs the head right behind the tail's own region: only then does the copy overwrite nothing but the entry itself.
            if again && self.wrap.is_some() {
                *copy_budget -= bytes;
                let head = self.head;
                self.arena.as_mut().copy_within(at..at + bytes, head);
                self.table[place] = Place {
                    lsn,
                    at: (head / UNIT_BYTES) as u32,
                    length: Cell::new(length as u32),
                };
                self.head += bytes;
            } else {
                self.free(place);
            }
        }
        if self.wrap == Some(self.tail) {
            self.wrap = None;
            self.tail = 0;
        }
    }
}

/// Bytes of an entry in the arena.
fn entry_bytes(length: usize) -> usize {
    HEADER_BYTES + length.next_multiple_of(UNIT_BYTES)
}

fn read_header(header: &[u8]) -> (u64, usize) {
    let lsn = header.first_chunk().expect("a header is 16 bytes");
    let length = header[8..].first_chunk().expect("a header is 16 bytes");
    (
        u64::from_le_bytes(*lsn),
        u32::from_le_bytes(*length) as usize,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn heap(bytes_max: usize) -> ReadCache<Box<[u8]>> {
        ReadCache::new(vec![0; bytes_max].into_boxed_slice())
    }

    fn record(lsn: u64, length: usize, salt: u8) -> Vec<u8> {
        (0..length)
            .map(|i| (lsn as u8).wrapping_mul(31) ^ (i as u8) ^ salt)
            .collect()
    }

    /// Walks the ring as it is laid out and holds the table against it.
    fn check_layout(cache: &ReadCache<Box<[u8]>>) {
        let regions = match cache.wrap {
            Some(wrap) => [cache.tail..wrap, 0..cache.head],
            None => [cache.tail..cache.head, 0..0],
        };
        let mut live = 0;
        for region in regions {
            let mut at = region.start;
            while at < region.end {
                let (lsn, length) = read_header(&cache.arena[at..at + HEADER_BYTES]);
                if let Ok(place) = cache.lookup(lsn)
                    && cache.table[place].at as usize * UNIT_BYTES == at
                {
                    live += 1;
                    assert_eq!((cache.table[place].length.get() & !READ) as usize, length);
                }
                at += entry_bytes(length);
            }
            assert_eq!(at, region.end);
        }
        assert_eq!(
            live, cache.entries,
            "every entry of the table lies in the ring"
        );
        assert!(cache.bytes() <= cache.bytes_max() && cache.entries <= cache.entries_max);
    }

    #[test]
    fn what_was_inserted_is_found_and_counted() {
        let mut cache = heap(4096);
        assert_eq!(cache.get(1), None);
        cache.insert(1, b"one");
        cache.insert(2, b"");
        assert_eq!(
            (cache.get(1), cache.get(2)),
            (Some(b"one".as_slice()), Some(b"".as_slice()))
        );
        cache.insert(1, b"another");
        assert_eq!(cache.get(1), Some(b"another".as_slice()));
        cache.remove(1);
        cache.remove(1);
        assert_eq!(
            (cache.get(1), cache.len(), cache.is_empty()),
            (None, 1, false)
        );
        assert_eq!((cache.hits(), cache.misses()), (3, 2));
    }

    #[test]
    fn off_keeps_nothing() {
        let mut cache = heap(0);
        cache.insert(1, b"");
        assert_eq!(
            (cache.get(1), cache.bytes(), cache.bytes_max()),
            (None, 0, 0)
        );
        for tiny in 1..200 {
            let mut cache = heap(tiny);
            for lsn in 1..50 {
                cache.insert(lsn, &[1; 3]);
                cache.insert(lsn, &[]);
            }
            check_layout(&cache);
        }
    }

    #[test]
    fn a_record_too_large_is_not_kept_and_replaces_what_was_there() {
        let mut cache = heap(16_000);
        cache.insert(5, &[1; 1000]);
        assert!(cache.get(5).is_some());
        cache.insert(5, &[1; 1001]);
        assert_eq!(cache.get(5), None);
    }

    #[test]
    fn what_is_read_stays_and_what_is_not_goes() {
        let mut cache = heap(64 * 1024);
        for lsn in 1..=10 {
            cache.insert(lsn, &record(lsn, 256, 0));
        }
        for lsn in 11..5_000 {
            cache.insert(lsn, &record(lsn, 256, 0));
            for hot in 1..=10 {
                assert_eq!(
                    cache.get(hot),
                    Some(record(hot, 256, 0).as_slice()),
                    "hot record {hot} at {lsn}"
                );
            }
        }
        assert_eq!(cache.get(11), None);
        assert!(
            cache.bytes() > 60 * 1024,
            "the arena is used: {}",
            cache.bytes()
        );
    }

    #[test]
    fn an_insert_never_sweeps_the_cache() {
        let mut cache = heap(1 << 20);
        for lsn in 1..3_000 {
            cache.insert(lsn, &[7; 256]);
        }
        for lsn in 1..3_000 {
            cache.get(lsn);
        }
        // every entry asks for a second chance
        for lsn in 10_000..12_000 {
            let (tail, wrap) = (cache.tail, cache.wrap);
            cache.insert(lsn, &[7; 256]);
            if wrap == cache.wrap {
                assert!(
                    cache.tail - tail <= COPY_BYTES_MIN + 2 * entry_bytes(256),
                    "{} bytes passed",
                    cache.tail - tail
                );
            }
        }
    }

    proptest! {
        #[test]
        fn never_wrong_bytes(size in 0usize..6000, operations in prop::collection::vec((0u8..8, 1u64..60, 0usize..300, any::<u8>()), 1..600)) {
            let mut cache = heap(size);
            let mut model: HashMap<u64, Vec<u8>> = HashMap::new();
            for (operation, lsn, length, salt) in operations {
                match operation {
                    0..4 => {
                        let bytes = record(lsn, length, salt);
                        cache.insert(lsn, &bytes);
                        if cache.bytes_max() >= RECORD_SHARE * 16 && length <= cache.record_bytes_max {
                            prop_assert_eq!(cache.table.iter().filter(|p| p.lsn == lsn).count(), 1, "the newest is kept");
                        }
                        model.insert(lsn, bytes);
                    }
                    4 => { cache.remove(lsn); model.remove(&lsn); }
                    _ => if let Some(found) = cache.get(lsn) { prop_assert_eq!(Some(found), model.get(&lsn).map(Vec::as_slice)); }
                }
                check_layout(&cache);
            }
        }
    }
}
