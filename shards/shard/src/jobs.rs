//! Requests that are not answered on the spot: what each still waits for, and how its answers become one reply.
//!
//! A job lives on the shard whose connection asked. It gathers answers of one or several owners and ends as one reply in
//! the connection's outbox (or, for a followed tail, as many). It does not know how owners find their answers.

use wire::cursor::Walked;
use wire::native::AppendPart;
use wire::{Code, Cursor, Durability, Refusal};

use crate::core::Core;
use crate::driver::ConnId;
use crate::hop::{Answer, Answered, Ask, Origin, StreamInfo, Ticket};
use crate::metrics::ShardSnapshot;
use crate::outbox::{Operation, Released};
use crate::partition::refuse;
use crate::records::RecordSet;
use crate::render;

/// A log waits so long for news before it is asked again.
const TAIL_SLICE_NS: u64 = 500_000_000;
/// Replies above this are refused while clients leave too much unread.
const LARGE_REPLY_BYTES: usize = 16 * 1024;
/// A followed tail says so often that it is alive.
const HEARTBEAT_NS: u64 = 15_000_000_000;

/// How the connection wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    Native { id: u64, opcode: u8 },
    Http { keep_alive: bool, head: bool },
}

/// Who is told, where in its outbox, since when it waits.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub conn: ConnId,
    pub hole: u64,
    pub voice: Voice,
    pub started_ns: u64,
    /// Counted in the connection's `heavy`.
    pub heavy: bool,
}

/// What a job is about and what it has so far.
pub enum Work {
    Append(AppendWork),
    Get {
        if_none_match: Option<u32>,
    },
    History,
    Scan(ScanWork),
    Tail(ScanWork),
    PutStream,
    Streams {
        only: Option<Vec<u8>>,
        found: Vec<StreamInfo>,
    },
    Metrics {
        shards: Vec<ShardSnapshot>,
    },
}

/// An append whose records went to one or several logs.
pub struct AppendWork {
    pub parts: Vec<AppendPart>,
    pub durability: Durability,
    /// How HTTP says it.
    pub form: AppendForm,
    pub records: u32,
    /// Length of the request, which stays in the mail until its owners take it.
    pub bytes: usize,
    /// Owner of each record in request order; empty when there is one part or versions are not wanted.
    pub owners: Vec<u16>,
    /// Versions by log, as they came.
    pub versions: Vec<(u32, Vec<u32>)>,
    pub refusal: Option<Refusal>,
}

/// What kind of append request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendForm {
    One,
    Many,
    Delete,
}

/// A scan or tail over all logs.
pub struct ScanWork {
    pub stream: Vec<u8>,
    pub cursor: Cursor,
    pub limit: u32,
    pub set: Vec<RecordSet>,
    pub records: u32,
    /// Scans: the shard at work.
    pub shard: usize,
    pub wait_until_ns: u64,
    /// Server-sent events: the reply never ends.
    pub follow: bool,
}

/// A request in flight.
pub struct Job {
    pub asker: Asker,
    pub waits_for: u32,
    pub gate: u64,
    pub work: Work,
    sequence: u32,
    log: u32,
    epoch: u32,
    durable_lsn: u64,
}

/// All jobs of a shard.
#[derive(Default)]
pub struct Jobs {
    slab: slab::Slab<Job>,
    sequence: u32,
    /// Request bytes that other shards have been sent and have not answered for.
    bytes: usize,
}

impl Jobs {
    pub fn add(&mut self, asker: Asker, waits_for: u32, work: Work) -> Ticket {
        self.bytes += work.bytes();
        self.sequence = self.sequence.wrapping_add(1);
        let job = Job {
            asker,
            waits_for,
            gate: 0,
            work,
            sequence: self.sequence,
            log: 0,
            epoch: 0,
            durable_lsn: 0,
        };
        let index = self.slab.insert(job);
        Ticket((u64::from(self.sequence) << 32) | index as u64)
    }
    fn get(&mut self, ticket: Ticket) -> Option<&mut Job> {
        let (index, sequence) = ((ticket.0 & 0xffff_ffff) as usize, (ticket.0 >> 32) as u32);
        self.slab.get_mut(index).filter(|j| j.sequence == sequence)
    }
    pub fn remove(&mut self, ticket: Ticket) -> Option<Job> {
        self.get(ticket)?;
        let job = self.slab.remove((ticket.0 & 0xffff_ffff) as usize);
        self.bytes -= job.work.bytes();
        Some(job)
    }
    /// Request bytes on their way to other shards.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    pub fn len(&self) -> usize {
        self.slab.len()
    }
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Work::Append(work) => work.bytes,
            _ => 0,
        }
    }
}

impl Job {
    fn released(&self) -> Released {
        let operation = match &self.work {
            Work::Append(_) => Operation::Append,
            Work::Get { .. } => Operation::Get,
            Work::History => Operation::History,
            Work::Scan(_) => Operation::Scan,
            _ => Operation::Other,
        };
        Released {
            operation,
            started_ns: self.asker.started_ns,
            count: 1,
        }
    }
}

/// What to do with a job after an answer.
enum Next {
    Wait,
    /// Ask a shard again (scans).
    Ask {
        shard: usize,
        stream: Vec<u8>,
        from_lsn: u64,
        walked: Walked,
        limit: u32,
    },
    Finish,
}

impl<S> Core<S> {
    /// An answer for one of our jobs. `gate`: an lsn of our own log that must be durable before it is shown.
    pub(crate) fn job_answered(&mut self, ticket: Ticket, gate: u64, answered: Answered) {
        let logs = self.shared.logs.len();
        let Some(job) = self.jobs.get(ticket) else {
            return;
        };
        job.gate = job.gate.max(gate);
        job.waits_for = job.waits_for.saturating_sub(1);
        (job.log, job.epoch, job.durable_lsn) =
            (answered.log, answered.epoch, answered.durable_lsn);
        let log = answered.log;
        let next = match (&mut job.work, answered.answer) {
            (Work::Append(work), Answer::Appended { part, versions }) => {
                work.parts.push(part);
                if !versions.is_empty() {
                    work.versions.push((part.log, versions));
                }
                if job.waits_for == 0 {
                    Next::Finish
                } else {
                    Next::Wait
                }
            }
            (Work::Append(work), Answer::Refused(refusal)) => {
                work.refusal.get_or_insert(refusal);
                if job.waits_for == 0 {
                    Next::Finish
                } else {
                    Next::Wait
                }
            }
            (
                Work::Scan(scan),
                Answer::Records {
                    set,
                    next_lsn,
                    walked,
                    more,
                },
            ) => {
                scan.take(log, set, next_lsn, walked.clone());
                if scan.is_full() {
                    Next::Finish
                } else if more {
                    Next::Ask {
                        shard: scan.shard,
                        stream: scan.stream.clone(),
                        from_lsn: next_lsn,
                        walked,
                        limit: scan.limit - scan.records,
                    }
                } else if scan.shard + 1 < logs {
                    scan.shard += 1;
                    let next_log = self.shared.logs[scan.shard];
                    let (from_lsn, walked) = scan.place_of(next_log);
                    Next::Ask {
                        shard: scan.shard,
                        stream: scan.stream.clone(),
                        from_lsn,
                        walked,
                        limit: scan.limit - scan.records,
                    }
                } else {
                    Next::Finish
                }
            }
            (
                Work::Tail(tail),
                Answer::Records {
                    set,
                    next_lsn,
                    walked,
                    ..
                },
            ) => {
                tail.take(log, set, next_lsn, walked);
                // The first shard with news ends the wait; what others find later is asked for again from the cursor.
                if tail.records > 0 || job.waits_for == 0 {
                    Next::Finish
                } else {
                    Next::Wait
                }
            }
            (Work::Streams { found, .. }, Answer::Streams(infos)) => {
                found.extend(infos);
                if job.waits_for == 0 {
                    Next::Finish
                } else {
                    Next::Wait
                }
            }
            (Work::Metrics { shards }, Answer::Metrics(snapshot)) => {
                shards.push(*snapshot);
                if job.waits_for == 0 {
                    Next::Finish
                } else {
                    Next::Wait
                }
            }
            (Work::PutStream, Answer::StreamPut) => {
                if job.waits_for == 0 {
                    Next::Finish
                } else {
                    Next::Wait
                }
            }
            (Work::Get { .. } | Work::History, Answer::Records { set, .. }) => {
                return self.finish_with_records(ticket, set);
            }
            (_, Answer::Refused(refusal)) => return self.finish_with_refusal(ticket, refusal),
            (_, other) => unreachable!("an owner answered {other:?} to a question of another kind"),
        };
        match next {
            Next::Wait => {}
            Next::Ask {
                shard,
                stream,
                from_lsn,
                walked,
                limit,
            } => {
                if let Some(job) = self.jobs.get(ticket) {
                    job.waits_for = 1;
                }
                let ask = Ask::Scan {
                    stream: stream.as_slice(),
                    from_lsn,
                    walked,
                    limit,
                    wait_until_ns: 0,
                };
                self.ask(shard, ticket, &ask);
            }
            Next::Finish => self.finish(ticket),
        }
    }

    /// Send a question that cannot be refused for want of room (reads) to its owner.
    pub(crate) fn ask(&mut self, shard: usize, ticket: Ticket, ask: &Ask<&[u8]>) {
        if shard == self.id {
            let origin = Origin { shard, ticket };
            self.serve(origin, ask)
                .expect("reads need no room in the log");
        } else {
            self.hops += 1;
            self.outbound[shard].ask(ticket, ask);
        }
    }

    fn finish_with_refusal(&mut self, ticket: Ticket, refusal: Refusal) {
        let Some(job) = self.jobs.remove(ticket) else {
            return;
        };
        let mark = render::mark(job.log, job.epoch, job.durable_lsn);
        self.count_refusal(&refusal);
        self.reply_to(&job, |out| {
            render::refusal(out, &job.asker.voice, mark, &refusal, None)
        });
    }

    fn finish_with_records(&mut self, ticket: Ticket, set: RecordSet) {
        // Nobody knew how large it would be when it was asked for.
        if set.bytes() > LARGE_REPLY_BYTES
            && let Some(refusal) = self.too_much_unread()
        {
            return self.finish_with_refusal(ticket, refusal);
        }
        let Some(job) = self.jobs.remove(ticket) else {
            return;
        };
        let mark = render::mark(job.log, job.epoch, job.durable_lsn);
        self.reply_to(&job, |out| match job.work {
            Work::Get { if_none_match } => {
                let record = set.iter().next().expect("a found record is in its set");
                render::record(out, &job.asker.voice, mark, &record, if_none_match);
            }
            _ => render::records(
                out,
                &job.asker.voice,
                mark,
                std::slice::from_ref(&set),
                None,
            ),
        });
    }

    fn finish(&mut self, ticket: Ticket) {
        let Some(mut job) = self.jobs.remove(ticket) else {
            return;
        };
        let mark = render::mark(job.log, job.epoch, job.durable_lsn);
        let asker = job.asker;
        let voice = &asker.voice;
        match &mut job.work {
            Work::Append(work) => {
                if let Some(refusal) = work.refusal.take() {
                    let refusal = partly(refusal, work);
                    self.count_refusal(&refusal);
                    return self.reply_to(&job, |out| {
                        render::refusal(out, voice, mark, &refusal, None)
                    });
                }
                work.parts.sort_by_key(|p| p.log);
                let versions = work.versions_in_request_order();
                self.reply_to(&job, |out| match &job.work {
                    Work::Append(work) => render::appended(
                        out,
                        voice,
                        mark,
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
                    render::records(out, voice, mark, &sets, (!empty).then_some(&cursor))
                });
            }
            Work::Tail(tail) => {
                if tail.records == 0 && tail.wait_until_ns > self.now.monotonic_ns {
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
                    render::records(out, voice, mark, &sets, Some(&cursor))
                });
            }
            Work::PutStream => self.reply_to(&job, |out| {
                render::body(
                    out,
                    voice,
                    mark,
                    200,
                    "application/json",
                    b"{\"stored\":true}\n",
                )
            }),
            Work::Streams { only, found } => {
                let text = render::streams(found, only.as_deref());
                match text {
                    Some(text) => self.reply_to(&job, |out| {
                        render::body(out, voice, mark, 200, "application/json", text.as_bytes())
                    }),
                    None => {
                        let refusal = refuse(Code::NotFound, "no such stream");
                        self.reply_to(&job, |out| {
                            render::refusal(out, voice, mark, &refusal, None)
                        });
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
                        mark,
                        200,
                        crate::metrics::CONTENT_TYPE,
                        text.as_bytes(),
                    )
                });
            }
            Work::Get { .. } | Work::History => unreachable!("answered with records"),
        }
    }

    /// Put a job's reply where its connection waits for it.
    fn reply_to(&mut self, job: &Job, write: impl FnOnce(&mut Vec<u8>)) {
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

    /// A followed tail: write what came as events, ask again.
    fn tail_goes_on(&mut self, mut job: Job, sets: &[RecordSet], cursor: &Cursor) {
        let asker = job.asker;
        let Some(conn) = self.conns.get_mut(asker.conn) else {
            return;
        };
        if conn.ended {
            // Nobody listens any more: the end of the stream is the end of the connection.
            return self.reply_to(&job, |_| ());
        }
        let mut bytes = Vec::new();
        render::events(&mut bytes, sets, cursor);
        conn.out.stream(asker.hole, bytes, job.released());
        self.touch(asker.conn);
        let Work::Tail(tail) = &mut job.work else {
            unreachable!("only tails are followed")
        };
        tail.records = 0;
        tail.wait_until_ns = self.now.monotonic_ns + HEARTBEAT_NS;
        let Work::Tail(tail) = job.work else {
            unreachable!("only tails are followed")
        };
        self.held_tails.push((asker, tail));
        self.resume_tails();
    }

    /// Followed tails whose clients have read enough of what they were sent ask for more.
    pub(crate) fn resume_tails(&mut self) {
        for (asker, tail) in std::mem::take(&mut self.held_tails) {
            let Some(conn) = self.conns.get_mut(asker.conn) else {
                continue;
            };
            if conn.out.bytes() < self.shared.bounds.unsent_bytes_max {
                self.start_tail(asker, tail);
            } else {
                self.held_tails.push((asker, tail));
            }
        }
    }

    /// Ask every log for news behind the cursor. They wait for a slice of the time only: what one of them still waits for
    /// when another had news, or when the client is gone, is over soon.
    pub(crate) fn start_tail(&mut self, asker: Asker, tail: ScanWork) {
        let logs = self.shared.logs.clone();
        let stream = tail.stream.clone();
        let (limit, wait_until_ns) = (
            tail.limit,
            tail.wait_until_ns
                .min(self.now.monotonic_ns + TAIL_SLICE_NS),
        );
        let from: Vec<_> = logs.iter().map(|l| tail.place_of(*l)).collect();
        let ticket = self.jobs.add(asker, logs.len() as u32, Work::Tail(tail));
        for (shard, (from_lsn, walked)) in from.into_iter().enumerate() {
            self.ask(
                shard,
                ticket,
                &Ask::Scan {
                    stream: stream.as_slice(),
                    from_lsn,
                    walked,
                    limit,
                    wait_until_ns,
                },
            );
        }
    }
}

impl ScanWork {
    /// Where it goes on in a log, and what it has walked there.
    pub fn place_of(&self, log: u32) -> (u64, Walked) {
        let next = self.cursor.next.iter().find(|(l, _)| *l == log);
        let walked = self.cursor.walked.iter().find(|(l, _)| *l == log);
        (
            next.map_or(1, |(_, lsn)| *lsn),
            walked.map_or(Walked::default(), |(_, walked)| walked.clone()),
        )
    }
    fn take(&mut self, log: u32, set: RecordSet, next_lsn: u64, walked: Walked) {
        let known = &mut self.cursor.walked;
        known.retain(|(l, _)| *l != log);
        if walked != Walked::default() {
            known.push((log, walked));
            known.sort_unstable_by_key(|(l, _)| *l);
        }
        self.records += set.len() as u32;
        if !set.is_empty() {
            self.set.push(set);
        }
        match self.cursor.next.iter_mut().find(|(l, _)| *l == log) {
            Some((_, lsn)) => *lsn = next_lsn,
            None => {
                self.cursor.next.push((log, next_lsn));
                self.cursor.next.sort_unstable();
            }
        }
    }
    fn is_full(&self) -> bool {
        self.records >= self.limit
            || self.set.iter().map(RecordSet::bytes).sum::<usize>()
                >= crate::owner::ANSWER_BYTES_MAX
    }
}

impl AppendWork {
    fn versions_in_request_order(&mut self) -> Vec<u32> {
        if self.owners.is_empty() {
            return self.versions.pop().map(|(_, v)| v).unwrap_or_default();
        }
        let mut next = vec![0usize; self.versions.len()];
        let mut ordered = Vec::with_capacity(self.owners.len());
        for log in &self.owners {
            if let Some(i) = self
                .versions
                .iter()
                .position(|(l, _)| *l == u32::from(*log))
            {
                ordered.push(self.versions[i].1[next[i]]);
                next[i] += 1;
            }
        }
        ordered
    }
}

/// A request over several logs that one of them refused: the others have appended, and the client must know.
fn partly(refusal: Refusal, work: &AppendWork) -> Refusal {
    if work.parts.is_empty() {
        return refusal;
    }
    let appended: u32 = work.parts.iter().map(|p| p.records).sum();
    Refusal {
        message: format!(
            "{} ({appended} of {} records, those of other shards, are appended; a repeat with the same Idempotency-Key completes the rest)",
            refusal.message, work.records
        ),
        ..refusal
    }
}
