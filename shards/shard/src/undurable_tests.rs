//! What a crash could still take back hides nothing from readers, and frees nothing.

use crate::max_bytes_tests::LIMIT;
use crate::space_tests::{TEXT, begin, body, read, restart, scan, write};
use crate::test_driver::{TestDriver, get, post, put_policy};
use crate::turn::Shard;

/// Writes that are on their way to the device, and stay there.
fn in_flight(shard: &mut Shard<TestDriver>, requests: impl IntoIterator<Item = Vec<u8>>) {
    shard.driver.hold_writes = true;
    for request in requests {
        let writer = shard.connect();
        assert_eq!(shard.ask(writer, request), "", "not durable");
    }
}

fn again(key: usize) -> Vec<u8> {
    post(&format!("k{key}"), TEXT, &body(key, 7_000))
}

fn delete(key: usize) -> Vec<u8> {
    format!("DELETE /v1/streams/s/records/k{key} HTTP/1.1\r\nHost: x\r\n\r\n").into_bytes()
}

/// The device confirms all of it.
fn let_them_land(shard: &mut Shard<TestDriver>) {
    shard.driver.hold_writes = false;
    while shard.driver.let_one_write_end() {
        shard.turns(20);
    }
    shard.turns(100);
}

fn status(shard: &mut Shard<TestDriver>, client: u64, path: &str) -> String {
    read(shard, client, path).0[9..12].to_owned()
}

#[test]
fn a_scan_waits_for_the_version_that_hides_another() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    write(&mut shard, client, 1, 1);
    in_flight(&mut shard, [again(1)]);
    let reader = shard.connect();
    let page = shard.ask(reader, get("/v1/streams/s/scan"));
    assert_eq!(
        page, "",
        "a crash would take the cursor past a value that is the newest again"
    );
    let_them_land(&mut shard);
    assert!(shard.heard(reader).starts_with("HTTP/1.1 200"));
    let shown = scan(&mut shard, client, 10, |_| ());
    assert_eq!((shown.len(), shown[0].2), (1, 2));
}

#[test]
fn a_version_that_was_never_durable_hides_none_from_a_scan() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    write(&mut shard, client, 1, 1);
    shard.driver.fail_writes = true;
    assert_eq!(shard.ask(client, post("k1", TEXT, b"lost")), "");
    let reader = shard.connect();
    let before = scan(&mut shard, reader, 10, |_| ());
    assert_eq!((before.len(), before[0].2), (1, 1), "reads go on");
    let (mut shard, client) = restart(shard, 2);
    assert_eq!(scan(&mut shard, client, 10, |_| ()), before);
    assert_eq!(
        status(&mut shard, client, "/v1/streams/s/records/k1"),
        "200"
    );
}

#[test]
fn a_limit_in_bytes_ends_nothing_before_what_crossed_it_is_durable() {
    let (mut shard, client) = begin(&format!(r#"{{"max_bytes":{LIMIT}}}"#));
    for key in 0..40 {
        write(&mut shard, client, key, key);
    }
    let oldest = scan(&mut shard, client, 100, |_| ())[0].0.clone();
    in_flight(&mut shard, (50..53).map(again));
    let reader = shard.connect();
    let paths = ["", "/history"].map(|end| format!("/v1/streams/s/records/{oldest}{end}"));
    for path in &paths {
        assert_eq!(status(&mut shard, reader, path), "200", "{path}");
    }
    assert_eq!(scan(&mut shard, reader, 100, |_| ())[0].0, oldest);
    let_them_land(&mut shard);
    assert_eq!(status(&mut shard, reader, &paths[0]), "404");
    assert_ne!(scan(&mut shard, reader, 100, |_| ())[0].0, oldest);
}

#[test]
fn a_policy_is_seen_when_it_is_durable() {
    let (mut shard, client) = begin("{}");
    write(&mut shard, client, 1, 1);
    write(&mut shard, client, 1, 2);
    shard.driver.pass_seconds(10);
    shard.driver.hold_writes = true;
    let writer = shard.connect();
    let less = put_policy("s", r#"{"history_depth":1,"max_age_seconds":1}"#);
    assert_eq!(shard.ask(writer, less), "");
    let reader = shard.connect();
    let versions = |shard: &mut Shard<TestDriver>| {
        let (head, body) = read(shard, reader, "/v1/streams/s/records/k1/history");
        (head[9..12].to_owned(), body.lines().count())
    };
    assert_eq!(versions(&mut shard), ("200".into(), 2));
    assert_eq!(scan(&mut shard, reader, 10, |_| ()).len(), 2);
    let (_, told) = read(&mut shard, reader, "/v1/streams/s");
    assert!(!told.contains(r#""history_depth":1"#), "{told}");
    let_them_land(&mut shard);
    assert_eq!(
        status(&mut shard, reader, "/v1/streams/s/records/k1"),
        "404"
    );
    let (_, told) = read(&mut shard, reader, "/v1/streams/s");
    assert!(told.contains(r#""history_depth":1"#), "{told}");
}

#[test]
fn no_segment_is_released_for_what_is_not_durable() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    for number in 0..60 {
        write(&mut shard, client, number, number);
    }
    in_flight(&mut shard, [(0..55).flat_map(delete).collect()]);
    shard.turns(300);
    assert_eq!(shard.space.released, 0);
    let_them_land(&mut shard);
    shard.turns(300);
    assert!(shard.space.released > 0, "it waited for that alone");
}
