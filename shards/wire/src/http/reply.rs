//! Whole responses appended to `out`. Every one has Content-Length (or is a stream), Content-Type, and what [`General`] says.
//!
//! Heads of the hot replies are copied together from pieces; nothing is formatted by `fmt` on their way. It does not
//! know when a response may be sent.

use std::cell::Cell;
use std::time::{Duration, UNIX_EPOCH};

use crate::native::AppendPart;
use crate::{Code, Cursor, Durability, RecordOut, Refusal};

/// What a client that sent `Expect: 100-continue` waits for.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

const JSON: &[u8] = b"application/json";

/// What every response says besides what it is about.
#[derive(Clone, Copy, Debug)]
pub struct General {
    /// False: the connection ends behind this response, which says `Connection: close`.
    pub keep_alive: bool,
    /// `Date`: when the response was made, in seconds since 1970 (RFC 9110, section 6.6.1).
    pub unix_seconds: u64,
}

fn number(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Ends a head.
#[inline]
fn end(out: &mut Vec<u8>, general: General) {
    date(out, general.unix_seconds);
    out.extend_from_slice(if general.keep_alive {
        b"\r\n"
    } else {
        b"Connection: close\r\n\r\n"
    });
}

#[inline]
fn date(out: &mut Vec<u8>, unix_seconds: u64) {
    thread_local! {
        static NOW: LastDate = const { LastDate::none() };
    }
    out.extend_from_slice(b"Date: ");
    out.extend_from_slice(&NOW.with(|last| last.fixdate(unix_seconds)));
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn etag(out: &mut Vec<u8>, version: u32) {
    out.extend_from_slice(b"ETag: \"");
    number(out, version);
    out.extend_from_slice(b"\"\r\n");
}

#[inline]
fn position(out: &mut Vec<u8>, log: u32, lsn: u64) {
    out.extend_from_slice(b"X-Pinion-Position: ");
    number(out, log);
    out.push(b':');
    number(out, lsn);
    out.extend_from_slice(b"\r\n");
}

#[inline]
fn content(out: &mut Vec<u8>, content_type: &[u8], bytes: usize) {
    out.extend_from_slice(b"Content-Type: ");
    out.extend_from_slice(content_type);
    out.extend_from_slice(b"\r\nContent-Length: ");
    number(out, bytes);
    out.extend_from_slice(b"\r\n");
}

/// 201 with ETag and position: `{"position":"log:lsn","version":N,"durability":"durable"}`.
pub fn appended(
    out: &mut Vec<u8>,
    general: General,
    log: u32,
    lsn: u64,
    version: u32,
    durability: Durability,
) {
    let mut buffers = [itoa::Buffer::new(); 3];
    let [log_buffer, lsn_buffer, version_buffer] = &mut buffers;
    let parts: [&[u8]; 9] = [
        b"{\"position\":\"",
        log_buffer.format(log).as_bytes(),
        b":",
        lsn_buffer.format(lsn).as_bytes(),
        b"\",\"version\":",
        version_buffer.format(version).as_bytes(),
        b",\"durability\":\"",
        durability.name().as_bytes(),
        b"\"}",
    ];
    out.extend_from_slice(b"HTTP/1.1 201 Created\r\n");
    content(out, JSON, parts.iter().map(|part| part.len()).sum());
    etag(out, version);
    position(out, log, lsn);
    end(out, general);
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// 200: `{"appended":N,"durability":…,"positions":[{"log":L,"records":N,"first":"log:lsn","last":"log:lsn"},…]}`, one
/// entry per log that got records, in the order of `parts`.
pub fn appended_many(
    out: &mut Vec<u8>,
    general: General,
    appended: u64,
    parts: &[AppendPart],
    durability: Durability,
) {
    let mut json = Vec::with_capacity(64 + parts.len() * 96);
    json.extend_from_slice(b"{\"appended\":");
    number(&mut json, appended);
    json.extend_from_slice(b",\"durability\":\"");
    json.extend_from_slice(durability.name().as_bytes());
    json.extend_from_slice(b"\",\"positions\":[");
    let some = parts.iter().filter(|part| part.records > 0);
    for (nth, part) in some.enumerate() {
        if nth > 0 {
            json.push(b',');
        }
        let last_lsn = part.first_lsn + u64::from(part.records) - 1;
        json.extend_from_slice(b"{\"log\":");
        number(&mut json, part.log);
        json.extend_from_slice(b",\"records\":");
        number(&mut json, part.records);
        for (name, lsn) in [
            (&b",\"first\":\""[..], part.first_lsn),
            (b",\"last\":\"", last_lsn),
        ] {
            json.extend_from_slice(name);
            number(&mut json, part.log);
            json.push(b':');
            number(&mut json, lsn);
            json.push(b'"');
        }
        json.push(b'}');
    }
    json.extend_from_slice(b"]}");
    body(out, general, false, 200, "application/json", &json);
}

/// 200 with the payload as it came, ETag, position and Last-Modified. A tombstone is not for this: it is a 404.
pub fn record(out: &mut Vec<u8>, general: General, head: bool, record: &RecordOut<'_>) {
    out.reserve(256 + record.payload.len());
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    content(out, record.content_type.as_header(), record.payload.len());
    etag(out, record.version);
    position(out, record.log, record.lsn);
    last_modified(out, record.timestamp_us);
    end(out, general);
    if !head {
        out.extend_from_slice(record.payload);
    }
}

/// 304 with ETag.
pub fn not_modified(out: &mut Vec<u8>, general: General, version: u32) {
    out.extend_from_slice(b"HTTP/1.1 304 Not Modified\r\n");
    etag(out, version);
    end(out, general);
}

/// 204 for a tombstone that was appended: its position and version.
///
/// A 204 has no body to say in what it got, so a header does: `X-Pinion-Durability`.
pub fn no_content(
    out: &mut Vec<u8>,
    general: General,
    log: u32,
    lsn: u64,
    version: u32,
    durability: Durability,
) {
    out.extend_from_slice(b"HTTP/1.1 204 No Content\r\n");
    etag(out, version);
    position(out, log, lsn);
    out.extend_from_slice(b"X-Pinion-Durability: ");
    out.extend_from_slice(durability.name().as_bytes());
    out.extend_from_slice(b"\r\n");
    end(out, general);
}

/// 200 with lines as [`crate::ndjson::write_record`] writes them, and the cursor of the next page.
pub fn ndjson(
    out: &mut Vec<u8>,
    general: General,
    head: bool,
    lines: &[u8],
    cursor: Option<&Cursor>,
) {
    out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    content(out, b"application/x-ndjson", lines.len());
    if let Some(cursor) = cursor {
        out.extend_from_slice(b"X-Pinion-Cursor: ");
        out.extend_from_slice(cursor.encode().as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    end(out, general);
    if !head {
        out.extend_from_slice(lines);
    }
}

/// Any status with a body.
pub fn body(
    out: &mut Vec<u8>,
    general: General,
    head: bool,
    status: u16,
    content_type: &str,
    body: &[u8],
) {
    status_line(out, status);
    content(out, content_type.as_bytes(), body.len());
    end(out, general);
    if !head {
        out.extend_from_slice(body);
    }
}

/// A problem document (RFC 9457) with the code's status; `Allow` where given, `Retry-After` in seconds where a repeat
/// may succeed, `WWW-Authenticate` with 401.
pub fn refusal(
    out: &mut Vec<u8>,
    general: General,
    head: bool,
    refusal: &Refusal,
    allow: Option<&str>,
) {
    let status = refusal.code.http_status();
    let problem = Problem {
        r#type: format!("urn:pinion:problem:{}", refusal.code.name()),
        title: refusal.code.title(),
        status,
        detail: &refusal.message,
        code: refusal.code.name(),
    };
    let json = serde_json::to_vec(&problem).expect("strings and numbers always serialise");
    status_line(out, status);
    content(out, b"application/problem+json", json.len());
    if let Some(allow) = allow {
        out.extend_from_slice(b"Allow: ");
        out.extend_from_slice(allow.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(ms) = refusal.retry_after_ms {
        out.extend_from_slice(b"Retry-After: ");
        number(out, ms.div_ceil(1000).max(1));
        out.extend_from_slice(b"\r\n");
    }
    if refusal.code == Code::Unauthorized {
        out.extend_from_slice(b"WWW-Authenticate: Bearer\r\n");
    }
    end(out, general);
    if !head {
        out.extend_from_slice(&json);
    }
}

#[derive(serde::Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
}

/// The head of an event stream; its end is the end of the connection.
pub fn event_stream_head(out: &mut Vec<u8>, general: General) {
    out.extend_from_slice(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-store\r\n",
    );
    end(
        out,
        General {
            keep_alive: false,
            ..general
        },
    );
}

/// One record as an event: its line as data, and as id the cursor behind it, where there is one; a browser sends the last id
/// that it has seen when it reconnects. `line` is one line, with or without its newline.
pub fn event(out: &mut Vec<u8>, cursor: Option<&Cursor>, line: &[u8]) {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    debug_assert!(memchr::memchr2(b'\r', b'\n', line).is_none());
    if let Some(cursor) = cursor {
        out.extend_from_slice(b"id: ");
        out.extend_from_slice(cursor.encode().as_bytes());
        out.push(b'\n');
    }
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(line);
    out.extend_from_slice(b"\n\n");
}

fn status_line(out: &mut Vec<u8>, status: u16) {
    out.extend_from_slice(b"HTTP/1.1 ");
    number(out, status);
    out.push(b' ');
    out.extend_from_slice(reason(status).as_bytes());
    out.extend_from_slice(b"\r\n");
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        409 => "Conflict",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        422 => "Unprocessable Content",
        408 => "Request Timeout",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        507 => "Insufficient Storage",
        // A reason may be empty; clients go by the number.
        _ => "",
    }
}

/// Log times of records that are read together are often of one second.
fn last_modified(out: &mut Vec<u8>, timestamp_us: u64) {
    thread_local! {
        static READ: LastDate = const { LastDate::none() };
    }
    out.extend_from_slice(b"Last-Modified: ");
    out.extend_from_slice(&READ.with(|last| last.fixdate(timestamp_us / 1_000_000)));
    out.extend_from_slice(b"\r\n");
}

/// The date that was asked for last, and how it is written: calendars are slow.
struct LastDate(Cell<(u64, [u8; 29])>);

impl LastDate {
    const fn none() -> LastDate {
        LastDate(Cell::new((u64::MAX, [0; 29])))
    }

    /// `Sun, 06 Nov 1994 08:49:37 GMT` (RFC 9110, section 5.6.7).
    #[inline]
    fn fixdate(&self, unix_seconds: u64) -> [u8; 29] {
        let (last, text) = self.0.get();
        if last == unix_seconds {
            return text;
        }
        self.format(unix_seconds)
    }

    #[cold]
    fn format(&self, unix_seconds: u64) -> [u8; 29] {
        // The last second of 9999, behind which the format has no years.
        let second = unix_seconds.min(253_402_300_799);
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(second));
        let text = text
            .as_bytes()
            .try_into()
            .expect("an IMF-fixdate has 29 bytes");
        self.0.set((unix_seconds, text));
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_formatted_once_a_second_and_never_out_of_range() {
        let last = LastDate::none();
        for (second, text) in [
            (784_111_777, b"Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_777, b"Sun, 06 Nov 1994 08:49:37 GMT"),
            (0, b"Thu, 01 Jan 1970 00:00:00 GMT"),
            (u64::MAX - 1, b"Fri, 31 Dec 9999 23:59:59 GMT"),
        ] {
            assert_eq!(&last.fixdate(second), text);
        }
    }

    #[test]
    fn every_code_has_a_reason() {
        for code in Code::ALL {
            assert_ne!(reason(code.http_status()), "", "{code:?}");
        }
    }
}
