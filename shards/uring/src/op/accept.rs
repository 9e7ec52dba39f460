//! IORING_OP_ACCEPT, multishot (Linux 5.19): one entry, one completion per connection.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use super::{Outcome, Step};
use crate::Completion;

pub(crate) struct Accept {
    pub(crate) listener: Rc<OwnedFd>,
}

impl Accept {
    pub(super) fn entry(&self) -> squeue::Entry {
        opcode::AcceptMulti::new(types::Fd(self.listener.as_raw_fd()))
            .flags(libc::SOCK_CLOEXEC)
            .build()
    }

    /// result: the new descriptor, or -errno. Without MORE after a success the kernel wants the entry again.
    pub(super) fn step(&mut self, token: u64, outcome: Outcome) -> Step {
        match outcome.value() {
            Ok(_) => {
                let fd: RawFd = outcome.result;
                // SAFETY: the kernel has just installed this descriptor for us and tells no one else of it.
                let socket = unsafe { OwnedFd::from_raw_fd(fd) };
                let accepted = Completion::Accepted { token, socket };
                if outcome.more() {
                    Step::More(accepted)
                } else {
                    Step::Again(Some(accepted))
                }
            }
            Err(error) => {
                assert!(!outcome.more(), "an accept that failed has ended");
                Step::Over(Some(Completion::AcceptEnded { token, error }))
            }
        }
    }
}
