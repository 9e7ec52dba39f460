//! Refusals that the connection survives.

use super::*;

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
        // The tag of version 7 is `"7"`, character by character (RFC 9110, 8.8.3.2).
        (&["If-Match: \"07\""], "400 goes on: If-Match is not one"),
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
    for host in ["a b", "user@h", "h/path", "h,h"] {
        check(
            &format!("GET /healthz HTTP/1.1\r\nHost: {host}\r\n\r\n"),
            "400 goes on: Host is not a host",
        );
    }
}
