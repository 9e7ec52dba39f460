//! One core's turn: take what happened, work on it, start what it leads to, release what has become durable.
//!
//! The same code runs over the real ring and over the simulator. A turn ends with everything that it decided handed to the
//! driver; it sleeps only when nobody has mail for it.
//!
//! `waiting` is how a turn begins, `connections` what it does with sockets, `housekeeping` what it does now and then, `drain`
//! how the last one is found.

mod connections;
mod drain;
mod housekeeping;
mod waiting;

use std::time::Duration;

use crate::checkpointer::Checkpointer;
use crate::core::{Core, State};
use crate::driver::{Driver, Event};
use crate::fill_pace::FillSeen;
use crate::hop::Parcel;
use crate::mailbox::Mailbox;
use crate::recover::RecoveryReads;
use crate::scrubber::Scrubber;
use crate::space::Space;
use crate::spin::Spin;
use crate::token::{Kind, Token};

pub(crate) use connections::REFUSED_AT_ONCE;

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
                Kind::Checkpoint(_) => self
                    .checkpointer
                    .written(result, self.core.now.monotonic_ns),
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
            Event::Synced { result, .. } => {
                let now_ns = self.core.now.monotonic_ns;
                self.checkpointer.synced(result, now_ns);
            }
            Event::SegmentReady { result, .. } => {
                let now_ns = self.core.now.monotonic_ns;
                self.core.partition.log.segment_ready(result, now_ns);
            }
        }
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

    /// Segments released, and files of them recycled, in this run.
    pub fn space_counts(&self) -> (u64, u64) {
        (self.space.released, self.core.partition.log.recycled)
    }

    /// Last lsn known to be on stable storage.
    pub fn durable_lsn(&self) -> u64 {
        self.core.partition.log.durable_lsn()
    }
}
