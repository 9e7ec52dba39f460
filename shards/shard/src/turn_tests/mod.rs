//! Whole turns over the test driver: what must end, what must wait, what must not be shown.
//!
//! One file for each part of the world that a shard must not trust: its clients, its clock, its disk (full, failing,
//! damaged), its neighbours, its own past.

mod clients;
mod clock;
mod drains;
mod failed_writes;
mod reads;
mod recovery;
mod room;

const RECORD: &str = "/v1/streams/s/records/k";
