//! A disk that the log itself has filled: refused in time for compaction to do its work, and taken up again.

use std::time::Duration;

use crate::space_tests::{BODY, begin, read, restart};
use crate::test_driver::{TestDriver, post, put_policy};
use crate::turn::Shard;

/// Two checkpoints and so many segments are all that fits.
const FILES_MAX: usize = 2 + 8;

fn tight(policy: &str) -> (Shard<TestDriver>, u64) {
    let (mut shard, client) = begin(policy);
    shard.driver.files_max = FILES_MAX;
    (shard, client)
}

/// The status of an answer, once there is one.
fn status(shard: &mut Shard<TestDriver>, client: u64, request: impl AsRef<[u8]>) -> u32 {
    let mut answer = shard.ask(client, request);
    while answer.is_empty() {
        shard.turns(20);
        answer = shard.heard(client);
    }
    answer[9..12].parse().expect("a status")
}

fn write(shard: &mut Shard<TestDriver>, client: u64, key: usize) -> u32 {
    status(shard, client, post(&format!("k{key}"), "", &[b'x'; BODY]))
}

fn delete(shard: &mut Shard<TestDriver>, client: u64, key: usize) -> u32 {
    let request = format!("DELETE /v1/streams/s/records/k{key} HTTP/1.1\r\nHost: x\r\n\r\n");
    status(shard, client, request)
}

fn readyz(shard: &mut Shard<TestDriver>, client: u64) -> bool {
    read(shard, client, "/readyz").0.starts_with("HTTP/1.1 200")
}

/// Writes until one is taken; how many were refused.
fn write_patiently(shard: &mut Shard<TestDriver>, client: u64, key: usize) -> u32 {
    for refused in 0..2_000 {
        match write(shard, client, key) {
            201 => return refused,
            507 => shard.turns(50),
            other => panic!("{other}"),
        }
    }
    panic!("the disk stays full");
}

#[test]
fn a_disk_that_the_log_has_filled_with_dead_records_takes_writes_again() {
    let (mut shard, mut client) = tight(r#"{"history_depth":1}"#);
    // Compaction keeps up with this load: let it begin only once the disk is full.
    shard.space.hold(true);
    assert_eq!(write(&mut shard, client, 100), 201);
    let mut number = 0;
    while write(&mut shard, client, number % 3) == 201 {
        number += 1;
        assert!(number < 1_000, "the disk does not fill up");
    }
    assert!(number > 200, "refused after {number}");
    assert!(!readyz(&mut shard, client));
    shard.space.hold(false);
    let mut refused = 0;
    for number in 0..600 {
        refused += write_patiently(&mut shard, client, number % 3);
        if number % 100 == 99 {
            (shard, client) = restart(shard, 2 + number as u32 / 100);
            shard.driver.files_max = FILES_MAX;
        }
        let (head, _) = read(&mut shard, client, "/v1/streams/s/records/k100");
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    assert!(refused > 0 && shard.driver.files.len() <= FILES_MAX);
}

#[test]
fn a_disk_full_of_live_records_takes_deletes_and_then_writes_again() {
    let (mut shard, client) = tight(r#"{"history_depth":1}"#);
    let mut keys = 0;
    while write(&mut shard, client, keys) == 201 {
        keys += 1;
        assert!(keys < 1_000, "the disk does not fill up");
    }
    shard.turns(500);
    assert_eq!(write(&mut shard, client, keys), 507, "nothing can be freed");
    let (head, _) = read(&mut shard, client, "/v1/streams/s/records/k0");
    assert!(head.starts_with("HTTP/1.1 200"), "reads go on: {head}");
    for key in 0..keys / 2 {
        let deleted = (0..2_000).any(|_| match delete(&mut shard, client, key) {
            507 => {
                shard.turns(50);
                false
            }
            status => {
                assert_eq!(status, 204, "k{key}");
                true
            }
        });
        assert!(deleted, "k{key}");
    }
    for number in 0..keys / 4 {
        write_patiently(&mut shard, client, 10_000 + number);
    }
    for key in keys / 2..keys {
        let (head, _) = read(&mut shard, client, &format!("/v1/streams/s/records/k{key}"));
        assert!(head.starts_with("HTTP/1.1 200"), "k{key}: {head}");
    }
}

/// Copies of small records are longer by half, and random deletes leave something alive in every segment.
#[test]
fn a_disk_full_of_small_records_takes_deletes_and_then_writes_again() {
    let (mut shard, client) = tight(r#"{"history_depth":1}"#);
    let batch = |from: usize| -> Vec<u8> {
        let lines: String = (from..from + 1_000)
            .map(|key| format!("{{\"key\":\"k{key}\",\"value\":{key}}}\n"))
            .collect();
        format!("POST /v1/streams/s/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{lines}", lines.len()).into_bytes()
    };
    let mut keys = 0;
    while status(&mut shard, client, batch(keys)) == 200 {
        keys += 1_000;
        assert!(keys < 1_000_000, "the disk does not fill up");
    }
    for key in (0..keys).step_by(keys / 20) {
        let mut answer = delete(&mut shard, client, key);
        for _ in 0..50 {
            if answer != 507 {
                break;
            }
            shard.turns(50);
            answer = delete(&mut shard, client, key);
        }
        assert_eq!(answer, 204, "k{key}");
    }
    let log = &shard.core.partition.log;
    let (oldest, next) = log.oldest_sealed().expect("segments are full");
    assert!(log.fits_copies_of(&oldest, &next), "a walk could not end");
    shard.driver.pass_seconds(1_000);
    let answer = status(
        &mut shard,
        client,
        put_policy("s", r#"{"history_depth":1,"max_age_seconds":100}"#),
    );
    assert!((200..300).contains(&answer), "{answer}: a policy is taken");
    let taken = (0..2_000).any(|_| {
        shard.turns(50);
        status(&mut shard, client, batch(keys)) == 200
    });
    assert!(taken, "the disk stays full");
}

#[test]
fn a_disk_that_gets_room_again_is_as_before() {
    let (mut shard, client) = tight("{}");
    while write(&mut shard, client, 1) == 201 {}
    assert!(!readyz(&mut shard, client));
    shard.driver.files_max = usize::MAX;
    shard.driver.pass_seconds(1);
    shard.turns(50);
    assert!(readyz(&mut shard, client));
    let log = &shard.core.partition.log;
    assert!(!log.is_tight(), "a new file could be made");
    for _ in 0..200 {
        assert_eq!(write(&mut shard, client, 1), 201);
    }
}

#[test]
fn compaction_has_its_turn_on_a_saturated_disk() {
    let mut shard = crate::test_driver::shard(Vec::new(), 1, 64);
    let client = shard.connect();
    let answer = shard.ask(client, put_policy("s", r#"{"history_depth":1}"#));
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    for key in 0..40 {
        assert_eq!(write(&mut shard, client, 100 + key), 201);
    }
    let clients: Vec<u64> = (0..40).map(|_| shard.connect()).collect();
    shard.turns(5);
    shard.driver.hold_writes = true;
    // Each fills a batch and is asked again as soon as it is answered; one write ends in a turn.
    let post = post("k", "", &[b'x'; 290 << 10]);
    let mut asked = vec![false; clients.len()];
    for _ in 0..3_000 {
        for (client, asked) in clients.iter().zip(&mut asked) {
            if !*asked || shard.heard(*client).starts_with("HTTP/1.1 201") {
                *asked = true;
                shard.say(*client, &post);
            }
        }
        shard.driver.let_one_write_end();
        shard.sleep(Duration::from_millis(1));
        shard.turn();
    }
    assert!(shard.space.relocated_records >= 40, "it starves");
    assert!(shard.space.released > 3);
}
