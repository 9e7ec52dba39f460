//! IORING_OP_FSYNC with DATASYNC. The kernel always runs it on a worker thread: about 10 us more than RWF_DSYNC.

use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use super::{Outcome, Step};
use crate::Completion;

pub(crate) struct Fdatasync {
    pub(crate) file: Rc<OwnedFd>,
}

impl Fdatasync {
    pub(super) fn entry(&self) -> squeue::Entry {
        opcode::Fsync::new(types::Fd(self.file.as_raw_fd()))
            .flags(types::FsyncFlags::DATASYNC)
            .build()
    }

    /// result: 0 or -errno.
    pub(super) fn step(&mut self, token: u64, outcome: Outcome) -> Step {
        Step::Over(Some(Completion::Synced {
            token,
            result: outcome.value().map(|_| ()),
        }))
    }
}
