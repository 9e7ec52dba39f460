//! What a turn of the ring hands back, and how it is asked to wait.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::Buffer;

/// Bytes received into a provided buffer; give it back with [`crate::Ring::recycle`].
#[derive(Debug)]
#[must_use = "a provided buffer that is not recycled is lost to the ring"]
pub struct Received {
    /// Which provided buffer.
    pub buffer: u16,
    /// How many bytes of it were filled; never 0.
    pub len: u32,
}

/// One finished operation. `token` is what the caller passed in.
#[derive(Debug)]
pub enum Completion {
    /// One more connection; the accept stays armed.
    Accepted {
        /// As passed to `accept`.
        token: u64,
        /// The new connection, close-on-exec.
        socket: OwnedFd,
    },
    /// The multishot accept has ended (error inside); arm it again, later if EMFILE.
    AcceptEnded {
        /// As passed to `accept`.
        token: u64,
        /// Why; ECANCELED after `cancel`.
        error: io::Error,
    },
    /// Bytes of a stream, in order; the receive stays armed.
    Received {
        /// As passed to `recv`.
        token: u64,
        /// Where they are.
        data: Received,
    },
    /// Multishot recv is over: Ok(()) = end of stream; Err(ENOBUFS) = out of provided buffers (arm again); Err(ECANCELED); other errors = reset.
    RecvEnded {
        /// As passed to `recv`.
        token: u64,
        /// Why.
        result: io::Result<()>,
    },
    /// A send has ended, perhaps short (the caller sends the rest with a later `from`).
    Sent {
        /// As passed to `send`.
        token: u64,
        /// The Vec that was passed in.
        data: Vec<u8>,
        /// Bytes sent from `from` on.
        result: io::Result<usize>,
    },
    /// A write has ended, perhaps short.
    Written {
        /// As passed to `write`.
        token: u64,
        /// Bytes written from the start of the range.
        result: io::Result<usize>,
    },
    /// A read has ended; fewer bytes than asked is the end of the file.
    Read {
        /// As passed to `read`.
        token: u64,
        /// The buffer that was passed in.
        buffer: Buffer,
        /// Bytes read into its beginning.
        result: io::Result<usize>,
    },
    /// An fdatasync has ended.
    Synced {
        /// As passed to `fdatasync`.
        token: u64,
        /// After an error the kernel may have dropped the dirty pages: a later Ok proves nothing.
        result: io::Result<()>,
    },
    /// Another ring sent `message` with [`crate::Ring::wake`], or a [`crate::Waker`] was used (`u64::MAX`).
    Woken {
        /// What was sent.
        message: u64,
    },
}

/// Write then what? Chosen from the device profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteDurability {
    /// Into the device's cache at best; durable after a later `fdatasync`.
    None,
    /// RWF_DSYNC: completion means stable storage (FUA, or write and flush).
    Dsync,
}

/// How long [`crate::Ring::turn`] may stay in the kernel.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// Submit, take what is there, return.
    No,
    /// Look for completions without sleeping for `at_most`, then sleep as `then_sleep` says (None = return).
    Spin {
        /// How long to keep the core.
        at_most: Duration,
        /// How long to sleep after that.
        then_sleep: Option<Duration>,
    },
    /// Sleep until a completion, a signal, or this long.
    Sleep(Duration),
}
