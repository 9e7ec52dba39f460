//! Sockets of this shard: what each receives and sends.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::{CLASS_RECV, CLASS_SEND, RingDriver};
use crate::driver::{ConnId, Event};

pub(super) struct Peer {
    pub generation: u32,
    pub socket: Option<Rc<OwnedFd>>,
    /// Bytes of the running send that are already out.
    pub sent: usize,
}

/// The two numbers of errno that a receive ends with while the connection lives.
pub(super) mod libc_codes {
    pub const ENOBUFS: i32 = 105;
    pub const ECANCELED: i32 = 125;
}

impl RingDriver {
    pub(super) fn peer(&mut self, conn: ConnId) -> Option<&mut Peer> {
        let generation = (conn.0 >> 32) as u32;
        self.peers
            .get_mut((conn.0 & 0xffff_ffff) as usize)
            .filter(|p| p.generation == generation && p.socket.is_some())
    }

    pub(super) fn start_recv(&mut self, conn: ConnId) {
        let Some(socket) = self.peer(conn).and_then(|p| p.socket.clone()) else {
            return;
        };
        if self.ring.recv(socket, CLASS_RECV | conn.0).is_err() {
            self.ready.push_back(Event::RecvClosed { conn });
        }
    }

    pub(super) fn start_send(&mut self, conn: ConnId, data: Vec<u8>, from: usize) {
        let Some(socket) = self.peer(conn).and_then(|p| p.socket.clone()) else {
            return;
        };
        if let Err(error) = self.ring.send(socket, data, from, CLASS_SEND | conn.0) {
            self.ready.push_back(Event::Sent {
                conn,
                data: Vec::new(),
                result: Err(error),
            });
        }
    }

    pub(super) fn sent(&mut self, conn: ConnId, data: Vec<u8>, result: io::Result<usize>) {
        let Some(peer) = self.peer(conn) else { return };
        match result {
            Ok(count) if count > 0 && peer.sent + count < data.len() => {
                peer.sent += count;
                let from = peer.sent;
                self.start_send(conn, data, from);
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
}
