//! What the engine promises, by name: every check of the oracle says which one it holds.
//!
//! The names are those of the README's list of what an ack means.

use std::fmt;

/// A promise of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Promise {
    /// A durable ack survives every crash.
    Durable,
    /// A log is a gap-free prefix, and a unit is all there or not at all.
    Prefix,
    /// A read shows nothing that a crash could take back.
    NoPhantom,
    /// A repeat gets the first answer.
    SafeRetries,
    /// Wrong bytes are found, never served.
    Corruption,
    /// Behind a failed write nothing is acked, and reads go on.
    FailStop,
    /// Conditions and versions are what they are said to be.
    Versions,
    /// Every request is answered, and with what it asked for.
    Answers,
    /// Recovering twice changes nothing.
    Recovery,
    /// A limit in bytes ends the oldest records, no more than it must, and for good.
    Retention,
}

impl Promise {
    /// All of them.
    pub const ALL: [Promise; 10] = [
        Promise::Durable,
        Promise::Prefix,
        Promise::NoPhantom,
        Promise::SafeRetries,
        Promise::Corruption,
        Promise::FailStop,
        Promise::Versions,
        Promise::Answers,
        Promise::Recovery,
        Promise::Retention,
    ];

    /// The promise with what broke it.
    pub fn broken(self, how: impl fmt::Display) -> String {
        format!("[{self}] {how}")
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Promise::Durable => "ack = durable",
            Promise::Prefix => "prefix",
            Promise::NoPhantom => "no phantom reads",
            Promise::SafeRetries => "safe retries",
            Promise::Corruption => "corruption is found",
            Promise::FailStop => "fail-stop",
            Promise::Versions => "versions and conditions",
            Promise::Answers => "answers",
            Promise::Recovery => "recovery repeats",
            Promise::Retention => "retention by bytes",
        })
    }
}
