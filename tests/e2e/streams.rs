//! Streams as wholes: policies, and following one by long poll and by server-sent events.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::server::{Server, directory, eventually};

#[test]
fn a_policy_is_kept_shown_and_enforced_at_reads() {
    for shards in [1, 2] {
        let data = directory();
        let server = Server::start(data.path(), shards);
        let mut http = server.http();
        let put = http.call("PUT", "/v1/streams/s", &[], r#"{"history_depth": 3}"#);
        assert_eq!(put.status, 200, "{}", put.text());
        http.call("PUT", "/v1/streams/s", &[], r#"{"history_dept": 3}"#)
            .problem(400, "malformed");
        http.call("PUT", "/v1/streams/s", &[], "[]")
            .problem(400, "malformed");
        for version in 1..=10 {
            http.post("/v1/streams/s/records/k", format!("{version}"));
        }
        http.post("/v1/streams/s/records/other", "x");
        let enforced = |server: &Server| {
            let mut http = server.http();
            let shown = http.get("/v1/streams/s").json();
            assert_eq!(shown["policy"]["history_depth"], 3, "{shown}");
            let versions: Vec<u64> = http
                .get("/v1/streams/s/records/k/history")
                .lines()
                .iter()
                .map(|l| l["version"].as_u64().expect("a version"))
                .collect();
            assert_eq!(versions, [10, 9, 8]);
            let mut scanned: Vec<String> = crate::http::scan(&mut http, "s", 4)
                .iter()
                .map(|l| format!("{} {}", l["key"].as_str().expect("a key"), l["version"]))
                .collect();
            scanned.sort();
            assert_eq!(
                scanned,
                ["k 10", "k 8", "k 9", "other 1"],
                "scan shows no more than history"
            );
            assert_eq!(http.get("/v1/streams/s/records/k").text(), "10");
        };
        enforced(&server);
        server.stop();
        let server = Server::start(data.path(), shards);
        enforced(&server);
        server.kill();
        let server = Server::start(data.path(), shards);
        enforced(&server);

        // Age: log time stands still without writes, so a write to another stream is what makes the old one old.
        let mut http = server.http();
        let age = http.call("PUT", "/v1/streams/s", &[], r#"{"max_age_seconds": 1}"#);
        assert_eq!(age.status, 200);
        eventually("the records to be too old", || {
            (http.get("/v1/streams/s/records/k").status == 404).then_some(())
        });
        assert_eq!(http.get("/v1/streams/s/records/k/history").lines().len(), 0);
        eventually("all shards' records to be too old", || {
            (http.get("/v1/streams/s/scan").lines().is_empty()).then_some(())
        });
        // Conditions see what gets see: it is not there. The version goes on all the same.
        let path = "/v1/streams/s/records/k";
        let matching = http.call("POST", path, &["If-Match: \"10\""], "not");
        assert_eq!(matching.status, 412);
        assert_eq!(http.call("DELETE", path, &[], "").status, 404);
        let new = http.call("POST", path, &["If-None-Match: *"], "new");
        assert_eq!((new.status, &new.json()["version"]), (201, &11.into()));
        assert_eq!(http.get("/v1/streams/s/records/k").text(), "new");
        assert_eq!(http.get("/v1/streams").json()["streams"][0]["stream"], "s");
        server.stop();
    }
}

#[test]
fn a_long_poll_waits_wakes_and_times_out() {
    for shards in [1, 2] {
        let data = directory();
        let server = Server::start(data.path(), shards);
        let mut http = server.http();
        let mut writer = server.http();

        // A stream that is not there yet can be waited for.
        let started = Instant::now();
        let empty = http.get("/v1/streams/s/tail?wait_ms=200");
        assert_eq!(empty.lines(), Vec::<serde_json::Value>::new());
        assert!(
            started.elapsed() >= Duration::from_millis(200),
            "answered after {:?}",
            started.elapsed()
        );
        let mut cursor = empty
            .header("x-pinion-cursor")
            .expect("a cursor even of nothing")
            .to_owned();

        for i in 0..20 {
            let key = format!("k{i}");
            http.start(
                "GET",
                &format!("/v1/streams/s/tail?wait_ms=60000&cursor={cursor}"),
                &[],
                b"",
            );
            // The poll is on its way before the record: its connection has its answer only after the write.
            assert_eq!(
                writer
                    .post(&format!("/v1/streams/s/records/{key}"), "x")
                    .status,
                201
            );
            let page = http.response();
            let lines = page.lines();
            assert_eq!(lines.len(), 1, "page {i}: {lines:?}");
            assert_eq!(lines[0]["key"], key);
            cursor = page.header("x-pinion-cursor").expect("a cursor").to_owned();
        }
        // From the beginning: everything that is there, at once.
        let mut seen = 0;
        let mut from = String::new();
        while seen < 20 {
            let page = http.get(&format!(
                "/v1/streams/s/tail?wait_ms=60000&limit=6&cursor={from}"
            ));
            seen += page.lines().len();
            from = page.header("x-pinion-cursor").expect("a cursor").to_owned();
        }
        assert_eq!(seen, 20);
        server.stop();
    }
}

#[test]
fn finished_long_polls_leave_nothing_behind() {
    // One shard's news ends a poll that another shard still waits for; that wait must end too.
    let data = directory();
    let server = Server::start(data.path(), 2);
    let mut http = server.http();
    for i in 0..8 {
        http.post(&format!("/v1/streams/s/records/k{i}"), "x");
    }
    let topology = http.get("/v1/topology").json();
    let slots = |shard: usize| {
        topology["shards"][shard]["slot_first"]
            .as_u64()
            .expect("a slot") as u16
    };
    let _ = slots(0);
    let first = http.get("/v1/streams/s/tail?wait_ms=0&limit=100");
    let cursor = first
        .header("x-pinion-cursor")
        .expect("a cursor")
        .to_owned();
    // Behind everything: polls of zero patience and polls that are given up.
    for _ in 0..50 {
        let mut gone = server.http();
        for _ in 0..100 {
            gone.start(
                "GET",
                &format!("/v1/streams/s/tail?wait_ms=60000&cursor={cursor}"),
                &[],
                b"",
            );
        }
    }
    eventually("polls of closed connections to be dropped", || {
        let open: f64 = (0..2).map(|s| server.metric("pinion_connections", s)).sum();
        (open <= 3.0).then_some(())
    });
    assert_eq!(http.get("/v1/streams/s/records/k1").text(), "x");
    server.stop();
}

#[test]
fn server_sent_events_carry_records_and_resume() {
    for shards in [1, 2] {
        let data = directory();
        let server = Server::start(data.path(), shards);
        let mut writer = server.http();
        let mut events = server.http();
        events.start(
            "GET",
            "/v1/streams/s/tail",
            &["Accept: text/event-stream"],
            b"",
        );
        let head = events.response();
        assert_eq!(
            (head.status, head.header("content-type")),
            (200, Some("text/event-stream"))
        );
        let mut last_id = String::new();
        let mut next = |events: &mut crate::http::Connection| loop {
            let event = String::from_utf8(events.read_until(b"\n\n")).expect("UTF-8");
            if event.starts_with(':') {
                continue;
            }
            let mut lines = event.trim_end().lines();
            last_id = lines
                .next()
                .and_then(|l| l.strip_prefix("id: "))
                .expect("an id")
                .to_owned();
            let data = lines
                .next()
                .and_then(|l| l.strip_prefix("data: "))
                .expect("data");
            assert_eq!(lines.next(), None);
            return (
                last_id.clone(),
                serde_json::from_str::<serde_json::Value>(data).expect("JSON"),
            );
        };
        let mut id = String::new();
        for i in 0..10 {
            writer.call(
                "POST",
                &format!("/v1/streams/s/records/k{i}"),
                &["Content-Type: text/plain"],
                format!("line\n{i}"),
            );
            let (at, record) = next(&mut events);
            assert_eq!(
                (&record["key"], &record["value"]),
                (&json!(format!("k{i}")), &json!(format!("line\n{i}")))
            );
            id = at;
        }
        drop(events);
        writer.post("/v1/streams/s/records/later", "x");
        let mut again = server.http();
        again.start(
            "GET",
            "/v1/streams/s/tail",
            &["Accept: text/event-stream", &format!("Last-Event-ID: {id}")],
            b"",
        );
        assert_eq!(again.response().status, 200);
        assert_eq!(next(&mut again).1["key"], "later");
        // A follower does not hold up the end.
        server.stop();
    }
}

/// A directory that was made anew, or another one: records would be passed over in silence.
#[test]
fn a_cursor_of_another_directory_is_refused_by_name() {
    let (old, new) = (directory(), directory());
    let server = Server::start(old.path(), 1);
    let mut http = server.http();
    let posted = http.call("POST", "/v1/streams/s/records/k", &[], b"x");
    assert_eq!(posted.status, 201);
    let page = http.get("/v1/streams/s/scan");
    let cursor = page.header("x-pinion-cursor").expect("a cursor").to_owned();
    let path = format!("/v1/streams/s/scan?cursor={cursor}");
    assert_eq!(http.get(&path).status, 200);
    server.stop();
    for shards in [1, 2] {
        let server = Server::start(&new.path().join(shards.to_string()), shards);
        let answer = server.http().get(&path);
        assert_eq!(answer.status, 400);
        let problem = answer.json()["detail"].to_string();
        assert!(problem.contains("the cursor is of timeline"), "{problem}");
        server.stop();
    }
}
