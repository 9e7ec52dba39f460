//! The native protocol: little-endian frames with request ids. Bytes drawn in PROTOCOL.md beside this crate.
//!
//! `append` owns the one frame that is hot, `request` and `reply` write and read the others. Fields are read a word
//! at a time from the received bytes: the headers are one or two words, and what follows them starts anywhere.
//!
//! Invariants: a frame's boundary is decided by its header alone, so a frame whose content is refused never costs
//! the connection; what `parse` returns has every length, code and reserved bit checked. It does not know whether a
//! hello came first, nor the token: the shard does.

mod append;
mod reply;
mod request;

pub use append::{Append, AppendBuilder, AppendIter, Producer};
pub use reply::{
    AppendPart, RecordsReply, Reply, ReplyMark, append_reply, bytes_reply, error_reply, get_reply,
    parse_reply, peek_reply,
};
pub use request::{get, hello, history, scan, simple, tail};

use crate::bytes::Reader;
use crate::model::{refuse_key, refuse_stream_name};
use crate::{
    Code, KEY_BYTES_MAX, LIMIT_DEFAULT, LIMIT_MAX, Refusal, WAIT_MS_MAX, stream_name_is_valid,
};

/// The version that hello states.
pub const PROTOCOL_VERSION: u16 = 1;
/// Bytes of a frame's header.
pub const FRAME_HEADER_BYTES: usize = 16;
/// Set in the opcode of every reply.
pub const REPLY_BIT: u8 = 0x80;

/// Header: frame_bytes u32 (header included), opcode u8 (replies: | 0x80), flags u8, code u16 (0 in requests and good replies), request_id u64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Length of the whole frame, this header included.
    pub frame_bytes: u32,
    /// One of [`opcode`]; with [`REPLY_BIT`] in replies.
    pub opcode: u8,
    /// None is defined; 0.
    pub flags: u8,
    /// [`Code`] of a refusal; 0 in requests and good replies.
    pub code: u16,
    /// Chosen by the client, repeated in the reply.
    pub request_id: u64,
}

impl FrameHeader {
    /// The header at the start of `bytes`; `None` when fewer than [`FRAME_HEADER_BYTES`] are there.
    #[inline]
    pub fn read(bytes: &[u8]) -> Option<FrameHeader> {
        let header = bytes.first_chunk::<FRAME_HEADER_BYTES>()?;
        // Two words, cut by shifts: the compiler makes two loads of it.
        let both = u128::from_le_bytes(*header);
        Some(FrameHeader {
            frame_bytes: both as u32,
            opcode: (both >> 32) as u8,
            flags: (both >> 40) as u8,
            code: (both >> 48) as u16,
            request_id: (both >> 64) as u64,
        })
    }

    /// Its bytes.
    #[inline]
    pub fn to_bytes(&self) -> [u8; FRAME_HEADER_BYTES] {
        let both = u128::from(self.frame_bytes)
            | u128::from(self.opcode) << 32
            | u128::from(self.flags) << 40
            | u128::from(self.code) << 48
            | u128::from(self.request_id) << 64;
        both.to_le_bytes()
    }
}

/// What a request asks for.
pub mod opcode {
    /// First on every connection: version and token; answered with the topology.
    pub const HELLO: u8 = 1;
    /// A batch of records for one stream.
    pub const APPEND: u8 = 2;
    /// The newest record of a key.
    pub const GET: u8 = 3;
    /// Records of a key, newest first.
    pub const HISTORY: u8 = 4;
    /// Records of a stream, a page at a time.
    pub const SCAN: u8 = 5;
    /// Like scan, but waits at the end for what comes.
    pub const TAIL: u8 = 6;
    /// Answers with nothing but the mark.
    pub const PING: u8 = 7;
    /// Slots, shards, ports.
    pub const TOPOLOGY: u8 = 8;
    /// Streams and their counts, as JSON.
    pub const STREAMS: u8 = 9;
}

/// A request, borrowed from the received bytes.
#[derive(Debug)]
pub enum Request<'a> {
    /// Introduces the client.
    Hello {
        /// Should be [`PROTOCOL_VERSION`]; the shard refuses others.
        version: u16,
        /// Empty when the server needs none.
        token: &'a [u8],
    },
    /// Appends records.
    Append(Append<'a>),
    /// Newest record of a key.
    Get {
        /// Valid stream name.
        stream: &'a [u8],
        /// 1 to 1024 bytes.
        key: &'a [u8],
    },
    /// Records of a key, newest first.
    History {
        /// Valid stream name.
        stream: &'a [u8],
        /// 1 to 1024 bytes.
        key: &'a [u8],
        /// Only versions below this one; 0 = from the newest.
        before: u32,
        /// 1 to [`LIMIT_MAX`].
        limit: u32,
    },
    /// Records of a stream.
    Scan {
        /// Valid stream name.
        stream: &'a [u8],
        /// Text of a [`crate::Cursor`]; empty = from the beginning.
        cursor: &'a [u8],
        /// 1 to [`LIMIT_MAX`].
        limit: u32,
    },
    /// Records of a stream from the cursor on, waiting for new ones.
    Tail {
        /// Valid stream name.
        stream: &'a [u8],
        /// Text of a [`crate::Cursor`]; empty = from the beginning.
        cursor: &'a [u8],
        /// 1 to [`LIMIT_MAX`].
        limit: u32,
        /// 0 to [`WAIT_MS_MAX`].
        wait_ms: u32,
    },
    /// Asks for the mark.
    Ping,
    /// Asks for the map.
    Topology,
    /// Asks for the streams.
    Streams,
}

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest frame, header included.
    pub frame_bytes_max: u32,
    /// Longest payload of one record.
    pub payload_bytes_max: u32,
}

/// What stands at the start of `bytes`.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// Not a whole frame yet.
    Incomplete {
        /// At least so many bytes in all are wanted (header known: the frame's length).
        needed: usize,
    },
    /// A whole request.
    Request {
        /// Bytes of the frame.
        consumed: usize,
        /// Request id to answer under.
        id: u64,
        /// What it asks.
        request: Request<'a>,
    },
    /// A whole frame whose content is refused; the connection goes on behind it.
    Refused {
        /// Bytes of the frame.
        consumed: usize,
        /// Request id to answer under.
        id: u64,
        /// Opcode to answer under.
        opcode: u8,
        /// What to answer.
        refusal: Refusal,
    },
    /// The stream cannot be trusted any more: answer and close.
    Broken(Refusal),
}

/// Reads what stands at the start of `bytes`.
#[inline]
pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Parsed<'a> {
    let Some(header) = FrameHeader::read(bytes) else {
        return Parsed::Incomplete {
            needed: FRAME_HEADER_BYTES,
        };
    };
    let consumed = header.frame_bytes as usize;
    if consumed < FRAME_HEADER_BYTES || header.frame_bytes > limits.frame_bytes_max {
        return Parsed::Broken(refuse_frame_bytes(bytes, header.frame_bytes, limits));
    }
    let Some(frame) = bytes.get(..consumed) else {
        return Parsed::Incomplete { needed: consumed };
    };
    let id = header.request_id;
    match parse_body(&header, &frame[FRAME_HEADER_BYTES..], limits) {
        Ok(request) => Parsed::Request {
            consumed,
            id,
            request,
        },
        Err(refusal) => Parsed::Refused {
            consumed,
            id,
            opcode: header.opcode,
            refusal: *refusal,
        },
    }
}

/// Refusals are boxed inside the parser: they are rare, and an inline one would make every good result larger.
type Parse<T> = Result<T, Box<Refusal>>;

#[cold]
fn malformed<T>(message: impl Into<String>) -> Parse<T> {
    Err(Box::new(Refusal::new(Code::Malformed, message)))
}

#[cold]
fn short<T>(what: &str) -> Parse<T> {
    malformed(format!(
        "{what} frame ends before its fields do: check the lengths against PROTOCOL.md"
    ))
}

#[cold]
fn refuse_frame_bytes(bytes: &[u8], frame_bytes: u32, limits: &Limits) -> Refusal {
    let looks_like_http = [&b"GET "[..], b"POST", b"PUT ", b"HEAD", b"DELE", b"OPTI"]
        .iter()
        .any(|method| bytes.starts_with(method));
    if looks_like_http {
        return Refusal::new(
            Code::Malformed,
            "this is the native port and the bytes are HTTP: connect to the HTTP port",
        );
    }
    if (frame_bytes as usize) < FRAME_HEADER_BYTES {
        return Refusal::new(
            Code::Malformed,
            format!(
                "frame_bytes is {frame_bytes}: it counts the {FRAME_HEADER_BYTES} header bytes too; the connection closes"
            ),
        );
    }
    Refusal::new(
        Code::TooLarge,
        format!(
            "frame_bytes is {frame_bytes}: keep frames within {} bytes; the connection closes",
            limits.frame_bytes_max
        ),
    )
}

#[inline]
fn parse_body<'a>(header: &FrameHeader, body: &'a [u8], limits: &Limits) -> Parse<Request<'a>> {
    if header.flags != 0 || header.code != 0 {
        return malformed("flags and code of a request are reserved: send 0 in both");
    }
    if header.opcode == opcode::APPEND {
        return Append::parse(body, limits).map(Request::Append);
    }
    parse_other(header.opcode, Reader::new(body))
}

fn parse_other(op: u8, mut body: Reader<'_>) -> Parse<Request<'_>> {
    let name = match op {
        opcode::HELLO => "hello",
        opcode::GET => "get",
        opcode::HISTORY => "history",
        opcode::SCAN => "scan",
        opcode::TAIL => "tail",
        opcode::PING => "ping",
        opcode::TOPOLOGY => "topology",
        opcode::STREAMS => "streams",
        unknown => {
            return Err(Box::new(Refusal::new(
                Code::Unsupported,
                format!("opcode {unknown} is not known: use 1 to 9 of PROTOCOL.md"),
            )));
        }
    };
    let Some(request) = fields(op, &mut body) else {
        return short(name);
    };
    if !body.is_empty() {
        return malformed(format!(
            "{name} frame goes on for {} bytes behind its fields: check the lengths against PROTOCOL.md",
            body.rest.len()
        ));
    }
    let (stream, key) = match &request {
        Request::Get { stream, key } | Request::History { stream, key, .. } => (stream, Some(key)),
        Request::Scan { stream, .. } | Request::Tail { stream, .. } => (stream, None),
        _ => return Ok(request),
    };
    if !stream_name_is_valid(stream) {
        return Err(Box::new(refuse_stream_name(stream)));
    }
    if let Some(key) = key
        && (key.is_empty() || key.len() > KEY_BYTES_MAX)
    {
        return Err(Box::new(refuse_key(key.len())));
    }
    Ok(request)
}

/// The fields of every frame but append; `None` when the body ends before them.
fn fields<'a>(op: u8, body: &mut Reader<'a>) -> Option<Request<'a>> {
    Some(match op {
        opcode::HELLO => {
            let version = body.u16()?;
            let token_bytes = body.u16()?;
            Request::Hello {
                version,
                token: body.bytes(usize::from(token_bytes))?,
            }
        }
        opcode::GET => {
            let [stream_bytes, key_bytes] = [body.u16()?, body.u16()?];
            Request::Get {
                stream: body.bytes(usize::from(stream_bytes))?,
                key: body.bytes(usize::from(key_bytes))?,
            }
        }
        opcode::HISTORY => {
            let [stream_bytes, key_bytes] = [body.u16()?, body.u16()?];
            let [before, limit] = [body.u32()?, body.u32()?];
            Request::History {
                stream: body.bytes(usize::from(stream_bytes))?,
                key: body.bytes(usize::from(key_bytes))?,
                before,
                limit: page_limit(limit),
            }
        }
        opcode::SCAN => {
            let [stream_bytes, cursor_bytes] = [body.u16()?, body.u16()?];
            let limit = page_limit(body.u32()?);
            Request::Scan {
                stream: body.bytes(usize::from(stream_bytes))?,
                cursor: body.bytes(usize::from(cursor_bytes))?,
                limit,
            }
        }
        opcode::TAIL => {
            let [stream_bytes, cursor_bytes] = [body.u16()?, body.u16()?];
            let [limit, wait_ms] = [body.u32()?, body.u32()?];
            Request::Tail {
                stream: body.bytes(usize::from(stream_bytes))?,
                cursor: body.bytes(usize::from(cursor_bytes))?,
                limit: page_limit(limit),
                wait_ms: wait_ms.min(WAIT_MS_MAX),
            }
        }
        opcode::PING => Request::Ping,
        opcode::TOPOLOGY => Request::Topology,
        _ => Request::Streams,
    })
}

/// 0 asks for the default; more than the maximum is the maximum.
fn page_limit(limit: u32) -> u32 {
    match limit {
        0 => LIMIT_DEFAULT,
        limit => limit.min(LIMIT_MAX),
    }
}
