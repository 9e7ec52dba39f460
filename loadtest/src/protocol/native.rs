//! The native protocol: frames from `wire`, answers only peeked at.

use wire::native::{self, AppendBuilder, FrameHeader, REPLY_BIT, Reply, opcode};
use wire::{AppendRecord, Code, Condition, ContentType, Durability};
use xxhash_rust::xxh3::xxh3_64;

use super::{Answer, Dialect, Outcome, Protocol, Seen};
use crate::records::Records;

/// Larger answers are taken for bytes of another protocol.
const ANSWER_BYTES_MAX: u32 = 256 << 20;

/// The native protocol on one connection.
pub struct Native {
    stream: Vec<u8>,
    durability: Durability,
    want_versions: bool,
    content_type: ContentType<'static>,
}

/// The whole answer in `bytes`.
fn parse(bytes: &[u8]) -> Result<Reply<'_>, String> {
    match native::parse_reply(bytes)? {
        Some((_, _, reply, _)) => Ok(reply),
        None => Err("an answer ends before its end".to_owned()),
    }
}

impl Protocol for Native {
    fn new(dialect: &Dialect) -> Native {
        Native {
            stream: dialect.stream.as_bytes().to_vec(),
            durability: dialect.durability,
            want_versions: dialect.want_versions,
            content_type: if dialect.json {
                ContentType::JSON
            } else {
                ContentType::OCTET_STREAM
            },
        }
    }

    #[inline]
    fn append(&mut self, out: &mut Vec<u8>, id: u64, count: u32, records: &mut Records) {
        let mut frame = AppendBuilder::begin(
            out,
            id,
            &self.stream,
            self.durability,
            self.want_versions,
            None,
        );
        for _ in 0..count {
            let (key, payload) = records.deal();
            frame.record(&AppendRecord {
                key,
                payload,
                content_type: self.content_type,
                tombstone: false,
                condition: Condition::None,
            });
        }
        frame.finish();
    }

    #[inline]
    fn get(&mut self, out: &mut Vec<u8>, id: u64, key: &[u8]) {
        native::get(out, id, &self.stream, key);
    }

    #[inline]
    fn history(&mut self, out: &mut Vec<u8>, id: u64, key: &[u8], before: u32, limit: u32) {
        native::history(out, id, &self.stream, key, before, limit);
    }

    #[inline]
    fn answer(&mut self, bytes: &[u8]) -> Result<Option<Answer>, String> {
        let Some((id, op, code, frame_bytes)) = native::peek_reply(bytes) else {
            return match FrameHeader::read(bytes) {
                Some(header)
                    if header.frame_bytes > ANSWER_BYTES_MAX || header.opcode & REPLY_BIT == 0 =>
                {
                    Err(format!(
                        "{header:?} is not the head of an answer: is this the native port?"
                    ))
                }
                _ => Ok(None),
            };
        };
        // An answer to no request.
        if op == 0
            && code != 0
            && let Ok(Reply::Error { refusal, .. }) = parse(bytes)
        {
            return Err(format!(
                "the server ends the connection ({}): {}",
                refusal.code.name(),
                refusal.message
            ));
        }
        if !matches!(op, opcode::APPEND | opcode::GET | opcode::HISTORY) {
            return Err(format!("an answer to opcode {op}, which was not asked"));
        }
        let outcome = match code {
            0 => Outcome::Good,
            code if code == Code::NotFound as u16 => Outcome::NotFound,
            code => Outcome::Refused(code),
        };
        Ok(Some(Answer {
            id,
            outcome,
            bytes: frame_bytes,
        }))
    }

    fn versions(&self, answer: &[u8], versions: &mut Vec<u32>) -> Result<(), String> {
        match parse(answer)? {
            Reply::Append { versions: told, .. } => versions.extend_from_slice(&told),
            other => return Err(format!("{other:?} to an append")),
        }
        Ok(())
    }

    fn newest(&self, answer: &[u8]) -> Result<Seen, String> {
        match parse(answer)? {
            Reply::Get { record, .. } => Ok(Seen {
                version: record.version,
                hash: xxh3_64(record.payload),
            }),
            other => Err(format!("{other:?} to a get")),
        }
    }

    fn listed(&self, answer: &[u8]) -> Result<Vec<Seen>, String> {
        match parse(answer)? {
            Reply::Records { records, .. } => Ok(records
                .iter()
                .map(|record| Seen {
                    version: record.version,
                    hash: xxh3_64(record.payload),
                })
                .collect()),
            other => Err(format!("{other:?} to a history")),
        }
    }

    fn refusal_name(number: u16) -> String {
        Code::from_u16(number)
            .map_or_else(|| format!("code {number}"), |code| code.name().to_owned())
    }
}
