//! HTTP appends and deletes: a body understood as records, and those given to the shard that owns them.
//!
//! A batch is understood to its last line before a record of it is appended anywhere.

use wire::native::{AppendBuilder, AppendPart};
use wire::{AppendRecord, Code, Condition, Durability, ndjson};

use crate::conns::Connection;
use crate::core::Core;
use crate::hop::Ask;
use crate::jobs::{AppendForm, AppendWork, Asker, Voice, Work};
use crate::outbox::{Operation, Released};
use crate::partition::{Later, NotAppended, Once, Unit, append_gate, refuse};
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
    #[expect(
        clippy::too_many_arguments,
        reason = "one per part of the request line and its headers; a struct would only rename them"
    )]
    pub(super) fn http_append_one(
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
                let moment = self.moment();
                let mark = moment.mark;
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
                        moment,
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
            Err(NotAppended::Later(later)) => {
                self.versions = versions;
                return Err(later);
            }
        }
        self.versions = versions;
        Ok(())
    }

    pub(super) fn http_append_many(
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
        for line in ndjson::lines(body, self.shared.bounds.payload_bytes_max) {
            match line {
                Ok(line) => lines.push(line),
                Err((number, why)) => {
                    let message = format!(
                        "line {number}: {}; nothing of this request was appended",
                        why.message
                    );
                    self.http_refuse(conn, voice, &refuse(why.code, message));
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
        if let Some(refusal) = self.objection_to_key(conn, voice, &once)? {
            self.http_refuse(conn, voice, &refusal);
            return Ok(());
        }
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
        if let Err(refusal) = self.check_parts(stream.as_bytes()) {
            self.http_refuse(conn, voice, &refusal);
            return Ok(());
        }
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
