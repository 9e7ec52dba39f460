//! What waits for a commit: gated replies of our connections, and answers for other shards.
//!
//! All of it leaves when the durable lsn reaches it, or, behind a failed write, is told that this will not come. It does not
//! know how a commit is made.

use std::collections::VecDeque;

use wire::{Code, Refusal};

use super::Core;
use crate::driver::ConnId;
use crate::hop::{Answer, Answered, Item, Origin};
use crate::partition::refuse_for;

/// Answers for other shards that wait for our durable lsn.
#[derive(Default)]
pub struct Held {
    queue: VecDeque<(u64, Origin, Answered)>,
}

impl Held {
    /// Gates only rise along the queue: one that is lower than its predecessor waits with it, which delays it by less than
    /// a commit.
    pub fn push(&mut self, gate: u64, origin: Origin, answered: Answered) {
        let gate = self.queue.back().map_or(gate, |(g, ..)| gate.max(*g));
        self.queue.push_back((gate, origin, answered));
    }
    fn pop(&mut self, durable_lsn: u64) -> Option<(Origin, Answered)> {
        let (gate, ..) = self.queue.front()?;
        if *gate > durable_lsn {
            return None;
        }
        self.queue
            .pop_front()
            .map(|(_, origin, answered)| (origin, answered))
    }
}

impl<S> Core<S> {
    /// The durable lsn has moved: release what waited for it.
    pub(crate) fn durable_moved(&mut self) {
        let durable = self.partition.log.durable_lsn();
        let now_ns = self.now.monotonic_ns;
        let latency = &mut self.latency;
        let mut gated = std::mem::take(&mut self.gated);
        gated.retain(|id| {
            let Some(conn) = self.conns.get_mut(*id) else {
                return false;
            };
            conn.out.release(durable, |r| latency.record(&r, now_ns));
            if !conn.listed_touched {
                conn.listed_touched = true;
                self.touched.push(*id);
            }
            conn.listed_gated = conn.out.is_gated();
            conn.listed_gated
        });
        self.gated = gated;
        while let Some((origin, mut answered)) = self.held.pop(durable) {
            answered.durable_lsn = durable;
            self.outbound[origin.shard].items.push(Item::Answer {
                ticket: origin.ticket,
                answered,
            });
        }
        self.wake_scans();
    }

    /// What waits for a commit that will not come.
    pub(crate) fn never_durable(&self) -> Refusal {
        let why = self.partition.log.failed().unwrap_or("reason unknown");
        let message = format!(
            "a log write failed ({why}): whether this is on stable storage is known after a restart"
        );
        refuse_for(Code::Unavailable, 5000, message)
    }

    /// The log has failed: what waits for its acks will never get them. Their connections are closed (whether those records
    /// are on the device only a restart can tell); other shards get a refusal.
    pub(crate) fn log_failed(&mut self) -> Vec<ConnId> {
        let refusal = self.never_durable();
        while let Some((_, origin, mut answered)) = self.held.queue.pop_front() {
            answered.answer = Answer::Refused(refusal.clone());
            answered.durable_lsn = self.partition.log.durable_lsn();
            self.outbound[origin.shard].items.push(Item::Answer {
                ticket: origin.ticket,
                answered,
            });
        }
        std::mem::take(&mut self.gated)
    }
}
