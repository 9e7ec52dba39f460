//! The pinion client: what a Rust producer links.
//!
//! [`Client`] speaks the native protocol over blocking sockets. It learns the topology when it connects, opens a connection
//! to the port of every shard, and sends each record to the shard that owns its key, so that nothing crosses cores inside the
//! server. Requests are pipelined through a bounded window; answers may come in any order.
//!
//! ```no_run
//! use client::{Client, ConnectOptions, Durability, Record};
//!
//! let mut client = Client::connect("127.0.0.1:7600", ConnectOptions { producer_id: Some(42), ..ConnectOptions::default() })?;
//! let ack = client.append("readings", &[Record::json(b"sensor-1", br#"{"celsius":21.5}"#)])?;
//! assert_eq!(ack.durability, Durability::Durable);
//! let newest = client.get("readings", b"sensor-1")?.expect("just appended");
//! assert_eq!(newest.payload, br#"{"celsius":21.5}"#);
//! # Ok::<(), client::Error>(())
//! ```
//!
//! [`protocol`] is the part without sockets or clocks: buffers and the window of requests in flight. Whoever runs an event
//! loop of their own (the load generator does) builds on it.
//!
//! It does not know what a server stores or how; it holds no cache and starts no thread.

pub mod error;
pub mod options;
pub mod protocol;
pub mod socket;

pub use error::{Error, Result};
pub use options::ConnectOptions;
pub use wire::native::{AppendPart, ReplyMark};
pub use wire::{
    AppendRecord as Record, Code, Condition, ContentType, Durability, Refusal, Topology,
};
