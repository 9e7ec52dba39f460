//! The pinion client: what a Rust producer links.
//!
//! [`Client`] speaks the native protocol over blocking sockets. It learns the topology when it connects, opens a connection
//! to the port of every shard, and sends each record to the shard that owns its key, so that nothing crosses cores inside the
//! server. Requests are pipelined through a bounded window; answers may come in any order.
//!
//! ```no_run
//! use client::{Client, Condition, ConnectOptions, ContentType, Durability, Record};
//!
//! let mut client = Client::connect("127.0.0.1:7600", ConnectOptions { producer_id: Some(42), ..ConnectOptions::default() })?;
//! let record = Record {
//!     key: b"sensor-1",
//!     payload: br#"{"celsius":21.5}"#,
//!     content_type: ContentType::JSON,
//!     tombstone: false,
//!     condition: Condition::None,
//! };
//! let ack = client.append("readings", &[record])?;
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

mod client;
mod connection;
pub mod error;
mod lane;
pub mod options;
pub mod protocol;
mod reads;
pub mod socket;

pub use client::{Ack, Client, Ticket};
pub use error::{Error, Result};
pub use options::ConnectOptions;
pub use reads::{Page, Scan, Stored};
pub use wire::native::AppendPart;
pub use wire::{
    AppendRecord as Record, Code, Condition, ContentType, Durability, Refusal, Topology,
};
