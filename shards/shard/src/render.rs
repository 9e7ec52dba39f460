//! Outcomes as bytes of the asker's protocol. Knows both protocols' words and nothing of how an outcome came about.

use wire::http::Verdict;
use wire::http::reply::General;
use wire::native::{self, AppendPart, ReplyMark};
use wire::{Cursor, Durability, RecordOut, Refusal, http, ndjson};

use crate::hop::StreamInfo;
use crate::jobs::{AppendForm, Voice};
use crate::records::RecordSet;

/// When a reply is made.
#[derive(Clone, Copy)]
pub struct Moment {
    /// The answering log's watermark.
    pub mark: ReplyMark,
    pub wall_us: u64,
}

impl Moment {
    /// What HTTP says in every head.
    pub fn general(self, keep_alive: bool) -> General {
        General {
            keep_alive,
            unix_seconds: self.wall_us / 1_000_000,
        }
    }
}

pub fn refusal(
    out: &mut Vec<u8>,
    voice: &Voice,
    now: Moment,
    refusal: &Refusal,
    allow: Option<&str>,
) {
    match *voice {
        Voice::Native { id, opcode } => native::error_reply(out, id, opcode, now.mark, refusal),
        Voice::Http { keep_alive, head } => {
            http::reply::refusal(out, now.general(keep_alive), head, refusal, allow)
        }
    }
}

pub fn appended(
    out: &mut Vec<u8>,
    voice: &Voice,
    now: Moment,
    durability: Durability,
    form: AppendForm,
    parts: &[AppendPart],
    versions: &[u32],
) {
    match *voice {
        Voice::Native { id, .. } => {
            native::append_reply(out, id, now.mark, durability, parts, versions)
        }
        Voice::Http { keep_alive, .. } => {
            let first = &parts[0];
            let version = versions.first().copied().unwrap_or(0);
            match form {
                AppendForm::One => http::reply::appended(
                    out,
                    now.general(keep_alive),
                    first.log,
                    first.first_lsn,
                    version,
                    durability,
                ),
                AppendForm::Delete => http::reply::no_content(
                    out,
                    now.general(keep_alive),
                    first.log,
                    first.first_lsn,
                    version,
                    durability,
                ),
                AppendForm::Many => {
                    let records = parts.iter().map(|p| u64::from(p.records)).sum();
                    http::reply::appended_many(
                        out,
                        now.general(keep_alive),
                        records,
                        parts,
                        durability,
                    );
                }
            }
        }
    }
}

pub fn record(
    out: &mut Vec<u8>,
    voice: &Voice,
    now: Moment,
    record: &RecordOut<'_>,
    verdict: &Verdict,
) {
    match *voice {
        Voice::Native { id, .. } => native::get_reply(out, id, now.mark, record),
        Voice::Http { keep_alive, .. } if *verdict == Verdict::NotModified => {
            http::reply::not_modified(out, now.general(keep_alive), record.version);
        }
        Voice::Http { keep_alive, head } => {
            http::reply::record(out, now.general(keep_alive), head, record)
        }
    }
}

pub fn records(
    out: &mut Vec<u8>,
    voice: &Voice,
    now: Moment,
    sets: &[RecordSet],
    cursor: Option<&Cursor>,
) {
    match *voice {
        Voice::Native { id, opcode } => {
            let mut reply = native::RecordsReply::begin(out, id, opcode, now.mark);
            for record in sets.iter().flat_map(RecordSet::iter) {
                reply.record(out, &record);
            }
            let cursor = cursor.map(Cursor::encode).unwrap_or_default();
            reply.finish(out, cursor.as_bytes());
        }
        Voice::Http { keep_alive, head } => {
            let mut lines = Vec::new();
            for record in sets.iter().flat_map(RecordSet::iter) {
                ndjson::write_record(&mut lines, &record);
            }
            http::reply::ndjson(out, now.general(keep_alive), head, &lines, cursor);
        }
    }
}

/// One server-sent event per record. The cursor behind all of them is the id of the last: who loses the connection before that
/// is sent these events again, and none is left out.
pub fn events(out: &mut Vec<u8>, sets: &[RecordSet], cursor: &Cursor) {
    let mut line = Vec::new();
    let mut records = sets.iter().flat_map(RecordSet::iter).peekable();
    while let Some(record) = records.next() {
        line.clear();
        ndjson::write_record(&mut line, &record);
        let id = records.peek().is_none().then_some(cursor);
        http::reply::event(out, id, line.trim_ascii_end());
    }
    if sets.is_empty() {
        // A comment line keeps proxies from closing a quiet stream.
        out.extend_from_slice(b": no news\n\n");
    }
}

pub fn body(
    out: &mut Vec<u8>,
    voice: &Voice,
    now: Moment,
    status: u16,
    content_type: &str,
    body: &[u8],
) {
    match *voice {
        Voice::Native { id, opcode } => native::bytes_reply(out, id, opcode, now.mark, body),
        Voice::Http { keep_alive, head } => http::reply::body(
            out,
            now.general(keep_alive),
            head,
            status,
            content_type,
            body,
        ),
    }
}

/// Counts of one stream, or of all, summed over the logs. None: the one asked for does not exist.
pub fn streams(found: &[StreamInfo], only: Option<&[u8]>) -> Option<String> {
    let mut sums: std::collections::BTreeMap<&[u8], StreamInfo> = std::collections::BTreeMap::new();
    for info in found
        .iter()
        .filter(|i| only.is_none_or(|name| name == i.name))
    {
        let sum = sums.entry(&info.name).or_insert_with(|| StreamInfo {
            records: 0,
            payload_bytes: 0,
            keys: 0,
            ..info.clone()
        });
        sum.records += info.records;
        sum.payload_bytes += info.payload_bytes;
        sum.keys += info.keys;
    }
    let json = |i: &StreamInfo| {
        serde_json::json!({
            "stream": String::from_utf8_lossy(&i.name), "records": i.records, "payload_bytes": i.payload_bytes,
            "keys": i.keys, "policy": i.policy,
        })
    };
    let value = match only {
        Some(_) => json(sums.values().next()?),
        None => serde_json::json!({ "streams": sums.values().map(json).collect::<Vec<_>>() }),
    };
    Some(format!("{value}\n"))
}
