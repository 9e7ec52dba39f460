//! End to end: the real binary, real sockets, a real disk. Every test starts servers of its own on free ports and ends
//! them by their process ids.
//!
//! `server` starts them, `http` is a client that hides nothing; the other modules are the tests, one question each.

mod accepting;
mod bad_input;
mod contract;
mod damage;
mod golden;
mod host;
mod http;
mod idempotency;
mod packages;
mod refusals;
mod reshard;
mod reshard_clients;
mod server;
mod shards;
mod space;
mod streams;
mod wire_rules;
