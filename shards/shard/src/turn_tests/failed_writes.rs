//! A disk that fails or is full: nobody waits for what will not come, nobody is shown what may be taken back.

use std::time::Duration;

use super::RECORD;
use crate::test_driver::{get, post, shard};

#[test]
fn a_refused_condition_waits_for_the_record_that_it_names() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (one, two) = (shard.connect(), shard.connect());
    shard.turns(5);
    shard.driver.hold_writes = true;
    assert_eq!(shard.ask(one, post("k", "", b"first")), "");
    assert_eq!(
        shard.ask(two, post("k", "If-None-Match: *\r\n", b"second")),
        "",
        "a crash could still take the first back"
    );
    shard.driver.let_writes_end(|_| 4096);
    shard.turns(5);
    assert!(shard.heard(one).starts_with("HTTP/1.1 201"));
    assert!(shard.heard(two).starts_with("HTTP/1.1 412"));
}

#[test]
fn behind_a_failed_write_nothing_waits_and_a_drain_ends() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (writer, reader) = (shard.connect(), shard.connect());
    assert!(
        shard
            .ask(writer, post("k", "", b"kept"))
            .starts_with("HTTP/1.1 201")
    );
    shard.driver.fail_writes = true;
    assert_eq!(shard.ask(writer, post("k", "", b"lost")), "");
    assert!(!shard.driver.clients[&writer].1, "its ack will not come");
    assert!(
        shard.ask(reader, get(RECORD)).starts_with("HTTP/1.1 503"),
        "the newest value is not durable and never will be"
    );
    assert!(
        shard
            .ask(reader, get("/v1/streams/s/scan"))
            .contains("a2VwdA=="),
        "reads of what is durable go on"
    );
    shard.drain();
    assert!((0..2_000).any(|_| !shard.turn()), "the drain ends");
}

#[test]
fn who_was_refused_is_told_ready_by_no_shard() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    shard.turns(5);
    shard.driver.fail_writes = true;
    shard.say(client, post("k", "", b"lost"));
    assert!(shard.core.is_process_ready());
    let closed = (0..20).any(|_| {
        shard.turn();
        !shard.driver.clients[&client].1
    });
    assert!(closed, "its ack will not come");
    assert!(
        !shard.core.is_process_ready(),
        "told before the client could notice, not by the next housekeeping"
    );
}

#[test]
fn a_segment_that_cannot_be_made_is_named_for_what_it_is() {
    for (kind, status) in [
        (std::io::ErrorKind::StorageFull, "507"),
        (std::io::ErrorKind::QuotaExceeded, "507"),
        (std::io::ErrorKind::ReadOnlyFilesystem, "503"),
        (std::io::ErrorKind::Other, "503"),
    ] {
        let mut shard = shard(Vec::new(), 1, 8);
        let client = shard.connect();
        shard.turns(5);
        shard.driver.fail_segments = Some(kind);
        let body = vec![b'x'; 290 << 10];
        let answer = (0..200)
            .map(|_| shard.ask(client, post("k", "", &body)))
            .find(|answer| !answer.starts_with("HTTP/1.1 201"))
            .expect("the segments that there are fill up");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{kind}: {answer}"
        );
        assert!(answer.contains("Retry-After"), "{answer}");
        assert!(shard.ask(client, get(RECORD)).starts_with("HTTP/1.1 200"));
        assert!(
            shard
                .ask(client, get("/readyz"))
                .starts_with(&format!("HTTP/1.1 {status}"))
        );
        shard.driver.fail_segments = None;
        shard.turns_for(Duration::from_secs(1));
        assert!(
            shard
                .ask(client, post("k", "", b"again"))
                .starts_with("HTTP/1.1 201"),
            "{kind}: writes resume by themselves"
        );
    }
}
