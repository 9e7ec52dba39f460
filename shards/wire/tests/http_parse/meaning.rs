//! Routes, and the header fields that change what they mean.

use super::{check, request, shown};

#[test]
fn every_route_at_every_split() {
    for (first, expected) in [
        (
            "GET /v1/streams/s/records/k",
            r#"Get { stream: "s", key: [107], preconditions: Preconditions { if_match: Absent, if_none_match: Absent } }"#,
        ),
        (
            "HEAD /v1/streams/s/records/k",
            r#"Get { stream: "s", key: [107], preconditions: Preconditions { if_match: Absent, if_none_match: Absent } } head"#,
        ),
        (
            "GET /v1/streams/s/records/%00%fF%2F%25",
            r#"Get { stream: "s", key: [0, 255, 47, 37], preconditions: Preconditions { if_match: Absent, if_none_match: Absent } }"#,
        ),
        (
            "GET /v1/streams/a.b_c:d-E9/records/k",
            r#"Get { stream: "a.b_c:d-E9", key: [107], preconditions: Preconditions { if_match: Absent, if_none_match: Absent } }"#,
        ),
        (
            "GET /v1/streams/s/records/k/history",
            r#"History { stream: "s", key: [107], limit: 100, before: 0 }"#,
        ),
        (
            "GET /v1/streams/s/records/k/history?limit=7&before=9",
            r#"History { stream: "s", key: [107], limit: 7, before: 9 }"#,
        ),
        (
            "GET /v1/streams/s/records/k/history?limit=10001",
            r#"History { stream: "s", key: [107], limit: 10000, before: 0 }"#,
        ),
        (
            "GET /v1/streams/s/records/k/history?limit=99999999999999999999",
            r#"History { stream: "s", key: [107], limit: 10000, before: 0 }"#,
        ),
        (
            "GET /v1/streams/s/scan",
            r#"Scan { stream: "s", cursor: None, limit: 100 }"#,
        ),
        (
            "GET /v1/streams/s/scan?cursor=&limit=5",
            r#"Scan { stream: "s", cursor: None, limit: 5 }"#,
        ),
        (
            "GET /v1/streams/s/scan?cursor=cGMBAQAAAAIAAAAAAAcAAAAAAAAAAQAAAP__________pv4chQ",
            r#"Scan { stream: "s", cursor: Some(Cursor { timeline: 1, next: [(0, 7), (1, 18446744073709551615)], walked: [] }), limit: 100 }"#,
        ),
        (
            "GET /v1/streams/s/tail",
            r#"Tail { stream: "s", cursor: None, wait_ms: 30000, limit: 100, event_stream: false }"#,
        ),
        (
            "GET /v1/streams/s/tail?wait_ms=60001",
            r#"Tail { stream: "s", cursor: None, wait_ms: 60000, limit: 100, event_stream: false }"#,
        ),
        (
            "GET /v1/streams/s/tail?wait_ms=0&limit=1",
            r#"Tail { stream: "s", cursor: None, wait_ms: 0, limit: 1, event_stream: false }"#,
        ),
        (
            "DELETE /v1/streams/s/records/k",
            r#"Delete { stream: "s", key: [107], condition: None, idempotency_key: None, durability: Durable }"#,
        ),
        (
            "DELETE /v1/streams/s/records/k?durability=buffered",
            r#"Delete { stream: "s", key: [107], condition: None, idempotency_key: None, durability: Buffered }"#,
        ),
        (
            "PUT /v1/streams/s",
            r#"PutStream { stream: "s", policy: Policy { history_depth: None, max_age_seconds: None, max_bytes: None, dedup_window_seconds: None } }"#,
        ),
        ("GET /v1/streams/s", r#"GetStream { stream: "s" }"#),
        ("GET /v1/streams", "ListStreams"),
        ("GET /v1/topology", "Topology"),
        ("GET /v1/openapi.json", "OpenApi"),
        ("GET /healthz", "Healthz"),
        ("GET /readyz", "Readyz"),
        ("GET /metrics", "Metrics"),
        ("HEAD /metrics", "Metrics head"),
        ("GET http://h/v1/streams", "ListStreams"),
    ] {
        check(&request(first, &[], ""), expected);
    }
}

#[test]
fn header_fields_decide() {
    let get = "GET /v1/streams/s/records/k";
    let post = "POST /v1/streams/s/records/k";
    let append = |rest: &str| format!(r#"Append {{ stream: "s", key: [107], body: [120], {rest}"#);
    let with = |fields: &[&str]| {
        let mut all = vec!["Content-Length: 1"];
        all.extend_from_slice(fields);
        request(post, &all, "x")
    };
    let plain = "condition: None, idempotency_key: None, durability: Durable }";
    check(
        &with(&[]),
        &append(&format!("content_type: Code(0), {plain}")),
    );
    check(
        &with(&["CONTENT-TYPE:application/json"]),
        &append(&format!("content_type: Code(1), {plain}")),
    );
    check(
        &with(&["content-type: a/b; c=d  "]),
        &append(&format!(
            "content_type: Other([97, 47, 98, 59, 32, 99, 61, 100]), {plain}"
        )),
    );
    check(
        &with(&["If-Match: \"7\""]),
        &append("content_type: Code(0), condition: Version(7)"),
    );
    check(
        &with(&["If-None-Match: *"]),
        &append("content_type: Code(0), condition: New"),
    );
    check(
        &with(&["Idempotency-Key: ab"]),
        &append("content_type: Code(0), condition: None, idempotency_key: Some([97, 98])"),
    );
    let buffered = with(&[]).replace("records/k", "records/k?durability=buffered");
    check(
        &buffered,
        &append(
            "content_type: Code(0), condition: None, idempotency_key: None, durability: Buffered",
        ),
    );
    let none = "Absent, if_none_match: Absent } }";
    for (fields, expected) in [
        (
            &["If-None-Match: \"3\""][..],
            "Absent, if_none_match: Version(3) } }",
        ),
        (
            &["If-None-Match: W/\"3\""],
            "Absent, if_none_match: Version(3) } }",
        ),
        (&["If-None-Match: *"], "Absent, if_none_match: Any } }"),
        (
            &["If-None-Match: \"3\" , W/\"4\",\"x\""],
            "Absent, if_none_match: Version(4) } }",
        ),
        (
            &["If-None-Match: \"x\""],
            "Absent, if_none_match: Foreign } }",
        ),
        (
            &["If-None-Match: \"03\""],
            "Absent, if_none_match: Foreign } }",
        ),
        (
            &["If-Match: \"3\", \"4\""],
            "Version(4), if_none_match: Absent } }",
        ),
        (&["If-Match: W/\"3\""], "Foreign, if_none_match: Absent } }"),
        (
            &["If-Match: *", "If-None-Match: *"],
            "Any, if_none_match: Any } }",
        ),
        (
            &["Authorization: bearer  tok"],
            &format!("{none} bearer tok"),
        ),
        (&["Authorization: Basic tok"], none),
        (&["Connection: keep-alive, Close"], &format!("{none} close")),
        (&["Connection: keep-alive"], none),
    ] {
        let whole = format!(
            r#"Get {{ stream: "s", key: [107], preconditions: Preconditions {{ if_match: {expected}"#
        );
        let text = request(get, fields, "");
        check(&text, &whole);
        assert_eq!(shown(&text), whole);
    }
    let tail = "GET /v1/streams/s/tail";
    check(
        &request(tail, &["Accept: text/html, text/event-stream;q=1"], ""),
        r#"Tail { stream: "s", cursor: None, wait_ms: 30000, limit: 100, event_stream: true }"#,
    );
    for accepts in ["text/event-stream;q=0", "*/*, text/event-stream; Q=0.00"] {
        check(
            &request(tail, &[&format!("Accept: {accepts}")], ""),
            r#"Tail { stream: "s", cursor: None, wait_ms: 30000, limit: 100, event_stream: false }"#,
        );
    }
    let last = "Last-Event-ID: cGMBAQAAAAIAAAAAAAcAAAAAAAAAAQAAAP__________pv4chQ";
    check(
        &request(tail, &["Accept: text/event-stream", last], ""),
        r#"Tail { stream: "s", cursor: Some(Cursor { timeline: 1"#,
    );
    check(
        &request(tail, &[last], ""),
        r#"Tail { stream: "s", cursor: None"#,
    );
}
