//! The client against a small server with two shards that counts producer sequences as the real one does, and fails on cue.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use client::{
    Client, Code, Condition, ConnectOptions, ContentType, Durability, Error, Record, Refusal,
};
use wire::native::{
    self, Append, AppendPart, Limits, Parsed, RecordsReply, ReplyMark, Request, opcode,
};
use wire::slot::{SLOTS, slot_of};
use wire::{RecordOut, ShardRoute, Topology};

const LOGS: [u32; 2] = [10, 11];

/// What is to go wrong with an append, by the order in which appends reach a log.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Fault {
    /// Stored, but the connection ends before the answer.
    LoseAnswer,
    /// The connection ends before it is stored.
    LoseRequest,
    /// Refused.
    Refuse(Code),
    /// Never answered.
    Silence,
}

type Stored = (AppendPart, Vec<u32>);

#[derive(Default)]
struct Log {
    stored: Vec<(Vec<u8>, Vec<u8>)>,
    arrived: u64,
    next_sequence: HashMap<u128, u64>,
    /// By producer and sequence: the request's body and its answer.
    answers: HashMap<(u128, u64), (Vec<u8>, Stored)>,
    connections: u64,
}

struct Server {
    shared: SocketAddr,
    ports: Vec<u16>,
    logs: Vec<Mutex<Log>>,
    /// (log index, arrival) -> fault
    faults: Mutex<HashMap<(usize, u64), Fault>>,
}

impl Server {
    /// `own_ports`: shards can be reached on ports of their own.
    fn start(own_ports: bool, faults: &[((usize, u64), Fault)]) -> Arc<Server> {
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

    fn connect(&self, options: ConnectOptions) -> Client {
        Client::connect(&self.shared.to_string(), options).unwrap()
    }

    fn payloads(&self, log: usize) -> Vec<String> {
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
        let refuse = |out: &mut Vec<u8>, code| {
            let refusal = Refusal {
                code,
                message: "as told".into(),
                retry_after_ms: Some(1),
            };
            native::error_reply(out, id, opcode::APPEND, ReplyMark::default(), &refusal);
            true
        };
        match &fault {
            Some(Fault::LoseRequest) => return false,
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

fn new<'a>(key: &'a str, payload: &'a str) -> Record<'a> {
    let content_type = ContentType::TEXT_PLAIN;
    Record {
        key: key.as_bytes(),
        payload: payload.as_bytes(),
        content_type,
        tombstone: false,
        condition: Condition::None,
    }
}

/// `foo` has slot 12182 and so log 11, `bar` has slot 5061 and so log 10.
const FIRST: &str = "bar";
const SECOND: &str = "foo";

fn producer() -> ConnectOptions {
    ConnectOptions {
        producer_id: Some(7),
        timeout: Duration::from_secs(5),
        ..ConnectOptions::default()
    }
}

#[test]
fn records_go_to_their_shards_and_the_ack_is_put_together_in_order() {
    let server = Server::start(true, &[]);
    let mut client = server.connect(ConnectOptions::default());
    assert_eq!(client.shard_connections(), 2);
    let ack = client
        .append(
            "s",
            &[
                new(SECOND, "1"),
                new(FIRST, "2"),
                new(SECOND, "3"),
                new(FIRST, "4"),
                new(FIRST, "5"),
            ],
        )
        .unwrap();
    assert_eq!(ack.versions, [1, 1, 2, 2, 3]);
    assert_eq!(
        ack.parts
            .iter()
            .map(|part| (part.log, part.records))
            .collect::<Vec<_>>(),
        [(10, 3), (11, 2)]
    );
    assert_eq!(ack.durability, Durability::Durable);
    assert_eq!(
        (server.payloads(0), server.payloads(1)),
        (
            vec!["2".into(), "4".into(), "5".into()],
            vec!["1".into(), "3".into()]
        )
    );
    let connections: Vec<u64> = server
        .logs
        .iter()
        .map(|log| log.lock().unwrap().connections)
        .collect();
    assert_eq!(connections, [1, 1]);
}

#[test]
fn shards_that_cannot_be_reached_are_served_over_the_shared_port() {
    let server = Server::start(false, &[]);
    let mut client = server.connect(producer());
    assert_eq!(client.shard_connections(), 0);
    for round in 1..=3 {
        let ack = client
            .append("s", &[new(FIRST, "a"), new(SECOND, "b")])
            .unwrap();
        assert_eq!(ack.versions, [round, round]);
    }
    assert_eq!(
        client.sequences(),
        [(10, 4), (11, 4)],
        "a frame each, so that each log counts its own"
    );
}

#[test]
fn reads_find_what_was_written() {
    let server = Server::start(true, &[]);
    let mut client = server.connect(ConnectOptions {
        want_versions: false,
        ..ConnectOptions::default()
    });
    for number in 0..7 {
        let payload = number.to_string();
        let ack = client
            .append(
                "s",
                &[new(if number % 2 == 0 { FIRST } else { SECOND }, &payload)],
            )
            .unwrap();
        assert!(ack.versions.is_empty());
    }
    let newest = client.get("s", FIRST.as_bytes()).unwrap().unwrap();
    assert_eq!(
        (
            newest.version,
            newest.payload.as_slice(),
            newest.content_type.as_str()
        ),
        (4, &b"6"[..], "text/plain")
    );
    assert_eq!(client.get("s", b"nothing").unwrap(), None);
    let mut scan = client.scan("s", 3);
    assert_eq!(
        scan.by_ref()
            .map(|record| record.unwrap().payload[0])
            .collect::<Vec<_>>(),
        *b"0246135"
    );
    assert_eq!(scan.cursor(), b"7");
    client.ping().unwrap();
    assert_eq!(client.streams().unwrap(), "[]");
}

#[test]
fn appends_in_flight_are_bounded_and_each_ends_once() {
    let server = Server::start(true, &[]);
    let mut client = server.connect(ConnectOptions {
        window: 4,
        ..ConnectOptions::default()
    });
    let mut tickets = Vec::new();
    for number in 0..100 {
        let payload = number.to_string();
        tickets.push(client.send_append("s", &[new(FIRST, &payload)]).unwrap());
    }
    let middle = client.wait(tickets[50]).unwrap();
    assert_eq!(middle.versions, [51]);
    let mut ended: Vec<_> = std::iter::from_fn(|| client.recv())
        .map(|(ticket, ack)| ack.map(|_| ticket).unwrap())
        .collect();
    ended.push(tickets[50]);
    ended.sort();
    assert_eq!(ended, tickets);
    assert_eq!((client.in_flight(), client.poll().is_none()), (0, true));
    assert!(matches!(client.wait(tickets[50]), Err(Error::Usage(_))));
}

#[test]
fn a_producer_stores_every_append_once_whatever_is_lost() {
    for fault in [
        Fault::LoseAnswer,
        Fault::LoseRequest,
        Fault::Refuse(Code::Overloaded),
    ] {
        let server = Server::start(
            true,
            &[
                ((0, 3), fault.clone()),
                ((0, 9), fault.clone()),
                ((1, 0), fault.clone()),
            ],
        );
        let mut client = server.connect(producer());
        let payloads: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        for payload in &payloads {
            client
                .send_append("s", &[new(FIRST, payload), new(SECOND, payload)])
                .unwrap();
        }
        let acks: Vec<_> = std::iter::from_fn(|| client.recv()).collect();
        assert_eq!(acks.len(), 40, "{fault:?}");
        for (_, ack) in acks {
            ack.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        }
        assert_eq!(
            (server.payloads(0), server.payloads(1)),
            (payloads.clone(), payloads),
            "{fault:?}"
        );
        assert_eq!(client.sequences(), [(10, 41), (11, 41)]);
    }
}

#[test]
fn a_refused_append_does_not_hold_up_those_behind_it() {
    let server = Server::start(true, &[((0, 2), Fault::Refuse(Code::ConditionFailed))]);
    let mut client = server.connect(producer());
    let payloads: Vec<String> = (0..6).map(|number| number.to_string()).collect();
    for payload in &payloads {
        client.send_append("s", &[new(FIRST, payload)]).unwrap();
    }
    let refused: Vec<_> = std::iter::from_fn(|| client.recv())
        .filter_map(|(_, ack)| ack.err())
        .collect();
    assert_eq!(
        refused.iter().map(Error::code).collect::<Vec<_>>(),
        [Some(Code::ConditionFailed)]
    );
    assert_eq!(server.payloads(0), ["0", "1", "3", "4", "5"]);
    client.append("s", &[new(FIRST, "6")]).unwrap();
    assert_eq!(server.payloads(0).last().unwrap(), "6");
}

#[test]
fn without_a_producer_id_a_lost_answer_is_told_and_the_client_goes_on() {
    let server = Server::start(true, &[((0, 1), Fault::LoseAnswer)]);
    let mut client = server.connect(ConnectOptions::default());
    client.append("s", &[new(FIRST, "0")]).unwrap();
    assert!(matches!(
        client.append("s", &[new(FIRST, "1")]),
        Err(Error::Lost { .. })
    ));
    client.append("s", &[new(FIRST, "2")]).unwrap();
    assert_eq!(server.payloads(0), ["0", "1", "2"]);
}

#[test]
fn silence_ends_with_the_timeout_and_the_sequence_is_not_used_again() {
    let server = Server::start(true, &[((0, 0), Fault::Silence)]);
    let mut client = server.connect(ConnectOptions {
        timeout: Duration::from_millis(200),
        ..producer()
    });
    assert!(matches!(
        client.append("s", &[new(FIRST, "0")]),
        Err(Error::Io { .. })
    ));
    let stuck = client.append("s", &[new(FIRST, "1")]).unwrap_err();
    assert!(stuck.to_string().contains("new producer id"), "{stuck}");
    client.append("s", &[new(SECOND, "2")]).unwrap();
}

#[test]
fn a_producer_continues_where_an_earlier_run_ended() {
    let server = Server::start(true, &[]);
    let mut first = server.connect(producer());
    first.append("s", &[new(FIRST, "0")]).unwrap();
    let sequences = first.sequences();
    let mut second = server.connect(ConnectOptions {
        sequences,
        ..producer()
    });
    second.append("s", &[new(FIRST, "1")]).unwrap();
    let mut forgetful = server.connect(producer());
    let error = forgetful.append("s", &[new(FIRST, "2")]).unwrap_err();
    assert_eq!(error.code(), Some(Code::IdempotencyMismatch));
    assert_eq!(server.payloads(0), ["0", "1"]);
}

#[test]
fn a_wrong_token_a_wrong_port_and_nobody_are_told_apart() {
    let server = Server::start(true, &[]);
    let options = || ConnectOptions {
        timeout: Duration::from_secs(2),
        ..ConnectOptions::default()
    };
    let connect =
        |address: &str, options| Client::connect(address, options).map(|_| ()).unwrap_err();
    let wrong = connect(
        &server.shared.to_string(),
        ConnectOptions {
            token: Some(b"wrong".to_vec()),
            ..options()
        },
    );
    assert_eq!(wrong.code(), Some(Code::Unauthorized));
    assert!(matches!(
        connect("127.0.0.1:1", options()),
        Error::Io { .. }
    ));
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut stream, _) = http.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        let _ = stream.read(&mut [0; 64]);
    });
    assert!(matches!(connect(&address, options()), Error::Broken { .. }));
}

#[test]
fn what_cannot_be_sent_is_said_before_anything_is() {
    let server = Server::start(true, &[]);
    let mut client = server.connect(producer());
    assert!(matches!(
        client.append("no spaces", &[new(FIRST, "0")]),
        Err(Error::Usage(_))
    ));
    assert!(matches!(client.append("s", &[]), Err(Error::Usage(_))));
    assert!(matches!(
        client.append("s", &[new(FIRST, "0"), new("", "1")]),
        Err(Error::Usage(_))
    ));
    assert_eq!(client.sequences(), [(10, 1), (11, 1)]);
    assert!(server.payloads(0).is_empty());
}
