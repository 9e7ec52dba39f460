//! The real world: a `Driver` over one io_uring.
//!
//! Owns the ring, the sockets of this shard and the open files of its log. Segment files are prepared on a thread of
//! their own (`preparer`), because filling a file with zeroes is work that no shard's turn should wait for.

mod connections;
mod disk;
mod listeners;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::mpsc;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use uring::latency::SyncMethod;
use uring::{Buffer, Completion, Received, Ring, RingAddress, Wait, Waker, WriteDurability};

use crate::driver::{ConnId, Door, Driver, Event, FileId, Now, Patience};
use crate::preparer::{Prepared, Preparer, SegmentJob};
use connections::{Peer, libc_codes};
use listeners::{ACCEPT_RETRY_NS, Listener};

const CLASS_SHIFT: u32 = 60;
const CLASS_MASK: u64 = 0xf << CLASS_SHIFT;
const CLASS_SHARD: u64 = 0;
const CLASS_ACCEPT: u64 = 1 << CLASS_SHIFT;
const CLASS_RECV: u64 = 2 << CLASS_SHIFT;
const CLASS_SEND: u64 = 3 << CLASS_SHIFT;
/// The flush behind a write, where the device profile prefers write + fdatasync.
const CLASS_FLUSH: u64 = 4 << CLASS_SHIFT;
const GENERATION_MASK: u32 = 0x0fff_ffff;

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
            files: files.into_iter().map(Rc::new).collect(),
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
            flushing: Vec::new(),
            preparer,
            prepared: mpsc::channel(),
            preparing: 0,
            waker,
            addresses,
            completions: Vec::with_capacity(256),
            ready: VecDeque::new(),
        };
        for index in 0..driver.listeners.len() {
            driver.arm(index)?;
        }
        Ok(driver)
    }

    /// Something that wakes this driver from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    fn translate(&mut self, completion: Completion) {
        match completion {
            Completion::Accepted { token, socket } => {
                let door = self.listeners[(token & !CLASS_MASK) as usize].door;
                if uring::socket::tune_accepted(&socket).is_ok() && self.accepting {
                    self.ready.push_back(Event::Accepted { door, socket });
                }
            }
            Completion::AcceptEnded { token, error } => {
                let index = (token & !CLASS_MASK) as usize;
                if self.accepting {
                    tracing::warn!(
                        "accept stopped ({error}): trying again shortly; raise `ulimit -n` if descriptors ran out"
                    );
                    self.listeners[index].retry_at_ns =
                        Some(uring::clock::monotonic_ns() + ACCEPT_RETRY_NS);
                }
            }
            Completion::Received { token, data } => {
                let conn = ConnId(token & !CLASS_MASK);
                match self.peer(conn) {
                    Some(_) => self.ready.push_back(Event::Received { conn, data }),
                    None => self.ring.recycle(data),
                }
            }
            Completion::RecvEnded { token, result } => {
                let conn = ConnId(token & !CLASS_MASK);
                if self.peer(conn).is_none() {
                    return;
                }
                let paused = match &result {
                    Err(e) => matches!(
                        e.raw_os_error(),
                        Some(libc_codes::ECANCELED | libc_codes::ENOBUFS)
                    ),
                    Ok(()) => false,
                };
                self.ready.push_back(if paused {
                    Event::RecvPaused { conn }
                } else {
                    Event::RecvClosed { conn }
                });
            }
            Completion::Sent {
                token,
                data,
                result,
            } => self.sent(ConnId(token & !CLASS_MASK), data, result),
            Completion::Written { token, result } => match result {
                Ok(bytes)
                    if self.sync_method == SyncMethod::Fdatasync
                        && self.flushing.iter().any(|(t, ..)| *t == token) =>
                {
                    self.flush_behind(token, bytes);
                }
                result => {
                    self.flushing.retain(|(t, ..)| *t != token);
                    self.ready.push_back(Event::Written { token, result });
                }
            },
            Completion::Synced { token, result } if token & CLASS_MASK == CLASS_FLUSH => {
                let token = token & !CLASS_MASK;
                let Some(at) = self.flushing.iter().position(|(t, ..)| *t == token) else {
                    return;
                };
                let (_, _, bytes) = self.flushing.swap_remove(at);
                self.ready.push_back(Event::Written {
                    token,
                    result: result.map(|()| bytes),
                });
            }
            Completion::Synced { token, result } => {
                self.ready.push_back(Event::Synced { token, result })
            }
            Completion::Read {
                token,
                buffer,
                result,
            } => self.ready.push_back(Event::Read {
                token,
                buffer,
                result,
            }),
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

    fn adopt(&mut self, socket: OwnedFd) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.peers.push(Peer {
                generation: 0,
                socket: None,
                sent: 0,
            });
            self.peers.len() as u32 - 1
        });
        let peer = &mut self.peers[index as usize];
        peer.generation = (peer.generation + 1) & GENERATION_MASK;
        peer.socket = Some(Rc::new(socket));
        let conn = ConnId((u64::from(peer.generation) << 32) | u64::from(index));
        self.start_recv(conn);
        conn
    }

    fn received<'a>(&'a self, data: &'a Received) -> &'a [u8] {
        self.ring.received(data)
    }

    fn recycle(&mut self, data: Received) {
        self.ring.recycle(data);
    }

    fn pause(&mut self, conn: ConnId) {
        let _ = self.ring.cancel(CLASS_RECV | conn.0);
    }

    fn resume(&mut self, conn: ConnId) {
        self.start_recv(conn);
    }

    fn send(&mut self, conn: ConnId, data: Vec<u8>) {
        if let Some(peer) = self.peer(conn) {
            peer.sent = 0;
        }
        self.start_send(conn, data, 0);
    }

    fn close(&mut self, conn: ConnId) {
        let Some(peer) = self.peer(conn) else { return };
        // The shutdown ends whatever is in flight; each operation holds the socket until its completion.
        if let Some(socket) = peer.socket.take() {
            uring::socket::shutdown(&socket);
        }
        self.free.push((conn.0 & 0xffff_ffff) as u32);
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
        match self.sync_method {
            SyncMethod::Dsync => {
                self.start_write(file, offset, buffer, range, WriteDurability::Dsync, token)
            }
            SyncMethod::Fdatasync => {
                self.flushing.push((token, file, 0));
                self.start_write(file, offset, buffer, range, WriteDurability::None, token);
            }
        }
    }

    fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    ) {
        self.start_write(file, offset, buffer, range, WriteDurability::None, token);
    }

    fn sync(&mut self, file: FileId, token: u64) {
        let file = Rc::clone(&self.files[file.0 as usize]);
        if let Err(error) = self.ring.fdatasync(file, token) {
            self.ready.push_back(Event::Synced {
                token,
                result: Err(error),
            });
        }
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: Buffer, len: usize, token: u64) {
        let file = Rc::clone(&self.files[file.0 as usize]);
        self.ring
            .read(file, offset, buffer, len, token)
            .expect("the operation pool is sized for every read buffer there is");
    }

    fn prepare_segment(
        &mut self,
        slot: u32,
        recycle: Option<FileId>,
        segment_bytes: u64,
        header: Vec<u8>,
        token: u64,
    ) {
        self.preparing += 1;
        let job = SegmentJob {
            slot,
            recycle,
            segment_bytes,
            header,
            token,
            done: self.prepared.0.clone(),
            waker: self.waker.clone(),
        };
        self.preparer.start(job);
    }

    fn pace_preparation(&mut self, bytes_per_second: u64) {
        self.preparer.pace(bytes_per_second);
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
        self.take_prepared();
        let retry_at = self.rearm();
        let wait = match patience {
            Patience::Sleep(time) if self.ready.is_empty() => {
                let until_retry = retry_at.map(|at| {
                    Duration::from_nanos(at.saturating_sub(uring::clock::monotonic_ns()))
                });
                Wait::Sleep(until_retry.map_or(time, |t| t.min(time)))
            }
            _ => Wait::No,
        };
        let mut completions = std::mem::take(&mut self.completions);
        let result = self.ring.turn(wait, &mut completions);
        for completion in completions.drain(..) {
            self.translate(completion);
        }
        self.completions = completions;
        self.take_prepared();
        events.extend(self.ready.drain(..));
        result
    }
}
