//! Answers given under an `Idempotency-Key`, by the digest of key and scope.
//!
//! # Invariants
//! - Entries stand in a ring in the order they came. The table names the one entry of a digest that counts; an entry it does not name is dead
//!   and waits for its turn to leave.
//! - All memory is reserved at start and nothing is ever moved or rehashed: an insert costs the same at the bound as before it. (A
//!   standard map at its bound rehashes in place or grows, whenever removals have used up its free places.)
//! - An entry counts until its window has passed in log time, or until the ring is full and it is the oldest: then it is evicted, and counted.

#[cfg(test)]
mod tests;

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
