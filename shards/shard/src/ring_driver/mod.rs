//! The real world: a `Driver` over one io_uring.
//!
//! Owns the ring, the sockets of this shard and the open files of its log. Segment files are prepared on a thread of
//! their own (`preparer`), because filling a file with zeroes is work that no shard's turn should wait for.
//!
//! Invariants: an operation that the ring has no room for is started later, in order, and never reported as failed;
//! connections leave the disk its part of the ring's contexts.

mod connections;
mod disk;
mod listeners;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use uring::latency::SyncMethod;
use uring::{Buffer, Completion, Received, Ring, RingAddress, Wait, Waker, WriteDurability};

use crate::driver::{
    ConnId, Descriptors, Door, Driver, Event, FileId, Now, Patience, SegmentSource,
};
use crate::fill_pace::{Fill, FillSeen};
use crate::preparer::{Prepared, Preparer, SegmentJob};
use connections::{ConnectionOperation, LINGERING_MAX, Lingering, Peer};
use disk::{DISK_OPERATIONS, DiskOperation};
use listeners::{ACCEPT_RETRY_NS, ACCEPT_WARN_NS, Listener, Reserve};

const CLASS_SHIFT: u32 = 60;
const CLASS_MASK: u64 = 0xf << CLASS_SHIFT;
const CLASS_SHARD: u64 = 0;
const CLASS_ACCEPT: u64 = 1 << CLASS_SHIFT;
const CLASS_RECV: u64 = 2 << CLASS_SHIFT;
const CLASS_SEND: u64 = 3 << CLASS_SHIFT;
/// The flush behind a write, where the device profile prefers write + fdatasync.
const CLASS_FLUSH: u64 = 4 << CLASS_SHIFT;
const GENERATION_MASK: u32 = 0x0fff_ffff;

/// Of connections that are closed and whose last operations have not ended, and of the listeners.
const OPERATIONS_SPARE: u32 = 512;

/// Contexts that the ring of a shard with so many connections needs: a receive and a send of each, lingering ones and those
/// that are being refused included, and what the disk may have in flight.
pub fn operations_max(connections_max: u32) -> u32 {
    let connections = connections_max + (crate::turn::REFUSED_AT_ONCE + LINGERING_MAX) as u32;
    2 * connections + OPERATIONS_SPARE + DISK_OPERATIONS as u32
}

/// Ring addresses of all shards, filled in as they start.
pub type Addresses = Arc<[OnceLock<RingAddress>]>;

/// See the module's header.
pub struct RingDriver {
    ring: Ring,
    sync_method: SyncMethod,
    files: Vec<Rc<OwnedFd>>,
    peers: Vec<Peer>,
    free: Vec<u32>,
    listeners: Vec<Listener>,
    accepting: bool,
    reserve: Reserve,
    accept_warned_ns: Option<u64>,
    /// Start of the last poll.
    polled_ns: u64,
    /// Connections to be asked whether they have ended, and when.
    watched: VecDeque<(u64, ConnId)>,
    lingering: VecDeque<Lingering>,
    waiting_connections: VecDeque<ConnectionOperation>,
    waiting_disk: VecDeque<DiskOperation>,
    disk_in_flight: usize,
    /// Contexts that connections leave to the disk.
    disk_reserve: usize,
    /// Written, not yet flushed: (token, file, bytes).
    flushing: Vec<(u64, FileId, usize)>,
    preparer: Preparer,
    prepared: (mpsc::Sender<Prepared>, mpsc::Receiver<Prepared>),
    preparing: usize,
    waker: Waker,
    addresses: Addresses,
    completions: Vec<Completion>,
    ready: VecDeque<Event<OwnedFd, Received>>,
}

impl RingDriver {
    /// A driver on the calling thread, which must be the one that uses it.
    pub fn new(
        mut ring: Ring,
        sync_method: SyncMethod,
        files: Vec<OwnedFd>,
        listeners: Vec<(Door, OwnedFd)>,
        preparer: Preparer,
        shard: usize,
        addresses: Addresses,
    ) -> io::Result<RingDriver> {
        let waker = ring.waker()?;
        let _ = addresses[shard].set(ring.address());
        let mut driver = RingDriver {
            ring,
            sync_method,
            files: Vec::new(),
            peers: Vec::new(),
            free: Vec::new(),
            listeners: listeners
                .into_iter()
                .map(|(door, socket)| Listener {
                    door,
                    socket: Rc::new(socket),
                    retry_at_ns: None,
                })
                .collect(),
            accepting: true,
            reserve: Reserve::of(uring::limits::nofile().soft),
            accept_warned_ns: None,
            polled_ns: uring::clock::monotonic_ns(),
            watched: VecDeque::new(),
            lingering: VecDeque::new(),
            waiting_connections: VecDeque::new(),
            waiting_disk: VecDeque::new(),
            disk_in_flight: 0,
            disk_reserve: DISK_OPERATIONS,
            flushing: Vec::new(),
            preparer,
            prepared: mpsc::channel(),
            preparing: 0,
            waker,
            addresses,
            completions: Vec::with_capacity(256),
            ready: VecDeque::new(),
        };
        for file in files {
            driver.add_file(file);
        }
        for index in 0..driver.listeners.len() {
            driver.arm(index)?;
        }
        Ok(driver)
    }

    /// Something that wakes this driver from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The disk goes first: acks wait for it.
    fn start_waiting(&mut self) {
        self.start_disk();
        self.start_connections();
    }

    fn translate(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { token, socket } => {
                let door = self.listeners[(token & !CLASS_MASK) as usize].door;
                if self.accepting {
                    self.ready.push_back(Event::Accepted { door, socket });
                }
            }
            Completion::AcceptEnded { token, error } => {
                let index = (token & !CLASS_MASK) as usize;
                if self.accepting {
                    let now = uring::clock::monotonic_ns();
                    self.listeners[index].retry_at_ns = Some(now + ACCEPT_RETRY_NS);
                    if self
                        .accept_warned_ns
                        .is_none_or(|at| now - at > ACCEPT_WARN_NS)
                    {
                        self.accept_warned_ns = Some(now);
                        tracing::warn!(
                            "accept stopped ({error}): trying again every {} ms; raise `ulimit -n` if descriptors ran out",
                            ACCEPT_RETRY_NS / 1_000_000
                        );
                    }
                }
            }
            Completion::Received { token, data } => {
                self.received_from(ConnId(token & !CLASS_MASK), data)
            }
            Completion::RecvEnded { token, result } => {
                self.receive_ended(ConnId(token & !CLASS_MASK), result)
            }
            Completion::Sent {
                token,
                data,
                result,
            } => self.sent(ConnId(token & !CLASS_MASK), data, result),
            Completion::Written { token, result } => {
                self.disk_in_flight -= 1;
                self.written(token, result);
            }
            Completion::Synced { token, result } => {
                self.disk_in_flight -= 1;
                self.synced(token, result);
            }
            Completion::Read {
                token,
                buffer,
                result,
            } => {
                self.disk_in_flight -= 1;
                self.ready.push_back(Event::Read {
                    token,
                    buffer,
                    result,
                });
            }
            Completion::Woken { .. } => {}
        }
    }
}

impl Driver for RingDriver {
    type Socket = OwnedFd;
    type Received = Received;

    fn now(&mut self) -> Now {
        Now {
            monotonic_ns: uring::clock::monotonic_ns(),
            wall_us: uring::clock::wall_us(),
        }
    }

    fn descriptors(&self, socket: &OwnedFd) -> Descriptors {
        self.reserve
            .judge(u64::try_from(socket.as_raw_fd()).unwrap_or(0))
    }

    fn adopt(&mut self, socket: OwnedFd) -> ConnId {
        let conn = self.new_peer(socket);
        self.on_connection(ConnectionOperation::Receive(conn));
        conn
    }

    fn received<'a>(&'a self, data: &'a Received) -> &'a [u8] {
        self.ring.received(data)
    }

    fn recycle(&mut self, data: Received) {
        self.ring.recycle(data);
    }

    fn pause(&mut self, conn: ConnId) {
        self.on_connection(ConnectionOperation::Pause(conn));
    }

    fn resume(&mut self, conn: ConnId) {
        self.on_connection(ConnectionOperation::Receive(conn));
    }

    fn send(&mut self, conn: ConnId, data: Vec<u8>) {
        if let Some(peer) = self.peer(conn) {
            peer.sent = 0;
        }
        self.on_connection(ConnectionOperation::Send {
            conn,
            data,
            from: 0,
        });
    }

    fn close(&mut self, conn: ConnId) {
        // The shutdown ends whatever is in flight; each operation holds the socket until its completion.
        if let Some(socket) = self.release_peer(conn) {
            uring::socket::shutdown(&socket);
        }
    }

    fn finish(&mut self, conn: ConnId) {
        self.linger(conn);
    }

    fn stop_accepting(&mut self) {
        self.accepting = false;
        for index in 0..self.listeners.len() {
            let _ = self.ring.cancel(CLASS_ACCEPT | index as u64);
            self.listeners[index].retry_at_ns = None;
        }
    }

    fn write_durable(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    ) {
        debug_assert_eq!(token & CLASS_MASK, CLASS_SHARD);
        let durability = match self.sync_method {
            SyncMethod::Dsync => WriteDurability::Dsync,
            SyncMethod::Fdatasync => {
                self.flushing.push((token, file, 0));
                WriteDurability::None
            }
        };
        self.on_disk(DiskOperation::Write {
            file,
            offset,
            buffer,
            range,
            durability,
            token,
        });
    }

    fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    ) {
        self.on_disk(DiskOperation::Write {
            file,
            offset,
            buffer,
            range,
            durability: WriteDurability::None,
            token,
        });
    }

    fn sync(&mut self, file: FileId, token: u64) {
        self.on_disk(DiskOperation::Sync { file, token });
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: Buffer, len: usize, token: u64) {
        self.on_disk(DiskOperation::Read {
            file,
            offset,
            buffer,
            len,
            token,
        });
    }

    fn prepare_segment(
        &mut self,
        slot: u32,
        source: SegmentSource,
        segment_bytes: u64,
        header: Vec<u8>,
        checkpoint_bytes: u64,
        token: u64,
    ) {
        self.preparing += 1;
        let job = SegmentJob {
            slot,
            source,
            segment_bytes,
            header,
            checkpoint_bytes,
            token,
            done: self.prepared.0.clone(),
            waker: self.waker.clone(),
        };
        self.preparer.start(job);
    }

    fn empty_segment(&mut self, slot: u32, _: FileId) {
        self.preparer.empty(slot);
    }

    fn pace_preparation(&mut self, fill: Fill) -> FillSeen {
        self.preparer.pace(fill)
    }

    fn wake(&mut self, shard: usize) {
        if let Some(address) = self.addresses[shard].get() {
            let _ = self.ring.wake(address, shard as u64);
        }
    }

    fn poll(
        &mut self,
        patience: Patience,
        events: &mut Vec<Event<OwnedFd, Received>>,
    ) -> io::Result<()> {
        self.polled_ns = uring::clock::monotonic_ns();
        self.take_prepared();
        self.look_for_ends();
        let (retry_at, linger_until) = (self.rearm(), self.end_late_lingering());
        self.start_waiting();
        let wait = match patience {
            Patience::Sleep(time) if self.ready.is_empty() => {
                let due = retry_at.into_iter().chain(linger_until).min().map(|at| {
                    Duration::from_nanos(at.saturating_sub(uring::clock::monotonic_ns()))
                });
                Wait::Sleep(due.map_or(time, |t| t.min(time)))
            }
            _ => Wait::No,
        };
        let mut completions = std::mem::take(&mut self.completions);
        let result = self.ring.turn(wait, &mut completions);
        for completion in completions.drain(..) {
            self.translate(completion);
        }
        self.completions = completions;
        // What has ended makes room.
        self.start_waiting();
        self.take_prepared();
        events.extend(self.ready.drain(..));
        result
    }
}
