//! What can go wrong, sorted by who is at fault.

use std::io;

use wire::{Code, Refusal};

/// The result of a request.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a request has no good answer, and whose fault it is.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server understood the request and refused it. Nothing of it was stored, except perhaps behind
    /// [`Code::Unavailable`]: a shard whose log write failed does not know what of it reached the device, and shows nothing
    /// of it until a restart has read the log.
    #[error("the server refused ({}): {}{}", .0.code.name(), .0.message, retry_hint(.0.retry_after_ms))]
    Refused(Refusal),
    /// The server sent bytes that are not the protocol; the connection is closed.
    #[error("{address} does not speak the native protocol: {detail}")]
    Broken {
        /// Who sent them.
        address: String,
        /// What was wrong with them.
        detail: String,
    },
    /// The network or the operating system.
    #[error("cannot {doing} {address}: {cause}")]
    Io {
        /// What the client was doing: `connect to`, `write to`, `read from`, `get an answer from`.
        doing: &'static str,
        /// The other end.
        address: String,
        /// What the system said. Part of the message, and so not its source: chains would print it twice.
        cause: io::Error,
    },
    /// The connection ended before the answer came: the append may be stored or not. Connect with a producer id to have such
    /// appends sent again safely.
    #[error(
        "the connection to {address} ended before the answer{}: the append may be stored or not (use a producer id to retry safely)",
        said(.why)
    )]
    Lost {
        /// The other end.
        address: String,
        /// What the server said of the connection, if it was the server that ended it.
        why: Option<Refusal>,
    },
    /// The caller asked for something that cannot be sent; the sentence says what.
    #[error("{0}")]
    Usage(String),
}

fn said(why: &Option<Refusal>) -> String {
    why.as_ref().map_or_else(String::new, |why| {
        format!(" (the server said {}: {})", why.code.name(), why.message)
    })
}

fn retry_hint(retry_after_ms: Option<u32>) -> String {
    retry_after_ms.map_or_else(String::new, |ms| format!(" (retry after {ms} ms)"))
}

impl Error {
    /// The server's code, if it was the server that refused.
    pub fn code(&self) -> Option<Code> {
        match self {
            Error::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }

    /// Whether the same request may succeed later without any change.
    pub fn is_retryable(&self) -> bool {
        self.code().is_some_and(code_is_retryable)
    }

    /// The other end has closed: it may have said something before.
    pub(crate) fn is_closed(&self) -> bool {
        let closed = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
        matches!(self, Error::Io { cause, .. } if closed.contains(&cause.kind()))
    }

    pub(crate) fn io(doing: &'static str, address: &str, cause: io::Error) -> Error {
        Error::Io {
            doing,
            address: address.to_owned(),
            cause,
        }
    }

    pub(crate) fn broken(address: &str, detail: impl Into<String>) -> Error {
        Error::Broken {
            address: address.to_owned(),
            detail: detail.into(),
        }
    }
}

/// Refusals that name a passing state of the server, not a fault of the request.
pub(crate) fn code_is_retryable(code: Code) -> bool {
    matches!(code, Code::Overloaded | Code::Unavailable | Code::DiskFull)
}
