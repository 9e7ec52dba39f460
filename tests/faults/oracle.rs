//! The oracle: a process of its own that writes down what it is about to send, sends it, and writes down what was acked.
//! It outlives the server that is killed under it. Reading back is somebody else's task (`book`).
//!
//! The test binary starts itself again as this process. Every worker has keys of its own and a file of its own, a line per
//! event: `S round worker sequence durable sent_us key hash …`, `A round worker sequence acked_us version …`,
//! `R round worker sequence` for what the server refused (nothing of it may be there).

use std::collections::HashMap;
use std::fs::File;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use client::{Client, Condition, ConnectOptions, ContentType, Durability, Error, Record};

use crate::http::request;
use crate::server::{Server, eventually};

pub const STREAM: &str = "oracle";
/// Native workers, and behind them one that speaks HTTP.
pub const WORKERS: u64 = 3;
const HTTP_WORKER: u64 = WORKERS;
const KEYS: u64 = 40;
const IN_FLIGHT: usize = 6;
const ORDER: &str = "PINION_TEST_ORACLE";

/// xorshift64*: enough to vary sizes, and the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

pub fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Names a record for ever: no two sends have the same payload.
fn payload(name: &str, random: &mut Random) -> Vec<u8> {
    let bytes = match random.below(20) {
        0 => random.below(100_000),
        1 => 0,
        _ => random.below(700),
    };
    let mut payload = format!("{name} ").into_bytes();
    payload.extend((0..bytes).map(|_| random.next() as u8));
    payload
}

/// The file of one worker in one round.
pub fn file_of(directory: &Path, round: u64, worker: u64) -> PathBuf {
    directory.join(format!("round-{round}-worker-{worker}"))
}

/// Starts the oracle as a process of its own. It ends by itself when its server is gone.
pub fn start(
    directory: &Path,
    native: SocketAddr,
    http: SocketAddr,
    round: u64,
    seed: u64,
) -> Child {
    let order = format!("{} {native} {http} {round} {seed}", directory.display());
    Command::new(std::env::current_exe().expect("the test binary"))
        .args(["oracle::process", "--exact", "--ignored", "--nocapture"])
        .env(ORDER, order)
        .stdout(Stdio::null())
        .spawn()
        .expect("the test binary starts")
}

/// Load on `server` by an oracle that has heard of an ack, and of what came up to 300 ms behind it.
pub fn load(server: &Server, directory: &Path, round: u64, random: &mut Random) -> Child {
    let seed = random.next() | 1;
    let oracle = start(directory, server.native, server.http, round, seed);
    eventually("an ack", || {
        std::fs::read_to_string(file_of(directory, round, 0))
            .is_ok_and(|text| text.contains("\nA "))
            .then_some(())
    });
    std::thread::sleep(Duration::from_millis(random.below(300)));
    oracle
}

/// The server is gone, and the oracle ends.
#[track_caller]
pub fn ended(mut oracle: Child) {
    assert!(
        oracle.wait().expect("our child").success(),
        "the oracle failed"
    );
}

#[test]
#[ignore = "not a test: the process that the tests start"]
fn process() {
    let Ok(order) = std::env::var(ORDER) else {
        return;
    };
    let words: Vec<&str> = order.split(' ').collect();
    let [directory, native, http, round, seed] = words[..] else {
        panic!("no order: {order}")
    };
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (round, seed) = (number(round), number(seed));
    let (directory, native) = (Path::new(directory), native.to_owned());
    let http: SocketAddr = http.parse().expect("an address");
    std::thread::scope(|scope| {
        for worker in 0..WORKERS {
            let (notes, native) = (Notes::create(directory, round, worker), native.clone());
            scope.spawn(move || native_worker(notes, &native, Random(seed ^ (worker + 1) << 32)));
        }
        let notes = Notes::create(directory, round, HTTP_WORKER);
        scope.spawn(move || http_worker(notes, http, Random(seed | 1)));
    });
}

/// What one worker writes down.
struct Notes {
    file: File,
    round: u64,
    worker: u64,
}

impl Notes {
    fn create(directory: &Path, round: u64, worker: u64) -> Notes {
        let file = File::options()
            .append(true)
            .create(true)
            .open(file_of(directory, round, worker));
        Notes {
            file: file.expect("writable"),
            round,
            worker,
        }
    }
    fn write(&mut self, kind: char, sequence: u64, rest: &str) {
        let line = format!("{kind} {} {} {sequence} {rest}\n", self.round, self.worker);
        self.file.write_all(line.as_bytes()).expect("writable");
    }
}

fn now_us() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_micros()
}

fn native_worker(mut notes: Notes, address: &str, mut random: Random) {
    let durability = if random.below(4) == 0 {
        Durability::Buffered
    } else {
        Durability::Durable
    };
    let options = ConnectOptions {
        producer_id: (random.below(2) == 0).then(|| u128::from(random.next())),
        shard_aware: random.below(2) == 0,
        timeout: Duration::from_millis(300),
        window: IN_FLIGHT,
        durability,
        ..ConnectOptions::default()
    };
    let Ok(mut client) = Client::connect(address, options) else {
        return;
    };
    let batch_max = 1 + random.below(60);
    let mut waiting = HashMap::new();
    for sequence in 0.. {
        let records: Vec<(String, Vec<u8>)> = (0..1 + random.below(batch_max))
            .map(|i| {
                let key = format!("w{}-{}", notes.worker, random.below(KEYS));
                let name = format!("r{}.w{}.s{sequence}.i{i}", notes.round, notes.worker);
                (key, payload(&name, &mut random))
            })
            .collect();
        let mut line = format!(
            "{} {}",
            u8::from(durability == Durability::Durable),
            now_us()
        );
        for (key, payload) in &records {
            line += &format!(" {key} {}", hash(payload));
        }
        notes.write('S', sequence, &line);
        let records: Vec<Record<'_>> = records
            .iter()
            .map(|(key, payload)| Record {
                key: key.as_bytes(),
                payload,
                content_type: ContentType::OCTET_STREAM,
                tombstone: false,
                condition: Condition::None,
            })
            .collect();
        let Ok(ticket) = client.send_append(STREAM, &records) else {
            return;
        };
        waiting.insert(ticket, sequence);
        loop {
            let answered = if client.in_flight() < IN_FLIGHT {
                client.poll()
            } else {
                client.recv()
            };
            let Some((ticket, result)) = answered else {
                break;
            };
            let sequence = waiting.remove(&ticket).expect("one of ours, once");
            match result {
                Ok(ack) => {
                    let versions: Vec<String> = ack.versions.iter().map(u32::to_string).collect();
                    let acked = format!("{} {}", now_us(), versions.join(" "));
                    notes.write('A', sequence, &acked);
                }
                Err(Error::Refused(_)) => notes.write('R', sequence, ""),
                Err(_) => return,
            }
        }
    }
}

fn http_worker(mut notes: Notes, address: SocketAddr, mut random: Random) {
    let Ok(mut socket) = TcpStream::connect(address) else {
        return;
    };
    let started = Instant::now();
    for sequence in 0.. {
        let key = format!("w{}-{}", notes.worker, random.below(KEYS));
        let payload = payload(
            &format!("r{}.w{}.s{sequence}.i0", notes.round, notes.worker),
            &mut random,
        );
        notes.write(
            'S',
            sequence,
            &format!("1 {} {key} {}", now_us(), hash(&payload)),
        );
        let once = format!("Idempotency-Key: r{}.s{sequence}", notes.round);
        let bytes = request(
            "POST",
            &format!("/v1/streams/{STREAM}/records/{key}"),
            &[&once],
            &payload,
        );
        if socket.write_all(&bytes).is_err() {
            return;
        }
        let Some(head) = response(&mut socket) else {
            return;
        };
        let version = head
            .split("ETag: \"")
            .nth(1)
            .and_then(|t| t.split('"').next());
        match version {
            Some(version) if head.starts_with("HTTP/1.1 201 ") => {
                notes.write('A', sequence, &format!("{} {version}", now_us()))
            }
            _ => notes.write('R', sequence, ""),
        }
        assert!(
            started.elapsed() < Duration::from_secs(60),
            "nobody has killed the server"
        );
    }
}

/// One whole response; None once the server is gone.
pub fn response(socket: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        match socket.read(&mut buffer) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Ok(0) | Err(_) => return None,
            Ok(got) => bytes.extend_from_slice(&buffer[..got]),
        }
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && let Some(length) = head
                .split("Content-Length: ")
                .nth(1)
                .and_then(|t| t.lines().next())
            && body.len() >= length.parse().unwrap_or(0)
        {
            return Some(text.into_owned());
        }
    }
}
