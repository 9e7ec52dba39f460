//! A network that splits, delays and cuts: clients that try again store every record once and in order.
//!
//! The proxy between them loses what it holds when it cuts, in either direction: requests that never arrived and acks that were
//! never heard look alike to a client. `PINION_TEST_SEED=…` for the same choices again, as far as threads make them so.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::Duration;

use client::{Client, Condition, ConnectOptions, ContentType, Record, Ticket};

use crate::accepting::Accepting;
use crate::http::request;
use crate::number_from;
use crate::oracle::{Random, response};
use crate::server::{PATIENCE, Server, directory};

const NATIVE_WORKERS: u64 = 3;
const APPENDS: u64 = 400;
const KEYS: u64 = 12;
const IN_FLIGHT: usize = 12;
/// One in so many pieces is the last of its connection.
const PIECES_TO_A_CUT: u64 = 40;

/// What it did to the bytes that came through.
#[derive(Default)]
struct Done {
    pieces: AtomicU64,
    cuts: AtomicU64,
    lost_bytes: AtomicU64,
}

/// An address that leads to a server, badly.
struct BadNetwork {
    at: Accepting,
    done: Arc<Done>,
}

impl BadNetwork {
    fn to(server: SocketAddr, seed: u64) -> BadNetwork {
        let done = Arc::<Done>::default();
        let at = Accepting::new({
            let (done, mut random) = (done.clone(), Random(seed));
            move |client| {
                let Ok(server) = TcpStream::connect(server) else {
                    return;
                };
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let ends = [from, to].map(|s| s.try_clone().expect("a descriptor"));
                    let (done, random) = (done.clone(), Random(random.next() | 1));
                    spawn(move || pass(ends, &done, random));
                }
            }
        });
        BadNetwork { at, done }
    }
}

/// Bytes in pieces of any size, some of them late, until one side ends or it is cut; then both end.
fn pass([mut from, mut to]: [TcpStream; 2], done: &Done, mut random: Random) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let most = 1 + random.below(buffer.len() as u64) as usize;
        let Ok(got @ 1..) = from.read(&mut buffer[..most]) else {
            break;
        };
        done.pieces.fetch_add(1, Ordering::Relaxed);
        if random.below(4) == 0 {
            sleep(Duration::from_micros(random.below(2000)));
        }
        let cut = random.below(PIECES_TO_A_CUT) == 0;
        let passed = if cut {
            random.below(got as u64 + 1) as usize
        } else {
            got
        };
        if to.write_all(&buffer[..passed]).is_err() {
            break;
        }
        if cut {
            done.cuts.fetch_add(1, Ordering::Relaxed);
            let lost = (got - passed) as u64;
            done.lost_bytes.fetch_add(lost, Ordering::Relaxed);
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// The payload of one record, and its key.
fn named(worker: u64, sequence: u64, i: u64) -> (String, String) {
    let key = format!("k{}", (sequence * 5 + i * 7 + worker) % KEYS);
    (key, format!("w{worker}.{sequence}.{i}"))
}

fn native_worker(address: SocketAddr, worker: u64, mut random: Random) -> u64 {
    let options = ConnectOptions {
        producer_id: Some(u128::from(random.next()) << 64 | u128::from(worker)),
        timeout: PATIENCE,
        window: IN_FLIGHT,
        // The ports of the shards do not lie behind the proxy.
        shard_aware: false,
        ..ConnectOptions::default()
    };
    // The hello may be cut off like anything else, and nothing is under way then.
    let mut client = loop {
        if let Ok(client) = Client::connect(&address.to_string(), options.clone()) {
            break client;
        }
    };
    let mut acked = 0;
    let mut waiting: Vec<(Ticket, u64)> = Vec::new();
    let mut wait = |client: &mut Client, (ticket, records): (Ticket, u64)| {
        let ack = client.wait(ticket).unwrap_or_else(|error| {
            panic!("worker {worker}: {error}, and it is to be asked for again")
        });
        assert_eq!(ack.versions.len() as u64, records);
        acked += records;
    };
    for sequence in 0..APPENDS {
        let count = 1 + random.below(4);
        let records: Vec<(String, String)> =
            (0..count).map(|i| named(worker, sequence, i)).collect();
        let records: Vec<Record<'_>> = (records.iter())
            .map(|(key, payload)| Record {
                key: key.as_bytes(),
                payload: payload.as_bytes(),
                content_type: ContentType::TEXT_PLAIN,
                tombstone: false,
                condition: Condition::None,
            })
            .collect();
        let ticket = (client.send_append("s", &records)).expect("it waits for a connection");
        waiting.push((ticket, count));
        if waiting.len() > IN_FLIGHT / 2 {
            wait(&mut client, waiting.remove(0));
        }
    }
    for one in waiting {
        wait(&mut client, one);
    }
    acked
}

/// The same with an `Idempotency-Key`, one at a time.
fn http_worker(address: SocketAddr, worker: u64) -> u64 {
    let mut socket = None;
    for sequence in 0..APPENDS {
        let (key, payload) = named(worker, sequence, 0);
        let once = format!("Idempotency-Key: {worker}-{sequence}");
        let target = format!("/v1/streams/s/records/{key}");
        let bytes = request("POST", &target, &[&once], payload.as_bytes());
        loop {
            let to = socket.get_or_insert_with(|| TcpStream::connect(address).expect("it listens"));
            let said = (to.write_all(&bytes).ok()).and_then(|()| response(to));
            match said {
                Some(said) => {
                    assert!(said.starts_with("HTTP/1.1 201 "), "{said}");
                    break;
                }
                None => socket = None,
            }
        }
    }
    APPENDS
}

#[test]
fn retries_over_a_bad_network_store_every_record_once_and_in_order() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    let seed = number_from("PINION_TEST_SEED", u64::from(std::process::id()) << 20 | 1);
    println!("PINION_TEST_SEED={seed}");
    let networks = [server.native, server.http].map(|to| BadNetwork::to(to, seed));
    let [native, http] = [networks[0].at.address, networks[1].at.address];
    let mut workers: Vec<JoinHandle<u64>> = (0..NATIVE_WORKERS)
        .map(|w| spawn(move || native_worker(native, w, Random(seed ^ (w + 1) << 32))))
        .collect();
    workers.push(spawn(move || http_worker(http, NATIVE_WORKERS)));
    let acked: Vec<u64> = (workers.into_iter())
        .map(|worker| worker.join().expect("no panic"))
        .collect();

    let mut seen = BTreeSet::new();
    let mut versions: BTreeMap<Vec<u8>, Vec<u32>> = BTreeMap::new();
    let mut last: BTreeMap<(Vec<u8>, u64), (u64, u64)> = BTreeMap::new();
    let mut client = server.client();
    for record in client.scan("s", 1000) {
        let record = record.expect("it can be read");
        let text = String::from_utf8(record.payload).expect("text");
        let numbers: Vec<u64> = (text[1..].split('.'))
            .map(|number| number.parse().expect("a number"))
            .collect();
        let [worker, sequence, i] = numbers[..] else {
            panic!("{text} was never sent")
        };
        assert_eq!(record.key, named(worker, sequence, i).0.into_bytes());
        assert!(seen.insert(text.clone()), "{text} is there twice");
        let before = last.insert((record.key.clone(), worker), (sequence, i));
        assert!(before < Some((sequence, i)), "{text} behind {before:?}");
        versions.entry(record.key).or_default().push(record.version);
    }
    assert_eq!(seen.len() as u64, acked.iter().sum::<u64>());
    for (key, versions) in versions {
        assert!(
            versions.iter().copied().eq(1..=versions.len() as u32),
            "{key:?}"
        );
    }
    for (network, what) in networks.iter().zip(["native", "http"]) {
        let [pieces, cuts, lost] = [
            &network.done.pieces,
            &network.done.cuts,
            &network.done.lost_bytes,
        ]
        .map(|count| count.load(Ordering::Relaxed));
        println!("{what}: {pieces} pieces, {cuts} cuts, {lost} bytes lost");
        assert!(cuts >= 5, "too few to say anything");
    }
    server.stop();
}
