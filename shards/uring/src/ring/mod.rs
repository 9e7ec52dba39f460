//! One io_uring, used by the thread that made it.
//!
//! Invariants:
//! - What an entry in the queue points at is owned by the operation in its slot until the completion that ends it.
//! - A slot is released only by such a completion (or because its entry never reached the kernel).
//! - Operations that must be submitted again wait in `again` in the order they came and are queued before anything else.
//! - The ring is closed before provided buffers, registered pools and files, and operations are freed; what the kernel would not
//!   let go of in time is leaked rather than freed.
//!
//! It does not know what the bytes mean, nor who waits for a completion.

mod close;
pub(crate) mod files;
mod host;
pub(crate) mod provided;
mod registered;
mod slots;
mod turn;
mod waker;

pub use waker::Waker;

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use io_uring::{IoUring, squeue};

use crate::op::{self, Operation};
use crate::setup::{FLAG_SETS, FlagSet};
use crate::{
    Buffer, BufferPool, Features, Received, RingConfig, RingError, WriteDurability, limits,
};
use files::RegisteredFiles;
use provided::Provided;
use registered::RegisteredPools;
use slots::{SlotId, Slots};

/// Send + Sync address of a ring for [`Ring::wake`].
///
/// A plain number: it does not keep the ring open, and a message to a ring that is gone is dropped. Should another ring
/// have got the same descriptor since, it sees a `Woken` it did not expect.
#[derive(Clone, Debug)]
pub struct RingAddress {
    fd: RawFd,
}

/// One io_uring. Neither Send nor Sync: SINGLE_ISSUER binds it to the thread that calls [`Ring::new`].
///
/// ```compile_fail
/// fn send<T: Send>() {}
/// send::<uring::Ring>();
/// ```
pub struct Ring {
    // Dropped in this order: the ring is closed before the memory it refers to goes.
    uring: IoUring,
    slots: Slots,
    provided: Provided,
    registered: RegisteredPools,
    files: RegisteredFiles,
    again: VecDeque<SlotId>,
    waker: Option<Waker>,
    features: Features,
    /// Set by Drop: nothing is submitted again.
    closing: bool,
}

impl Ring {
    /// Set a ring up with the best flags the kernel has; see [`Features::missing`] for what it lacks.
    ///
    /// Needs multishot receive (Linux 6.0). Every error says what to type.
    pub fn new(config: &RingConfig) -> Result<Ring, RingError> {
        Ring::with(config, &FLAG_SETS)
    }

    fn with(config: &RingConfig, sets: &[FlagSet]) -> Result<Ring, RingError> {
        let (uring, mut features) = crate::setup::build(config, sets)?;
        let provided =
            Provided::new(config, &uring).map_err(|error| match error.raw_os_error() {
                Some(libc::ENOMEM) => RingError::MemoryLocked {
                    found: limits::memlock().soft,
                    needed: config.recv_bytes(),
                },
                _ => RingError::Other {
                    step: "registering the receive buffers",
                    error,
                },
            })?;
        features.provided_ring = true;
        Ok(Ring {
            uring,
            slots: Slots::new(config.operations_max),
            provided,
            registered: RegisteredPools::default(),
            files: RegisteredFiles::default(),
            again: VecDeque::with_capacity(config.operations_max as usize),
            waker: None,
            features,
            closing: false,
        })
    }

    /// What the kernel gave us.
    pub fn features(&self) -> &Features {
        &self.features
    }

    /// Where other rings send their wake-ups.
    pub fn address(&self) -> RingAddress {
        RingAddress {
            fd: self.uring.as_raw_fd(),
        }
    }

    /// Register the pool so that writes and reads of its buffers are WRITE_FIXED/READ_FIXED. Err(ENOMEM) = memlock: go on unregistered and say so.
    ///
    /// Several pools can be registered. All pages of the pool are touched and pinned by this.
    pub fn register_buffers(&mut self, pool: &BufferPool) -> io::Result<()> {
        self.registered.add(pool, &self.uring)?;
        self.features.registered_buffers = true;
        Ok(())
    }

    /// Register a file for as long as the ring lives: its writes, reads and syncs name it by its place in the ring's table. On Err
    /// (the table is full) it works as before.
    pub fn register_file(&mut self, file: &Rc<OwnedFd>) -> io::Result<()> {
        self.files.add(file, &self.uring)?;
        self.features.registered_files = true;
        Ok(())
    }

    /// Accept connections until `cancel` or an error ([`crate::Completion::AcceptEnded`]).
    pub fn accept(&mut self, listener: Rc<OwnedFd>, token: u64) -> io::Result<()> {
        self.start(token, Operation::Accept(op::Accept { listener }))
    }

    /// Receive until the end of the stream, an error, `cancel`, or no provided buffer is left ([`crate::Completion::RecvEnded`]).
    pub fn recv(&mut self, socket: Rc<OwnedFd>, token: u64) -> io::Result<()> {
        self.start(token, Operation::Recv(op::Recv { socket }))
    }

    /// Bytes of a [`Received`]. Panics if it was recycled, or belongs to another ring and is not held here.
    pub fn received(&self, data: &Received) -> &[u8] {
        self.provided.bytes(data)
    }

    /// Give a provided buffer back. Published to the kernel at the next turn. Panics if it is not held.
    pub fn recycle(&mut self, data: Received) {
        self.provided.give_back(data);
    }

    /// Provided buffers the kernel has (or gets at the next turn): 0 means that receives end with ENOBUFS.
    pub fn recv_buffers_available(&self) -> usize {
        self.provided.available()
    }

    /// Send all of `data[from..]` (MSG_WAITALL|MSG_NOSIGNAL); the Vec comes back in `Sent`.
    ///
    /// On Err the Vec is gone: look at [`Ring::operations_free`] first. InvalidInput if `from` is past the end.
    pub fn send(
        &mut self,
        socket: Rc<OwnedFd>,
        data: Vec<u8>,
        from: usize,
        token: u64,
    ) -> io::Result<()> {
        if from > data.len() {
            return Err(invalid("send from past the end of the data"));
        }
        self.start(token, Operation::Send(op::Send { socket, data, from }))
    }

    /// Write `buffer[range]` at `offset`. O_DIRECT asks for multiples of the logical block in all three.
    ///
    /// InvalidInput if the range is not inside the buffer.
    pub fn write(
        &mut self,
        file: Rc<OwnedFd>,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        durability: WriteDurability,
        token: u64,
    ) -> io::Result<()> {
        if range.start > range.end || range.end > buffer.len() {
            return Err(invalid("write of a range outside its buffer"));
        }
        let registered = self.registered.entry_of(&buffer);
        let target = self.files.target(&file);
        self.start(
            token,
            Operation::Write(op::Write {
                file,
                target,
                offset,
                buffer,
                range,
                durability,
                registered,
            }),
        )
    }

    /// Read up to `len` bytes at `offset` into the beginning of `buffer`, which comes back in `Read`.
    ///
    /// On Err the buffer is dropped (a pooled one is back in its pool). InvalidInput if `len` is larger than it.
    pub fn read(
        &mut self,
        file: Rc<OwnedFd>,
        offset: u64,
        mut buffer: Buffer,
        len: usize,
        token: u64,
    ) -> io::Result<()> {
        if len > buffer.len() {
            return Err(invalid("read of more than the buffer holds"));
        }
        let registered = self.registered.entry_of(&buffer);
        let target = self.files.target(&file);
        let start = buffer.as_mut_ptr();
        let buffer = Some(buffer);
        self.start(
            token,
            Operation::Read(op::Read {
                file,
                target,
                offset,
                buffer,
                start,
                len,
                registered,
            }),
        )
    }

    /// Make everything written to the file so far durable. Covers writes whose completion has been seen, no others.
    pub fn fdatasync(&mut self, file: Rc<OwnedFd>, token: u64) -> io::Result<()> {
        let target = self.files.target(&file);
        self.start(token, Operation::Fdatasync(op::Fdatasync { file, target }))
    }

    /// Cancel every operation submitted with this token (their completions still come).
    ///
    /// Looks through all operations in flight: for shutdown and lost patience, not for every request.
    pub fn cancel(&mut self, token: u64) -> io::Result<()> {
        // An operation that waits to be submitted again must be in the queue before its cancellation.
        self.submit_again()?;
        let mut from = 0;
        while let Some((id, next)) = self.slots.find(token, from) {
            // SAFETY: a cancel entry points at nothing.
            unsafe { self.queue(&op::cancel::entry(id.user_data()).user_data(IGNORED)) }?;
            from = next;
        }
        Ok(())
    }

    /// MSG_RING: the target's `turn` returns with `Woken { message }`. Sent with the next turn of this ring.
    ///
    /// A target that is gone is no error: there is no one to wake.
    pub fn wake(&mut self, target: &RingAddress, message: u64) -> io::Result<()> {
        if !self.features.msg_ring {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "MSG_RING needs Linux 5.18; use a Waker",
            ));
        }
        let operation = op::MessageRing {
            target: target.fd,
            message,
            attempts: 0,
        };
        self.start(0, Operation::MessageRing(operation))
    }

    /// Operations of callers that have not completed. Armed accepts and receives count.
    pub fn in_flight(&self) -> usize {
        self.slots.callers()
    }

    /// How many more operations can be started before submit calls return Err(WouldBlock).
    pub fn operations_free(&self) -> usize {
        self.slots.callers_free()
    }

    /// Whether the next operation can be started, with `spare` contexts left over for others. A queue that is full is
    /// submitted first; an error is the kernel's refusal of that.
    ///
    /// After `Ok(true)` a submit call does not return Err(WouldBlock), so nothing that it was given is lost.
    pub fn has_room(&mut self, spare: usize) -> io::Result<bool> {
        if self.slots.callers_free() <= spare {
            return Ok(false);
        }
        if self.uring.submission().is_full() {
            self.submit()?;
        }
        Ok(!self.uring.submission().is_full())
    }

    fn start(&mut self, token: u64, operation: Operation) -> io::Result<()> {
        let Some(id) = self.slots.claim(token, operation) else {
            return Err(io::Error::new(
                io::ErrorKind::WouldBlock,
                "operations_max operations are in flight",
            ));
        };
        if let Err(error) = self.queue_slot(id) {
            self.slots.release(id);
            return Err(error);
        }
        Ok(())
    }

    /// Queue the entry of a slot; on Err it is not in the queue.
    fn queue_slot(&mut self, id: SlotId) -> io::Result<()> {
        let (_, operation) = self.slots.get_mut(id);
        let entry = operation.entry().user_data(id.user_data());
        // SAFETY: everything the entry points at is owned by the operation in the slot, which is released only by the
        // completion that ends it; slots and what they own outlive the kernel's use (see Drop).
        unsafe { self.queue(&entry) }
    }

    /// Queue operations that go another round. On Err the rest stays for the next turn.
    fn submit_again(&mut self) -> io::Result<()> {
        while let Some(&id) = self.again.front() {
            if self.closing {
                self.slots.release(id);
            } else {
                self.queue_slot(id)?;
            }
            self.again.pop_front();
        }
        Ok(())
    }

    /// Put an entry into the queue, submitting what is there if it is full.
    ///
    /// # Safety
    /// What the entry points at stays valid until its completion.
    unsafe fn queue(&mut self, entry: &squeue::Entry) -> io::Result<()> {
        if self.uring.submission().is_full() {
            self.submit()?;
        }
        // SAFETY: passed on to our caller.
        let pushed = unsafe { self.uring.submission().push(entry) };
        pushed.map_err(|_| {
            io::Error::new(
                io::ErrorKind::WouldBlock,
                "the kernel takes no more submissions right now",
            )
        })
    }
}

/// User data of entries whose completion means nothing.
const IGNORED: u64 = 1 << 62;

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Completion, Wait};
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    use std::time::{Duration, Instant};

    #[test]
    fn older_flag_sets_work_the_same() {
        let config = RingConfig {
            entries: 4,
            recv_buffers: 2,
            recv_buffer_bytes: 64,
            operations_max: 4,
        };
        for from in 0..FLAG_SETS.len() {
            let mut ring = Ring::with(&config, &FLAG_SETS[from..]).unwrap();
            assert_eq!(
                ring.features().missing.is_empty(),
                from == 0,
                "{:?}",
                ring.features()
            );
            let waits = [
                Wait::No,
                Wait::Sleep(Duration::from_secs(1)),
                Wait::Spin {
                    at_most: Duration::from_secs(1),
                    then_sleep: None,
                },
            ];
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            ring.recv(Rc::new(ours.into()), 1).unwrap();
            let waker = ring.waker().unwrap();
            for wait in waits {
                let mut out = Vec::new();
                ring.turn(Wait::No, &mut out).unwrap();
                let address = ring.address();
                ring.wake(&address, 6).unwrap();
                theirs.write_all(b"hello").unwrap();
                waker.wake();
                let start = Instant::now();
                while out.len() < 3 {
                    assert!(
                        start.elapsed() < Duration::from_secs(5),
                        "{from} {wait:?}: {out:?}"
                    );
                    ring.turn(wait, &mut out).unwrap();
                }
                for completion in out {
                    match completion {
                        Completion::Received { token: 1, data } => {
                            assert_eq!(ring.received(&data), b"hello");
                            ring.recycle(data);
                        }
                        Completion::Woken { message } => {
                            assert!(message == 6 || message == u64::MAX)
                        }
                        other => panic!("{other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn a_configuration_no_kernel_takes_is_named() {
        let good = RingConfig {
            entries: 4,
            recv_buffers: 2,
            recv_buffer_bytes: 64,
            operations_max: 4,
        };
        let bad = [
            RingConfig {
                entries: 0,
                ..good.clone()
            },
            RingConfig {
                recv_buffers: 3,
                ..good.clone()
            },
            RingConfig {
                recv_buffer_bytes: 0,
                ..good.clone()
            },
            RingConfig {
                operations_max: 0,
                ..good.clone()
            },
            RingConfig {
                operations_max: u32::MAX,
                ..good
            },
        ];
        for config in bad {
            assert!(
                matches!(Ring::new(&config), Err(RingError::Config(_))),
                "{config:?}"
            );
        }
    }
}
