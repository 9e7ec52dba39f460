//! HTTP requests: from a connection's bytes to work. Replies keep the order of requests; the outbox sees to that.

use wire::http::{self, Parsed, Request, Route, reply};
use wire::native::{AppendBuilder, AppendPart};
use wire::{AppendRecord, Code, Condition, ContentType, Durability, Refusal, ndjson};

use crate::conns::Connection;
use crate::core::{Core, State};
use crate::hop::Ask;
use crate::jobs::{AppendForm, AppendWork, Asker, ScanWork, Voice, Work};
use crate::metrics::Protocol;
use crate::native_input::Used;
use crate::outbox::{Operation, Released};
use crate::owner::Later;
use crate::partition::{Found, NotAppended, Once, Unit, append_gate, refuse};
use crate::records::record_out;
use crate::render;

/// One HTTP append, single or many, after its body has been understood.
struct Posted<'a> {
    stream: &'a [u8],
    /// Raw records in wire form.
    records: &'a [u8],
    count: u32,
    durability: Durability,
    once: Once,
    form: AppendForm,
}

impl<S> Core<S> {
    /// Work on as many requests of `bytes` as are whole and can be taken.
    pub(crate) fn http_input(&mut self, conn: &mut Connection, bytes: &[u8]) -> Used {
        let limits = http::Limits {
            head_bytes_max: 16 * 1024,
            body_bytes_max: self.shared.bounds.body_bytes_max,
        };
        let mut used = 0;
        while used < bytes.len() && !conn.stalled && !conn.closing && !self.must_wait(conn) {
            match http::parse_on(&bytes[used..], &limits, &mut conn.progress) {
                Parsed::Incomplete {
                    needed,
                    expects_continue,
                } => {
                    if expects_continue && !conn.continue_sent {
                        conn.continue_sent = true;
                        conn.out
                            .reply(0, other(conn), |out| out.extend_from_slice(reply::CONTINUE));
                    }
                    return Used {
                        bytes: used,
                        needed,
                    };
                }
                Parsed::Request {
                    consumed,
                    request,
                    keep_alive,
                } => {
                    if self.http_request(conn, request, keep_alive).is_err() {
                        self.stall(conn);
                        break;
                    }
                    conn.continue_sent = false;
                    conn.closing |= !keep_alive;
                    used += consumed;
                }
                Parsed::Refused {
                    consumed,
                    refusal,
                    allow,
                    head,
                } => {
                    self.count_refusal(&refusal);
                    let voice = Voice::Http {
                        keep_alive: consumed.is_some(),
                        head,
                    };
                    let mark = self.mark();
                    conn.out.reply(0, other(conn), |out| {
                        render::refusal(out, &voice, mark, &refusal, allow)
                    });
                    conn.continue_sent = false;
                    match consumed {
                        Some(consumed) => used += consumed,
                        None => {
                            conn.closing = true;
                            used = bytes.len();
                        }
                    }
                }
            }
        }
        Used {
            bytes: used,
            needed: 0,
        }
    }

    fn http_request(
        &mut self,
        conn: &mut Connection,
        request: Request<'_>,
        keep_alive: bool,
    ) -> Result<(), Later> {
        let voice = Voice::Http {
            keep_alive,
            head: request.head,
        };
        self.metrics
            .requests(Protocol::Http, operation_of(&request.route), 1);
        let open = matches!(
            request.route,
            Route::Healthz | Route::Readyz | Route::OpenApi
        );
        if !open && !self.token_is_right(request.bearer.unwrap_or_default()) {
            let message = "this server wants a token: send it as `Authorization: Bearer TOKEN`";
            self.http_refuse(conn, voice, &refuse(Code::Unauthorized, message));
            return Ok(());
        }
        let heavy = matches!(
            request.route,
            Route::History { .. } | Route::Scan { .. } | Route::Tail { .. }
        );
        if heavy && let Some(refusal) = self.too_much_unread() {
            self.http_refuse(conn, voice, &refusal);
            return Ok(());
        }
        match request.route {
            Route::Append {
                stream,
                key,
                body,
                content_type,
                condition,
                idempotency_key,
                durability,
            } => {
                let record = AppendRecord {
                    key: &key,
                    payload: &body,
                    content_type,
                    tombstone: false,
                    condition,
                };
                return self.http_append_one(
                    conn,
                    voice,
                    stream,
                    &record,
                    idempotency_key,
                    durability,
                    AppendForm::One,
                );
            }
            Route::Delete {
                stream,
                key,
                condition,
                idempotency_key,
                durability,
            } => {
                let record = AppendRecord {
                    key: &key,
                    payload: &[],
                    content_type: ContentType::Code(0),
                    tombstone: true,
                    condition,
                };
                return self.http_append_one(
                    conn,
                    voice,
                    stream,
                    &record,
                    idempotency_key,
                    durability,
                    AppendForm::Delete,
                );
            }
            Route::AppendMany {
                stream,
                body,
                idempotency_key,
                durability,
            } => {
                return self.http_append_many(
                    conn,
                    voice,
                    stream,
                    &body,
                    idempotency_key,
                    durability,
                );
            }
            Route::Get {
                stream,
                key,
                if_none_match,
            } => self.http_get(conn, voice, stream.as_bytes(), &key, if_none_match),
            Route::History {
                stream,
                key,
                limit,
                before,
            } => {
                let owner = self.owner_of(&key);
                let asker = Asker::heavy_on(conn, voice);
                let ticket = self.jobs.add(asker, 1, Work::History);
                self.ask(
                    owner,
                    ticket,
                    &Ask::History {
                        stream: stream.as_bytes(),
                        key: &key,
                        before,
                        limit,
                    },
                );
            }
            Route::Scan {
                stream,
                cursor,
                limit,
            } => {
                if let Some(cursor) = &cursor
                    && let Err(refusal) = self.check_cursor(cursor)
                {
                    self.http_refuse(conn, voice, &refusal);
                    return Ok(());
                }
                let asker = Asker::heavy_on(conn, voice);
                self.start_scan(asker, stream.as_bytes(), cursor, limit);
            }
            Route::Tail {
                stream,
                cursor,
                wait_ms,
                limit,
                event_stream,
            } => {
                let cursor = cursor.unwrap_or_else(|| self.first_cursor());
                if let Err(refusal) = self.check_cursor(&cursor) {
                    self.http_refuse(conn, voice, &refusal);
                    return Ok(());
                }
                if event_stream {
                    conn.out.reply(0, other(conn), reply::event_stream_head);
                }
                let wait_until_ns = self.now.monotonic_ns + u64::from(wait_ms) * 1_000_000;
                let asker = Asker::heavy_on(conn, voice);
                self.start_tail(
                    asker,
                    ScanWork::new(
                        stream.as_bytes(),
                        Some(cursor),
                        limit,
                        wait_until_ns,
                        event_stream,
                    ),
                );
            }
            Route::PutStream { stream, policy } => {
                return self.http_put_stream(conn, voice, stream.as_bytes(), policy);
            }
            Route::GetStream { stream } => {
                let asker = Asker::on(conn, voice);
                self.start_streams(asker, Some(stream.as_bytes()));
            }
            Route::ListStreams => {
                let asker = Asker::on(conn, voice);
                self.start_streams(asker, None);
            }
            Route::Metrics => {
                let asker = Asker::on(conn, voice);
                self.ask_all(asker, Work::Metrics { shards: Vec::new() }, &Ask::Metrics);
            }
            Route::Topology => {
                let text = self.shared.topology.to_json();
                self.http_body(conn, voice, 200, "application/json", text.as_bytes());
            }
            Route::OpenApi => self.http_body(
                conn,
                voice,
                200,
                "application/json",
                http::openapi().as_bytes(),
            ),
            Route::Healthz => {
                self.http_body(conn, voice, 200, "text/plain; charset=utf-8", b"ok\n")
            }
            Route::Readyz => self.http_ready(conn, voice),
        }
        Ok(())
    }

    fn http_ready(&mut self, conn: &mut Connection, voice: Voice) {
        let refusal = match (&self.state, self.partition.log.failed()) {
            _ if self.draining => Some(crate::partition::refuse_for(
                Code::Unavailable,
                1000,
                "draining: this server is shutting down",
            )),
            (State::Ready, Some(why)) => Some(crate::partition::refuse_for(
                Code::Unavailable,
                60_000,
                format!("a log write failed: {why}"),
            )),
            (State::Ready, None) if self.partition.log.disk_full() => {
                Some(crate::partition::refuse_for(
                    Code::DiskFull,
                    1000,
                    "the disk is full: reads go on, writes are refused",
                ))
            }
            (State::Ready, None) if self.partition.log.no_segment().is_some() => {
                Some(crate::partition::refuse_for(
                    Code::Unavailable,
                    1000,
                    "no segment can be made: reads go on, writes are refused once this one is full",
                ))
            }
            (State::Ready, None) if !self.is_process_ready() => Some(crate::partition::refuse_for(
                Code::Unavailable,
                1000,
                "another shard takes no writes: it recovers, has stopped, or has no space",
            )),
            (State::Ready, None) => None,
            _ => self.not_ready(),
        };
        match refusal {
            Some(refusal) => self.http_refuse(conn, voice, &refusal),
            None => self.http_body(conn, voice, 200, "text/plain; charset=utf-8", b"ready\n"),
        }
    }

    fn http_body(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        status: u16,
        content_type: &str,
        body: &[u8],
    ) {
        let mark = self.mark();
        conn.out.reply(0, other(conn), |out| {
            render::body(out, &voice, mark, status, content_type, body)
        });
    }

    fn http_refuse(&mut self, conn: &mut Connection, voice: Voice, refusal: &Refusal) {
        self.http_refuse_behind(conn, 0, voice, refusal);
    }

    /// A refusal that leaves once `lsn` is durable.
    fn http_refuse_behind(
        &mut self,
        conn: &mut Connection,
        lsn: u64,
        voice: Voice,
        refusal: &Refusal,
    ) {
        self.count_refusal(refusal);
        let (gate, mark) = (self.partition.gate(lsn), self.mark());
        conn.out.reply(gate, other(conn), |out| {
            render::refusal(out, &voice, mark, refusal, None)
        });
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one per part of the request line and its headers; a struct would only rename them"
    )]
    fn http_append_one(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        stream: &str,
        record: &AppendRecord<'_>,
        idempotency_key: Option<&[u8]>,
        durability: Durability,
        form: AppendForm,
    ) -> Result<(), Later> {
        if let Err(refusal) = record.check(self.shared.bounds.payload_bytes_max) {
            self.http_refuse(conn, voice, &refusal);
            return Ok(());
        }
        let mut frame = Vec::with_capacity(64 + record.key.len() + record.payload.len());
        let records = encode_records(&mut frame, std::iter::once(*record));
        let once = match idempotency_key {
            None => Once::No,
            Some(key) => {
                let scope = [stream.as_bytes(), record.key, key];
                Once::Key {
                    digest: crate::dedup::scope_digest(&scope),
                    fingerprint: crate::dedup::fingerprint(&frame[records..]),
                }
            }
        };
        let posted = Posted {
            stream: stream.as_bytes(),
            records: &frame[records..],
            count: 1,
            durability,
            once,
            form,
        };
        let owner = self.owner_of(record.key);
        self.http_post(conn, voice, &posted, owner)
    }

    /// Append to one shard: on the spot when it is this one.
    fn http_post(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        posted: &Posted<'_>,
        owner: usize,
    ) -> Result<(), Later> {
        let tombstone_needs_live = posted.form == AppendForm::Delete;
        if owner != self.id {
            let ask = Ask::Append {
                stream: posted.stream,
                records: posted.records,
                count: posted.count,
                durability: posted.durability,
                once: posted.once,
                want_versions: true,
                tombstone_needs_live,
                repeat_only: false,
            };
            let asker = Asker::on(conn, voice);
            let work = AppendWork::new(
                posted.durability,
                posted.form,
                posted.count,
                posted.records.len(),
            );
            let ticket = self.jobs.add(asker, 1, Work::Append(work));
            self.ask(owner, ticket, &ask);
            return Ok(());
        }
        if let Some(refusal) = self.not_ready() {
            self.http_refuse(conn, voice, &refusal);
            return Ok(());
        }
        let unit = Unit {
            stream: posted.stream,
            records: wire::native::AppendIter::new(posted.records, posted.count),
            count: posted.count,
            once: posted.once,
            tombstone_needs_live,
            repeat_only: false,
            digest: None,
        };
        let mut versions = std::mem::take(&mut self.versions);
        let result = self.partition.append(&unit, &mut versions);
        match result {
            Ok(done) => {
                self.count_append(&done, posted.records.len());
                let gate = self
                    .partition
                    .gate(append_gate(posted.durability, done.last_lsn));
                let mark = self.mark();
                let part = AppendPart {
                    log: mark.log,
                    records: done.records,
                    first_lsn: done.first_lsn,
                    durable_lsn: mark.durable_lsn.max(gate),
                };
                let released = Released {
                    operation: Operation::Append,
                    started_ns: conn.input_since_ns,
                    count: 1,
                };
                let now = conn.out.reply(gate, released, |out| {
                    render::appended(
                        out,
                        &voice,
                        mark,
                        posted.durability,
                        posted.form,
                        &[part],
                        &versions,
                    );
                });
                if now {
                    self.latency.record(&released, self.now.monotonic_ns);
                }
            }
            Err(NotAppended::Refused(refusal)) => self.http_refuse(conn, voice, &refusal),
            Err(NotAppended::RefusedBehind(refusal, lsn)) => {
                self.http_refuse_behind(conn, lsn, voice, &refusal)
            }
            Err(NotAppended::Later) => {
                self.versions = versions;
                return Err(Later);
            }
        }
        self.versions = versions;
        Ok(())
    }

    fn http_append_many(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        stream: &str,
        body: &[u8],
        idempotency_key: Option<&[u8]>,
        durability: Durability,
    ) -> Result<(), Later> {
        // Every line is understood before anything is appended anywhere.
        let mut lines = Vec::new();
        for line in ndjson::lines(body, self.shared.bounds.payload_bytes_max as usize) {
            match line {
                Ok(line) => lines.push(line),
                Err((number, why)) => {
                    let message =
                        format!("line {number}: {why}; nothing of this request was appended");
                    self.http_refuse(conn, voice, &refuse(Code::Malformed, message));
                    return Ok(());
                }
            }
        }
        if lines.is_empty() {
            let message =
                "the body has no lines: send one JSON object per line, {\"key\":…,\"value\":…}";
            self.http_refuse(conn, voice, &refuse(Code::Malformed, message));
            return Ok(());
        }
        let count = lines.len() as u32;
        let mut frame = Vec::with_capacity(body.len() + 64);
        let records = encode_records(
            &mut frame,
            lines.iter().map(|l| AppendRecord {
                key: l.key.as_bytes(),
                payload: &l.payload,
                content_type: l.content_type,
                tombstone: false,
                condition: Condition::None,
            }),
        );
        let records = &frame[records..];
        let once = match idempotency_key {
            None => Once::No,
            Some(key) => Once::Key {
                digest: crate::dedup::scope_digest(&[stream.as_bytes(), key]),
                fingerprint: crate::dedup::fingerprint(records),
            },
        };
        let form = AppendForm::Many;
        if let Some(owner) = self.single_owner(records, count) {
            let posted = Posted {
                stream: stream.as_bytes(),
                records,
                count,
                durability,
                once,
                form,
            };
            return self.http_post(conn, voice, &posted, owner);
        }
        self.sort_by_owner(records, count);
        let template = Ask::Append {
            stream: stream.as_bytes(),
            records: [].as_slice(),
            count: 0,
            durability,
            once,
            want_versions: false,
            tombstone_needs_live: false,
            repeat_only: false,
        };
        self.append_split(
            conn,
            voice,
            AppendWork::new(durability, form, count, records.len()),
            &template,
        )
    }

    fn http_get(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        stream: &[u8],
        key: &[u8],
        if_none_match: Option<u32>,
    ) {
        let owner = self.owner_of(key);
        if owner == self.id
            && self.state == State::Ready
            && let Some(stream_id) = self.partition.streams.lookup(stream)
        {
            let (log, mark, ended) = (
                self.log_number(),
                self.mark(),
                self.partition.ended(stream_id),
            );
            let failed = self.partition.log.failed().is_some();
            if let Found::Memory { record, entry } = self.partition.find(stream_id, key, None)
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
                    return self.http_refuse(conn, voice, &refusal);
                }
                let released = Released {
                    operation: Operation::Get,
                    started_ns: conn.input_since_ns,
                    count: 1,
                };
                let now = conn.out.reply(gate, released, |out| {
                    render::record(out, &voice, mark, &record_out(log, &record), if_none_match);
                });
                if now {
                    self.latency.record(&released, self.now.monotonic_ns);
                }
                return;
            }
        }
        let asker = Asker::on(conn, voice);
        let ticket = self.jobs.add(asker, 1, Work::Get { if_none_match });
        self.ask(owner, ticket, &Ask::Get { stream, key });
    }

    fn http_put_stream(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        stream: &[u8],
        policy: wire::Policy,
    ) -> Result<(), Later> {
        let asker = Asker::on(conn, voice);
        let ticket = self.jobs.add(asker, self.shards() as u32, Work::PutStream);
        let ask = Ask::PutStream { stream, policy };
        if let Err(Later) = self.serve(
            crate::hop::Origin {
                shard: self.id,
                ticket,
            },
            &ask,
        ) {
            self.forget(conn, ticket);
            return Err(Later);
        }
        for shard in (0..self.shards()).filter(|s| *s != self.id) {
            self.hops += 1;
            self.outbound[shard].ask(ticket, &ask);
        }
        Ok(())
    }
}

fn operation_of(route: &Route<'_>) -> Operation {
    match route {
        Route::Append { .. } | Route::AppendMany { .. } | Route::Delete { .. } => Operation::Append,
        Route::Get { .. } => Operation::Get,
        Route::History { .. } => Operation::History,
        Route::Scan { .. } | Route::Tail { .. } => Operation::Scan,
        _ => Operation::Other,
    }
}

fn other(conn: &Connection) -> Released {
    Released {
        operation: Operation::Other,
        started_ns: conn.input_since_ns,
        count: 1,
    }
}

/// Records in wire form at the end of `frame`; returns where they start.
fn encode_records<'a>(
    frame: &mut Vec<u8>,
    records: impl Iterator<Item = AppendRecord<'a>>,
) -> usize {
    let mut builder = AppendBuilder::begin(frame, 0, b"", Durability::Durable, false, None);
    let start = builder.bytes();
    for record in records {
        builder.record(&record);
    }
    builder.finish();
    start
}
