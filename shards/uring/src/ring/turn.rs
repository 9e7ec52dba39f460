//! A turn: submit what is queued, wait as asked, read completions.
//!
//! With DEFER_TASKRUN the kernel finishes operations only inside an enter with GETEVENTS, and says in the shared flag word
//! when there is something to finish. So a spin reads two words of memory and makes a system call only when it pays.

use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use io_uring::types::{SubmitArgs, Timespec};
use io_uring::{EnterFlags, cqueue};

use super::slots::SlotId;
use super::{IGNORED, Ring};
use crate::op::{Outcome, Step, message_of};
use crate::{Completion, Wait};

/// Completions copied out of the shared queue at a time.
const REAP_BATCH: usize = 64;
/// Pauses between looks at the clock while spinning: 0.3 to 1 us, depending on the processor.
const PAUSES: u32 = 8;
/// How often a spin offers the core to others: every 2 to 4 us.
///
/// The kernel ends a synchronous O_DIRECT write (RWF_DSYNC on a device without FUA) in a worker bound to this very core. A
/// spin that never yields keeps that worker out until the next scheduler tick: a durable 4 KiB write took 4.0 ms
/// instead of 72 us (Linux 6.18, HZ=250, virtio disk with a write cache). A yield with nobody waiting costs about 200 ns.
const LOOKS_PER_YIELD: u64 = 4;

impl Ring {
    /// Submit what is queued, wait as asked, append completions to `out`.
    ///
    /// Returns early, perhaps with nothing, when a signal arrives. `out` is not cleared.
    pub fn turn(&mut self, wait: Wait, out: &mut Vec<Completion>) -> io::Result<()> {
        self.provided.publish();
        self.submit_again_or_later()?;
        let before = out.len();
        match wait {
            Wait::No => {
                self.submit()?;
                self.reap(out);
            }
            Wait::Spin {
                at_most,
                then_sleep,
            } => {
                self.submit()?;
                self.reap(out);
                if out.len() == before {
                    self.spin(at_most, out)?;
                }
                if out.len() == before
                    && let Some(longest) = then_sleep
                {
                    self.sleep(longest, out)?;
                }
            }
            Wait::Sleep(longest) => self.sleep(longest, out)?,
        }
        Ok(())
    }

    /// Submit the queue and run what the kernel has waiting for us; no system call if there is neither.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        let queue = self.uring.submission();
        if !queue.is_empty() || queue.taskrun() || queue.cq_overflow() {
            drop(queue);
            self.enter(0, None)?;
        }
        Ok(())
    }

    fn spin(&mut self, at_most: Duration, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        let start = Instant::now();
        for look in 1.. {
            for _ in 0..PAUSES {
                std::hint::spin_loop();
            }
            if look % LOOKS_PER_YIELD == 0 {
                std::thread::yield_now();
            }
            self.submit_again_or_later()?;
            self.submit()?;
            self.reap(out);
            if out.len() > before || start.elapsed() >= at_most {
                break;
            }
        }
        Ok(())
    }

    fn sleep(&mut self, longest: Duration, out: &mut Vec<Completion>) -> io::Result<()> {
        let before = out.len();
        let start = Instant::now();
        loop {
            let left = longest.saturating_sub(start.elapsed());
            let woken = self.enter(1, Some(left))?;
            self.reap(out);
            // Completions of our own wake-ups end the kernel's wait but are nothing to return with.
            if out.len() > before || woken == WaitEnd::Signal || left.is_zero() {
                return Ok(());
            }
            self.submit_again_or_later()?;
        }
    }

    /// One io_uring_enter: submit all, run task work, wait for `want` completions at most `timeout`.
    pub(super) fn enter(&mut self, want: u32, timeout: Option<Duration>) -> io::Result<WaitEnd> {
        let queued = self.uring.submission().len() as u32;
        let mut flags = EnterFlags::GETEVENTS;
        if want > 0 && self.features.no_iowait {
            flags |= EnterFlags::NO_IOWAIT;
        }
        let submitter = self.uring.submitter();
        let result = match timeout {
            None => {
                // SAFETY: no argument is passed; entries in the queue satisfy the contract of `queue`.
                unsafe { submitter.enter::<libc::sigset_t>(queued, want, flags.bits(), None) }
            }
            Some(timeout) => {
                let timespec = Timespec::from(timeout);
                let arguments = SubmitArgs::new().timespec(&timespec);
                flags |= EnterFlags::EXT_ARG;
                // SAFETY: EXT_ARG announces exactly this structure, and it and the timespec live through the call;
                // entries in the queue satisfy the contract of `queue`.
                unsafe { submitter.enter(queued, want, flags.bits(), Some(&arguments)) }
            }
        };
        match result {
            Ok(_) => Ok(WaitEnd::Completion),
            Err(error) => match error.raw_os_error() {
                Some(libc::ETIME) => Ok(WaitEnd::Timeout),
                Some(libc::EINTR) => Ok(WaitEnd::Signal),
                // The completion queue is full, or memory is short: what was not taken stays queued for the next turn,
                // after the completions that are there have been read.
                Some(libc::EBUSY | libc::EAGAIN) => Ok(WaitEnd::Completion),
                _ => Err(error),
            },
        }
    }

    /// Read every completion that is there.
    pub(super) fn reap(&mut self, out: &mut Vec<Completion>) {
        loop {
            let mut batch = [const { MaybeUninit::<cqueue::Entry>::uninit() }; REAP_BATCH];
            let entries = self.uring.completion().fill(&mut batch);
            let count = entries.len();
            for entry in entries {
                let outcome = Outcome {
                    result: entry.result(),
                    flags: entry.flags(),
                };
                self.complete(entry.user_data(), outcome, out);
            }
            if count < REAP_BATCH {
                return;
            }
        }
    }

    fn complete(&mut self, user_data: u64, outcome: Outcome, out: &mut Vec<Completion>) {
        if user_data == IGNORED {
            return;
        }
        if let Some(message) = message_of(user_data, outcome) {
            out.push(Completion::Woken { message });
            return;
        }
        let id = SlotId::from_user_data(user_data);
        let (token, operation) = self.slots.get_mut(id);
        match operation.step(token, outcome, &mut self.provided) {
            Step::More(completion) => out.push(completion),
            Step::Again(completion) => {
                self.again.push_back(id);
                out.extend(completion);
            }
            Step::Over(completion) => {
                self.slots.release(id);
                out.extend(completion);
            }
        }
    }

    /// A queue that stays full for now is no reason to fail a turn: completions must be read first.
    fn submit_again_or_later(&mut self) -> io::Result<()> {
        match self.submit_again() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            result => result,
        }
    }
}

/// What ended an enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WaitEnd {
    Completion,
    Timeout,
    Signal,
}
