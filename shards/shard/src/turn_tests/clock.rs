//! A wall clock that jumps.

use std::time::Duration;

use crate::checkpoint_tests::checkpoint;
use crate::space_tests::{begin, read, restart};
use crate::test_driver::{get, post, recovered, shard};

#[test]
fn a_clock_that_jumps_moves_no_timestamp_back_and_ends_no_wait_early() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (writer, waiter) = (shard.connect(), shard.connect());
    let put = |shard: &mut crate::turn::Shard<_>, value: &str| {
        assert!(
            shard
                .ask(writer, post("k", "", value.as_bytes()))
                .starts_with("HTTP/1.1 201")
        );
    };
    put(&mut shard, "first");
    let tail = shard.ask(waiter, get("/v1/streams/s/tail?wait_ms=5000"));
    let cursor = tail
        .lines()
        .find_map(|l| l.strip_prefix("X-Pinion-Cursor: "))
        .expect("a page")
        .to_owned();
    let hour = 3_600_000_000;
    shard.say(
        waiter,
        get(&format!("/v1/streams/s/tail?wait_ms=5000&cursor={cursor}")),
    );
    for off in [hour, -hour, 0] {
        shard.driver.clock_off_us = off;
        shard.turns_for(Duration::from_secs(1));
        assert_eq!(shard.heard(waiter), "", "the wait is real time");
    }
    for (off, value) in [(hour, "ahead"), (-hour, "back"), (0, "right")] {
        shard.driver.clock_off_us = off;
        put(&mut shard, value);
    }
    let history = shard.ask(writer, get("/v1/streams/s/records/k/history?limit=10"));
    let times: Vec<u64> = history
        .split("\"timestamp\":")
        .skip(1)
        .map(|t| {
            let digits: String = t.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().expect("a number")
        })
        .collect();
    assert_eq!(times.len(), 4, "{history}");
    assert!(
        times.windows(2).all(|t| t[0] >= t[1]),
        "newest first, and never older than the one before: {times:?}"
    );
    // A restart under a clock that is behind goes on where the log was.
    let (mut second, _) = recovered(shard.driver.files, 2, 8, Duration::ZERO);
    let client = second.connect();
    second.driver.clock_off_us = -24 * hour;
    assert!(
        second
            .ask(client, post("k", "", b"late"))
            .starts_with("HTTP/1.1 201")
    );
    let newest = second.ask(client, get("/v1/streams/s/records/k/history?limit=1"));
    assert!(
        newest.contains(&format!("\"timestamp\":{}", times[0])),
        "{newest}"
    );
}

/// A checkpoint may be newer than the last batch: records ended after that, and keys may have left the index.
#[test]
fn what_has_ended_by_its_age_stays_ended_when_a_restart_finds_the_clock_behind() {
    let (mut first, client) = begin(r#"{"max_age_seconds":10}"#);
    assert!(
        first
            .ask(client, post("k", "", b"old"))
            .starts_with("HTTP/1.1 201")
    );
    first.driver.pass_seconds(60);
    let status = |shard: &mut crate::turn::Shard<_>, client| {
        read(shard, client, "/v1/streams/s/records/k").0[9..12].to_owned()
    };
    assert_eq!(status(&mut first, client), "404");
    checkpoint(&mut first);
    // The clock of a new test driver begins where the first one's did.
    let (mut second, client) = restart(first, 2);
    assert_eq!(status(&mut second, client), "404");
}
