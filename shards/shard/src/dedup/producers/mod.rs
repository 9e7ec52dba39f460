//! Per producer id, the answers of its last [`WINDOW_SEQUENCES`] requests in this log.
//!
//! # Invariants
//! - A producer's window is sorted by sequence and holds every sequence recorded above `forgotten_through`; at or below it nothing is known.
//! - Producers stand in a list by last use. What a bound costs is taken from the least recently used, and counted.
//! - `bytes()` is at most `bytes_max` plus one producer's window: the one that is being recorded is never evicted for itself.
//!
//! `checkpoint` writes the windows down and takes them in again.

mod checkpoint;
#[cfg(test)]
mod tests;

use super::Answer;
use slab::Slab;
use std::collections::{HashMap, VecDeque};

pub use checkpoint::ProducersCursor;

/// Requests of one producer whose answers are remembered.
pub const WINDOW_SEQUENCES: usize = 128;

const NONE: u32 = u32::MAX;

/// What a sequence is to the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProducerCheck<'a> {
    /// not seen: append, then `record`
    New,
    /// seen: this was the answer
    Repeat(&'a Answer),
    /// neither the next one nor one that was seen
    OutOfOrder {
        /// the sequence that would be accepted
        expected: u64,
    },
    /// seen, with another content
    Mismatch,
    /// older than what is remembered: it may or may not have been done
    Forgotten,
}

/// Bounds of [`Producers`].
#[derive(Clone, Copy, Debug)]
pub struct ProducerLimits {
    /// producers remembered at once (at least 1)
    pub producers_max: usize,
    /// memory for all windows
    pub bytes_max: usize,
    /// a producer that has sent nothing for so long, in log time, is forgotten
    pub window_seconds: u64,
}

impl Default for ProducerLimits {
    fn default() -> ProducerLimits {
        ProducerLimits {
            producers_max: 65_536,
            bytes_max: 32 << 20,
            window_seconds: super::WINDOW_SECONDS_DEFAULT.into(),
        }
    }
}

#[derive(Debug)]
struct Remembered {
    sequence: u64,
    /// 0 = unknown
    fingerprint: u64,
    answer: Answer,
}

#[derive(Debug)]
struct Producer {
    id: u128,
    /// largest sequence recorded
    last_sequence: u64,
    /// at or below this nothing is known any more
    forgotten_through: u64,
    /// of the last record
    log_time_us: u64,
    window: VecDeque<Remembered>,
    newer: u32,
    older: u32,
}

/// An entry of the map, with the control byte and the table's slack of at most a half.
const MAP_ENTRY_BYTES: usize = 2 * (size_of::<(u128, u32)>() + 1);

impl Producer {
    fn bytes(&self) -> usize {
        let versions: usize = self
            .window
            .iter()
            .map(|remembered| remembered.answer.versions.heap_bytes())
            .sum();
        Self::fixed_bytes(&self.window) + versions
    }

    fn fixed_bytes(window: &VecDeque<Remembered>) -> usize {
        size_of::<Producer>() + MAP_ENTRY_BYTES + window.capacity() * size_of::<Remembered>()
    }

    fn find(&self, sequence: u64) -> Result<usize, usize> {
        // the newest sequence is the usual question: a fresh request, or the retry of the last one
        match self.window.back() {
            Some(last) if sequence > last.sequence => Err(self.window.len()),
            Some(last) if sequence == last.sequence => Ok(self.window.len() - 1),
            _ => self
                .window
                .binary_search_by_key(&sequence, |remembered| remembered.sequence),
        }
    }

    /// Take in an answer; returns by how many bytes of versions the window grew and shrank.
    fn remember(&mut self, remembered: Remembered) -> (usize, usize) {
        let sequence = remembered.sequence;
        if sequence <= self.forgotten_through {
            return (0, 0);
        }
        let grown = remembered.answer.versions.heap_bytes();
        match self.find(sequence) {
            Ok(at) => {
                let before = std::mem::replace(&mut self.window[at], remembered);
                (grown, before.answer.versions.heap_bytes())
            }
            Err(0) if self.window.len() == WINDOW_SEQUENCES => {
                self.forgotten_through = sequence;
                (0, 0)
            }
            Err(at) => {
                self.last_sequence = self.last_sequence.max(sequence);
                if self.window.len() < WINDOW_SEQUENCES {
                    self.window.insert(at, remembered);
                    return (grown, 0);
                }
                let shrunk = self.forget_oldest();
                self.window.insert(at - 1, remembered);
                (grown, shrunk)
            }
        }
    }

    /// Drop the oldest answer; returns the bytes of its versions.
    fn forget_oldest(&mut self) -> usize {
        let Some(oldest) = self.window.pop_front() else {
            return 0;
        };
        self.forgotten_through = oldest.sequence;
        oldest.answer.versions.heap_bytes()
    }
}

/// The producers of one log.
#[derive(Debug)]
pub struct Producers {
    limits: ProducerLimits,
    by_id: HashMap<u128, u32, ahash::RandomState>,
    /// slots never move, so that an export can go on where it was
    slots: Slab<Producer>,
    newest: u32,
    oldest: u32,
    bytes: usize,
    /// an import appended producers without regard to their last use
    unsorted: bool,
    evicted: u64,
    expired: u64,
}

impl Producers {
    /// None known yet.
    ///
    /// # Panics
    /// When `limits.producers_max` is 0 or beyond `u32`.
    pub fn new(limits: ProducerLimits) -> Producers {
        assert!(
            limits.producers_max > 0 && limits.producers_max < NONE as usize,
            "1 to 2^32 - 2 producers"
        );
        Producers {
            limits,
            by_id: HashMap::default(),
            slots: Slab::new(),
            newest: NONE,
            oldest: NONE,
            bytes: 0,
            unsorted: false,
            evicted: 0,
            expired: 0,
        }
    }

    /// What request `sequence` of producer `id` is. Changes nothing. A `fingerprint` of 0, given or remembered, matches any.
    ///
    /// The first sequence seen of an unknown producer may be any from 1: it may be one that was forgotten, and goes on.
    pub fn check(&self, id: u128, sequence: u64, fingerprint: u64) -> ProducerCheck<'_> {
        let Some(producer) = self.by_id.get(&id).map(|&slot| &self.slots[slot as usize]) else {
            return if sequence == 0 {
                ProducerCheck::OutOfOrder { expected: 1 }
            } else {
                ProducerCheck::New
            };
        };
        if sequence <= producer.forgotten_through {
            return ProducerCheck::Forgotten;
        }
        let Ok(at) = producer.find(sequence) else {
            let expected = producer.last_sequence + 1;
            return if sequence == expected {
                ProducerCheck::New
            } else {
                ProducerCheck::OutOfOrder { expected }
            };
        };
        let remembered = &producer.window[at];
        if remembered.fingerprint != fingerprint && remembered.fingerprint != 0 && fingerprint != 0
        {
            return ProducerCheck::Mismatch;
        }
        let answer = &remembered.answer;
        if !answer.versions.is_empty() && answer.versions.len() != answer.records as usize {
            return ProducerCheck::Forgotten; // its checkpoint caught it half evicted
        }
        ProducerCheck::Repeat(answer)
    }

    /// Remember what a request was answered. Also how replay rebuilds the window: what is known already changes nothing.
    ///
    /// `log_time_us` is the log time of the batch that holds the request. Producers that are out of the window by then are forgotten.
    pub fn record(
        &mut self,
        id: u128,
        sequence: u64,
        fingerprint: u64,
        answer: Answer,
        log_time_us: u64,
    ) {
        self.expire(log_time_us);
        let slot = match self.by_id.get(&id) {
            Some(&slot) => {
                self.unlink(slot);
                slot
            }
            None => {
                while self.slots.len() >= self.limits.producers_max {
                    self.evict_oldest();
                }
                self.insert(id, sequence.saturating_sub(1))
            }
        };
        self.link_newest(slot);
        let producer = &mut self.slots[slot as usize];
        producer.log_time_us = producer.log_time_us.max(log_time_us);
        let fixed = Producer::fixed_bytes(&producer.window);
        let (grown, shrunk) = producer.remember(Remembered {
            sequence,
            fingerprint,
            answer,
        });
        self.bytes += Producer::fixed_bytes(&producer.window) - fixed + grown;
        self.bytes -= shrunk;
        self.keep_bounds();
    }

    /// Forget producers whose last request is older than the window. `record` does it too; call it when nothing is recorded for long.
    pub fn expire(&mut self, log_time_us: u64) {
        self.sort();
        let window_us = self.limits.window_seconds.saturating_mul(1_000_000);
        while self.oldest != NONE
            && self.slots[self.oldest as usize]
                .log_time_us
                .saturating_add(window_us)
                <= log_time_us
        {
            self.remove(self.oldest);
            self.expired += 1;
        }
    }

    /// Every producer: id, last sequence, log time of its last request; and its answers by sequence.
    pub(crate) fn all(
        &self,
    ) -> impl Iterator<Item = (u128, u64, u64, impl Iterator<Item = (u64, u64, &Answer)>)> {
        self.slots.iter().map(|(_, producer)| {
            let answers = producer
                .window
                .iter()
                .map(|r| (r.sequence, r.fingerprint, &r.answer));
            let (last, time_us) = (producer.last_sequence, producer.log_time_us);
            (producer.id, last, time_us, answers)
        })
    }

    /// How long a producer is remembered after its last request, in log time.
    pub(crate) fn window_us(&self) -> u64 {
        self.limits.window_seconds.saturating_mul(1_000_000)
    }

    /// Producers remembered.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Nobody is remembered.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Memory in use, allocator slack excluded.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The bound of `bytes()`.
    pub fn bytes_max(&self) -> usize {
        self.limits.bytes_max
    }

    /// Producers that a bound made us forget within their window. Not 0: the bounds are too small for the promise.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Producers forgotten because their window had passed.
    pub fn expired(&self) -> u64 {
        self.expired
    }

    fn insert(&mut self, id: u128, forgotten_through: u64) -> u32 {
        let producer = Producer {
            id,
            last_sequence: forgotten_through,
            forgotten_through,
            log_time_us: 0,
            window: VecDeque::new(),
            newer: NONE,
            older: NONE,
        };
        self.bytes += producer.bytes();
        let slot = u32::try_from(self.slots.insert(producer)).expect("producers_max is below 2^32");
        self.by_id.insert(id, slot);
        slot
    }

    fn remove(&mut self, slot: u32) {
        self.unlink(slot);
        let producer = self.slots.remove(slot as usize);
        self.by_id.remove(&producer.id);
        self.bytes -= producer.bytes();
    }

    fn evict_oldest(&mut self) {
        self.remove(self.oldest);
        self.evicted += 1;
    }

    /// Least recently used producers go first; the newest gives up its oldest answers only when it is alone.
    fn keep_bounds(&mut self) {
        while self.bytes > self.limits.bytes_max && self.oldest != self.newest {
            self.evict_oldest();
        }
        while self.bytes > self.limits.bytes_max && self.newest != NONE {
            let producer = &mut self.slots[self.newest as usize];
            if producer.window.len() <= 1 {
                break;
            }
            self.bytes -= producer.forget_oldest();
        }
    }

    fn unlink(&mut self, slot: u32) {
        let (newer, older) = (
            self.slots[slot as usize].newer,
            self.slots[slot as usize].older,
        );
        match newer {
            NONE => self.newest = older,
            newer => self.slots[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.slots[older as usize].newer = newer,
        }
    }

    fn link_newest(&mut self, slot: u32) {
        let older = self.newest;
        let producer = &mut self.slots[slot as usize];
        (producer.newer, producer.older) = (NONE, older);
        match older {
            NONE => self.oldest = slot,
            older => self.slots[older as usize].newer = slot,
        }
        self.newest = slot;
    }

    /// Put the list in order of last use after imports, once.
    fn sort(&mut self) {
        if !std::mem::take(&mut self.unsorted) {
            return;
        }
        let mut order: Vec<(u64, u32)> = self
            .slots
            .iter()
            .map(|(slot, producer)| (producer.log_time_us, slot as u32))
            .collect();
        order.sort_unstable();
        (self.newest, self.oldest) = (NONE, NONE);
        for (_, slot) in order {
            self.link_newest(slot);
        }
    }
}
