//! Clients: too many, too slow, too eager.

use std::time::Duration;

use super::RECORD;
use crate::test_driver::{PAYLOAD_BYTES_MAX, get, post, shard};

#[test]
fn connections_far_beyond_the_bound_are_dropped_before_they_cost_anything() {
    let mut shard = shard(Vec::new(), 1, 4);
    let before = shard.driver.clients.len();
    for _ in 0..1_000 {
        shard.event(crate::driver::Event::Accepted {
            door: crate::driver::Door::Http,
            socket: (),
        });
    }
    assert!(shard.driver.clients.len() - before <= 4 + 64);
    shard.turns(5);
    assert_eq!(shard.core.conns.len(), 4);
    assert_eq!(
        shard.core.shared.load[0].load(std::sync::atomic::Ordering::Relaxed),
        4
    );
    let refused: Vec<u64> = (5..=8).collect();
    for client in refused {
        assert!(shard.heard(client).starts_with("HTTP/1.1 429"));
    }
}

#[test]
fn what_waits_for_a_bound_is_answered_as_soon_as_it_may() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    shard.turns(3);
    // More gets of an unknown key than a connection may have under way: the rest is taken up as answers leave.
    let requests = get(RECORD).repeat(2_000);
    shard.say(client, requests);
    let (mut heard, started) = (0, shard.core.now.monotonic_ns);
    while heard < 2_000 {
        shard.turn();
        heard += shard.heard(client).matches("HTTP/1.1 404").count();
        assert!(
            shard.core.now.monotonic_ns - started < 50_000_000,
            "{heard} answers, and it sleeps"
        );
    }
}

/// A request of which all but the last bytes have come.
fn begun(key: &str) -> Vec<u8> {
    let mut bytes = post(key, "", b"half a body");
    bytes.truncate(bytes.len() - 4);
    bytes
}

#[test]
fn a_request_that_is_begun_and_not_ended_is_refused_and_closed() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (slow, idle, fast) = (shard.connect(), shard.connect(), shard.connect());
    shard.say(slow, begun("k"));
    // A byte at a time does not start the clock anew.
    for byte in b"hal" {
        shard.turns_for(Duration::from_secs(3));
        assert_eq!(shard.heard(slow), "");
        shard.say(slow, [*byte]);
    }
    shard.turns_for(Duration::from_millis(1_100));
    assert!(shard.heard(slow).starts_with("HTTP/1.1 408"));
    assert!(!shard.driver.clients[&slow].1, "it is closed");
    assert!(
        shard.driver.clients[&idle].1,
        "one that asks nothing is not"
    );
    assert!(shard.ask(fast, get("/healthz")).starts_with("HTTP/1.1 200"));
    assert_eq!(shard.core.metrics.counters.late_requests, 1);
}

#[test]
fn a_large_request_is_given_time_by_its_bytes() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    let whole = post("k", "", &[b'x'; 290 << 10]);
    // 29 KiB every second and a half: slow, and fast enough.
    let mut pieces = whole.chunks(whole.len() / 10 + 1);
    for piece in pieces.by_ref() {
        shard.say(client, piece);
        shard.turns_for(Duration::from_millis(1_400));
    }
    assert!(shard.heard(client).starts_with("HTTP/1.1 201"));
}

#[test]
fn a_process_that_was_stopped_does_not_blame_its_clients() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    let request = post("k", "", b"half a body");
    shard.say(client, begun("k"));
    shard.turns(5);
    shard.sleep(Duration::from_secs(3600));
    shard.turns(5);
    assert_eq!(shard.heard(client), "", "its bytes may be on their way");
    assert!(
        shard
            .ask(client, &request[request.len() - 4..])
            .starts_with("HTTP/1.1 201")
    );
    // The time after the stop counts.
    shard.say(client, begun("k"));
    shard.sleep(Duration::from_secs(3600));
    shard.turns_for(Duration::from_secs(12));
    assert!(shard.heard(client).starts_with("HTTP/1.1 408"));
}

#[test]
fn who_asks_before_sending_more_than_a_payload_may_have_is_refused_at_once() {
    let mut shard = shard(Vec::new(), 1, 8);
    let head = |path: &str, bytes: u32| {
        format!(
            "POST /v1/streams/s/records{path} HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Type: application/x-ndjson\r\nContent-Length: {bytes}\r\n\r\n"
        )
    };
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    let client = shard.connect();
    assert_eq!(shard.ask(client, head("/k", PAYLOAD_BYTES_MAX)), go_on);
    // Lines are measured one by one, so a batch is not refused for its length.
    let client = shard.connect();
    assert_eq!(shard.ask(client, head("", PAYLOAD_BYTES_MAX + 1)), go_on);
    let client = shard.connect();
    let problem = "{\"type\":\"urn:pinion:problem:too_large\",\"title\":\"Over the size limit\",\"status\":413,\"detail\":\"payload has 307201 bytes: keep payloads within 307200\",\"code\":\"too_large\"}";
    let answer = shard.ask(client, head("/k", PAYLOAD_BYTES_MAX + 1));
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    assert!(answer.contains("\r\nConnection: close\r\n"), "{answer}");
    assert!(answer.ends_with(&format!("\r\n\r\n{problem}")), "{answer}");
    assert!(!shard.driver.clients[&client].1, "it is closed");
}
