//! Closing a ring: cancel, drain, and only then free memory.
//!
//! Closing the descriptor alone is not enough: the kernel cancels what is left in its own time, after close has returned,
//! and until then may still send from or receive into memory that the allocator has handed to someone else. So everything
//! is cancelled and waited for first. A device write cannot be cancelled; if the device does not answer within the
//! bound, the memory of what is in flight is leaked.

use std::io;
use std::time::{Duration, Instant};

use super::slots::Slots;
use super::{IGNORED, Ring};
use crate::op;

/// A device that has not answered by now is not going to.
const DRAIN_MAX: Duration = Duration::from_secs(10);
/// Cancellation is asked for again at this interval: an operation may have been on its way between two states.
const RETRY: Duration = Duration::from_millis(50);

impl Drop for Ring {
    fn drop(&mut self) {
        self.closing = true;
        let start = Instant::now();
        let mut out = Vec::new();
        while self.slots.all() > 0 && start.elapsed() < DRAIN_MAX {
            // SAFETY: a cancel entry points at nothing.
            let queued = unsafe { self.queue(&op::cancel::entry_for_all().user_data(IGNORED)) };
            // Accepted sockets are closed and buffers freed right here; no one is left to take them.
            out.clear();
            let progress = queued
                .and_then(|()| self.submit_again())
                .and_then(|()| self.enter(1, Some(RETRY)));
            self.reap(&mut out);
            if progress.is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
                break;
            }
        }
        drop(out);
        if self.slots.all() > 0 {
            // Closed after this function, cancelled at some later time by the kernel: its memory must stay.
            std::mem::forget(std::mem::replace(&mut self.slots, Slots::new(1)));
            self.provided.leak();
        }
    }
}
