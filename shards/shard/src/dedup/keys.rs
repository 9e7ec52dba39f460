//! Answers given under an `Idempotency-Key`, by the digest of key and scope.
//!
//! # Invariants
//! - Entries stand in a ring in the order they came. The table names the one entry of a digest that counts; an entry it does not name is dead
//!   and waits for its turn to leave.
//! - All memory is reserved at start and nothing is ever moved or rehashed: an insert costs the same at the bound as before it. (A
//!   standard map at its bound rehashes in place or grows, whenever removals have used up its free places.)
//! - An entry counts until its window has passed in log time, or until the ring is full and it is the oldest: then it is evicted, and counted.

use super::{Answer, ChunkError, ChunkReader, ChunkWriter, Kind, Versions};

/// What a key is to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyCheck<'a> {
    /// not used within its window: append, then `record`
    New,
    /// used: this was the answer
    Repeat(&'a Answer),
    /// used for another request
    Mismatch,
}

/// Bounds of [`IdempotencyKeys`]: whichever is reached first.
#[derive(Clone, Copy, Debug)]
pub struct KeyLimits {
    /// keys remembered at once
    pub keys_max: usize,
    /// memory for them
    pub bytes_max: usize,
}

impl Default for KeyLimits {
    fn default() -> KeyLimits {
        KeyLimits {
            keys_max: 1 << 20,
            bytes_max: 32 << 20,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    digest: u128,
    /// 0 = unknown
    fingerprint: u64,
    /// log time at which it stops to count
    expires_us: u64,
    answer: Answer,
}

/// Places of the table per entry: at most half full, so that a probe stays within a line or two.
const PLACES_PER_KEY: usize = 2;
const FREE: u32 = u32::MAX;

/// Bytes that `keys` entries take once all are there: the ring and the table.
fn bytes_for(keys: usize) -> usize {
    keys * size_of::<Entry>() + places_for(keys) * size_of::<u32>()
}

fn places_for(keys: usize) -> usize {
    (keys * PLACES_PER_KEY).next_power_of_two()
}

/// The idempotency keys of one log.
#[derive(Debug)]
pub struct IdempotencyKeys {
    keys_max: usize,
    /// open addressing, linear probing, no tombstones: a position in `ring`, or FREE
    table: Vec<u32>,
    /// entry number n stands at n % keys_max
    ring: Vec<Entry>,
    /// number of the oldest entry in the ring, counted from the first ever
    first: u64,
    /// number that the next entry gets
    next: u64,
    /// entries that the table names
    live: usize,
    evicted: u64,
    expired: u64,
}

impl IdempotencyKeys {
    /// None known yet. Memory for the bounds is reserved here and becomes resident as it is used. Bounds too small for one key remember none.
    pub fn new(limits: KeyLimits) -> IdempotencyKeys {
        let per_key = size_of::<Entry>() + PLACES_PER_KEY * size_of::<u32>();
        let mut keys_max = limits
            .keys_max
            .min(limits.bytes_max / per_key)
            .min(FREE as usize / PLACES_PER_KEY);
        while keys_max > 0 && bytes_for(keys_max) > limits.bytes_max {
            keys_max -= keys_max.div_ceil(16);
        }
        IdempotencyKeys {
            keys_max,
            table: vec![FREE; places_for(keys_max)],
            ring: Vec::with_capacity(keys_max),
            first: 0,
            next: 0,
            live: 0,
            evicted: 0,
            expired: 0,
        }
    }

    /// What a request under `digest` is at `log_time_us`. Changes nothing. A `fingerprint` of 0, given or remembered, matches any.
    pub fn check(&self, digest: u128, fingerprint: u64, log_time_us: u64) -> KeyCheck<'_> {
        let Some(entry) = self
            .find(digest)
            .filter(|entry| entry.expires_us > log_time_us)
        else {
            return KeyCheck::New;
        };
        if entry.fingerprint != fingerprint && entry.fingerprint != 0 && fingerprint != 0 {
            return KeyCheck::Mismatch;
        }
        KeyCheck::Repeat(&entry.answer)
    }

    /// Remember what a request was answered. Also how replay rebuilds the window: what is known already changes nothing.
    ///
    /// `log_time_us` is the log time of the batch that holds the request; the answer counts for `window_seconds` from then on. Entries are of
    /// one size: an answer of more than four versions is kept without them.
    pub fn record(
        &mut self,
        digest: u128,
        fingerprint: u64,
        answer: Answer,
        log_time_us: u64,
        window_seconds: u32,
    ) {
        self.expire(log_time_us);
        let versions = if answer.versions.are_inline() {
            answer.versions
        } else {
            Versions::NONE
        };
        let answer = Answer { versions, ..answer };
        let expires_us = log_time_us.saturating_add(u64::from(window_seconds) * 1_000_000);
        self.insert(Entry {
            digest,
            fingerprint,
            expires_us,
            answer,
        });
    }

    /// Drop entries at the old end whose window has passed. `record` does it too; call it when nothing is recorded for long.
    pub fn expire(&mut self, log_time_us: u64) {
        while self
            .oldest()
            .is_some_and(|entry| entry.expires_us <= log_time_us)
        {
            self.expired += u64::from(self.drop_oldest());
        }
    }

    /// Every key that counts: digest, fingerprint, when it stops to count, answer.
    pub(crate) fn all(&self) -> impl Iterator<Item = (u128, u64, u64, &Answer)> {
        (self.first..self.next)
            .map(|number| self.position(number))
            .filter_map(|at| {
                let entry = &self.ring[at as usize];
                let counts = self
                    .lookup(entry.digest)
                    .is_ok_and(|place| self.table[place] == at);
                counts.then_some((
                    entry.digest,
                    entry.fingerprint,
                    entry.expires_us,
                    &entry.answer,
                ))
            })
    }

    /// Keys that count (those out of their window but not yet dropped included).
    pub fn len(&self) -> usize {
        self.live
    }

    /// No key counts.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Keys that fit, after both bounds.
    pub fn keys_max(&self) -> usize {
        self.keys_max
    }

    /// Memory in use: of the reserved, the table and what entries have touched.
    pub fn bytes(&self) -> usize {
        self.ring.len() * size_of::<Entry>() + self.table.len() * size_of::<u32>()
    }

    /// Memory reserved; `bytes()` and the resident size stay below it.
    pub fn bytes_max(&self) -> usize {
        if self.keys_max == 0 {
            0
        } else {
            bytes_for(self.keys_max)
        }
    }

    /// Keys that a bound made us forget within their window. Not 0: the bounds are too small for the promise.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Keys forgotten because their window had passed.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    /// One chunk of a checkpoint into `out`: about `bytes_max` bytes at most, and no more than
    /// [`CHUNK_BYTES_MAX`](super::CHUNK_BYTES_MAX). Returns where to go on, `None` at the end. Start with 0.
    ///
    /// The structure may change between calls. What was there before the first one and still is, is exported; for what came later, replay
    /// from where the log stood at the first call.
    pub fn export(&self, cursor: u64, bytes_max: usize, out: &mut Vec<u8>) -> Option<u64> {
        let mut chunk = ChunkWriter::begin(Kind::IdempotencyKeys, bytes_max, out);
        let mut number = cursor.max(self.first);
        while number < self.next {
            if chunk.room() < ENTRY_BYTES_MAX && !chunk.is_empty() {
                return Some(number);
            }
            let at = self.position(number);
            let entry = &self.ring[at as usize];
            if self
                .lookup(entry.digest)
                .is_ok_and(|place| self.table[place] == at)
            {
                let answer = &entry.answer;
                chunk
                    .entry()
                    .u128(entry.digest)
                    .u64(entry.fingerprint)
                    .u64(entry.expires_us)
                    .u64(answer.first_lsn)
                    .u32(answer.records)
                    .u8(answer.versions.len() as u8);
                for &version in answer.versions.iter() {
                    chunk.u32(version);
                }
            }
            number += 1;
        }
        None
    }

    /// Take in a chunk of [`export`](IdempotencyKeys::export). Chunks come in the order they were exported.
    ///
    /// # Errors
    /// When the bytes are not such a chunk. Entries before the bad one stay: the caller drops the checkpoint as a whole.
    pub fn import(&mut self, chunk: &[u8]) -> Result<(), ChunkError> {
        let mut reader = ChunkReader::begin(Kind::IdempotencyKeys, chunk)?;
        for _ in 0..reader.entries() {
            let (digest, fingerprint, expires_us) = (reader.u128()?, reader.u64()?, reader.u64()?);
            let (first_lsn, records) = (reader.u64()?, reader.u32()?);
            let versions = (0..reader.u8()?)
                .map(|_| reader.u32())
                .collect::<Result<Vec<u32>, ChunkError>>()?;
            let answer = Answer {
                first_lsn,
                records,
                versions: Versions::from(versions.as_slice()),
            };
            self.insert(Entry {
                digest,
                fingerprint,
                expires_us,
                answer,
            });
        }
        reader.end()
    }

    /// Where entry `number` stands.
    fn position(&self, number: u64) -> u32 {
        (number % self.keys_max as u64) as u32
    }

    fn oldest(&self) -> Option<&Entry> {
        (self.first < self.next).then(|| &self.ring[self.position(self.first) as usize])
    }

    fn find(&self, digest: u128) -> Option<&Entry> {
        self.lookup(digest)
            .ok()
            .map(|place| &self.ring[self.table[place] as usize])
    }

    /// The place where the search for a digest begins. The digest is a keyed hash already; folding it is enough.
    fn home(&self, digest: u128) -> usize {
        (digest as u64 ^ (digest >> 64) as u64) as usize & (self.table.len() - 1)
    }

    /// The place that names the digest's entry, or the free one where it would go.
    fn lookup(&self, digest: u128) -> Result<usize, usize> {
        let mut place = self.home(digest);
        loop {
            match self.table[place] {
                FREE => return Err(place),
                at if self.ring[at as usize].digest == digest => return Ok(place),
                _ => place = (place + 1) & (self.table.len() - 1),
            }
        }
    }

    fn insert(&mut self, entry: Entry) {
        if let Ok(place) = self.lookup(entry.digest) {
            let known = &mut self.ring[self.table[place] as usize];
            if known.answer.first_lsn == entry.answer.first_lsn {
                *known = entry; // replay of what a checkpoint brought
                return;
            }
            if known.answer.first_lsn > entry.answer.first_lsn {
                return; // replay has not reached the later use yet that the checkpoint brought
            }
            self.free(place); // used again after its window: the earlier entry is dead
        }
        if self.keys_max == 0 {
            self.evicted += 1;
            return;
        }
        if self.next - self.first == self.keys_max as u64 {
            self.evicted += u64::from(self.drop_oldest());
        }
        let at = self.position(self.next);
        let (Ok(place) | Err(place)) = self.lookup(entry.digest);
        self.table[place] = at;
        match self.ring.get_mut(at as usize) {
            Some(place) => *place = entry,
            None => self.ring.push(entry),
        }
        self.next += 1;
        self.live += 1;
    }

    /// True when the entry counted.
    fn drop_oldest(&mut self) -> bool {
        let at = self.position(self.first);
        self.first += 1;
        match self.lookup(self.ring[at as usize].digest) {
            Ok(place) if self.table[place] == at => {
                self.free(place);
                true
            }
            _ => false,
        }
    }

    /// Take a place out of the table and close the gap, so that no search stops short of what it looks for.
    fn free(&mut self, place: usize) {
        let mask = self.table.len() - 1;
        self.live -= 1;
        let mut gap = place;
        let mut next = (gap + 1) & mask;
        while self.table[next] != FREE {
            let home = self.home(self.ring[self.table[next] as usize].digest);
            // what stands at `next` may move into the gap unless its search begins behind the gap
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(gap) & mask) {
                self.table[gap] = self.table[next];
                gap = next;
            }
            next = (next + 1) & mask;
        }
        self.table[gap] = FREE;
    }
}

/// digest, fingerprint, expires_us, first_lsn, records, number of versions, versions
const ENTRY_BYTES_MAX: usize = 16 + 8 + 8 + 8 + 4 + 1 + 4 * u8::MAX as usize;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(first_lsn: u64) -> Answer {
        Answer {
            first_lsn,
            records: 1,
            versions: Versions::from([3].as_slice()),
        }
    }
    fn keys(keys_max: usize) -> IdempotencyKeys {
        IdempotencyKeys::new(KeyLimits {
            keys_max,
            bytes_max: usize::MAX >> 1,
        })
    }
    const S: u64 = 1_000_000;

    #[test]
    fn a_repeat_gets_the_first_answer_until_its_window_has_passed() {
        let mut keys = keys(10);
        keys.record(7, 70, answer(1), 5 * S, 10);
        assert_eq!(keys.check(7, 70, 5 * S), KeyCheck::Repeat(&answer(1)));
        assert_eq!(keys.check(7, 70, 15 * S - 1), KeyCheck::Repeat(&answer(1)));
        assert_eq!(keys.check(7, 70, 15 * S), KeyCheck::New);
        assert_eq!(keys.check(8, 70, 5 * S), KeyCheck::New);
        keys.record(7, 71, answer(9), 15 * S, 10);
        assert_eq!(keys.check(7, 71, 15 * S), KeyCheck::Repeat(&answer(9)));
        assert_eq!((keys.len(), keys.expired(), keys.evicted()), (1, 1, 0));
    }

    #[test]
    fn another_request_under_the_key_is_a_mismatch() {
        let mut keys = keys(10);
        keys.record(7, 70, answer(1), 0, 10);
        assert_eq!(keys.check(7, 71, 0), KeyCheck::Mismatch);
        assert_eq!(
            keys.check(7, 0, 0),
            KeyCheck::Repeat(&answer(1)),
            "unknown matches any"
        );
        keys.record(8, 0, answer(2), 0, 10);
        assert_eq!(
            keys.check(8, 71, 0),
            KeyCheck::Repeat(&answer(2)),
            "unknown matches any"
        );
    }

    #[test]
    fn many_versions_are_not_kept() {
        let mut keys = keys(10);
        let many = Answer {
            first_lsn: 4,
            records: 5,
            versions: Versions::from([1, 1, 1, 1, 1].as_slice()),
        };
        keys.record(7, 70, many.clone(), 0, 10);
        assert_eq!(many.last_lsn(), 8);
        assert_eq!(
            keys.check(7, 70, 0),
            KeyCheck::Repeat(&Answer {
                versions: Versions::NONE,
                ..many
            })
        );
    }

    #[test]
    fn the_oldest_goes_when_the_bound_is_reached_and_is_counted() {
        let mut keys = keys(3);
        for digest in 1..=4u64 {
            keys.record(u128::from(digest), 1, answer(digest), 0, 10);
        }
        assert_eq!(keys.check(1, 1, 0), KeyCheck::New);
        assert_eq!(keys.check(2, 1, 0), KeyCheck::Repeat(&answer(2)));
        assert_eq!((keys.len(), keys.evicted(), keys.expired()), (3, 1, 0));
    }

    #[test]
    fn a_long_window_in_front_does_not_let_a_short_one_count_longer() {
        let mut keys = keys(10);
        keys.record(1, 1, answer(1), 0, 100);
        keys.record(2, 1, answer(2), 0, 10);
        keys.expire(50 * S);
        assert_eq!(keys.check(1, 1, 50 * S), KeyCheck::Repeat(&answer(1)));
        assert_eq!(keys.check(2, 1, 50 * S), KeyCheck::New);
        keys.record(2, 1, answer(3), 50 * S, 100);
        keys.expire(100 * S);
        assert_eq!(
            keys.check(2, 1, 100 * S),
            KeyCheck::Repeat(&answer(3)),
            "the dead entry took nothing with it"
        );
        assert_eq!((keys.len(), keys.next - keys.first), (1, 1));
    }

    #[test]
    fn memory_stays_within_what_was_reserved() {
        let limits = KeyLimits {
            keys_max: usize::MAX >> 1,
            bytes_max: 100_000,
        };
        let mut keys = IdempotencyKeys::new(limits);
        assert!(
            keys.bytes_max() <= limits.bytes_max && keys.bytes_max() > limits.bytes_max / 2,
            "{}",
            keys.bytes_max()
        );
        let (ring, table) = (keys.ring.capacity(), keys.table.capacity());
        for lsn in 1..10_000u64 {
            keys.record(u128::from(lsn) << 64 | 1, 1, answer(lsn), lsn, 100);
            assert!(keys.bytes() <= keys.bytes_max());
        }
        assert_eq!((keys.ring.capacity(), keys.table.capacity()), (ring, table));
        assert_eq!(keys.len(), keys.keys_max());
    }

    #[test]
    fn bounds_too_small_for_one_key_remember_none_and_say_so() {
        let mut keys = IdempotencyKeys::new(KeyLimits {
            keys_max: 10,
            bytes_max: 5,
        });
        keys.record(1, 1, answer(1), 0, 10);
        assert_eq!(
            (keys.check(1, 1, 0), keys.evicted(), keys.bytes_max()),
            (KeyCheck::New, 1, 0)
        );
    }

    #[test]
    fn import_refuses_every_cut() {
        let mut source = keys(10);
        source.record(1, 1, answer(1), 0, 10);
        let mut chunk = Vec::new();
        assert_eq!(source.export(0, 1000, &mut chunk), None);
        for length in 0..chunk.len() {
            assert_eq!(
                keys(10).import(&chunk[..length]),
                Err(ChunkError::Short),
                "cut at {length}"
            );
        }
    }

    proptest! {
        /// A list of what was said, oldest first, is all that the structure is.
        #[test]
        fn behaves_as_a_list(operations in prop::collection::vec((0u8..4, 0u128..12, 0u64..3, 1u32..20), 1..200)) {
            const KEYS: usize = 5;
            let mut keys = keys(KEYS);
            let mut model: Vec<Entry> = Vec::new(); // dead entries included, as in the ring
            let mut now = 0;
            for (number, (operation, digest, fingerprint, seconds)) in operations.into_iter().enumerate() {
                let digest = digest * 8; // few homes, so that searches run into each other
                let lsn = number as u64 + 1;
                let live = model.iter().rev().find(|e| e.digest == digest).filter(|e| e.expires_us > now).cloned();
                let wanted = match &live {
                    None => KeyCheck::New,
                    Some(e) if e.fingerprint != fingerprint && e.fingerprint != 0 && fingerprint != 0 => KeyCheck::Mismatch,
                    Some(e) => KeyCheck::Repeat(&e.answer),
                };
                prop_assert_eq!(&keys.check(digest, fingerprint, now), &wanted);
                if operation == 0 {
                    now += u64::from(seconds) * S / 2;
                } else if wanted == KeyCheck::New {
                    keys.record(digest, fingerprint, answer(lsn), now, seconds);
                    while model.first().is_some_and(|e| e.expires_us <= now) { model.remove(0); }
                    if model.len() == KEYS { model.remove(0); }
                    model.push(Entry { digest, fingerprint, expires_us: now + u64::from(seconds) * S, answer: answer(lsn) });
                }
            }
        }

        /// Checkpoint in slices while requests go on, then replay from where the log stood at the first slice: the same answers as never stopping.
        #[test]
        fn checkpoint_and_replay_end_where_the_first_run_was(uses in prop::collection::vec((0u128..40, 0u64..5), 1..120), start in 0usize..120, slice in 1usize..200) {
            let mut run = keys(200);
            let start = start.min(uses.len());
            let mut chunks = Vec::new();
            let mut cursor = Some(0);
            let mut now = 0;
            let mut log = Vec::new();
            for (number, (digest, pause)) in uses.iter().enumerate() {
                now += pause * S;
                if run.check(*digest, 0, now) == KeyCheck::New {
                    log.push((number, *digest, answer(number as u64 + 1), now));
                    run.record(*digest, 1, answer(number as u64 + 1), now, 60);
                }
                if number >= start && let Some(at) = cursor {
                    let mut chunk = Vec::new();
                    cursor = run.export(at, slice, &mut chunk);
                    chunks.push(chunk);
                }
            }
            while let Some(at) = cursor {
                let mut chunk = Vec::new();
                cursor = run.export(at, slice, &mut chunk);
                chunks.push(chunk);
            }
            let mut restarted = keys(200);
            for chunk in &chunks { restarted.import(chunk).unwrap(); }
            for (number, digest, answer, at) in log {
                if number >= start { restarted.record(digest, 1, answer, at, 60); }
            }
            for digest in 0..40 {
                prop_assert_eq!(restarted.check(digest, 1, now), run.check(digest, 1, now));
            }
        }
    }
}
