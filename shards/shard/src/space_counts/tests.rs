//! What compaction goes by: bytes in the log, counted once, padding and idle files included.

use super::SpaceCounts;
use crate::checkpoint_tests::checkpoint;
use crate::space_tests::{BODY, begin, read, restart, scan, segment_files, write};
use crate::test_driver::{TestDriver, post};
use crate::turn::Shard;

fn counts(shard: &Shard<TestDriver>) -> (u64, u64) {
    let space = &shard.core.partition.space;
    (space.record_bytes, space.dead_bytes)
}

#[test]
fn a_restart_counts_every_record_once_also_in_the_middle_of_a_walk() {
    let (mut shard, mut client) = begin(r#"{"history_depth":1}"#);
    let mut in_a_walk = 0;
    for number in 0..400 {
        let key = if number < 100 { 8 + number } else { number % 8 };
        write(&mut shard, client, key, number);
        let walks = shard.space.replay_from().is_some();
        if !walks && number % 50 != 49 {
            continue;
        }
        checkpoint(&mut shard);
        // What is counted has to be in the files.
        while shard.core.partition.log.is_dirty() || shard.core.partition.log.in_flight() > 0 {
            shard.turn();
        }
        let (before, dead_before) = counts(&shard);
        let first = shard.core.partition.log.first_segment();
        (shard, client) = restart(shard, 2 + number as u32);
        let (after, dead_after) = counts(&shard);
        if shard.core.partition.log.first_segment() < first {
            // It was released behind the checkpoint, and is there again.
            continue;
        }
        in_a_walk += u32::from(walks);
        assert_eq!(after, before, "{number}: record bytes, in a walk: {walks}");
        // An estimate: what died while a checkpoint was written may be missing.
        assert!(
            dead_after <= before && dead_after + (2 << 20) > dead_before,
            "{number}"
        );
    }
    assert!(
        in_a_walk > 0,
        "no checkpoint was begun in a walk that went on"
    );
}

#[test]
fn what_is_alive_behind_a_history_is_known_after_some_rounds() {
    let (mut shard, client) = begin(r#"{"history_depth":3}"#);
    for number in 0..1_000 {
        write(&mut shard, client, (number * 7_919) % 20, number);
    }
    let released = shard.space.released;
    assert!(released > 15, "{released} released");
    // The newest three of twenty keys.
    let alive = shard.core.partition.space.alive_bytes() as f64 / (20 * 3 * BODY) as f64;
    assert!((0.75..1.3).contains(&alive), "{alive:.2} times what is");
}

/// Three thousand records, each alone in its block.
fn lone_records(policy: &str) -> (Shard<TestDriver>, u64) {
    let (mut shard, client) = begin(policy);
    // It would go round and round the log, and there is nothing for it here.
    shard.scrubber.bytes_per_second = 0;
    for number in 0..3_000 {
        let answer = shard.ask(client, post(&format!("k{number}"), "", b"lone"));
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
    shard.turns(500);
    (shard, client)
}

#[test]
fn a_log_of_lone_records_does_not_stay_mostly_padding() {
    let (mut shard, client) = lone_records(r#"{"history_depth":1}"#);
    // Of 3,000 blocks of 4 KiB 250 KB are records, and none of them may go.
    let files = segment_files(&shard);
    assert!(shard.space.released >= 2, "{files} files");
    assert_eq!(scan(&mut shard, client, 500, |_| ()).len(), 3_000);
    let (mut shard, client) = restart(shard, 2);
    assert_eq!(scan(&mut shard, client, 500, |_| ()).len(), 3_000);
    let (_, metrics) = read(&mut shard, client, "/metrics");
    assert!(metrics.contains("pinion_log_padding_bytes{shard=\"0\"} "));
}

#[test]
fn padding_beside_histories_is_left_alone() {
    let (shard, _) = lone_records("{}");
    // A copy of an older version would take a place in the index for the rest of its life.
    assert_eq!(shard.space.released, 0);
    assert_eq!(shard.core.partition.index.len(), 3_000);
}

#[test]
fn files_that_hold_nothing_count_but_do_not_make_copying_dearer_than_it_is_worth() {
    let alive = 1_000_000;
    let holding = |dead, padding| SpaceCounts {
        record_bytes: alive + dead,
        dead_bytes: dead,
        padding_bytes: padding,
        ..SpaceCounts::default()
    };
    let is_too_much = |dead, padding, idle| holding(dead, padding).is_too_much(Some(idle), 200);
    assert!(!is_too_much(990_000, 0, 0));
    assert!(is_too_much(1_010_000, 0, 0));
    assert!(is_too_much(500_000, 510_000, 0), "padding is no use either");
    assert!(is_too_much(500_000, 0, 510_000), "nor are files that wait");
    assert!(
        !is_too_much(390_000, 0, 9_000_000),
        "but this would not help"
    );
    assert!(is_too_much(410_000, 0, 9_000_000));
    assert!(
        holding(300_000, 0).is_too_much(Some(0), 120),
        "asked for so"
    );
    let beside_histories = holding(900_000, 900_000);
    assert!(!beside_histories.is_too_much(None, 200));
}
