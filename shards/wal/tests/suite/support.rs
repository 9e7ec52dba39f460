//! Segment files in memory, written by the real writer and recovered as a shard would.
use std::collections::BTreeMap;
use wal::{
    BLOCK_BYTES, Link, Location, LogIdentity,
    chain::ChainPoint,
    record::{self, Kind, NewRecord, RecordView},
    recovery::{Decision, Evidence, decide},
    scan::{self, BatchInfo, Stop},
    segment::SegmentHeader,
    writer::{Appended, ReadySegment, SealedBatch, Writer},
};

pub fn identity() -> LogIdentity {
    LogIdentity {
        store: *b"store-of-a-test.",
        log: *b"the log's uuid..",
        number: 3,
        timeline: 1,
    }
}

/// A record with bytes of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    pub kind: Kind,
    pub content_type: u8,
    pub stream: u32,
    pub version: u32,
    pub timestamp_us: u64,
    pub previous: Link,
    pub key: Vec<u8>,
    pub payload: Vec<u8>,
    pub extensions: Vec<u8>,
}

impl Owned {
    pub fn as_new(&self) -> NewRecord<'_> {
        NewRecord {
            kind: self.kind,
            content_type: self.content_type,
            stream: self.stream,
            version: self.version,
            timestamp_us: self.timestamp_us,
            previous: self.previous,
            key: &self.key,
            payload: &self.payload,
            extensions: &self.extensions,
        }
    }

    pub fn of(view: &RecordView<'_>) -> Owned {
        Owned {
            kind: view.kind,
            content_type: view.content_type,
            stream: view.stream,
            version: view.version,
            timestamp_us: view.timestamp_us,
            previous: view.previous,
            key: view.key.to_vec(),
            payload: view.payload.to_vec(),
            extensions: view.extensions.to_vec(),
        }
    }

    pub fn encoded_bytes(&self) -> usize {
        record::encoded_bytes(&self.as_new())
    }
}

pub fn put(key: &[u8], payload: &[u8]) -> Owned {
    Owned {
        kind: Kind::Put,
        content_type: 1,
        stream: 1,
        version: 1,
        timestamp_us: 1_700_000_000_000_000,
        previous: Link::default(),
        key: key.to_vec(),
        payload: payload.to_vec(),
        extensions: Vec::new(),
    }
}

/// A record where a walk saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub lsn: u64,
    pub location: Location,
    pub record: Owned,
    pub batch: BatchInfo,
}

/// What a shard's recovery ends with.
#[derive(Debug)]
pub struct Recovered {
    pub seen: Vec<Seen>,
    pub at: ChainPoint,
    pub stop: Stop,
    pub decision: Decision,
}

/// The segment files of one log.
#[derive(Clone)]
pub struct Image {
    pub identity: LogIdentity,
    pub segment_bytes: usize,
    pub buffer_bytes: usize,
    pub files: BTreeMap<u32, Vec<u8>>,
}

impl Image {
    pub fn new(segment_bytes: usize) -> Image {
        Image {
            identity: identity(),
            segment_bytes,
            buffer_bytes: 16 * 1024,
            files: BTreeMap::new(),
        }
    }

    pub fn header(&self, segment: u32) -> SegmentHeader {
        SegmentHeader {
            identity: self.identity,
            segment,
            generation: 1,
            segment_bytes: self.segment_bytes as u64,
        }
    }

    pub fn ready(&mut self, segment: u32) -> ReadySegment {
        let header = self.header(segment);
        let bytes = self.segment_bytes;
        self.files.entry(segment).or_insert_with(|| {
            let mut file = vec![0; bytes];
            header.encode(&mut file);
            file
        });
        ReadySegment {
            segment,
            generation: header.generation,
            bytes: bytes as u32,
            file: segment + 100,
        }
    }

    /// A writer that goes on at `at`.
    pub fn writer(&mut self, epoch: u32, at: ChainPoint) -> Writer<Vec<u8>> {
        let current = self.ready(at.segment);
        Writer::new(self.identity, epoch, at, current)
    }

    /// A buffer as the pool gives it: full of what was there.
    pub fn buffer(&self) -> Vec<u8> {
        vec![0xa5; self.buffer_bytes]
    }

    pub fn open(&mut self, writer: &mut Writer<Vec<u8>>, least_room: usize) {
        if let Err(buffer) = writer.open(self.buffer(), least_room) {
            let next = writer.chain().segment + 1;
            let ready = self.ready(next);
            writer.add_segment(ready);
            writer
                .open(buffer, least_room)
                .expect("there is a segment now");
        }
    }

    /// The device takes the write.
    pub fn write(&mut self, batch: &SealedBatch<Vec<u8>>) {
        assert_eq!(batch.file, batch.segment + 100);
        let file = self
            .files
            .get_mut(&batch.segment)
            .expect("the segment is ready");
        file[batch.offset as usize..][..batch.bytes as usize]
            .copy_from_slice(&batch.buffer[..batch.bytes as usize]);
    }

    /// Lay out one unit by itself; returns its batches unwritten.
    pub fn seal_unit(
        &mut self,
        writer: &mut Writer<Vec<u8>>,
        records: &[Owned],
        durable: u64,
    ) -> (Vec<Appended>, Vec<SealedBatch<Vec<u8>>>) {
        let mut left: usize = records.iter().map(Owned::encoded_bytes).sum();
        let (mut appended, mut batches) = (Vec::new(), Vec::new());
        self.open(writer, left);
        for record in records {
            if record.encoded_bytes() > writer.room() {
                batches.push(writer.seal(false, durable, 0).expect("open"));
                self.open(writer, left);
            }
            let new = writer.append(&record.as_new());
            let open = writer.open_bytes(new.location).expect("still open");
            assert_eq!(open.len(), new.bytes as usize);
            appended.push(new);
            left -= record.encoded_bytes();
        }
        batches.push(writer.seal(true, durable, 0).expect("open"));
        (appended, batches)
    }

    /// Lay out one unit by itself and write it.
    pub fn unit(
        &mut self,
        writer: &mut Writer<Vec<u8>>,
        records: &[Owned],
        durable: u64,
    ) -> Vec<Appended> {
        let (appended, batches) = self.seal_unit(writer, records, durable);
        for batch in &batches {
            self.write(batch);
        }
        appended
    }

    /// Walk one segment.
    pub fn walk(&self, at: ChainPoint, segment: u32) -> (Vec<Seen>, ChainPoint, Stop) {
        let bytes = &self.files[&segment];
        let mut seen = Vec::new();
        let (at, stop) = match SegmentHeader::decode(bytes) {
            Ok(header) => scan::walk(
                &self.identity,
                &header,
                bytes,
                at,
                &mut |batch, location, view| {
                    seen.push(Seen {
                        lsn: view.lsn,
                        location,
                        record: Owned::of(&view),
                        batch: *batch,
                    });
                },
            ),
            Err(why) => (at, Stop::Invalid(why.to_string())),
        };
        (seen, at, stop)
    }

    /// Recover as a shard does: segment by segment, asking the table at every stop.
    pub fn recover(&self, from: ChainPoint, known_durable: u64) -> Recovered {
        let mut seen = Vec::new();
        let mut at = from;
        let mut segment = from.segment;
        loop {
            let (more, next, stop) = self.walk(at, segment);
            seen.extend(more);
            at = next;
            let following = self.files.get(&(segment + 1));
            let next_continues = following.is_some_and(|bytes| {
                SegmentHeader::decode(bytes)
                    .is_ok_and(|header| scan::continues(&self.identity, &header, bytes, &at))
            });
            let marked = self.files.range(segment..).any(|(number, bytes)| {
                let from = if *number == at.segment {
                    at.offset
                } else {
                    BLOCK_BYTES as u32
                };
                SegmentHeader::decode(bytes).is_ok_and(|header| {
                    scan::proof_of_durability(&self.identity, &header, bytes, from, at.next_lsn)
                        .is_some()
                })
            });
            let proven_durable = marked || known_durable >= at.next_lsn;
            let decision = decide(&Evidence {
                stop: stop.clone(),
                next_continues,
                proven_durable,
            });
            if decision != Decision::NextSegment {
                return Recovered {
                    seen,
                    at,
                    stop,
                    decision,
                };
            }
            segment += 1;
        }
    }
}

/// Every record that a recovery showed, in order, without its places.
pub fn records(seen: &[Seen]) -> Vec<Owned> {
    seen.iter().map(|seen| seen.record.clone()).collect()
}
