//! One record: laid into a batch, verified and read in place.
//!
//! Header (48 bytes), extensions, key, payload, zeroes to a multiple of 8; drawn in `FORMAT.md`. A record
//! does not hold its own lsn: it is the batch's first lsn plus its place, and the checksum confirms it.
//! The checksum is CRC32C of everything behind the first eight bytes, masked by (log, timeline), lsn and
//! length, so that a single record read from the device proves whose it is and which one it is.
//!
//! The header is written with plain slices and derived offsets rather than as an archived struct: it is
//! laid down millions of times a second and read behind a checksum that already proves its writer.

use crate::{KEY_BYTES_MAX, Link, Location, LogIdentity, extension};
use xxhash_rust::xxh3::Xxh3;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A new version of a key.
    Put = 1,
    /// The key ends here.
    Tombstone = 2,
    /// key = stream name, payload = policy (JSON); `stream` is the id it defines
    StreamDefinition = 3,
    /// no key; what it says is told by its extensions (24: the payload is a part of what earlier logs left)
    Note = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Put,
            2 => Kind::Tombstone,
            3 => Kind::StreamDefinition,
            4 => Kind::Note,
            _ => return None,
        })
    }
}

/// Content types with a code of their own; `Other` is spelled out in a ContentType extension.
pub mod content_type {
    /// `application/octet-stream`
    pub const OCTET_STREAM: u8 = 0;
    /// `application/json`
    pub const JSON: u8 = 1;
    /// `text/plain`
    pub const TEXT_PLAIN: u8 = 2;
    /// `application/x-ndjson`
    pub const NDJSON: u8 = 3;
    /// See the record's `CONTENT_TYPE` extension.
    pub const OTHER: u8 = 255;
}

/// What the writer is asked to append. `extensions` are encoded blocks (see `extension::push`).
#[derive(Clone, Copy, Debug)]
pub struct NewRecord<'a> {
    /// What it is.
    pub kind: Kind,
    /// Code of the payload's type, see [`content_type`].
    pub content_type: u8,
    /// Log-local stream id.
    pub stream: u32,
    /// Number in the key's history, from 1.
    pub version: u32,
    /// Microseconds since 1970, as the reply says it.
    pub timestamp_us: u64,
    /// The version before this one.
    pub previous: Link,
    /// At most [`KEY_BYTES_MAX`] bytes.
    pub key: &'a [u8],
    /// Any bytes.
    pub payload: &'a [u8],
    /// Encoded blocks, at most 65535 bytes.
    pub extensions: &'a [u8],
}

/// A record read in place. `lsn` is what the caller expected and the checksum confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// Its number in the log.
    pub lsn: u64,
    /// What it is.
    pub kind: Kind,
    /// Code of the payload's type.
    pub content_type: u8,
    /// Log-local stream id.
    pub stream: u32,
    /// Number in the key's history.
    pub version: u32,
    /// Microseconds since 1970.
    pub timestamp_us: u64,
    /// The version before this one; its location is a hint.
    pub previous: Link,
    /// The key.
    pub key: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
    /// Whole extension blocks, see `extension::iter`.
    pub extensions: &'a [u8],
    /// encoded length, a multiple of 8
    pub bytes: usize,
}

/// Why bytes are not the record that they should be.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum RecordError {
    /// More bytes are needed to tell.
    #[error("record is cut short: needs {needed} bytes, {given} given")]
    Short {
        /// Bytes that the header asks for.
        needed: usize,
        /// Bytes that were there.
        given: usize,
    },
    /// Lengths or codes that no writer lays down.
    #[error("record header makes no sense: {0}")]
    Malformed(&'static str),
    /// Damaged, or another record than the one asked for.
    #[error("record checksum is {found:08x}, should be {wanted:08x}")]
    Checksum {
        /// What the record says.
        found: u32,
        /// What its bytes give.
        wanted: u32,
    },
}

const TOTAL: usize = 0;
const CRC: usize = TOTAL + size_of::<u32>();
const KIND: usize = CRC + size_of::<u32>();
const CONTENT_TYPE: usize = KIND + size_of::<u8>();
const KEY_BYTES: usize = CONTENT_TYPE + size_of::<u8>();
const STREAM: usize = KEY_BYTES + size_of::<u16>();
const VERSION: usize = STREAM + size_of::<u32>();
const EXTENSION_BYTES: usize = VERSION + size_of::<u32>();
const FLAGS: usize = EXTENSION_BYTES + size_of::<u16>();
const TIMESTAMP: usize = FLAGS + size_of::<u16>();
const PREVIOUS_LSN: usize = TIMESTAMP + size_of::<u64>();
const PREVIOUS_SEGMENT: usize = PREVIOUS_LSN + size_of::<u64>();
const PREVIOUS_OFFSET: usize = PREVIOUS_SEGMENT + size_of::<u32>();
/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = PREVIOUS_OFFSET + size_of::<u32>();
const _: () = assert!(HEADER_BYTES == 48, "FORMAT.md draws 48 bytes");
/// The checksum covers a record from here on; length and checksum lie before.
const COVERED: usize = KIND;
/// Low bits of the flags: zero bytes at the record's end. Payload length = total - header - extensions - key - these.
const FLAGS_PADDING: u16 = 0b111;

/// Bytes of the record in a batch: header + extensions + key + payload, rounded up to 8.
#[inline]
pub fn encoded_bytes(record: &NewRecord<'_>) -> usize {
    encoded_bytes_of(
        record.key.len(),
        record.payload.len(),
        record.extensions.len(),
    )
}

/// [`encoded_bytes`] of a record that is known by its lengths. `extensions` is the length of the encoded area.
#[inline]
pub fn encoded_bytes_of(key: usize, payload: usize, extensions: usize) -> usize {
    (HEADER_BYTES + extensions + key + payload).next_multiple_of(8)
}

#[inline]
fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

#[inline]
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Seeded once per log: decode verifies that `bytes` starts with record `lsn` of that log.
#[derive(Clone, Copy, Debug)]
pub struct RecordCodec {
    seed: u32,
}

impl RecordCodec {
    /// The codec of one (log, timeline). Store and number do not matter: records are the same on every machine.
    pub fn new(identity: &LogIdentity) -> RecordCodec {
        let mut hash = Xxh3::new();
        hash.update(&identity.log);
        hash.update(&identity.timeline.to_le_bytes());
        let digest = hash.digest();
        RecordCodec {
            seed: (digest ^ (digest >> 32)) as u32,
        } // both halves, folded
    }

    /// CRC32C of the covered bytes under a mask. Differing only in lsn (below 2^32 apart), only in length or only
    /// in seed changes the mask for certain; one flipped bit, or a burst of up to 32, changes the CRC for certain.
    #[inline]
    fn checksum(&self, lsn: u64, record: &[u8]) -> u32 {
        let folded = (lsn as u32) ^ ((lsn >> 32) as u32).rotate_left(16); // each half whole
        let length = (record.len() as u32).wrapping_mul(0x9e37_79b1); // a record's length is a u32; odd factor: one to one
        crc_fast::crc32_iscsi(&record[COVERED..]) ^ self.seed ^ folded ^ length
    }

    /// Lay `record` into `out`, which has exactly `encoded_bytes(record)`.
    #[inline]
    pub(crate) fn encode(&self, lsn: u64, record: &NewRecord<'_>, out: &mut [u8]) {
        let (key, payload, extensions) = (record.key, record.payload, record.extensions);
        assert!(key.len() <= KEY_BYTES_MAX, "key of {} bytes", key.len());
        assert!(
            extensions.is_empty()
                || (extensions.len() <= usize::from(u16::MAX)
                    && extension::is_well_formed(extensions)),
            "extensions are at most 65535 bytes of whole blocks"
        );
        let used = HEADER_BYTES + extensions.len() + key.len() + payload.len();
        let padding = out.len() - used;
        let total = u32::try_from(out.len()).expect("a record lies in a segment");
        // Zeroes first, as one store: what follows overwrites all of them but the padding.
        *out.last_chunk_mut::<8>().expect("header fits") = [0; 8];
        {
            // The casts below are bounded by the assertions above: key 1024, extensions 65535, padding 7.
            let head: &mut [u8; HEADER_BYTES] = out.first_chunk_mut().expect("header fits");
            head[TOTAL..CRC].copy_from_slice(&total.to_le_bytes());
            head[KIND] = record.kind as u8;
            head[CONTENT_TYPE] = record.content_type;
            head[KEY_BYTES..STREAM].copy_from_slice(&(key.len() as u16).to_le_bytes());
            head[STREAM..VERSION].copy_from_slice(&record.stream.to_le_bytes());
            head[VERSION..EXTENSION_BYTES].copy_from_slice(&record.version.to_le_bytes());
            head[EXTENSION_BYTES..FLAGS].copy_from_slice(&(extensions.len() as u16).to_le_bytes());
            head[FLAGS..TIMESTAMP].copy_from_slice(&(padding as u16).to_le_bytes());
            head[TIMESTAMP..PREVIOUS_LSN].copy_from_slice(&record.timestamp_us.to_le_bytes());
            head[PREVIOUS_LSN..PREVIOUS_SEGMENT]
                .copy_from_slice(&record.previous.lsn.to_le_bytes());
            head[PREVIOUS_SEGMENT..PREVIOUS_OFFSET]
                .copy_from_slice(&record.previous.location.segment.to_le_bytes());
            head[PREVIOUS_OFFSET..].copy_from_slice(&record.previous.location.offset.to_le_bytes());
        }
        let (extension_place, rest) = out[HEADER_BYTES..used].split_at_mut(extensions.len());
        if !extensions.is_empty() {
            extension_place.copy_from_slice(extensions);
        }
        let (key_place, payload_place) = rest.split_at_mut(key.len());
        key_place.copy_from_slice(key);
        payload_place.copy_from_slice(payload);
        let crc = self.checksum(lsn, out);
        out[CRC..KIND].copy_from_slice(&crc.to_le_bytes());
    }

    /// Verify and read the record that `bytes` starts with.
    ///
    /// # Errors
    /// `Short` when bytes are missing (read that many and try again), `Checksum` when it is damaged or is not
    /// record `lsn` of this log, `Malformed` when it is intact and no known writer lays it down so.
    #[inline]
    pub fn decode<'a>(&self, lsn: u64, bytes: &'a [u8]) -> Result<RecordView<'a>, RecordError> {
        if bytes.len() < HEADER_BYTES {
            return Err(RecordError::Short {
                needed: HEADER_BYTES,
                given: bytes.len(),
            });
        }
        let total = RecordCodec::peek_bytes(bytes).ok_or(RecordError::Malformed("length"))?;
        if bytes.len() < total {
            return Err(RecordError::Short {
                needed: total,
                given: bytes.len(),
            });
        }
        let record = &bytes[..total];
        let wanted = self.checksum(lsn, record);
        let found = u32_at(record, CRC);
        if found != wanted {
            return Err(RecordError::Checksum { found, wanted });
        }
        parse(lsn, record)
    }

    /// Read a record that this process laid down or verified itself and has kept in memory since: no checksum, only what keeps the
    /// lengths inside `bytes`. Never for bytes that come from a device.
    ///
    /// # Errors
    /// As [`RecordCodec::decode`], but for the checksum.
    #[inline]
    pub fn read_kept<'a>(&self, lsn: u64, bytes: &'a [u8]) -> Result<RecordView<'a>, RecordError> {
        let total = RecordCodec::peek_bytes(bytes).unwrap_or(HEADER_BYTES);
        let record = bytes.get(..total).ok_or(RecordError::Short {
            needed: total,
            given: bytes.len(),
        })?;
        if record.len() < HEADER_BYTES {
            return Err(RecordError::Short {
                needed: HEADER_BYTES,
                given: record.len(),
            });
        }
        parse(lsn, record)
    }

    /// Total length of the record that starts here, from its header alone (to size a second read).
    /// None when four bytes are not there, or say what no record is.
    #[inline]
    pub fn peek_bytes(bytes: &[u8]) -> Option<usize> {
        let total = u32::from_le_bytes(*bytes.first_chunk()?) as usize;
        (total >= HEADER_BYTES && total.is_multiple_of(8)).then_some(total)
    }
}

/// The first eight bytes of a record, length and checksum: what a batch's body checksum is made of.
#[inline]
pub(crate) fn fingerprint(record: &[u8]) -> &[u8; COVERED] {
    record.first_chunk().expect("a record has a header")
}

/// Read a record whose checksum is known to hold; `record` is exactly its bytes.
#[inline]
pub(crate) fn parse(lsn: u64, record: &[u8]) -> Result<RecordView<'_>, RecordError> {
    let kind = Kind::from_byte(record[KIND]).ok_or(RecordError::Malformed("unknown kind"))?;
    let flags = u16_at(record, FLAGS);
    if flags & !FLAGS_PADDING != 0 {
        return Err(RecordError::Malformed("unknown flags"));
    }
    let key_bytes = usize::from(u16_at(record, KEY_BYTES));
    if key_bytes > KEY_BYTES_MAX {
        return Err(RecordError::Malformed("key length"));
    }
    let key_at = HEADER_BYTES + usize::from(u16_at(record, EXTENSION_BYTES));
    let payload_at = key_at + key_bytes;
    let end = record.len() - usize::from(flags & FLAGS_PADDING);
    if payload_at > end {
        return Err(RecordError::Malformed("lengths"));
    }
    let extensions = &record[HEADER_BYTES..key_at];
    if !extension::is_well_formed(extensions) {
        return Err(RecordError::Malformed("extensions"));
    }
    Ok(RecordView {
        lsn,
        kind,
        content_type: record[CONTENT_TYPE],
        stream: u32_at(record, STREAM),
        version: u32_at(record, VERSION),
        timestamp_us: u64_at(record, TIMESTAMP),
        previous: Link {
            lsn: u64_at(record, PREVIOUS_LSN),
            location: Location {
                segment: u32_at(record, PREVIOUS_SEGMENT),
                offset: u32_at(record, PREVIOUS_OFFSET),
            },
        },
        key: &record[key_at..payload_at],
        payload: &record[payload_at..end],
        extensions,
        bytes: record.len(),
    })
}
