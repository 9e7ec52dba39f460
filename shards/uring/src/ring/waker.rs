//! Waking a ring from threads that have none.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::Ring;
use crate::op::{EventRead, Operation};

/// Wake a ring from a thread that has none (signals, the segment preparer): an eventfd that the ring reads.
///
/// Comes out of the ring's turn as `Woken { message: u64::MAX }`; wake-ups before the ring looks become one.
#[derive(Clone, Debug)]
pub struct Waker {
    event: Arc<OwnedFd>,
}

impl Ring {
    /// A waker of this ring; all of them share one eventfd, armed until the ring is dropped.
    pub fn waker(&mut self) -> io::Result<Waker> {
        if let Some(waker) = &self.waker {
            return Ok(waker.clone());
        }
        // Blocking on purpose: a read of a non-blocking descriptor would complete with EAGAIN instead of waiting.
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, and nobody else has it.
        let event = Arc::new(unsafe { OwnedFd::from_raw_fd(fd) });
        self.start(0, Operation::EventRead(EventRead::new(event.clone())))?;
        let waker = Waker { event };
        self.waker = Some(waker.clone());
        Ok(waker)
    }
}

impl Waker {
    /// Make the ring's turn return. Harmless after the ring is gone.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: `one` is eight readable bytes.
        let written =
            unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        assert_eq!(
            written,
            8,
            "an eventfd takes 2^64 - 2 wake-ups: {}",
            io::Error::last_os_error()
        );
    }
}
