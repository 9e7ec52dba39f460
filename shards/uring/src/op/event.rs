//! IORING_OP_READ of an eventfd: how threads without a ring wake one. Armed again after each wake-up.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use io_uring::{opcode, squeue, types};

use super::{Outcome, Step};
use crate::Completion;

/// An eventfd is read eight bytes at a time.
const COUNTER_BYTES: u32 = 8;

pub(crate) struct EventRead {
    event: Arc<OwnedFd>,
    /// Where the kernel puts the counter. On the heap, so it stays where it is when the operation moves.
    counter: *mut u64,
}

impl EventRead {
    pub(crate) fn new(event: Arc<OwnedFd>) -> EventRead {
        EventRead {
            event,
            counter: Box::into_raw(Box::new(0)),
        }
    }

    pub(super) fn entry(&self) -> squeue::Entry {
        opcode::Read::new(
            types::Fd(self.event.as_raw_fd()),
            self.counter.cast(),
            COUNTER_BYTES,
        )
        .build()
    }

    /// result: 8. Wake-ups that came together are one. Cancelled only when the ring closes.
    pub(super) fn step(&mut self, outcome: Outcome) -> Step {
        match outcome.result {
            8 => Step::Again(Some(Completion::Woken { message: u64::MAX })),
            result if matches!(-result, libc::EINTR | libc::EAGAIN) => Step::Again(None),
            _ => Step::Over(None),
        }
    }
}

impl Drop for EventRead {
    fn drop(&mut self) {
        // SAFETY: from Box::into_raw in new, freed only here; the slot drops the operation after its last completion.
        drop(unsafe { Box::from_raw(self.counter) });
    }
}
