//! The windows in chunks of a checkpoint: an export in slices between which requests go on, and its import.
//!
//! An answer with more versions than a slice has room for goes out in parts; an import puts them together. It does not know
//! where chunks are kept (`chunk` frames them).

use super::{Producer, Producers, Remembered};
use crate::dedup::{Answer, ChunkError, ChunkReader, ChunkWriter, Kind, Versions};

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
    /// One chunk of a checkpoint into `out`: about `bytes_max` bytes at most, and no more than
    /// [`CHUNK_BYTES_MAX`](crate::dedup::CHUNK_BYTES_MAX). Returns where to go on, `None` at the end. Start with the default cursor.
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
