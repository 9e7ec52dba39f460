//! Real input: Debian packages, one record per (package, field), loaded with `pinion load`. Everything reads back over both
//! protocols, before and after a restart that uses the checkpoint.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::http;
use crate::server::{Server, directory};

const FIXTURE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/loadtest/fixtures/packages-small.ndjson"
);

/// Lines by key, in file order: the history that every key must have.
fn expected() -> BTreeMap<String, Vec<String>> {
    let text = std::fs::read_to_string(FIXTURE).expect("the fixture is part of the repository");
    let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in text.lines() {
        let json: Value = serde_json::from_str(line).expect("a line of JSON");
        keys.entry(json["key"].as_str().expect("a key").to_owned())
            .or_default()
            .push(line.to_owned());
    }
    keys
}

fn percent(key: &str) -> String {
    key.bytes()
        .map(|b| {
            if b.is_ascii_alphanumeric() {
                char::from(b).to_string()
            } else {
                format!("%{b:02X}")
            }
        })
        .collect()
}

/// The value of a rendered record is the loaded line, up to white space that JSON does not see.
#[track_caller]
fn assert_is(record: &Value, key: &str, version: usize, line: &str) {
    assert_eq!(record["key"], key);
    assert_eq!(record["version"], version);
    assert_eq!(
        record["value"],
        serde_json::from_str::<Value>(line).expect("JSON")
    );
}

fn assert_all_there(server: &Server, keys: &BTreeMap<String, Vec<String>>) {
    let total: usize = keys.values().map(Vec::len).sum();
    let mut native = server.client();
    let mut http = server.http();
    for (key, lines) in keys {
        let newest = native
            .get("packages", key.as_bytes())
            .expect("served")
            .expect("there");
        assert_eq!(
            newest.payload,
            lines.last().expect("a line").as_bytes(),
            "{key}"
        );
        assert_eq!(
            (newest.version as usize, newest.content_type.as_str()),
            (lines.len(), "application/json")
        );
        let history = native
            .history("packages", key.as_bytes(), 0, 1000)
            .expect("served");
        let payloads: Vec<&[u8]> = history.iter().rev().map(|r| r.payload.as_slice()).collect();
        assert_eq!(
            payloads,
            lines.iter().map(|l| l.as_bytes()).collect::<Vec<_>>(),
            "history of {key}"
        );
        assert!(
            history
                .iter()
                .rev()
                .map(|r| r.version as usize)
                .eq(1..=lines.len()),
            "versions of {key}"
        );

        let path = format!("/v1/streams/packages/records/{}", percent(key));
        let newest = http.get(&path);
        assert_eq!(
            (newest.status, newest.body.as_slice()),
            (200, lines.last().expect("a line").as_bytes())
        );
        assert_eq!(
            newest.header("etag"),
            Some(format!("\"{}\"", lines.len()).as_str())
        );
        let history = http.get(&format!("{path}/history?limit=1000")).lines();
        assert_eq!(history.len(), lines.len());
        for (at, record) in history.iter().enumerate() {
            assert_is(record, key, lines.len() - at, &lines[lines.len() - 1 - at]);
        }
    }

    let mut seen = 0;
    for record in native.scan("packages", 777) {
        let record = record.expect("served");
        let key = String::from_utf8(record.key).expect("a package name");
        assert_eq!(
            record.payload,
            keys[&key][record.version as usize - 1].as_bytes()
        );
        seen += 1;
    }
    assert_eq!(seen, total, "native scan");
    let lines = http::scan(&mut http, "packages", 500);
    assert_eq!(lines.len(), total, "HTTP scan");
    let mut positions = std::collections::BTreeSet::new();
    for record in &lines {
        let key = record["key"].as_str().expect("a key");
        let version = record["version"].as_u64().expect("a version") as usize;
        assert_is(record, key, version, &keys[key][version - 1]);
        assert!(
            positions.insert(record["position"].as_str().expect("a position").to_owned()),
            "a position twice"
        );
    }

    let counts = http.get("/v1/streams/packages").json();
    assert_eq!(
        (&counts["records"], &counts["keys"]),
        (&total.into(), &keys.len().into())
    );
}

/// The client commands give the same for a few keys.
fn assert_commands(server: &Server, keys: &BTreeMap<String, Vec<String>>) {
    let total: usize = keys.values().map(Vec::len).sum();
    for (key, lines) in keys.iter().take(3) {
        let (newest, _) = server.cli(&["get", "packages", key], 0);
        assert_eq!(newest.trim_end(), lines.last().expect("a line"));
        let (history, _) = server.cli(&["history", "packages", key], 0);
        let history: Vec<Value> = history
            .lines()
            .map(|l| serde_json::from_str(l).expect("NDJSON"))
            .collect();
        assert_eq!(history.len(), lines.len());
        assert_is(&history[0], key, lines.len(), lines.last().expect("a line"));
    }
    let (scan, stderr) = server.cli(&["scan", "packages"], 0);
    assert_eq!(scan.lines().count(), total);
    // The cursor behind the end goes on from there: nothing is printed twice.
    let cursor = stderr
        .trim()
        .strip_prefix("cursor: ")
        .expect("the cursor is told");
    assert!(
        !cursor.is_empty(),
        "a scan that has read records tells where it ended"
    );
    let (rest, _) = server.cli(&["scan", "packages", "--cursor", cursor], 0);
    assert_eq!(rest, "");
    let (tail, _) = server.cli(&["tail", "packages", "--limit", "10"], 0);
    assert_eq!(tail.lines().count(), 10);
    server.cli(&["get", "packages", "no-such-package"], 1);
    server.cli(&["history", "packages", "no-such-package"], 1);
}

fn packages_read_back(shards: usize) {
    let keys = expected();
    let total: usize = keys.values().map(Vec::len).sum();
    let data = directory();
    let server = Server::start(data.path(), shards);
    let (report, _) = server.cli(
        &[
            "load", FIXTURE, "--stream", "packages", "--key", "key", "--batch", "50",
        ],
        0,
    );
    assert!(
        report.contains("loaded") && report.contains("p99"),
        "{report}"
    );
    assert_all_there(&server, &keys);
    assert_commands(&server, &keys);
    server.stop();

    let server = Server::start(data.path(), shards);
    // Restart = checkpoint + the log behind it: after a clean stop there is nothing behind it.
    let recovered: Vec<String> = server
        .stderr()
        .lines()
        .rev()
        .filter(|l| l.contains("recovered in"))
        .take(shards)
        .map(str::to_owned)
        .collect();
    assert_eq!(recovered.len(), shards);
    for line in &recovered {
        assert!(
            !line.contains(" 0 keys from a checkpoint") && line.contains(", 0 records from"),
            "{line}"
        );
    }
    assert_all_there(&server, &keys);
    assert_commands(&server, &keys);

    // And it goes on behind what was there.
    let (first, lines) = keys.first_key_value().expect("packages");
    let (said, _) = server.cli(
        &[
            "append",
            "packages",
            first,
            "{}",
            "--content-type",
            "application/json",
        ],
        0,
    );
    let said: Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!(
        (&said["version"], &said["durability"]),
        (&(lines.len() + 1).into(), &"durable".into())
    );
    assert_eq!(total, keys.values().map(Vec::len).sum::<usize>());
    server.stop();
}

#[test]
fn packages_read_back_from_one_shard() {
    packages_read_back(1);
}

#[test]
fn packages_read_back_from_two_shards() {
    packages_read_back(2);
}
