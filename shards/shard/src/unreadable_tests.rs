//! Compaction beside damage: what cannot be read is never dropped for that, and holds up nothing that it need not.

use std::time::Duration;

use crate::space_tests::{begin, read, restart, scan, write};
use crate::test_driver::{TestDriver, post};
use crate::turn::Shard;

/// A bit of this text, which lies once in the files behind the checkpoints, rots.
fn rot(shard: &mut Shard<TestDriver>, text: &[u8]) {
    let mut places = Vec::new();
    for (file, bytes) in shard.driver.files.iter().enumerate().skip(2) {
        let found = bytes.windows(text.len()).position(|part| part == text);
        places.extend(found.map(|at| (file, at)));
    }
    let [(file, at)] = places[..] else {
        panic!("{places:?}");
    };
    shard.driver.files[file][at + text.len() + 100] ^= 1;
}

/// Two hundred cold keys, one of them damaged on the device, and hot ones that are written until compaction has come there.
fn compacted_beside_damage(key: usize, number: usize, policy: &str) -> (Shard<TestDriver>, u64) {
    let (mut shard, client) = begin(policy);
    shard.space.hold(true);
    for number in 0..50 {
        write(&mut shard, client, 100 + number, number);
    }
    // Behind what memory still holds.
    for number in 50..80 {
        write(&mut shard, client, number % 2, number);
    }
    assert_eq!(shard.space.released, 0, "too early");
    rot(&mut shard, &format!("{key}/{number};").into_bytes());
    shard.space.hold(false);
    for number in 80..400 {
        write(&mut shard, client, number % 2, number);
    }
    shard.turns(300);
    (shard, client)
}

#[test]
fn what_is_still_on_its_way_to_the_device_is_not_taken_for_unreadable() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    let mut number = 0;
    while shard.core.partition.log.chain().offset < 7 << 19 {
        write(&mut shard, client, number % 2, number);
        number += 1;
    }
    shard.driver.hold_writes = true;
    let began = |shard: &Shard<TestDriver>| {
        let second = shard.core.partition.log.segment(2);
        second.is_some_and(|second| second.first_lsn != 0)
    };
    while !began(&shard) {
        let post = post("k0", "Content-Type: text/plain\r\n", &[b'.'; 100 << 10]);
        shard.say(client, post);
        shard.turns(20);
    }
    shard.turns_for(Duration::from_secs(1));
    assert!(shard.space.replay_from().is_none(), "a walk has begun");
    while shard.driver.let_one_write_end() {
        shard.turns(20);
    }
    shard.driver.hold_writes = false;
    shard.turns_for(Duration::from_secs(1));
    assert_eq!((shard.space.released, shard.space.is_held_up()), (1, false));
}

#[test]
fn a_record_that_cannot_be_read_and_is_the_newest_of_its_key_is_kept_until_it_is_written_anew() {
    let (mut shard, client) = compacted_beside_damage(110, 10, r#"{"history_depth":1}"#);
    assert_eq!((shard.space.released, shard.space.is_held_up()), (0, true));
    let (_, metrics) = read(&mut shard, client, "/metrics");
    assert!(metrics.contains("pinion_unreadable_segments{shard=\"0\"} 1"));
    let (head, said) = read(&mut shard, client, "/v1/streams/s/records/k110");
    assert!(head.starts_with("HTTP/1.1 500"), "{head}\n{said}");
    // Its neighbours have moved.
    for key in [109, 111] {
        let (head, _) = read(&mut shard, client, &format!("/v1/streams/s/records/k{key}"));
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    }
    write(&mut shard, client, 110, 999);
    shard.driver.pass_seconds(60);
    for number in 0..20 {
        write(&mut shard, client, number % 2, number);
        shard.turns(100);
    }
    assert!(shard.space.released > 3 && !shard.space.is_held_up());
    let (mut shard, client) = restart(shard, 2);
    let all = scan(&mut shard, client, 7, |_| ());
    assert_eq!(all.len(), 52, "every key is there");
}

/// Before the crash its neighbours were copied. Behind it the device reads it again, and it is copied, but that is not durable.
#[test]
fn a_record_that_can_be_read_again_behind_a_crash_is_shown_where_it_is() {
    let (mut shard, _) = compacted_beside_damage(110, 10, r#"{"history_depth":1}"#);
    rot(&mut shard, b"110/10;");
    let (mut shard, client) = restart(shard, 2);
    shard.driver.hold_writes = true;
    shard.turns_for(Duration::from_secs(1));
    assert_eq!(shard.space.relocated_records, 1, "it is being copied");
    let all = scan(&mut shard, client, 7, |_| ());
    assert!(all.iter().any(|one| one.0 == "k110"), "it was left out");
    assert_eq!(all.len(), 52, "every key is there, and once");
}

#[test]
fn a_record_that_cannot_be_read_and_that_nobody_can_ask_for_holds_nothing_up() {
    let (mut shard, client) = compacted_beside_damage(1, 51, r#"{"history_depth":1}"#);
    assert!(shard.space.released > 3 && !shard.space.is_held_up());
    let all = scan(&mut shard, client, 7, |_| ());
    assert_eq!(all.len(), 52, "every key is there");
}

#[test]
fn a_record_that_cannot_be_read_and_may_be_an_older_version_is_kept() {
    let (shard, _) = compacted_beside_damage(1, 51, r#"{"history_depth":2}"#);
    assert!(shard.space.is_held_up());
}

#[test]
fn a_batch_whose_header_cannot_be_read_costs_no_more_than_its_records() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    for number in 0..400 {
        let key = if number < 50 {
            100 + number
        } else {
            number % 2
        };
        write(&mut shard, client, key, number);
        if number == 60 {
            // The batch of a hot record that has been written anew since: it starts with the block before its key.
            let text = b"0/50;";
            let file = &mut shard.driver.files[3];
            let at = file.windows(5).position(|part| part == text);
            let at = at.expect("it lies in the second segment") / 4096 * 4096;
            file[at + 8] ^= 1;
        }
    }
    shard.turns(300);
    assert!(shard.space.released > 3 && !shard.space.is_held_up());
    assert_eq!(scan(&mut shard, client, 7, |_| ()).len(), 52);
}
