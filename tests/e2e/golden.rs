//! Data directories of format version 1, kept in the repository: whatever is changed, these must still open and read
//! back. A format that cannot do that needs a new version number, and a way to get there.
//!
//! To make it anew (only together with a new version of the format, or to hold more):
//! `PINION_TEST_MAKE_GOLDEN=FILE cargo test --test e2e golden::`, FILE as it is named below. It is a compressed tar, almost all zeroes before.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::http::{Connection, scan};
use crate::server::{Directory, Server, directory, pinion, run};

/// Two shards: checkpoints, retry windows, a policy, tombstones, a tail behind the checkpoint.
const PLAIN: &str = "format-1.tar.gz";
/// Three shards whose first segments are gone: copies, ended keys, two checkpoints that say so.
const COMPACTED: &str = "format-1-compacted.tar.gz";
/// The same laid down anew for two shards, and written to since: what was carried is in notes and in checkpoints.
const RESHARDED: &str = "format-1-resharded.tar.gz";
const FLAGS: [&str; 10] = [
    "--shards",
    "2",
    "--segment-bytes",
    "1MiB",
    "--segments-ahead",
    "1",
    "--payload-bytes-max",
    "256KiB",
    "--memory",
    "1GiB",
];
const KEYS: usize = 30;
const LARGE: usize = 200 << 10;

fn start(data: &Path) -> Server {
    let mut server = Server::spawn(data, &FLAGS);
    server.wait_until_ready();
    server
}

/// A payload that compresses, and is large enough that segments roll.
fn large(i: usize) -> Vec<u8> {
    format!("large {i} ").bytes().cycle().take(LARGE).collect()
}

/// What is written: with checkpoints, retry windows, a policy, tombstones, every content type, several segments.
fn write(server: &Server) {
    let mut http = server.http();
    let policy = http.call("PUT", "/v1/streams/limited", &[], r#"{"history_depth": 2}"#);
    assert_eq!(policy.status, 200);
    for version in 1..=3 {
        for key in 0..KEYS {
            let path = format!("/v1/streams/golden/records/key-{key}");
            let body = format!("{{\"key\":{key},\"version\":{version}}}");
            let json = ["Content-Type: application/json"];
            assert_eq!(http.call("POST", &path, &json, body).status, 201);
        }
        http.post("/v1/streams/limited/records/k", format!("{version}"));
    }
    for i in 0..12 {
        let path = format!("/v1/streams/large/records/large-{i}");
        assert_eq!(http.post(&path, large(i)).status, 201);
    }
    let text = ["Content-Type: text/plain", "Idempotency-Key: golden"];
    http.call(
        "POST",
        "/v1/streams/golden/records/once",
        &text,
        "only once",
    );
    let other = ["Content-Type: image/x-golden"];
    http.call(
        "POST",
        "/v1/streams/golden/records/other%20type",
        &other,
        [0, 1, 2, 255],
    );
    assert_eq!(
        http.call("DELETE", "/v1/streams/golden/records/key-0", &[], "")
            .status,
        204
    );
}

fn assert_reads_back(http: &mut Connection) {
    for key in 1..KEYS {
        let path = format!("/v1/streams/golden/records/key-{key}");
        let newest = http.get(&path);
        assert_eq!(newest.text(), format!("{{\"key\":{key},\"version\":3}}"));
        assert_eq!(newest.header("etag"), Some("\"3\""));
        let history = http.get(&format!("{path}/history")).lines();
        let versions: Vec<u64> = history
            .iter()
            .map(|l| l["value"]["version"].as_u64().expect("a version"))
            .collect();
        assert_eq!(versions, [3, 2, 1]);
    }
    http.get("/v1/streams/golden/records/key-0")
        .problem(404, "not_found");
    assert_eq!(
        http.get("/v1/streams/golden/records/key-0/history")
            .lines()
            .len(),
        4
    );
    for i in 0..12 {
        assert!(
            http.get(&format!("/v1/streams/large/records/large-{i}"))
                .body
                == large(i),
            "large {i}"
        );
    }
    let other = http.get("/v1/streams/golden/records/other%20type");
    assert_eq!(
        (other.header("content-type"), other.body.as_slice()),
        (Some("image/x-golden"), &[0, 1, 2, 255][..])
    );
    assert_eq!(scan(http, "golden", 50).len(), KEYS * 3 + 3);
    assert_eq!(scan(http, "limited", 50).len(), 2, "the policy is kept");
    assert_eq!(
        http.get("/v1/streams/limited").json()["policy"]["history_depth"],
        2
    );
    let counts = http.get("/v1/streams/golden").json();
    assert_eq!(
        (&counts["records"], &counts["keys"]),
        (&(KEYS * 3 + 3).into(), &(KEYS + 1).into())
    );
}

fn archive(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// Whether this one is to be made anew.
fn is_asked_for(name: &str) -> bool {
    std::env::var_os("PINION_TEST_MAKE_GOLDEN").is_some_and(|asked| asked == name)
}

fn unpacked(name: &str) -> Directory {
    let data = directory();
    let status = Command::new("tar")
        .arg("-xzSf")
        .arg(archive(name))
        .arg("-C")
        .arg(data.path())
        .status();
    assert!(status.expect("tar is there").success());
    data
}

#[test]
fn a_directory_of_format_1_opens_and_reads_back() {
    if is_asked_for(PLAIN) {
        make();
    }
    // Once with its checkpoints, once from the log alone.
    for with_checkpoints in [true, false] {
        let data = unpacked(PLAIN);
        if !with_checkpoints {
            for log in ["log-00000000", "log-00000001"] {
                for copy in ["checkpoint-a", "checkpoint-b"] {
                    std::fs::remove_file(data.path().join(log).join(copy)).expect("there");
                }
            }
        }
        run(pinion(&["verify"]).arg(data.path()), 0);
        let server = start(data.path());
        assert_reads_back(&mut server.http());
        let mut http = server.http();
        let next = http.post("/v1/streams/golden/records/key-1", "next");
        assert_eq!(next.json()["version"], 4);
        server.stop();
        run(pinion(&["verify"]).arg(data.path()), 0);
        let server = start(data.path());
        assert_eq!(
            server.http().get("/v1/streams/golden/records/key-1").text(),
            "next"
        );
        server.stop();
    }
}

fn make() {
    let data = directory();
    let server = start(data.path());
    write(&server);
    assert_reads_back(&mut server.http());
    server.stop();
    // A second life: another epoch, and a log behind the checkpoint that a crash leaves.
    let server = start(data.path());
    let mut http = server.http();
    for i in 0..12 {
        http.post(&format!("/v1/streams/large/records/large-{i}"), large(i));
    }
    server.kill();
    pack(data.path(), PLAIN);
}

fn pack(data: &Path, name: &str) {
    let _ = std::fs::remove_file(data.join("LOCK"));
    let tar = Command::new("tar")
        .env("GZIP", "-9")
        .arg("-czSf")
        .arg(archive(name))
        .args([
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--mtime=2000-01-01",
            "-C",
        ])
        .arg(data)
        .arg(".")
        .status();
    assert!(tar.expect("tar is there").success());
    let bytes = std::fs::metadata(archive(name)).expect("made").len();
    assert!(
        bytes < 200 << 10,
        "{bytes} bytes are too many for the repository"
    );
}

fn start_with(data: &Path, shards: &str) -> Server {
    let mut flags = FLAGS.to_vec();
    (flags[1], flags[9]) = (shards, "2GiB");
    flags.extend(["--checkpoint-log-bytes", "2MiB"]);
    let mut server = Server::spawn(data, &flags);
    server.wait_until_ready();
    server
}

/// Retries may come for as long as a policy can say: the repository is older every day.
const POLICIES: [(&str, &str); 3] = [
    ("newest", r#"{"history_depth": 1}"#),
    ("three", r#"{"history_depth": 3}"#),
    (
        "kept",
        r#"{"dedup_window_seconds": 4000000000, "max_age_seconds": 4000000000}"#,
    ),
];

fn once(http: &mut Connection, key: usize) -> u64 {
    let header = format!("Idempotency-Key: {key}");
    let path = format!("/v1/streams/kept/records/once-{key}");
    let answer = http.call("POST", &path, &[&header], "once");
    assert_eq!(answer.status, 201, "{}", answer.text());
    answer.json()["version"].as_u64().expect("a version")
}

fn write_until_compacted(server: &Server) {
    let mut http = server.http();
    for (stream, policy) in POLICIES {
        http.call("PUT", &format!("/v1/streams/{stream}"), &[], policy);
    }
    for key in 0..12 {
        let ended = format!("/v1/streams/newest/records/ended-{key}");
        http.post(&ended, "x");
        assert_eq!(http.call("DELETE", &ended, &[], "").status, 204);
        for version in 1..=5 {
            let path = format!("/v1/streams/three/records/k{key}");
            http.post(&path, format!("{version}"));
        }
        assert_eq!(once(&mut http, key), 1);
    }
    for round in 0..400u32 {
        for key in 0..12 {
            let path = format!("/v1/streams/newest/records/large-{key}");
            assert_eq!(http.post(&path, large(round as usize % 3)).status, 201);
        }
        let recycled = |shard| server.metric("pinion_segments_recycled_total", shard);
        if (0..3).all(|shard| recycled(shard) > 3.0) {
            return;
        }
    }
    panic!("not every shard has used a segment again");
}

/// `next`: the version that an ended key goes on with.
fn assert_compacted_reads_back(server: &Server, next: u64) {
    let mut http = server.http();
    for key in 0..12 {
        let history = http.get(&format!("/v1/streams/three/records/k{key}/history"));
        let shown: Vec<u64> = history
            .lines()
            .iter()
            .map(|line| line["version"].as_u64().expect("a version"))
            .collect();
        assert_eq!(shown, [5, 4, 3], "k{key}");
        assert_eq!(once(&mut http, key), 1, "once-{key} is a repeat");
        let path = format!("/v1/streams/kept/records/once-{key}/history");
        assert_eq!(http.get(&path).lines().len(), 1, "once-{key}");
        let ended = format!("/v1/streams/newest/records/ended-{key}");
        http.get(&ended).problem(404, "not_found");
        assert_eq!(http.post(&ended, "again").json()["version"], next);
        let large = http.get(&format!("/v1/streams/newest/records/large-{key}"));
        assert_eq!((large.status, large.body.len()), (200, LARGE));
    }
    for (stream, records) in [("kept", 12), ("newest", 24)] {
        let mut keys: Vec<String> = scan(&mut http, stream, 5)
            .iter()
            .map(|line| line["key"].as_str().expect("a key").to_owned())
            .collect();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), records, "{stream}");
    }
    for (stream, policy) in POLICIES {
        let shown = http.get(&format!("/v1/streams/{stream}")).json();
        let wanted: serde_json::Value = serde_json::from_str(policy).expect("JSON");
        for (field, value) in wanted.as_object().expect("an object") {
            assert_eq!(&shown["policy"][field], value, "{stream} {field}");
        }
    }
}

#[test]
fn directories_whose_segments_were_released_or_whose_shards_were_changed_open_and_read_back() {
    if is_asked_for(COMPACTED) {
        let data = directory();
        let server = start_with(data.path(), "3");
        write_until_compacted(&server);
        server.stop();
        // Another epoch, and a tail behind the checkpoints.
        let server = start_with(data.path(), "3");
        assert_eq!(
            server
                .http()
                .post("/v1/streams/three/records/tail", "1")
                .status,
            201
        );
        server.kill();
        pack(data.path(), COMPACTED);
    }
    if is_asked_for(RESHARDED) {
        let data = unpacked(COMPACTED);
        run(
            pinion(&["reshard"])
                .arg(data.path())
                .args(["--shards", "2"]),
            0,
        );
        let server = start_with(data.path(), "2");
        assert_eq!(
            server
                .http()
                .post("/v1/streams/three/records/tail", "2")
                .status,
            201
        );
        server.stop();
        let server = start_with(data.path(), "2");
        assert_eq!(
            server
                .http()
                .post("/v1/streams/three/records/tail", "3")
                .status,
            201
        );
        server.kill();
        pack(data.path(), RESHARDED);
    }
    for (name, shards, other) in [(COMPACTED, "3", "1"), (RESHARDED, "2", "3")] {
        let data = unpacked(name);
        run(pinion(&["verify"]).arg(data.path()), 0);
        let server = start_with(data.path(), shards);
        assert_compacted_reads_back(&server, 3);
        server.stop();
        let data = unpacked(name);
        run(
            pinion(&["reshard"])
                .arg(data.path())
                .args(["--shards", other]),
            0,
        );
        let server = start_with(data.path(), other);
        assert_compacted_reads_back(&server, 3);
        server.stop();
    }
}
