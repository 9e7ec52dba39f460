//! Listening sockets, armed for as long as there are descriptors.

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use super::{CLASS_ACCEPT, RingDriver};
use crate::driver::{Descriptors, Door};

/// After running out of descriptors: how long until the next try to accept.
pub(super) const ACCEPT_RETRY_NS: u64 = 100_000_000;

/// And how long until the log says so again.
pub(super) const ACCEPT_WARN_NS: u64 = 10_000_000_000;

/// Descriptor numbers from which on connections are not taken any more. The kernel gives out the lowest number that is free,
/// so a connection with number n says that n descriptors are in use, whatever for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reserve {
    few: u64,
    last: u64,
}

impl Reserve {
    /// An eighth of the limit is kept for segment files, 16 to 256 descriptors; the lower half of that for saying no.
    pub(super) fn of(limit: u64) -> Reserve {
        let kept = (limit / 8).clamp(16, 256);
        Reserve {
            few: limit.saturating_sub(kept),
            last: limit.saturating_sub(kept / 2),
        }
    }

    pub(super) fn judge(self, descriptor: u64) -> Descriptors {
        if descriptor >= self.last {
            Descriptors::Last
        } else if descriptor >= self.few {
            Descriptors::Few
        } else {
            Descriptors::Enough
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_descriptors_are_kept_for_the_log() {
        for limit in [64, 1024, 20_000, 1 << 20] {
            let reserve = Reserve::of(limit);
            let kept = limit - reserve.few;
            assert!((16..=256).contains(&kept) && kept <= limit / 4, "{limit}");
            assert_eq!(reserve.judge(reserve.few - 1), Descriptors::Enough);
            assert_eq!(reserve.judge(reserve.few), Descriptors::Few);
            assert_eq!(reserve.judge(reserve.last), Descriptors::Last);
            assert_eq!(reserve.judge(limit - 1), Descriptors::Last);
        }
    }
}
