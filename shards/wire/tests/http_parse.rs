//! HTTP requests: what each means, at every split; what is refused, and whether the connection goes on.

use wire::http::*;

const LIMITS: Limits = Limits {
    head_bytes_max: 1024,
    body_bytes_max: 64,
    payload_bytes_max: 48,
};

/// A request with the usual fields: lines joined by CR LF, then a body.
fn request(first: &str, fields: &[&str], body: &str) -> String {
    let mut text = format!("{first} HTTP/1.1\r\nHost: h\r\n");
    for field in fields {
        text += field;
        text += "\r\n";
    }
    text + "\r\n" + body
}

/// One line for what `parse` found.
fn shown(text: &str) -> String {
    described(parse(text.as_bytes(), &LIMITS), text)
}

fn described(parsed: Parsed<'_>, text: &str) -> String {
    match parsed {
        Parsed::Incomplete {
            expects_continue, ..
        } => {
            format!(
                "incomplete{}",
                if expects_continue { ", continue" } else { "" }
            )
        }
        Parsed::Request {
            consumed,
            request,
            keep_alive,
        } => format!(
            "{:?}{}{}{}{}",
            request.route,
            request
                .bearer
                .map(|b| format!(" bearer {}", String::from_utf8_lossy(b)))
                .unwrap_or_default(),
            if request.head { " head" } else { "" },
            if keep_alive { "" } else { " close" },
            if consumed == text.len() {
                String::new()
            } else {
                format!(" rest {}", text.len() - consumed)
            },
        ),
        Parsed::Refused {
            consumed,
            refusal,
            allow,
            head,
        } => format!(
            "{} {}{}{}: {}",
            refusal.code.http_status(),
            if consumed.is_some() {
                "goes on"
            } else {
                "closes"
            },
            allow
                .map(|allow| format!(" allow {allow}"))
                .unwrap_or_default(),
            if head { " head" } else { "" },
            refusal.message
        ),
    }
}

/// The whole request gives `expected` (or what starts with it), every prefix asks for more or already refuses alike.
#[track_caller]
fn check(text: &str, expected: &str) {
    let whole = shown(text);
    assert!(
        whole.starts_with(expected),
        "\n{text:?}\n found: {whole}\nwanted: {expected}"
    );
    for split in 0..text.len() {
        if !text.is_char_boundary(split) {
            continue;
        }
        let part = shown(&text[..split]);
        if let Parsed::Incomplete { needed, .. } = parse(&text.as_bytes()[..split], &LIMITS) {
            assert!(
                needed > split && needed <= text.len(),
                "{split} of {text:?} needs {needed}"
            );
        }
        assert!(
            part.starts_with("incomplete") || part == whole,
            "split at {split} of {text:?}\n found: {part}\nwanted: {whole}"
        );
        // In two pieces it is what it is in one.
        let mut progress = Progress::default();
        if let Parsed::Incomplete { .. } =
            parse_on(&text.as_bytes()[..split], &LIMITS, &mut progress)
        {
            let went_on = parse_on(text.as_bytes(), &LIMITS, &mut progress);
            assert_eq!(
                described(went_on, text),
                whole,
                "cut at {split} of {text:?}"
            );
        }
    }
    // Nor does it matter that every byte came alone.
    let mut progress = Progress::default();
    for split in 0..=text.len() {
        let Some(part) = text.get(..split) else {
            continue;
        };
        let at_once = parse(part.as_bytes(), &LIMITS);
        let needed = |parsed: &Parsed<'_>| match parsed {
            Parsed::Incomplete { needed, .. } => *needed,
            _ => 0,
        };
        let went_on = parse_on(part.as_bytes(), &LIMITS, &mut progress);
        assert_eq!(needed(&went_on), needed(&at_once), "{part:?}");
        let incomplete = matches!(went_on, Parsed::Incomplete { .. });
        assert_eq!(described(went_on, part), described(at_once, part));
        if !incomplete {
            break;
        }
    }
}

#[test]
fn every_route_at_every_split() {
    for (first, expected) in [
        (
            "GET /v1/streams/s/records/k",
            r#"Get { stream: "s", key: [107], if_none_match: None }"#,
        ),
        (
            "HEAD /v1/streams/s/records/k",
            r#"Get { stream: "s", key: [107], if_none_match: None } head"#,
        ),
        (
            "GET /v1/streams/s/records/%00%fF%2F%25",
            r#"Get { stream: "s", key: [0, 255, 47, 37], if_none_match: None }"#,
        ),
        (
            "GET /v1/streams/a.b_c:d-E9/records/k",
            r#"Get { stream: "a.b_c:d-E9", key: [107], if_none_match: None }"#,
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
    for (fields, expected) in [
        (&["If-None-Match: \"3\""][..], "if_none_match: Some(3) }"),
        (&["If-None-Match: W/\"3\""], "if_none_match: Some(3) }"),
        (&["If-None-Match: *"], "if_none_match: None }"),
        (&["If-None-Match: \"3\", \"4\""], "if_none_match: None }"),
        (
            &["Authorization: bearer  tok"],
            "if_none_match: None } bearer tok",
        ),
        (&["Authorization: Basic tok"], "if_none_match: None }"),
        (
            &["Connection: keep-alive, Close"],
            "if_none_match: None } close",
        ),
        (&["Connection: keep-alive"], "if_none_match: None }"),
    ] {
        let whole = format!(r#"Get {{ stream: "s", key: [107], {expected}"#);
        let text = request(get, fields, "");
        check(&text, &whole);
        assert_eq!(shown(&text), whole);
    }
    let tail = "GET /v1/streams/s/tail";
    check(
        &request(tail, &["Accept: text/html, text/event-stream;q=1"], ""),
        r#"Tail { stream: "s", cursor: None, wait_ms: 30000, limit: 100, event_stream: true }"#,
    );
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

#[test]
fn bodies() {
    let many = "POST /v1/streams/s/records";
    let ndjson = "Content-Type: application/x-ndjson; charset=utf-8";
    let expected = r#"AppendMany { stream: "s", body: [97, 98, 99], idempotency_key: None, durability: Durable }"#;
    check(
        &request(many, &[ndjson, "Content-Length: 3"], "abc"),
        expected,
    );
    check(
        &request(
            many,
            &[ndjson, "Content-Length: 3", "Content-Length: 3"],
            "abc",
        ),
        expected,
    );
    check(
        &request(
            many,
            &[ndjson, "Transfer-Encoding: chunked"],
            "1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
        ),
        expected,
    );
    check(
        &request(
            many,
            &[ndjson, "Transfer-Encoding: Chunked"],
            "003;x=y\r\nabc\r\n0\r\nT: u\r\n\r\n",
        ),
        expected,
    );
    let policy = r#"{"history_depth":3}"#;
    check(
        &request("PUT /v1/streams/s", &["Content-Length: 19"], policy),
        r#"PutStream { stream: "s", policy: Policy { history_depth: Some(3), max_age_seconds: None"#,
    );
    for bad in ["[]", "{\"x\":1}", "{\"history_depth\":-1}", "x"] {
        let text = request(
            "PUT /v1/streams/s",
            &[&format!("Content-Length: {}", bad.len())],
            bad,
        );
        check(&text, "400 goes on: policy is not readable");
    }
    // A body where none is wanted is consumed, so that it is not read as the next request.
    let text = request("GET /healthz", &["Content-Length: 5"], "GET /");
    check(&text, "Healthz");
    assert_eq!(shown(&text), "Healthz");
}

#[test]
fn pipelined_requests_are_read_one_by_one() {
    let first = request(
        "POST /v1/streams/s/records/k",
        &["Transfer-Encoding: chunked"],
        "1\r\na\r\n0\r\n\r\n",
    );
    let second = request("GET /healthz", &[], "");
    let third = request("GET /nowhere", &["Content-Length: 2"], "xx");
    let all = format!("{first}{second}{third}{second}");
    let mut rest = all.as_bytes();
    let mut found = Vec::new();
    while !rest.is_empty() {
        let consumed = match parse(rest, &LIMITS) {
            Parsed::Request {
                consumed, request, ..
            } => {
                found.push(
                    format!("{:?}", request.route)
                        .split(' ')
                        .next()
                        .unwrap()
                        .to_owned(),
                );
                consumed
            }
            Parsed::Refused {
                consumed: Some(consumed),
                refusal,
                ..
            } => {
                found.push(refusal.code.name().to_owned());
                consumed
            }
            other => panic!("{other:?}"),
        };
        rest = &rest[consumed..];
    }
    assert_eq!(found, ["Append", "Healthz", "not_found", "Healthz"]);
}

#[test]
fn refusals_that_the_connection_survives() {
    for (first, expected) in [
        ("GET /", "404 goes on: no such path"),
        ("GET /v1/streams/s/records/a/b", "404 goes on: no such path"),
        ("OPTIONS *", "404 goes on"),
        (
            "DELETE /healthz",
            "405 goes on allow GET, HEAD: the path has no such method",
        ),
        (
            "PUT /v1/streams/s/records/k",
            "405 goes on allow GET, HEAD, POST, DELETE:",
        ),
        ("GET /v1/streams/s/records", "405 goes on allow POST:"),
        ("HEAD /v1/streams/s/records", "405 goes on allow POST head:"),
        ("POST /v1/streams/s", "405 goes on allow GET, HEAD, PUT:"),
        ("BREW /v1/streams", "405 goes on allow GET, HEAD:"),
        ("GET /v1/streams/s/records/", "400 goes on: key is empty"),
        ("GET /v1/streams/s/records/%", "400 goes on: percent escape"),
        (
            "GET /v1/streams/s/records/%2",
            "400 goes on: percent escape",
        ),
        (
            "GET /v1/streams/s/records/%zz",
            "400 goes on: percent escape",
        ),
        (
            "GET /v1/streams//records/k",
            "400 goes on: stream name \"\"",
        ),
        (
            "GET /v1/streams/s!/records/k",
            "400 goes on: stream name \"s!\"",
        ),
        (
            "GET /v1/streams/a%3Ab/records/k",
            "400 goes on: stream name has a percent escape",
        ),
        (
            "GET /v1/streams/s/records/k?x=1",
            "400 goes on: query parameter \"x\" is not known here: this path takes none",
        ),
        (
            "GET /v1/streams/s/scan?limit=1&before=2",
            "400 goes on: query parameter \"before\" is not known here: this path takes cursor, limit",
        ),
        (
            "GET /v1/streams/s/scan?limit=1&limit=1",
            "400 goes on: query parameter limit is there twice",
        ),
        ("GET /v1/streams/s/scan?limit=0", "400 goes on: limit is 0"),
        (
            "GET /v1/streams/s/scan?limit=-1",
            "400 goes on: limit is not a number",
        ),
        (
            "GET /v1/streams/s/scan?limit=+1",
            "400 goes on: limit is not a number",
        ),
        (
            "GET /v1/streams/s/scan?cursor=abc",
            "400 goes on: cursor is not one",
        ),
        (
            "POST /v1/streams/s/records/k?durability=maybe",
            "400 goes on: durability is neither",
        ),
        (
            "POST /v1/streams/s/records",
            "400 goes on: Content-Type is \"\": send application/x-ndjson",
        ),
    ] {
        check(&request(first, &[], ""), expected);
    }
    let long = "k".repeat(1025);
    let text = request(&format!("GET /v1/streams/s/records/{long}"), &[], "");
    let roomy = Limits {
        head_bytes_max: 8192,
        body_bytes_max: 0,
        payload_bytes_max: 0,
    };
    assert!(matches!(
        parse(text.as_bytes(), &roomy),
        Parsed::Refused { consumed: Some(_), refusal, .. } if refusal.code.http_status() == 413
    ));
    assert!(matches!(
        parse(text.replace("kk", "k").as_bytes(), &roomy),
        Parsed::Request { .. }
    ));
}

#[test]
fn conditions_that_make_no_sense() {
    let post = "POST /v1/streams/s/records/k";
    for (fields, expected) in [
        (&["If-Match: 7"][..], "400 goes on: If-Match is not one"),
        (&["If-Match: \"0\""], "400 goes on: If-Match is not one"),
        (&["If-Match: *"], "400 goes on: If-Match is not one"),
        (&["If-Match: W/\"7\""], "400 goes on: If-Match is not one"),
        (
            &["If-Match: \"7\", \"8\""],
            "400 goes on: If-Match is not one",
        ),
        (&["If-Match: \"+7\""], "400 goes on: If-Match is not one"),
        (
            &["If-Match: \"7\"", "If-Match: \"8\""],
            "400 goes on: header field If-Match is there twice",
        ),
        (
            &["If-Match: \"7\"", "If-None-Match: *"],
            "400 goes on: If-Match and If-None-Match",
        ),
        (
            &["If-None-Match: \"7\""],
            "400 goes on: If-None-Match on a write",
        ),
        (&["Idempotency-Key:"], "400 goes on: Idempotency-Key is not"),
        (
            &["Idempotency-Key: a", "idempotency-key: a"],
            "400 goes on: header field idempotency-key is there twice",
        ),
        (
            &["Content-Type:"],
            "400 goes on: content type is not allowed",
        ),
        (
            &["Content-Type: \u{e9}"],
            "400 goes on: content type is not allowed",
        ),
        (
            &["Host: twice"],
            "400 goes on: header field Host is there twice",
        ),
    ] {
        check(&request(post, fields, ""), expected);
    }
    check(
        &request("DELETE /v1/streams/s/records/k", &["If-None-Match: *"], ""),
        "400 goes on: If-None-Match makes no sense",
    );
    check(
        &request(
            "POST /v1/streams/s/records",
            &["Content-Type: application/x-ndjson", "If-Match: \"1\""],
            "",
        ),
        "400 goes on: If-Match and If-None-Match are for single records",
    );
    check(
        "GET /healthz HTTP/1.1\r\n\r\n",
        "400 goes on: Host is missing",
    );
}

/// Whatever leaves the end of a request open closes the connection (RFC 9112, sections 5 to 7 and 11.2).
#[test]
fn smuggling() {
    let post = "POST /v1/streams/s/records/k";
    for (fields, body, expected) in [
        (
            &["Content-Length: 1", "Transfer-Encoding: chunked"][..],
            "0\r\n\r\n",
            "400 closes: Content-Length and Transfer-Encoding",
        ),
        (
            &["Transfer-Encoding: chunked", "Content-Length: 1"],
            "0\r\n\r\n",
            "400 closes: Content-Length and Transfer-Encoding",
        ),
        (
            &["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
            "0\r\n\r\n",
            "400 closes: Transfer-Encoding is there twice",
        ),
        (
            &["Transfer-Encoding: gzip, chunked"],
            "0\r\n\r\n",
            "400 closes: Transfer-Encoding is not chunked",
        ),
        (
            &["Transfer-Encoding: chunked, identity"],
            "0\r\n\r\n",
            "400 closes: Transfer-Encoding is not chunked",
        ),
        (
            &["Transfer-Encoding: xchunked"],
            "0\r\n\r\n",
            "400 closes: Transfer-Encoding is not chunked",
        ),
        (
            &["Transfer-Encoding:"],
            "0\r\n\r\n",
            "400 closes: Transfer-Encoding is not chunked",
        ),
        (
            &["Transfer-Encoding : chunked"],
            "0\r\n\r\n",
            "400 closes: request head is not HTTP/1.1",
        ),
        (
            &["Transfer-Encoding: chunked\u{b}"],
            "0\r\n\r\n",
            "400 closes: request head is not HTTP/1.1",
        ),
        (
            &["Content-Length: 1", "Content-Length: 2"],
            "xx",
            "400 closes: Content-Length is there twice",
        ),
        (
            &["Content-Length: 1, 1"],
            "x",
            "400 closes: Content-Length is not a number",
        ),
        (
            &["Content-Length: +1"],
            "x",
            "400 closes: Content-Length is not a number",
        ),
        (
            &["Content-Length: -1"],
            "x",
            "400 closes: Content-Length is not a number",
        ),
        (
            &["Content-Length: 0x1"],
            "x",
            "400 closes: Content-Length is not a number",
        ),
        (
            &["Content-Length: 1 1"],
            "x",
            "400 closes: Content-Length is not a number",
        ),
        (
            &["Content-Length:"],
            "x",
            "400 closes: Content-Length is not a number",
        ),
        (
            &["Content-Length: 65"],
            "",
            "413 closes: body is over 64 bytes",
        ),
        (
            &["Content-Length: 99999999999999999999999"],
            "",
            "413 closes: body is over 64 bytes",
        ),
        (
            &["X: y", " folded: z"],
            "",
            "400 closes: request head is not HTTP/1.1",
        ),
        (
            &["X: y", "\tfolded"],
            "",
            "400 closes: request head is not HTTP/1.1",
        ),
        (&["X: a\rb"], "", "400 closes: request head is not HTTP/1.1"),
        (&["X: a\0b"], "", "400 closes: request head is not HTTP/1.1"),
        (&["NoColon"], "", "400 closes: request head is not HTTP/1.1"),
        (
            &["Transfer-Encoding: chunked"],
            "1\r\nab\r\n0\r\n\r\n",
            "400 closes: chunk does not end",
        ),
        (
            &["Transfer-Encoding: chunked"],
            "\r\n\r\n",
            "400 closes: chunk size is not",
        ),
        (
            &["Transfer-Encoding: chunked"],
            "41\r\n",
            "413 closes: body is over 64 bytes",
        ),
    ] {
        check(&request(post, fields, body), expected);
    }
    check(
        "POST /v1/streams/s/records/k HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "400 closes: Transfer-Encoding is not for HTTP/1.0",
    );
    check(
        "GET /healthz HTTP/2.0\r\n\r\n",
        "400 closes: request head is not HTTP/1.1",
    );
    check(
        "GET  /healthz HTTP/1.1\r\n\r\n",
        "400 closes: request head is not HTTP/1.1",
    );
    check(
        "\u{1}\u{2}\u{3}",
        "400 closes: request head is not HTTP/1.1",
    );
}

#[test]
fn http_1_0_is_answered_and_closed() {
    check("GET /healthz HTTP/1.0\r\n\r\n", "Healthz close");
    check(
        "GET /healthz HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        "Healthz close",
    );
    check("GET /nowhere HTTP/1.0\r\n\r\n", "404 closes");
}

#[test]
fn the_head_is_bounded() {
    let fields: Vec<String> = (0..63).map(|i| format!("X{i}: y")).collect();
    let fields: Vec<&str> = fields.iter().map(String::as_str).collect();
    check(&request("GET /healthz", &fields, ""), "Healthz");
    let more = [&fields[..], &["X: y"]].concat();
    check(
        &request("GET /healthz", &more, ""),
        "431 closes: request has more than 64 header fields",
    );
    let exact = request("GET /healthz", &["X: "], "");
    let fill = |bytes: usize| {
        request(
            "GET /healthz",
            &[&format!("X: {}", "x".repeat(bytes - exact.len()))],
            "",
        )
    };
    check(&fill(1024), "Healthz");
    check(&fill(1025), "431 closes: request head is over 1024 bytes");
    check(
        &"x".repeat(1024),
        "431 closes: request head is over 1024 bytes",
    );
}

#[test]
fn expect_continue() {
    let post = "POST /v1/streams/s/records/k";
    let expect = "Expect: 100-continue";
    let text = request(post, &[expect, "Content-Length: 2"], "xx");
    check(&text, "Append {");
    assert_eq!(shown(&text[..text.len() - 3]), "incomplete");
    assert_eq!(shown(&text[..text.len() - 2]), "incomplete, continue");
    assert_eq!(shown(&text[..text.len() - 1]), "incomplete");
    let text = request(post, &[expect, "Transfer-Encoding: chunked"], "0\r\n\r\n");
    assert_eq!(shown(&text[..text.len() - 5]), "incomplete, continue");
    // Refused by its head: at once and without waiting for a body that may never come.
    check(
        &request("POST /nowhere", &[expect, "Content-Length: 2"], "xx"),
        "404 closes",
    );
    check(
        &request(post, &[expect, "Content-Length: 65"], ""),
        "413 closes",
    );
    // The head alone says that the payload is too large; what is a batch is measured by its lines.
    let payload = "x".repeat(49);
    for sent in ["", payload.as_str()] {
        check(
            &request(post, &[expect, "Content-Length: 49"], sent),
            "413 closes: payload has 49 bytes: keep payloads within 48",
        );
    }
    let most = request(post, &[expect, "Content-Length: 48"], "");
    assert_eq!(shown(&most), "incomplete, continue");
    let batch = request(
        "POST /v1/streams/s/records",
        &[
            expect,
            "Content-Type: application/x-ndjson",
            "Content-Length: 49",
        ],
        "",
    );
    assert_eq!(shown(&batch), "incomplete, continue");
    let old = request(post, &[expect, "Content-Length: 2"], "").replace("1.1", "1.0");
    assert_eq!(shown(&old), "incomplete");
}
