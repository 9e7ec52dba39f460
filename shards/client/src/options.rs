//! How to connect.

use std::time::Duration;

use wire::Durability;

/// How to connect and how long to wait. Start from `default()` and set what differs.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// Sent in the hello; servers on other than loopback addresses ask for one.
    pub token: Option<Vec<u8>>,
    /// Names this producer, so that an append that is sent twice is stored once.
    ///
    /// Appends are numbered per producer id *and log*, from 1, without gaps (a gap is refused with `SequenceOutOfOrder`). An id
    /// therefore belongs to one run of one producer: draw a random one for each run, or carry [`Client::sequences`] over
    /// to the next run in `sequences`.
    ///
    /// [`Client::sequences`]: crate::Client::sequences
    pub producer_id: Option<u128>,
    /// Next sequence per log number, for a producer that continues an earlier run. Logs that are not named start at 1; where a
    /// named log is gone, because the number of shards was changed, they start at the largest sequence of those that are.
    pub sequences: Vec<(u32, u64)>,
    /// How long to wait for a connection, for an answer, and with retries altogether.
    pub timeout: Duration,
    /// What an ack of [`Client::append`](crate::Client::append) shall mean.
    pub durability: Durability,
    /// Have every ack carry the version of each record (4 bytes a record).
    pub want_versions: bool,
    /// Frames in flight on each connection, at most. `send_append` waits for an answer when they are used up.
    pub window: usize,
    /// TCP congestion control by name, e.g. `cubic`; None leaves the system's default. A name the kernel does not have is an
    /// error.
    pub congestion: Option<String>,
    /// Open a connection per shard port. Off: one connection to the address that was given.
    pub shard_aware: bool,
}

impl Default for ConnectOptions {
    fn default() -> ConnectOptions {
        ConnectOptions {
            token: None,
            producer_id: None,
            sequences: Vec::new(),
            timeout: Duration::from_secs(10),
            durability: Durability::Durable,
            want_versions: true,
            window: 64,
            congestion: None,
            shard_aware: true,
        }
    }
}
