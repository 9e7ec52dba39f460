//! What a shard measures, and how it is shown to Prometheus.
//!
//! [`ShardMetrics`] belongs to one shard's thread: plain numbers, no atomics, no locks. A scrape asks every shard for a [`ShardSnapshot`] (some
//! microseconds and a few KiB of its turn) and renders all of them in one place.
//!
//! What stands where: `distribution` records latencies and sizes, `families` names every metric once, `render` writes the text, `process`
//! reads what the kernel knows. METRICS.md beside this crate lists the names; a test holds it to `families`.
//!
//! # Invariants
//! - Recording allocates nothing and takes some nanoseconds; groups are recorded as one.
//! - Counters never go back while the process lives.
//!
//! It knows no clock: times are given to it.

mod distribution;
mod families;
mod process;
mod render;

pub use distribution::{Distribution, DistributionSnapshot, Scale};
pub use process::{ProcessUsage, note_tuning_drift};
pub use render::{CONTENT_TYPE, render};

use crate::log::WriteDone;
use crate::outbox::Operation;
use crate::recover::Recovered;
use wire::Code;

/// How a client spoke.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// frames
    Native,
    /// HTTP/1.1
    Http,
}

impl Protocol {
    const ALL: [Protocol; 2] = [Protocol::Native, Protocol::Http];

    fn name(self) -> &'static str {
        match self {
            Protocol::Native => "native",
            Protocol::Http => "http",
        }
    }
}

const OPERATIONS: [Operation; 5] = [
    Operation::Append,
    Operation::Get,
    Operation::History,
    Operation::Scan,
    Operation::Other,
];

fn operation_name(operation: Operation) -> &'static str {
    match operation {
        Operation::Append => "append",
        Operation::Get => "get",
        Operation::History => "history",
        Operation::Scan => "scan",
        Operation::Other => "other",
    }
}

/// Every code that a refusal can have: all of the wire's but `Ok`, which stands first there.
const CODES: [Code; Code::ALL.len() - 1] = *Code::ALL
    .last_chunk()
    .expect("one fewer than all there are");

/// What a shard is doing. The numbers are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ShardState {
    /// reading its log
    #[default]
    Recovering = 0,
    /// takes writes
    Ready = 1,
    /// refuses writes until there is space
    DiskFull = 2,
    /// a write failed or the log is damaged: refuses writes until a restart
    Stopped = 3,
    /// going down
    Draining = 4,
    /// no segment can be made, for another reason than space: refuses writes until one can
    NoSegment = 5,
}

/// What only goes up. Counted by the shard.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// records appended
    pub records: u64,
    /// payload bytes of them
    pub payload_bytes: u64,
    /// bytes written to the log, padding included
    pub log_bytes: u64,
    /// batches written to the log
    pub batches: u64,
    /// requests, by protocol and operation
    pub requests: [[u64; OPERATIONS.len()]; Protocol::ALL.len()],
    /// refusals, by place in `CODES`
    refusals: [u64; CODES.len()],
    /// requests answered from a retry window
    pub repeats: u64,
    /// answers that a bound made a retry window forget
    pub retry_evictions: u64,
    /// bytes of sealed segments that were verified again
    pub scrubbed_bytes: u64,
    /// places where that found damage
    pub scrub_errors: u64,
    /// messages sent to other shards
    pub mailbox_hops: u64,
    /// reads of the read cache that found their record
    pub cache_hits: u64,
    /// and that did not
    pub cache_misses: u64,
    /// connections accepted here
    pub connections_accepted: u64,
    /// of those, handed to another shard
    pub connections_moved: u64,
    /// connections closed because their client took no bytes
    pub slow_clients: u64,
    /// connections closed because a request was begun and not ended
    pub late_requests: u64,
    /// segments that were released because nothing in them could be read any more
    pub segments_released: u64,
    /// bytes of records that streams' limits in bytes have ended
    pub ended_bytes: u64,
    /// files of released segments that were given to reuse
    pub segments_recycled: u64,
    pub segments_given_back: u64,
    /// segments handed to the log before they were filled with zeroes
    pub segments_left_reserved: u64,
    /// bytes of records that were copied forward to release a segment
    pub relocated_bytes: u64,
    /// records that were
    pub relocated_records: u64,
    /// time spent working, not waiting
    pub busy_ns: u64,
    /// turns of the loop
    pub turns: u64,
}

/// Segments of the log, by what they are for.
#[derive(Clone, Copy, Debug, Default)]
pub struct SegmentCounts {
    /// being written
    pub active: u64,
    /// full
    pub sealed: u64,
    /// prepared to be written next
    pub ready: u64,
    /// nothing in them can be read any more; a checkpoint may still speak of them
    pub released: u64,
    /// files without a segment
    pub spare: u64,
}

/// Memory of a shard, by what it is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryBytes {
    /// batch buffers
    pub batches: u64,
    /// connections' input and output
    pub connections: u64,
    /// read cache and its table
    pub cache: u64,
    /// retry windows
    pub retries: u64,
    /// device reads
    pub reads: u64,
}

/// What goes up and down. Set by the shard before it gives a snapshot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Gauges {
    /// see [`ShardState`]
    pub state: ShardState,
    /// messages that other shards have not taken yet
    pub mailbox_queue_depth: u64,
    /// open connections
    pub connections: u64,
    /// buckets in use
    pub index_bytes: u64,
    /// keys in the index, ended ones included
    pub index_keys: u64,
    /// see [`SegmentCounts`]
    pub segments: SegmentCounts,
    /// see [`MemoryBytes`]
    pub memory: MemoryBytes,
    /// last lsn on stable storage
    pub durable_lsn: u64,
    /// median of a durable 4 KiB write when the data directory was made
    pub device_sync_seconds: f64,
    /// how long recovery took
    pub recovery_seconds: f64,
    /// log and checkpoint bytes that it read
    pub recovery_bytes: u64,
    /// records that it replayed
    pub recovery_records: u64,
    /// bytes of the records in the log, about
    pub record_bytes: u64,
    /// of them, bytes that nobody can read any more, about
    pub dead_bytes: u64,
    /// beside them, headers and padding of their batches, about
    pub padding_bytes: u64,
    /// The oldest segment stays for what cannot be read in it.
    pub space_held_up: bool,
    /// how long the last checkpoint took
    pub checkpoint_seconds: f64,
    /// its bytes
    pub checkpoint_bytes: u64,
    /// time since it ended; none before the first of this run
    pub checkpoint_age_seconds: Option<f64>,
    /// when the snapshot was taken, seconds since 1970: it stands still when the shard does
    pub last_turn_timestamp_seconds: f64,
}

/// All that one shard measures. See the module's header.
#[derive(Debug)]
pub struct ShardMetrics {
    shard: usize,
    /// what only goes up
    pub counters: Counters,
    /// what the shard sets before a snapshot
    pub gauges: Gauges,
    requests: [Distribution; OPERATIONS.len()],
    commit: Distribution,
    device_write: Distribution,
    device_read: Distribution,
    batch_records: Distribution,
    batch_bytes: Distribution,
}

impl ShardMetrics {
    /// Nothing measured yet.
    pub fn new(shard: usize) -> ShardMetrics {
        ShardMetrics {
            shard,
            counters: Counters::default(),
            gauges: Gauges::default(),
            requests: std::array::from_fn(|_| Distribution::new(Scale::LATENCY)),
            commit: Distribution::new(Scale::LATENCY),
            device_write: Distribution::new(Scale::LATENCY),
            device_read: Distribution::new(Scale::LATENCY),
            batch_records: Distribution::new(Scale::RECORDS),
            batch_bytes: Distribution::new(Scale::BYTES),
        }
    }

    /// Records appended, with their payload bytes.
    #[inline]
    pub fn records(&mut self, records: u64, payload_bytes: u64) {
        self.counters.records += records;
        self.counters.payload_bytes += payload_bytes;
    }

    /// Requests read from clients.
    #[inline]
    pub fn requests(&mut self, protocol: Protocol, operation: Operation, count: u64) {
        self.counters.requests[protocol as usize][operation as usize] += count;
    }

    /// A request was refused.
    pub fn refusal(&mut self, code: Code) {
        // `Ok` is no refusal; whoever says so has found a mistake of ours
        let code = if code == Code::Ok {
            Code::Internal
        } else {
            code
        };
        let at = CODES
            .iter()
            .position(|&known| known == code)
            .expect("every code is listed");
        self.counters.refusals[at] += 1;
    }

    /// `count` requests answered together, `ns` after they came in.
    #[inline]
    pub fn latency(&mut self, operation: Operation, ns: u64, count: u32) {
        self.requests[operation as usize].record_many(ns, count.into());
    }

    /// The device has written a batch.
    pub fn batch(&mut self, done: &WriteDone) {
        self.counters.batches += 1;
        self.counters.log_bytes += u64::from(done.bytes);
        self.device_write.record(done.write_ns);
        self.commit.record(done.commit_ns);
        self.batch_records.record(done.records.into());
        self.batch_bytes.record(done.bytes.into());
    }

    /// The device has read a record or a piece of the log for a client.
    pub fn device_read(&mut self, ns: u64) {
        self.device_read.record(ns);
    }

    /// A connection was accepted; `moved`: another shard serves it.
    pub fn accepted(&mut self, moved: bool) {
        self.counters.connections_accepted += 1;
        self.counters.connections_moved += u64::from(moved);
    }

    /// A connection was closed because its client took no bytes.
    pub fn slow_client(&mut self) {
        self.counters.slow_clients += 1;
    }

    /// A connection was closed because a request that it began did not become whole.
    pub fn late_request(&mut self) {
        self.counters.late_requests += 1;
    }

    /// A turn of the loop is over.
    #[inline]
    pub fn turn(&mut self) {
        self.counters.turns += 1;
    }

    /// Recovery is over.
    pub fn recovered(&mut self, report: &Recovered) {
        self.gauges.recovery_seconds = report.seconds;
        self.gauges.recovery_bytes = report.log_bytes + report.checkpoint_bytes;
        self.gauges.recovery_records = report.records;
    }

    /// All of it as it is now. Some microseconds.
    pub fn snapshot(&self) -> ShardSnapshot {
        ShardSnapshot {
            shard: self.shard,
            counters: self.counters,
            gauges: self.gauges,
            requests: std::array::from_fn(|at| self.requests[at].snapshot()),
            commit: self.commit.snapshot(),
            device_write: self.device_write.snapshot(),
            device_read: self.device_read.snapshot(),
            batch_records: self.batch_records.snapshot(),
            batch_bytes: self.batch_bytes.snapshot(),
        }
    }
}

/// A shard's measurements at one moment: plain data, to be sent to whoever renders.
#[derive(Clone, Debug)]
pub struct ShardSnapshot {
    /// whose
    pub shard: usize,
    /// what only goes up
    pub counters: Counters,
    /// what goes up and down
    pub gauges: Gauges,
    requests: [DistributionSnapshot; OPERATIONS.len()],
    commit: DistributionSnapshot,
    device_write: DistributionSnapshot,
    device_read: DistributionSnapshot,
    batch_records: DistributionSnapshot,
    batch_bytes: DistributionSnapshot,
}

#[cfg(test)]
mod tests;
