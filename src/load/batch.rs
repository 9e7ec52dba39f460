//! Records on their way into one frame: copied once out of the reader's buffers, lent to the client together.

use std::ops::Range;

use client::{Condition, ContentType, Record};

use super::reader::Entry;

/// What a frame carries at most besides its count of records. Large enough that the frame's own cost is nothing, small
/// enough that a whole window of frames stays in the cache.
const FRAME_BYTES: usize = 256 << 10;

/// Records of neighbouring lines.
#[derive(Debug, Default)]
pub struct Batch {
    bytes: Vec<u8>,
    places: Vec<Place>,
    lines: Option<(u64, u64)>,
}

#[derive(Debug)]
struct Place {
    key: Range<usize>,
    payload: Range<usize>,
    content_type: u8,
}

impl Batch {
    /// Takes a copy of the record.
    pub fn push(&mut self, entry: &Entry) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&entry.key);
        let middle = self.bytes.len();
        self.bytes.extend_from_slice(&entry.payload);
        self.places.push(Place {
            key: start..middle,
            payload: middle..self.bytes.len(),
            content_type: entry.content_type,
        });
        let first = self.lines.map_or(entry.line, |(first, _)| first);
        self.lines = Some((first, entry.line));
    }

    /// Whether it should be sent before more is added.
    pub fn is_full(&self, records_max: usize) -> bool {
        self.places.len() >= records_max || self.bytes.len() >= FRAME_BYTES
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Bytes of keys and payloads.
    pub fn bytes(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// First and last line, for messages.
    pub fn lines(&self) -> (u64, u64) {
        self.lines.unwrap_or_default()
    }

    /// As the client takes them.
    pub fn records(&self) -> Vec<Record<'_>> {
        let record = |place: &Place| Record {
            key: &self.bytes[place.key.clone()],
            payload: &self.bytes[place.payload.clone()],
            content_type: ContentType::Code(place.content_type),
            tombstone: false,
            condition: Condition::None,
        };
        self.places.iter().map(record).collect()
    }

    /// Makes room for the next ones; keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.places.clear();
        self.lines = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_as_they_went_in() {
        let mut batch = Batch::default();
        for line in [7, 9] {
            batch.push(&Entry {
                line,
                key: b"k".repeat(line as usize),
                payload: vec![1; 3],
                content_type: 2,
            });
        }
        let records = batch.records();
        assert_eq!(
            records
                .iter()
                .map(|record| (record.key.len(), record.payload.len()))
                .collect::<Vec<_>>(),
            [(7, 3), (9, 3)]
        );
        assert_eq!((batch.len(), batch.bytes(), batch.lines()), (2, 22, (7, 9)));
        assert!(batch.is_full(2) && !batch.is_full(3));
        batch.clear();
        assert_eq!((batch.len(), batch.bytes()), (0, 0));
        batch.push(&Entry {
            line: 1,
            payload: vec![0; FRAME_BYTES],
            ..Entry::default()
        });
        assert!(batch.is_full(100));
    }
}
