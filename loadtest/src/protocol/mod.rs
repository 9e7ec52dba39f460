//! What the generator needs of a protocol: encode a request, tell where an answer ends and which request it belongs to.
//!
//! Two implementations, [`native::Native`] and [`http::Http`]; the generator is compiled once for each. It does not know sockets
//! or time.

pub mod http;
pub mod native;

use wire::Durability;

use crate::records::Records;

/// What every connection of a run has in common.
#[derive(Clone, Debug)]
pub struct Dialect {
    /// `host:port`, for HTTP's Host header.
    pub address: String,
    /// Stream that is written to and read from.
    pub stream: String,
    /// What acks shall mean.
    pub durability: Durability,
    /// Have acks carry the version of each record.
    pub want_versions: bool,
    /// Versions that a history asks for.
    pub limit: u32,
    /// Sent as `Authorization: Bearer` over HTTP; over the native protocol the hello carries it.
    pub token: Option<Vec<u8>>,
    /// Payloads are JSON strings, quotes included.
    pub json: bool,
}

/// One answer, as far as every request looks at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The id that the request was encoded with.
    pub id: u64,
    /// How it ended.
    pub outcome: Outcome,
    /// Bytes of the answer; the next one starts behind them.
    pub bytes: usize,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// As asked.
    Good,
    /// No such key.
    NotFound,
    /// Refused; the number is the protocol's own (a native code, an HTTP status).
    Refused(u16),
}

/// A version of a key as the server shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// From 1.
    pub version: u32,
    /// XXH3 of the payload.
    pub hash: u64,
}

/// One connection's encoder and decoder.
pub trait Protocol: Sized + 'static {
    /// For a fresh connection.
    fn new(dialect: &Dialect) -> Self;

    /// Encodes an append of the next `count` records.
    fn append(&mut self, out: &mut Vec<u8>, id: u64, count: u32, records: &mut Records);
    /// Encodes a get.
    fn get(&mut self, out: &mut Vec<u8>, id: u64, key: &[u8]);
    /// Encodes a history of the versions before `before`, newest first (0: from the newest).
    fn history(&mut self, out: &mut Vec<u8>, id: u64, key: &[u8], before: u32, limit: u32);

    /// The answer at the start of `bytes`; None when it is not whole yet. Err: this is not the protocol.
    fn answer(&mut self, bytes: &[u8]) -> Result<Option<Answer>, String>;

    /// Versions of an acknowledged append in request order; left empty where the protocol does not say.
    fn versions(&self, answer: &[u8], versions: &mut Vec<u32>) -> Result<(), String>;
    /// What a get found.
    fn newest(&self, answer: &[u8]) -> Result<Seen, String>;
    /// What a history listed, newest first.
    fn listed(&self, answer: &[u8]) -> Result<Vec<Seen>, String>;

    /// The name of a refusal's number.
    fn refusal_name(number: u16) -> String;
}
