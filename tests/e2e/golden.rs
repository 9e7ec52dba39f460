//! A data directory of format version 1, kept in the repository: whatever is changed, this one must still open and read
//! back. A format that cannot do that needs a new version number, and a way to get there.
//!
//! To make it anew (only together with a new version of the format, or to hold more):
//! `PINION_TEST_MAKE_GOLDEN=1 cargo test --test e2e golden::`. It is a compressed tar, almost all zeroes before.

use std::path::Path;
use std::process::Command;

use crate::http::{Connection, scan};
use crate::server::{Directory, Server, directory, pinion, run};

const ARCHIVE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/format-1.tar.gz");
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

fn unpacked() -> Directory {
    let data = directory();
    let status = Command::new("tar")
        .args(["-xzSf", ARCHIVE, "-C"])
        .arg(data.path())
        .status();
    assert!(status.expect("tar is there").success());
    data
}

#[test]
fn a_directory_of_format_1_opens_and_reads_back() {
    if std::env::var_os("PINION_TEST_MAKE_GOLDEN").is_some() {
        make();
    }
    // Once with its checkpoints, once from the log alone.
    for with_checkpoints in [true, false] {
        let data = unpacked();
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
    let _ = std::fs::remove_file(data.path().join("LOCK"));
    std::fs::create_dir_all(Path::new(ARCHIVE).parent().expect("a folder")).expect("made");
    let tar = Command::new("tar")
        .env("GZIP", "-9")
        .args([
            "-czSf",
            ARCHIVE,
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--mtime=2000-01-01",
            "-C",
        ])
        .arg(data.path())
        .arg(".")
        .status();
    assert!(tar.expect("tar is there").success());
    let bytes = std::fs::metadata(ARCHIVE).expect("made").len();
    assert!(
        bytes < 200 << 10,
        "{bytes} bytes are too many for the repository"
    );
}
