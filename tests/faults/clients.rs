//! Clients that misbehave in numbers. They get a clear answer and lose their connection; others hardly notice.
//!
//! `PINION_ATTACKERS=2000` for more of them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use wire::native;

use crate::descriptors::open_sockets;
use crate::http::request;
use crate::number_from;
use crate::server::{Server, directory, eventually, metric_in};

/// How long healthy clients are watched at a time, and how often: the best time counts, the machine has other work. Beside an
/// attack they are watched for longer where that work leaves no better time sooner: what attackers do to others does not end.
const WATCH: Duration = Duration::from_millis(500);
const ROUNDS: usize = 4;
const ROUNDS_BESIDE: usize = 16;
/// What is allowed beside twice the baseline: a scheduler's slice or two on a machine of few cores.
const SLACK: Duration = Duration::from_millis(20);

/// 99th percentile of a healthy client's round trips, one durable append and one get, in the best of several rounds. More
/// than [`ROUNDS`] are for when none was good enough.
fn healthy_p99(server: &Server, rounds: usize, enough: Duration) -> Duration {
    let mut http = server.http();
    let mut best = Duration::MAX;
    for round in 1..=rounds {
        let (mut times, until) = (Vec::new(), Instant::now() + WATCH);
        while Instant::now() < until || times.len() < 20 {
            let since = Instant::now();
            assert_eq!(http.post("/v1/streams/healthy/records/k", "x").status, 201);
            assert_eq!(http.get("/v1/streams/healthy/records/k").text(), "x");
            times.push(since.elapsed());
        }
        times.sort_unstable();
        best = best.min(times[times.len() * 99 / 100]);
        if round >= ROUNDS && best <= enough {
            break;
        }
    }
    best
}

/// Runs `attack` until the healthy client was watched; what it returns, and the p99 before and beside it.
#[track_caller]
pub fn beside<T: Send>(
    server: &Server,
    what: &str,
    attack: impl FnOnce(&AtomicBool) -> T + Send,
) -> T {
    let baseline = healthy_p99(server, ROUNDS, Duration::MAX);
    let bound = 2 * baseline + SLACK;
    let done = AtomicBool::new(false);
    let (result, attacked) = std::thread::scope(|scope| {
        let attacker = scope.spawn(|| attack(&done));
        let attacked = healthy_p99(server, ROUNDS_BESIDE, bound);
        done.store(true, Ordering::Relaxed);
        (attacker.join().expect("no panic"), attacked)
    });
    println!("{what}: p99 of a healthy client {baseline:?} before, {attacked:?} beside it");
    assert!(
        attacked <= bound,
        "{what}: p99 {attacked:?}, {baseline:?} without"
    );
    result
}

/// Everything until the other side closes.
fn last_words(socket: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a timeout");
    match socket.read_to_end(&mut said) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
    }
    said
}

fn whole_frame(key: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    native::get(&mut frame, 9, b"s", key);
    frame
}

#[track_caller]
pub fn assert_nothing_left(server: &Server, before: usize) {
    // One connection for all questions, counted below. Were there a new one for each, the server would have to notice the
    // end of the last within the microseconds to the next look, which on a busy machine it rarely does.
    let mut http = server.http();
    eventually("the connections to be forgotten", || {
        let text = http.get("/metrics").text();
        let left: f64 = (0..2)
            .map(|s| metric_in(&text, "pinion_connections", s))
            .sum();
        (left <= 1.0 && open_sockets(server) <= before + 1).then_some(())
    });
}

#[test]
fn requests_that_trickle_in_are_ended_with_an_error() {
    let attackers = number_from("PINION_ATTACKERS", 300) as usize;
    let data = directory();
    let mut server = Server::start_with(data.path(), 2, &["--request-timeout-seconds", "2"]);
    let before = open_sockets(&server);
    let memory = server.resident_bytes();
    let head = b"POST /v1/streams/s/records/k HTTP/1.1\r\nHost: test\r\nX-Filler: ";
    let frame = whole_frame(&[b'k'; 200]);
    let (sockets, slowest, peak) = beside(&server, "slow requests", |done| {
        let started = Instant::now();
        let mut sockets: Vec<(TcpStream, bool)> = (0..attackers)
            .map(|i| {
                let http = i % 2 == 0;
                let address = if http { server.http } else { server.native };
                let mut socket = TcpStream::connect(address).expect("it listens");
                let start: &[u8] = if http { head } else { &frame[..20] };
                socket.write_all(start).expect("read");
                (socket, http)
            })
            .collect();
        let mut peak = 0;
        // A byte each now and then, for longer than the server should wait.
        while !done.load(Ordering::Relaxed) || started.elapsed() < Duration::from_millis(3500) {
            for (socket, _) in &mut sockets {
                let _ = socket.write_all(b"x");
            }
            peak = peak.max(server.resident_bytes());
            std::thread::sleep(Duration::from_millis(250));
        }
        (sockets, started.elapsed(), peak)
    });
    let (mut told, all) = (0, sockets.len());
    for (mut socket, http) in sockets {
        let said = last_words(&mut socket);
        // Bytes of ours that nobody read make the kernel reset and drop what was said: then there is nothing to read.
        if said.is_empty() {
            continue;
        }
        told += 1;
        if http {
            let text = String::from_utf8_lossy(&said);
            assert!(
                text.starts_with("HTTP/1.1 408 Request Timeout\r\n"),
                "{text}"
            );
            assert!(text.contains("request_timeout"), "{text}");
        } else {
            let code = u16::from_le_bytes([said[6], said[7]]);
            assert_eq!(wire::Code::from_u16(code), Some(wire::Code::RequestTimeout));
        }
    }
    let grown = peak.saturating_sub(memory) >> 20;
    println!(
        "{told} of {all} were told, all were closed within {slowest:?}; memory grew by {grown} MiB"
    );
    assert!(told > 0, "nobody heard why");
    assert!(grown < 64, "{grown} MiB");
    assert_nothing_left(&server, before);
    let late: f64 = (0..2)
        .map(|s| server.metric("pinion_late_requests_total", s))
        .sum();
    assert!(late >= all as f64, "{late} of {all} were counted");
    server.assert_alive();
    server.stop();
}

#[test]
fn a_flood_of_connections_leaves_nothing_behind() {
    let least = number_from("PINION_ATTACKERS", 300) as usize * 10;
    let data = directory();
    let mut server = Server::start(data.path(), 2);
    let before = open_sockets(&server);
    let count = beside(&server, "connect and close", |done| {
        let mut count = 0;
        while !done.load(Ordering::Relaxed) || count < least {
            let address = if count % 2 == 0 {
                server.http
            } else {
                server.native
            };
            // Refused where the backlog is full: that is an answer, too.
            drop(TcpStream::connect(address));
            count += 1;
            // One attacker thread that takes a whole core would measure the scheduler, not the server.
            if count % 16 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        count
    });
    println!("{count} connections came and went");
    assert_nothing_left(&server, before);
    server.assert_alive();
    server.stop();
}

#[test]
fn resets_in_the_middle_of_a_frame_leave_nothing_behind() {
    let least = number_from("PINION_ATTACKERS", 300) as usize;
    let data = directory();
    let mut server = Server::start(data.path(), 2);
    let before = open_sockets(&server);
    let post = request("POST", "/v1/streams/s/records/reset", &[], &[b'x'; 20_000]);
    let frame = whole_frame(&[b'k'; 1000]);
    let count = beside(&server, "resets", |done| {
        let mut count = 0;
        while !done.load(Ordering::Relaxed) || count < least {
            let (address, bytes): (SocketAddr, &[u8]) = match count % 8 {
                0 => (server.native, &frame[..700]),
                // Whole ones, whose answer finds nobody.
                1 => (server.http, &post),
                2 => (server.native, &frame),
                _ => (server.http, &post[..15_000]),
            };
            let mut socket = TcpStream::connect(address).expect("it listens");
            let _ = socket.write_all(bytes);
            // Closing with a lingering time of zero is what sends a reset.
            socket2::SockRef::from(&socket)
                .set_linger(Some(Duration::ZERO))
                .expect("a TCP socket");
            drop(socket);
            count += 1;
            if count % 16 == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        count
    });
    println!("{count} connections were reset");
    assert_nothing_left(&server, before);
    server.assert_alive();
    server.stop();
}

#[test]
fn a_half_closed_connection_is_answered_and_closed() {
    let data = directory();
    let mut server = Server::start(data.path(), 2);
    let before = open_sockets(&server);
    for address in [server.http, server.native] {
        // Whole request, then the end of what is sent: the answer still comes.
        let mut socket = TcpStream::connect(address).expect("it listens");
        let bytes = if address == server.http {
            request("GET", "/healthz", &[], b"")
        } else {
            whole_frame(b"k")
        };
        socket.write_all(&bytes).expect("read");
        socket.shutdown(Shutdown::Write).expect("connected");
        assert!(!last_words(&mut socket).is_empty(), "{address}");
        // Half a request and the end: nothing will come of it.
        let mut socket = TcpStream::connect(address).expect("it listens");
        socket.write_all(&bytes[..bytes.len() - 1]).expect("read");
        socket.shutdown(Shutdown::Write).expect("connected");
        last_words(&mut socket);
    }
    assert_nothing_left(&server, before);
    server.assert_alive();
    server.stop();
}

#[test]
fn an_end_that_comes_together_with_bytes_is_noticed() {
    let data = directory();
    // Nothing but a noticed end may close a connection within the time that is given below: no timeout of half requests,
    // and the first keepalive probe comes after a minute.
    let mut server = Server::start_with(data.path(), 2, &["--request-timeout-seconds", "3600"]);
    let before = open_sockets(&server);
    let post = request("POST", "/v1/streams/s/records/last", &[], b"the last words");
    for reset in [false, true] {
        let sockets: Vec<TcpStream> = (0..80)
            .map(|i| {
                let mut socket = TcpStream::connect(if i % 2 == 0 {
                    server.http
                } else {
                    server.native
                })
                .expect("it listens");
                // It has been answered, so its receive waits for more.
                if i % 2 == 0 {
                    socket
                        .write_all(&request("GET", "/healthz", &[], b""))
                        .expect("read");
                } else {
                    socket.write_all(&whole_frame(b"k")).expect("read");
                }
                // Whole: an end with something unread is a reset.
                let mut answer = [0; 4096];
                assert!(socket.read(&mut answer).expect("an answer") > 16);
                socket
            })
            .collect();
        // The server finds bytes and end at once when it goes on.
        server.signal("STOP");
        for (i, mut socket) in sockets.into_iter().enumerate() {
            let frame = whole_frame(b"k");
            let bytes: &[u8] = match i % 4 {
                0 => &post,
                1 => &frame,
                2 => &post[..post.len() - 3],
                _ => &frame[..frame.len() - 3],
            };
            socket.write_all(bytes).expect("the kernel takes it");
            if reset {
                socket2::SockRef::from(&socket)
                    .set_linger(Some(Duration::ZERO))
                    .expect("a TCP socket");
            }
        }
        server.signal("CONT");
        let since = Instant::now();
        assert_nothing_left(&server, before);
        println!("reset {reset}: all were gone after {:?}", since.elapsed());
        // It takes a quarter of a second where nobody else wants the processor.
        assert!(
            since.elapsed() < Duration::from_secs(30),
            "well before any timeout"
        );
    }
    server.assert_alive();
    server.stop();
}

/// The kernel's timer of the server's end of a connection, from /proc/net/tcp: its kind and when it is due.
fn timer_of(server: SocketAddr, client: SocketAddr) -> Option<(u8, Duration)> {
    let ends_with = |text: &str, port: u16| text.ends_with(&format!(":{port:04X}"));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
    let line = table.lines().skip(1).find(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        ends_with(fields[1], server.port()) && ends_with(fields[2], client.port())
    })?;
    let (kind, when) = line.split_whitespace().nth(5)?.split_once(':')?;
    let hundredths = u64::from_str_radix(when, 16).ok()?;
    Some((kind.parse().ok()?, Duration::from_millis(hundredths * 10)))
}

#[test]
fn a_peer_that_is_gone_without_a_word_is_found_out() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    for address in [server.http, server.native] {
        let mut socket = TcpStream::connect(address).expect("it listens");
        let mine = socket.local_addr().expect("connected");
        let bytes = if address == server.http {
            request("GET", "/healthz", &[], b"")
        } else {
            whole_frame(b"k")
        };
        socket.write_all(&bytes).expect("read");
        let mut answer = [0; 16];
        socket.read_exact(&mut answer).expect("an answer");
        // Kind 2 is keepalive: an idle connection is asked whether it is still there, at the latest after a minute.
        let due = eventually("the keepalive timer", || {
            timer_of(address, mine).filter(|(kind, _)| *kind == 2)
        })
        .1;
        println!("{address}: keepalive is due in {due:?}");
        assert!(due <= Duration::from_secs(61), "{due:?}");
    }
    server.stop();
}
