//! One core's turn: connections, requests, one log with its index, over a [`driver::Driver`]; and the engine that starts and
//! drains all of them.
//!
//! Reading order: `turn` (the loop) → `input`, `native_input`, `http_input`, `append_split` (bytes to work) → `partition`
//! (what an append means) → `log` (batches to the device) → `outbox` (why an ack waits) → `owner`, `reads`, `scans` (reads)
//! → `hop`, `jobs` (crossing shards) → `recover`, `replay`, `checkpointer` (restart) → `engine` (threads, ports, memory).
//!
//! It does not know flags, config files or how a banner looks.

mod append_split;
pub mod assemble;
/// The atomics of `sleepers`, which a test replaces by a model's.
mod atomics {
    pub use std::sync::atomic::{AtomicBool, Ordering, fence};
}
mod cache;
#[cfg(test)]
mod checkpoint_tests;
mod checkpointer;
mod commit_window;
#[cfg(test)]
mod conditions_tests;
mod conns;
mod copies;
pub mod core;
mod dedup;
pub mod driver;
pub mod engine;
pub mod fill_pace;
#[cfg(test)]
mod full_disk_tests;
mod gauges;
mod held;
mod histories;
#[cfg(test)]
mod histories_tests;
mod hop;
mod http_input;
mod input;
mod jobs;
mod log;
pub mod mailbox;
#[cfg(test)]
mod max_bytes_tests;
mod metrics;
mod native_input;
mod outbox;
mod owner;
mod partition;
pub mod placement;
pub mod plan;
pub mod preparer;
pub mod profile;
mod reads;
mod records;
pub mod recover;
mod render;
mod replay;
pub mod reshard;
mod ring_driver;
#[cfg(test)]
mod scan_tests;
mod scans;
#[cfg(test)]
mod scrub_tests;
mod scrubber;
mod settling;
mod sleepers;
mod space;
mod space_counts;
#[cfg(test)]
mod space_tests;
#[cfg(test)]
mod spares_tests;
mod spin;
#[cfg(test)]
mod starts_tests;
mod store;
mod streams;
#[cfg(test)]
mod test_driver;
mod token;
pub mod turn;
#[cfg(test)]
mod turn_tests;
#[cfg(test)]
mod undurable_tests;
#[cfg(test)]
mod unreadable_tests;
mod waypoints;
mod worth;

pub use partition::IndexMemory;
pub use store::{Progress, Reshard, Settled, log_directory, segment_path};
