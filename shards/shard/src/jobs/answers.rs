//! What an owner's answer means for the job that asked: wait for more, ask the next shard, or end.
//!
//! An answer to a job that is gone (its connection closed) is dropped. It does not know how a reply is written.

use wire::cursor::Walked;

use super::Work;
use crate::core::Core;
use crate::hop::{Answer, Answered, Ask, Origin, Ticket};

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
    /// The request that this is for is tried again.
    Retry,
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
            (Work::KeyUse(_), Answer::KeyFree) => {
                if job.waits_for == 0 {
                    Next::Retry
                } else {
                    Next::Wait
                }
            }
            (Work::KeyUse(used), Answer::Refused(refusal)) => {
                used.objection.get_or_insert(refusal);
                if job.waits_for == 0 {
                    Next::Retry
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
            Next::Retry => self.key_use_is_known(ticket),
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
}
