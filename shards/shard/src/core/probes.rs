//! Requests that wait until records have been read for their conditions (`partition::conditions` says which and why).
//!
//! A waiting connection is stalled, and takes no place in the line for room: nobody else waits for its reads. What was read
//! stays with the waiter until its request is decided, also when that then has to wait for room.

use ahash::AHashMap;
use wal::Link;

use super::Core;
use super::line::Waiter;
use crate::partition::{Later, Probed};
use crate::reads::Then;

/// What one waiter waits for, and what it has.
struct Waiting {
    /// A late read of an earlier wait finds this changed.
    sequence: u64,
    /// Reads under way.
    reads: usize,
    known: AHashMap<u64, Probed>,
}

impl Waiting {
    /// Records read or asked for.
    fn held(&self) -> usize {
        self.reads + self.known.len()
    }
}

/// All that wait.
#[derive(Default)]
pub(super) struct Probing {
    of: AHashMap<Waiter, Waiting>,
    sequence: u64,
}

/// Names a read and who waits for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeId {
    who: Waiter,
    sequence: u64,
}

impl<S> Core<S> {
    /// A request was not taken. It is tried again when what it waits for has come.
    pub(super) fn wait_for(&mut self, who: Waiter, later: Later) {
        match later {
            Later::Room => {
                if !self.partition.probes.known.is_empty() {
                    self.keep_probed(who, 0);
                }
                self.wait_in_line(who);
            }
            Later::Read => self.read_for_conditions(who),
            Later::KeyUse => {}
        }
    }

    fn keep_probed(&mut self, who: Waiter, reads: usize) -> u64 {
        self.probing.sequence += 1;
        let waiting = Waiting {
            sequence: self.probing.sequence,
            reads,
            known: std::mem::take(&mut self.partition.probes.known),
        };
        self.partition.probes.held += waiting.held();
        if let Some(before) = self.probing.of.insert(who, waiting) {
            self.partition.probes.held -= before.held();
        }
        self.probing.sequence
    }

    fn read_for_conditions(&mut self, who: Waiter) {
        let mut wanted = std::mem::take(&mut self.partition.probes.wanted);
        let log = &self.partition.log;
        wanted.retain(|entry| log.segment(entry.location.segment).is_some());
        let sequence = self.keep_probed(who, wanted.len());
        if wanted.is_empty() {
            // Their segments have gone since: no such record is live now.
            return self.wait_in_line(who);
        }
        for entry in wanted {
            let link = Link {
                lsn: entry.lsn,
                location: entry.location,
            };
            let probe = ProbeId { who, sequence };
            self.read_record(link, entry.bytes as usize, Then::Probe(probe));
        }
    }

    /// A record was read for a condition, or cannot be. The last one that a request waits for has it tried again.
    pub(crate) fn probed(&mut self, id: ProbeId, lsn: u64, probed: Probed) {
        let Some(waiting) = self
            .probing
            .of
            .get_mut(&id.who)
            .filter(|w| w.sequence == id.sequence)
        else {
            return;
        };
        waiting.known.insert(lsn, probed);
        waiting.reads -= 1;
        if waiting.reads > 0 {
            return;
        }
        match id.who {
            Waiter::Connection(conn) => {
                self.retry(conn);
            }
            Waiter::Inbound => {
                self.inbound_waits = false;
                self.work_inbound();
            }
            Waiter::Space => unreachable!("compaction has no conditions"),
        }
    }

    /// A waiter's request is about to be tried again: with what was read for it.
    pub(crate) fn begin_try(&mut self, who: Waiter) {
        if self.probing.of.is_empty() {
            return;
        }
        if let Some(waiting) = self.probing.of.remove(&who) {
            self.partition.probes.held -= waiting.held();
            self.partition.probes.known = waiting.known;
        }
    }

    /// It was: what it did not use is nobody's.
    pub(crate) fn end_try(&mut self) {
        self.partition.probes.known.clear();
    }

    /// The other shards' requests wait for a read.
    pub(crate) fn inbound_reads(&self) -> bool {
        self.probing
            .of
            .get(&Waiter::Inbound)
            .is_some_and(|waiting| waiting.reads > 0)
    }
}
