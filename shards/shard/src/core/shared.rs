//! What every shard of a process knows, and what each says of itself to the others: how many connections it has, whether it
//! takes writes, that it has nothing more to ask.
//!
//! Each shard writes its own entries only. It does not know why a log takes no writes.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use wire::Topology;

use super::{Core, State};

/// Bounds of one shard, printed at start.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Largest payload of one record.
    pub payload_bytes_max: u32,
    /// Largest native frame, header included.
    pub frame_bytes_max: u32,
    /// Largest HTTP body.
    pub body_bytes_max: usize,
    /// Connections of one shard.
    pub connections_max: u32,
    /// Unsent bytes of one connection above which its requests wait.
    pub unsent_bytes_max: usize,
    /// Unparsed bytes of one connection above which it is not read.
    pub unparsed_bytes_max: usize,
    /// A client that takes no bytes for so long, while there are some, is dropped.
    pub stalled_client_ns: u64,
    /// A request that was begun must be whole after so long, plus what its bytes take at `REQUEST_BYTES_PER_SECOND`.
    pub request_timeout_ns: u64,
    /// Jobs of one connection, and of one shard, above which requests wait.
    pub connection_jobs_max: u32,
    /// Histories, scans and tails of one connection that may be under way.
    pub connection_heavy_max: u32,
    /// Unread replies, and unparsed requests, of all connections of a shard, above which large ones are refused.
    pub unsent_bytes_total: u64,
    /// The same for unparsed requests.
    pub unparsed_bytes_total: u64,
    /// Jobs of one shard above which requests wait.
    pub jobs_max: usize,
}

/// What every shard of a process knows.
pub struct Shared {
    /// Identity of the store.
    pub store: String,
    /// As served in every protocol.
    pub topology: Topology,
    /// Log number of each shard.
    pub logs: Vec<u32>,
    /// Timeline of the logs; cursors carry it.
    pub timeline: u32,
    /// What clients must show, where they must.
    pub token: Option<Vec<u8>>,
    /// Address that is listened on.
    pub listen: IpAddr,
    /// Bounds of every shard.
    pub bounds: Bounds,
    /// Connections of each shard, for balance.
    pub load: Vec<AtomicU32>,
    /// `RECOVERING`, `READY`, `STOPPED` or `READ_ONLY` for each shard.
    pub ready: Vec<AtomicU32>,
    /// Shards that drain and have nothing more to ask of the others: none ends before all have.
    pub settled: Vec<AtomicBool>,
}

impl Shared {
    /// The shard will ask the others nothing any more.
    pub fn settle(&self, shard: usize) {
        self.settled[shard].store(true, Ordering::Release);
    }
}

/// What a shard says of itself to the others, in `Shared::ready`.
pub const RECOVERING: u32 = 0;
/// Takes writes.
pub const READY: u32 = 1;
/// Refuses everything until a restart.
pub const STOPPED: u32 = 2;
/// Reads go on, writes are refused: a log write failed, or no segment can be made.
pub const READ_ONLY: u32 = 3;

impl<S> Core<S> {
    /// The shard that should serve a new connection: this one, unless it has clearly more than the least loaded.
    pub(crate) fn least_loaded(&self, skew_max: u32) -> usize {
        let load = |shard: usize| self.shared.load[shard].load(Ordering::Relaxed);
        let least = (0..self.shards())
            .min_by_key(|s| load(*s))
            .unwrap_or(self.id);
        if load(self.id) > load(least) + skew_max {
            least
        } else {
            self.id
        }
    }

    /// This shard asks the others nothing any more.
    pub(crate) fn settle(&self) {
        self.shared.settle(self.id);
    }

    /// No shard has anything more to ask of this one.
    pub(crate) fn all_settled(&self) -> bool {
        let settled = &self.shared.settled;
        settled.iter().all(|s| s.load(Ordering::Acquire))
    }

    /// Tell the other shards whether this one takes writes: any of them may be asked. Before the answers of a turn leave, so
    /// that who was refused here is not told "ready" elsewhere.
    pub(crate) fn tell_readiness(&self) {
        if self.state != State::Ready {
            return;
        }
        let log = &self.partition.log;
        let takes_writes = log.failed().is_none() && !log.disk_full() && log.no_segment().is_none();
        let now = if takes_writes { READY } else { READ_ONLY };
        let told = &self.shared.ready[self.id];
        if told.load(Ordering::Relaxed) != now {
            told.store(now, Ordering::Release);
        }
    }

    pub(crate) fn is_process_ready(&self) -> bool {
        self.shared
            .ready
            .iter()
            .all(|r| r.load(Ordering::Acquire) == READY)
    }
}
