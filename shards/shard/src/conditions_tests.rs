//! Conditions on records that a policy has ended: they see what a get sees, from memory and from the device, and a request
//! that waits for a read holds up nobody else.

use crate::space_tests::{BODY, begin, begin_with_an_old_copy, read, restart, write};
use crate::test_driver::{TestDriver, post, put_policy, two_shards};
use crate::turn::Shard;

/// Thirty records of this stream, and a few bytes of their headers and keys.
const LIMIT: usize = 30 * (BODY + 100);
const ONLY_NEW: &str = "If-None-Match: *\r\n";

fn answer(shard: &mut Shard<TestDriver>, client: u64, request: impl AsRef<[u8]>) -> String {
    let mut answer = shard.ask(client, request);
    for _ in 0..50 {
        if !answer.is_empty() {
            break;
        }
        shard.turns(20);
        answer = shard.heard(client);
    }
    answer
}

/// Reads of records so far; those of the scrub are longer.
pub(crate) fn record_reads(shard: &Shard<TestDriver>) -> usize {
    let all = shard.driver.reads.iter();
    all.filter(|(.., len)| *len < 1 << 20).count()
}

/// Whether a get, a version condition and (with `change`) a condition on newness see a record; they must agree.
fn sees(shard: &mut Shard<TestDriver>, client: u64, key: usize, change: bool) -> bool {
    let (head, _) = read(shard, client, &format!("/v1/streams/s/records/k{key}"));
    let is_there = head.starts_with("HTTP/1.1 200");
    assert!(is_there || head.starts_with("HTTP/1.1 404"), "{head}");
    let key = format!("k{key}");
    let said = answer(shard, client, post(&key, "If-Match: \"77\"\r\n", b"x"));
    assert!(said.starts_with("HTTP/1.1 412"), "{said}");
    assert_eq!(
        said.contains("the key is at version"),
        is_there,
        "{key}: {said}"
    );
    if change {
        let said = answer(shard, client, post(&key, ONLY_NEW, b"x"));
        let status = if is_there { "412" } else { "201" };
        assert!(
            said.starts_with(&format!("HTTP/1.1 {status}")),
            "{key}: {said}"
        );
    }
    is_there
}

/// A shard whose stream has a limit in bytes that `count` records have passed, without compaction.
fn limited(count: usize) -> (Shard<TestDriver>, u64) {
    let (mut shard, client) = begin(&format!(r#"{{"max_bytes":{LIMIT}}}"#));
    shard.space.hold(true);
    for number in 0..count {
        write(&mut shard, client, number, number);
    }
    (shard, client)
}

/// The same with nothing of it in memory.
fn cold(count: usize) -> (Shard<TestDriver>, u64) {
    let (shard, _) = limited(count);
    let (mut shard, client) = restart(shard, 2);
    shard.space.hold(true);
    (shard, client)
}

#[test]
fn a_condition_sees_what_a_get_sees_of_what_a_limit_in_bytes_has_ended() {
    let (mut warm, client) = limited(45);
    let there: Vec<bool> = (0..45)
        .map(|key| sees(&mut warm, client, key, false))
        .collect();
    let ended = there.iter().filter(|there| !**there).count();
    assert!((13..=15).contains(&ended), "{there:?}");

    let (mut shard, client) = restart(warm, 2);
    shard.space.hold(true);
    let before = record_reads(&shard);
    let delete = "DELETE /v1/streams/s/records/k0 HTTP/1.1\r\nHost: x\r\n\r\n";
    let said = answer(&mut shard, client, delete);
    assert!(said.starts_with("HTTP/1.1 404"), "{said}");
    assert!(
        record_reads(&shard) > before,
        "it was not looked at on the device"
    );
    for (key, is_there) in there.iter().enumerate().rev() {
        // Small ones that are written meanwhile end none.
        assert_eq!(sees(&mut shard, client, key, true), *is_there, "k{key}");
        assert!(sees(&mut shard, client, key, false), "k{key} was written");
    }
}

#[test]
fn a_condition_sees_what_a_get_sees_of_what_age_has_ended_also_of_a_copy() {
    let (mut shard, _) = begin_with_an_old_copy();
    shard.space.hold(true);
    let (mut shard, client) = restart(shard, 2);
    shard.space.hold(true);
    // The clock of a new driver begins anew.
    shard.driver.pass_seconds(600);
    assert!(sees(&mut shard, client, 100, true), "600 s old");
    shard.driver.pass_seconds(500);
    write(&mut shard, client, 0, 1);
    assert!(!sees(&mut shard, client, 100, true), "1100 s old");
    assert!(sees(&mut shard, client, 100, true), "just written");
}

#[test]
fn a_request_that_waits_for_a_read_holds_up_nobody_else_and_keeps_its_connections_order() {
    let (mut shard, first) = cold(45);
    let other = shard.connect();
    shard.driver.hold_reads = true;
    shard.say(first, post("k40", ONLY_NEW, b"not new"));
    shard.say(first, post("k40", "", b"behind it"));
    shard.turns(20);
    assert_eq!(shard.core.reads.depth(), 1);
    for key in ["k40", "k41"] {
        let said = answer(&mut shard, other, post(key, "", b"another's"));
        assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    }
    assert_eq!(shard.heard(first), "", "it waits");
    shard.driver.let_reads_end();
    shard.turns(20);
    let said = shard.heard(first);
    assert!(
        said.starts_with("HTTP/1.1 412") && said.contains("HTTP/1.1 201"),
        "{said}"
    );
    assert!(said.contains("exists at version 2"), "{said}");
}

#[test]
fn a_client_that_leaves_while_its_condition_is_read_for_leaves_nothing_behind() {
    let (mut shard, first) = cold(45);
    shard.driver.hold_reads = true;
    shard.say(first, post("k40", ONLY_NEW, b"x"));
    shard.turns(20);
    assert_eq!(shard.core.partition.probes.held, 1);
    shard.hang_up(first);
    shard.turns(20);
    shard.driver.let_reads_end();
    shard.turns(20);
    assert_eq!(shard.core.partition.probes.held, 0);
    let other = shard.connect();
    let said = answer(&mut shard, other, post("k0", ONLY_NEW, b"x"));
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
}

#[test]
fn a_condition_on_a_record_that_cannot_be_read_is_refused_with_the_place() {
    let (mut shard, client) = cold(45);
    for file in &mut shard.driver.files[2..] {
        for byte in &mut file[8192..] {
            *byte ^= 0x55;
        }
    }
    let said = answer(&mut shard, client, post("k40", ONLY_NEW, b"x"));
    assert!(
        said.starts_with("HTTP/1.1 500") && said.contains("pinion verify"),
        "{said}"
    );
    let said = answer(&mut shard, client, post("k40", "", b"x"));
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    assert!(sees(&mut shard, client, 40, true));
}

#[test]
fn what_was_read_for_a_condition_is_not_read_again_because_the_log_has_no_room() {
    let (mut shard, client) = cold(45);
    let others: Vec<u64> = (0..7).map(|_| shard.connect()).collect();
    shard.turns(5);
    // More than the buffers hold, each a batch of its own; the rest stands in line.
    shard.driver.hold_writes = true;
    let large = post("large", "", &[b'x'; 290 << 10]);
    for _ in 0..12 {
        for other in &others {
            shard.say(*other, &large);
        }
    }
    shard.turns(20);
    let before = record_reads(&shard);
    // As large as they are: what is small finds room in the open batch.
    shard.say(client, post("k0", ONLY_NEW, &[b'x'; 290 << 10]));
    let mut said = String::new();
    for _ in 0..400 {
        shard.driver.let_one_write_end();
        shard.turns(2);
        said += &shard.heard(client);
        if !said.is_empty() {
            break;
        }
    }
    assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    assert_eq!(record_reads(&shard) - before, 1);
    assert_eq!(shard.core.partition.probes.held, 0);
}

#[test]
fn a_stream_without_limits_reads_nothing_for_a_condition() {
    let (mut old, client) = begin("{}");
    for number in 0..45 {
        write(&mut old, client, number, number);
    }
    let (mut shard, client) = restart(old, 2);
    let before = record_reads(&shard);
    let said = answer(&mut shard, client, post("k3", ONLY_NEW, b"x"));
    assert!(said.starts_with("HTTP/1.1 412"), "{said}");
    assert_eq!(record_reads(&shard), before);
}

#[test]
fn another_shards_condition_is_decided_by_the_record_too() {
    let mut shards = two_shards(8);
    let [first, _] = &mut shards;
    let client = first.connect();
    let both = |shards: &mut [Shard<TestDriver>; 2], client: u64, request: Vec<u8>| -> String {
        shards[0].say(client, request);
        let mut said = String::new();
        for _ in 0..200 {
            shards[0].turn();
            shards[1].turn();
            said += &shards[0].heard(client);
            if !said.is_empty() {
                break;
            }
        }
        said
    };
    let limit = format!(r#"{{"max_bytes":{}}}"#, 2 * LIMIT);
    let said = both(&mut shards, client, put_policy("s", &limit).into_bytes());
    assert!(said.starts_with("HTTP/1.1 20"), "{said}");
    for shard in &mut shards {
        shard.space.hold(true);
    }
    // What follows fills the memory of both with later records.
    for number in 0..200 {
        let request = post(&format!("k{number}"), "", &[b'.'; BODY]);
        let said = both(&mut shards, client, request);
        assert!(said.starts_with("HTTP/1.1 201"), "{said}");
    }
    let before = record_reads(&shards[1]);
    let (mut ended, mut live) = (0, 0);
    for number in (0..20).chain(180..200) {
        let request = post(&format!("k{number}"), ONLY_NEW, b"x");
        let said = both(&mut shards, client, request);
        match said.split(' ').nth(1) {
            Some("201") => ended += 1,
            Some("412") => live += 1,
            _ => panic!("{said}"),
        }
    }
    assert_eq!((ended, live), (20, 20));
    assert!(record_reads(&shards[1]) > before);
}
