//! IORING_OP_FSYNC with DATASYNC. The kernel always runs it on a worker thread: about 10 us more than RWF_DSYNC.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use io_uring::{opcode, squeue, types};

use super::{Outcome, Step};
use crate::Completion;
use crate::ring::files::{Target, on_target};

pub(crate) struct Fdatasync {
    /// Keeps the file open until the completion.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) file: Rc<OwnedFd>,
    /// How the entry names it.
    pub(crate) target: Target,
}

impl Fdatasync {
    pub(super) fn entry(&self) -> squeue::Entry {
        on_target!(self.target, file => opcode::Fsync::new(file)
            .flags(types::FsyncFlags::DATASYNC)
            .build())
    }

    /// result: 0 or -errno.
    pub(super) fn step(&mut self, token: u64, outcome: Outcome) -> Step {
        Step::Over(Some(Completion::Synced {
            token,
            result: outcome.value().map(|_| ()),
        }))
    }
}
