//! The append frame: checked in one pass over the record headers, read in place, built in place.
//!
//! Invariant: an [`Append`] that came out of `parse` holds exactly `records` whole records, each within every bound,
//! so that iterating it ends early for no input. It does not know which shard a record belongs to; `next_raw` hands
//! out the bytes of each record so that a router can sort them into bodies of its own.

use super::{
    FRAME_HEADER_BYTES, FrameHeader, Limits, Parse, malformed, opcode, refuse_key,
    refuse_stream_name, short,
};
use crate::bytes::{Reader, len_u16, len_u32};
use crate::content_type::OTHER;
use crate::{
    AppendRecord, Code, Condition, ContentType, Durability, KEY_BYTES_MAX, Refusal,
    stream_name_is_valid,
};

/// durability u8, flags u8, stream_bytes u16, records u32.
const HEAD_BYTES: usize = 8;
const FLAG_WANT_VERSIONS: u8 = 1;
const FLAG_PRODUCER: u8 = 2;
/// id and sequence, behind the head where FLAG_PRODUCER is set.
const PRODUCER_BYTES: usize = 16 + 8;

/// key_bytes u16, content_type u8, flags u8, payload_bytes u32: one word.
const RECORD_HEAD_BYTES: usize = 8;
const RECORD_TOMBSTONE: u8 = 1;
const RECORD_IF_VERSION: u8 = 2;
const RECORD_IF_NEW: u8 = 4;
const RECORD_FLAGS: u8 = RECORD_TOMBSTONE | RECORD_IF_VERSION | RECORD_IF_NEW;

/// A validated append frame: every length checked, so that iteration cannot fail.
#[derive(Clone, Copy, Debug)]
pub struct Append<'a> {
    /// Valid stream name.
    pub stream: &'a [u8],
    /// What the ack must mean.
    pub durability: Durability,
    /// Reply carries a version per record.
    pub want_versions: bool,
    /// Makes a repeat of this frame return the first answer.
    pub producer: Option<Producer>,
    /// How many records, at least 1.
    pub records: u32,
    body: &'a [u8],
}

/// Who appends, and the how-manieth request of theirs this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Producer {
    /// Chosen by the producer at random, kept over reconnects.
    pub id: u128,
    /// Grows by one with every new request; the same for a repeat.
    pub sequence: u64,
}

impl<'a> Append<'a> {
    /// The records in request order.
    #[inline]
    pub fn iter(&self) -> AppendIter<'a> {
        AppendIter::new(self.body, self.records)
    }

    /// All record bytes, for forwarding and fingerprints.
    #[inline]
    pub fn body(&self) -> &'a [u8] {
        self.body
    }

    /// An append put together again on the shard that it was forwarded to. `body` is a whole
    /// [`body`](Self::body) or records from [`AppendIter::next_raw`] one after the other, `records` their number.
    /// Nothing is checked a second time; of bytes that are anything else, iteration yields what is whole.
    pub fn from_parts(
        stream: &'a [u8],
        durability: Durability,
        want_versions: bool,
        producer: Option<Producer>,
        records: u32,
        body: &'a [u8],
    ) -> Append<'a> {
        Append {
            stream,
            durability,
            want_versions,
            producer,
            records,
            body,
        }
    }

    #[inline]
    pub(super) fn parse(body: &'a [u8], limits: &Limits) -> Parse<Append<'a>> {
        let Some((head, mut rest)) = body.split_first_chunk::<HEAD_BYTES>() else {
            return short("append");
        };
        let head = u64::from_le_bytes(*head);
        // Cut by shifts, in the order drawn: durability, flags, stream_bytes, records.
        let flags = (head >> 8) as u8;
        let stream_bytes = usize::from((head >> 16) as u16);
        let records = (head >> 32) as u32;
        let Some(durability) = Durability::from_u8(head as u8) else {
            return malformed(
                "durability is neither 0 (durable) nor 1 (buffered): send one of them",
            );
        };
        if flags & !(FLAG_WANT_VERSIONS | FLAG_PRODUCER) != 0 {
            return malformed("append has reserved flags: set bits 0 and 1 only");
        }
        let mut producer = None;
        if flags & FLAG_PRODUCER != 0 {
            let Some((bytes, after)) = rest.split_first_chunk::<PRODUCER_BYTES>() else {
                return short("append");
            };
            let mut fields = Reader::new(bytes);
            producer = fields
                .u128()
                .zip(fields.u64())
                .map(|(id, sequence)| Producer { id, sequence });
            rest = after;
        }
        let Some((stream, body)) = rest.split_at_checked(stream_bytes) else {
            return short("append");
        };
        if !stream_name_is_valid(stream) {
            return Err(Box::new(refuse_stream_name(stream)));
        }
        if records == 0 {
            return malformed("append has no records: send at least one");
        }
        let mut unchecked = body;
        for number in 1..=records {
            match record_bytes(unchecked, limits.payload_bytes_max) {
                // `record_bytes` is within the slice, so this never falls back.
                Some(bytes) => unchecked = unchecked.get(bytes..).unwrap_or_default(),
                None => return Err(why_refused(unchecked, number, records, limits)),
            }
        }
        if !unchecked.is_empty() {
            return malformed(format!(
                "append goes on for {} bytes behind its {records} records: check the record count",
                unchecked.len()
            ));
        }
        Ok(Append {
            stream,
            durability,
            want_versions: flags & FLAG_WANT_VERSIONS != 0,
            producer,
            records,
            body,
        })
    }
}

/// A record's header word.
#[derive(Clone, Copy)]
struct RecordHead {
    key_bytes: usize,
    content_type: u8,
    flags: u8,
    payload_bytes: u32,
}

impl RecordHead {
    #[inline]
    fn cut(word: [u8; RECORD_HEAD_BYTES]) -> RecordHead {
        let word = u64::from_le_bytes(word);
        RecordHead {
            key_bytes: usize::from(word as u16),
            content_type: (word >> 16) as u8,
            flags: (word >> 24) as u8,
            payload_bytes: (word >> 32) as u32,
        }
    }

    /// Neither a condition on a version nor a spelled content type: header, key, payload and nothing else.
    #[inline]
    fn is_plain(&self) -> bool {
        self.flags & RECORD_IF_VERSION == 0 && self.content_type != OTHER
    }
}

/// Length of the record at the start of `bytes`, when it is whole and allowed.
#[inline]
fn record_bytes(bytes: &[u8], payload_bytes_max: u32) -> Option<usize> {
    let word = bytes.first_chunk::<RECORD_HEAD_BYTES>()?;
    let head = RecordHead::cut(*word);
    let sizes_are_good = head.key_bytes.wrapping_sub(1) < KEY_BYTES_MAX
        && head.payload_bytes <= payload_bytes_max
        && (head.flags & RECORD_TOMBSTONE == 0 || head.payload_bytes == 0);
    if !sizes_are_good {
        return None;
    }
    let flags_are_good = head.flags & !RECORD_FLAGS == 0
        && head.flags & (RECORD_IF_VERSION | RECORD_IF_NEW) != RECORD_IF_VERSION | RECORD_IF_NEW;
    let mut end = RECORD_HEAD_BYTES + head.key_bytes + head.payload_bytes as usize;
    if !head.is_plain() {
        end += optional_bytes(head, &bytes[RECORD_HEAD_BYTES..])?;
    } else if !ContentType::code_is_known(head.content_type) {
        return None;
    }
    (flags_are_good && end <= bytes.len()).then_some(end)
}

/// Length of expected version and spelled content type, when they are whole and allowed.
fn optional_bytes(head: RecordHead, bytes: &[u8]) -> Option<usize> {
    let mut fields = Reader::new(bytes);
    if head.flags & RECORD_IF_VERSION != 0 && fields.u32()? == 0 {
        return None;
    }
    if head.content_type == OTHER {
        let text_bytes = fields.u8()?;
        if !ContentType::text_is_valid(fields.bytes(usize::from(text_bytes))?) {
            return None;
        }
    } else if !ContentType::code_is_known(head.content_type) {
        return None;
    }
    Some(bytes.len() - fields.rest.len())
}

/// The sentence for what [`record_bytes`] refused: the same decisions, slowly.
#[cold]
fn why_refused(bytes: &[u8], number: u32, records: u32, limits: &Limits) -> Box<Refusal> {
    let refusal = |code, what: String| {
        Box::new(Refusal::new(
            code,
            format!("record {number} of {records}: {what}"),
        ))
    };
    let cut_short = || {
        refusal(
            Code::Malformed,
            "the frame ends inside it: check record count and lengths".to_owned(),
        )
    };
    let Some((word, rest)) = bytes.split_first_chunk::<RECORD_HEAD_BYTES>() else {
        return cut_short();
    };
    let head = RecordHead::cut(*word);
    if head.key_bytes == 0 || head.key_bytes > KEY_BYTES_MAX {
        let key = refuse_key(head.key_bytes);
        return refusal(key.code, key.message);
    }
    if head.payload_bytes > limits.payload_bytes_max {
        return refusal(
            Code::TooLarge,
            format!(
                "payload has {} bytes: keep payloads within {}",
                head.payload_bytes, limits.payload_bytes_max
            ),
        );
    }
    if head.flags & RECORD_TOMBSTONE != 0 && head.payload_bytes != 0 {
        return refusal(
            Code::Malformed,
            "tombstone has a payload: send none with it".to_owned(),
        );
    }
    if head.flags & !RECORD_FLAGS != 0 {
        return refusal(
            Code::Malformed,
            "reserved flags are set: set bits 0 to 2 only".to_owned(),
        );
    }
    if head.flags & RECORD_IF_VERSION != 0 && head.flags & RECORD_IF_NEW != 0 {
        return refusal(
            Code::Malformed,
            "both conditions are set: set bit 1 or bit 2".to_owned(),
        );
    }
    let mut fields = Reader::new(rest);
    if head.flags & RECORD_IF_VERSION != 0 {
        match fields.u32() {
            None => return cut_short(),
            Some(0) => {
                return refusal(
                    Code::Malformed,
                    "expected version is 0 and versions start at 1: for a new key set bit 2"
                        .to_owned(),
                );
            }
            Some(_) => {}
        }
    }
    if head.content_type == OTHER {
        let text = fields
            .u8()
            .and_then(|text_bytes| fields.bytes(usize::from(text_bytes)));
        match text {
            None => return cut_short(),
            Some(text) if !ContentType::text_is_valid(text) => {
                return refusal(
                    Code::Malformed,
                    "content type is not 1 to 255 bytes of printable ASCII: send it so".to_owned(),
                );
            }
            Some(_) => {}
        }
    } else if !ContentType::code_is_known(head.content_type) {
        return refusal(
            Code::Malformed,
            format!(
                "content type {} is not known: send 0 to 3, or 255 and the text",
                head.content_type
            ),
        );
    }
    cut_short()
}

/// Records of an append in request order.
#[derive(Clone, Debug)]
pub struct AppendIter<'a> {
    rest: &'a [u8],
    left: u32,
}

impl<'a> AppendIter<'a> {
    /// Over record bytes as [`Append::body`] or [`next_raw`](Self::next_raw) gave them. Other bytes are safe to pass:
    /// iteration ends at the first thing that is not a whole record.
    #[inline]
    pub fn new(body: &'a [u8], records: u32) -> AppendIter<'a> {
        AppendIter {
            rest: body,
            left: records,
        }
    }

    /// The next record and its bytes as they stand in the frame; those of several records, one after the other, are
    /// a body again.
    #[inline]
    pub fn next_raw(&mut self) -> Option<(&'a [u8], AppendRecord<'a>)> {
        if self.left == 0 {
            return None;
        }
        let (word, mut rest) = self.rest.split_first_chunk::<RECORD_HEAD_BYTES>()?;
        let head = RecordHead::cut(*word);
        let mut condition = if head.flags & RECORD_IF_NEW != 0 {
            Condition::New
        } else {
            Condition::None
        };
        let mut content_type = ContentType::Code(head.content_type);
        if !head.is_plain() {
            let mut fields = Reader::new(rest);
            if head.flags & RECORD_IF_VERSION != 0 {
                condition = Condition::Version(fields.u32()?);
            }
            if head.content_type == OTHER {
                let text_bytes = fields.u8()?;
                content_type = ContentType::Other(fields.bytes(usize::from(text_bytes))?);
            }
            rest = fields.rest;
        }
        let (key, rest) = rest.split_at_checked(head.key_bytes)?;
        let (payload, rest) = rest.split_at_checked(head.payload_bytes as usize)?;
        let raw = &self.rest[..self.rest.len() - rest.len()];
        self.rest = rest;
        self.left -= 1;
        Some((
            raw,
            AppendRecord {
                key,
                payload,
                content_type,
                tombstone: head.flags & RECORD_TOMBSTONE != 0,
                condition,
            },
        ))
    }
}

impl<'a> Iterator for AppendIter<'a> {
    type Item = AppendRecord<'a>;

    #[inline]
    fn next(&mut self) -> Option<AppendRecord<'a>> {
        self.next_raw().map(|(_, record)| record)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.left as usize))
    }
}

/// Append frame builder: begin, add records, finish.
///
/// It writes what it is given; [`AppendRecord::check`] says beforehand what the server would refuse. It panics only
/// where the bytes could not say it: a name or key over 64 KiB, a content type over 255 bytes, a frame over 4 GiB.
pub struct AppendBuilder<'o> {
    out: &'o mut Vec<u8>,
    start: usize,
    records: u32,
}

impl<'o> AppendBuilder<'o> {
    /// Starts a frame at the end of `out`.
    pub fn begin(
        out: &'o mut Vec<u8>,
        id: u64,
        stream: &[u8],
        durability: Durability,
        want_versions: bool,
        producer: Option<Producer>,
    ) -> AppendBuilder<'o> {
        let start = out.len();
        let header = FrameHeader {
            frame_bytes: 0,
            opcode: opcode::APPEND,
            flags: 0,
            code: 0,
            request_id: id,
        };
        out.extend_from_slice(&header.to_bytes());
        let mut flags = 0;
        if want_versions {
            flags |= FLAG_WANT_VERSIONS;
        }
        if producer.is_some() {
            flags |= FLAG_PRODUCER;
        }
        out.extend_from_slice(&[durability as u8, flags]);
        out.extend_from_slice(&len_u16(stream).to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        if let Some(Producer { id, sequence }) = producer {
            out.extend_from_slice(&id.to_le_bytes());
            out.extend_from_slice(&sequence.to_le_bytes());
        }
        out.extend_from_slice(stream);
        AppendBuilder {
            out,
            start,
            records: 0,
        }
    }

    /// Adds a record.
    #[inline]
    pub fn record(&mut self, record: &AppendRecord<'_>) {
        let mut flags = if record.tombstone {
            RECORD_TOMBSTONE
        } else {
            0
        };
        match record.condition {
            Condition::None => {}
            Condition::Version(_) => flags |= RECORD_IF_VERSION,
            Condition::New => flags |= RECORD_IF_NEW,
        }
        let word = u64::from(len_u16(record.key))
            | u64::from(record.content_type.code()) << 16
            | u64::from(flags) << 24
            | u64::from(len_u32(record.payload.len())) << 32;
        self.out
            .reserve(RECORD_HEAD_BYTES + record.key.len() + record.payload.len());
        self.out.extend_from_slice(&word.to_le_bytes());
        if let Condition::Version(version) = record.condition {
            self.out.extend_from_slice(&version.to_le_bytes());
        }
        if let ContentType::Other(text) = record.content_type {
            let text_bytes = u8::try_from(text.len()).expect("content type is over 255 bytes");
            self.out.push(text_bytes);
            self.out.extend_from_slice(text);
        }
        self.out.extend_from_slice(record.key);
        self.out.extend_from_slice(record.payload);
        self.records += 1;
    }

    /// Bytes of the frame so far, header included.
    pub fn bytes(&self) -> usize {
        self.out.len() - self.start
    }

    /// Ends the frame and returns how many records it has. The server refuses a frame with none.
    pub fn finish(self) -> u32 {
        let frame_bytes = len_u32(self.bytes());
        let records_at = self.start + FRAME_HEADER_BYTES + 4;
        self.out[self.start..self.start + 4].copy_from_slice(&frame_bytes.to_le_bytes());
        self.out[records_at..records_at + 4].copy_from_slice(&self.records.to_le_bytes());
        self.records
    }
}
