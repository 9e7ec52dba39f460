//! Corruption is found, never served: `verify` and a starting server name the same place, and other shards go on.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::server::{SMALL, Server, directory, eventually, pinion, run};

/// The newest byte of a needle in a file, flipped.
fn flip(path: &Path, needle: &[u8]) -> u64 {
    let bytes = std::fs::read(path).expect("there");
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .expect("the record is in this file") as u64;
    let file = File::options().write(true).open(path).expect("writable");
    file.write_all_at(&[needle[0] ^ 0x10], at).expect("written");
    file.sync_all().expect("synced");
    at
}

fn segment(data: &Path, log: u32) -> PathBuf {
    data.join(format!("log-{log:08}"))
        .join("segment-00000000.seg")
}

/// Keys of shard 0 and of shard 1.
fn keys(shard: u16) -> impl Iterator<Item = String> {
    (0..)
        .map(|i| format!("k{i}"))
        .filter(move |k| wire::slot::shard_of_slot(wire::slot::slot_of(k.as_bytes()), 2) == shard)
}

#[test]
fn damage_is_named_by_verify_and_stops_only_its_shard() {
    let data = directory();
    let text = data.path().to_str().expect("UTF-8");
    let server = Server::start(data.path(), 2);
    let mut http = server.http();
    for shard in 0..2 {
        for (i, key) in keys(shard).take(20).enumerate() {
            let stored = http.post(
                &format!("/v1/streams/s/records/{key}"),
                format!("payload {i} of shard {shard}."),
            );
            assert_eq!(stored.status, 201);
        }
    }
    server.stop();
    let (stdout, _) = run(&mut pinion(&["verify", text]), 0);
    assert!(stdout.contains("no damage"), "{stdout}");
    let (stdout, _) = run(&mut pinion(&["inspect", text]), 0);
    assert!(!stdout.is_empty());

    let at = flip(&segment(data.path(), 1), b"payload 7 of shard 1.");
    let (stdout, stderr) = run(&mut pinion(&["verify", text]), 1);
    for wanted in ["log-00000001", "segment-00000000.seg", "offset", "lsn"] {
        assert!(stderr.contains(wanted), "{wanted} is not in: {stderr}");
    }
    assert!(stdout.contains("damage: "), "{stdout}");
    // The batch that holds the byte, not just some place.
    let offset: u64 = stderr
        .split("at offset ")
        .nth(1)
        .and_then(|t| t.split([',', ':', ' ']).next())
        .and_then(|t| t.parse().ok())
        .expect("an offset");
    assert!(
        offset <= at && at < offset + 4096,
        "byte {at} was flipped, {offset} was named"
    );

    // The checkpoint stands before it, so only reads of the record can notice: they must, and never serve it.
    let mut all = vec!["--shards", "2"];
    all.extend(SMALL);
    let server = Server::spawn(data.path(), &all);
    let mut http = server.http();
    let damaged = keys(1).nth(7).expect("a key");
    let answer = eventually("an answer about the damaged record", || {
        let answer = http.get(&format!("/v1/streams/s/records/{damaged}"));
        (!answer.text().contains("recovering")).then_some(answer)
    });
    assert!(
        matches!(answer.status, 500 | 503),
        "{} {}",
        answer.status,
        answer.text()
    );
    let scan = http.get("/v1/streams/s/scan?limit=10000");
    assert!(
        matches!(scan.status, 500 | 503),
        "{} {}",
        scan.status,
        scan.text()
    );
    for key in keys(0).take(20) {
        assert_eq!(
            http.get(&format!("/v1/streams/s/records/{key}")).status,
            200,
            "shard 0 goes on"
        );
    }
    server.kill();

    // Without the checkpoint the log is replayed, and the shard stops where verify said.
    for copy in ["checkpoint-a", "checkpoint-b"] {
        File::options()
            .write(true)
            .open(data.path().join("log-00000001").join(copy))
            .expect("there")
            .set_len(0)
            .expect("cut");
    }
    let mut server = Server::spawn(data.path(), &all);
    let mut http = server.http();
    let key = keys(1).next().expect("a key");
    let path = format!("/v1/streams/s/records/{key}");
    let detail = eventually("the shard to stop", || {
        let detail = http.get(&path).problem(503, "unavailable");
        detail.contains("has stopped").then_some(detail)
    });
    for wanted in ["segment-00000000.seg", "offset", "lsn"] {
        assert!(detail.contains(wanted), "{wanted} is not in: {detail}");
    }
    assert!(
        detail.contains(&format!("at offset {offset}")),
        "{detail} does not name offset {offset} as verify did"
    );
    let refused = http.post(&path, "x");
    refused.problem(503, "unavailable");
    assert!(refused.header("retry-after").is_some());
    http.get("/readyz").problem(503, "unavailable");
    assert_eq!(http.get("/healthz").status, 200);
    // It may still recover when the other one has stopped.
    let first = format!("/v1/streams/s/records/{}", keys(0).next().expect("a key"));
    eventually("shard 0 to be ready", || {
        (http.get(&first).status == 200).then_some(())
    });
    for key in keys(0).take(20) {
        assert_eq!(
            http.get(&format!("/v1/streams/s/records/{key}")).status,
            200,
            "shard 0 goes on"
        );
        assert_eq!(
            http.post(&format!("/v1/streams/s/records/{key}"), "more")
                .status,
            201
        );
    }
    server.assert_alive();
    // It ends when asked to, and says that not all is well.
    let status = server.terminate();
    assert_eq!(status.code(), Some(1), "{}", server.stderr());
}

#[test]
fn a_torn_tail_is_cut_and_everything_before_it_is_there() {
    let data = directory();
    let text = data.path().to_str().expect("UTF-8");
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    for i in 0..10 {
        assert_eq!(
            http.post(
                &format!("/v1/streams/s/records/k{i}"),
                format!("payload {i}.")
            )
            .status,
            201
        );
    }
    server.kill();
    // What a power cut may leave behind the last whole batch: a piece of a batch that was never acked.
    let path = segment(data.path(), 0);
    let bytes = std::fs::read(&path).expect("there");
    let end = bytes
        .chunks(4096)
        .rposition(|block| block.iter().any(|b| *b != 0))
        .expect("batches")
        + 1;
    let last = bytes
        .chunks(4096)
        .take(end)
        .rposition(|block| block.starts_with(b"pinBATCH"))
        .expect("a batch");
    let torn = &bytes[last * 4096..last * 4096 + 512];
    let file = File::options().write(true).open(&path).expect("writable");
    file.write_all_at(torn, end as u64 * 4096).expect("written");
    drop(file);
    run(&mut pinion(&["verify", text]), 0);
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    for i in 0..10 {
        assert_eq!(
            http.get(&format!("/v1/streams/s/records/k{i}")).text(),
            format!("payload {i}.")
        );
    }
    assert_eq!(http.post("/v1/streams/s/records/next", "x").status, 201);
    server.kill();
    let server = Server::start(data.path(), 1);
    assert_eq!(server.http().get("/v1/streams/s/records/next").text(), "x");
    server.stop();
    run(&mut pinion(&["verify", text]), 0);
}

#[test]
fn a_running_server_finds_a_flipped_bit_in_a_sealed_segment_by_itself() {
    let data = directory();
    let server = Server::start_with(data.path(), 1, &["--scrub-bytes-per-second", "1GiB"]);
    let mut http = server.http();
    let payload = |number: usize| format!("payload {number}.{}", "x".repeat(100_000));
    for number in 0..60 {
        let target = format!("/v1/streams/s/records/k{number}");
        assert_eq!(http.post(&target, payload(number)).status, 201);
    }
    eventually("a round of the scrub", || {
        (server.metric("pinion_scrub_bytes_total", 0) > 2e6).then_some(())
    });
    assert_eq!(
        server.metric("pinion_scrub_errors_total", 0),
        0.0,
        "{}",
        server.stderr()
    );
    flip(&segment(data.path(), 0), b"payload 3.");
    eventually("the damage to be found", || {
        (server.metric("pinion_scrub_errors_total", 0) > 0.0).then_some(())
    });
    let log = server.stderr();
    assert!(
        log.contains("segment-00000000.seg (segment 1) at offset "),
        "{log}"
    );
    server.stop();
}

#[test]
fn a_device_profile_of_garbage_is_measured_again() {
    let data = directory();
    let profile = data.path().join("device.toml");
    for garbage in [&b"\xff\xfe\x00 not text"[..], b"", b"sync_method = 3\n"] {
        Server::start(data.path(), 1).stop();
        let whole = std::fs::read_to_string(&profile).expect("written at the start");
        assert!(whole.contains("sync_method = \""), "{whole}");
        std::fs::write(&profile, garbage).expect("a directory that can be written");
    }
    let server = Server::start(data.path(), 1);
    assert!(server.stderr().contains("measuring the device again"));
    server.stop();
}
