//! Room in the log: what never fits is refused, what fits has its turn, and load makes batches.

use std::time::Duration;

use crate::test_driver::{TestDriver, post, recovered, shard, two_shards};
use crate::turn::Shard;

#[test]
fn a_request_that_no_set_of_buffers_holds_is_refused() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    // 1 MiB of lines is 2.6 MiB of log: it fits a segment, and so do the buffers for it.
    let body = "{\"key\":\"k\",\"value\":1}\n".repeat(1_000_000 / 22);
    let many = |body: &str| {
        format!(
            "POST /v1/streams/s/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    assert!(shard.ask(client, many(&body)).starts_with("HTTP/1.1 200"));
    let log = &shard.core.partition.log;
    for (bytes, largest) in [
        (100, 100),
        (3 << 20, 64),
        (2 << 20, 300 << 10),
        (64 << 20, 64),
    ] {
        let fits = log.unit_fits(bytes, largest);
        assert_eq!(
            fits,
            bytes <= 3 << 20,
            "{bytes} bytes, the largest {largest}"
        );
    }
}

#[test]
fn under_load_small_batches_are_a_commit_window_apart_and_lone_ones_are_not() {
    const WINDOW: Duration = Duration::from_millis(5);
    let (mut shard, _) = recovered(Vec::new(), 1, 16, WINDOW);
    let clients: Vec<u64> = (0..8).map(|_| shard.connect()).collect();
    shard.turns(5);
    // Clients that ask again as soon as all of them are answered; the times between the writes of their batches.
    let mut between = |clients: &[u64]| -> Vec<u64> {
        shard.driver.write_times_ns.clear();
        for _ in 0..8 {
            for client in clients {
                shard.say(*client, post("k", "", b"x"));
            }
            while !clients
                .iter()
                .all(|c| !shard.driver.clients[c].0.is_empty())
            {
                shard.turn();
            }
            for client in clients {
                assert!(shard.heard(*client).starts_with("HTTP/1.1 201"));
            }
        }
        let times = &shard.driver.write_times_ns;
        times.windows(2).map(|t| t[1] - t[0]).collect()
    };
    let window_ns = WINDOW.as_nanos() as u64;
    let lone = between(&clients[..1]);
    assert!(lone.iter().all(|ns| *ns < window_ns), "{lone:?}");
    let loaded = between(&clients);
    assert!(loaded.len() >= 7, "{loaded:?}");
    assert!(
        loaded.iter().skip(2).all(|ns| *ns >= window_ns),
        "{loaded:?}"
    );
}

#[test]
fn a_unit_of_many_buffers_has_its_turn_on_a_saturated_disk() {
    has_its_turn(&mut [shard(Vec::new(), 1, 64)], "");
}

/// It has been found out by then that its key was not used for another request, and that stays known.
#[test]
fn a_batch_under_a_key_has_its_turn_on_a_saturated_disk() {
    let mut shards = two_shards(64);
    has_its_turn(&mut shards, "Idempotency-Key: one\r\n");
    assert_eq!(shards[0].core.hops, 1, "the other shard is asked once");
}

/// A batch of a megabyte, with these header lines, beside forty clients that keep the disk of the first shard busy.
fn has_its_turn(shards: &mut [Shard<TestDriver>], headers: &str) {
    let key = (0..100).map(|number| format!("k{number}")).find(|key| {
        let slot = wire::slot::slot_of(key.as_bytes());
        wire::slot::shard_of_slot(slot, shards.len() as u16) == 0
    });
    let key = key.expect("one of a hundred is the first shard's");
    let big = shards[0].connect();
    let small: Vec<u64> = (0..40).map(|_| shards[0].connect()).collect();
    shards[0].turns(5);
    shards[0].driver.hold_writes = true;
    // Each fills a batch; each is asked again as soon as it is answered. One write ends in a turn.
    let post = post(&key, "", &[b'x'; 290 << 10]);
    let mut answers = vec![0; small.len()];
    let turn = |shards: &mut [Shard<TestDriver>], answers: &mut [u32]| {
        let shard = &mut shards[0];
        for (client, answers) in small.iter().zip(&mut *answers) {
            if *answers == 0 || shard.heard(*client).starts_with("HTTP/1.1 201") {
                *answers += 1;
                shard.say(*client, &post);
            }
        }
        shard.driver.let_one_write_end();
        for shard in shards {
            shard.turn();
        }
    };
    for _ in 0..60 {
        turn(shards, &mut answers);
    }
    assert!(
        shards[0].core.partition.log.in_flight() == 8,
        "the disk is saturated"
    );
    let lines = format!("{{\"key\":\"{key}\",\"value\":1}}\n").repeat(1_000_000 / 22);
    shards[0].say(big, format!(
        "POST /v1/streams/s/records HTTP/1.1\r\nHost: x\r\n{headers}Content-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{lines}",
        lines.len()
    ));
    // Those that stand in line before it, and the buffers that it needs.
    let turns = (0..120).position(|_| {
        turn(shards, &mut answers);
        shards[0].heard(big).starts_with("HTTP/1.1 200")
    });
    assert!(turns.is_some(), "it starves");
    let before = answers.clone();
    for _ in 0..120 {
        turn(shards, &mut answers);
    }
    // Of two shards the other has some of the connections: those are heard there, and not here.
    let alone = shards.len() == 1;
    let mut pairs = answers.iter().zip(&before);
    assert!(
        pairs.all(|(now, then)| now > then || (!alone && *then == 1)),
        "and so does no other: {before:?}, {answers:?}"
    );
}
