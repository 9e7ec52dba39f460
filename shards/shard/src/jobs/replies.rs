//! The end of a job: what it has becomes one reply where its connection waits for it.
//!
//! A job that ends is out of the slab and off its connection's count before its reply is written. It does not know how the
//! protocols spell a reply (`render`), or when it may leave (`outbox`).

use wire::http::Verdict;
use wire::native::ReplyMark;
use wire::{Code, Refusal};

use super::{AppendWork, Job, Work};
use crate::core::Core;
use crate::hop::Ticket;
use crate::partition::refuse;
use crate::records::RecordSet;
use crate::render::{self, Moment};

/// Replies above this are refused while clients leave too much unread.
const LARGE_REPLY_BYTES: usize = 16 * 1024;

impl<S> Core<S> {
    pub(super) fn finish_with_refusal(&mut self, ticket: Ticket, refusal: Refusal) {
        let Some(job) = self.jobs.remove(ticket) else {
            return;
        };
        let now = self.moment_of(&job);
        self.count_refusal(&refusal);
        self.reply_to(&job, |out| {
            render::refusal(out, &job.asker.voice, now, &refusal, None)
        });
    }

    pub(super) fn finish_with_records(&mut self, ticket: Ticket, set: RecordSet) {
        // Nobody knew how large it would be when it was asked for.
        if set.bytes() > LARGE_REPLY_BYTES
            && let Some(refusal) = self.too_much_unread()
        {
            return self.finish_with_refusal(ticket, refusal);
        }
        let Some(job) = self.jobs.remove(ticket) else {
            return;
        };
        let now = self.moment_of(&job);
        let voice = &job.asker.voice;
        let Work::Get { preconditions } = job.work else {
            let sets = std::slice::from_ref(&set);
            return self.reply_to(&job, |out| render::records(out, voice, now, sets, None));
        };
        let record = set.iter().next().expect("a found record is in its set");
        match preconditions.verdict(record.version) {
            Verdict::Refuse(refusal) => {
                self.count_refusal(&refusal);
                self.reply_to(&job, |out| render::refusal(out, voice, now, &refusal, None));
            }
            verdict => self.reply_to(&job, |out| {
                render::record(out, voice, now, &record, &verdict)
            }),
        }
    }

    pub(super) fn finish(&mut self, ticket: Ticket) {
        let Some(mut job) = self.jobs.remove(ticket) else {
            return;
        };
        let now = self.moment_of(&job);
        let asker = job.asker;
        let voice = &asker.voice;
        match &mut job.work {
            Work::Append(work) => {
                if let Some(refusal) = work.refusal.take() {
                    let refusal = partly(refusal, work);
                    self.count_refusal(&refusal);
                    return self
                        .reply_to(&job, |out| render::refusal(out, voice, now, &refusal, None));
                }
                work.parts.sort_by_key(|p| p.log);
                let versions = work.versions_in_request_order();
                self.reply_to(&job, |out| match &job.work {
                    Work::Append(work) => render::appended(
                        out,
                        voice,
                        now,
                        work.durability,
                        work.form,
                        &work.parts,
                        &versions,
                    ),
                    _ => unreachable!("matched above"),
                });
            }
            Work::Scan(scan) => {
                let empty = scan.records == 0;
                let (sets, cursor) = (std::mem::take(&mut scan.set), scan.cursor.clone());
                // A page without records is the end: no cursor, so that a loop over pages ends.
                self.reply_to(&job, |out| {
                    render::records(out, voice, now, &sets, (!empty).then_some(&cursor))
                });
            }
            Work::Tail(tail) => {
                let waits = tail.wait_until_ns > self.now.monotonic_ns && !self.draining;
                if tail.records == 0 && waits {
                    let Some(conn) = self.conns.get_mut(asker.conn) else {
                        return;
                    };
                    if !conn.ended {
                        let Work::Tail(tail) = job.work else {
                            unreachable!("just matched")
                        };
                        return self.start_tail(asker, tail);
                    }
                }
                let (sets, cursor) = (std::mem::take(&mut tail.set), tail.cursor.clone());
                if tail.follow {
                    return self.tail_goes_on(job, &sets, &cursor);
                }
                self.reply_to(&job, |out| {
                    render::records(out, voice, now, &sets, Some(&cursor))
                });
            }
            Work::PutStream => self.reply_to(&job, |out| {
                render::body(
                    out,
                    voice,
                    now,
                    200,
                    "application/json",
                    b"{\"stored\":true}\n",
                )
            }),
            Work::Streams { only, found } => {
                let text = render::streams(found, only.as_deref());
                match text {
                    Some(text) => self.reply_to(&job, |out| {
                        render::body(out, voice, now, 200, "application/json", text.as_bytes())
                    }),
                    None => {
                        let refusal = refuse(Code::NotFound, "no such stream");
                        self.reply_to(&job, |out| render::refusal(out, voice, now, &refusal, None));
                    }
                }
            }
            Work::Metrics { shards } => {
                shards.sort_by_key(|s| s.shard);
                let text = crate::metrics::render(
                    shards,
                    &crate::metrics::ProcessUsage::read(),
                    env!("CARGO_PKG_VERSION"),
                );
                self.reply_to(&job, |out| {
                    render::body(
                        out,
                        voice,
                        now,
                        200,
                        crate::metrics::CONTENT_TYPE,
                        text.as_bytes(),
                    )
                });
            }
            Work::Get { .. } | Work::History => unreachable!("answered with records"),
            Work::KeyUse(_) => unreachable!("it has the request tried again"),
        }
    }

    fn moment_of(&self, job: &Job) -> Moment {
        Moment {
            mark: ReplyMark {
                durable_lsn: job.durable_lsn,
                log: job.log,
                epoch: job.epoch,
            },
            wall_us: self.now.wall_us,
        }
    }

    /// Put a job's reply where its connection waits for it.
    pub(super) fn reply_to(&mut self, job: &Job, write: impl FnOnce(&mut Vec<u8>)) {
        let gate = self.partition.gate(job.gate);
        let released = job.released();
        let Some(conn) = self.conns.get_mut(job.asker.conn) else {
            return;
        };
        conn.jobs -= 1;
        conn.heavy -= u32::from(job.asker.heavy);
        let unsent_before = conn.out.bytes();
        if conn.out.fill(job.asker.hole, gate, released, write) && gate == 0 {
            self.latency.record(&released, self.now.monotonic_ns);
        }
        // Replies that stood behind this one may have gates that were passed while they waited: no commit will come for them.
        let (durable, now_ns, latency) = (
            self.partition.log.durable_lsn(),
            self.now.monotonic_ns,
            &mut self.latency,
        );
        conn.out.release(durable, |r| latency.record(&r, now_ns));
        self.unsent_bytes += (conn.out.bytes() - unsent_before) as u64;
        self.touch(job.asker.conn);
    }
}

/// A request over several logs that one of them refused: the others have appended, and the client must know.
fn partly(refusal: Refusal, work: &AppendWork) -> Refusal {
    if work.parts.is_empty() {
        return refusal;
    }
    let appended: u32 = work.parts.iter().map(|p| p.records).sum();
    let advice = match refusal.retry_after_ms {
        Some(_) => "; a repeat with the same Idempotency-Key, if it had one, completes the rest",
        None => "",
    };
    Refusal {
        message: format!(
            "{} ({appended} of {} records, those of other shards, are appended{advice})",
            refusal.message, work.records
        ),
        ..refusal
    }
}
