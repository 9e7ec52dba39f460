//! A new log on its way: records into batches, batches for the device.

use index::{DigestKey, Entry, Index};
use uring::Region;
use wal::chain::ChainPoint;
use wal::record::{Kind, NewRecord, RecordView, content_type};
use wal::superblock::{LogEntry, Superblock};
use wal::writer::{ReadySegment, Writer};
use wal::{BATCH_HEADER_BYTES, BLOCK_BYTES, Link, LogIdentity, extension};

use super::StreamPlan;
use crate::dedup::{CarriedCursor, Item, Slots, export};
use crate::partition::IndexMemory;

/// Of a batch, unless one record is longer.
const BATCH_BYTES: usize = 256 * 1024;
/// Of what is carried, in one note.
const NOTE_BYTES: usize = 128 * 1024;

/// One write to a new log.
#[derive(Debug)]
pub struct Write {
    /// From 1; the file's number is one less.
    pub segment: u32,
    /// Byte offset there.
    pub offset: u32,
    /// Whole blocks.
    pub bytes: Vec<u8>,
    /// Keys that the log has by now, for the segment's header.
    pub keys: u64,
}

/// See the module's header.
pub struct Target {
    identity: LogIdentity,
    pub(super) slots: Slots,
    segment_bytes: u32,
    writer: Writer<Vec<u8>>,
    last_segment: u32,
    digests: DigestKey,
    index: Index<IndexMemory>,
    log_time_us: u64,
    writes: Vec<Write>,
    /// By stream, from id 1: puts and tombstones.
    records: Vec<u64>,
}

impl Target {
    pub(super) fn new(
        superblock: &Superblock,
        log: &LogEntry,
        records: u64,
    ) -> std::io::Result<Target> {
        let identity = super::identity(superblock, log);
        let segment_bytes = u32::try_from(superblock.segment_bytes).expect("below 4 GiB");
        // Reserved only: what is never touched costs nothing.
        let buckets = usize::try_from(records / 12 + 128).unwrap_or(usize::MAX);
        let memory = IndexMemory(Region::reserve(buckets)?);
        let first = ready(1, segment_bytes);
        Ok(Target {
            identity,
            slots: (log.slot_first, log.slot_last),
            segment_bytes,
            writer: Writer::new(identity, log.epoch, ChainPoint::genesis(1), first),
            last_segment: 1,
            digests: DigestKey::new(superblock.digest_key),
            index: Index::with_keys(memory, records),
            log_time_us: 0,
            writes: Vec::new(),
            records: Vec::new(),
        })
    }

    /// Who the log is.
    pub fn identity(&self) -> LogIdentity {
        self.identity
    }

    /// The last lsn that was given out.
    pub fn last_lsn(&self) -> u64 {
        self.writer.next_lsn() - 1
    }

    /// Puts and tombstones of a stream.
    pub fn records_of(&self, stream: u32) -> u64 {
        self.records.get(stream as usize - 1).copied().unwrap_or(0)
    }

    /// What is to be written, in order of places. Empty until more records come.
    pub fn take_writes(&mut self) -> Vec<Write> {
        std::mem::take(&mut self.writes)
    }

    pub(super) fn define(&mut self, id: u32, stream: &StreamPlan) {
        let json = serde_json::to_vec(&stream.policy).expect("a policy is plain data");
        self.lay_down(&NewRecord {
            kind: Kind::StreamDefinition,
            content_type: content_type::JSON,
            stream: id,
            version: 0,
            timestamp_us: 0,
            previous: Link::default(),
            key: &stream.name,
            payload: &json,
            extensions: &[],
        });
        self.records.resize(id as usize, 0);
    }

    pub(super) fn append(
        &mut self,
        stream: u32,
        record: &RecordView<'_>,
        extensions: &[u8],
    ) -> u64 {
        let digest = self.digests.digest(stream, record.key);
        let before = self.index.get(digest);
        // A link names the version just before; where that is gone, the history ends.
        let previous = before
            .filter(|before| before.version.checked_add(1) == Some(record.version))
            .map_or(Link::default(), |before| Link {
                lsn: before.lsn,
                location: before.location,
            });
        // A batch's log time is that of its last record, as a shard's is.
        self.log_time_us = self.log_time_us.max(record.timestamp_us);
        let appended = self.lay_down(&NewRecord {
            kind: record.kind,
            content_type: record.content_type,
            stream,
            version: record.version,
            timestamp_us: record.timestamp_us,
            previous,
            key: record.key,
            payload: record.payload,
            extensions,
        });
        let entry = Entry {
            lsn: appended.lsn,
            version: record.version,
            tombstone: record.kind == Kind::Tombstone,
            location: appended.location,
            bytes: appended.bytes,
        };
        self.index
            .put(digest, entry)
            .expect("there is room for every record as a key of its own");
        self.records[stream as usize - 1] += 1;
        appended.lsn
    }

    pub(super) fn finish(&mut self, items: &[Item], log_time_us: u64) {
        self.seal();
        self.log_time_us = self.log_time_us.max(log_time_us);
        let mut extensions = Vec::new();
        extension::push(&mut extensions, extension::CARRIED, &[]);
        let (mut cursor, mut chunk) = (Some(CarriedCursor::default()), Vec::new());
        while let Some(at) = cursor {
            cursor = export(items, at, NOTE_BYTES, &mut chunk);
            self.lay_down(&NewRecord {
                kind: Kind::Note,
                content_type: content_type::OCTET_STREAM,
                stream: 0,
                version: 0,
                timestamp_us: self.log_time_us,
                previous: Link::default(),
                key: &[],
                payload: &chunk,
                extensions: &extensions,
            });
        }
        self.seal();
    }

    fn lay_down(&mut self, record: &NewRecord<'_>) -> wal::writer::Appended {
        let bytes = wal::record::encoded_bytes(record);
        if self.writer.room() < bytes {
            self.seal();
            let least = (BATCH_HEADER_BYTES + bytes).next_multiple_of(BLOCK_BYTES);
            let mut buffer = vec![0; least.max(BATCH_BYTES)];
            while let Err(back) = self.writer.open(buffer, bytes) {
                buffer = back;
                self.last_segment += 1;
                self.writer
                    .add_segment(ready(self.last_segment, self.segment_bytes));
            }
        }
        self.writer.append(record)
    }

    fn seal(&mut self) {
        // The store becomes the new one only when all of it is durable.
        let durable_lsn = self.writer.chain().next_lsn - 1;
        if let Some(sealed) = self.writer.seal(true, durable_lsn, self.log_time_us) {
            let mut bytes = sealed.buffer;
            bytes.truncate(sealed.bytes as usize);
            self.writes.push(Write {
                segment: sealed.segment,
                offset: sealed.offset,
                bytes,
                keys: self.index.len(),
            });
        }
    }
}

fn ready(segment: u32, bytes: u32) -> ReadySegment {
    ReadySegment {
        segment,
        generation: 1,
        bytes,
        file: segment - 1,
    }
}
