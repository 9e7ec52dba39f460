//! Records on their way to a client, held by value: what crosses shards and what slow reads collect.

use wal::extension;
use wal::record::{Kind, RecordView};
use wire::{ContentType, RecordOut};

#[derive(Clone, Debug)]
struct Item {
    lsn: u64,
    version: u32,
    timestamp_us: u64,
    tombstone: bool,
    /// Code, or `OTHER` with the text at the start of this item's bytes.
    content_type: u8,
    start: u32,
    content_type_bytes: u16,
    key_bytes: u16,
    payload_bytes: u32,
}

/// Records of one log, copied out of it.
#[derive(Clone, Debug, Default)]
pub struct RecordSet {
    log: u32,
    bytes: Vec<u8>,
    items: Vec<Item>,
}

impl RecordSet {
    pub fn new(log: u32) -> RecordSet {
        RecordSet {
            log,
            ..RecordSet::default()
        }
    }
    pub fn push(&mut self, record: &RecordView<'_>) {
        let start = self.bytes.len() as u32;
        let other = other_content_type(record);
        self.bytes.extend_from_slice(other);
        self.bytes.extend_from_slice(record.key);
        self.bytes.extend_from_slice(record.payload);
        self.items.push(Item {
            lsn: position_of(record),
            version: record.version,
            timestamp_us: record.timestamp_us,
            tombstone: record.kind == Kind::Tombstone,
            content_type: record.content_type,
            start,
            content_type_bytes: other.len() as u16,
            key_bytes: record.key.len() as u16,
            payload_bytes: record.payload.len() as u32,
        });
    }
    pub fn len(&self) -> usize {
        self.items.len()
    }
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
    /// Bytes of keys and payloads held.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }
    pub fn iter(&self) -> impl Iterator<Item = RecordOut<'_>> {
        self.items.iter().map(|i| {
            let (content_type, rest) =
                self.bytes[i.start as usize..].split_at(usize::from(i.content_type_bytes));
            let (key, rest) = rest.split_at(usize::from(i.key_bytes));
            RecordOut {
                log: self.log,
                lsn: i.lsn,
                version: i.version,
                timestamp_us: i.timestamp_us,
                tombstone: i.tombstone,
                content_type: match i.content_type {
                    wal::record::content_type::OTHER => ContentType::Other(content_type),
                    code => ContentType::Code(code),
                },
                key,
                payload: &rest[..i.payload_bytes as usize],
            }
        })
    }
}

/// The lsn that replies say: that of the record's first place, wherever compaction has copied it.
#[inline]
pub(crate) fn position_of(record: &RecordView<'_>) -> u64 {
    extension::Relocated::of(record.extensions).map_or(record.lsn, |relocated| relocated.first)
}

/// The spelled-out content type of a record, empty where a code says it.
fn other_content_type<'a>(record: &RecordView<'a>) -> &'a [u8] {
    if record.content_type == wal::record::content_type::OTHER {
        extension::find(record.extensions, extension::CONTENT_TYPE)
            .unwrap_or(b"application/octet-stream")
    } else {
        &[]
    }
}

/// A record as replies show it, borrowed from the log's bytes.
pub fn record_out<'a>(log: u32, record: &RecordView<'a>) -> RecordOut<'a> {
    RecordOut {
        log,
        lsn: position_of(record),
        version: record.version,
        timestamp_us: record.timestamp_us,
        tombstone: record.kind == Kind::Tombstone,
        content_type: match record.content_type {
            wal::record::content_type::OTHER => ContentType::Other(other_content_type(record)),
            code => ContentType::Code(code),
        },
        key: record.key,
        payload: record.payload,
    }
}
