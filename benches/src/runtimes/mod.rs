//! What would another runtime make of the same requests?
//!
//! A 7-byte reply to a 14-byte request (`PING` in RESP), one core for the server, another one for the client. The servers do as little
//! as they can: count whole commands in what was read, write as many replies. What differs is how bytes get to them and how
//! they learn of it, which is the question.
//!
//! The runtimes that pinion does not ship are behind the feature `runtimes`; without it the ring stands alone.
//!
//! | module | owns |
//! |---|---|
//! | `ping` | the protocol: how many commands are whole |
//! | `servers` | one server per runtime |
//! | `client` | load without redis-benchmark, and with it |
//! | `compare` | starts each server in a process of its own, loads it, writes the table |

mod client;
mod compare;
mod ping;
mod servers;

pub use compare::{Comparison, Load, compare};
pub use servers::{Runtime, serve};
