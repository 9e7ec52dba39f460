//! IORING_OP_ASYNC_CANCEL: of one operation by its user data, or of all of them.
//!
//! It owns nothing and its own result is not interesting (the cancelled operation completes with ECANCELED, or as if
//! nothing had happened if it was too late), so it has no slot.

use io_uring::{opcode, squeue, types};

pub(crate) fn entry(user_data: u64) -> squeue::Entry {
    opcode::AsyncCancel2::new(types::CancelBuilder::user_data(user_data)).build()
}

pub(crate) fn entry_for_all() -> squeue::Entry {
    opcode::AsyncCancel2::new(types::CancelBuilder::any()).build()
}
