//! Per producer id, the answers of its last [`WINDOW_SEQUENCES`] requests in this log.
//!
//! # Invariants
//! - A producer's window is sorted by sequence and holds every sequence recorded above `forgotten_through`; at or below it nothing is known.
//! - Producers stand in a list by last use. What a bound costs is taken from the least recently used, and counted.
//! - `bytes()` is at most `bytes_max` plus one producer's window: the one that is being recorded is never evicted for itself.

use super::{ChunkError, ChunkReader, ChunkWriter, Kind};
use slab::Slab;
use std::collections::{HashMap, VecDeque};

/// Requests of one producer whose answers are remembered.
pub const WINDOW_SEQUENCES: usize = 128;

/// Versions kept without an allocation of their own.
const VERSIONS_INLINE: usize = 4;
const NONE: u32 = u32::MAX;

/// The versions that an answer gave its records, in request order. Up to four take no allocation.
#[derive(Clone, Debug)]
pub struct Versions(Repr);

#[derive(Clone, Debug)]
enum Repr {
    Inline {
        length: u8,
        values: [u32; VERSIONS_INLINE],
    },
    Heap(Box<[u32]>),
}

impl Versions {
    /// No versions: a reply that did not ask for them.
    pub const NONE: Versions = Versions(Repr::Inline {
        length: 0,
        values: [0; VERSIONS_INLINE],
    });

    fn heap_bytes(&self) -> usize {
        match &self.0 {
            Repr::Inline { .. } => 0,
            Repr::Heap(values) => size_of_val::<[u32]>(values),
        }
    }

    /// None took an allocation.
    pub(super) fn are_inline(&self) -> bool {
        matches!(self.0, Repr::Inline { .. })
    }

    /// For an import that got the list in parts.
    pub(super) fn append(&mut self, more: &[u32]) {
        *self = Versions::from([self, more].concat().as_slice());
    }
}

impl Default for Versions {
    fn default() -> Versions {
        Versions::NONE
    }
}

impl From<&[u32]> for Versions {
    fn from(versions: &[u32]) -> Versions {
        if versions.len() > VERSIONS_INLINE {
            return Versions(Repr::Heap(versions.into()));
        }
        let mut values = [0; VERSIONS_INLINE];
        values[..versions.len()].copy_from_slice(versions);
        Versions(Repr::Inline {
            length: versions.len() as u8,
            values,
        })
    }
}

impl std::ops::Deref for Versions {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        match &self.0 {
            Repr::Inline { length, values } => &values[..usize::from(*length)],
            Repr::Heap(values) => values,
        }
    }
}

impl PartialEq for Versions {
    fn eq(&self, other: &Versions) -> bool {
        **self == **other
    }
}
impl Eq for Versions {}

/// What a request was answered, as far as this log is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// of the request's first record here
    pub first_lsn: u64,
    /// records of the request here; their lsns follow each other
    pub records: u32,
    /// one per record, or none
    pub versions: Versions,
}

impl Answer {
    /// The lsn that must be durable before this answer may be given again.
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.records.max(1)) - 1
    }
}

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

/// Where an export goes on. Meaningful only to the `Producers` that gave it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProducersCursor {
    slot: usize,
    id: u128,
    /// answers up to this sequence are exported
    through: u64,
    /// versions exported of the answer after that
    versions: usize,
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

    /// One chunk of a checkpoint into `out`: about `bytes_max` bytes at most, and no more than
    /// [`CHUNK_BYTES_MAX`](super::CHUNK_BYTES_MAX). Returns where to go on, `None` at the end. Start with the default cursor.
    ///
    /// The structure may change between calls. What was there before the first one and still is, is exported; for what came later, replay
    /// from where the log stood at the first call.
    pub fn export(
        &self,
        cursor: ProducersCursor,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Option<ProducersCursor> {
        let mut chunk = ChunkWriter::begin(Kind::Producers, bytes_max, out);
        let mut at = cursor;
        // slots are few enough to step over the free ones; `slab` has no iteration from a key
        while at.slot < self.slots.capacity() {
            if let Some(producer) = self.slots.get(at.slot) {
                if at.id != producer.id {
                    at = ProducersCursor {
                        slot: at.slot,
                        id: producer.id,
                        ..ProducersCursor::default()
                    };
                }
                if !export_producer(producer, &mut at, &mut chunk) {
                    return Some(at);
                }
            }
            at = ProducersCursor {
                slot: at.slot + 1,
                ..ProducersCursor::default()
            };
        }
        None
    }

    /// Take in a chunk of [`export`](Producers::export). Chunks come in the order they were exported.
    ///
    /// # Errors
    /// When the bytes are not such a chunk. Entries before the bad one stay: the caller drops the checkpoint as a whole.
    pub fn import(&mut self, chunk: &[u8]) -> Result<(), ChunkError> {
        let mut reader = ChunkReader::begin(Kind::Producers, chunk)?;
        for _ in 0..reader.entries() {
            let id = reader.u128()?;
            let (forgotten_through, last_sequence, log_time_us) =
                (reader.u64()?, reader.u64()?, reader.u64()?);
            if last_sequence < forgotten_through {
                return Err(ChunkError::Malformed(
                    "a producer's last sequence is one that it forgot",
                ));
            }
            let slot = match self.by_id.get(&id) {
                Some(&slot) => slot,
                None => {
                    let slot = self.insert(id, forgotten_through);
                    self.link_newest(slot);
                    self.unsorted = true;
                    slot
                }
            };
            let producer = &mut self.slots[slot as usize];
            let before = producer.bytes();
            producer.last_sequence = producer.last_sequence.max(last_sequence);
            producer.log_time_us = producer.log_time_us.max(log_time_us);
            for _ in 0..reader.u16()? {
                import_answer(producer, &mut reader)?;
            }
            self.bytes = self.bytes + producer.bytes() - before;
        }
        reader.end()?;
        if self.slots.len() > self.limits.producers_max || self.bytes > self.limits.bytes_max {
            // smaller bounds than those of the run that wrote it
            self.sort();
            while self.slots.len() > self.limits.producers_max {
                self.evict_oldest();
            }
            self.keep_bounds();
        }
        Ok(())
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

/// id, forgotten_through, last_sequence, log_time_us, answers
const PRODUCER_ENTRY_BYTES: usize = 16 + 8 + 8 + 8 + 2;
/// sequence, fingerprint, first_lsn, records, first version's place, versions
const ANSWER_ENTRY_BYTES: usize = 8 + 8 + 8 + 4 + 4 + 4;

/// Writes what is left of a producer; false when the chunk was full before the end. An answer with more versions than fit goes out in parts.
fn export_producer(
    producer: &Producer,
    at: &mut ProducersCursor,
    chunk: &mut ChunkWriter<'_>,
) -> bool {
    if chunk.room() < PRODUCER_ENTRY_BYTES + ANSWER_ENTRY_BYTES + size_of::<u32>()
        && !chunk.is_empty()
    {
        return false;
    }
    let first = producer
        .window
        .partition_point(|remembered| remembered.sequence <= at.through);
    let mut room = chunk.room().saturating_sub(PRODUCER_ENTRY_BYTES);
    // one pass decides how many answers fit, so that their number can stand before them
    let mut parts: Vec<(&Remembered, usize, usize)> = Vec::new();
    let mut whole = true;
    for remembered in producer.window.range(first..) {
        let versions = &remembered.answer.versions;
        let from = at.versions.min(versions.len());
        let left = versions.len() - from;
        let fits = room.saturating_sub(ANSWER_ENTRY_BYTES) / size_of::<u32>();
        if room < ANSWER_ENTRY_BYTES || (fits == 0 && left > 0) {
            whole = false;
            if parts.is_empty() && chunk.is_empty() {
                parts.push((remembered, from, left.min(1))); // a bound below one entry: go on all the same
                advance(at, remembered, from + left.min(1));
            }
            break;
        }
        let count = left.min(fits);
        parts.push((remembered, from, count));
        room -= ANSWER_ENTRY_BYTES + count * size_of::<u32>();
        advance(at, remembered, from + count);
        if count < left {
            whole = false;
            break;
        }
    }
    chunk
        .entry()
        .u128(producer.id)
        .u64(producer.forgotten_through)
        .u64(producer.last_sequence)
        .u64(producer.log_time_us)
        .u16(parts.len() as u16);
    for (remembered, from, count) in parts {
        let answer = &remembered.answer;
        chunk
            .u64(remembered.sequence)
            .u64(remembered.fingerprint)
            .u64(answer.first_lsn)
            .u32(answer.records)
            .u32(from as u32)
            .u32(count as u32);
        for &version in &answer.versions[from..from + count] {
            chunk.u32(version);
        }
    }
    whole
}

fn advance(at: &mut ProducersCursor, remembered: &Remembered, versions: usize) {
    if versions == remembered.answer.versions.len() {
        (at.through, at.versions) = (remembered.sequence, 0);
    } else {
        at.versions = versions;
    }
}

fn import_answer(producer: &mut Producer, reader: &mut ChunkReader<'_>) -> Result<(), ChunkError> {
    let (sequence, fingerprint, first_lsn) = (reader.u64()?, reader.u64()?, reader.u64()?);
    let records = reader.u32()?;
    let (from, count) = (reader.u32()? as usize, reader.u32()? as usize);
    let bytes = reader.bytes(
        count
            .checked_mul(size_of::<u32>())
            .ok_or(ChunkError::Short)?,
    )?;
    let versions: Vec<u32> = bytes
        .chunks_exact(4)
        .map(|v| u32::from_le_bytes([v[0], v[1], v[2], v[3]]))
        .collect();
    if from == 0 {
        let answer = Answer {
            first_lsn,
            records,
            versions: Versions::from(versions.as_slice()),
        };
        producer.remember(Remembered {
            sequence,
            fingerprint,
            answer,
        });
        return Ok(());
    }
    match producer.find(sequence) {
        Ok(at) if producer.window[at].answer.versions.len() == from => {
            producer.window[at].answer.versions.append(&versions);
            Ok(())
        }
        // its first part fell behind the window between two slices
        Err(_) if sequence <= producer.forgotten_through => Ok(()),
        _ => Err(ChunkError::Malformed(
            "part of an answer without the part before",
        )),
    }
}

#[cfg(test)]
mod tests;
