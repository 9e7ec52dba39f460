//! One core's turn: take what happened, work on it, start what it leads to, release what has become durable.
//!
//! The same code runs over the real ring and over the simulator. A turn ends with everything that it decided handed to the
//! driver; it sleeps only when nobody has mail for it.

use std::time::Duration;

use crate::checkpointer::Checkpointer;
use crate::conns::Connection;
use crate::core::{Core, State};
use crate::driver::{ConnId, Descriptors, Door, Driver, Event, Patience};
use crate::fill_pace::FillSeen;
use crate::hop::{Item, Parcel};
use crate::mailbox::Mailbox;
use crate::recover::RecoveryReads;
use crate::scrubber::Scrubber;
use crate::space::Space;
use crate::spin::Spin;
use crate::token::{Kind, Token};

/// An idle shard spins for at most so long before it sleeps; 0 switches spinning off.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Longest spin of an idle turn, which adapts below it; zero = off.
    pub spin: Duration,
    /// Longest sleep.
    pub sleep: Duration,
    /// After so long without news the last acks' durability is written down.
    pub mark_after_ns: u64,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            spin: Duration::from_micros(200),
            sleep: Duration::from_millis(100),
            mark_after_ns: 20_000_000,
        }
    }
}

/// Connections over the bound that are told so at a time; those beyond are dropped unheard, because each holds operations
/// of the ring, which the log must not be left without.
pub(crate) const REFUSED_AT_ONCE: usize = 64;
/// Looks at the ring between two yields of a spin.
const LOOKS_PER_YIELD: usize = 4;
const HOUSEKEEPING_NS: u64 = 10_000_000;
/// Clients that take their last replies more slowly than this lose them.
const DRAIN_MAX_NS: u64 = 2_000_000_000;
/// Housekeeping that comes so late was kept from running (a stopped process, a suspended machine): clients are given their
/// time anew.
const GAP_NS: u64 = 1_000_000_000;
/// A connection is handed over when this shard has so many more than the least loaded one.
const SKEW_MAX: u32 = 4;

/// One shard over its driver.
pub struct Shard<D: Driver> {
    pub(crate) core: Core<D::Socket>,
    pub(crate) driver: D,
    mailbox: Mailbox<Box<Parcel<D::Socket>>>,
    pub(crate) checkpointer: Checkpointer,
    pub(crate) space: Space,
    pub(crate) recovery: RecoveryReads,
    events: Vec<Event<D::Socket, D::Received>>,
    pace: Pace,
    spin: Spin,
    pub(crate) scrubber: Scrubber,
    fill_seen: FillSeen,
    last_work_ns: u64,
    housekeeping_ns: u64,
    /// Since when turns have come without a long gap.
    awake_since_ns: u64,
    /// Requests were taken up behind the work of this turn: what they lead to must not wait for a sleep.
    parsed_late: bool,
    pub(crate) stopping: bool,
}

impl<D: Driver> Shard<D> {
    /// A shard that has not recovered yet.
    pub fn new(
        core: Core<D::Socket>,
        driver: D,
        mailbox: Mailbox<Box<Parcel<D::Socket>>>,
        checkpointer: Checkpointer,
        scrubber: Scrubber,
        space: Space,
        pace: Pace,
    ) -> Shard<D> {
        Shard {
            core,
            driver,
            mailbox,
            checkpointer,
            space,
            recovery: RecoveryReads::default(),
            events: Vec::with_capacity(256),
            spin: Spin::new(pace.spin),
            scrubber,
            fill_seen: FillSeen::default(),
            pace,
            last_work_ns: 0,
            housekeeping_ns: 0,
            awake_since_ns: 0,
            parsed_late: false,
            stopping: false,
        }
    }

    /// Recovered: take writes from now on.
    pub fn start(&mut self) {
        self.core.state = State::Ready;
        self.core.shared.ready[self.core.id]
            .store(crate::core::READY, std::sync::atomic::Ordering::Release);
    }

    /// Damaged: refuse everything with the reason, let the others go on.
    pub fn stop_with(&mut self, why: String) {
        tracing::error!(shard = self.core.id, "stopped: {why}");
        self.core.state = State::Stopped(why);
        self.core.shared.ready[self.core.id]
            .store(crate::core::STOPPED, std::sync::atomic::Ordering::Release);
    }

    /// One turn. Returns false when a drain is complete.
    pub fn turn(&mut self) -> bool {
        self.wait();
        self.parsed_late = false;
        self.core.now = self.driver.now();
        self.core.partition.log.advance_time(self.core.now);
        let mut events = std::mem::take(&mut self.events);
        let busy = !events.is_empty();
        for event in events.drain(..) {
            self.event(event);
        }
        self.events = events;
        let mail = self.take_mail();
        if busy || mail {
            self.last_work_ns = self.core.now.monotonic_ns;
        }
        self.core.work_answers();
        // Now that buffers may be free.
        self.core.work_line();
        if self.core.state == State::Ready {
            self.space_step();
        }
        self.flush();
        self.housekeeping();
        self.core.metrics.turn();
        if busy || mail {
            self.core.metrics.counters.busy_ns +=
                self.driver.now().monotonic_ns - self.core.now.monotonic_ns;
        }
        !(self.stopping && self.is_drained())
    }

    /// Poll; with nothing to do, spin for a while, then sleep. The open batch's time ends both.
    fn wait(&mut self) {
        self.poll(Patience::None);
        if self.has_news() || self.has_work() {
            return;
        }
        let log = &self.core.partition.log;
        let commit_ns = log.open_batch_due_ns().unwrap_or(u64::MAX);
        let started_ns = self.driver.now().monotonic_ns;
        self.spin_for_news(started_ns, commit_ns);
        if !self.has_news() {
            self.sleep_for_news(commit_ns);
        }
        let waited_ns = self.driver.now().monotonic_ns - started_ns;
        if self.has_news() || waited_ns < commit_ns.saturating_sub(started_ns) {
            self.spin.waited(waited_ns);
        }
    }

    fn has_news(&self) -> bool {
        !self.events.is_empty() || self.mailbox.waiting() > 0
    }

    fn spin_for_news(&mut self, started_ns: u64, commit_ns: u64) {
        let end_ns = commit_ns.min(started_ns + self.spin.length_ns());
        let mut now_ns = started_ns;
        while now_ns < end_ns {
            for _ in 0..LOOKS_PER_YIELD {
                self.poll(Patience::None);
                if self.has_news() {
                    return;
                }
            }
            // The kernel may finish a durable write in a worker bound to this very core: a spin that never
            // yields makes that write wait for the scheduler's tick.
            std::thread::yield_now();
            now_ns = self.driver.now().monotonic_ns;
        }
    }

    fn sleep_for_news(&mut self, commit_ns: u64) {
        let commit_in = commit_ns.saturating_sub(self.driver.now().monotonic_ns);
        if commit_in == 0 || !self.mailbox.prepare_sleep() {
            return;
        }
        let longest = if self.stopping {
            Duration::from_millis(1)
        } else {
            self.pace.sleep.min(self.core.next_deadline())
        };
        let sleep = longest.min(Duration::from_nanos(commit_in));
        self.poll(Patience::Sleep(sleep));
        self.mailbox.awake();
    }

    fn poll(&mut self, patience: Patience) {
        if let Err(error) = self.driver.poll(patience, &mut self.events) {
            // Without its ring a shard can neither ack nor answer: end the process, loudly, rather than hang its clients.
            panic!(
                "shard {}: the ring failed and cannot be used any more: {error}",
                self.core.id
            );
        }
    }

    fn has_work(&self) -> bool {
        self.parsed_late
            || self.space.is_busy()
            || (self.core.has_inbound() && !self.core.partition.log.is_dirty())
    }

    /// Handle one event.
    pub(crate) fn event(&mut self, event: Event<D::Socket, D::Received>) {
        match event {
            Event::Accepted { door, socket } => self.accepted(door, socket),
            Event::Received { conn, data } => {
                self.core.input(conn, self.driver.received(&data));
                self.driver.recycle(data);
            }
            Event::RecvClosed { conn } => {
                if let Some(c) = self.core.conns.get_mut(conn) {
                    c.ended = true;
                    self.core.touch(conn);
                }
            }
            Event::RecvPaused { conn } => {
                if let Some(c) = self.core.conns.get_mut(conn) {
                    c.paused = true;
                    self.core.touch(conn);
                }
            }
            Event::Sent { conn, data, result } => self.sent(conn, data, result.is_ok()),
            Event::Written { token, result } => match Token::kind(token) {
                Kind::LogWrite(batch) => {
                    let now_ns = self.driver.now().monotonic_ns;
                    if let Some(done) = self.core.partition.log.written(batch, result, now_ns) {
                        self.core.metrics.batch(&done);
                        self.core.partition.keep_small_batch(batch);
                        if done.durable_lsn.is_some() {
                            self.core.durable_moved();
                        }
                    } else if self.core.partition.log.failed().is_some() {
                        for conn in self.core.log_failed() {
                            self.close(conn);
                        }
                    }
                }
                Kind::Checkpoint(_) => self.checkpointer.written(result),
                other => unreachable!("a write completed as {other:?}"),
            },
            Event::Read {
                token,
                buffer,
                result,
            } => match Token::kind(token) {
                Kind::Read(index) => self.core.read_done(index, &buffer, result),
                // Awaited by the recovery that started it, or left over from one that was given up.
                Kind::Scrub => {
                    let now_ns = self.core.now.monotonic_ns;
                    let log = &self.core.partition.log;
                    self.scrubber.read_done(log, buffer, result, now_ns);
                }
                Kind::Recovery(sequence) => self.recovery.arrived(sequence, buffer, result),
                Kind::Space(_) => self.space_read(buffer, result),
                other => unreachable!("a read completed as {other:?}"),
            },
            Event::Synced { result, .. } => self.checkpointer.synced(result),
            Event::SegmentReady { result, .. } => {
                let now_ns = self.core.now.monotonic_ns;
                self.core.partition.log.segment_ready(result, now_ns);
            }
        }
    }

    fn accepted(&mut self, door: Door, socket: D::Socket) {
        if self.stopping {
            return;
        }
        let few_descriptors = match self.driver.descriptors(&socket) {
            Descriptors::Enough => false,
            Descriptors::Few => true,
            Descriptors::Last => {
                self.core.metrics.refusal(wire::Code::Overloaded);
                return;
            }
        };
        if few_descriptors {
            self.core.metrics.accepted(false);
            self.core.shared.load[self.core.id].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return self.adopt(door, socket, true);
        }
        let id = self.core.id;
        let target = if door == Door::NativeShard {
            id
        } else {
            self.core.least_loaded(SKEW_MAX)
        };
        self.core.metrics.accepted(target != id);
        if target == id {
            self.serve_socket(door, socket);
        } else {
            self.core.shared.load[target].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.core.outbound[target]
                .items
                .push(Item::Socket { door, socket });
        }
    }

    fn serve_socket(&mut self, door: Door, socket: D::Socket) {
        self.core.shared.load[self.core.id].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.adopt(door, socket, false);
    }

    fn adopt(&mut self, door: Door, socket: D::Socket, few_descriptors: bool) {
        let (open, most) = (
            self.core.conns.len(),
            self.core.shared.bounds.connections_max as usize,
        );
        if open >= most + REFUSED_AT_ONCE {
            self.core.shared.load[self.core.id].fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            self.core.metrics.refusal(wire::Code::Overloaded);
            return;
        }
        let authorised = self.core.shared.token.is_none();
        let conn = self.driver.adopt(socket);
        let mut connection = Connection::new(conn, door, authorised, self.core.now.monotonic_ns);
        if open >= most || few_descriptors {
            self.core
                .refuse_connection(&mut connection, few_descriptors);
        }
        self.core.conns.insert(connection);
        self.core.touch(conn);
    }

    fn sent(&mut self, id: ConnId, data: Vec<u8>, ok: bool) {
        let now_ns = self.core.now.monotonic_ns;
        let Some(conn) = self.core.conns.get_mut(id) else {
            return;
        };
        conn.out.sent(data);
        conn.progress_ns = now_ns;
        if ok {
            self.core.touch(id);
        } else {
            self.close(id);
        }
    }

    fn close(&mut self, id: ConnId) {
        if self.forget_connection(id) {
            self.driver.close(id);
        }
    }

    /// Close behind a last reply that the client has to be able to read.
    fn finish(&mut self, id: ConnId) {
        if self.forget_connection(id) {
            self.driver.finish(id);
        }
    }

    fn forget_connection(&mut self, id: ConnId) -> bool {
        let known = self.core.conns.remove(id).is_some();
        if known {
            self.core.shared.load[self.core.id].fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        known
    }

    pub(crate) fn take_mail(&mut self) -> bool {
        let mut parcels = Vec::new();
        self.mailbox
            .drain(|from, parcel| parcels.push((from, parcel)));
        let any = !parcels.is_empty();
        for (from, parcel) in parcels {
            let mut sockets = Vec::new();
            self.core
                .mail(from, parcel, |door, socket| sockets.push((door, socket)));
            for (door, socket) in sockets {
                // Its sender has counted it here already.
                self.adopt(door, socket, false);
            }
        }
        if !any {
            self.core.work_inbound();
        }
        any
    }

    /// Hand everything that was decided to the driver.
    pub(crate) fn flush(&mut self) {
        self.core.work_answers();
        let now_ns = self.core.now.monotonic_ns;
        self.core.partition.log.pump(&mut self.driver, now_ns);
        self.core.reads.pump(&mut self.driver, now_ns);
        self.core.tell_readiness();
        self.flush_connections();
        self.send_mail();
        self.core.flush_latencies();
    }

    fn flush_connections(&mut self) {
        let mut touched = std::mem::take(&mut self.core.touched);
        for id in touched.drain(..) {
            self.flush_connection(id);
        }
        // Retried requests may have touched connections again: they have their turn now, not a sleep later.
        for id in std::mem::replace(&mut self.core.touched, touched) {
            self.flush_connection(id);
        }
    }

    fn flush_connection(&mut self, id: ConnId) {
        let (unparsed_max, unsent_max) = (
            self.core.shared.bounds.unparsed_bytes_max,
            self.core.shared.bounds.unsent_bytes_max,
        );
        let Some(conn) = self.core.conns.get_mut(id) else {
            return;
        };
        conn.listed_touched = false;
        // Waits for a commit that will not come; its client learns after a restart what became of it.
        if conn.out.is_gated() && self.core.partition.log.failed().is_some() {
            return self.close(id);
        }
        if let Some(bytes) = conn.out.take() {
            conn.progress_ns = self.core.now.monotonic_ns;
            self.driver.send(id, bytes);
        }
        let said = conn.out.is_idle() && conn.jobs == 0;
        let whole = !conn.input.is_empty() && conn.input.len() >= conn.needed;
        if conn.ended && said && (conn.closing || (!conn.stalled && !whole)) {
            return self.close(id);
        }
        if conn.closing && said {
            return self.finish(id);
        }
        // A request that is still arriving is let in whatever its size (the parser bounds it); whole ones that cannot be
        // taken yet are not piled up.
        let crowded =
            (whole && conn.input.len() > unparsed_max) || conn.out.bytes() > 2 * unsent_max;
        if conn.ended {
            // Nothing more to read.
        } else if crowded && !conn.paused && !conn.pausing {
            conn.pausing = true;
            self.driver.pause(id);
        } else if conn.paused && !crowded {
            (conn.paused, conn.pausing) = (false, false);
            self.driver.resume(id);
        }
        if whole && !conn.stalled && !conn.closing {
            self.parsed_late |= self.core.parse_on(id);
        }
    }

    fn send_mail(&mut self) {
        for shard in 0..self.core.outbound.len() {
            if self.core.outbound[shard].items.is_empty() {
                continue;
            }
            let parcel = Box::new(std::mem::take(&mut self.core.outbound[shard]));
            if let Err(parcel) = self.mailbox.send(shard, parcel) {
                // The other shard is behind: the parcel stays and grows until it has caught up; jobs are bounded.
                self.core.outbound[shard] = *parcel;
            }
        }
        let driver = &mut self.driver;
        self.mailbox.wakes(|shard| driver.wake(shard));
    }

    fn housekeeping(&mut self) {
        let now_ns = self.core.now.monotonic_ns;
        if now_ns - self.housekeeping_ns < HOUSEKEEPING_NS {
            return;
        }
        if now_ns - self.housekeeping_ns > GAP_NS {
            self.awake_since_ns = now_ns;
        }
        self.housekeeping_ns = now_ns;
        self.core.outside.mailbox_depth = self.mailbox.depth_total() as u64;
        self.core.outside.space_held_up = self.space.is_held_up();
        self.core.outside.segments_released = self.space.released;
        self.core.outside.segments_left_reserved = self.fill_seen.segments_left;
        self.core.outside.relocated_bytes = self.space.relocated_bytes;
        self.core.outside.relocated_records = self.space.relocated_records;
        self.core.outside.checkpoint_seconds = self.checkpointer.seconds;
        self.core.outside.checkpoint_bytes = self.checkpointer.bytes;
        self.core.outside.scrubbed_bytes = self.scrubber.bytes;
        self.core.outside.scrub_errors = self.scrubber.errors;
        self.core.outside.checkpoint_ended_ns = self.checkpointer.ended_ns;
        self.core.wake_scans();
        self.core.resume_tails();
        let late = self.core.late_clients(self.awake_since_ns);
        for id in late.asking {
            self.core.metrics.late_request();
            self.core.refuse_late_request(id);
        }
        for id in late.taking {
            self.core.metrics.slow_client();
            tracing::info!(
                shard = self.core.id,
                "dropped a client that took no bytes for too long"
            );
            self.close(id);
        }
        if self.core.state != State::Ready {
            return;
        }
        if now_ns - self.last_work_ns > self.pace.mark_after_ns
            && self.core.partition.log.mark_idle()
        {
            self.core.partition.log.pump(&mut self.driver, now_ns);
        }
        if !self.stopping {
            let log = &self.core.partition.log;
            self.scrubber.step(log, &mut self.driver, now_ns);
        }
        let keys = self.core.partition.index.len();
        self.core.partition.log.note_keys(keys);
        let device_share =
            self.fill_seen.device_bytes_per_second / self.core.shared.logs.len().max(1) as u64;
        let fill = self.core.partition.log.fill(now_ns, device_share);
        self.fill_seen = self.driver.pace_preparation(fill);
        self.checkpointer.step(
            &mut self.core.partition,
            &mut self.driver,
            now_ns,
            false,
            self.space.replay_from(),
        );
    }

    /// Begin to drain: stop accepting; when everything acked is out and a last checkpoint is written, `turn` returns false.
    pub fn drain(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.core.draining = true;
            self.core.drain_since_ns = self.driver.now().monotonic_ns;
            self.driver.stop_accepting();
        }
    }

    fn is_drained(&mut self) -> bool {
        if self.core.partition.log.is_dirty() && self.core.partition.log.failed().is_none() {
            return false;
        }
        // What was taken is answered: own requests that others or the device still work on. Tails and their like may wait
        // for long; they end with the connection.
        let owed = self
            .core
            .conns
            .iter_mut()
            .any(|c| c.out.has_unsent() || c.jobs > c.heavy);
        let late = self.drain_is_late();
        if owed && !late {
            return false;
        }
        // Nothing is parsed any more, so nothing new comes up. But another shard may have requests under way that it asks
        // of this one, or may not have heard of the drain yet: its questions are answered until it has none.
        self.core.settle();
        let asked = self.core.has_inbound() || self.mailbox.waiting() > 0;
        if !self.core.all_settled() || (asked && !late) {
            return false;
        }
        // Behind a failed write no checkpoint can settle: what is there is what a restart reads.
        if self.core.state != State::Ready || self.core.partition.log.failed().is_some() {
            return true;
        }
        let now_ns = self.core.now.monotonic_ns;
        self.checkpointer.step(
            &mut self.core.partition,
            &mut self.driver,
            now_ns,
            true,
            self.space.replay_from(),
        );
        self.checkpointer.is_current(&self.core.partition) || self.checkpointer.failed()
    }

    /// Clients that do not take their last replies do not hold up the drain for long.
    fn drain_is_late(&self) -> bool {
        self.core
            .now
            .monotonic_ns
            .saturating_sub(self.core.drain_since_ns)
            > DRAIN_MAX_NS
    }

    /// Segments released, and files of them recycled, in this run.
    pub fn space_counts(&self) -> (u64, u64) {
        (self.space.released, self.core.partition.log.recycled)
    }

    /// Last lsn known to be on stable storage.
    pub fn durable_lsn(&self) -> u64 {
        self.core.partition.log.durable_lsn()
    }
}
