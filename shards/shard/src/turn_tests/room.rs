//! Room in the log: what never fits is refused, what fits has its turn, and load makes batches.

use std::time::Duration;

use crate::test_driver::{post, recovered, shard};

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
    let mut shard = shard(Vec::new(), 1, 64);
    let big = shard.connect();
    let small: Vec<u64> = (0..40).map(|_| shard.connect()).collect();
    shard.turns(5);
    shard.driver.hold_writes = true;
    // Each fills a batch; each is asked again as soon as it is answered. One write ends in a turn.
    let post = post("k", "", &[b'x'; 290 << 10]);
    let mut answers = vec![0; small.len()];
    let turn = |shard: &mut crate::turn::Shard<_>, answers: &mut [u32]| {
        for (client, answers) in small.iter().zip(&mut *answers) {
            if *answers == 0 || shard.heard(*client).starts_with("HTTP/1.1 201") {
                *answers += 1;
                shard.say(*client, &post);
            }
        }
        shard.driver.let_one_write_end();
        shard.turn();
    };
    for _ in 0..60 {
        turn(&mut shard, &mut answers);
    }
    assert!(
        shard.core.partition.log.in_flight() == 8,
        "the disk is saturated"
    );
    let lines = "{\"key\":\"k\",\"value\":1}\n".repeat(1_000_000 / 22);
    shard.say(big, format!(
        "POST /v1/streams/s/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{lines}",
        lines.len()
    ));
    // Those that stand in line before it, and the buffers that it needs.
    let turns = (0..120).position(|_| {
        turn(&mut shard, &mut answers);
        shard.heard(big).starts_with("HTTP/1.1 200")
    });
    assert!(turns.is_some(), "it starves");
    let before = answers.clone();
    for _ in 0..120 {
        turn(&mut shard, &mut answers);
    }
    assert!(
        answers.iter().zip(&before).all(|(now, then)| now > then),
        "and so does no other: {before:?}, {answers:?}"
    );
}
