//! Native requests: from a connection's bytes to work, one frame after the other.
//!
//! The hot path is an append whose records all belong here: it is appended and its reply encoded on the spot, gated on
//! its last lsn. Everything else becomes a job.

use index::Digest;
use wire::native::{self, Append, AppendIter, AppendPart, Parsed, Request, opcode};
use wire::{Code, Cursor, Refusal};

use crate::conns::Connection;
use crate::core::{Core, State};
use crate::hop::{Ask, Origin};
use crate::jobs::{AppendForm, AppendWork, Asker, ScanWork, Voice, Work};
use crate::metrics::Protocol;
use crate::outbox::{Operation, Released};
use crate::owner::Later;
use crate::partition::{Found, NotAppended, Once, Unit, append_gate, refuse};
use crate::records::record_out;

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
                        if self
                            .native_request(conn, frame.id, request, frame.digest)
                            .is_err()
                        {
                            self.stall(conn);
                            return Used {
                                bytes: used,
                                needed: 0,
                            };
                        }
                    }
                    What::Refused(opcode, refusal) => {
                        self.native_refuse(conn, frame.id, opcode, &refusal)
                    }
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
        self.metrics
            .requests(Protocol::Native, operation_of(&request), 1);
        if !conn.authorised && !matches!(request, Request::Hello { .. }) {
            let refusal = refuse(
                Code::Unauthorized,
                "this server wants a token: send it in a hello frame first",
            );
            self.native_refuse(conn, id, op, &refusal);
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

    fn native_append(
        &mut self,
        conn: &mut Connection,
        id: u64,
        append: &Append<'_>,
        digest: Option<Digest>,
    ) -> Result<(), Later> {
        let once = match append.producer {
            None => Once::No,
            Some(p) => Once::Producer {
                id: p.id,
                sequence: p.sequence,
                fingerprint: crate::dedup::fingerprint(append.body()),
            },
        };
        let (owner, repeat_only) = match self.single_owner(append.body(), append.records) {
            Some(owner) => (owner, false),
            // It may be a repeat from before the shards were changed: then the owner of its first record knows it.
            None if once != Once::No => {
                let first = append.iter().next();
                (first.map_or(self.id, |r| self.owner_of(r.key)), true)
            }
            None => return self.native_append_split(conn, id, append),
        };
        if owner != self.id {
            let ask = Ask::Append {
                stream: append.stream,
                records: append.body(),
                count: append.records,
                durability: append.durability,
                once,
                want_versions: append.want_versions,
                tombstone_needs_live: false,
                repeat_only,
            };
            let asker = self.asker(
                conn,
                Voice::Native {
                    id,
                    opcode: opcode::APPEND,
                },
            );
            let work = AppendWork::new(
                append.durability,
                AppendForm::Many,
                append.records,
                append.body().len(),
            );
            let ticket = self.jobs.add(asker, 1, Work::Append(work));
            self.ask(owner, ticket, &ask);
            return Ok(());
        }
        if let Some(refusal) = self.not_ready() {
            self.native_refuse(conn, id, opcode::APPEND, &refusal);
            return Ok(());
        }
        let unit = Unit {
            stream: append.stream,
            records: append.iter(),
            count: append.records,
            once,
            tombstone_needs_live: false,
            repeat_only,
            digest,
        };
        let mut versions = std::mem::take(&mut self.versions);
        let result = self.partition.append(&unit, &mut versions);
        match result {
            Ok(done) => {
                self.count_append(&done, append.body().len());
                let gate = self
                    .partition
                    .gate(append_gate(append.durability, done.last_lsn));
                let mark = native::ReplyMark {
                    durable_lsn: self.partition.log.durable_lsn().max(gate),
                    ..self.mark()
                };
                let part = AppendPart {
                    log: mark.log,
                    records: done.records,
                    first_lsn: done.first_lsn,
                    durable_lsn: mark.durable_lsn,
                };
                let shown: &[u32] = if append.want_versions { &versions } else { &[] };
                let released = Released {
                    operation: Operation::Append,
                    started_ns: conn.input_since_ns,
                    count: 1,
                };
                let now = conn.out.reply(gate, released, |out| {
                    native::append_reply(out, id, mark, append.durability, &[part], shown)
                });
                if now {
                    self.latency.record(&released, self.now.monotonic_ns);
                }
            }
            Err(NotAppended::Refused(refusal)) => {
                self.native_refuse(conn, id, opcode::APPEND, &refusal)
            }
            Err(NotAppended::RefusedBehind(refusal, lsn)) => {
                self.native_refuse_behind(conn, lsn, id, opcode::APPEND, &refusal)
            }
            Err(NotAppended::Later) => {
                self.versions = versions;
                return Err(Later);
            }
        }
        self.versions = versions;
        Ok(())
    }

    /// The one shard that all records belong to, if there is one.
    #[inline]
    pub(crate) fn single_owner(&self, body: &[u8], records: u32) -> Option<usize> {
        if self.shards() == 1 {
            return Some(0);
        }
        let mut owners = AppendIter::new(body, records).map(|r| self.owner_of(r.key));
        let first = owners.next()?;
        owners.all(|o| o == first).then_some(first)
    }

    fn native_append_split(
        &mut self,
        conn: &mut Connection,
        id: u64,
        append: &Append<'_>,
    ) -> Result<(), Later> {
        let mut work = AppendWork::new(
            append.durability,
            AppendForm::Many,
            append.records,
            append.body().len(),
        );
        if append.want_versions {
            work.owners = append
                .iter()
                .map(|r| self.shared.logs[self.owner_of(r.key)] as u16)
                .collect();
        }
        self.sort_by_owner(append.body(), append.records);
        let template = Ask::Append {
            stream: append.stream,
            records: [].as_slice(),
            count: 0,
            durability: append.durability,
            once: Once::No,
            want_versions: append.want_versions,
            tombstone_needs_live: false,
            repeat_only: false,
        };
        self.append_split(
            conn,
            Voice::Native {
                id,
                opcode: opcode::APPEND,
            },
            work,
            &template,
        )
    }

    /// Sort a request's records into `split`, by shard.
    pub(crate) fn sort_by_owner(&mut self, body: &[u8], records: u32) {
        let mut split = std::mem::take(&mut self.split);
        for (bytes, count) in &mut split {
            bytes.clear();
            *count = 0;
        }
        let mut iter = AppendIter::new(body, records);
        while let Some((raw, record)) = iter.next_raw() {
            let (bytes, count) = &mut split[self.owner_of(record.key)];
            bytes.extend_from_slice(raw);
            *count += 1;
        }
        self.split = split;
    }

    /// Ask every shard that has records in `split`; our own part first, because only it can ask to wait.
    pub(crate) fn append_split(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        work: AppendWork,
        template: &Ask<&[u8]>,
    ) -> Result<(), Later> {
        let split = std::mem::take(&mut self.split);
        let asker = self.asker(conn, voice);
        let parts = split.iter().filter(|(_, count)| *count > 0).count() as u32;
        let ticket = self.jobs.add(asker, parts, Work::Append(work));
        let part_of = |shard: usize| {
            let mut ask = template.map(|bytes| *bytes);
            if let Ask::Append { records, count, .. } = &mut ask {
                *records = split[shard].0.as_slice();
                *count = split[shard].1;
            }
            ask
        };
        let mut result = Ok(());
        if split[self.id].1 > 0 {
            result = self.serve(
                Origin {
                    shard: self.id,
                    ticket,
                },
                &part_of(self.id),
            );
        }
        match result {
            Ok(()) => {
                for shard in (0..split.len()).filter(|s| *s != self.id && split[*s].1 > 0) {
                    self.hops += 1;
                    self.outbound[shard].ask(ticket, &part_of(shard));
                }
            }
            Err(Later) => self.forget(conn, ticket),
        }
        self.split = split;
        result
    }

    fn native_get(
        &mut self,
        conn: &mut Connection,
        id: u64,
        stream: &[u8],
        key: &[u8],
        digest: Option<Digest>,
    ) {
        let owner = self.owner_of(key);
        if owner == self.id
            && self.state == State::Ready
            && let Some(stream_id) = self.partition.streams.lookup(stream)
        {
            let log = self.log_number();
            let mark = self.mark();
            let (ended, failed) = (
                self.partition.ended(stream_id),
                self.partition.log.failed().is_some(),
            );
            if let Found::Memory { record, entry } = self.partition.find(stream_id, key, digest)
                && !entry.tombstone
                && record.stream == stream_id
                && record.key == key
                && !ended.has(&record)
            {
                let gate = if entry.lsn > mark.durable_lsn {
                    entry.lsn
                } else {
                    0
                };
                if gate > 0 && failed {
                    let refusal = self.never_durable();
                    return self.native_refuse(conn, id, opcode::GET, &refusal);
                }
                let mark = native::ReplyMark {
                    durable_lsn: mark.durable_lsn.max(gate),
                    ..mark
                };
                let released = Released {
                    operation: Operation::Get,
                    started_ns: conn.input_since_ns,
                    count: 1,
                };
                if conn.out.reply(gate, released, |out| {
                    native::get_reply(out, id, mark, &record_out(log, &record))
                }) {
                    self.latency.record(&released, self.now.monotonic_ns);
                }
                return;
            }
        }
        let asker = self.asker(
            conn,
            Voice::Native {
                id,
                opcode: opcode::GET,
            },
        );
        let ticket = self.jobs.add(
            asker,
            1,
            Work::Get {
                if_none_match: None,
            },
        );
        self.ask(owner, ticket, &Ask::Get { stream, key });
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
        if cursor.timeline != self.shared.timeline
            || cursor
                .next
                .iter()
                .any(|(log, _)| !self.shared.logs.contains(log))
        {
            let message = format!(
                "the cursor is of timeline {}, this directory is on timeline {}: start again without a cursor",
                cursor.timeline, self.shared.timeline
            );
            return Err(refuse(Code::CursorUnknown, message));
        }
        Ok(())
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

fn operation_of(request: &Request<'_>) -> Operation {
    match request {
        Request::Append(_) => Operation::Append,
        Request::Get { .. } => Operation::Get,
        Request::History { .. } => Operation::History,
        Request::Scan { .. } | Request::Tail { .. } => Operation::Scan,
        _ => Operation::Other,
    }
}

impl AppendWork {
    /// `bytes`: length of the records.
    pub fn new(
        durability: wire::Durability,
        form: AppendForm,
        records: u32,
        bytes: usize,
    ) -> AppendWork {
        AppendWork {
            parts: Vec::new(),
            durability,
            form,
            records,
            bytes,
            owners: Vec::new(),
            versions: Vec::new(),
            refusal: None,
        }
    }
}

impl Asker {
    /// Asker of a job on `conn`, with a place in its outbox.
    pub(crate) fn on(conn: &mut Connection, voice: Voice) -> Asker {
        conn.jobs += 1;
        Asker {
            conn: conn.id,
            hole: conn.out.hole(),
            voice,
            started_ns: conn.input_since_ns,
            heavy: false,
        }
    }

    /// The same for a history, scan or tail.
    pub(crate) fn heavy_on(conn: &mut Connection, voice: Voice) -> Asker {
        conn.heavy += 1;
        Asker {
            heavy: true,
            ..Asker::on(conn, voice)
        }
    }
}
