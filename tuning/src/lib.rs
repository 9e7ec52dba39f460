//! The host under the engine: what it is, what would be changed and why, changed with proof, and put back exactly.
//!
//! Reading order: `system` (the seam to a machine) → `inventory` (what it is) → `settings` (the table: what is wanted) →
//! `items`, `steering` (the table laid over a machine) → `check` (the verdicts) → `script`, `journal`, `apply`, `revert`,
//! `verify`, `effect` (changing and putting back) → `persist` (files for the next boot, from `sysctl/`).
//!
//! Invariants:
//! - nothing is written before its old value is on stable storage; nothing is written that the table does not name;
//! - a capacity is raised, never lowered; what somebody changed since is not overwritten unasked;
//! - whatever interrupts a run, the next one finishes or undoes it.
//!
//! Knows nothing of the engine: no shard, no record, no wire.

pub mod apply;
pub mod check;
mod effect;
mod error;
mod ethtool;
pub mod inventory;
mod items;
mod journal;
pub mod persist;
pub mod recorded;
pub mod recorder;
pub mod revert;
pub mod script;
pub mod settings;
mod steering;
pub mod system;
pub mod target;
pub mod verify;

pub use error::Error;
