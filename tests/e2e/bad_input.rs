//! Bad input costs one connection: never the process, never another client, never memory without bound.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wire::native::{self, AppendBuilder, opcode};
use wire::{AppendRecord, Code, Condition, ContentType, Durability};

use crate::http::request;
use crate::server::{PATIENCE, Server, directory, eventually};

/// A client that has done nothing wrong gets what it asks for, on both protocols.
#[track_caller]
fn assert_healthy(server: &mut Server, after: &str) {
    server.assert_alive();
    let mut http = server.http();
    assert_eq!(
        http.post("/v1/streams/healthy/records/k", after).status,
        201,
        "after {after}"
    );
    assert_eq!(http.get("/v1/streams/healthy/records/k").text(), after);
    let newest = server
        .client()
        .get("healthy", b"k")
        .expect("served")
        .expect("there");
    assert_eq!(newest.payload, after.as_bytes());
}

fn native_socket(server: &Server) -> TcpStream {
    let socket = TcpStream::connect(server.native).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket
        .set_write_timeout(Some(Duration::from_secs(2)))
        .expect("a timeout");
    socket
}

/// The code of the next reply.
#[track_caller]
fn next_code(socket: &mut TcpStream) -> (u64, Option<Code>) {
    let mut head = [0; 16];
    socket.read_exact(&mut head).expect("a reply");
    let bytes = u32::from_le_bytes(head[..4].try_into().expect("four")) as usize;
    let mut body = vec![0; bytes - 16];
    socket.read_exact(&mut body).expect("the rest of the reply");
    let id = u64::from_le_bytes(head[8..].try_into().expect("eight"));
    (id, Code::from_u16(u16::from_le_bytes([head[6], head[7]])))
}

#[track_caller]
fn assert_closed(socket: &mut TcpStream) {
    let mut rest = [0; 64];
    match socket.read(&mut rest) {
        Ok(0) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        other => panic!("not closed: {other:?}"),
    }
}

fn frame(op: u8, id: u64, body: &[u8]) -> Vec<u8> {
    let mut out = (16 + body.len() as u32).to_le_bytes().to_vec();
    out.extend_from_slice(&[op, 0, 0, 0]);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(body);
    out
}

fn append(id: u64, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut builder = AppendBuilder::begin(&mut out, id, b"s", Durability::Durable, true, None);
    builder.record(&AppendRecord {
        key,
        payload,
        content_type: ContentType::OCTET_STREAM,
        tombstone: false,
        condition: Condition::None,
    });
    builder.finish();
    out
}

#[test]
fn native_frames_that_are_wrong() {
    let data = directory();
    let mut server = Server::start(data.path(), 2);

    // A frame whose length is known to be wrong leaves nowhere to go on from: answered and closed.
    for (what, bytes) in [
        ("a length below a header's", [3, 0, 0, 0].repeat(4)),
        (
            "a length over the limit",
            [0xff, 0xff, 0xff, 0x7f].repeat(4),
        ),
    ] {
        let mut socket = native_socket(&server);
        socket.write_all(&bytes).expect("read");
        let (_, code) = next_code(&mut socket);
        assert!(
            matches!(code, Some(Code::Malformed | Code::TooLarge)),
            "{what}: {code:?}"
        );
        assert_closed(&mut socket);
        assert_healthy(&mut server, what);
    }

    // Whole frames that make no sense are refused by number, and the connection goes on.
    let mut socket = native_socket(&server);
    let mut bytes = frame(99, 1, b"what is this");
    bytes.extend(frame(opcode::APPEND, 2, b"short"));
    bytes.extend(frame(opcode::GET, 3, &[0xff; 40]));
    bytes.extend(append(4, &[b'k'; 1025], b"x"));
    bytes.extend(append(5, b"", b"x"));
    bytes.extend(append(6, b"k", &vec![0; (1 << 20) + 1]));
    bytes.extend(frame(opcode::PING, 7, b""));
    bytes.extend(append(8, b"k", b"good"));
    let mut writer = socket.try_clone().expect("a second handle");
    let sender = std::thread::spawn(move || writer.write_all(&bytes));
    let mut codes = std::collections::BTreeMap::new();
    for _ in 0..8 {
        let (id, code) = next_code(&mut socket);
        assert!(codes.insert(id, code.expect("a known code")).is_none());
    }
    sender.join().expect("no panic").expect("all was read");
    let codes: Vec<Code> = codes.into_values().collect();
    assert_eq!(
        codes,
        [
            Code::Unsupported,
            Code::Malformed,
            Code::Malformed,
            Code::TooLarge,
            Code::Malformed,
            Code::TooLarge,
            Code::Ok,
            Code::Ok
        ]
    );
    assert_healthy(&mut server, "refused frames");
    server.stop();
}

#[test]
fn garbage_and_silence() {
    let data = directory();
    let mut server = Server::start(data.path(), 2);
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..40 {
        let bytes: Vec<u8> = (0..4096)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                noise as u8
            })
            .collect();
        for address in [server.native, server.http] {
            let mut socket = TcpStream::connect(address).expect("it listens");
            // The server may close before it has read everything; that is its right.
            let _ = socket.write_all(&bytes[round..]);
        }
    }
    assert_healthy(&mut server, "garbage");

    let mut silent = Vec::new();
    for i in 0..200 {
        let address = if i % 2 == 0 {
            server.native
        } else {
            server.http
        };
        let mut socket = TcpStream::connect(address).expect("it listens");
        socket.write_all(b"G").expect("one byte");
        silent.push(socket);
    }
    assert_healthy(&mut server, "200 connections of one byte");

    let post = request("POST", "/v1/streams/s/records/half", &[], b"half a body");
    let mut half = TcpStream::connect(server.http).expect("it listens");
    half.write_all(&post[..post.len() - 4]).expect("read");
    silent.push(half);
    let whole = append(1, b"half", b"half a frame");
    let mut half = TcpStream::connect(server.native).expect("it listens");
    half.write_all(&whole[..whole.len() - 4]).expect("read");
    assert_healthy(&mut server, "half requests");
    drop(half);
    drop(silent);
    eventually("the connections to be forgotten", || {
        let left: f64 = (0..2).map(|s| server.metric("pinion_connections", s)).sum();
        (left <= 4.0).then_some(())
    });
    assert_eq!(
        server.http().get("/v1/streams/s/records/half").status,
        404,
        "half a request did nothing"
    );
    assert_healthy(&mut server, "their end");
    server.stop();
}

/// Sends `requests` over and over without reading an answer, until the server takes no more.
fn never_read(mut socket: TcpStream, requests: &[u8]) -> TcpStream {
    socket
        .set_write_timeout(Some(Duration::from_millis(1500)))
        .expect("a timeout");
    for _ in 0..20_000 {
        if socket.write_all(requests).is_err() {
            break;
        }
    }
    socket
}

#[test]
fn a_client_that_never_reads_costs_bounded_memory_and_nobody_else() {
    for shards in [1, 2] {
        let data = directory();
        let mut server = Server::start(data.path(), shards);
        let mut http = server.http();
        // 24 MB in one stream, so that every page is as large as pages get.
        let large = vec![b'x'; 256 * 1024];
        for i in 0..96 {
            assert_eq!(
                http.post(&format!("/v1/streams/s/records/k{}", i % 8), &large)
                    .status,
                201
            );
        }
        let scan_http = request("GET", "/v1/streams/s/scan?limit=10000", &[], b"").repeat(64);
        let history_http = request(
            "GET",
            "/v1/streams/s/records/k1/history?limit=10000",
            &[],
            b"",
        )
        .repeat(64);
        let get_http = request("GET", "/v1/streams/s/records/k2", &[], b"").repeat(64);
        let mut pages = Vec::new();
        for id in 0..64 {
            native::scan(&mut pages, id, b"s", b"", 10_000);
            native::history(&mut pages, id, b"s", b"k3", 0, 10_000);
            native::get(&mut pages, id, b"s", b"k4");
        }

        let done = AtomicBool::new(false);
        let before = server.resident_bytes();
        let (peak, slowest, answered) = std::thread::scope(|scope| {
            // Another client works all the while; each of its requests must come back soon.
            let other = scope.spawn(|| {
                let mut http = server.http();
                let (mut slowest, mut answered) = (Duration::ZERO, 0);
                while !done.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    assert_eq!(http.post("/v1/streams/other/records/k", "x").status, 201);
                    assert_eq!(http.get("/v1/streams/other/records/k").text(), "x");
                    slowest = slowest.max(started.elapsed());
                    answered += 1;
                }
                (slowest, answered)
            });
            let watch = scope.spawn(|| {
                let mut peak = 0;
                while !done.load(Ordering::Relaxed) {
                    peak = peak.max(server.resident_bytes());
                    std::thread::sleep(Duration::from_millis(2));
                }
                peak
            });
            let greedy: Vec<_> = [scan_http, history_http, get_http]
                .into_iter()
                .map(|bytes| (server.http, bytes))
                .chain([(server.native, pages)])
                .map(|(address, bytes)| {
                    scope.spawn(move || {
                        never_read(TcpStream::connect(address).expect("it listens"), &bytes)
                    })
                })
                .collect();
            let sockets: Vec<TcpStream> = greedy
                .into_iter()
                .map(|g| g.join().expect("no panic"))
                .collect();
            done.store(true, Ordering::Relaxed);
            let (slowest, answered) = other.join().expect("no panic");
            drop(sockets);
            (watch.join().expect("no panic"), slowest, answered)
        });
        let grown = peak.saturating_sub(before) >> 20;
        println!(
            "{shards} shards: grew by {grown} MiB; the other client's slowest of {answered} round trips took {slowest:?}"
        );
        // Four connections, each with a page or two under way and one waiting in its outbox.
        assert!(grown < 160, "grew by {grown} MiB");
        assert!(
            answered > 20 && slowest < Duration::from_secs(5),
            "{answered} round trips, slowest {slowest:?}"
        );
        assert_healthy(&mut server, "clients that never read");
        server.stop();
    }
}

#[test]
fn a_refusal_in_the_middle_of_a_request_is_read_whole() {
    let data = directory();
    let mut server = Server::start(data.path(), 1);
    let head = "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: x\r\n";
    let cases = [
        (format!("{head}Content-Length: {}\r\n\r\n", 64 << 20), "413"),
        (
            format!("{head}Transfer-Encoding: chunked\r\n\r\nfffffff\r\n"),
            "413",
        ),
        (
            format!("{head}Content-Length: 1\r\nContent-Length: 2\r\n\r\n"),
            "400",
        ),
        ("nonsense\r\n\r\n".to_owned(), "400"),
    ];
    for round in 0..5 {
        for (start, status) in &cases {
            let mut socket = TcpStream::connect(server.http).expect("it listens");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket.write_all(start.as_bytes()).expect("taken");
            // The rest of the body, sent by a client that does not look for an answer before it is done.
            socket.write_all(&vec![b'x'; 2 << 20]).unwrap_or_else(|e| {
                panic!("round {round}, {start:?}: the connection was reset ({e})")
            });
            let mut answer = String::new();
            socket
                .read_to_string(&mut answer)
                .unwrap_or_else(|e| panic!("round {round}, {start:?}: no whole answer ({e})"));
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status}")) && answer.ends_with('}'),
                "{start:?}: {answer}"
            );
        }
    }
    // Of the native protocol: a length that no frame has, and more.
    let mut socket = native_socket(&server);
    socket.write_all(&[0xff; 1 << 20]).expect("taken");
    next_code(&mut socket);
    assert_eq!(socket.read(&mut [0; 8]).expect("an orderly end"), 0);
    assert_healthy(&mut server, "large refused requests");
    server.stop();
}
