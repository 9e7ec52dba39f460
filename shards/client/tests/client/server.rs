//! A server of two shards in this process: it stores what the client sends, counts producer sequences as the real one does,
//! and fails on cue. It knows the wire's own codec, and nothing of the engine.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use client::{Client, Code, ConnectOptions, ContentType, Refusal};
use wire::native::{
    self, Append, AppendPart, Limits, Parsed, RecordsReply, ReplyMark, Request, opcode,
};
use wire::slot::{SLOTS, slot_of};
use wire::{RecordOut, ShardRoute, Topology};

const LOGS: [u32; 2] = [10, 11];

/// What is to go wrong with an append, by the order in which appends reach a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Stored, but the connection ends before the answer.
    LoseAnswer,
    /// The connection ends before it is stored.
    LoseRequest,
    /// Refused.
    Refuse(Code),
    /// The connection is refused as a whole, and ends.
    TurnAway(Code),
    /// Never answered.
    Silence,
}

type Stored = (AppendPart, Vec<u32>);

#[derive(Default)]
pub struct Log {
    stored: Vec<(Vec<u8>, Vec<u8>)>,
    arrived: u64,
    next_sequence: HashMap<u128, u64>,
    /// By producer and sequence: the request's body and its answer.
    answers: HashMap<(u128, u64), (Vec<u8>, Stored)>,
    pub connections: u64,
}

pub struct Server {
    pub shared: SocketAddr,
    ports: Vec<u16>,
    pub logs: Vec<Mutex<Log>>,
    /// (log index, arrival) -> fault
    faults: Mutex<HashMap<(usize, u64), Fault>>,
}

impl Server {
    /// `own_ports`: shards can be reached on ports of their own.
    pub fn start(own_ports: bool, faults: &[((usize, u64), Fault)]) -> Arc<Server> {
        let listeners: Vec<TcpListener> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect();
        let ports: Vec<u16> = listeners
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        let server = Arc::new(Server {
            shared: listeners[0].local_addr().unwrap(),
            ports: if own_ports {
                ports[1..].to_vec()
            } else {
                vec![1, 1]
            },
            logs: vec![Mutex::default(), Mutex::default()],
            faults: Mutex::new(faults.iter().cloned().collect()),
        });
        for (port, listener) in listeners.into_iter().enumerate() {
            let server = server.clone();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let server = server.clone();
                    if port > 0 {
                        server.logs[port - 1].lock().unwrap().connections += 1;
                    }
                    thread::spawn(move || server.serve(stream.unwrap()));
                }
            });
        }
        server
    }

    pub fn connect(&self, options: ConnectOptions) -> Client {
        Client::connect(&self.shared.to_string(), options).unwrap()
    }

    pub fn payloads(&self, log: usize) -> Vec<String> {
        let log = self.logs[log].lock().unwrap();
        log.stored
            .iter()
            .map(|(_, payload)| String::from_utf8(payload.clone()).unwrap())
            .collect()
    }

    fn serve(&self, mut stream: TcpStream) {
        let limits = Limits {
            frame_bytes_max: 1 << 26,
            payload_bytes_max: 1 << 20,
        };
        let (mut input, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
        loop {
            let Ok(count @ 1..) = stream.read(&mut chunk) else {
                return;
            };
            input.extend_from_slice(&chunk[..count]);
            let (mut out, mut read) = (Vec::new(), 0);
            let mut ended = false;
            while !ended {
                match native::parse(&input[read..], &limits) {
                    Parsed::Incomplete { .. } => break,
                    Parsed::Request {
                        consumed,
                        id,
                        request,
                    } => {
                        read += consumed;
                        ended = !self.answer(&mut out, id, &request);
                    }
                    other => panic!("{other:?}"),
                }
            }
            input.drain(..read);
            if stream.write_all(&out).is_err() || ended {
                return;
            }
        }
    }

    fn topology(&self) -> Topology {
        let route = |shard: u16| ShardRoute {
            shard,
            log: LOGS[usize::from(shard)],
            slot_first: shard * (SLOTS / 2),
            slot_last: (shard + 1) * (SLOTS / 2) - 1,
            address: "127.0.0.1".into(),
            native_port: self.ports[usize::from(shard)],
        };
        Topology {
            store: "mock".into(),
            map_epoch: 1,
            shards: vec![route(0), route(1)],
        }
    }

    /// False: the connection ends.
    fn answer(&self, out: &mut Vec<u8>, id: u64, request: &Request<'_>) -> bool {
        let mark = ReplyMark::default();
        match request {
            Request::Hello {
                token: b"wrong", ..
            } => {
                let refusal = Refusal {
                    code: Code::Unauthorized,
                    message: "wrong token".into(),
                    retry_after_ms: None,
                };
                native::error_reply(out, id, opcode::HELLO, mark, &refusal);
            }
            Request::Hello { .. } => {
                let mut body = Vec::new();
                self.topology().encode(&mut body);
                native::bytes_reply(out, id, opcode::HELLO, mark, &body);
            }
            Request::Append(append) => return self.append(out, id, append),
            Request::Get { key, .. } => {
                let log = self.logs[log_of(key)].lock().unwrap();
                let versions: Vec<_> = log
                    .stored
                    .iter()
                    .filter(|(stored, _)| stored == key)
                    .collect();
                match versions.last() {
                    Some((_, payload)) => native::get_reply(
                        out,
                        id,
                        mark,
                        &record(key, versions.len() as u32, payload),
                    ),
                    None => {
                        let refusal = Refusal {
                            code: Code::NotFound,
                            message: "none".into(),
                            retry_after_ms: None,
                        };
                        native::error_reply(out, id, opcode::GET, mark, &refusal);
                    }
                }
            }
            Request::Scan { cursor, limit, .. } => {
                let from = std::str::from_utf8(cursor).unwrap().parse().unwrap_or(0);
                let logs: Vec<_> = self.logs.iter().map(|log| log.lock().unwrap()).collect();
                let all: Vec<_> = logs.iter().flat_map(|log| &log.stored).collect();
                let page = &all[from..all.len().min(from + *limit as usize)];
                let mut reply = RecordsReply::begin(out, id, opcode::SCAN, mark);
                for (key, payload) in page {
                    reply.record(out, &record(key, 1, payload));
                }
                reply.finish(out, (from + page.len()).to_string().as_bytes());
            }
            Request::Ping => native::bytes_reply(out, id, opcode::PING, mark, &[]),
            Request::Streams => native::bytes_reply(out, id, opcode::STREAMS, mark, b"[]"),
            other => panic!("the mock server has no {other:?}"),
        }
        true
    }

    fn append(&self, out: &mut Vec<u8>, id: u64, append: &Append<'_>) -> bool {
        let index = log_of(append.iter().next().unwrap().key);
        assert!(
            append.iter().all(|record| log_of(record.key) == index),
            "a frame keeps to one log"
        );
        let mut log = self.logs[index].lock().unwrap();
        let fault = self.faults.lock().unwrap().remove(&(index, log.arrived));
        log.arrived += 1;
        let said = |code| Refusal {
            code,
            message: "as told".into(),
            retry_after_ms: Some(1),
        };
        let refuse = |out: &mut Vec<u8>, code| {
            native::error_reply(out, id, opcode::APPEND, ReplyMark::default(), &said(code));
            true
        };
        match &fault {
            Some(Fault::LoseRequest) => return false,
            Some(Fault::TurnAway(code)) => {
                native::error_reply(out, 0, 0, ReplyMark::default(), &said(*code));
                return false;
            }
            Some(Fault::Silence) => return true,
            Some(Fault::Refuse(code)) => return refuse(out, *code),
            Some(Fault::LoseAnswer) | None => {}
        }
        let (part, versions) = match append.producer {
            Some(producer) => {
                let key = (producer.id, producer.sequence);
                let next = log.next_sequence.get(&producer.id).copied().unwrap_or(1);
                match log.answers.get(&key) {
                    Some((body, _)) if body != append.body() => {
                        return refuse(out, Code::IdempotencyMismatch);
                    }
                    Some((_, stored)) => stored.clone(),
                    None if producer.sequence != next => {
                        return refuse(out, Code::SequenceOutOfOrder);
                    }
                    None => {
                        let stored = log.store(LOGS[index], append);
                        log.next_sequence.insert(producer.id, next + 1);
                        log.answers
                            .insert(key, (append.body().to_vec(), stored.clone()));
                        stored
                    }
                }
            }
            None => log.store(LOGS[index], append),
        };
        if fault == Some(Fault::LoseAnswer) {
            return false;
        }
        let versions: &[u32] = if append.want_versions { &versions } else { &[] };
        native::append_reply(
            out,
            id,
            ReplyMark::default(),
            append.durability,
            &[part],
            versions,
        );
        true
    }
}

impl Log {
    fn store(&mut self, log: u32, append: &Append<'_>) -> Stored {
        let first_lsn = self.stored.len() as u64 + 1;
        let mut versions = Vec::new();
        for record in append.iter() {
            self.stored
                .push((record.key.to_vec(), record.payload.to_vec()));
            versions.push(
                self.stored
                    .iter()
                    .filter(|(key, _)| key == record.key)
                    .count() as u32,
            );
        }
        (
            AppendPart {
                log,
                records: append.records,
                first_lsn,
                durable_lsn: self.stored.len() as u64,
            },
            versions,
        )
    }
}

fn log_of(key: &[u8]) -> usize {
    usize::from(slot_of(key) >= SLOTS / 2)
}

fn record<'a>(key: &'a [u8], version: u32, payload: &'a [u8]) -> RecordOut<'a> {
    let content_type = ContentType::TEXT_PLAIN;
    RecordOut {
        log: 10,
        lsn: 1,
        version,
        timestamp_us: 1,
        tombstone: false,
        content_type,
        key,
        payload,
    }
}
