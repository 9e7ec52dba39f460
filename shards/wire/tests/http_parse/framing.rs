//! Where a request ends, and what leaves that open: bodies, pipelining, smuggling, bounds, `Expect`.

use super::*;

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
