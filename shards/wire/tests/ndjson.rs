//! NDJSON lines: what is taken, what is refused and with which line number; what goes out, exactly.

use wire::ndjson::{lines, write_record};
use wire::*;

type Read = Result<(String, String, bool), (u64, Code, String)>;

/// (key, payload, is JSON) of each line, or the line number and what is wrong.
fn read(body: &str) -> Vec<Read> {
    lines(body.as_bytes(), 20)
        .map(|line| {
            line.map_err(|(number, why)| (number, why.code, why.message))
                .map(|line| {
                    let payload = String::from_utf8_lossy(&line.payload).into_owned();
                    (
                        line.key.into_owned(),
                        payload,
                        line.content_type == ContentType::JSON,
                    )
                })
        })
        .collect()
}

#[track_caller]
fn good(line: &str, key: &str, payload: &str, json: bool) {
    assert_eq!(read(line), [Ok((key.to_owned(), payload.to_owned(), json))]);
}

#[track_caller]
fn bad(line: &str, what: &str) {
    bad_as(Code::Malformed, line, what);
}

#[track_caller]
fn bad_as(expected: Code, line: &str, what: &str) {
    let body = format!("{{\"key\":\"a\",\"value\":1}}\n\n  {line}\r\n");
    match &read(&body)[..] {
        [Ok(_), Err((3, code, why))] if *code == expected => assert!(why.contains(what), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_are_kept_as_the_text_they_came_as() {
    good(
        r#"{"key":"k","value":{"b": 1.00,"a":1e5}}"#,
        "k",
        r#"{"b": 1.00,"a":1e5}"#,
        true,
    );
    good(r#" {"value" : [1 , 2] , "key":"k"} "#, "k", "[1 , 2]", true);
    good(r#"{"key":"k","value":null}"#, "k", "null", true);
    good(r#"{"key":"k","value":"\u00e9"}"#, "k", r#""\u00e9""#, true);
    good(
        r#"{"key":"\u00e9\n","value":12345678901234567890}"#,
        "é\n",
        "12345678901234567890",
        true,
    );
    good(r#"{"key":"k","value_base64":"aGk="}"#, "k", "hi", false);
    good(r#"{"key":"k","value_base64":""}"#, "k", "", false);
    assert_eq!(read(""), []);
    assert_eq!(read("\n\r\n  \n"), []);
    assert_eq!(
        read("{\"key\":\"a\",\"value\":1}\n{\"key\":\"b\",\"value\":2}").len(),
        2
    );
}

#[test]
fn keys_and_values_are_borrowed_where_they_can_be() {
    let line = lines(br#"{"key":"k","value":1}"#, 20)
        .next()
        .unwrap()
        .unwrap();
    assert!(matches!(line.key, std::borrow::Cow::Borrowed("k")));
    assert!(matches!(line.payload, std::borrow::Cow::Borrowed(b"1")));
}

#[test]
fn bad_lines_are_named() {
    bad("x", "not a JSON object");
    bad(r#"["k",1]"#, "not a JSON object");
    bad("{}", "missing field `key`");
    bad(r#"{"key":"k"}"#, "neither value nor value_base64");
    bad(r#"{"key":"k","value":1,"value_base64":""}"#, "both there");
    bad(
        r#"{"key":"k","value":null,"value_base64":""}"#,
        "both there",
    );
    bad(r#"{"key":"k","value_base64":null}"#, "invalid type: null");
    bad(r#"{"key":"k","value_base64":"a"}"#, "not base64");
    bad(r#"{"key":"k","value_base64":"_-_-"}"#, "not base64");
    bad(
        r#"{"key":"k","value":1,"vlaue":2}"#,
        "unknown field `vlaue`",
    );
    bad(
        r#"{"key":"k","key":"k","value":1}"#,
        "duplicate field `key`",
    );
    bad(
        r#"{"key":"k","value":1,"value":1}"#,
        "duplicate field `value`",
    );
    bad(r#"{"key":1,"value":1}"#, "invalid type: integer");
    bad(r#"{"key":"","value":1}"#, "key is empty");
    bad_as(
        Code::TooLarge,
        &format!(r#"{{"key":"{}","value":1}}"#, "k".repeat(1025)),
        "key has 1025 bytes",
    );
    bad(
        r#"{"key":"k","value":1} {"key":"k"}"#,
        "trailing characters at column 23",
    );
    bad(r#"{"key":"k","value":1"#, "EOF");
    bad(r#"{"key":"k","value":tru}"#, "expected ident at column 23");
    bad_as(
        Code::TooLarge,
        r#"{"key":"k","value":"123456789012345678901"}"#,
        "payload has 23 bytes: keep payloads within 20",
    );
    bad("{\"key\":\"k\",\"value\":\"a\u{1}\"}", "control character");
}

#[test]
fn invalid_utf8_is_refused() {
    assert!(matches!(
        lines(b"{\"key\":\"\xff\",\"value\":1}", 20).next(),
        Some(Err((1, _)))
    ));
    assert!(matches!(
        lines(b"{\"key\":\"k\",\"value\":\"\xff\"}", 20).next(),
        Some(Err((1, _)))
    ));
}

#[track_caller]
fn written(content_type: &str, payload: &[u8], expected: &str) {
    let mut out = Vec::new();
    write_record(
        &mut out,
        &RecordOut {
            log: 1,
            lsn: 2,
            version: 3,
            timestamp_us: 4,
            tombstone: false,
            content_type: ContentType::from_header(content_type.as_bytes()),
            key: b"k\"",
            payload,
        },
    );
    let start = r#"{"key":"k\"","version":3,"position":"1:2","timestamp":4,"#;
    assert_eq!(
        String::from_utf8(out).unwrap(),
        format!("{start}{expected}}}\n")
    );
}

#[test]
fn the_content_type_decides_how_a_record_goes_out() {
    written(
        "application/json",
        br#"{"a": 1.00}"#,
        r#""value":{"a": 1.00}"#,
    );
    written(
        "application/json",
        b"{\r\n \"a\":\n1}\n",
        r#""value":{   "a": 1}"#,
    );
    written(
        "application/json",
        b"{",
        r#""value_base64":"ew==","content_type":"application/json""#,
    );
    written(
        "application/json",
        b"1 2",
        r#""value_base64":"MSAy","content_type":"application/json""#,
    );
    written(
        "application/json",
        b"",
        r#""value_base64":"","content_type":"application/json""#,
    );
    written(
        "application/vnd.x+json",
        b"1",
        r#""value":1,"content_type":"application/vnd.x+json""#,
    );
    written(
        "text/plain",
        "é\n\"".as_bytes(),
        r#""value":"é\n\"","content_type":"text/plain""#,
    );
    written(
        "text/plain",
        b"\xff",
        r#""value_base64":"/w==","content_type":"text/plain""#,
    );
    written(
        "application/octet-stream",
        b"hi",
        r#""value_base64":"aGk=","content_type":"application/octet-stream""#,
    );
    written(
        "application/x-ndjson",
        b"1\n",
        r#""value_base64":"MQo=","content_type":"application/x-ndjson""#,
    );
}

#[test]
fn tombstones_and_keys_that_are_not_text() {
    let mut out = Vec::new();
    write_record(
        &mut out,
        &RecordOut {
            log: 1,
            lsn: 2,
            version: 3,
            timestamp_us: 4,
            tombstone: true,
            content_type: ContentType::JSON,
            key: b"\xff",
            payload: b"",
        },
    );
    assert_eq!(
        String::from_utf8(out).unwrap(),
        "{\"key_base64\":\"/w==\",\"version\":3,\"position\":\"1:2\",\"timestamp\":4,\"tombstone\":true}\n"
    );
}
