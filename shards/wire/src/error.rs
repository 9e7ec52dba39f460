//! Refusals: one set of codes for every protocol, and a sentence that says what to do.
//!
//! Invariant: a code keeps its number for ever; clients branch on it. It does not know how a protocol renders them.

/// Error codes shared by every protocol; each has an HTTP status and a native code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Code {
    /// Nothing went wrong.
    Ok = 0,
    /// The request makes no sense as it stands.
    Malformed = 1,
    /// The token is missing or wrong.
    Unauthorized = 2,
    /// No such record, stream or path.
    NotFound = 3,
    /// A producer's sequence is not the one that follows its last.
    SequenceOutOfOrder = 4,
    /// The record's condition does not hold.
    ConditionFailed = 5,
    /// Key, payload, body or frame is over its limit.
    TooLarge = 6,
    /// Over a bound of memory or queue; try again later.
    Overloaded = 7,
    /// The shard recovers or has stopped.
    Unavailable = 8,
    /// No space for writes; reads go on.
    DiskFull = 9,
    /// The server does not know this version or operation.
    Unsupported = 10,
    /// An idempotency key or producer sequence was used with a different request.
    IdempotencyMismatch = 11,
    /// A cursor of a timeline this directory never had.
    CursorUnknown = 12,
    /// The server failed.
    Internal = 13,
    /// The path has no such method.
    MethodNotAllowed = 14,
    /// An HTTP head has too many bytes or headers.
    HeadTooLarge = 15,
    /// A request was begun and did not arrive whole in time.
    RequestTimeout = 16,
}

impl Code {
    /// Every code, by number.
    pub const ALL: [Code; 17] = [
        Code::Ok,
        Code::Malformed,
        Code::Unauthorized,
        Code::NotFound,
        Code::SequenceOutOfOrder,
        Code::ConditionFailed,
        Code::TooLarge,
        Code::Overloaded,
        Code::Unavailable,
        Code::DiskFull,
        Code::Unsupported,
        Code::IdempotencyMismatch,
        Code::CursorUnknown,
        Code::Internal,
        Code::MethodNotAllowed,
        Code::HeadTooLarge,
        Code::RequestTimeout,
    ];

    /// The HTTP status that goes with it.
    pub fn http_status(self) -> u16 {
        match self {
            Code::Ok => 200,
            Code::Malformed | Code::CursorUnknown => 400,
            Code::Unauthorized => 401,
            Code::NotFound => 404,
            Code::MethodNotAllowed => 405,
            Code::RequestTimeout => 408,
            Code::SequenceOutOfOrder => 409,
            Code::ConditionFailed => 412,
            Code::TooLarge => 413,
            // As the IETF draft on Idempotency-Key has it for a key that is used again with another request.
            Code::IdempotencyMismatch => 422,
            Code::Overloaded => 429,
            Code::HeadTooLarge => 431,
            Code::Internal => 500,
            Code::Unsupported => 501,
            Code::Unavailable => 503,
            Code::DiskFull => 507,
        }
    }

    /// The inverse of `self as u16`.
    pub fn from_u16(v: u16) -> Option<Code> {
        Code::ALL.get(usize::from(v)).copied()
    }

    /// Its name as it stands in problem documents.
    pub fn name(self) -> &'static str {
        match self {
            Code::Ok => "ok",
            Code::Malformed => "malformed",
            Code::Unauthorized => "unauthorized",
            Code::NotFound => "not_found",
            Code::SequenceOutOfOrder => "sequence_out_of_order",
            Code::ConditionFailed => "condition_failed",
            Code::TooLarge => "too_large",
            Code::Overloaded => "overloaded",
            Code::Unavailable => "unavailable",
            Code::DiskFull => "disk_full",
            Code::Unsupported => "unsupported",
            Code::IdempotencyMismatch => "idempotency_mismatch",
            Code::CursorUnknown => "cursor_unknown",
            Code::Internal => "internal",
            Code::MethodNotAllowed => "method_not_allowed",
            Code::HeadTooLarge => "head_too_large",
            Code::RequestTimeout => "request_timeout",
        }
    }

    /// A few words for people: the `title` of a problem document.
    pub fn title(self) -> &'static str {
        match self {
            Code::Ok => "Done",
            Code::Malformed => "The request makes no sense as it stands",
            Code::Unauthorized => "A valid token is needed",
            Code::NotFound => "Not found",
            Code::SequenceOutOfOrder => "The producer's sequence is out of order",
            Code::ConditionFailed => "The condition does not hold",
            Code::TooLarge => "Over the size limit",
            Code::Overloaded => "Over a bound; try again later",
            Code::Unavailable => "The shard is not available",
            Code::DiskFull => "No space for writes",
            Code::Unsupported => "Not supported",
            Code::IdempotencyMismatch => "The idempotency key belongs to another request",
            Code::CursorUnknown => "The cursor is not of this directory",
            Code::Internal => "The server failed",
            Code::MethodNotAllowed => "The path has no such method",
            Code::HeadTooLarge => "The request head is over its limit",
            Code::RequestTimeout => "The request did not arrive in time",
        }
    }
}

/// An error on its way to a client: code, one sentence that says what to do, and when to try again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// What kind of refusal; clients branch on it.
    pub code: Code,
    /// For people: what is wrong and what to do.
    pub message: String,
    /// Milliseconds after which a repeat may succeed; `None` when repeating changes nothing.
    pub retry_after_ms: Option<u32>,
}

impl Refusal {
    /// A refusal that a repeat does not change.
    #[cold]
    pub fn new(code: Code, message: impl Into<String>) -> Refusal {
        Refusal {
            code,
            message: message.into(),
            retry_after_ms: None,
        }
    }

    /// The same, to be tried again after so many milliseconds.
    pub fn retry_after(mut self, ms: u32) -> Refusal {
        self.retry_after_ms = Some(ms);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_numbers_are_inverse_and_names_are_distinct() {
        let mut names = std::collections::HashSet::new();
        for (number, code) in (0..).zip(Code::ALL) {
            assert_eq!(code as u16, number);
            assert_eq!(Code::from_u16(number), Some(code));
            assert!(names.insert(code.name()));
        }
        assert_eq!(Code::from_u16(17), None);
        assert_eq!(Code::from_u16(u16::MAX), None);
    }
}
