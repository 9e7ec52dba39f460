//! The native half of the mock server.

use std::sync::Mutex;

use wire::native::{self, AppendPart, Limits, Parsed, RecordsReply, ReplyMark, Request, opcode};
use wire::{Code, Refusal};

use super::{Store, record};

/// Answers every whole request; None: hang up.
pub(super) fn answer_all(input: &[u8], out: &mut Vec<u8>, store: &Mutex<Store>) -> Option<usize> {
    let limits = Limits {
        frame_bytes_max: 64 << 20,
        payload_bytes_max: 1 << 20,
    };
    let mut consumed = 0;
    loop {
        match native::parse(&input[consumed..], &limits) {
            Parsed::Incomplete { .. } => return Some(consumed),
            Parsed::Request {
                consumed: bytes,
                id,
                request,
            } => {
                answer(out, id, &request, &mut store.lock().unwrap());
                consumed += bytes;
            }
            Parsed::Refused {
                consumed: bytes,
                id,
                opcode,
                refusal,
            } => {
                native::error_reply(out, id, opcode, ReplyMark::default(), &refusal);
                consumed += bytes;
            }
            Parsed::Broken(_) => return None,
        }
    }
}

fn answer(out: &mut Vec<u8>, id: u64, request: &Request<'_>, store: &mut Store) {
    let mark = ReplyMark {
        durable_lsn: store.lsn,
        log: 0,
        epoch: 1,
    };
    match request {
        Request::Hello { .. } => {
            let mut body = Vec::new();
            store.topology().encode(&mut body);
            native::bytes_reply(out, id, opcode::HELLO, mark, &body);
        }
        Request::Append(_) if store.faults.refuse => {
            let refusal = Refusal {
                code: Code::Overloaded,
                message: "try later".into(),
                retry_after_ms: Some(5),
            };
            native::error_reply(out, id, opcode::APPEND, mark, &refusal);
        }
        Request::Append(append) => {
            let number = store.begin_append();
            let first_lsn = store.lsn + 1;
            let versions: Vec<u32> = append
                .iter()
                .map(|record| store.put(number, &record))
                .collect();
            let part = AppendPart {
                log: 0,
                records: append.records,
                first_lsn,
                durable_lsn: store.lsn,
            };
            let versions = if append.want_versions {
                versions.as_slice()
            } else {
                &[]
            };
            native::append_reply(out, id, mark, append.durability, &[part], versions);
        }
        Request::Get { key, .. } => match store.versions(key, 0).unwrap_or_default().first() {
            Some((version, payload)) => {
                native::get_reply(out, id, mark, &record(key, *version, payload))
            }
            None => not_found(out, id, opcode::GET, mark),
        },
        Request::History {
            key, before, limit, ..
        } => {
            let Some(versions) = store.versions(key, *before) else {
                return not_found(out, id, opcode::HISTORY, mark);
            };
            let mut reply = RecordsReply::begin(out, id, opcode::HISTORY, mark);
            for (version, payload) in versions.iter().take(*limit as usize) {
                reply.record(out, &record(key, *version, payload));
            }
            reply.finish(out, &[]);
        }
        other => panic!("the mock server has no {other:?}"),
    }
}

fn not_found(out: &mut Vec<u8>, id: u64, op: u8, mark: ReplyMark) {
    let refusal = Refusal {
        code: Code::NotFound,
        message: "no such key".into(),
        retry_after_ms: None,
    };
    native::error_reply(out, id, op, mark, &refusal);
}
