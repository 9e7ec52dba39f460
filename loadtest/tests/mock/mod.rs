//! A server in a thread that speaks just enough: native appends, gets and histories in memory, HTTP replies of a few bytes.
//!
//! Its faults are what the tests are about: it can stall, lose a write that it acknowledged, or hand out other bytes.

#![allow(dead_code, reason = "each test file uses its part")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use wire::native::{self, AppendPart, Limits, Parsed, RecordsReply, ReplyMark, Request, opcode};
use wire::{Code, ContentType, RecordOut, Refusal, ShardRoute, Topology};

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Answers nothing in this span after the first append.
    pub stall: Option<(Duration, Duration)>,
    /// Acknowledges the append with this number (from 0) and forgets it.
    pub lose: Option<u64>,
    /// Reads of the key that the append with this number wrote come with one bit turned.
    pub corrupt: Option<u64>,
    /// Refuses every append.
    pub refuse: bool,
}

/// What was stored: versions are indices from 1; None is a version that was lost.
#[derive(Default)]
struct Store {
    keys: HashMap<Vec<u8>, Vec<Option<Vec<u8>>>>,
    appends: u64,
    lsn: u64,
    corrupted: Option<Vec<u8>>,
    first_append: Option<Instant>,
}

/// Starts the server; it lives as long as the test process.
pub fn start(faults: Faults) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let store = Arc::new(Mutex::new(Store::default()));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let store = store.clone();
            thread::spawn(move || serve(stream.unwrap(), faults, store));
        }
    });
    address
}

fn serve(mut stream: TcpStream, faults: Faults, store: Arc<Mutex<Store>>) {
    stream.set_nodelay(true).unwrap();
    let limits = Limits {
        frame_bytes_max: 64 << 20,
        payload_bytes_max: 1 << 20,
    };
    let mut input = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let Ok(count @ 1..) = stream.read(&mut chunk) else {
            return;
        };
        input.extend_from_slice(&chunk[..count]);
        let mut out = Vec::new();
        let mut read = 0;
        loop {
            match native::parse(&input[read..], &limits) {
                Parsed::Incomplete { .. } => break,
                Parsed::Request {
                    consumed,
                    id,
                    request,
                } => {
                    answer(
                        &mut out,
                        id,
                        &request,
                        faults,
                        &store,
                        stream.local_addr().unwrap(),
                    );
                    read += consumed;
                }
                Parsed::Refused {
                    consumed,
                    id,
                    opcode,
                    refusal,
                } => {
                    native::error_reply(&mut out, id, opcode, ReplyMark::default(), &refusal);
                    read += consumed;
                }
                Parsed::Broken(_) => return,
            }
        }
        input.drain(..read);
        if let Some((after, length)) = faults.stall {
            let first = store.lock().unwrap().first_append;
            if let Some(since) = first.map(|first| first.elapsed())
                && since >= after
                && since < after + length
            {
                thread::sleep(after + length - since);
            }
        }
        if stream.write_all(&out).is_err() {
            return;
        }
    }
}

fn answer(
    out: &mut Vec<u8>,
    id: u64,
    request: &Request<'_>,
    faults: Faults,
    store: &Mutex<Store>,
    address: SocketAddr,
) {
    let mut store = store.lock().unwrap();
    let mark = ReplyMark {
        durable_lsn: store.lsn,
        log: 0,
        epoch: 1,
    };
    match request {
        Request::Hello { .. } | Request::Topology => {
            let topology = Topology {
                store: "mock".into(),
                map_epoch: 1,
                shards: vec![ShardRoute {
                    shard: 0,
                    log: 0,
                    slot_first: 0,
                    slot_last: 16_383,
                    address: address.ip().to_string(),
                    native_port: address.port(),
                }],
            };
            let mut body = Vec::new();
            topology.encode(&mut body);
            native::bytes_reply(out, id, opcode::HELLO, mark, &body);
        }
        Request::Append(_) if faults.refuse => {
            let refusal = Refusal {
                code: Code::Overloaded,
                message: "try later".into(),
                retry_after_ms: Some(5),
            };
            native::error_reply(out, id, opcode::APPEND, mark, &refusal);
        }
        Request::Append(append) => {
            store.first_append.get_or_insert_with(Instant::now);
            let number = store.appends;
            store.appends += 1;
            let first_lsn = store.lsn + 1;
            let mut versions = Vec::new();
            for record in append.iter() {
                store.lsn += 1;
                let lost = faults.lose == Some(number);
                if faults.corrupt == Some(number) {
                    store.corrupted = Some(record.key.to_vec());
                }
                let history = store.keys.entry(record.key.to_vec()).or_default();
                history.push((!lost).then(|| record.payload.to_vec()));
                versions.push(history.len() as u32);
            }
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
        Request::Get { key, .. } => {
            let flip = store.corrupted.as_deref() == Some(*key);
            let newest = store.keys.get(*key).and_then(|history| {
                let version = history.iter().rposition(Option::is_some)?;
                Some((version as u32 + 1, history[version].clone()?))
            });
            match newest {
                Some((version, mut payload)) => {
                    if flip {
                        payload[0] ^= 1;
                    }
                    native::get_reply(out, id, mark, &record(key, version, &payload));
                }
                None => not_found(out, id, opcode::GET, mark),
            }
        }
        Request::History {
            key, before, limit, ..
        } => {
            let Some(history) = store.keys.get(*key) else {
                return not_found(out, id, opcode::HISTORY, mark);
            };
            let mut reply = RecordsReply::begin(out, id, opcode::HISTORY, mark);
            let versions = history
                .iter()
                .enumerate()
                .rev()
                .map(|(index, payload)| (index as u32 + 1, payload));
            let versions = versions.filter(|(version, _)| *before == 0 || version < before);
            for (version, payload) in versions.take(*limit as usize) {
                if let Some(payload) = payload {
                    reply.record(out, &record(key, version, payload));
                }
            }
            reply.finish(out, &[]);
        }
        Request::Ping => native::bytes_reply(out, id, opcode::PING, mark, &[]),
        other => panic!("the mock server has no {other:?}"),
    }
}

fn record<'a>(key: &'a [u8], version: u32, payload: &'a [u8]) -> RecordOut<'a> {
    RecordOut {
        log: 0,
        lsn: 1,
        version,
        timestamp_us: 1,
        tombstone: false,
        content_type: ContentType::OCTET_STREAM,
        key,
        payload,
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
