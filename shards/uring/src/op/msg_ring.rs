//! IORING_OP_MSG_RING (Linux 5.18): put a completion into another ring.
//!
//! A message is 64 bits of the caller's. The other ring sees 64 bits of user data and 32 of result, so the upper half of
//! the message rides in the user data under a marker bit and the lower half is the result.

use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};

use super::{Outcome, Step};

/// Set in the user data of messages, never in that of own operations.
const MESSAGE: u64 = 1 << 63;
/// A wake-up that found the kernel without memory is sent again this often.
const ATTEMPTS_MAX: u32 = 8;

pub(crate) struct MessageRing {
    pub(crate) target: RawFd,
    pub(crate) message: u64,
    pub(crate) attempts: u32,
}

impl MessageRing {
    pub(super) fn entry(&self) -> squeue::Entry {
        let (high, low) = (self.message >> 32, self.message as u32);
        opcode::MsgRingData::new(
            types::Fd(self.target),
            low.cast_signed(),
            MESSAGE | high,
            None,
        )
        .build()
    }

    /// result: 0 = delivered; -EBADF or -EBADFD = the target is gone, and with it whoever was to be woken.
    pub(super) fn step(&mut self, outcome: Outcome) -> Step {
        self.attempts += 1;
        let transient = matches!(
            -outcome.result,
            libc::ENOMEM | libc::EOVERFLOW | libc::EAGAIN | libc::EINTR
        );
        if transient && self.attempts < ATTEMPTS_MAX {
            Step::Again(None)
        } else {
            Step::Over(None)
        }
    }
}

/// The message in a completion of the target ring; None if the completion belongs to an own operation.
pub(crate) fn message_of(user_data: u64, outcome: Outcome) -> Option<u64> {
    (user_data & MESSAGE != 0)
        .then(|| (user_data & !MESSAGE) << 32 | u64::from(outcome.result.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_split() {
        for message in [
            0,
            1,
            u64::from(u32::MAX),
            1 << 32,
            0x8000_0000_8000_0000,
            u64::MAX,
        ] {
            let (high, low) = (message >> 32, message as u32);
            let outcome = Outcome {
                result: low.cast_signed(),
                flags: 0,
            };
            assert_eq!(message_of(MESSAGE | high, outcome), Some(message));
        }
        assert_eq!(
            message_of(
                7,
                Outcome {
                    result: 1,
                    flags: 0
                }
            ),
            None
        );
    }
}
