//! Safe retries: a repeat gets the first answer and appends nothing, after a reconnect, a SIGKILL and a clean restart.

use client::{Client, Code, Condition, ConnectOptions, ContentType, Error, Record};

use crate::http::{Connection, Response};
use crate::server::{Server, directory};

const ONE: &str = "/v1/streams/s/records/k";
const MANY: &str = "/v1/streams/s/records";

fn post_one(http: &mut Connection) -> Response {
    http.call("POST", ONE, &["Idempotency-Key: one"], "first")
}

fn many() -> String {
    (0..20)
        .map(|i| format!("{{\"key\":\"m{i}\",\"value\":{i}}}\n"))
        .collect()
}

fn post_many(http: &mut Connection) -> Response {
    http.call(
        "POST",
        MANY,
        &[
            "Idempotency-Key: many",
            "Content-Type: application/x-ndjson",
        ],
        many(),
    )
}

fn delete(http: &mut Connection) -> Response {
    http.call(
        "DELETE",
        "/v1/streams/s/records/ended",
        &["Idempotency-Key: end"],
        "",
    )
}

/// What a retry must look like on a server in any state, and that nothing was added by it.
#[track_caller]
fn assert_repeats(server: &Server, first: &[Response; 3], when: &str) {
    let mut http = server.http();
    assert_eq!(&post_one(&mut http), &first[0], "{when}");
    assert_eq!(&post_many(&mut http), &first[1], "{when}");
    assert_eq!(&delete(&mut http), &first[2], "{when}");
    let detail = http
        .call("POST", ONE, &["Idempotency-Key: one"], "other")
        .problem(422, "idempotency_mismatch");
    assert!(detail.contains("different request"), "{detail}");
    assert_eq!(
        http.get("/v1/streams/s").json()["records"],
        23,
        "{when}: nothing was appended"
    );
    assert_eq!(
        http.get(&format!("{ONE}/history")).lines().len(),
        1,
        "{when}"
    );
}

#[test]
fn an_idempotency_key_repeats_the_first_answer() {
    for shards in [1, 2] {
        let data = directory();
        let server = Server::start(data.path(), shards);
        let mut http = server.http();
        http.post("/v1/streams/s/records/ended", "x");
        let first = [post_one(&mut http), post_many(&mut http), delete(&mut http)];
        assert_eq!(first.clone().map(|r| r.status), [201, 200, 204]);
        assert_repeats(&server, &first, "at once, on another connection");
        server.kill();
        let server = Server::start(data.path(), shards);
        assert_repeats(&server, &first, "after SIGKILL");
        server.stop();
        let server = Server::start(data.path(), shards);
        assert_repeats(&server, &first, "after a clean restart");
        // The same key for another record is another request.
        let mut http = server.http();
        let other = http.call(
            "POST",
            "/v1/streams/s/records/k2",
            &["Idempotency-Key: one"],
            "first",
        );
        assert_eq!((other.status, other.header("etag")), (201, Some("\"1\"")));
        server.stop();
    }
}

/// One line for each key, all with the value.
fn lines(keys: &[&str], value: u32) -> String {
    keys.iter()
        .map(|key| format!("{{\"key\":\"{key}\",\"value\":{value}}}\n"))
        .collect()
}

#[test]
fn a_key_of_a_batch_is_known_to_shards_that_had_no_record_of_it() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    let of_shard = |shard: u16| {
        let keys = ["a", "b", "c", "d", "e", "f"].into_iter();
        let mut here = keys.filter(move |key| {
            wire::slot::shard_of_slot(wire::slot::slot_of(key.as_bytes()), 2) == shard
        });
        here.next().expect("one of six is of each shard")
    };
    let (here, there) = (of_shard(0), of_shard(1));
    let ndjson = ["Idempotency-Key: k", "Content-Type: application/x-ndjson"];
    let mut http = server.http();
    let first = http.call("POST", MANY, &ndjson, lines(&[here], 1));
    assert_eq!(first.status, 200);
    for (other, why) in [
        (lines(&[there], 1), "another shard alone"),
        (lines(&[there, here], 1), "both shards"),
        (lines(&[here], 2), "the same shard"),
    ] {
        // Another connection may belong to the other shard.
        for http in [&mut http, &mut server.http(), &mut server.http()] {
            let detail = http
                .call("POST", MANY, &ndjson, &other)
                .problem(422, "idempotency_mismatch");
            assert!(!detail.contains("are appended"), "{why}: {detail}");
        }
    }
    assert_eq!(
        http.call("POST", MANY, &ndjson, lines(&[here], 1)),
        first,
        "the request itself is a repeat as before"
    );
    assert_eq!(http.get("/v1/streams/s").json()["records"], 1);
    // Behind a batch whose key is asked for, other requests keep their order.
    let next = ["Idempotency-Key: next", ndjson[1]];
    http.start("POST", MANY, &next, lines(&[here, there], 7).as_bytes());
    http.start("GET", &format!("{MANY}/{there}"), &[], b"");
    assert_eq!(http.response().json()["appended"], 2);
    assert_eq!(http.response().text(), "7");
    let asked: f64 = (0..2)
        .map(|shard| {
            let name = format!(
                "pinion_requests_total{{shard=\"{shard}\",operation=\"append\",protocol=\"http\"}} "
            );
            let text = server.http().get("/metrics").text();
            let line = text.lines().find_map(|line| line.strip_prefix(&*name));
            line.and_then(|count| count.parse::<f64>().ok())
                .expect("a counter")
        })
        .sum();
    assert_eq!(asked, 12.0, "a request that waited is counted once");
    server.stop();
}

#[test]
fn a_refused_write_does_not_use_up_its_key() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let conditional = |http: &mut Connection| {
        http.call(
            "POST",
            ONE,
            &["Idempotency-Key: c", "If-Match: \"1\""],
            "second",
        )
    };
    conditional(&mut http).problem(412, "condition_failed");
    http.post(ONE, "first");
    assert_eq!(conditional(&mut http).status, 201);
    assert_eq!(
        conditional(&mut http).status,
        201,
        "the first answer, although the condition no longer holds"
    );
    assert_eq!(http.get(&format!("{ONE}/history")).lines().len(), 2);
    server.stop();
}

const KEY: [u8; 2] = *b"{p";

fn record<'a>(key: &'a [u8], payload: &'a [u8]) -> Record<'a> {
    Record {
        key,
        payload,
        content_type: ContentType::OCTET_STREAM,
        tombstone: false,
        condition: Condition::None,
    }
}

/// A client that will send `sequence` next to every log.
fn producer(server: &Server, sequence: u64) -> Client {
    let options = ConnectOptions {
        producer_id: Some(7),
        sequences: vec![(0, sequence), (1, sequence)],
        ..ConnectOptions::default()
    };
    server.client_with(options)
}

#[track_caller]
fn send(server: &Server, sequence: u64, payload: &[u8]) -> client::Result<client::Ack> {
    producer(server, sequence).append("s", &[record(&KEY, payload), record(&KEY, b"twin")])
}

#[track_caller]
fn assert_code(result: client::Result<client::Ack>, code: Code) {
    match result {
        Err(Error::Refused(refusal)) => assert_eq!(refusal.code, code, "{}", refusal.message),
        other => panic!("{other:?} instead of {code:?}"),
    }
}

#[test]
fn a_producer_sequence_repeats_the_first_answer() {
    for shards in [1, 2] {
        let data = directory();
        let mut server = Server::start(data.path(), shards);
        let first: Vec<client::Ack> = (1..=5)
            .map(|s| send(&server, s, format!("{s}").as_bytes()).expect("appended"))
            .collect();
        assert_eq!(
            first.iter().map(|a| a.versions.clone()).collect::<Vec<_>>(),
            (0..5)
                .map(|i| vec![2 * i + 1, 2 * i + 2])
                .collect::<Vec<_>>()
        );
        for when in [
            "after a reconnect",
            "after SIGKILL",
            "after a clean restart",
        ] {
            for (sequence, ack) in (1..).zip(&first) {
                let again = send(&server, sequence, format!("{sequence}").as_bytes())
                    .expect("the first answer");
                assert_eq!(again.versions, ack.versions, "{when}");
                let places = |ack: &client::Ack| {
                    ack.parts
                        .iter()
                        .map(|p| (p.log, p.records, p.first_lsn))
                        .collect::<Vec<_>>()
                };
                assert_eq!(places(&again), places(ack), "{when}");
            }
            assert_code(send(&server, 3, b"other"), Code::IdempotencyMismatch);
            assert_code(send(&server, 7, b"gap"), Code::SequenceOutOfOrder);
            let records = [record(&KEY, b"3"), record(&KEY, b"twin")];
            let elsewhere = producer(&server, 3).append("another", &records);
            assert_code(elsewhere, Code::IdempotencyMismatch);
            let mut reader = server.client();
            assert_eq!(
                reader.history("s", &KEY, 0, 100).expect("served").len(),
                10,
                "{when}"
            );
            match when {
                "after a reconnect" => server.kill(),
                _ => server.stop(),
            }
            server = Server::start(data.path(), shards);
        }
        let sixth = send(&server, 6, b"6").expect("the next one");
        assert_eq!(sixth.versions, [11, 12]);
        server.stop();
    }
}

#[test]
fn a_buffered_repeat_asked_durably_waits_for_the_disk() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let buffered = http.call(
        "POST",
        &format!("{ONE}?durability=buffered"),
        &["Idempotency-Key: b"],
        "x",
    );
    let durable = http.call("POST", ONE, &["Idempotency-Key: b"], "x");
    assert_eq!((buffered.status, durable.status), (201, 201));
    assert_eq!(
        buffered.header("x-pinion-position"),
        durable.header("x-pinion-position")
    );
    assert_eq!(durable.json()["durability"], "durable");
    server.kill();
    let server = Server::start(data.path(), 1);
    assert_eq!(
        server.http().get(ONE).text(),
        "x",
        "the durable answer was a promise"
    );
    server.stop();
}
