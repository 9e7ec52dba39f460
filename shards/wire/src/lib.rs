//! Bytes to requests and back: the native protocol, HTTP/1.1, NDJSON, cursors, topology.
//!
//! It does not know sockets, a clock, the disk, or what a request does to a shard. Every parser takes the bytes
//! that have arrived so far and answers with what stands at their start; what it returns borrows from them.
//!
//! Invariants: no input makes a parser panic; a parser's answer depends on the bytes alone, never on how they were
//! cut into receives; whatever a writer here encodes, the parser beside it reads back as the same value.

mod bytes;
mod content_type;
pub mod cursor;
mod error;
pub mod http;
mod model;
pub mod native;
pub mod ndjson;
mod policy;
pub mod slot;
mod topology;

pub use content_type::ContentType;
pub use cursor::Cursor;
pub use error::{Code, Refusal};
pub use model::{
    AppendRecord, Condition, Durability, KEY_BYTES_MAX, RecordOut, STREAM_NAME_BYTES_MAX,
    stream_name_is_valid,
};
pub use policy::Policy;
pub use topology::{ShardRoute, Topology};

/// Records of a page (history, scan, tail) when the request names no limit.
pub const LIMIT_DEFAULT: u32 = 100;
/// Larger page limits are taken down to this one.
pub const LIMIT_MAX: u32 = 10_000;
/// Longest wait of a tail in milliseconds; longer ones are taken down to this one.
pub const WAIT_MS_MAX: u32 = 60_000;
