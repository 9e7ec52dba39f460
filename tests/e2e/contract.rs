//! The table of HTTP requests in the design, row by row: statuses, header fields, bodies.

use serde_json::json;

use crate::http::{self, Connection, Response};
use crate::server::{Server, directory, eventually};

#[track_caller]
fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response
        .header(name)
        .unwrap_or_else(|| panic!("no {name} in {:?}", response.headers))
}

/// How many records the stream has.
fn records(http: &mut Connection, stream: &str) -> u64 {
    let response = http.get(&format!("/v1/streams/{stream}"));
    if response.status == 404 {
        0
    } else {
        response.json()["records"].as_u64().expect("a count")
    }
}

#[test]
fn a_record_is_appended_read_and_ended() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let path = "/v1/streams/s/records/a%2Fb%20%C3%A9";

    let created = http.call(
        "POST",
        path,
        &["Content-Type: text/plain; charset=utf-8"],
        "first",
    );
    assert_eq!(created.status, 201);
    assert_eq!(header(&created, "content-type"), "application/json");
    assert_eq!(header(&created, "etag"), "\"1\"");
    let position = header(&created, "x-pinion-position").to_owned();
    assert_eq!(
        created.json(),
        json!({"position": position, "version": 1, "durability": "durable"})
    );

    let read = http.get(path);
    assert_eq!((read.status, read.body.as_slice()), (200, &b"first"[..]));
    assert_eq!(header(&read, "content-type"), "text/plain; charset=utf-8");
    assert_eq!(
        (header(&read, "etag"), header(&read, "x-pinion-position")),
        ("\"1\"", position.as_str())
    );
    let date = header(&read, "last-modified");
    assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");

    let buffered = http.post(&format!("{path}?durability=buffered"), [0u8, 255]);
    assert_eq!(buffered.json()["durability"], "buffered");
    let read = http.get(path);
    assert_eq!(
        (read.body.as_slice(), header(&read, "content-type")),
        (&[0u8, 255][..], "application/octet-stream")
    );

    let head = http.call("HEAD", path, &[], "");
    assert_eq!(
        (
            head.status,
            header(&head, "content-length"),
            header(&head, "etag")
        ),
        (200, "2", "\"2\"")
    );
    let unchanged = http.call("GET", path, &["If-None-Match: \"2\""], "");
    assert_eq!(
        (unchanged.status, header(&unchanged, "etag")),
        (304, "\"2\"")
    );

    let gone = http.call("DELETE", path, &[], "");
    assert_eq!((gone.status, header(&gone, "etag")), (204, "\"3\""));
    assert!(gone.header("x-pinion-position").is_some());
    http.get(path).problem(404, "not_found");
    let head = http.call("HEAD", path, &[], "");
    assert_eq!(head.status, 404);
    http.call("DELETE", path, &[], "").problem(404, "not_found");

    let history = http.get(&format!("{path}/history")).lines();
    assert_eq!(history.len(), 3);
    assert_eq!(
        (&history[0]["tombstone"], &history[0]["version"]),
        (&true.into(), &3.into())
    );
    assert_eq!(
        (&history[1]["value_base64"], &history[1]["version"]),
        (&"AP8=".into(), &2.into())
    );
    assert_eq!(
        (&history[2]["value"], &history[2]["key"]),
        (&"first".into(), &"a/b é".into())
    );
    assert_eq!(
        (&history[2]["position"], &history[2]["content_type"]),
        (&position.into(), &"text/plain; charset=utf-8".into())
    );
    assert!(
        history[2]["timestamp"]
            .as_u64()
            .is_some_and(|t| t > 1_600_000_000_000_000)
    );

    http.get("/v1/streams/s/records/never")
        .problem(404, "not_found");
    http.get("/v1/streams/never/records/never")
        .problem(404, "not_found");
    http.get("/v1/streams/never/records/never/history")
        .problem(404, "not_found");
    server.stop();
}

#[test]
fn conditions_hold_or_refuse_with_412() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let path = "/v1/streams/s/records/k";
    http.call("POST", path, &["If-Match: \"1\""], "x")
        .problem(412, "condition_failed");
    assert_eq!(
        http.call("POST", path, &["If-None-Match: *"], "1").status,
        201
    );
    http.call("POST", path, &["If-None-Match: *"], "x")
        .problem(412, "condition_failed");
    assert_eq!(
        http.call("POST", path, &["If-Match: \"1\""], "2").json()["version"],
        2
    );
    http.call("POST", path, &["If-Match: \"1\""], "x")
        .problem(412, "condition_failed");
    http.call("DELETE", path, &["If-Match: \"1\""], "")
        .problem(412, "condition_failed");
    assert_eq!(
        http.call("DELETE", path, &["If-Match: \"2\""], "").status,
        204
    );
    // A key that was ended is new again, and its versions go on.
    http.call("POST", path, &["If-Match: \"3\""], "x")
        .problem(412, "condition_failed");
    assert_eq!(
        http.call("POST", path, &["If-None-Match: *"], "4").json()["version"],
        4
    );
    assert_eq!(http.get(path).body, b"4");
    assert_eq!(records(&mut http, "s"), 4, "refused writes leave nothing");

    http.call("POST", path, &["If-Match: 4"], "x")
        .problem(400, "malformed");
    http.call("POST", path, &["If-None-Match: \"4\""], "x")
        .problem(400, "malformed");
    http.call("POST", path, &["If-Match: \"4\"", "If-None-Match: *"], "x")
        .problem(400, "malformed");
    server.stop();
}

#[test]
fn ndjson_is_appended_whole_or_not_at_all() {
    for shards in [1, 2] {
        let data = directory();
        let server = Server::start(data.path(), shards);
        let mut http = server.http();
        let path = "/v1/streams/s/records";
        let ndjson = ["Content-Type: application/x-ndjson"];
        let good: String = (0..40)
            .map(|i| format!("{{\"key\":\"k{i}\",\"value\":{{\"n\": {i}}}}}\n"))
            .collect();
        let done = http.call("POST", path, &ndjson, &good).json();
        assert_eq!(
            (&done["appended"], &done["durability"]),
            (&40.into(), &"durable".into())
        );
        let parts = done["positions"].as_array().expect("positions");
        assert_eq!(parts.len(), shards);
        assert_eq!(
            parts
                .iter()
                .map(|p| p["records"].as_u64().expect("a count"))
                .sum::<u64>(),
            40
        );
        // Kept as the text it came as.
        let read = http.get("/v1/streams/s/records/k7");
        assert_eq!(
            (read.text().as_str(), header(&read, "content-type")),
            ("{\"n\": 7}", "application/json")
        );
        let bytes = http
            .call(
                "POST",
                path,
                &ndjson,
                "{\"key\":\"b\",\"value_base64\":\"AP8=\"}",
            )
            .json();
        assert_eq!(bytes["appended"], 1);
        assert_eq!(http.get("/v1/streams/s/records/b").body, [0, 255]);

        let bad = [
            ("{\"key\":\"x\",\"value\":1}\n\n{\"key\":\"y\"}\n", "line 3"),
            (
                "{\"key\":\"x\",\"value\":1}\n{\"key\":\"y\",\"value\":",
                "line 2",
            ),
            ("not json\n", "line 1"),
            ("{\"key\":\"\",\"value\":1}\n", "line 1"),
            ("{\"key\":\"x\",\"value\":1,\"other\":2}\n", "line 1"),
            ("{\"key\":\"x\",\"value_base64\":\"*\"}\n", "line 1"),
        ];
        for (body, line) in bad {
            let detail = http
                .call("POST", path, &ndjson, body)
                .problem(400, "malformed");
            assert!(detail.contains(line), "{detail}");
        }
        // A bad line behind good ones of every shard: nothing of it is appended on any.
        let detail = http
            .call(
                "POST",
                path,
                &ndjson,
                good.clone() + "{\"key\":7,\"value\":1}\n",
            )
            .problem(400, "malformed");
        assert!(detail.contains("line 41"), "{detail}");
        let long = format!("{good}{{\"key\":\"{}\",\"value\":1}}\n", "k".repeat(1025));
        http.call("POST", path, &ndjson, long)
            .problem(413, "too_large");
        http.call("POST", path, &ndjson, "")
            .problem(400, "malformed");
        http.post(path, &good).problem(400, "malformed");
        assert_eq!(records(&mut http, "s"), 41);
        assert_eq!(http::scan(&mut http, "s", 1000).len(), 41);
        server.stop();
    }
}

#[test]
fn limits_are_answered_with_413_and_the_connection_goes_on_where_it_can() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let mib = vec![7u8; 1 << 20];
    let largest = http.post("/v1/streams/s/records/large", &mib);
    assert_eq!(largest.status, 201, "{}", largest.text());
    assert!(http.get("/v1/streams/s/records/large").body == mib);
    let detail = http
        .post("/v1/streams/s/records/large", [&mib[..], b"x"].concat())
        .problem(413, "too_large");
    assert!(detail.contains("1048576"), "{detail}");
    assert_eq!(
        http.get("/v1/streams/s/records/large").status,
        200,
        "the connection goes on"
    );

    let key = "k".repeat(1024);
    assert_eq!(
        http.post(&format!("/v1/streams/s/records/{key}"), "x")
            .status,
        201
    );
    http.post(&format!("/v1/streams/s/records/{key}k"), "x")
        .problem(413, "too_large");
    http.get(&format!("/v1/streams/s/records/{key}k"))
        .problem(413, "too_large");

    // A body over the limit of bodies is known from its length; none of it is read.
    http.send("POST /v1/streams/s/records HTTP/1.1\r\nHost: t\r\nContent-Type: application/x-ndjson\r\nContent-Length: 99999999999\r\n\r\n");
    http.response().problem(413, "too_large");
    http.assert_closed();
    let mut http = server.http();
    http.send(format!("GET / HTTP/1.1\r\nX: {}\r\n", "x".repeat(20_000)));
    http.response().problem(431, "head_too_large");
    http.assert_closed();
    server.stop();
}

#[test]
fn paths_methods_and_parameters_are_named_when_they_are_wrong() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    http.get("/").problem(404, "not_found");
    http.get("/v1/streams/s/nothing").problem(404, "not_found");
    let wrong = http.call("PUT", "/v1/streams/s/records/k", &[], "x");
    wrong.problem(405, "method_not_allowed");
    assert_eq!(header(&wrong, "allow"), "GET, HEAD, POST, DELETE");
    http.call("POST", "/healthz", &[], "")
        .problem(405, "method_not_allowed");
    let detail = http
        .post("/v1/streams/s/records/k?durabilty=buffered", "x")
        .problem(400, "malformed");
    assert!(detail.contains("durabilty"), "{detail}");
    http.post("/v1/streams/s/records/k?durability=none", "x")
        .problem(400, "malformed");
    http.get("/v1/streams/s/scan?limit=0")
        .problem(400, "malformed");
    http.get("/v1/streams/s/scan?limit=ten")
        .problem(400, "malformed");
    http.get("/v1/streams/s/scan?cursor=nonsense")
        .problem(400, "malformed");
    http.get("/v1/streams/s/records/%4")
        .problem(400, "malformed");
    http.get("/v1/streams/sp%20ace/records/k")
        .problem(400, "malformed");
    http.call("GET", "/v1/streams", &["Host: twice"], "")
        .problem(400, "malformed");
    http.get("/v1/streams/s").problem(404, "not_found");
    server.stop();
}

#[test]
fn history_pages_and_scan_pages_cover_everything_once() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    let mut http = server.http();
    for version in 1..=25 {
        assert_eq!(
            http.post("/v1/streams/s/records/k", format!("{version}"))
                .json()["version"],
            version
        );
    }
    for i in 0..30 {
        http.post(&format!("/v1/streams/s/records/other{i}"), "x");
    }
    let versions = |http: &mut Connection, query: &str| -> Vec<u64> {
        let lines = http
            .get(&format!("/v1/streams/s/records/k/history{query}"))
            .lines();
        lines
            .iter()
            .map(|l| l["version"].as_u64().expect("a version"))
            .collect()
    };
    assert_eq!(
        versions(&mut http, "?limit=10"),
        (16..=25).rev().collect::<Vec<_>>()
    );
    assert_eq!(
        versions(&mut http, "?limit=10&before=16"),
        (6..=15).rev().collect::<Vec<_>>()
    );
    assert_eq!(
        versions(&mut http, "?before=6"),
        (1..=5).rev().collect::<Vec<_>>()
    );
    assert!(versions(&mut http, "?before=1").is_empty());
    assert_eq!(versions(&mut http, "?before=4000000000&limit=1"), [25]);

    for limit in [1, 7, 54, 55, 56, 10_000] {
        let all = http::scan(&mut http, "s", limit);
        let mut names: Vec<String> = all
            .iter()
            .map(|l| format!("{} {}", l["key"], l["version"]))
            .collect();
        names.sort();
        names.dedup();
        assert_eq!((all.len(), names.len()), (55, 55), "pages of {limit}");
        // A shard's in lsn order.
        for shard in ["0:", "1:"] {
            let lsns: Vec<u64> = all
                .iter()
                .filter_map(|l| l["position"].as_str()?.strip_prefix(shard)?.parse().ok())
                .collect();
            assert!(lsns.is_sorted() && !lsns.is_empty(), "{lsns:?}");
        }
    }
    assert_eq!(http.get("/v1/streams/never/scan").lines().len(), 0);
    server.stop();
}

#[test]
fn server_wide_documents() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    let mut http = server.http();
    let health = http.get("/healthz");
    assert_eq!((health.status, health.text().as_str()), (200, "ok\n"));
    let ready = http.get("/readyz");
    assert_eq!((ready.status, ready.text().as_str()), (200, "ready\n"));
    assert_eq!(http.get("/v1/streams").json(), json!({"streams": []}));

    let openapi = http.get("/v1/openapi.json").json();
    assert!(
        openapi["openapi"]
            .as_str()
            .is_some_and(|v| v.starts_with("3.1")),
        "{}",
        openapi["openapi"]
    );
    let topology = http.get("/v1/topology").json();
    let shards = topology["shards"].as_array().expect("shards");
    assert_eq!(shards.len(), 2);
    assert_eq!(
        (&shards[0]["slot_first"], &shards[1]["slot_last"]),
        (&0.into(), &16383.into())
    );

    http.post("/v1/streams/s/records/k", "x");
    // The document names every path that answers, and nothing else: no GET of it is a 404 for the path's sake.
    for (path, methods) in openapi["paths"].as_object().expect("paths") {
        let path = path.replace("{stream}", "s").replace("{key}", "k");
        for method in methods
            .as_object()
            .expect("methods")
            .keys()
            .filter(|m| *m == "get")
        {
            let target = if path.ends_with("tail") {
                format!("{path}?wait_ms=0")
            } else {
                path.clone()
            };
            let response = http.call(&method.to_uppercase(), &target, &[], "");
            assert_eq!(response.status, 200, "{path}: {}", response.text());
        }
    }
    let metrics = http.get("/metrics");
    assert!(
        header(&metrics, "content-type").starts_with("application/openmetrics-text")
            || header(&metrics, "content-type").starts_with("text/plain")
    );
    for line in metrics.text().lines().filter(|l| !l.starts_with('#')) {
        assert!(line.starts_with("pinion_"), "{line}");
        assert!(
            line.rsplit(' ')
                .next()
                .is_some_and(|v| v.parse::<f64>().is_ok()),
            "{line}"
        );
    }
    let counts = http.get("/v1/streams/s").json();
    assert_eq!(
        (
            &counts["stream"],
            &counts["records"],
            &counts["keys"],
            &counts["payload_bytes"]
        ),
        (&"s".into(), &1.into(), &1.into(), &1.into())
    );
    eventually("the record in the metrics", || {
        let sum: f64 = (0..2)
            .map(|s| server.metric("pinion_records_total", s))
            .sum();
        (sum == 1.0).then_some(())
    });
    server.stop();
}
