//! Segments whose first batch rots before a restart that does not replay it: what they hold stays, and the damage is told.

use wal::BLOCK_BYTES;

use crate::log::SegmentFile;
use crate::space_tests::{BODY, begin, read, restart, scan, write};
use crate::test_driver::TestDriver;
use crate::turn::Shard;

/// On disk a batch of one such body takes so much.
const BATCH_BYTES: usize = (BODY + 2 * BLOCK_BYTES) / BLOCK_BYTES * BLOCK_BYTES;

/// Drain it, so that a checkpoint holds everything; a bit rots in each of these blocks (segment, offset); start it again.
fn rotten(mut shard: Shard<TestDriver>, blocks: &[(u32, usize)]) -> (Shard<TestDriver>, u64) {
    shard.drain();
    while shard.turn() {}
    for (segment, offset) in blocks {
        let file = shard.core.partition.log.segment(*segment);
        let file = file.expect("it is live").file.0 as usize;
        let block = &mut shard.driver.files[file][*offset..*offset + BLOCK_BYTES];
        assert!(block[8] != 0, "a batch begins here");
        block[8] ^= 1;
    }
    restart(shard, 2)
}

fn segments(shard: &Shard<TestDriver>) -> Vec<SegmentFile> {
    shard.core.partition.log.segments().copied().collect()
}

fn assert_reads(shard: &mut Shard<TestDriver>, client: u64, key: usize) {
    let (head, _) = read(shard, client, &format!("/v1/streams/s/records/k{key}"));
    assert!(head.starts_with("HTTP/1.1 200"), "k{key}: {head}");
}

fn overwrite(shard: &mut Shard<TestDriver>, client: u64, times: usize) {
    for number in 0..times {
        write(shard, client, number % 2, 1_000 + number);
    }
    shard.turns(300);
}

#[test]
fn what_lies_behind_a_rotten_first_batch_of_the_open_segment_survives_compaction() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    for number in 0..10 {
        write(&mut shard, client, 100 + number, number);
    }
    let (mut shard, client) = rotten(shard, &[(1, BLOCK_BYTES)]);
    assert_eq!(shard.core.partition.damage, 1, "it is told");
    overwrite(&mut shard, client, 400);
    assert!(shard.space.released > 3 && !shard.space.is_held_up());
    for number in 0..10 {
        assert_reads(&mut shard, client, 100 + number);
    }
    assert_eq!(scan(&mut shard, client, 7, |_| ()).len(), 12);
}

/// Whether the next record is the first of a segment.
fn segment_begins(shard: &Shard<TestDriver>) -> bool {
    let log = &shard.core.partition.log;
    log.segment_bytes() < u64::from(log.chain().offset) + BATCH_BYTES as u64
}

/// Three segments of cold keys with a hot one between every nine of them, and the first record of a fourth.
fn three_segments() -> (Shard<TestDriver>, Vec<usize>) {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    let mut cold = Vec::new();
    for number in 0.. {
        if shard.core.partition.log.chain().segment == 4 {
            break;
        }
        if number % 10 == 3 || segment_begins(&shard) {
            write(&mut shard, client, number % 2, number);
        } else {
            write(&mut shard, client, 100 + number, number);
            cold.push(100 + number);
        }
    }
    assert_eq!(shard.space.released, 0, "nothing is freed yet");
    (shard, cold)
}

#[test]
fn a_rotten_first_batch_of_a_sealed_segment_ends_neither_compaction_nor_scrub() {
    let (shard, cold) = three_segments();
    let before = segments(&shard);
    let (mut shard, client) = rotten(shard, &[(2, BLOCK_BYTES)]);
    let after = segments(&shard);
    let starts = |all: &[SegmentFile]| all.iter().map(|s| s.first_lsn).take(4).collect::<Vec<_>>();
    assert_eq!(
        starts(&after),
        starts(&before),
        "worked out from what lies around it"
    );
    assert!(after[1].first_time_us >= after[0].first_time_us);
    let mut path = "/v1/streams/s/scan".to_owned();
    let said = loop {
        let (head, body) = read(&mut shard, client, &path);
        match head.lines().find_map(|line| line.split_once("ursor: ")) {
            Some((_, cursor)) if !body.is_empty() => {
                path = format!("/v1/streams/s/scan?cursor={cursor}");
            }
            _ => break body,
        }
    };
    assert!(
        said.contains("segment 2 at offset 4096 is damaged"),
        "not stepped over: {said:.300}"
    );
    shard.turns(100);
    assert!(shard.scrubber.errors > 0, "the scrub comes by it");
    overwrite(&mut shard, client, 400);
    assert!(shard.space.released > 4 && !shard.space.is_held_up());
    for key in cold {
        assert_reads(&mut shard, client, key);
    }
}

#[test]
fn a_rotten_first_batch_with_the_newest_record_of_a_key_keeps_its_segment() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    let mut number = 0;
    while shard.core.partition.log.chain().segment < 2 {
        number += 1;
        write(&mut shard, client, 100 + number, number);
    }
    write(&mut shard, client, 0, 0);
    let (mut shard, client) = rotten(shard, &[(2, BLOCK_BYTES)]);
    overwrite(&mut shard, client, 400);
    assert!(shard.space.is_held_up());
    let first = shard.core.partition.log.first_segment();
    assert_eq!(first, 2, "the one in front of it is gone");
    // Only the batch's header is rotten: its record can still be read where the index says that it is.
    for key in 101..=100 + number {
        assert_reads(&mut shard, client, key);
    }
}

#[test]
fn with_both_sides_of_a_border_rotten_nothing_is_given_up() {
    let (shard, _) = three_segments();
    let first = shard
        .core
        .partition
        .log
        .segment(1)
        .copied()
        .expect("it is live");
    let bytes = &shard.driver.files[first.file.0 as usize];
    let header = shard.core.partition.log.header_of(&first);
    let batches = wal::scan::batches(&shard.core.partition.log.identity, &header, bytes);
    let last = batches.last().expect("it holds batches").offset as usize;
    let blocks = [(1, last), (2, BLOCK_BYTES), (2, BLOCK_BYTES + BATCH_BYTES)];
    let (mut shard, client) = rotten(shard, &blocks);
    overwrite(&mut shard, client, 400);
    assert_eq!((shard.space.released, shard.space.is_held_up()), (0, true));
}
