//! Everything of a shard except its driver: connections, the partition, jobs, and the mail for other shards.
//!
//! `Core` is told what arrived and collects what has to be sent, read and written; `turn` moves that to and from the
//! driver. It performs no I/O.
//!
//! `shared` is what all shards know, `line` who waits for room in the log, `probes` who waits for a record that a condition is
//! about, `gates` what waits for a commit, `turned_away`
//! the clients that are served no longer, or not at all.

mod gates;
mod line;
mod probes;
mod shared;
mod turned_away;

use std::collections::VecDeque;
use std::sync::Arc;

use wire::native::ReplyMark;
use wire::{Code, Refusal, slot};

use crate::conns::Connections;
use crate::driver::{ConnId, Now};
use crate::hop::{Answered, Parcel, Ticket};
use crate::jobs::Jobs;
use crate::metrics::{ShardMetrics, ShardSnapshot};
use crate::outbox::{Operation, Released};
use crate::partition::{Appended, Partition, refuse_for};
use crate::reads::{Reads, Scan, ScanHints};
use crate::render::Moment;
use line::Inbound;
use probes::Probing;

pub use gates::Held;
pub(crate) use line::Waiter;
pub use probes::ProbeId;
pub use shared::{Bounds, READ_ONLY, READY, RECOVERING, STOPPED, Shared};
pub(crate) use turned_away::refuse_draining;

/// What a shard can do for clients now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Reading its log.
    Recovering,
    /// Takes reads and writes.
    Ready,
    /// Damage or a failure that only an operator can clear.
    Stopped(String),
}

/// Latencies of released replies.
#[derive(Default)]
pub struct Latency {
    /// Groups of this turn: operation, nanoseconds, how many.
    pub pending: Vec<(Operation, u64, u32)>,
}

impl Latency {
    /// A group of replies left at `now_ns`.
    #[inline]
    pub fn record(&mut self, released: &Released, now_ns: u64) {
        let ns = now_ns.saturating_sub(released.started_ns);
        if let Some(last) = self.pending.last_mut()
            && last.0 == released.operation
            && last.1 == ns
        {
            last.2 += released.count;
            return;
        }
        self.pending.push((released.operation, ns, released.count));
    }
}

/// See the module's header.
pub struct Core<S> {
    pub(crate) id: usize,
    pub(crate) epoch: u32,
    pub(crate) now: Now,
    pub(crate) state: State,
    pub(crate) shared: Arc<Shared>,
    pub(crate) partition: Partition,
    pub(crate) conns: Connections,
    pub(crate) jobs: Jobs,
    pub(crate) reads: Reads,
    pub(crate) scan_hints: ScanHints,
    #[expect(
        clippy::vec_box,
        reason = "a scan moves between here and the reads; the box makes that a pointer"
    )]
    pub(crate) waiting: Vec<Box<Scan>>,
    /// Followed tails whose clients have much to read before they get more.
    pub(crate) held_tails: Vec<(crate::jobs::Asker, crate::jobs::ScanWork)>,
    /// Answers for our own jobs, taken up after the request at hand.
    pub(crate) answers: VecDeque<(Ticket, u64, Answered)>,
    /// Mail of this turn, by shard.
    pub(crate) outbound: Vec<Parcel<S>>,
    pub(crate) held: Held,
    inbound: VecDeque<Inbound<S>>,
    /// Connections with something to send or to close.
    pub(crate) touched: Vec<ConnId>,
    /// Connections with gated replies.
    pub(crate) gated: Vec<ConnId>,
    /// Who waits for room in the log, in the order in which they came. Only the first may take buffers.
    line: VecDeque<Waiter>,
    /// The other shards' requests stand in the line, or wait for a read.
    inbound_waits: bool,
    /// Requests that wait for records that their conditions are about.
    probing: Probing,
    pub(crate) latency: Latency,
    pub(crate) metrics: ShardMetrics,
    pub(crate) hops: u64,
    /// Versions of the unit at hand, and records of a request sorted by shard.
    pub(crate) versions: Vec<u32>,
    pub(crate) split: Vec<(Vec<u8>, u32)>,
    pub(crate) draining: bool,
    pub(crate) drain_since_ns: u64,
    pub(crate) outside: crate::gauges::Outside,
    /// Held for all connections, as of the last housekeeping.
    pub(crate) unsent_bytes: u64,
    pub(crate) unparsed_bytes: u64,
}

impl<S> Core<S> {
    /// The core of shard `id`, writing under `epoch`; recovery fills the partition.
    pub fn new(
        id: usize,
        epoch: u32,
        shared: Arc<Shared>,
        partition: Partition,
        reads: Reads,
        now: Now,
    ) -> Core<S> {
        let shards = shared.logs.len();
        Core {
            id,
            epoch,
            now,
            state: State::Recovering,
            partition,
            conns: Connections::default(),
            jobs: Jobs::default(),
            reads,
            scan_hints: ScanHints::default(),
            waiting: Vec::new(),
            held_tails: Vec::new(),
            answers: VecDeque::new(),
            outbound: (0..shards).map(|_| Parcel::default()).collect(),
            held: Held::default(),
            inbound: VecDeque::new(),
            touched: Vec::new(),
            gated: Vec::new(),
            line: VecDeque::new(),
            inbound_waits: false,
            probing: Probing::default(),
            latency: Latency::default(),
            metrics: ShardMetrics::new(id),
            hops: 0,
            versions: Vec::new(),
            split: (0..shards).map(|_| (Vec::new(), 0)).collect(),
            draining: false,
            drain_since_ns: 0,
            outside: crate::gauges::Outside::default(),
            unsent_bytes: 0,
            unparsed_bytes: 0,
            shared,
        }
    }

    pub(crate) fn log_number(&self) -> u32 {
        self.partition.log.identity.number
    }
    pub(crate) fn mark(&self) -> ReplyMark {
        ReplyMark {
            durable_lsn: self.partition.log.durable_lsn(),
            log: self.log_number(),
            epoch: self.epoch,
        }
    }
    pub(crate) fn moment(&self) -> Moment {
        Moment {
            mark: self.mark(),
            wall_us: self.now.wall_us,
        }
    }
    pub(crate) fn shards(&self) -> usize {
        self.shared.logs.len()
    }
    #[inline]
    pub(crate) fn owner_of(&self, key: &[u8]) -> usize {
        match self.shards() {
            1 => 0,
            n => usize::from(slot::shard_of_slot(slot::slot_of(key), n as u16)),
        }
    }

    /// Why this shard cannot work on records now.
    pub(crate) fn not_ready(&self) -> Option<Refusal> {
        match &self.state {
            State::Ready => None,
            State::Recovering => Some(refuse_for(
                Code::Unavailable,
                1000,
                format!(
                    "shard {} is still recovering its log: try again shortly",
                    self.id
                ),
            )),
            State::Stopped(why) => Some(refuse_for(
                Code::Unavailable,
                60_000,
                format!("shard {} has stopped: {why}", self.id),
            )),
        }
    }

    /// Too much is under way to take another request that crosses shards or reads the device.
    pub(crate) fn overloaded(&self) -> bool {
        let bounds = &self.shared.bounds;
        self.jobs.len() >= bounds.jobs_max
            || self.jobs.bytes() as u64 >= bounds.unparsed_bytes_total
    }

    /// Take up answers for our own jobs until none are left.
    pub(crate) fn work_answers(&mut self) {
        while let Some((ticket, gate, answered)) = self.answers.pop_front() {
            self.job_answered(ticket, gate, answered);
        }
    }

    /// How long this shard may sleep before something of its own is due.
    pub(crate) fn next_deadline(&self) -> std::time::Duration {
        let now = self.now.monotonic_ns;
        let due = self
            .waiting
            .iter()
            .map(|s| s.wait_until_ns.saturating_sub(now))
            .min();
        // Housekeeping, the idle mark and checkpoints in progress look at the clock at least this often.
        std::time::Duration::from_nanos(due.unwrap_or(u64::MAX).clamp(1_000_000, 20_000_000))
    }

    /// Parse on: a bound that held this connection back may be free again. True if a request was taken up.
    pub(crate) fn parse_on(&mut self, id: ConnId) -> bool {
        self.retry(id)
    }

    /// Latencies of this turn into the histograms, in groups.
    pub(crate) fn flush_latencies(&mut self) {
        for (operation, ns, count) in self.latency.pending.drain(..) {
            self.metrics.latency(operation, ns, count);
        }
    }

    pub(crate) fn count_append(&mut self, done: &Appended, bytes: usize) {
        if done.repeated {
            self.metrics.counters.repeats += 1;
        } else {
            self.metrics.records(u64::from(done.records), bytes as u64);
        }
    }
    pub(crate) fn count_refusal(&mut self, refusal: &Refusal) {
        self.metrics.refusal(refusal.code);
    }

    /// Everything this shard measures, for the one that renders.
    pub(crate) fn snapshot(&mut self) -> ShardSnapshot {
        crate::gauges::update(self);
        self.metrics.snapshot()
    }
}
