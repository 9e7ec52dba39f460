//! The kernel boundary: one io_uring per shard, O_DIRECT files, sockets and huge-page memory.
//!
//! The only crate with `unsafe`. Everything it exports is safe to call in any order: an operation owns
//! (or holds a counted reference to) its buffer and its descriptor from submission to completion, and
//! a ring is closed before the memory its operations used is given back.
//!
//! It knows nothing of records, requests, shards or protocols.
//!
//! | module | what it owns |
//! |---|---|
//! | [`Ring`] (`ring/`) | the queue pair, the pool of operation contexts, the provided receive buffers |
//! | `op/` | one kernel operation per file: the entry it builds and how its result is read |
//! | `memory/` | mappings: [`Buffer`], [`BufferPool`], [`Region`] |
//! | [`mod@file`], [`device`], [`latency`] | O_DIRECT files by path, what the disk promises, what a sync costs |
//! | [`socket`] | listeners and socket options |
//! | [`preflight`], [`limits`] | what must be there before any of it works, each with its fix |
//! | [`scheduling`] | how a busy thread gives way to the kernel's workers |
//! | [`clock`] | monotonic, wall and per-thread CPU time |

pub mod clock;
mod completion;
pub mod device;
mod error;
pub mod file;
pub mod latency;
pub mod limits;
mod memory;
mod op;
pub mod preflight;
mod ring;
pub mod scheduling;
mod setup;
pub mod socket;

pub use completion::{Completion, Received, Wait, WriteDurability};
pub use error::RingError;
pub use memory::{Buffer, BufferPool, Region, prefetch};
pub use ring::{Ring, RingAddress, Waker};
pub use setup::{Features, RingConfig};
