//! The other end of a comparison: redis-benchmark where it is installed, and a client of our own that needs nothing.
//!
//! Both send `pipeline` requests on each connection, wait for as many replies, and send the next. Ours checks every byte of every reply.

use std::io::{ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::Context;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::ping::{REPLY, REQUEST};
use crate::ring_server::CONGESTION;

/// A server that says nothing for so long has stopped.
const PATIENCE: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 64 << 10;

/// What a load run asks for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work {
    pub address: SocketAddr,
    pub connections: usize,
    pub pipeline: usize,
    /// At least so many are sent.
    pub requests: u64,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub requests: u64,
    pub per_second: f64,
}

struct Connection {
    stream: TcpStream,
    /// Of the requests in flight: bytes that the socket has not taken yet.
    unsent: usize,
    /// Reply bytes of this round.
    received: usize,
    busy: bool,
}

/// Load with our own client, on the calling thread.
pub(super) fn own(work: &Work) -> anyhow::Result<Outcome> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let requests = REQUEST.repeat(work.pipeline);
    let reply_bytes = REPLY.len() * work.pipeline;
    let expected = REPLY.repeat(READ_BYTES / REPLY.len() + 2);
    let mut connections = Vec::with_capacity(work.connections);
    for id in 0..work.connections {
        let stream =
            std::net::TcpStream::connect(work.address).context("connecting to the server")?;
        stream.set_nodelay(true)?;
        socket2::SockRef::from(&stream).set_tcp_congestion(CONGESTION.as_bytes())?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        poll.registry().register(
            &mut stream,
            Token(id),
            Interest::READABLE | Interest::WRITABLE,
        )?;
        connections.push(Connection {
            stream,
            unsent: 0,
            received: 0,
            busy: false,
        });
    }
    let (mut started, mut done, mut busy) = (0u64, 0u64, 0usize);
    let start = Instant::now();
    let per_round = work.pipeline as u64;
    for connection in &mut connections {
        if started < work.requests {
            started += per_round;
            busy += 1;
            connection.begin(&requests)?;
        }
    }
    let mut buffer = vec![0; READ_BYTES];
    let mut heard = Instant::now();
    while busy > 0 {
        poll.poll(&mut events, Some(PATIENCE))?;
        anyhow::ensure!(
            heard.elapsed() < PATIENCE,
            "the server stopped answering after {done} requests"
        );
        for event in &events {
            let connection = &mut connections[event.token().0];
            connection.send(&requests)?;
            // Readiness is told once: read until there is no more.
            loop {
                let read = match connection.stream.read(&mut buffer) {
                    Ok(0) => anyhow::bail!("the server closed a connection after {done} requests"),
                    Ok(read) => read,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                };
                heard = Instant::now();
                let from = connection.received % REPLY.len();
                anyhow::ensure!(
                    connection.busy && buffer[..read] == expected[from..from + read],
                    "a reply is not the one that was asked for"
                );
                connection.received += read;
                anyhow::ensure!(
                    connection.received <= reply_bytes,
                    "more replies than requests"
                );
                if connection.received == reply_bytes {
                    done += per_round;
                    if started < work.requests {
                        started += per_round;
                        connection.begin(&requests)?;
                    } else {
                        connection.busy = false;
                        busy -= 1;
                    }
                }
            }
        }
    }
    assert_eq!(done, started, "every request was answered");
    Ok(Outcome {
        requests: done,
        per_second: done as f64 / start.elapsed().as_secs_f64(),
    })
}

impl Connection {
    fn begin(&mut self, requests: &[u8]) -> anyhow::Result<()> {
        self.unsent = requests.len();
        self.received = 0;
        self.busy = true;
        self.send(requests)
    }

    fn send(&mut self, requests: &[u8]) -> anyhow::Result<()> {
        while self.unsent > 0 {
            match self.stream.write(&requests[requests.len() - self.unsent..]) {
                Ok(sent) => self.unsent -= sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// `redis-benchmark 7.0.15`, or None where there is none.
pub(super) fn redis_benchmark_version() -> Option<String> {
    let output = Command::new("redis-benchmark")
        .arg("--version")
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

/// Load with `redis-benchmark -t ping_mbulk`, on the core that the calling thread is pinned to.
pub(super) fn redis_benchmark(work: &Work) -> anyhow::Result<Outcome> {
    let numbers = [
        ("-p", u64::from(work.address.port())),
        ("-c", work.connections as u64),
        ("-P", work.pipeline as u64),
        ("-n", work.requests),
    ];
    let mut command = Command::new("redis-benchmark");
    command.args([
        "-h",
        &work.address.ip().to_string(),
        "-t",
        "ping_mbulk",
        "--csv",
    ]);
    for (flag, number) in numbers {
        command.arg(flag).arg(number.to_string());
    }
    let output = command
        .output()
        .context("redis-benchmark (package redis-tools)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let per_second = text
        .lines()
        .filter(|line| line.starts_with("\"PING_MBULK\"") || line.starts_with("\"PING_BULK\""))
        .find_map(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok());
    let per_second = per_second.with_context(|| {
        format!(
            "redis-benchmark said {text:?}, {:?}",
            String::from_utf8_lossy(&output.stderr)
        )
    })?;
    Ok(Outcome {
        requests: work.requests,
        per_second,
    })
}
