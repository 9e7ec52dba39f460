//! Listening sockets, armed for as long as there are descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::{CLASS_ACCEPT, RingDriver};
use crate::driver::Door;

/// After running out of descriptors: how long until the next try to accept.
pub(super) const ACCEPT_RETRY_NS: u64 = 100_000_000;

pub(super) struct Listener {
    pub door: Door,
    pub socket: Rc<OwnedFd>,
    pub retry_at_ns: Option<u64>,
}

impl RingDriver {
    pub(super) fn arm(&mut self, index: usize) -> io::Result<()> {
        let socket = Rc::clone(&self.listeners[index].socket);
        self.ring.accept(socket, CLASS_ACCEPT | index as u64)
    }

    pub(super) fn rearm(&mut self) -> Option<u64> {
        let mut earliest = None;
        let now = uring::clock::monotonic_ns();
        for index in 0..self.listeners.len() {
            let Some(at) = self.listeners[index].retry_at_ns else {
                continue;
            };
            if at <= now && self.arm(index).is_ok() {
                self.listeners[index].retry_at_ns = None;
            } else {
                earliest = Some(earliest.map_or(at, |e: u64| e.min(at)));
            }
        }
        earliest
    }
}
