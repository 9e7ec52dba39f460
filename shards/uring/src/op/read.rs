//! IORING_OP_READ_FIXED for buffers of a registered pool, IORING_OP_READ for others.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use io_uring::{opcode, squeue};

use super::{Outcome, Step, entry_length};
use crate::ring::files::{Target, on_target};
use crate::{Buffer, Completion};

pub(crate) struct Read {
    /// Keeps the file open until the completion.
    #[expect(dead_code, reason = "held, not read")]
    pub(crate) file: Rc<OwnedFd>,
    /// How the entry names it.
    pub(crate) target: Target,
    pub(crate) offset: u64,
    /// Some until the completion.
    pub(crate) buffer: Option<Buffer>,
    /// First byte of the buffer, taken while it could be borrowed mutably.
    pub(crate) start: *mut u8,
    /// At most the length of the buffer.
    pub(crate) len: usize,
    /// The buffer's place in the ring's registered table.
    pub(crate) registered: Option<u16>,
}

impl Read {
    pub(super) fn entry(&self) -> squeue::Entry {
        let length = entry_length(self.len);
        on_target!(self.target, file => match self.registered {
            Some(index) => opcode::ReadFixed::new(file, self.start, length, index)
                .offset(self.offset)
                .build(),
            None => opcode::Read::new(file, self.start, length)
                .offset(self.offset)
                .build(),
        })
    }

    /// result: bytes read; fewer than asked at the end of the file.
    pub(super) fn step(&mut self, token: u64, outcome: Outcome) -> Step {
        let buffer = self.buffer.take().expect("a read completes once");
        Step::Over(Some(Completion::Read {
            token,
            buffer,
            result: outcome.bytes(),
        }))
    }
}
