//! Replies, written by shards and read by clients.
//!
//! Invariants: every reply body starts with the mark of the answering shard; `frame_bytes` is set before a writer
//! returns, except in [`RecordsReply`], whose `finish` sets it. It does not know when a reply may be sent.

use super::{FRAME_HEADER_BYTES, FrameHeader, REPLY_BIT, opcode};
use crate::bytes::{Reader, len_u16, len_u32};
use crate::content_type::OTHER;
use crate::{Code, ContentType, Durability, RecordOut, Refusal, Topology};

const MARK_BYTES: usize = 16;
const PART_BYTES: usize = 24;
const RECORD_HEAD_BYTES: usize = 32;
const RECORD_TOMBSTONE: u8 = 1;
/// `retry_after_ms` of a refusal that a repeat does not change.
const RETRY_NEVER: u32 = u32::MAX;

/// Where the answering shard's log stands: at the start of every reply body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct ReplyMark {
    /// Every record of the log below or at this lsn is on stable storage.
    pub durable_lsn: u64,
    /// Number of the log.
    pub log: u32,
    /// The writer's term.
    pub epoch: u32,
}

/// One per log that the request's records went to, in log order. Records of one request in one log have consecutive lsns, in request order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AppendPart {
    /// Number of the log.
    pub log: u32,
    /// How many of the request's records it got.
    pub records: u32,
    /// lsn of the first of them.
    pub first_lsn: u64,
    /// Durable lsn of that log when it answered.
    pub durable_lsn: u64,
}

/// Header and mark, 32 bytes in one copy. `body_bytes` counts what follows the mark.
#[inline]
fn begin(out: &mut Vec<u8>, id: u64, op: u8, code: Code, mark: ReplyMark, body_bytes: usize) {
    let header = FrameHeader {
        frame_bytes: len_u32(FRAME_HEADER_BYTES + MARK_BYTES + body_bytes),
        opcode: op | REPLY_BIT,
        flags: 0,
        code: code as u16,
        request_id: id,
    };
    let mut start = [0; FRAME_HEADER_BYTES + MARK_BYTES];
    start[..16].copy_from_slice(&header.to_bytes());
    start[16..24].copy_from_slice(&mark.durable_lsn.to_le_bytes());
    start[24..28].copy_from_slice(&mark.log.to_le_bytes());
    start[28..].copy_from_slice(&mark.epoch.to_le_bytes());
    out.reserve(start.len() + body_bytes);
    out.extend_from_slice(&start);
}

/// `versions` in request order; empty unless wanted.
pub fn append_reply(
    out: &mut Vec<u8>,
    id: u64,
    mark: ReplyMark,
    durability: Durability,
    parts: &[AppendPart],
    versions: &[u32],
) {
    let part_count = u16::try_from(parts.len()).expect("one part per shard at most");
    let version_count = len_u32(versions.len());
    let body_bytes = 8 + parts.len() * PART_BYTES + versions.len() * 4;
    begin(out, id, opcode::APPEND, Code::Ok, mark, body_bytes);
    let head =
        u64::from(durability as u8) | u64::from(part_count) << 16 | u64::from(version_count) << 32;
    out.extend_from_slice(&head.to_le_bytes());
    for part in parts {
        let mut bytes = [0; PART_BYTES];
        bytes[..4].copy_from_slice(&part.log.to_le_bytes());
        bytes[4..8].copy_from_slice(&part.records.to_le_bytes());
        bytes[8..16].copy_from_slice(&part.first_lsn.to_le_bytes());
        bytes[16..].copy_from_slice(&part.durable_lsn.to_le_bytes());
        out.extend_from_slice(&bytes);
    }
    for version in versions {
        out.extend_from_slice(&version.to_le_bytes());
    }
}

#[inline]
fn record_bytes(record: &RecordOut<'_>) -> usize {
    let text_bytes = match record.content_type {
        ContentType::Code(_) => 0,
        ContentType::Other(text) => 1 + text.len(),
    };
    RECORD_HEAD_BYTES + text_bytes + record.key.len() + record.payload.len()
}

#[inline]
fn write_record(out: &mut Vec<u8>, record: &RecordOut<'_>) {
    let mut head = [0; RECORD_HEAD_BYTES];
    head[..4].copy_from_slice(&record.log.to_le_bytes());
    head[4..8].copy_from_slice(&record.version.to_le_bytes());
    head[8..16].copy_from_slice(&record.lsn.to_le_bytes());
    head[16..24].copy_from_slice(&record.timestamp_us.to_le_bytes());
    head[24..28].copy_from_slice(&len_u32(record.payload.len()).to_le_bytes());
    head[28..30].copy_from_slice(&len_u16(record.key).to_le_bytes());
    head[30] = record.content_type.code();
    head[31] = if record.tombstone {
        RECORD_TOMBSTONE
    } else {
        0
    };
    out.extend_from_slice(&head);
    if let ContentType::Other(text) = record.content_type {
        out.push(u8::try_from(text.len()).expect("content types have at most 255 bytes"));
        out.extend_from_slice(text);
    }
    out.extend_from_slice(record.key);
    out.extend_from_slice(record.payload);
}

/// The newest record of a key.
pub fn get_reply(out: &mut Vec<u8>, id: u64, mark: ReplyMark, record: &RecordOut<'_>) {
    begin(out, id, opcode::GET, Code::Ok, mark, record_bytes(record));
    write_record(out, record);
}

/// history, scan and tail: a count, records, then a cursor (empty for history). Between begin and finish nothing
/// else may be appended to `out`.
pub struct RecordsReply {
    start: usize,
    records: u32,
}

impl RecordsReply {
    /// Starts a reply at the end of `out`.
    pub fn begin(out: &mut Vec<u8>, id: u64, opcode: u8, mark: ReplyMark) -> RecordsReply {
        let start = out.len();
        begin(out, id, opcode, Code::Ok, mark, 4);
        out.extend_from_slice(&0u32.to_le_bytes());
        RecordsReply { start, records: 0 }
    }

    /// Adds a record.
    pub fn record(&mut self, out: &mut Vec<u8>, record: &RecordOut<'_>) {
        out.reserve(record_bytes(record));
        write_record(out, record);
        self.records += 1;
    }

    /// Bytes of the frame so far.
    pub fn bytes(&self, out: &[u8]) -> usize {
        out.len() - self.start
    }

    /// Ends the reply. `cursor` is the text of the next page's cursor; empty for history.
    pub fn finish(self, out: &mut Vec<u8>, cursor: &[u8]) {
        out.extend_from_slice(&len_u16(cursor).to_le_bytes());
        out.extend_from_slice(cursor);
        let frame_bytes = len_u32(self.bytes(out));
        let count_at = self.start + FRAME_HEADER_BYTES + MARK_BYTES;
        out[self.start..self.start + 4].copy_from_slice(&frame_bytes.to_le_bytes());
        out[count_at..count_at + 4].copy_from_slice(&self.records.to_le_bytes());
    }
}

/// hello and topology (an encoded [`Topology`]), streams (JSON), ping (empty).
pub fn bytes_reply(out: &mut Vec<u8>, id: u64, opcode: u8, mark: ReplyMark, body: &[u8]) {
    begin(out, id, opcode, Code::Ok, mark, body.len());
    out.extend_from_slice(body);
}

/// A refusal. For what could not be read at all, id and opcode are 0. Of the message 64 KiB are sent.
pub fn error_reply(out: &mut Vec<u8>, id: u64, opcode: u8, mark: ReplyMark, refusal: &Refusal) {
    let text = refusal.message.as_bytes();
    let text = &text[..text.len().min(usize::from(u16::MAX))];
    begin(out, id, opcode, refusal.code, mark, 6 + text.len());
    let retry = refusal.retry_after_ms.unwrap_or(RETRY_NEVER);
    out.extend_from_slice(&retry.to_le_bytes());
    out.extend_from_slice(&len_u16(text).to_le_bytes());
    out.extend_from_slice(text);
}

/// A reply, borrowed from the received bytes.
#[derive(Debug)]
pub enum Reply<'a> {
    /// To hello.
    Hello {
        /// Where the shard stands.
        mark: ReplyMark,
        /// Who serves which slots.
        topology: Topology,
    },
    /// To append.
    Append {
        /// Where the shard stands.
        mark: ReplyMark,
        /// What the ack means.
        durability: Durability,
        /// Where the records went, by log.
        parts: Vec<AppendPart>,
        /// A version per record, where they were wanted.
        versions: Vec<u32>,
    },
    /// To get.
    Get {
        /// Where the shard stands.
        mark: ReplyMark,
        /// The newest record.
        record: RecordOut<'a>,
    },
    /// To history, scan and tail.
    Records {
        /// Where the shard stands.
        mark: ReplyMark,
        /// In the order that the request promises.
        records: Vec<RecordOut<'a>>,
        /// For the next page; empty for history.
        cursor: &'a [u8],
    },
    /// To topology (read it with [`Topology::decode`]), streams and ping.
    Bytes {
        /// Where the shard stands.
        mark: ReplyMark,
        /// What follows the mark.
        body: &'a [u8],
    },
    /// A refusal of any request.
    Error {
        /// Where the shard stands.
        mark: ReplyMark,
        /// Why.
        refusal: Refusal,
    },
}

/// Ok(None): not whole yet. (id, opcode without 0x80, reply, consumed). Err: the server broke the protocol.
pub fn parse_reply<'a>(bytes: &'a [u8]) -> Result<Option<(u64, u8, Reply<'a>, usize)>, String> {
    let Some(header) = FrameHeader::read(bytes) else {
        return Ok(None);
    };
    let frame_bytes = header.frame_bytes as usize;
    if frame_bytes < FRAME_HEADER_BYTES + MARK_BYTES {
        return Err(format!(
            "reply of {frame_bytes} bytes is shorter than its header and mark"
        ));
    }
    if header.opcode & REPLY_BIT == 0 {
        return Err(format!("opcode {} is not that of a reply", header.opcode));
    }
    let Some(frame) = bytes.get(..frame_bytes) else {
        return Ok(None);
    };
    let op = header.opcode & !REPLY_BIT;
    let mut body = Reader::new(&frame[FRAME_HEADER_BYTES..]);
    let reply = if header.code == 0 {
        good_reply(op, &mut body)
    } else {
        let code = Code::from_u16(header.code)
            .ok_or_else(|| format!("refusal has unknown code {}", header.code))?;
        refused_reply(code, &mut body)
    };
    let reply = reply.ok_or_else(|| format!("reply to opcode {op} does not hold its fields"))?;
    if !body.is_empty() {
        return Err(format!(
            "reply to opcode {op} goes on for {} bytes behind its fields",
            body.rest.len()
        ));
    }
    Ok(Some((header.request_id, op, reply, frame_bytes)))
}

fn read_mark(body: &mut Reader<'_>) -> Option<ReplyMark> {
    Some(ReplyMark {
        durable_lsn: body.u64()?,
        log: body.u32()?,
        epoch: body.u32()?,
    })
}

fn good_reply<'a>(op: u8, body: &mut Reader<'a>) -> Option<Reply<'a>> {
    let mark = read_mark(body)?;
    Some(match op {
        opcode::HELLO => {
            let topology = Topology::decode(body.rest)?;
            body.rest = &[];
            Reply::Hello { mark, topology }
        }
        opcode::APPEND => {
            let durability = Durability::from_u8(body.u8()?)?;
            let _reserved = body.u8()?;
            let part_count = usize::from(body.u16()?);
            let version_count = body.u32()? as usize;
            // Lengths first, so that a made-up count reserves nothing.
            let part_bytes = body.bytes(part_count.checked_mul(PART_BYTES)?)?;
            let version_bytes = body.bytes(version_count.checked_mul(4)?)?;
            let parts = part_bytes
                .chunks_exact(PART_BYTES)
                .map(|bytes| {
                    let mut fields = Reader::new(bytes);
                    Some(AppendPart {
                        log: fields.u32()?,
                        records: fields.u32()?,
                        first_lsn: fields.u64()?,
                        durable_lsn: fields.u64()?,
                    })
                })
                .collect::<Option<Vec<_>>>()?;
            let versions = version_bytes
                .chunks_exact(4)
                .map(|bytes| Reader::new(bytes).u32())
                .collect::<Option<Vec<_>>>()?;
            Reply::Append {
                mark,
                durability,
                parts,
                versions,
            }
        }
        opcode::GET => Reply::Get {
            mark,
            record: read_record(body)?,
        },
        opcode::HISTORY | opcode::SCAN | opcode::TAIL => {
            let count = body.u32()? as usize;
            if count > body.rest.len() / RECORD_HEAD_BYTES {
                return None;
            }
            let mut records = Vec::with_capacity(count);
            for _ in 0..count {
                records.push(read_record(body)?);
            }
            let cursor_bytes = body.u16()?;
            Reply::Records {
                mark,
                records,
                cursor: body.bytes(usize::from(cursor_bytes))?,
            }
        }
        _ => Reply::Bytes {
            mark,
            body: std::mem::take(&mut body.rest),
        },
    })
}

fn refused_reply<'a>(code: Code, body: &mut Reader<'a>) -> Option<Reply<'a>> {
    let mark = read_mark(body)?;
    let retry = body.u32()?;
    let text_bytes = body.u16()?;
    let text = body.bytes(usize::from(text_bytes))?;
    Some(Reply::Error {
        mark,
        refusal: Refusal {
            code,
            message: String::from_utf8_lossy(text).into_owned(),
            retry_after_ms: (retry != RETRY_NEVER).then_some(retry),
        },
    })
}

fn read_record<'a>(body: &mut Reader<'a>) -> Option<RecordOut<'a>> {
    let [log, version] = [body.u32()?, body.u32()?];
    let [lsn, timestamp_us] = [body.u64()?, body.u64()?];
    let payload_bytes = body.u32()? as usize;
    let key_bytes = usize::from(body.u16()?);
    let code = body.u8()?;
    let flags = body.u8()?;
    let content_type = if code == OTHER {
        let text_bytes = body.u8()?;
        ContentType::Other(body.bytes(usize::from(text_bytes))?)
    } else {
        ContentType::Code(code)
    };
    Some(RecordOut {
        log,
        lsn,
        version,
        timestamp_us,
        tombstone: flags & RECORD_TOMBSTONE != 0,
        content_type,
        key: body.bytes(key_bytes)?,
        payload: body.bytes(payload_bytes)?,
    })
}

/// Cheap look at a reply for load generators: (id, opcode, code, frame_bytes); `None` when it is not whole yet.
/// The opcode comes without 0x80.
#[inline]
pub fn peek_reply(bytes: &[u8]) -> Option<(u64, u8, u16, usize)> {
    let header = FrameHeader::read(bytes)?;
    let frame_bytes = header.frame_bytes as usize;
    if frame_bytes > bytes.len() {
        return None;
    }
    Some((
        header.request_id,
        header.opcode & !REPLY_BIT,
        header.code,
        // A length below the header is a broken server's; taking the header off keeps the caller moving.
        frame_bytes.max(FRAME_HEADER_BYTES),
    ))
}
