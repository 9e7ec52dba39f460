//! The words every protocol shares: durability, condition, a record on its way in, a record on its way out.
//!
//! It does not know how any protocol spells them.

use crate::{Code, ContentType, Refusal};

/// Longest key in bytes. The shortest has one.
pub const KEY_BYTES_MAX: usize = 1024;
/// Longest stream name in bytes. The shortest has one.
pub const STREAM_NAME_BYTES_MAX: usize = 128;

const STREAM_NAME_BYTE: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        let b = byte as u8;
        table[byte] = b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
        byte += 1;
    }
    table
};

/// `[A-Za-z0-9._:-]`, 1 to 128 bytes.
#[inline]
pub fn stream_name_is_valid(name: &[u8]) -> bool {
    !name.is_empty()
        && name.len() <= STREAM_NAME_BYTES_MAX
        && name.iter().all(|&b| STREAM_NAME_BYTE[usize::from(b)])
}

/// The refusal of a stream name; the same words in every protocol.
#[cold]
pub(crate) fn refuse_stream_name(name: &[u8]) -> Refusal {
    let shown = String::from_utf8_lossy(&name[..name.len().min(40)]);
    Refusal::new(
        Code::Malformed,
        format!(
            "stream name {shown:?} ({} bytes) is not allowed: use 1 to {STREAM_NAME_BYTES_MAX} of A-Z a-z 0-9 . _ : -",
            name.len()
        ),
    )
}

/// The refusal of a key by its length; the same words in every protocol.
#[cold]
pub(crate) fn refuse_key(bytes: usize) -> Refusal {
    if bytes == 0 {
        return Refusal::new(Code::Malformed, "key is empty: give it 1 to 1024 bytes");
    }
    Refusal::new(
        Code::TooLarge,
        format!("key has {bytes} bytes: keep keys within {KEY_BYTES_MAX}"),
    )
}

/// A payload that is larger than this server takes.
pub(crate) fn refuse_payload(bytes: u64, payload_bytes_max: u32) -> Refusal {
    Refusal::new(
        Code::TooLarge,
        format!("payload has {bytes} bytes: keep payloads within {payload_bytes_max}"),
    )
}

/// What an ack of a write means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Durability {
    /// The device has confirmed the record through its write cache.
    #[default]
    Durable = 0,
    /// The record is accepted in memory; a crash may take it back.
    Buffered = 1,
}

impl Durability {
    /// `durable` or `buffered`, as written in query strings and replies.
    pub fn name(self) -> &'static str {
        match self {
            Durability::Durable => "durable",
            Durability::Buffered => "buffered",
        }
    }

    /// The inverse of [`name`](Self::name).
    pub fn from_name(name: &[u8]) -> Option<Durability> {
        match name {
            b"durable" => Some(Durability::Durable),
            b"buffered" => Some(Durability::Buffered),
            _ => None,
        }
    }

    /// The inverse of `self as u8`.
    #[inline]
    pub fn from_u8(value: u8) -> Option<Durability> {
        match value {
            0 => Some(Durability::Durable),
            1 => Some(Durability::Buffered),
            _ => None,
        }
    }
}

/// When a record may be appended, judged against the newest record of its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Condition {
    /// Always.
    #[default]
    None,
    /// Only if the key's newest record is a live one and has this version (from 1). A tombstone never matches,
    /// whatever its version: a deleted key has no ETag that a client could have read.
    Version(u32),
    /// Only if the key has no live record: it was never written, or a tombstone ended it.
    New,
}

/// One record of an append request, borrowed from the request's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendRecord<'a> {
    /// 1 to [`KEY_BYTES_MAX`] bytes.
    pub key: &'a [u8],
    /// Empty when `tombstone`.
    pub payload: &'a [u8],
    /// What the payload is.
    pub content_type: ContentType<'a>,
    /// The record ends its key.
    pub tombstone: bool,
    /// When the record may be appended.
    pub condition: Condition,
}

impl AppendRecord<'_> {
    /// What the server would refuse in this record, so that a client can say it before it sends anything.
    pub fn check(&self, payload_bytes_max: u32) -> Result<(), Refusal> {
        if self.key.is_empty() || self.key.len() > KEY_BYTES_MAX {
            return Err(refuse_key(self.key.len()));
        }
        if self.payload.len() > payload_bytes_max as usize {
            return Err(refuse_payload(self.payload.len() as u64, payload_bytes_max));
        }
        if self.tombstone && !self.payload.is_empty() {
            return Err(Refusal::new(
                Code::Malformed,
                "tombstone has a payload: send none with it",
            ));
        }
        if self.condition == Condition::Version(0) {
            return Err(Refusal::new(
                Code::Malformed,
                "versions start at 1: to write only a new key, use the condition for that",
            ));
        }
        self.content_type.check()
    }
}

/// A record on its way out (get, history, scan, tail).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordOut<'a> {
    /// Number of the log it is in.
    pub log: u32,
    /// Its number in that log.
    pub lsn: u64,
    /// Its number in the history of its key, from 1.
    pub version: u32,
    /// Log time, microseconds since 1970.
    pub timestamp_us: u64,
    /// The record ends its key.
    pub tombstone: bool,
    /// What the payload is.
    pub content_type: ContentType<'a>,
    /// The key's bytes.
    pub key: &'a [u8],
    /// The payload as it came in.
    pub payload: &'a [u8],
}
