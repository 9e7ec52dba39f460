//! HTTP requests: from a connection's bytes to work. Replies keep the order of requests; the outbox sees to that.
//!
//! Appends (`append`; `keyed` is what batches under an Idempotency-Key need besides) and gets of what is in memory (`get`) are
//! answered on the spot, everything else becomes a job. It does not know how a request or a reply is spelt (`wire::http`, `render`).

mod append;
mod get;
mod keyed;

use wire::http::{self, Parsed, Request, Route, reply};
use wire::{AppendRecord, Code, ContentType, Refusal};

use crate::conns::Connection;
use crate::core::{Core, State};
use crate::hop::Ask;
use crate::jobs::{AppendForm, Asker, ScanWork, Voice, Work};
use crate::metrics::Protocol;
use crate::native_input::Used;
use crate::outbox::{Operation, Released};
use crate::partition::{Later, refuse};
use crate::render;

/// Events between two ids: what a client that was cut off is sent again, at most.
const EVENTS_AT_ONCE: u32 = 256;

impl<S> Core<S> {
    /// Work on as many requests of `bytes` as are whole and can be taken.
    pub(crate) fn http_input(&mut self, conn: &mut Connection, bytes: &[u8]) -> Used {
        let limits = http::Limits {
            head_bytes_max: 16 * 1024,
            body_bytes_max: self.shared.bounds.body_bytes_max,
            payload_bytes_max: self.shared.bounds.payload_bytes_max,
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
                    let operation = operation_of(&request.route);
                    if let Err(later) = self.http_request(conn, request, keep_alive) {
                        self.stall(conn, later);
                        break;
                    }
                    conn.key_use = None;
                    self.metrics.requests(Protocol::Http, operation, 1);
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
                    let now = self.moment();
                    conn.out.reply(0, other(conn), |out| {
                        render::refusal(out, &voice, now, &refusal, allow)
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
                preconditions,
            } => self.http_get(conn, voice, stream.as_bytes(), &key, preconditions),
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
                let mut at_once = limit;
                if event_stream {
                    let general = self.moment().general(false);
                    conn.out
                        .reply(0, other(conn), |out| reply::event_stream_head(out, general));
                    at_once = limit.min(EVENTS_AT_ONCE);
                }
                let wait_until_ns = self.now.monotonic_ns + u64::from(wait_ms) * 1_000_000;
                let asker = Asker::heavy_on(conn, voice);
                self.start_tail(
                    asker,
                    ScanWork::new(
                        stream.as_bytes(),
                        Some(cursor),
                        at_once,
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
            _ if self.draining => Some(crate::core::refuse_draining()),
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
        let now = self.moment();
        conn.out.reply(0, other(conn), |out| {
            render::body(out, &voice, now, status, content_type, body)
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
        let (gate, now) = (self.partition.gate(lsn), self.moment());
        conn.out.reply(gate, other(conn), |out| {
            render::refusal(out, &voice, now, refusal, None)
        });
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
        if let Err(later) = self.serve(
            crate::hop::Origin {
                shard: self.id,
                ticket,
            },
            &ask,
        ) {
            self.forget(conn, ticket);
            return Err(later);
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
