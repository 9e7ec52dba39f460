//! Everything of a shard except its driver: connections, the partition, jobs, and the mail for other shards.
//!
//! `Core` is told what arrived and collects what has to be sent, read and written; `turn` moves that to and from the
//! driver. It performs no I/O.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use wire::native::ReplyMark;
use wire::{Code, Refusal, Topology, slot};

use crate::conns::Connections;
use crate::driver::{ConnId, Now};
use crate::hop::{Answer, Answered, Item, Origin, Parcel, Ticket};
use crate::jobs::Jobs;
use crate::metrics::{ShardMetrics, ShardSnapshot};
use crate::outbox::{Operation, Released};
use crate::owner::Later;
use crate::partition::{Appended, Partition, refuse_for};
use crate::reads::{Reads, Scan, ScanHints};

/// Bounds of one shard, printed at start.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Largest payload of one record.
    pub payload_bytes_max: u32,
    /// Largest native frame, header included.
    pub frame_bytes_max: u32,
    /// Largest HTTP body.
    pub body_bytes_max: usize,
    /// Connections of one shard.
    pub connections_max: u32,
    /// Unsent bytes of one connection above which its requests wait.
    pub unsent_bytes_max: usize,
    /// Unparsed bytes of one connection above which it is not read.
    pub unparsed_bytes_max: usize,
    /// A client that takes no bytes for so long, while there are some, is dropped.
    pub stalled_client_ns: u64,
    /// A request that was begun must be whole after so long, plus what its bytes take at `REQUEST_BYTES_PER_SECOND`.
    pub request_timeout_ns: u64,
    /// Jobs of one connection, and of one shard, above which requests wait.
    pub connection_jobs_max: u32,
    /// Histories, scans and tails of one connection that may be under way.
    pub connection_heavy_max: u32,
    /// Unread replies, and unparsed requests, of all connections of a shard, above which large ones are refused.
    pub unsent_bytes_total: u64,
    /// The same for unparsed requests.
    pub unparsed_bytes_total: u64,
    /// Jobs of one shard above which requests wait.
    pub jobs_max: usize,
}

/// A client that is slower than this while it sends a large request is not waited for.
const REQUEST_BYTES_PER_SECOND: u64 = 64 << 10;

/// Connections that are not waited for any longer.
#[derive(Default)]
pub(crate) struct LateClients {
    /// They have taken no byte of what is ready for them for too long.
    pub taking: Vec<ConnId>,
    /// They have begun a request and do not end it.
    pub asking: Vec<ConnId>,
}

/// What every shard of a process knows.
pub struct Shared {
    /// Identity of the store.
    pub store: String,
    /// As served in every protocol.
    pub topology: Topology,
    /// Log number of each shard.
    pub logs: Vec<u32>,
    /// Timeline of the logs; cursors carry it.
    pub timeline: u32,
    /// What clients must show, where they must.
    pub token: Option<Vec<u8>>,
    /// Address that is listened on.
    pub listen: IpAddr,
    /// Bounds of every shard.
    pub bounds: Bounds,
    /// Connections of each shard, for balance.
    pub load: Vec<AtomicU32>,
    /// `RECOVERING`, `READY`, `STOPPED` or `READ_ONLY` for each shard.
    pub ready: Vec<AtomicU32>,
    /// Shards that drain and have nothing more to ask of the others: none ends before all have.
    pub settled: Vec<AtomicBool>,
}

impl Shared {
    /// The shard will ask the others nothing any more.
    pub fn settle(&self, shard: usize) {
        self.settled[shard].store(true, Ordering::Release);
    }
}

/// What a shard says of itself to the others, in `Shared::ready`.
pub const RECOVERING: u32 = 0;
/// Takes writes.
pub const READY: u32 = 1;
/// Refuses everything until a restart.
pub const STOPPED: u32 = 2;
/// Reads go on, writes are refused: a log write failed, or no segment can be made.
pub const READ_ONLY: u32 = 3;

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

/// A request from another shard that waits its turn, bytes still in the parcel it came in.
struct Inbound<S> {
    from: usize,
    parcel: Box<Parcel<S>>,
    next: usize,
}

/// Who waits for room in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiter {
    /// A connection, stalled on an append.
    Connection(ConnId),
    /// The first of the other shards' requests.
    Inbound,
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
    /// The other shards' requests stand in the line.
    inbound_waits: bool,
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

    /// Mail from another shard. Answers are taken at once; requests in order, as the log has room.
    pub(crate) fn mail(
        &mut self,
        from: usize,
        parcel: Box<Parcel<S>>,
        mut socket: impl FnMut(crate::driver::Door, S),
    ) {
        let mut parcel = parcel;
        let mut asks = false;
        for item in &mut parcel.items {
            match item {
                Item::Ask { .. } => asks = true,
                Item::Answer { .. } | Item::Socket { .. } => {}
            }
        }
        let items = std::mem::take(&mut parcel.items);
        let mut kept = Vec::with_capacity(if asks { items.len() } else { 0 });
        for item in items {
            match item {
                Item::Answer { ticket, answered } => self.answers.push_back((ticket, 0, answered)),
                Item::Socket { door, socket: s } => socket(door, s),
                ask @ Item::Ask { .. } => kept.push(ask),
            }
        }
        if !kept.is_empty() {
            parcel.items = kept;
            self.inbound.push_back(Inbound {
                from,
                parcel,
                next: 0,
            });
        }
        self.work_inbound();
    }

    /// Serve other shards' requests until one has to wait for room: then they stand in line.
    pub(crate) fn work_inbound(&mut self) {
        if self.inbound_waits {
            return;
        }
        self.serve_inbound();
        if !self.inbound.is_empty() {
            self.inbound_waits = true;
            self.wait_in_line(Waiter::Inbound);
        }
    }

    /// True if one was served.
    fn serve_inbound(&mut self) -> bool {
        let mut served = false;
        while let Some(mut inbound) = self.inbound.pop_front() {
            while let Some(Item::Ask { ticket, ask }) = inbound.parcel.items.get(inbound.next) {
                let origin = Origin {
                    shard: inbound.from,
                    ticket: *ticket,
                };
                let arena = &inbound.parcel.arena;
                let ask = ask.map(|piece| &arena[piece.range()]);
                if let Err(Later) = self.serve(origin, &ask) {
                    self.inbound.push_front(inbound);
                    return served;
                }
                inbound.next += 1;
                served = true;
            }
        }
        served
    }

    /// A connection's append waits for room.
    pub(crate) fn connection_waits(&mut self, id: ConnId) {
        self.wait_in_line(Waiter::Connection(id));
    }

    fn wait_in_line(&mut self, waiter: Waiter) {
        self.line.push_back(waiter);
        self.partition.log.stand_in_line(true, false);
    }

    /// Try again what waits for room, in order, up to the first that still has to. One that got its room and wants more
    /// stands at the end.
    pub(crate) fn work_line(&mut self) {
        while let Some(first) = self.line.pop_front() {
            let others = self.line.len();
            self.partition.log.stand_in_line(others > 0, true);
            let got = match first {
                Waiter::Connection(id) => self.retry(id),
                Waiter::Inbound => {
                    self.inbound_waits = false;
                    let served = self.serve_inbound();
                    if !self.inbound.is_empty() {
                        self.inbound_waits = true;
                        self.line.push_back(Waiter::Inbound);
                    }
                    served
                }
            };
            let waits_on = self.line.len() > others;
            if waits_on && !got {
                self.line.rotate_right(1);
            }
            self.partition
                .log
                .stand_in_line(!self.line.is_empty(), false);
            if waits_on && !got {
                return;
            }
        }
    }

    /// Take up answers for our own jobs until none are left.
    pub(crate) fn work_answers(&mut self) {
        while let Some((ticket, gate, answered)) = self.answers.pop_front() {
            self.job_answered(ticket, gate, answered);
        }
    }

    pub(crate) fn has_inbound(&self) -> bool {
        !self.inbound.is_empty()
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

    /// The shard that should serve a new connection: this one, unless it has clearly more than the least loaded.
    pub(crate) fn least_loaded(&self, skew_max: u32) -> usize {
        let load = |shard: usize| self.shared.load[shard].load(Ordering::Relaxed);
        let least = (0..self.shards())
            .min_by_key(|s| load(*s))
            .unwrap_or(self.id);
        if load(self.id) > load(least) + skew_max {
            least
        } else {
            self.id
        }
    }

    /// Over the bound of connections (or of descriptors): say so and close.
    pub(crate) fn refuse_connection(
        &mut self,
        conn: &mut crate::conns::Connection,
        few_descriptors: bool,
    ) {
        let max = self.shared.bounds.connections_max;
        let why = if few_descriptors {
            "this server has no descriptors left for more connections: try again later".to_owned()
        } else {
            format!("this shard serves {max} connections already: try again later")
        };
        self.refuse_and_close(conn, &refuse_for(Code::Overloaded, 1000, why));
    }

    /// Say why, then close.
    pub(crate) fn refuse_and_close(
        &mut self,
        conn: &mut crate::conns::Connection,
        refusal: &Refusal,
    ) {
        self.count_refusal(refusal);
        let mark = self.mark();
        let voice = match conn.door {
            crate::driver::Door::Http => crate::jobs::Voice::Http {
                keep_alive: false,
                head: false,
            },
            _ => crate::jobs::Voice::Native { id: 0, opcode: 0 },
        };
        let released = Released {
            operation: Operation::Other,
            started_ns: self.now.monotonic_ns,
            count: 1,
        };
        conn.out.reply(0, released, |out| {
            crate::render::refusal(out, &voice, mark, refusal, None)
        });
        conn.closing = true;
        conn.input = Vec::new();
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

    /// Clients that take or send too slowly. What passed before `awake_since_ns` is not held against them: this process
    /// may have been stopped, and their bytes wait in the kernel.
    pub(crate) fn late_clients(&mut self, awake_since_ns: u64) -> LateClients {
        let now = self.now.monotonic_ns;
        let (limit, whole_after) = (
            self.shared.bounds.stalled_client_ns,
            self.shared.bounds.request_timeout_ns,
        );
        let passed = |since_ns: u64| now.saturating_sub(since_ns.max(awake_since_ns));
        let mut late = LateClients::default();
        let mut waiting = Vec::new();
        (self.unsent_bytes, self.unparsed_bytes) = (0, 0);
        for conn in self.conns.iter_mut() {
            self.unsent_bytes += conn.out.bytes() as u64;
            self.unparsed_bytes += conn.input.len() as u64;
            let arriving = !conn.input.is_empty()
                && conn.input.len() < conn.needed
                && !(conn.stalled || conn.paused || conn.pausing || conn.closing);
            if conn.out.has_unsent() && !conn.out.is_gated() && passed(conn.progress_ns) > limit {
                late.taking.push(conn.id);
            } else if arriving
                && passed(conn.input_since_ns)
                    > whole_after
                        + conn.input.len() as u64 * 1_000_000_000 / REQUEST_BYTES_PER_SECOND
            {
                late.asking.push(conn.id);
            } else if !conn.input.is_empty() && !conn.stalled {
                // Waits for a bound of the whole shard: nothing else would remind us of it.
                waiting.push(conn.id);
            }
        }
        for id in waiting {
            self.touch(id);
        }
        late
    }

    /// A request was begun and is not whole in time: say so and close.
    pub(crate) fn refuse_late_request(&mut self, id: ConnId) {
        let Some(mut conn) = self.conns.check_out(id) else {
            return;
        };
        let message = format!(
            "the request was begun and is not whole after {} s: send requests in one go",
            self.shared.bounds.request_timeout_ns / 1_000_000_000
        );
        let refusal = crate::partition::refuse(Code::RequestTimeout, message);
        self.refuse_and_close(&mut conn, &refusal);
        self.conns.check_in(conn);
        self.touch(id);
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

    /// This shard asks the others nothing any more.
    pub(crate) fn settle(&self) {
        self.shared.settle(self.id);
    }

    /// No shard has anything more to ask of this one.
    pub(crate) fn all_settled(&self) -> bool {
        let settled = &self.shared.settled;
        settled.iter().all(|s| s.load(Ordering::Acquire))
    }

    /// Tell the other shards whether this one takes writes: any of them may be asked. Before the answers of a turn leave, so
    /// that who was refused here is not told "ready" elsewhere.
    pub(crate) fn tell_readiness(&self) {
        if self.state != State::Ready {
            return;
        }
        let log = &self.partition.log;
        let takes_writes = log.failed().is_none() && !log.disk_full() && log.no_segment().is_none();
        let now = if takes_writes { READY } else { READ_ONLY };
        let told = &self.shared.ready[self.id];
        if told.load(Ordering::Relaxed) != now {
            told.store(now, Ordering::Release);
        }
    }

    pub(crate) fn is_process_ready(&self) -> bool {
        self.shared
            .ready
            .iter()
            .all(|r| r.load(Ordering::Acquire) == READY)
    }
}
