//! The HTTP half of the mock server.

use std::sync::Mutex;

use wire::http::reply::{self, General};
use wire::http::{self, Limits, Parsed, Route};
use wire::native::AppendPart;
use wire::{AppendRecord, Code, Condition, Refusal, ndjson};

use super::{Store, record};

const GENERAL: General = General {
    keep_alive: true,
    unix_seconds: 0,
};

/// Answers every whole request; None: hang up.
pub(super) fn answer_all(input: &[u8], out: &mut Vec<u8>, store: &Mutex<Store>) -> Option<usize> {
    let limits = Limits {
        head_bytes_max: 16 << 10,
        body_bytes_max: 64 << 20,
        payload_bytes_max: 64 << 20,
    };
    let mut consumed = 0;
    loop {
        match http::parse(&input[consumed..], &limits) {
            Parsed::Incomplete { .. } => return Some(consumed),
            Parsed::Request {
                consumed: bytes,
                request,
                ..
            } => {
                let mut store = store.lock().unwrap();
                if store.faults.refuse && matches!(request.route, Route::Append { .. }) {
                    refuse(out, Code::Overloaded);
                } else {
                    answer(out, &request.route, &mut store);
                }
                consumed += bytes;
            }
            Parsed::Refused { .. } => return None,
        }
    }
}

fn answer(out: &mut Vec<u8>, route: &Route<'_>, store: &mut Store) {
    match route {
        Route::Topology => reply::body(
            out,
            GENERAL,
            false,
            200,
            "application/json",
            store.topology().to_json().as_bytes(),
        ),
        Route::Append {
            key,
            body,
            content_type,
            durability,
            ..
        } => {
            let number = store.begin_append();
            let record = AppendRecord {
                key,
                payload: body,
                content_type: *content_type,
                tombstone: false,
                condition: Condition::None,
            };
            let version = store.put(number, &record);
            reply::appended(out, GENERAL, 0, store.lsn, version, *durability);
        }
        Route::AppendMany {
            body, durability, ..
        } => {
            let number = store.begin_append();
            let first_lsn = store.lsn + 1;
            for line in ndjson::lines(body, 1 << 20) {
                let line = line.unwrap();
                let record = AppendRecord {
                    key: line.key.as_bytes(),
                    payload: &line.payload,
                    content_type: line.content_type,
                    tombstone: false,
                    condition: Condition::None,
                };
                store.put(number, &record);
            }
            let records = (store.lsn + 1 - first_lsn) as u32;
            let part = AppendPart {
                log: 0,
                records,
                first_lsn,
                durable_lsn: store.lsn,
            };
            reply::appended_many(out, GENERAL, records.into(), &[part], *durability);
        }
        Route::Get { key, .. } => match store.versions(key, 0).unwrap_or_default().first() {
            Some((version, payload)) => {
                reply::record(out, GENERAL, false, &record(key, *version, payload))
            }
            None => refuse(out, Code::NotFound),
        },
        Route::History {
            key, limit, before, ..
        } => {
            let Some(versions) = store.versions(key, *before) else {
                return refuse(out, Code::NotFound);
            };
            let mut lines = Vec::new();
            for (version, payload) in versions.iter().take(*limit as usize) {
                ndjson::write_record(&mut lines, &record(key, *version, payload));
            }
            reply::ndjson(out, GENERAL, false, &lines, None);
        }
        other => panic!("the mock server has no {other:?}"),
    }
}

fn refuse(out: &mut Vec<u8>, code: Code) {
    let refusal = Refusal {
        code,
        message: "as told".into(),
        retry_after_ms: Some(5),
    };
    reply::refusal(out, GENERAL, false, &refusal, None);
}
