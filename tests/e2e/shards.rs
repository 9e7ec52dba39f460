//! Two shards behind one door: whatever port is used, every operation works and covers both.

use std::collections::BTreeSet;
use std::process::Command;

use client::{Condition, ConnectOptions, ContentType, Record};

use crate::http::{self, Connection};
use crate::server::{Server, directory, eventually};

const PYTHON_CLIENT: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/shards/wire/tests/pinion_client.py"
);

fn record<'a>(key: &'a [u8], payload: &'a [u8]) -> Record<'a> {
    Record {
        key,
        payload,
        content_type: ContentType::OCTET_STREAM,
        tombstone: false,
        condition: Condition::None,
    }
}

#[test]
fn the_python_client_agrees() {
    for shards in [1, 2] {
        let data = directory();
        let server = Server::start(data.path(), shards);
        let topology = server.http().get("/v1/topology").json();
        let own = topology["shards"]
            .as_array()
            .expect("shards")
            .iter()
            .map(|s| s["native_port"].to_string());
        for port in own.chain([server.native.port().to_string()]) {
            let said = Command::new("python3")
                .args([PYTHON_CLIENT, "127.0.0.1", &port])
                .output()
                .expect("python3 is there");
            let (stdout, stderr) = (
                String::from_utf8_lossy(&said.stdout),
                String::from_utf8_lossy(&said.stderr),
            );
            assert!(
                said.status.success() && stdout.starts_with("ok: 150 records"),
                "port {port}: {stdout}{stderr}"
            );
        }
        server.stop();
    }
}

#[test]
fn every_operation_works_through_every_port() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    let topology = server.client().topology().clone();
    assert_eq!(topology.shards.len(), 2);
    assert_eq!(
        (topology.shards[0].slot_first, topology.shards[1].slot_last),
        (0, 16383)
    );
    assert_eq!(
        topology.shards[0].slot_last + 1,
        topology.shards[1].slot_first
    );
    let ports: BTreeSet<u16> = topology
        .shards
        .iter()
        .map(|s| s.native_port)
        .chain([server.native.port()])
        .collect();
    assert_eq!(ports.len(), 3);
    for shard in &topology.shards {
        assert!(
            server
                .banner()
                .contains(&format!("{} on core ", shard.shard)),
            "{}",
            server.banner()
        );
        assert!(
            server
                .banner()
                .contains(&format!(", port {}", shard.native_port)),
            "{}",
            server.banner()
        );
    }

    let keys: Vec<String> = (0..100).map(|i| format!("key-{i}")).collect();
    let mut version = 0;
    for port in &ports {
        for shard_aware in [false, true] {
            version += 1;
            let options = ConnectOptions {
                shard_aware,
                ..ConnectOptions::default()
            };
            let mut client =
                client::Client::connect(&format!("127.0.0.1:{port}"), options).expect("it listens");
            assert_eq!(client.shard_connections(), if shard_aware { 2 } else { 0 });
            let payload = format!("{version}");
            let records: Vec<Record<'_>> = keys
                .iter()
                .map(|k| record(k.as_bytes(), payload.as_bytes()))
                .collect();
            let ack = client.append("s", &records).expect("appended");
            assert_eq!(ack.versions, [version; 100]);
            assert_eq!(
                ack.parts
                    .iter()
                    .map(|p| (p.log, p.records > 20))
                    .collect::<Vec<_>>(),
                [(0, true), (1, true)]
            );
            assert_eq!(ack.parts.iter().map(|p| p.records).sum::<u32>(), 100);
            for key in &keys {
                let newest = client
                    .get("s", key.as_bytes())
                    .expect("served")
                    .expect("there");
                assert_eq!(
                    (newest.payload.as_slice(), newest.version),
                    (payload.as_bytes(), version)
                );
                let owner = wire::slot::shard_of_slot(wire::slot::slot_of(key.as_bytes()), 2);
                assert_eq!(
                    usize::from(u8::try_from(newest.log).expect("small")),
                    usize::from(owner)
                );
            }
            assert_eq!(
                client.history("s", b"key-5", 0, 10).expect("served").len(),
                version as usize
            );
            assert!(client.get("s", b"never").expect("served").is_none());
            let seen: BTreeSet<(Vec<u8>, u32)> = client
                .scan("s", 33)
                .map(|r| r.expect("served"))
                .map(|r| (r.key, r.version))
                .collect();
            assert_eq!(seen.len(), 100 * version as usize);
            let conditional = Record {
                condition: Condition::New,
                ..record(b"key-1", b"")
            };
            assert_eq!(
                client
                    .append("s", &[conditional])
                    .expect_err("the key is there")
                    .code(),
                Some(client::Code::ConditionFailed)
            );
            client.ping().expect("served");
            assert!(client.streams().expect("served").contains("\"s\""));
        }
    }
    let hops: f64 = (0..2)
        .map(|s| server.metric("pinion_mailbox_hops_total", s))
        .sum();
    assert!(hops > 0.0, "some requests crossed shards");
    server.stop();
}

#[test]
fn ndjson_and_scan_cover_all_shards_over_one_connection() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    let mut http = server.http();
    let body: String = (0..5000)
        .map(|i| format!("{{\"key\":\"k{i}\",\"value\":{i}}}\n"))
        .collect();
    let done = http
        .call(
            "POST",
            "/v1/streams/s/records",
            &["Content-Type: application/x-ndjson"],
            body,
        )
        .json();
    assert_eq!(done["appended"], 5000);
    let parts = done["positions"].as_array().expect("positions");
    assert!(
        parts
            .iter()
            .all(|p| p["records"].as_u64().is_some_and(|n| n > 2000)),
        "{done}"
    );
    let all = http::scan(&mut http, "s", 1000);
    let values: BTreeSet<u64> = all
        .iter()
        .map(|l| l["value"].as_u64().expect("a number"))
        .collect();
    assert_eq!((all.len(), values.len()), (5000, 5000));
    let counts: Vec<f64> = (0..2)
        .map(|s| server.metric("pinion_records_total", s))
        .collect();
    assert_eq!(counts.iter().sum::<f64>(), 5000.0);
    assert!(counts.iter().all(|c| *c > 2000.0), "{counts:?}");
    server.stop();
}

#[test]
fn connections_are_spread_over_the_shards() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    let mut open: Vec<Connection> = (0..60).map(|_| server.http()).collect();
    for connection in &mut open {
        assert_eq!(connection.get("/healthz").status, 200);
    }
    let balanced = || {
        let counts: Vec<f64> = (0..2)
            .map(|s| server.metric("pinion_connections", s))
            .collect();
        // The bound of the imbalance, and the connections that these questions come in on.
        let even = (counts[0] - counts[1]).abs() <= 8.0 && counts.iter().sum::<f64>() >= 60.0;
        even.then_some(())
    };
    eventually("60 connections on both shards alike", balanced);
    drop(open);
    eventually("closed connections to be forgotten", || {
        let left: f64 = (0..2).map(|s| server.metric("pinion_connections", s)).sum();
        (left <= 4.0).then_some(())
    });
    server.stop();
}

#[test]
fn a_drain_ends_under_load_and_keeps_every_ack() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    let address = server.native.to_string();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (address, stop) = (address.clone(), stop.clone());
            std::thread::spawn(move || {
                let options = ConnectOptions {
                    timeout: std::time::Duration::from_secs(5),
                    shard_aware: writer % 2 == 0,
                    ..ConnectOptions::default()
                };
                let mut client = client::Client::connect(&address, options).expect("it listens");
                let mut acked = Vec::new();
                for i in 0.. {
                    if stop.load(std::sync::atomic::Ordering::Relaxed) {
                        break;
                    }
                    let key = format!("{writer}-{i}");
                    match client.append("s", &[record(key.as_bytes(), b"x")]) {
                        Ok(_) => acked.push(key),
                        Err(_) => break,
                    }
                }
                acked
            })
        })
        .collect();
    // Half of the requests cross shards, in both directions.
    let hops = |s| server.metric("pinion_mailbox_hops_total", s);
    eventually("some load of every writer", || {
        let records = server.metric("pinion_records_total", 0);
        (records > 200.0 && hops(0) > 10.0 && hops(1) > 10.0).then_some(())
    });
    let started = std::time::Instant::now();
    server.stop();
    let took = started.elapsed();
    assert!(took < std::time::Duration::from_secs(20), "{took:?}");
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let acked: Vec<String> = writers
        .into_iter()
        .flat_map(|w| w.join().expect("no panic"))
        .collect();
    assert!(acked.len() > 200);
    let server = Server::start(data.path(), 2);
    let there: BTreeSet<Vec<u8>> = server
        .client()
        .scan("s", 1000)
        .map(|r| r.expect("served").key)
        .collect();
    for key in &acked {
        assert!(
            there.contains(key.as_bytes()),
            "{key} was acked and is lost"
        );
    }
    assert_eq!(there.len(), acked.len(), "what was taken was answered");
    server.stop();
}

/// What one shard would refuse is known before another has appended.
#[test]
fn a_request_with_a_part_that_is_too_large_is_appended_nowhere() {
    let data = directory();
    // A body may be larger than what one shard takes at once where segments are large.
    let mut server = Server::spawn(data.path(), &["--shards", "2", "--memory", "3GiB"]);
    server.wait_until_ready();
    let mut http = server.http();
    let line = |tag: &str, bytes: usize| {
        let value = "x".repeat(bytes);
        format!("{{\"key\":\"{{{tag}}}\",\"value\":\"{value}\"}}\n")
    };
    let shard_of = |tag: &str| wire::slot::shard_of_slot(wire::slot::slot_of(tag.as_bytes()), 2);
    let tags: Vec<String> = (0..100).map(|number| format!("t{number}")).collect();
    for large in [0, 1] {
        let of = |shard| {
            tags.iter()
                .find(|tag| shard_of(tag) == shard)
                .expect("some")
        };
        let mut body = line(of(1 - large), 10);
        body.push_str(&line(of(large), 900 << 10).repeat(12));
        let answer = http.call(
            "POST",
            "/v1/streams/s/records",
            &["Content-Type: application/x-ndjson"],
            body,
        );
        assert_eq!(answer.status, 413);
        let problem = answer.json()["detail"].to_string();
        assert!(problem.contains("send it in parts"), "{problem}");
        assert_eq!(http.get("/v1/streams/s").status, 404, "{problem}");
    }
    server.stop();
}
