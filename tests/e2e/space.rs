//! Space comes back: a small working set is written many times over, and the files stay few; clean and killed restarts read all
//! of it back.

use std::path::Path;

use crate::server::{Server, directory, eventually, metric_in, pinion, run};

const KEYS: usize = 40;
const BODY: usize = 40 * 1024;
/// Twice what can be read is one segment of 4 MiB; one is walked, and up to three are released between two checkpoints.
const HELD_SEGMENTS: f64 = 5.0;

fn body(key: usize, round: usize) -> Vec<u8> {
    let mut body = format!("{key}:{round};").into_bytes();
    body.resize(BODY, b'a' + (round % 26) as u8);
    body
}

fn segment_bytes(data: &Path) -> u64 {
    let files = std::fs::read_dir(data.join("log-00000000")).expect("the log's folder");
    let files = files.map(|file| file.expect("a file"));
    files
        .filter(|file| file.file_name().to_string_lossy().ends_with(".seg"))
        .map(|file| file.metadata().expect("a file").len())
        .sum()
}

/// Segments that hold what may be read, or wait for checkpoints that let go of them.
fn held_segments(server: &Server) -> f64 {
    let metrics = server.http().get("/metrics").text();
    ["sealed", "released"]
        .map(|state| {
            metric_in(
                &metrics,
                &format!("pinion_segments{{shard=\"0\",state=\"{state}\"}}"),
                0,
            )
        })
        .iter()
        .sum()
}

/// Rewrites every key in each round; the newest round by key goes into `newest`. Each round waits until what the ones before
/// it wrote is freed: a writer that does not wait takes as much more as it is faster than the device's syncs.
fn rewrite(server: &Server, rounds: std::ops::Range<usize>, newest: &mut [usize]) {
    let mut http = server.http();
    for round in rounds {
        eventually("space to be freed", || {
            (held_segments(server) <= HELD_SEGMENTS).then_some(())
        });
        for (key, newest) in newest.iter_mut().enumerate() {
            // A quarter of the keys is written once in a while only.
            if key % 4 == 0 && !round.is_multiple_of(17) {
                continue;
            }
            let put = http.post(&format!("/v1/streams/s/records/k{key}"), body(key, round));
            assert_eq!(put.status, 201, "{}", put.text());
            *newest = round;
        }
    }
}

fn holds(server: &Server, newest: &[usize]) {
    let mut http = server.http();
    for (key, round) in newest.iter().enumerate() {
        let got = http.get(&format!("/v1/streams/s/records/k{key}"));
        assert_eq!(got.status, 200, "k{key}: {}", got.text());
        assert!(got.text().as_bytes() == body(key, *round), "k{key}");
    }
    let mut keys: Vec<String> = crate::http::scan(&mut http, "s", 7)
        .iter()
        .map(|line| line["key"].as_str().expect("a key").to_owned())
        .collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), KEYS);
}

#[test]
fn a_working_set_written_many_times_over_takes_twice_its_size_and_a_constant() {
    let data = directory();
    let start = || Server::start(data.path(), 1);
    let server = start();
    let put = server
        .http()
        .call("PUT", "/v1/streams/s", &[], r#"{"history_depth": 1}"#);
    assert_eq!(put.status, 200, "{}", put.text());
    let mut newest = vec![0; KEYS];
    rewrite(&server, 0..120, &mut newest);
    eventually("segments to be used again", || {
        (server.metric("pinion_segments_recycled_total", 0) > 10.0).then_some(())
    });
    // 120 rounds are 150 MiB of log; 1.6 MiB of it can be read. Beside what is held there are the open segment, what a round
    // adds, two ahead and one that is being filled. Not as much as was written.
    let bound = (HELD_SEGMENTS as u64 + 5) * (4 << 20);
    let taken = segment_bytes(data.path());
    assert!(taken <= bound, "{taken} bytes of segments, {bound} allowed");
    assert!(server.metric("pinion_segments_released_total", 0) > 20.0);
    holds(&server, &newest);

    server.stop();
    let (said, _) = run(
        &mut pinion(&["verify", data.path().to_str().expect("UTF-8")]),
        0,
    );
    assert!(!said.contains("DAMAGE"), "{said}");
    let server = start();
    holds(&server, &newest);
    rewrite(&server, 120..180, &mut newest);
    holds(&server, &newest);
    server.kill();
    run(
        &mut pinion(&["inspect", data.path().to_str().expect("UTF-8")]),
        0,
    );
    let server = start();
    holds(&server, &newest);
    rewrite(&server, 180..240, &mut newest);
    let taken = segment_bytes(data.path());
    assert!(taken <= bound, "{taken} bytes of segments, {bound} allowed");
    holds(&server, &newest);
    server.stop();
}

/// The numbers that a scan shows, ascending; gets must agree.
fn shown(server: &Server, of: std::ops::Range<usize>) -> Vec<usize> {
    let mut http = server.http();
    let mut scanned: Vec<usize> = (crate::http::scan(&mut http, "b", 50).iter())
        .map(|line| {
            line["key"].as_str().expect("a key")[1..]
                .parse()
                .expect("a number")
        })
        .collect();
    scanned.sort_unstable();
    for key in of.step_by(17) {
        let got = http.get(&format!("/v1/streams/b/records/k{key}"));
        let expected = if scanned.contains(&key) { 200 } else { 404 };
        assert_eq!(got.status, expected, "k{key}");
    }
    scanned
}

#[test]
fn a_stream_with_a_limit_in_bytes_keeps_its_newest_before_and_after_restarts() {
    const LIMIT: usize = 4 << 20;
    let data = directory();
    let start = || Server::start(data.path(), 1);
    let server = start();
    let policy = format!(r#"{{"max_bytes": {LIMIT}}}"#);
    let put = server.http().call("PUT", "/v1/streams/b", &[], &policy);
    assert_eq!(put.status, 200, "{}", put.text());
    let write = |server: &Server, numbers: std::ops::Range<usize>| {
        let mut http = server.http();
        for number in numbers {
            let put = http.post(&format!("/v1/streams/b/records/k{number}"), body(number, 0));
            assert_eq!(put.status, 201, "{}", put.text());
        }
    };
    write(&server, 0..1500);
    let held = |shown: &[usize], last: usize| {
        let bytes = shown.len() * BODY;
        assert!(
            (LIMIT - BODY..LIMIT + LIMIT / 32).contains(&bytes),
            "{bytes}"
        );
        assert_eq!(
            (shown.len(), shown.last()),
            (last + 1 - shown[0], Some(&last))
        );
    };
    let before = shown(&server, 0..1500);
    held(&before, 1499);
    eventually("segments to be used again", || {
        (server.metric("pinion_segments_recycled_total", 0) > 3.0).then_some(())
    });
    // 60 MB were written; the test's segments are 4 MiB.
    let taken = segment_bytes(data.path());
    assert!(taken <= (2 * LIMIT + 16 * (4 << 20)) as u64, "{taken}");
    assert!(server.metric("pinion_ended_bytes_total", 0) > 50e6);
    server.kill();
    let server = start();
    assert_eq!(shown(&server, 0..1500), before, "after a kill");
    write(&server, 1500..1600);
    let after = shown(&server, 0..1600);
    held(&after, 1599);
    server.stop();
    let server = start();
    assert_eq!(shown(&server, 0..1600), after, "after a stop");
    let said = server.http().get("/v1/streams/b").json();
    assert_eq!(said["policy"]["max_bytes"], LIMIT, "{said}");
    server.stop();
}
