//! Bytes to requests and back: the native protocol, HTTP/1.1, NDJSON, cursors, topology.
//!
//! It does not know sockets, a clock, the disk, or what a request does to a shard.
#![allow(dead_code, unused_variables, missing_docs)]

pub const KEY_BYTES_MAX: usize = 1024;
pub const STREAM_NAME_BYTES_MAX: usize = 128;

/// `[A-Za-z0-9._:-]`, 1 to 128 bytes.
pub fn stream_name_is_valid(name: &[u8]) -> bool { todo!() }

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Durability { #[default] Durable = 0, Buffered = 1 }
impl Durability { pub fn name(self) -> &'static str { match self { Durability::Durable => "durable", Durability::Buffered => "buffered" } } }

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Condition { #[default] None, /// append only if the key's version is this one (0 = key must be new or ended by a tombstone? no: exactly "has no live record")
    Version(u32), /// only if the key has no live record
    New }

/// Content type of a record: the codes are those of `wal::record::content_type`; other types are kept as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType<'a> { Code(u8), Other(&'a [u8]) }
impl<'a> ContentType<'a> {
    /// From a header value, e.g. `application/json` (parameters kept: `application/json; charset=x` is Other).
    pub fn from_header(value: &'a [u8]) -> ContentType<'a> { todo!() }
    pub fn as_header(&self) -> &'a [u8] { todo!() }
    pub fn is_json(&self) -> bool { todo!() }
    pub fn is_text(&self) -> bool { todo!() }
}

pub mod slot {
    pub const SLOTS: u16 = 16384;
    /// CRC16/XMODEM of the key (or of what is in the first non-empty `{braces}`) mod 16384: Redis Cluster's rule.
    #[inline] pub fn slot_of(key: &[u8]) -> u16 { todo!() }
    /// Contiguous equal ranges: the shard of a slot when there are `shards`.
    #[inline] pub fn shard_of_slot(slot: u16, shards: u16) -> u16 { todo!() }
    pub fn range_of_shard(shard: u16, shards: u16) -> std::ops::RangeInclusive<u16> { todo!() }
}

/// Error codes shared by every protocol; each has an HTTP status and a native code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    Ok = 0, Malformed = 1, Unauthorized = 2, NotFound = 3, SequenceOutOfOrder = 4, ConditionFailed = 5, TooLarge = 6, Overloaded = 7,
    Unavailable = 8, DiskFull = 9, Unsupported = 10, /// an idempotency key or producer sequence was used with a different request
    IdempotencyMismatch = 11, /// a cursor of a timeline this directory never had
    CursorUnknown = 12, Internal = 13, MethodNotAllowed = 14, }
impl Code { pub fn http_status(self) -> u16 { todo!() } pub fn from_u16(v: u16) -> Option<Code> { todo!() } pub fn name(self) -> &'static str { todo!() } }

/// An error on its way to a client: code, one sentence that says what to do, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal { pub code: Code, pub message: String, pub retry_after_ms: Option<u32> }

/// Opaque to clients: timeline and the next lsn of every log. Text form base64url, no padding.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Cursor { pub timeline: u32, /// per log number, ascending
    pub next: Vec<(u32, u64)> }
impl Cursor { pub fn encode(&self) -> String { todo!() } pub fn decode(text: &[u8]) -> Option<Cursor> { todo!() } }

/// slots -> shard -> ports, as served in every protocol.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Topology { pub store: String, pub map_epoch: u64, pub shards: Vec<ShardRoute> }
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct ShardRoute { pub shard: u16, pub log: u32, pub slot_first: u16, pub slot_last: u16, pub address: String, pub native_port: u16 }
impl Topology { pub fn encode(&self, out: &mut Vec<u8>) { todo!() } pub fn decode(bytes: &[u8]) -> Option<Topology> { todo!() } pub fn to_json(&self) -> String { todo!() } }

/// One record of an append request, borrowed from the request's bytes.
#[derive(Clone, Copy, Debug)]
pub struct AppendRecord<'a> { pub key: &'a [u8], pub payload: &'a [u8], pub content_type: ContentType<'a>, pub tombstone: bool, pub condition: Condition }

/// A record on its way out (get, history, scan, tail).
#[derive(Clone, Copy, Debug)]
pub struct RecordOut<'a> { pub log: u32, pub lsn: u64, pub version: u32, pub timestamp_us: u64, pub tombstone: bool, pub content_type: ContentType<'a>, pub key: &'a [u8], pub payload: &'a [u8] }

pub mod native {
    //! The native protocol: little-endian frames with request ids. Bytes drawn in PROTOCOL.md beside this crate.
    use super::*;
    pub const PROTOCOL_VERSION: u16 = 1;
    pub const FRAME_HEADER_BYTES: usize = 16;
    /// Header: frame_bytes u32 (header included), opcode u8 (replies: | 0x80), flags u8, code u16 (0 in requests and good replies), request_id u64.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct FrameHeader { pub frame_bytes: u32, pub opcode: u8, pub flags: u8, pub code: u16, pub request_id: u64 }
    pub mod opcode { pub const HELLO: u8 = 1; pub const APPEND: u8 = 2; pub const GET: u8 = 3; pub const HISTORY: u8 = 4; pub const SCAN: u8 = 5; pub const TAIL: u8 = 6; pub const PING: u8 = 7; pub const TOPOLOGY: u8 = 8; pub const STREAMS: u8 = 9; }

    #[derive(Debug)]
    pub enum Request<'a> { Hello { version: u16, token: &'a [u8] }, Append(Append<'a>), Get { stream: &'a [u8], key: &'a [u8] },
        /// `before` = 0: from the newest
        History { stream: &'a [u8], key: &'a [u8], before: u32, limit: u32 },
        /// cursor empty = from the beginning
        Scan { stream: &'a [u8], cursor: &'a [u8], limit: u32 },
        Tail { stream: &'a [u8], cursor: &'a [u8], limit: u32, wait_ms: u32 }, Ping, Topology, Streams }
    /// A validated append frame: every length checked, so that iteration cannot fail.
    #[derive(Clone, Copy, Debug)]
    pub struct Append<'a> { pub stream: &'a [u8], pub durability: Durability, /// reply carries a version per record
        pub want_versions: bool, pub producer: Option<Producer>, pub records: u32, body: &'a [u8] }
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Producer { pub id: u128, pub sequence: u64 }
    impl<'a> Append<'a> { pub fn iter(&self) -> AppendIter<'a> { todo!() } /// all record bytes, for forwarding and fingerprints
        pub fn body(&self) -> &'a [u8] { self.body } }
    #[derive(Clone)]
    pub struct AppendIter<'a> { rest: &'a [u8], left: u32 }
    impl<'a> Iterator for AppendIter<'a> { type Item = AppendRecord<'a>; #[inline] fn next(&mut self) -> Option<AppendRecord<'a>> { todo!() } }

    #[derive(Clone, Copy, Debug)]
    pub struct Limits { pub frame_bytes_max: u32, pub payload_bytes_max: u32 }
    /// What stands at the start of `bytes`.
    pub enum Parsed<'a> { /// not a whole frame yet; at least `needed` bytes in all are wanted (header known: the frame's length)
        Incomplete { needed: usize }, Request { consumed: usize, id: u64, request: Request<'a> },
        /// a whole frame whose content is refused; the connection goes on behind it
        Refused { consumed: usize, id: u64, opcode: u8, refusal: Refusal },
        /// the stream cannot be trusted any more: answer and close
        Broken(Refusal) }
    pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Parsed<'a> { todo!() }

    // ---- requests, written by clients ----
    pub fn hello(out: &mut Vec<u8>, id: u64, token: &[u8]) { todo!() }
    /// Append frame builder: begin, add records, end. Errors when a bound is passed.
    pub struct AppendBuilder<'o> { out: &'o mut Vec<u8> }
    impl<'o> AppendBuilder<'o> {
        pub fn begin(out: &'o mut Vec<u8>, id: u64, stream: &[u8], durability: Durability, want_versions: bool, producer: Option<Producer>) -> AppendBuilder<'o> { todo!() }
        pub fn record(&mut self, record: &AppendRecord<'_>) { todo!() }
        pub fn bytes(&self) -> usize { todo!() }
        pub fn finish(self) -> u32 { todo!() }
    }
    pub fn get(out: &mut Vec<u8>, id: u64, stream: &[u8], key: &[u8]) { todo!() }
    pub fn history(out: &mut Vec<u8>, id: u64, stream: &[u8], key: &[u8], before: u32, limit: u32) { todo!() }
    pub fn scan(out: &mut Vec<u8>, id: u64, stream: &[u8], cursor: &[u8], limit: u32) { todo!() }
    pub fn tail(out: &mut Vec<u8>, id: u64, stream: &[u8], cursor: &[u8], limit: u32, wait_ms: u32) { todo!() }
    pub fn simple(out: &mut Vec<u8>, id: u64, opcode: u8) { todo!() } // ping, topology, streams

    // ---- replies, written by shards. Every reply body starts with durable_lsn u64, log u32, epoch u32 of the answering shard. ----
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ReplyMark { pub durable_lsn: u64, pub log: u32, pub epoch: u32 }
    /// One per log that the request's records went to, in log order. Records of one request in one log have consecutive lsns, in request order.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct AppendPart { pub log: u32, pub records: u32, pub first_lsn: u64, pub durable_lsn: u64 }
    /// `versions` in request order; empty unless wanted.
    pub fn append_reply(out: &mut Vec<u8>, id: u64, mark: ReplyMark, durability: Durability, parts: &[AppendPart], versions: &[u32]) { todo!() }
    pub fn get_reply(out: &mut Vec<u8>, id: u64, mark: ReplyMark, record: &RecordOut<'_>) { todo!() }
    /// history, scan and tail: records then a cursor (empty for history; u32 count first)
    pub struct RecordsReply { start: usize }
    impl RecordsReply { pub fn begin(out: &mut Vec<u8>, id: u64, opcode: u8, mark: ReplyMark) -> RecordsReply { todo!() } pub fn record(&mut self, out: &mut Vec<u8>, record: &RecordOut<'_>) { todo!() } pub fn finish(self, out: &mut Vec<u8>, cursor: &[u8]) { todo!() } }
    pub fn bytes_reply(out: &mut Vec<u8>, id: u64, opcode: u8, mark: ReplyMark, body: &[u8]) { todo!() } // hello, topology, ping, streams(JSON)
    pub fn error_reply(out: &mut Vec<u8>, id: u64, opcode: u8, mark: ReplyMark, refusal: &Refusal) { todo!() }

    // ---- replies, read by clients ----
    #[derive(Debug)]
    pub enum Reply<'a> { Hello { mark: ReplyMark, topology: Topology }, Append { mark: ReplyMark, durability: Durability, parts: Vec<AppendPart>, versions: Vec<u32> }, Get { mark: ReplyMark, record: RecordOut<'a> },
        Records { mark: ReplyMark, records: Vec<RecordOut<'a>>, cursor: &'a [u8] }, Bytes { mark: ReplyMark, body: &'a [u8] }, Error { mark: ReplyMark, refusal: Refusal } }
    /// Ok(None): not whole yet. (id, opcode without 0x80, reply, consumed). Err: the server broke the protocol.
    pub fn parse_reply<'a>(bytes: &'a [u8]) -> Result<Option<(u64, u8, Reply<'a>, usize)>, String> { todo!() }
    /// Cheap look at a reply for load generators: (id, opcode, code, frame_bytes).
    #[inline] pub fn peek_reply(bytes: &[u8]) -> Option<(u64, u8, u16, usize)> { todo!() }
}

pub mod http {
    //! HTTP/1.1 on httparse: requests routed to what they mean; replies rendered.
    use super::*;
    #[derive(Clone, Copy, Debug)]
    pub struct Limits { pub head_bytes_max: usize, pub body_bytes_max: usize }
    #[derive(Debug)]
    pub enum Parsed<'a> { Incomplete { needed: usize, /// the client sent `Expect: 100-continue` and waits for it
            expects_continue: bool }, Request { consumed: usize, request: Request<'a>, keep_alive: bool }, 
        /// answer with the refusal; `consumed` Some = the connection can go on behind it, None = close after the answer
        Refused { consumed: Option<usize>, refusal: Refusal, allow: Option<&'static str>, head: bool } }
    /// What is asked, after routing. Keys are percent-decoded.
    #[derive(Debug)]
    pub struct Request<'a> { pub route: Route<'a>, /// `Authorization: Bearer` value
        pub bearer: Option<&'a [u8]>, pub head: bool }
    #[derive(Debug)]
    pub enum Route<'a> {
        Append { stream: &'a str, key: std::borrow::Cow<'a, [u8]>, body: std::borrow::Cow<'a, [u8]>, content_type: ContentType<'a>, condition: Condition, idempotency_key: Option<&'a [u8]>, durability: Durability },
        AppendMany { stream: &'a str, body: std::borrow::Cow<'a, [u8]>, idempotency_key: Option<&'a [u8]>, durability: Durability },
        Delete { stream: &'a str, key: std::borrow::Cow<'a, [u8]>, condition: Condition, idempotency_key: Option<&'a [u8]>, durability: Durability },
        Get { stream: &'a str, key: std::borrow::Cow<'a, [u8]>, /// If-None-Match: "N" -> 304
            if_none_match: Option<u32> },
        History { stream: &'a str, key: std::borrow::Cow<'a, [u8]>, limit: u32, before: u32 },
        Scan { stream: &'a str, cursor: Option<Cursor>, limit: u32 },
        Tail { stream: &'a str, cursor: Option<Cursor>, wait_ms: u32, limit: u32, event_stream: bool },
        PutStream { stream: &'a str, policy: Policy }, GetStream { stream: &'a str }, ListStreams, Topology, Healthz, Readyz, Metrics, OpenApi,
    }
    pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Parsed<'a> { todo!() }

    pub mod reply {
        //! Whole responses appended to `out`. Every one has Content-Length (or is a stream), Content-Type, and Connection: close when `!keep_alive`.
        use super::super::*;
        pub fn appended(out: &mut Vec<u8>, keep_alive: bool, log: u32, lsn: u64, version: u32, durability: Durability) { todo!() } // 201 + ETag
        pub fn appended_many(out: &mut Vec<u8>, keep_alive: bool, appended: u64, parts: &[native::AppendPart], durability: Durability) { todo!() } // 200
        pub fn record(out: &mut Vec<u8>, keep_alive: bool, head: bool, record: &RecordOut<'_>) { todo!() }
        pub fn not_modified(out: &mut Vec<u8>, keep_alive: bool, version: u32) { todo!() }
        pub fn no_content(out: &mut Vec<u8>, keep_alive: bool, log: u32, lsn: u64, version: u32) { todo!() } // 204
        pub fn ndjson(out: &mut Vec<u8>, keep_alive: bool, head: bool, lines: &[u8], cursor: Option<&Cursor>) { todo!() }
        pub fn body(out: &mut Vec<u8>, keep_alive: bool, head: bool, status: u16, content_type: &str, body: &[u8]) { todo!() }
        pub fn refusal(out: &mut Vec<u8>, keep_alive: bool, head: bool, refusal: &Refusal, allow: Option<&str>) { todo!() } // RFC 9457
        pub fn event_stream_head(out: &mut Vec<u8>) { todo!() }
        pub fn event(out: &mut Vec<u8>, cursor: &Cursor, line: &[u8]) { todo!() }
        pub const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    }
    pub fn openapi() -> &'static str { todo!() }
}

/// Policy of a stream, as PUT and as stored (JSON). Unknown fields are refused by name.
#[derive(Clone, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy { /// versions of a key that history and scan may show; None = all
    pub history_depth: Option<u32>, /// records older than this (log time) are not served; None = kept
    pub max_age_seconds: Option<u64>, /// how long an Idempotency-Key or a producer's sequences are remembered
    pub dedup_window_seconds: Option<u64> }

pub mod ndjson {
    //! Lines of `{"key":…,"value":…}` in, records as JSON lines out.
    use super::*;
    #[derive(Debug)]
    pub struct Line<'a> { pub key: std::borrow::Cow<'a, str>, pub payload: std::borrow::Cow<'a, [u8]>, pub content_type: ContentType<'static> }
    /// Lines of a body; empty lines are skipped; Err((line number from 1, why)).
    pub fn lines<'a>(body: &'a [u8], payload_bytes_max: usize) -> impl Iterator<Item = Result<Line<'a>, (u64, String)>> { std::iter::empty() }
    /// `{"key","version","position","timestamp",("tombstone":true)|("value"|"value_base64"),"content_type"?}` and a newline.
    /// A key that is not UTF-8 goes out as "key_base64".
    pub fn write_record(out: &mut Vec<u8>, record: &RecordOut<'_>) { todo!() }
}
