//! IORING_OP_WRITE_FIXED for buffers of a registered pool, IORING_OP_WRITE for others.

use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use io_uring::{opcode, squeue};

use super::{Outcome, Step, entry_length};
use crate::ring::files::{Target, on_target};
use crate::{Buffer, Completion, WriteDurability};

pub(crate) struct Write {
    /// Keeps the file open until the completion.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) file: Rc<OwnedFd>,
    /// How the entry names it.
    pub(crate) target: Target,
    pub(crate) offset: u64,
    /// Shared so that recent records can be read from a batch while the device writes it; nobody can get `&mut` to it.
    pub(crate) buffer: Rc<Buffer>,
    /// Inside the buffer.
    pub(crate) range: Range<usize>,
    pub(crate) durability: WriteDurability,
    /// The buffer's place in the ring's registered table.
    pub(crate) registered: Option<u16>,
}

impl Write {
    /// RWF_DSYNC per write rather than O_DSYNC per file, so that one descriptor serves both ways of syncing.
    pub(super) fn entry(&self) -> squeue::Entry {
        let bytes = &self.buffer[self.range.clone()];
        let length = entry_length(bytes.len());
        let flags = match self.durability {
            WriteDurability::None => 0,
            WriteDurability::Dsync => libc::RWF_DSYNC,
        };
        on_target!(self.target, file => match self.registered {
            Some(index) => opcode::WriteFixed::new(file, bytes.as_ptr(), length, index)
                .offset(self.offset)
                .rw_flags(flags)
                .build(),
            None => opcode::Write::new(file, bytes.as_ptr(), length)
                .offset(self.offset)
                .rw_flags(flags)
                .build(),
        })
    }

    /// result: bytes written. A short write is reported as it is.
    pub(super) fn step(&mut self, token: u64, outcome: Outcome) -> Step {
        Step::Over(Some(Completion::Written {
            token,
            result: outcome.bytes(),
        }))
    }
}
