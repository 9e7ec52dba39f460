//! Sockets of this shard: what each receives and sends, and how its end is made readable.
//!
//! Operations start in the order that they were asked for. They leave contexts of the ring for the disk (`room`), so
//! many connections can make each other wait and never the log.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use uring::Received;

use super::{CLASS_RECV, CLASS_SEND, GENERATION_MASK, RingDriver};
use crate::driver::{ConnId, Event};

/// Connections whose input is still taken behind their last reply, at a time: one more, and the oldest ends.
pub(super) const LINGERING_MAX: usize = 64;
/// How long one lingers at most, and how much of its input is thrown away. A client that was refused in the middle of a
/// large request reads the answer when it has sent the rest, or not at all; beyond these bounds it is reset.
const LINGER_NS: u64 = 2_000_000_000;
pub(super) const LINGER_BYTES_MAX: usize = 64 << 20;

/// Quiet for so long after its last bytes, a connection is asked whether it has ended.
const END_AFTER_NS: u64 = 250_000_000;

pub(super) struct Peer {
    pub generation: u32,
    pub socket: Option<Rc<OwnedFd>>,
    /// Bytes of the running send that are already out.
    pub sent: usize,
    /// A receive is armed, or waits to be.
    pub receiving: bool,
    /// When bytes last came, and whether it is looked at for an end that the kernel did not tell (see `look_for_ends`).
    pub received_ns: u64,
    pub watched: bool,
}

/// What is started on a connection as soon as there is room.
pub(super) enum ConnectionOperation {
    Receive(ConnId),
    Pause(ConnId),
    Send {
        conn: ConnId,
        data: Vec<u8>,
        from: usize,
    },
}

/// Closed for the shard; its client may still be sending.
pub(super) struct Lingering {
    conn: ConnId,
    socket: Rc<OwnedFd>,
    pub until_ns: u64,
    bytes_left: usize,
}

/// The two numbers of errno that a receive ends with while the connection lives.
mod libc_codes {
    pub const ENOBUFS: i32 = 105;
    pub const ECANCELED: i32 = 125;
}

impl RingDriver {
    pub(super) fn new_peer(&mut self, socket: OwnedFd) -> ConnId {
        let index = self.free.pop().unwrap_or_else(|| {
            self.peers.push(Peer {
                generation: 0,
                socket: None,
                sent: 0,
                receiving: false,
                received_ns: 0,
                watched: false,
            });
            self.peers.len() as u32 - 1
        });
        let peer = &mut self.peers[index as usize];
        peer.generation = (peer.generation + 1) & GENERATION_MASK;
        peer.socket = Some(Rc::new(socket));
        peer.receiving = false;
        peer.watched = false;
        ConnId((u64::from(peer.generation) << 32) | u64::from(index))
    }

    pub(super) fn peer(&mut self, conn: ConnId) -> Option<&mut Peer> {
        let generation = (conn.0 >> 32) as u32;
        self.peers
            .get_mut((conn.0 & 0xffff_ffff) as usize)
            .filter(|p| p.generation == generation && p.socket.is_some())
    }

    pub(super) fn release_peer(&mut self, conn: ConnId) -> Option<Rc<OwnedFd>> {
        let socket = self.peer(conn)?.socket.take();
        self.free.push((conn.0 & 0xffff_ffff) as u32);
        socket
    }

    /// Start an operation, behind those that wait already.
    pub(super) fn on_connection(&mut self, operation: ConnectionOperation) {
        if let ConnectionOperation::Receive(conn) = operation
            && let Some(peer) = self.peer(conn)
        {
            peer.receiving = true;
        }
        self.waiting_connections.push_back(operation);
        self.start_connections();
    }

    /// Start what waits, in order, while the ring has room beside what is the disk's.
    pub(super) fn start_connections(&mut self) {
        while !self.waiting_connections.is_empty() {
            let kept = self.disk_reserve.saturating_sub(self.disk_in_flight);
            let room = self.ring.has_room(kept);
            if matches!(room, Ok(false)) {
                return;
            }
            let Some(operation) = self.waiting_connections.pop_front() else {
                return;
            };
            self.start_connection(operation, room.map(|_| ()));
        }
    }

    fn start_connection(&mut self, operation: ConnectionOperation, room: io::Result<()>) {
        match operation {
            ConnectionOperation::Receive(conn) => {
                let lingering = self.lingering.iter().find(|l| l.conn == conn);
                let lingering = lingering.map(|l| Rc::clone(&l.socket));
                // The connection may have been closed while it waited.
                let socket = self.peer(conn).and_then(|p| p.socket.clone());
                let Some(socket) = socket.or(lingering) else {
                    return;
                };
                let started = room.and_then(|()| self.ring.recv(socket, CLASS_RECV | conn.0));
                if started.is_err() {
                    self.receive_ended(conn, Err(io::ErrorKind::Other.into()));
                }
            }
            ConnectionOperation::Pause(conn) => {
                if self.peer(conn).is_some() && room.is_ok() {
                    let _ = self.ring.cancel(CLASS_RECV | conn.0);
                }
            }
            ConnectionOperation::Send { conn, data, from } => {
                let Some(socket) = self.peer(conn).and_then(|p| p.socket.clone()) else {
                    return;
                };
                let started =
                    room.and_then(|()| self.ring.send(socket, data, from, CLASS_SEND | conn.0));
                if let Err(error) = started {
                    self.ready.push_back(Event::Sent {
                        conn,
                        data: Vec::new(),
                        result: Err(error),
                    });
                }
            }
        }
    }

    pub(super) fn received_from(&mut self, conn: ConnId, data: Received) {
        let now = self.polled_ns;
        if let Some(peer) = self.peer(conn) {
            peer.received_ns = now;
            if !std::mem::replace(&mut peer.watched, true) {
                self.watched.push_back((now + END_AFTER_NS, conn));
            }
            return self.ready.push_back(Event::Received { conn, data });
        }
        let bytes = self.ring.received(&data).len();
        self.ring.recycle(data);
        let Some(at) = self.lingering.iter().position(|l| l.conn == conn) else {
            return;
        };
        let lingering = &mut self.lingering[at];
        match lingering.bytes_left.checked_sub(bytes) {
            Some(left) => lingering.bytes_left = left,
            None => self.cut_lingering(at),
        }
    }

    /// Connections that have been quiet since their last bytes are asked once whether those were the last.
    ///
    /// A multishot receive can miss the end of a stream that arrives together with bytes: both wake-ups are taken for one, the
    /// receive reads the bytes and waits for a wake-up that has been (seen with Linux 6.18). After a reset not even keepalive
    /// would find out, and connection and descriptor would stay for ever.
    pub(super) fn look_for_ends(&mut self) {
        while let Some(&(at, conn)) = self.watched.front()
            && at <= self.polled_ns
        {
            self.watched.pop_front();
            let now = self.polled_ns;
            let Some(peer) = self.peer(conn) else {
                continue;
            };
            let due = peer.received_ns + END_AFTER_NS;
            if due > now {
                self.watched.push_back((due, conn));
                continue;
            }
            peer.watched = false;
            if peer.socket.as_deref().is_some_and(uring::socket::has_ended) {
                self.ready.push_back(Event::RecvClosed { conn });
            }
        }
    }

    pub(super) fn receive_ended(&mut self, conn: ConnId, result: io::Result<()>) {
        let paused = result.is_err_and(|e| {
            matches!(
                e.raw_os_error(),
                Some(libc_codes::ECANCELED | libc_codes::ENOBUFS)
            )
        });
        if let Some(peer) = self.peer(conn) {
            peer.receiving = false;
            return self.ready.push_back(if paused {
                Event::RecvPaused { conn }
            } else {
                Event::RecvClosed { conn }
            });
        }
        if let Some(at) = self.lingering.iter().position(|l| l.conn == conn) {
            if paused {
                self.on_connection(ConnectionOperation::Receive(conn));
            } else {
                self.end_lingering(at);
            }
        }
    }

    pub(super) fn sent(&mut self, conn: ConnId, data: Vec<u8>, result: io::Result<usize>) {
        let Some(peer) = self.peer(conn) else { return };
        match result {
            Ok(count) if count > 0 && peer.sent + count < data.len() => {
                peer.sent += count;
                let from = peer.sent;
                self.on_connection(ConnectionOperation::Send { conn, data, from });
            }
            Ok(count) if count > 0 || data.is_empty() => self.ready.push_back(Event::Sent {
                conn,
                data,
                result: Ok(()),
            }),
            Ok(_) => self.ready.push_back(Event::Sent {
                conn,
                data,
                result: Err(io::ErrorKind::WriteZero.into()),
            }),
            Err(error) => self.ready.push_back(Event::Sent {
                conn,
                data,
                result: Err(error),
            }),
        }
    }

    /// End our direction and take what still comes, until the client has ended too, or a bound is reached.
    pub(super) fn linger(&mut self, conn: ConnId) {
        let Some(peer) = self.peer(conn) else { return };
        let receiving = peer.receiving;
        let Some(socket) = self.release_peer(conn) else {
            return;
        };
        uring::socket::shutdown_write(&socket);
        if self.lingering.len() == LINGERING_MAX {
            self.cut_lingering(0);
        }
        self.lingering.push_back(Lingering {
            conn,
            socket,
            until_ns: uring::clock::monotonic_ns() + LINGER_NS,
            bytes_left: LINGER_BYTES_MAX,
        });
        if !receiving {
            self.on_connection(ConnectionOperation::Receive(conn));
        }
    }

    fn end_lingering(&mut self, at: usize) {
        if let Some(lingering) = self.lingering.remove(at) {
            uring::socket::shutdown(&lingering.socket);
        }
    }

    /// End one that may still be sending.
    fn cut_lingering(&mut self, at: usize) {
        if let Some(lingering) = self.lingering.remove(at) {
            uring::socket::reset(&lingering.socket);
        }
    }

    /// Close those whose time is over; when the next one's is.
    pub(super) fn end_late_lingering(&mut self) -> Option<u64> {
        let now_ns = uring::clock::monotonic_ns();
        // In the order of their ends: all get the same time.
        while let Some(first) = self.lingering.front() {
            if first.until_ns > now_ns {
                return Some(first.until_ns);
            }
            self.cut_lingering(0);
        }
        None
    }
}
