//! Drains: what was taken is answered, whoever has to be asked for it.

use super::RECORD;
use crate::test_driver::{get, post, shard, two_shards};

#[test]
fn a_drain_answers_what_was_taken() {
    let mut first = shard(Vec::new(), 1, 8);
    let client = first.connect();
    assert!(
        first
            .ask(client, post("k", "", b"cold"))
            .starts_with("HTTP/1.1 201")
    );
    let mut second = shard(first.driver.files, 2, 8);
    let client = second.connect();
    second.turns(5);
    second.say(client, get(RECORD));
    second.turn();
    assert_eq!(second.heard(client), "", "the device is asked");
    second.drain();
    while second.turn() {}
    assert!(second.heard(client).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_request_that_is_not_whole_when_the_server_ends_is_told_so() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    let whole = post("k", "", b"value");
    shard.say(client, &whole[..whole.len() - 1]);
    shard.turns(3);
    shard.drain();
    while shard.turn() {}
    let said = shard.heard(client);
    assert!(said.starts_with("HTTP/1.1 503"), "{said}");
    assert!(said.contains("Connection: close"), "{said}");
}

#[test]
fn who_waits_for_news_is_told_that_there_is_none_when_the_server_ends() {
    let mut shards = two_shards(8);
    let client = shards[0].connect();
    shards[0].turns(3);
    // The second is behind the first on one connection.
    let tail = get("/v1/streams/s/tail?wait_ms=60000");
    shards[0].say(client, tail.repeat(2));
    for _ in 0..20 {
        for shard in &mut shards {
            shard.turn();
        }
    }
    assert_eq!(shards[0].heard(client), "");
    let mut on = [true; 2];
    shards[0].drain();
    for turn in 0..1_000 {
        if turn == 20 {
            shards[1].drain();
        }
        for (shard, on) in shards.iter_mut().zip(&mut on) {
            *on = *on && shard.turn();
        }
    }
    assert_eq!(on, [false; 2], "the drain ends");
    let said = shards[0].heard(client);
    assert_eq!(said.matches("HTTP/1.1 200").count(), 2, "{said}");
    assert_eq!(said.matches("X-Pinion-Cursor: ").count(), 2, "{said}");
}

#[test]
fn a_drained_shard_answers_the_others_until_they_are_drained_too() {
    for first in [0, 1] {
        let mut shards = two_shards(8);
        let second = 1 - first;
        let key = (0..)
            .map(|i| format!("k{i}"))
            .find(|k| {
                let slot = wire::slot::slot_of(k.as_bytes());
                usize::from(wire::slot::shard_of_slot(slot, 2)) == first
            })
            .expect("half of all keys");
        let client = shards[second].connect();
        shards[second].turns(3);
        shards[first].drain();
        for _ in 0..50 {
            assert!(shards[first].turn(), "the other may still ask");
        }
        // The other has not heard of the drain, or has the request in its mail already.
        shards[second].say(client, post(&key, "", b"hops"));
        shards[second].turn();
        shards[second].drain();
        let mut on = [true; 2];
        for _ in 0..1_000 {
            for (shard, on) in shards.iter_mut().zip(&mut on) {
                *on = *on && shard.turn();
            }
        }
        assert_eq!(on, [false; 2], "the drain ends");
        assert!(shards[second].heard(client).starts_with("HTTP/1.1 201"));
        assert_eq!(
            shards[first].durable_lsn(),
            2,
            "the stream's policy and the record"
        );
    }
}
