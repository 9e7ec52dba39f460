//! The scrub over the test driver: what it finds, and how often it says so.

use crate::log::SegmentFile;
use crate::test_driver::{TestDriver, post, shard};
use crate::turn::Shard;

/// A shard with a client and three sealed segments.
fn with_sealed_segments() -> (Shard<TestDriver>, u64, Vec<SegmentFile>) {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    let body = vec![b'x'; 290 << 10];
    while shard.core.partition.log.chain().segment < 4 {
        let answer = shard.ask(client, post("k", "", &body));
        assert!(answer.starts_with("HTTP/1.1 201"));
    }
    let sealed: Vec<_> = shard
        .core
        .partition
        .log
        .segments()
        .take(3)
        .copied()
        .collect();
    (shard, client, sealed)
}

#[test]
fn the_scrub_finds_a_flipped_bit_in_a_sealed_segment_and_says_so_once_a_round() {
    let (mut shard, client, sealed) = with_sealed_segments();
    shard.turns(200);
    let (bytes, errors) = (shard.scrubber.bytes, shard.scrubber.errors);
    assert!(bytes > 9 << 20, "{bytes} bytes were verified");
    assert_eq!(errors, 0);
    let damaged = &mut shard.driver.files[sealed[1].file.0 as usize];
    damaged[1 << 20] ^= 4;
    shard.turns(200);
    let found = shard.scrubber.errors;
    assert!(found > 0, "the flipped bit was not found");
    let rounds = (shard.scrubber.bytes - bytes) / (6 << 20) + 2;
    assert!(found <= rounds, "{found} errors in {rounds} rounds");
    assert!(
        shard
            .ask(client, post("k", "", b"small"))
            .starts_with("HTTP/1.1 201"),
        "the shard goes on"
    );
}

#[test]
fn a_scrub_of_a_device_that_fails_every_read_says_so_once_a_second() {
    let (mut shard, _, sealed) = with_sealed_segments();
    for segment in sealed {
        shard.driver.files[segment.file.0 as usize].truncate(4096);
    }
    let started_ns = shard.core.now.monotonic_ns;
    let before = shard.scrubber.errors;
    shard.turns(500);
    let seconds = (shard.core.now.monotonic_ns - started_ns) / 1_000_000_000;
    let errors = shard.scrubber.errors - before;
    assert!(seconds >= 3 && errors > 0, "{errors} in {seconds} s");
    assert!(errors <= seconds + 2, "{errors} errors in {seconds} s");
}
