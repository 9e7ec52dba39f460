//! Checkpoints that fail, and those that a crash leaves behind.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::space_tests::{begin, restart, scan, write};
use crate::test_driver::{TestDriver, recovery_of};
use crate::turn::Shard;

/// Begin one at once, or do another slice of it.
fn ask_for_one(shard: &mut Shard<TestDriver>) {
    let now_ns = shard.core.now.monotonic_ns;
    let from = shard.space.replay_from();
    let (partition, driver) = (&mut shard.core.partition, &mut shard.driver);
    shard
        .checkpointer
        .step(partition, driver, now_ns, true, from);
}

/// Write one now, whatever goes on.
pub(crate) fn checkpoint(shard: &mut Shard<TestDriver>) {
    let written = shard.checkpointer.written;
    while shard.checkpointer.written == written {
        ask_for_one(shard);
        shard.turn();
    }
}

#[test]
fn a_checkpoint_that_failed_is_tried_again_soon_however_little_is_written() {
    let (mut shard, client) = begin("{}");
    write(&mut shard, client, 1, 1);
    shard.driver.fail_checkpoints = true;
    ask_for_one(&mut shard);
    shard.turns(10);
    assert!(shard.checkpointer.failed());
    shard.driver.fail_checkpoints = false;
    shard.turns_for(Duration::from_secs(4));
    assert_eq!(shard.checkpointer.written, 0, "not at once");
    shard.turns_for(Duration::from_secs(2));
    assert_eq!(
        (shard.checkpointer.written, shard.checkpointer.failed()),
        (1, false)
    );
    shard.turns_for(Duration::from_secs(20));
    assert_eq!(shard.checkpointer.written, 1, "and no more");
}

#[test]
fn a_checkpoint_with_a_rotten_page_still_says_what_was_durable() {
    let (mut shard, client) = begin("{}");
    write(&mut shard, client, 1, 1);
    let kept = shard.core.partition.log.chain().offset as usize;
    write(&mut shard, client, 2, 2);
    checkpoint(&mut shard);
    let file = shard.core.partition.log.segment(1).expect("the first");
    let file = file.file.0 as usize;
    let mut files = shard.driver.files;
    // All that the log has of the last write, and a page of the only checkpoint.
    files[file][kept..].fill(0);
    for checkpoint in &mut files[..2] {
        if let Some(page) = checkpoint.get_mut(index::checkpoint::HEADER_BYTES..) {
            page.fill(0);
        }
    }
    let why = recovery_of(files).0.expect_err("it holds more").to_string();
    assert!(why.contains("below its durable mark"), "{why}");
}

/// A header is as long as the least that a page can be cut to.
#[test]
fn a_page_that_was_cut_to_a_block_is_no_page() {
    let (mut shard, client) = begin("{}");
    write(&mut shard, client, 1, 1);
    shard.driver.checkpoint_write_bytes_max = index::checkpoint::HEADER_BYTES;
    ask_for_one(&mut shard);
    shard.turns(20);
    assert_eq!(
        (shard.checkpointer.written, shard.checkpointer.failed()),
        (0, true)
    );
}

/// Two segments are copied and released; the machine stops before a checkpoint says so, and again when one has said it of the
/// first: that one must still have the copies of the second replayed.
#[test]
fn two_crashes_around_a_release_copy_nothing_twice() {
    let (mut shard, client) = begin(r#"{"history_depth":3}"#);
    shard.driver.fail_checkpoints = true;
    // Cold keys between hot ones in the first two segments.
    for number in 0..300 {
        let key = if number < 80 && number % 4 == 0 {
            100 + number
        } else {
            number % 2
        };
        write(&mut shard, client, key, number);
    }
    for _ in 0..200 {
        if shard.space.released >= 2 {
            break;
        }
        shard.turns(20);
    }
    assert!(shard.space.released >= 2 && shard.core.partition.log.recycled == 0);
    // The newest versions that were copied are not the newest any more.
    for number in 0..80 {
        if number % 4 == 0 {
            write(&mut shard, client, 100 + number, 1_000 + number);
        }
    }
    let (mut shard, _) = restart(shard, 2);
    assert_eq!(
        shard.core.partition.log.first_segment(),
        1,
        "all is there again"
    );
    while shard.space.released == 0 {
        shard.turn();
    }
    assert!(
        !shard.core.partition.copies.is_empty(),
        "the second has copies"
    );
    checkpoint(&mut shard);
    let (mut shard, client) = restart(shard, 3);
    for number in 0..200 {
        write(&mut shard, client, number % 2, 2_000 + number);
    }
    shard.turns(500);
    assert!(shard.core.partition.log.first_segment() > 3);
    let shown = scan(&mut shard, client, 20, |_| ());
    let once: BTreeSet<_> = shown
        .iter()
        .map(|(key, _, version, _)| (key, version))
        .collect();
    assert_eq!(shown.len(), once.len(), "a version comes twice");
}
