//! Native requests: from a connection's bytes to work, one frame after the other.
//!
//! The hot path is an append whose records all belong here: it is appended and its reply encoded on the spot (`append`),
//! gated on its last lsn; a get whose record is in memory is answered on the spot, too (`get`). Everything else becomes a
//! job. It does not know how a frame is laid out (`wire::native`), or how an owner works on what it is asked.

mod append;
mod get;

use index::Digest;
use wire::native::{self, Parsed, Request, opcode};
use wire::{Code, Cursor, Refusal};

use crate::conns::Connection;
use crate::core::Core;
use crate::hop::Ask;
use crate::jobs::{Asker, ScanWork, Voice, Work};
use crate::metrics::Protocol;
use crate::outbox::{Operation, Released};
use crate::partition::{Later, refuse};

/// Frames understood before the first of them is applied.
const GROUP_FRAMES: usize = 32;

struct Frame<'a> {
    consumed: usize,
    id: u64,
    what: What<'a>,
    /// Of the frame's key, its index line on the way.
    digest: Option<Digest>,
}

enum What<'a> {
    Request(Request<'a>),
    Refused(u8, Refusal),
    Broken(Refusal),
}

/// How far a connection's bytes were used, and what stopped it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    pub bytes: usize,
    /// Bytes that the next request needs in all, when it is known.
    pub needed: usize,
}

impl<S> Core<S> {
    /// Work on as many frames of `bytes` as are whole and can be taken.
    pub(crate) fn native_input(&mut self, conn: &mut Connection, bytes: &[u8]) -> Used {
        let limits = native::Limits {
            frame_bytes_max: self.shared.bounds.frame_bytes_max,
            payload_bytes_max: self.shared.bounds.payload_bytes_max,
        };
        let mut used = 0;
        while !conn.stalled && !conn.closing && !self.must_wait(conn) {
            // A group of frames is understood and its keys hashed, and every index line asked for, before the first is
            // applied: the cache misses of the group overlap.
            let mut group: Vec<Frame<'_>> = Vec::new();
            let (mut at, mut needed) = (used, None);
            while group.len() < GROUP_FRAMES {
                match native::parse(&bytes[at..], &limits) {
                    Parsed::Incomplete { needed: wanted } => {
                        needed = Some(wanted);
                        break;
                    }
                    Parsed::Request {
                        consumed,
                        id,
                        request,
                    } => {
                        at += consumed;
                        let digest = self.look_ahead(&request);
                        group.push(Frame {
                            consumed,
                            id,
                            what: What::Request(request),
                            digest,
                        });
                    }
                    Parsed::Refused {
                        consumed,
                        id,
                        opcode,
                        refusal,
                    } => {
                        at += consumed;
                        group.push(Frame {
                            consumed,
                            id,
                            what: What::Refused(opcode, refusal),
                            digest: None,
                        });
                    }
                    Parsed::Broken(refusal) => {
                        group.push(Frame {
                            consumed: bytes.len() - at,
                            id: 0,
                            what: What::Broken(refusal),
                            digest: None,
                        });
                        break;
                    }
                }
            }
            if group.len() > 1 {
                for digest in group.iter().filter_map(|f| f.digest) {
                    self.partition.index.prefetch_slot(digest);
                }
                for frame in &group {
                    if let (What::Request(Request::Get { .. }), Some(digest)) =
                        (&frame.what, frame.digest)
                    {
                        self.partition.prefetch_record(digest);
                    }
                }
            }
            for frame in group {
                if conn.stalled || conn.closing || self.must_wait(conn) {
                    return Used {
                        bytes: used,
                        needed: 0,
                    };
                }
                match frame.what {
                    What::Request(request) => {
                        let operation = operation_of(&request);
                        if let Err(later) =
                            self.native_request(conn, frame.id, request, frame.digest)
                        {
                            self.stall(conn, later);
                            return Used {
                                bytes: used,
                                needed: 0,
                            };
                        }
                        self.metrics.requests(Protocol::Native, operation, 1);
                    }
                    // Who has not shown the token learns nothing else.
                    What::Refused(op, _) if !conn.authorised && op != opcode::HELLO => {
                        self.native_refuse(conn, frame.id, op, &token_is_missing())
                    }
                    What::Refused(op, refusal) => self.native_refuse(conn, frame.id, op, &refusal),
                    What::Broken(refusal) => {
                        self.native_refuse(conn, 0, 0, &refusal);
                        conn.closing = true;
                    }
                }
                used += frame.consumed;
            }
            if let Some(needed) = needed {
                return Used {
                    bytes: used,
                    needed,
                };
            }
        }
        Used {
            bytes: used,
            needed: 0,
        }
    }

    /// Digest of the key that a frame is about, if it is about one key of this shard.
    #[inline]
    fn look_ahead(&self, request: &Request<'_>) -> Option<Digest> {
        let (stream, key) = match request {
            Request::Append(append) if append.records == 1 => {
                (append.stream, append.iter().next()?.key)
            }
            Request::Get { stream, key } => (*stream, *key),
            _ => return None,
        };
        self.partition.look_ahead(stream, key)
    }

    fn native_refuse(&mut self, conn: &mut Connection, id: u64, opcode: u8, refusal: &Refusal) {
        self.native_refuse_behind(conn, 0, id, opcode, refusal);
    }

    /// A refusal that leaves once `lsn` is durable.
    fn native_refuse_behind(
        &mut self,
        conn: &mut Connection,
        lsn: u64,
        id: u64,
        opcode: u8,
        refusal: &Refusal,
    ) {
        self.count_refusal(refusal);
        let gate = self.partition.gate(lsn);
        let mark = self.mark();
        let mark = native::ReplyMark {
            durable_lsn: mark.durable_lsn.max(gate),
            ..mark
        };
        let released = Released {
            operation: Operation::Other,
            started_ns: self.now.monotonic_ns,
            count: 1,
        };
        conn.out.reply(gate, released, |out| {
            native::error_reply(out, id, opcode, mark, refusal)
        });
    }

    fn native_request(
        &mut self,
        conn: &mut Connection,
        id: u64,
        request: Request<'_>,
        digest: Option<Digest>,
    ) -> Result<(), Later> {
        let op = opcode_of(&request);
        if !conn.authorised && !matches!(request, Request::Hello { .. }) {
            self.native_refuse(conn, id, op, &token_is_missing());
            return Ok(());
        }
        let heavy = matches!(
            request,
            Request::History { .. } | Request::Scan { .. } | Request::Tail { .. }
        );
        if heavy && let Some(refusal) = self.too_much_unread() {
            self.native_refuse(conn, id, op, &refusal);
            return Ok(());
        }
        match request {
            Request::Append(append) => return self.native_append(conn, id, &append, digest),
            Request::Get { stream, key } => self.native_get(conn, id, stream, key, digest),
            Request::History {
                stream,
                key,
                before,
                limit,
            } => {
                let owner = self.owner_of(key);
                let asker = Asker::heavy_on(conn, Voice::Native { id, opcode: op });
                let ticket = self.jobs.add(asker, 1, Work::History);
                self.ask(
                    owner,
                    ticket,
                    &Ask::History {
                        stream,
                        key,
                        before,
                        limit,
                    },
                );
            }
            Request::Scan {
                stream,
                cursor,
                limit,
            } => match self.cursor(cursor) {
                Ok(cursor) => {
                    let asker = Asker::heavy_on(conn, Voice::Native { id, opcode: op });
                    self.start_scan(asker, stream, cursor, limit);
                }
                Err(refusal) => self.native_refuse(conn, id, op, &refusal),
            },
            Request::Tail {
                stream,
                cursor,
                limit,
                wait_ms,
            } => match self.cursor(cursor) {
                Ok(cursor) => {
                    let asker = Asker::heavy_on(conn, Voice::Native { id, opcode: op });
                    let wait_until_ns = self.now.monotonic_ns + u64::from(wait_ms) * 1_000_000;
                    let cursor = cursor.unwrap_or_else(|| self.first_cursor());
                    self.start_tail(
                        asker,
                        ScanWork::new(stream, Some(cursor), limit, wait_until_ns, false),
                    );
                }
                Err(refusal) => self.native_refuse(conn, id, op, &refusal),
            },
            Request::Streams => {
                let asker = self.asker(conn, Voice::Native { id, opcode: op });
                self.start_streams(asker, None);
            }
            Request::Hello { version, token } => self.native_hello(conn, id, version, token),
            Request::Ping => self.native_bytes(conn, id, op, &[]),
            Request::Topology => {
                let mut body = Vec::new();
                self.shared.topology.encode(&mut body);
                self.native_bytes(conn, id, op, &body);
            }
        }
        Ok(())
    }

    fn native_bytes(&mut self, conn: &mut Connection, id: u64, op: u8, body: &[u8]) {
        let mark = self.mark();
        let released = Released {
            operation: Operation::Other,
            started_ns: conn.input_since_ns,
            count: 1,
        };
        conn.out.reply(0, released, |out| {
            native::bytes_reply(out, id, op, mark, body)
        });
    }

    fn native_hello(&mut self, conn: &mut Connection, id: u64, version: u16, token: &[u8]) {
        if version != native::PROTOCOL_VERSION {
            let message = format!(
                "protocol version {version} is not spoken here: this server speaks {}",
                native::PROTOCOL_VERSION
            );
            self.native_refuse(conn, id, opcode::HELLO, &refuse(Code::Unsupported, message));
            conn.closing = true;
            return;
        }
        if !self.token_is_right(token) {
            self.native_refuse(
                conn,
                id,
                opcode::HELLO,
                &refuse(Code::Unauthorized, "the token is not this server's"),
            );
            conn.closing = true;
            return;
        }
        conn.authorised = true;
        let mut body = Vec::new();
        self.shared.topology.encode(&mut body);
        self.native_bytes(conn, id, opcode::HELLO, &body);
    }

    fn cursor(&self, text: &[u8]) -> Result<Option<Cursor>, Refusal> {
        if text.is_empty() {
            return Ok(None);
        }
        let cursor = Cursor::decode(text).ok_or_else(|| {
            refuse(
                Code::Malformed,
                "the cursor is not one that this server gave: start without one",
            )
        })?;
        self.check_cursor(&cursor)?;
        Ok(Some(cursor))
    }

    /// Cursors of a timeline that this directory never had are refused by name.
    pub(crate) fn check_cursor(&self, cursor: &Cursor) -> Result<(), Refusal> {
        let mut logs = cursor.next.iter().map(|(log, _)| log);
        let why = if cursor.timeline != self.shared.timeline {
            format!(
                "the cursor is of timeline {}, this directory is on timeline {}",
                cursor.timeline, self.shared.timeline
            )
        } else if let Some(log) = logs.find(|log| !self.shared.logs.contains(log)) {
            format!("the cursor names log {log}, which this directory does not have")
        } else {
            return Ok(());
        };
        let message = format!("{why}: start again without a cursor");
        Err(refuse(Code::CursorUnknown, message))
    }
}

fn opcode_of(request: &Request<'_>) -> u8 {
    match request {
        Request::Hello { .. } => opcode::HELLO,
        Request::Append(_) => opcode::APPEND,
        Request::Get { .. } => opcode::GET,
        Request::History { .. } => opcode::HISTORY,
        Request::Scan { .. } => opcode::SCAN,
        Request::Tail { .. } => opcode::TAIL,
        Request::Ping => opcode::PING,
        Request::Topology => opcode::TOPOLOGY,
        Request::Streams => opcode::STREAMS,
    }
}

#[cold]
fn token_is_missing() -> Refusal {
    refuse(
        Code::Unauthorized,
        "this server wants a token: send it in a hello frame first",
    )
}

fn operation_of(request: &Request<'_>) -> Operation {
    match request {
        Request::Append(_) => Operation::Append,
        Request::Get { .. } => Operation::Get,
        Request::History { .. } => Operation::History,
        Request::Scan { .. } | Request::Tail { .. } => Operation::Scan,
        _ => Operation::Other,
    }
}
