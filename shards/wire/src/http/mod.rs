#![allow(dead_code, unused_variables, missing_docs)]
//! HTTP/1.1 on httparse: requests routed to what they mean; replies rendered.
use super::*;
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub head_bytes_max: usize,
    pub body_bytes_max: usize,
}
#[derive(Debug)]
pub enum Parsed<'a> {
    Incomplete {
        needed: usize,
        /// the client sent `Expect: 100-continue` and waits for it
        expects_continue: bool,
    },
    Request {
        consumed: usize,
        request: Request<'a>,
        keep_alive: bool,
    },
    /// answer with the refusal; `consumed` Some = the connection can go on behind it, None = close after the answer
    Refused {
        consumed: Option<usize>,
        refusal: Refusal,
        allow: Option<&'static str>,
        head: bool,
    },
}
/// What is asked, after routing. Keys are percent-decoded.
#[derive(Debug)]
pub struct Request<'a> {
    pub route: Route<'a>,
    /// `Authorization: Bearer` value
    pub bearer: Option<&'a [u8]>,
    pub head: bool,
}
#[derive(Debug)]
pub enum Route<'a> {
    Append {
        stream: &'a str,
        key: std::borrow::Cow<'a, [u8]>,
        body: std::borrow::Cow<'a, [u8]>,
        content_type: ContentType<'a>,
        condition: Condition,
        idempotency_key: Option<&'a [u8]>,
        durability: Durability,
    },
    AppendMany {
        stream: &'a str,
        body: std::borrow::Cow<'a, [u8]>,
        idempotency_key: Option<&'a [u8]>,
        durability: Durability,
    },
    Delete {
        stream: &'a str,
        key: std::borrow::Cow<'a, [u8]>,
        condition: Condition,
        idempotency_key: Option<&'a [u8]>,
        durability: Durability,
    },
    Get {
        stream: &'a str,
        key: std::borrow::Cow<'a, [u8]>,
        /// If-None-Match: "N" -> 304
        if_none_match: Option<u32>,
    },
    History {
        stream: &'a str,
        key: std::borrow::Cow<'a, [u8]>,
        limit: u32,
        before: u32,
    },
    Scan {
        stream: &'a str,
        cursor: Option<Cursor>,
        limit: u32,
    },
    Tail {
        stream: &'a str,
        cursor: Option<Cursor>,
        wait_ms: u32,
        limit: u32,
        event_stream: bool,
    },
    PutStream {
        stream: &'a str,
        policy: Policy,
    },
    GetStream {
        stream: &'a str,
    },
    ListStreams,
    Topology,
    Healthz,
    Readyz,
    Metrics,
    OpenApi,
}
pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Parsed<'a> {
    todo!()
}

pub mod reply {
    //! Whole responses appended to `out`. Every one has Content-Length (or is a stream), Content-Type, and Connection: close when `!keep_alive`.
    use super::super::*;
    pub fn appended(
        out: &mut Vec<u8>,
        keep_alive: bool,
        log: u32,
        lsn: u64,
        version: u32,
        durability: Durability,
    ) {
        todo!()
    } // 201 + ETag
    pub fn appended_many(
        out: &mut Vec<u8>,
        keep_alive: bool,
        appended: u64,
        parts: &[native::AppendPart],
        durability: Durability,
    ) {
        todo!()
    } // 200
    pub fn record(out: &mut Vec<u8>, keep_alive: bool, head: bool, record: &RecordOut<'_>) {
        todo!()
    }
    pub fn not_modified(out: &mut Vec<u8>, keep_alive: bool, version: u32) {
        todo!()
    }
    pub fn no_content(out: &mut Vec<u8>, keep_alive: bool, log: u32, lsn: u64, version: u32) {
        todo!()
    } // 204
    pub fn ndjson(
        out: &mut Vec<u8>,
        keep_alive: bool,
        head: bool,
        lines: &[u8],
        cursor: Option<&Cursor>,
    ) {
        todo!()
    }
    pub fn body(
        out: &mut Vec<u8>,
        keep_alive: bool,
        head: bool,
        status: u16,
        content_type: &str,
        body: &[u8],
    ) {
        todo!()
    }
    pub fn refusal(
        out: &mut Vec<u8>,
        keep_alive: bool,
        head: bool,
        refusal: &Refusal,
        allow: Option<&str>,
    ) {
        todo!()
    } // RFC 9457
    pub fn event_stream_head(out: &mut Vec<u8>) {
        todo!()
    }
    pub fn event(out: &mut Vec<u8>, cursor: &Cursor, line: &[u8]) {
        todo!()
    }
    pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
}
pub fn openapi() -> &'static str {
    todo!()
}
