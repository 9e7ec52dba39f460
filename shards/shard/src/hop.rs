//! What shards say to each other: requests for another shard's slots, their answers, and connections handed over.
//!
//! Everything that one turn has for one shard travels as one parcel: bytes in one arena, items that point into it, so that
//! a crossing costs one queue operation per turn and not per request.

use std::ops::Range;

use wire::cursor::Walked;
use wire::native::AppendPart;
use wire::{Durability, Policy, Refusal};

use crate::driver::Door;
use crate::metrics::ShardSnapshot;
use crate::partition::Once;
use crate::records::RecordSet;

/// Names a pending request on the shard that asked; stale ones find nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(pub u64);

/// Who wants the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    pub shard: usize,
    pub ticket: Ticket,
}

/// A piece of a parcel's arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    start: u32,
    end: u32,
}

/// A request for the owner of a slot, bytes borrowed from a connection's input or a parcel's arena.
#[derive(Debug)]
pub enum Ask<B> {
    Append {
        stream: B,
        records: B,
        count: u32,
        durability: Durability,
        once: Once,
        want_versions: bool,
        tombstone_needs_live: bool,
        /// See `Unit::repeat_only`.
        repeat_only: bool,
    },
    Get {
        stream: B,
        key: B,
    },
    History {
        stream: B,
        key: B,
        before: u32,
        limit: u32,
    },
    /// `wait_until_ns` 0: answer even if empty.
    Scan {
        stream: B,
        from_lsn: u64,
        walked: Walked,
        limit: u32,
        wait_until_ns: u64,
    },
    PutStream {
        stream: B,
        policy: Policy,
    },
    /// Whether an Idempotency-Key is remembered here for another request than this one.
    KeyUse {
        digest: u128,
        fingerprint: u64,
    },
    Streams,
    Metrics,
}

/// One stream as its log counts it.
#[derive(Clone, Debug)]
pub struct StreamInfo {
    pub name: Vec<u8>,
    pub policy: Policy,
    pub records: u64,
    pub payload_bytes: u64,
    pub keys: u64,
}

/// What the owner says.
#[derive(Debug)]
pub enum Answer {
    Appended {
        part: AppendPart,
        versions: Vec<u32>,
    },
    /// `next_lsn`: where a scan goes on; `more`: it stopped at the limit.
    Records {
        set: RecordSet,
        next_lsn: u64,
        walked: Walked,
        more: bool,
    },
    StreamPut,
    /// Not for another request.
    KeyFree,
    Streams(Vec<StreamInfo>),
    Metrics(Box<ShardSnapshot>),
    Refused(Refusal),
}

/// An answer with the answering shard's watermark.
#[derive(Debug)]
pub struct Answered {
    pub answer: Answer,
    pub log: u32,
    pub epoch: u32,
    pub durable_lsn: u64,
}

/// One message of a parcel.
#[derive(Debug)]
pub enum Item<S> {
    Ask { ticket: Ticket, ask: Ask<Piece> },
    Answer { ticket: Ticket, answered: Answered },
    Socket { door: Door, socket: S },
}

/// All that one shard has for another in one turn.
#[derive(Debug)]
pub struct Parcel<S> {
    pub arena: Vec<u8>,
    pub items: Vec<Item<S>>,
}

impl<S> Default for Parcel<S> {
    fn default() -> Self {
        Parcel {
            arena: Vec::new(),
            items: Vec::new(),
        }
    }
}

impl<S> Parcel<S> {
    /// Copy bytes into the arena.
    pub fn piece(&mut self, bytes: &[u8]) -> Piece {
        let start = self.arena.len() as u32;
        self.arena.extend_from_slice(bytes);
        Piece {
            start,
            end: self.arena.len() as u32,
        }
    }
    /// Ask for another shard's work; copies the ask's bytes.
    pub fn ask(&mut self, ticket: Ticket, ask: &Ask<&[u8]>) {
        let ask = ask.map(|bytes| self.piece(bytes));
        self.items.push(Item::Ask { ticket, ask });
    }
}

impl Piece {
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

impl<B> Ask<B> {
    /// The same ask over other bytes.
    pub fn map<C>(&self, mut f: impl FnMut(&B) -> C) -> Ask<C> {
        match self {
            Ask::Append {
                stream,
                records,
                count,
                durability,
                once,
                want_versions,
                tombstone_needs_live,
                repeat_only,
            } => Ask::Append {
                stream: f(stream),
                records: f(records),
                count: *count,
                durability: *durability,
                once: *once,
                want_versions: *want_versions,
                tombstone_needs_live: *tombstone_needs_live,
                repeat_only: *repeat_only,
            },
            Ask::Get { stream, key } => Ask::Get {
                stream: f(stream),
                key: f(key),
            },
            Ask::History {
                stream,
                key,
                before,
                limit,
            } => Ask::History {
                stream: f(stream),
                key: f(key),
                before: *before,
                limit: *limit,
            },
            Ask::Scan {
                stream,
                from_lsn,
                walked,
                limit,
                wait_until_ns,
            } => Ask::Scan {
                stream: f(stream),
                from_lsn: *from_lsn,
                walked: walked.clone(),
                limit: *limit,
                wait_until_ns: *wait_until_ns,
            },
            Ask::PutStream { stream, policy } => Ask::PutStream {
                stream: f(stream),
                policy: policy.clone(),
            },
            Ask::KeyUse {
                digest,
                fingerprint,
            } => Ask::KeyUse {
                digest: *digest,
                fingerprint: *fingerprint,
            },
            Ask::Streams => Ask::Streams,
            Ask::Metrics => Ask::Metrics,
        }
    }
}
