//! IORING_OP_SEND of the rest of a Vec.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use super::{Outcome, Step, entry_length};
use crate::Completion;

pub(crate) struct Send {
    pub(crate) socket: Rc<OwnedFd>,
    pub(crate) data: Vec<u8>,
    /// At most data.len().
    pub(crate) from: usize,
}

impl Send {
    /// MSG_WAITALL makes the kernel go on after a partial send; MSG_NOSIGNAL turns SIGPIPE into EPIPE.
    pub(super) fn entry(&self) -> squeue::Entry {
        let rest = &self.data[self.from..];
        opcode::Send::new(
            types::Fd(self.socket.as_raw_fd()),
            rest.as_ptr(),
            entry_length(rest.len()),
        )
        .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
        .build()
    }

    /// result: bytes sent; short only if the connection broke midway, or was cancelled.
    pub(super) fn step(&mut self, token: u64, outcome: Outcome) -> Step {
        let data = std::mem::take(&mut self.data);
        Step::Over(Some(Completion::Sent {
            token,
            data,
            result: outcome.bytes(),
        }))
    }
}
