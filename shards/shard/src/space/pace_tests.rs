//! The pace of compaction: it follows the log, in one turn and over time, and what is read ahead is what is wanted.

use std::time::Duration;

use crate::space_tests::{begin, scan, write};
use crate::test_driver::TestDriver;
use crate::turn::Shard;

#[test]
fn budgets_follow_what_producers_write_however_fast() {
    let (mut shard, _) = begin("{}");
    for written in [0, 1 << 20, 10 << 20, 100 << 20] {
        shard.core.partition.log.bytes_written += written;
        shard.core.now.monotonic_ns += super::REFILL_NS;
        shard.space_step();
        let (walk, copy) = (shard.space.walk_bytes, shard.space.copy_bytes);
        assert!(walk >= 2 * written && copy >= written, "{walk}, {copy}");
        // Copies only, of as much.
        shard.core.partition.log.bytes_written += written;
        shard.space.relocated_bytes += written;
        shard.core.now.monotonic_ns += super::REFILL_NS;
        shard.space_step();
        assert_eq!(shard.space.copy_bytes, super::COPY_BYTES_IDLE);
    }
}

#[test]
fn a_turn_walks_as_much_more_as_was_written_and_never_all_at_once() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    shard.space.hold(true);
    (0..100).for_each(|number| write(&mut shard, client, number % 8, number));
    let mut log_bytes = shard.core.partition.log.bytes_written;
    let mut slice = |shard: &mut Shard<TestDriver>, written: u64| {
        log_bytes += written;
        shard.space.begin_slice(log_bytes);
        shard.space.slice_bytes
    };
    slice(&mut shard, 0);
    assert_eq!(slice(&mut shard, 10 << 20), 128 << 10, "nothing is walked");
    shard.begin_walk();
    assert_eq!(slice(&mut shard, 0), 128 << 10);
    assert_eq!(slice(&mut shard, 1 << 20), (9 << 18) + (128 << 10));
    assert_eq!(slice(&mut shard, 10 << 20), 4 << 20);
}

#[test]
fn a_chunk_that_is_not_wanted_after_all_is_read_anew() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    shard.space.hold(true);
    (0..400).for_each(|number| write(&mut shard, client, number % 8, number));
    shard.space.hold(false);
    let mut thrown_away = 0;
    for _ in 0..20_000 {
        shard.sleep(Duration::from_micros(500));
        shard.turn();
        // As if it had been of elsewhere.
        thrown_away += usize::from(shard.space.ahead.mislead());
    }
    assert!(thrown_away > 0, "nothing was read ahead");
    assert!(
        shard.space.released > 5,
        "{} released",
        shard.space.released
    );
    assert_eq!(scan(&mut shard, client, 100, |_| ()).len(), 8);
}

#[test]
fn the_files_of_a_log_that_is_overwritten_take_no_more_than_twice_what_is_alive_from_the_beginning()
{
    const KEYS: usize = 500;
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    (0..KEYS).for_each(|key| write(&mut shard, client, key, key));
    let mut random = 1_u64;
    let mut most = 0;
    for number in 0..2 * KEYS {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        write(&mut shard, client, (random >> 33) as usize % KEYS, number);
        let log = &shard.core.partition.log;
        let files = log.segments().count() as u64 * log.segment_bytes() + log.waiting_bytes();
        most = most.max(files);
    }
    let percent = most * 100 / shard.core.partition.space.alive_bytes();
    assert!(percent <= 200, "{percent} % of what is alive");
}
