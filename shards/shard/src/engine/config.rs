//! What an engine is asked for, what it says of itself at start, and why it may not start.

use super::host::HostConfig;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use uring::{Features, RingError};

use crate::plan::PlanError;
use crate::store::StoreError;

/// What to serve, where, with how much.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Data directory; made if it is not there.
    pub data: PathBuf,
    /// None: what the store was made with; for a new one, one per physical core.
    pub shards: Option<usize>,
    /// A new store gets no more shards than this where `shards` does not say.
    pub shards_max: Option<usize>,
    /// Cores to pin to, in shard order; None: those that the process may use, as `placement` orders them.
    pub cores: Option<Vec<usize>>,
    /// Address to listen on.
    pub listen: IpAddr,
    /// 0: any free port.
    pub native_port: u16,
    /// 0: any free port.
    pub http_port: u16,
    /// None: what the store was made with; for a new one `SEGMENT_BYTES`.
    pub segment_bytes: Option<u64>,
    /// Cap on the plan of all shards; None: three quarters of the machine's memory.
    pub memory_bytes: Option<u64>,
    /// Largest payload of one record.
    pub payload_bytes_max: u32,
    /// Per shard.
    pub connections_max: u32,
    /// A request that was begun must be whole after so long.
    pub request_timeout: Duration,
    /// What clients must show; None: nothing.
    pub token: Option<Vec<u8>>,
    /// Longest spin of an idle shard before it sleeps; 0 = off, None = the default.
    pub spin_us: Option<u32>,
    /// Small batches are written so far apart under load; 0 = at once, None = from the measured latency of the device.
    pub commit_window_us: Option<u32>,
    /// TCP congestion control of accepted connections; None: the system's.
    pub congestion: Option<String>,
    /// Read cache per shard; None: an eighth of what is left, at most 256 MiB.
    pub cache_bytes: Option<u64>,
    /// Segments kept prepared ahead of the log.
    pub segments_ahead: Option<u32>,
    /// Log bytes after which a checkpoint is begun.
    pub checkpoint_log_bytes: Option<u64>,
    /// Sealed segments are verified again at this rate, per shard; 0 = never.
    pub scrub_bytes_per_second: u64,
    /// Disk use is held to about so many hundredths of what can still be read; 0: nothing is freed; None = the default.
    pub space_amplification_percent: Option<u64>,
    /// Listen on a port per shard.
    pub shard_ports: bool,
    /// What is asked of the host.
    pub host: HostConfig,
}

/// Default of `space_amplification_percent`.
pub const SPACE_AMPLIFICATION_PERCENT: u64 = 200;

/// Default of `segment_bytes`.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    /// The data directory.
    Store(#[from] StoreError),
    #[error(transparent)]
    /// The memory plan.
    Plan(#[from] PlanError),
    #[error(transparent)]
    /// io_uring.
    Ring(#[from] RingError),
    /// A port is taken, or the address is not ours.
    #[error(
        "cannot listen on {address}: {source}; stop what uses it, or choose another port with {flag}"
    )]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
        /// The flag that changes it.
        flag: &'static str,
    },
    /// Not even the listeners and files of the shards have descriptors.
    #[error(
        "the {limit} file descriptors that this process may have are not enough to start {shards} shards: run `ulimit -n 65536` first (systemd: LimitNOFILE=65536)"
    )]
    Descriptors {
        /// What the process may have.
        limit: u64,
        /// Shards of the store.
        shards: usize,
    },
    /// The device could not be measured.
    #[error("measuring the device under {path}: {source}")]
    Profile {
        /// Data directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Cores and shards do not match.
    #[error("--cores names {cores} cores for {shards} shards: give one core per shard")]
    Cores {
        /// Cores named.
        cores: usize,
        /// Shards of the store.
        shards: usize,
    },
    /// A shard could not start.
    #[error("{0}")]
    Shard(String),
}

impl OpenError {
    pub(super) fn is_address_in_use(&self) -> bool {
        matches!(self, OpenError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// One shard in the banner.
#[derive(Clone, Debug)]
pub struct ShardBanner {
    /// Shard number.
    pub shard: usize,
    /// Core that it is pinned to.
    pub core: usize,
    /// Log that it runs.
    pub log: u32,
    /// Port of its own.
    pub native_port: Option<u16>,
}

/// What the operator is told at start.
#[derive(Clone, Debug)]
pub struct Banner {
    /// One per shard, in order.
    pub shards: Vec<ShardBanner>,
    /// Memory of one shard: holder and bytes.
    pub memory: Vec<(String, u64)>,
    /// Address that is listened on.
    pub listen: IpAddr,
    /// Native port that all shards share.
    pub native_port: u16,
    /// HTTP port that all shards share.
    pub http_port: u16,
    /// How a write is made durable on this device.
    pub sync_method: String,
    /// Median of one durable 4 KiB write, in microseconds, as measured.
    pub sync_p50_us: f64,
    /// Its 99th percentile.
    pub sync_p99_us: f64,
    /// Small batches are written so far apart under load.
    pub commit_window: Duration,
    /// Large batches are on their way to the device at once, at most.
    pub large_writes_in_flight: usize,
    /// What an ack survives on this device.
    pub durability_class: String,
    /// What the kernel's ring offers.
    pub features: Features,
    /// What the host grants, of what was asked of it.
    pub host: Vec<String>,
    /// Data directory.
    pub data: PathBuf,
    /// Identity of the store.
    pub store: String,
}
