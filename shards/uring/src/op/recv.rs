//! IORING_OP_RECV, multishot (Linux 6.0) into the provided buffer ring: one entry, one completion per arrival.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use super::{Outcome, Step};
use crate::Completion;
use crate::ring::provided::{BUFFER_GROUP, Provided};

pub(crate) struct Recv {
    pub(crate) socket: Rc<OwnedFd>,
}

impl Recv {
    pub(super) fn entry(&self) -> squeue::Entry {
        opcode::RecvMulti::new(types::Fd(self.socket.as_raw_fd()), BUFFER_GROUP).build()
    }

    /// result: bytes in the buffer named by the flags; 0 = end of stream; -ENOBUFS = no provided buffer was left.
    /// Without MORE after bytes the kernel wants the entry again (it gives the CPU up after many arrivals in a row).
    pub(super) fn step(&mut self, token: u64, outcome: Outcome, provided: &mut Provided) -> Step {
        match (outcome.value(), outcome.buffer()) {
            (Ok(len), Some(buffer)) if len > 0 => {
                let received = Completion::Received {
                    token,
                    data: provided.taken(buffer, len),
                };
                if outcome.more() {
                    Step::More(received)
                } else {
                    Step::Again(Some(received))
                }
            }
            (result, buffer) => {
                assert!(!outcome.more(), "a receive without bytes has ended");
                if let Some(buffer) = buffer {
                    // The kernel may have picked a buffer before it met the end of the stream.
                    let unused = provided.taken(buffer, 0);
                    provided.give_back(unused);
                }
                Step::Over(Some(Completion::RecvEnded {
                    token,
                    result: result.map(|_| ()),
                }))
            }
        }
    }
}
