//! Exact bytes of every kind of HTTP response.

use wire::http::reply::{self, General};
use wire::native::AppendPart;
use wire::*;

const STAYS: General = General {
    keep_alive: true,
    unix_seconds: 784_111_778,
};
const ENDS: General = General {
    keep_alive: false,
    ..STAYS
};
const DATE: &str = "Date: Sun, 06 Nov 1994 08:49:38 GMT";

#[track_caller]
fn check(write: impl FnOnce(&mut Vec<u8>), lines: &[&str]) {
    let mut out = Vec::new();
    write(&mut out);
    assert_eq!(String::from_utf8(out).unwrap(), lines.join("\r\n"));
}

const RECORD: RecordOut<'static> = RecordOut {
    log: 1,
    lsn: 22,
    version: 333,
    timestamp_us: 784_111_777_123_456,
    tombstone: false,
    content_type: ContentType::Other(b"image/png"),
    key: b"k",
    payload: b"payload",
};

#[test]
fn writes() {
    check(
        |out| reply::appended(out, STAYS, 1, 22, 333, Durability::Durable),
        &[
            "HTTP/1.1 201 Created",
            "Content-Type: application/json",
            "Content-Length: 56",
            "ETag: \"333\"",
            "X-Pinion-Position: 1:22",
            DATE,
            "",
            r#"{"position":"1:22","version":333,"durability":"durable"}"#,
        ],
    );
    check(
        |out| reply::no_content(out, ENDS, 1, 22, 333, Durability::Durable),
        &[
            "HTTP/1.1 204 No Content",
            "ETag: \"333\"",
            "X-Pinion-Position: 1:22",
            "X-Pinion-Durability: durable",
            DATE,
            "Connection: close",
            "",
            "",
        ],
    );
    let part = |log, records| AppendPart {
        log,
        records,
        first_lsn: 10,
        durable_lsn: 99,
    };
    check(
        |out| {
            reply::appended_many(
                out,
                STAYS,
                4,
                &[part(0, 3), part(1, 0), part(2, 1)],
                Durability::Buffered,
            )
        },
        &[
            "HTTP/1.1 200 OK",
            "Content-Type: application/json",
            "Content-Length: 154",
            DATE,
            "",
            r#"{"appended":4,"durability":"buffered","positions":[{"log":0,"records":3,"first":"0:10","last":"0:12"},{"log":2,"records":1,"first":"2:10","last":"2:10"}]}"#,
        ],
    );
}

#[test]
fn reads() {
    let head = [
        "HTTP/1.1 200 OK",
        "Content-Type: image/png",
        "Content-Length: 7",
        "ETag: \"333\"",
        "X-Pinion-Position: 1:22",
        "Last-Modified: Sun, 06 Nov 1994 08:49:37 GMT",
        DATE,
        "",
    ];
    check(
        |out| reply::record(out, STAYS, false, &RECORD),
        &[&head[..], &["payload"]].concat(),
    );
    check(
        |out| reply::record(out, STAYS, true, &RECORD),
        &[&head[..], &[""]].concat(),
    );
    check(
        |out| reply::not_modified(out, STAYS, 3),
        &["HTTP/1.1 304 Not Modified", "ETag: \"3\"", DATE, "", ""],
    );
    let cursor = Cursor {
        timeline: 1,
        next: vec![(0, 7), (1, u64::MAX)],
        walked: Vec::new(),
    };
    check(
        |out| reply::ndjson(out, STAYS, false, b"{}\n", Some(&cursor)),
        &[
            "HTTP/1.1 200 OK",
            "Content-Type: application/x-ndjson",
            "Content-Length: 3",
            "X-Pinion-Cursor: cGMBAQAAAAIAAAAAAAcAAAAAAAAAAQAAAP__________pv4chQ",
            DATE,
            "",
            "{}\n",
        ],
    );
    check(
        |out| reply::ndjson(out, ENDS, true, b"{}\n", None),
        &[
            "HTTP/1.1 200 OK",
            "Content-Type: application/x-ndjson",
            "Content-Length: 3",
            DATE,
            "Connection: close",
            "",
            "",
        ],
    );
    check(
        |out| reply::body(out, STAYS, false, 200, "text/plain", b"ok"),
        &[
            "HTTP/1.1 200 OK",
            "Content-Type: text/plain",
            "Content-Length: 2",
            DATE,
            "",
            "ok",
        ],
    );
    check(
        |out| {
            reply::event_stream_head(out, STAYS);
            reply::event(out, Some(&cursor), b"{}\n");
        },
        &[
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream",
            "Cache-Control: no-store",
            DATE,
            "Connection: close",
            "",
            "id: cGMBAQAAAAIAAAAAAAcAAAAAAAAAAQAAAP__________pv4chQ\ndata: {}\n\n",
        ],
    );
}

#[test]
fn refusals() {
    let refusal = Refusal::new(Code::NotFound, "no \"x\"");
    let body = r#"{"type":"urn:pinion:problem:not_found","title":"Not found","status":404,"detail":"no \"x\"","code":"not_found"}"#;
    let length = format!("Content-Length: {}", body.len());
    let head = [
        "HTTP/1.1 404 Not Found",
        "Content-Type: application/problem+json",
        &length,
        DATE,
        "",
    ];
    check(
        |out| reply::refusal(out, STAYS, false, &refusal, None),
        &[&head[..], &[body]].concat(),
    );
    check(
        |out| reply::refusal(out, STAYS, true, &refusal, None),
        &[&head[..], &[""]].concat(),
    );
    for (ms, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (u32::MAX, 4_294_968)] {
        let mut out = Vec::new();
        let refusal = Refusal::new(Code::Overloaded, "wait").retry_after(ms);
        reply::refusal(&mut out, STAYS, false, &refusal, None);
        let text = String::from_utf8(out).unwrap();
        assert!(text.starts_with("HTTP/1.1 429 Too Many Requests\r\n"));
        assert!(
            text.contains(&format!("\r\nRetry-After: {seconds}\r\n")),
            "{text}"
        );
    }
    let mut out = Vec::new();
    reply::refusal(
        &mut out,
        ENDS,
        false,
        &Refusal::new(Code::MethodNotAllowed, "m"),
        Some("GET, HEAD"),
    );
    reply::refusal(
        &mut out,
        ENDS,
        false,
        &Refusal::new(Code::Unauthorized, "m"),
        None,
    );
    let text = String::from_utf8(out).unwrap();
    assert!(
        text.contains(&format!(
            "\r\nAllow: GET, HEAD\r\n{DATE}\r\nConnection: close\r\n\r\n"
        )),
        "{text}"
    );
    assert!(
        text.contains(&format!(
            "\r\nWWW-Authenticate: Bearer\r\n{DATE}\r\nConnection: close\r\n\r\n"
        )),
        "{text}"
    );
}
