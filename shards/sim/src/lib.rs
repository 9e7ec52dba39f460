//! The shipped shard on a simulated disk, clock and network.
//!
//! Everything random comes from one seed, everything that happens passes one counter: a run is replayed exactly by its
//! seed, and a crash can be put behind any operation of the disk. Reading order: `image` (what a crash leaves of a file) →
//! `disk` (which files there are) → `machine` (clock, sockets, the counter) → `driver` (the seam that the shard sees) →
//! `host` (one life: open, recover, turn, crash) → `client` (what is asked) → `promise`, `oracle` (what must hold) → `trial`
//! (these together, over many lives) → `scenario` (small workloads, enumerated) → `random` (long runs from a seed), `space`
//! (whole runs beside compaction).
//!
//! The rules of the disk follow FoundationDB's AsyncFileNonDurable. It does not know how the shard works inside.

pub mod client;
pub mod disk;
pub mod driver;
pub mod host;
pub mod image;
pub mod machine;
pub mod oracle;
pub mod promise;
pub mod random;
pub mod scenario;
pub mod space;
pub mod trial;
