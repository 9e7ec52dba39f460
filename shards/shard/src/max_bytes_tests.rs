//! A limit in bytes: what it ends, that every way of reading says the same, and that its space comes back.

use crate::space_tests::{BODY, begin, read, restart, scan, segment_files, write};
use crate::test_driver::{TestDriver, put_policy};
use crate::turn::Shard;

/// Thirty records of this stream, and a few bytes of their headers and keys.
pub(crate) const LIMIT: usize = 30 * (BODY + 100);

/// The numbers of the keys that a scan, gets and histories show; they must agree.
fn keys(shard: &mut Shard<TestDriver>, client: u64, of: std::ops::Range<usize>) -> Vec<usize> {
    let mut scanned: Vec<usize> = (scan(shard, client, 7, |_| ()).into_iter())
        .map(|one| one.0[1..].parse().expect("k and a number"))
        .collect();
    scanned.sort_unstable();
    for key in of {
        let (head, _) = read(shard, client, &format!("/v1/streams/s/records/k{key}"));
        let is_there = head.starts_with("HTTP/1.1 200");
        assert!(is_there || head.starts_with("HTTP/1.1 404"), "{head}");
        assert_eq!(
            is_there,
            scanned.contains(&key),
            "k{key}: get, and {scanned:?}"
        );
        // A key that has left the index has no history, not an empty one.
        let path = format!("/v1/streams/s/records/k{key}/history");
        let (head, versions) = read(shard, client, &path);
        let versions = if head.starts_with("HTTP/1.1 404") {
            0
        } else {
            versions.lines().count()
        };
        assert_eq!(versions, usize::from(is_there), "k{key}");
    }
    scanned
}

#[test]
fn the_newest_bytes_stay_the_others_end_for_every_reader_and_leave_the_disk() {
    let (mut shard, client) = begin(&format!(r#"{{"max_bytes":{LIMIT}}}"#));
    for number in 0..400 {
        write(&mut shard, client, number, number);
        if number % 100 == 99 {
            let shown = keys(&mut shard, client, number - 40..number + 1);
            assert!((30..=32).contains(&shown.len()), "{shown:?}");
            assert_eq!(shown.last(), Some(&number));
            assert_eq!(
                shown.len(),
                number + 1 - shown[0],
                "the newest, without a gap"
            );
        }
    }
    shard.turns(300);
    // 40 MB were written, 3 MB are left, in segments of 4 MiB.
    assert!(
        shard.space.released >= 7,
        "{} released",
        shard.space.released
    );
    assert!(
        segment_files(&shard) <= 9,
        "{} files",
        segment_files(&shard)
    );
    let shown = keys(&mut shard, client, 350..400);
    for epoch in 2..4 {
        (shard, _) = restart(shard, epoch);
        let client = shard.connect();
        assert_eq!(keys(&mut shard, client, 350..400), shown, "after a restart");
        shard.turns(300);
    }
    // An ended key begins anew.
    let client = shard.connect();
    write(&mut shard, client, 3, 500);
    assert!(keys(&mut shard, client, 0..10).contains(&3));
}

#[test]
fn copies_end_with_the_record_that_they_are_of() {
    // Hot keys of another stream have the cold ones copied forward before their limit comes.
    let (mut shard, client) = begin(&format!(r#"{{"max_bytes":{LIMIT}}}"#));
    let put = shard.ask(client, put_policy("hot", r#"{"history_depth":1}"#));
    assert!(put.starts_with("HTTP/1.1 20"), "{put}");
    for number in 0..20 {
        write(&mut shard, client, number, number);
    }
    let body = vec![b'h'; BODY];
    for _ in 0..200 {
        let mut request = format!(
            "POST /v1/streams/hot/records/h HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend_from_slice(&body);
        let mut answer = shard.ask(client, request);
        while answer.is_empty() {
            shard.turns(20);
            answer = shard.heard(client);
        }
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
    shard.turns(300);
    assert!(
        shard.space.relocated_records >= 20,
        "the cold ones have moved"
    );
    assert_eq!(keys(&mut shard, client, 0..20).len(), 20);
    for number in 20..45 {
        write(&mut shard, client, number, number);
    }
    let shown = keys(&mut shard, client, 0..45);
    assert!(
        (30..=32).contains(&shown.len()) && shown[0] >= 13,
        "{shown:?}"
    );
    let (mut shard, client) = restart(shard, 2);
    assert_eq!(keys(&mut shard, client, 0..45), shown);
}

#[test]
fn a_limit_that_changes_means_the_same_after_a_replay() {
    let (mut shard, client) = begin("{}");
    let set = |shard: &mut Shard<TestDriver>, client, policy: &str| {
        let put = shard.ask(client, put_policy("s", policy));
        assert!(put.starts_with("HTTP/1.1 20"), "{put}");
    };
    for number in 0..10 {
        write(&mut shard, client, number, number);
    }
    set(&mut shard, client, &format!(r#"{{"max_bytes":{LIMIT}}}"#));
    for number in 10..35 {
        write(&mut shard, client, number, number);
    }
    assert_eq!(
        keys(&mut shard, client, 0..35).len(),
        35,
        "the limit has not come"
    );
    set(
        &mut shard,
        client,
        &format!(r#"{{"max_bytes":{}}}"#, LIMIT / 3),
    );
    let shown = keys(&mut shard, client, 0..35);
    assert!((10..=12).contains(&shown.len()), "{shown:?}");
    // What has ended stays ended without a limit.
    set(&mut shard, client, "{}");
    for number in 35..60 {
        write(&mut shard, client, number, number);
    }
    let without = keys(&mut shard, client, 0..60);
    assert_eq!(without.len(), shown.len() + 25);
    for epoch in 2..5 {
        (shard, _) = restart(shard, epoch);
        let client = shard.connect();
        assert_eq!(keys(&mut shard, client, 0..60), without, "epoch {epoch}");
        shard.turns(100);
    }
}
