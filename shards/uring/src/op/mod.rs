//! Kernel operations, one per file: the entry it builds and how its result is read.
//!
//! An operation value owns everything its entry points at (buffer, counted descriptor). It sits in a slot of the
//! ring's pool (`ring/slots.rs`) until the completion that ends it, whether or not anyone still wants the result.
//! Multishot operations stay through many completions. Operations do not know the ring, its queue or its slots.

mod accept;
pub(crate) mod cancel;
mod event;
mod fsync;
mod msg_ring;
mod read;
mod recv;
mod send;
mod write;

pub(crate) use accept::Accept;
pub(crate) use event::EventRead;
pub(crate) use fsync::Fdatasync;
pub(crate) use msg_ring::{MessageRing, message_of};
pub(crate) use read::Read;
pub(crate) use recv::Recv;
pub(crate) use send::Send;
pub(crate) use write::Write;

use std::io;

use io_uring::{cqueue, squeue};

use crate::Completion;
use crate::ring::provided::Provided;

/// Everything that can be in flight.
pub(crate) enum Operation {
    Accept(Accept),
    Recv(Recv),
    Send(Send),
    Write(Write),
    Read(Read),
    Fdatasync(Fdatasync),
    MessageRing(MessageRing),
    EventRead(EventRead),
}

/// What one completion means for the slot of its operation.
pub(crate) enum Step {
    /// The kernel still holds the operation.
    More(Completion),
    /// The kernel has let go, but the operation is not over: submit it again in the same slot.
    Again(Option<Completion>),
    /// Over; the slot is free.
    Over(Option<Completion>),
}

impl Operation {
    /// The submission entry. What it points at is owned by self and does not move when self does.
    pub(crate) fn entry(&self) -> squeue::Entry {
        match self {
            Operation::Accept(op) => op.entry(),
            Operation::Recv(op) => op.entry(),
            Operation::Send(op) => op.entry(),
            Operation::Write(op) => op.entry(),
            Operation::Read(op) => op.entry(),
            Operation::Fdatasync(op) => op.entry(),
            Operation::MessageRing(op) => op.entry(),
            Operation::EventRead(op) => op.entry(),
        }
    }

    /// Read one completion.
    pub(crate) fn step(&mut self, token: u64, outcome: Outcome, provided: &mut Provided) -> Step {
        match self {
            Operation::Accept(op) => op.step(token, outcome),
            Operation::Recv(op) => op.step(token, outcome, provided),
            Operation::Send(op) => op.step(token, outcome),
            Operation::Write(op) => op.step(token, outcome),
            Operation::Read(op) => op.step(token, outcome),
            Operation::Fdatasync(op) => op.step(token, outcome),
            Operation::MessageRing(op) => op.step(outcome),
            Operation::EventRead(op) => op.step(outcome),
        }
    }

    /// Wake-ups are the ring's own business: not counted in flight, not found by `cancel`.
    pub(crate) fn is_internal(&self) -> bool {
        matches!(self, Operation::MessageRing(_) | Operation::EventRead(_))
    }
}

/// Result and flags of one completion queue entry.
#[derive(Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) result: i32,
    pub(crate) flags: u32,
}

impl Outcome {
    /// The result as the system call of the same name would give it.
    pub(crate) fn value(self) -> io::Result<u32> {
        u32::try_from(self.result).map_err(|_| io::Error::from_raw_os_error(-self.result))
    }

    /// The same as a byte count.
    pub(crate) fn bytes(self) -> io::Result<usize> {
        self.value().map(|n| n as usize)
    }

    /// Whether a multishot operation stays armed.
    pub(crate) fn more(self) -> bool {
        cqueue::more(self.flags)
    }

    /// The provided buffer the kernel used, if it used one.
    pub(crate) fn buffer(self) -> Option<u16> {
        cqueue::buffer_select(self.flags)
    }
}

/// Length for an entry. The kernel moves at most 2 GiB less a page per operation anyway; a longer range comes back short.
fn entry_length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
