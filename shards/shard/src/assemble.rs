//! A shard put together from its parts, the same way for the real ring and for the simulator.
//!
//! Owns the sizes that are not flags. It does not know where the driver's bytes come from.

use std::io;
use std::sync::Arc;

use index::{DigestKey, Index};
use uring::{BufferPool, Region};

use crate::cache::ReadCache;
use crate::checkpointer::Checkpointer;
use crate::core::{Bounds, Core, Shared};
use crate::dedup::{KeyLimits, ProducerLimits};
use crate::driver::{Driver, FileId};
use crate::hop::Parcel;
use crate::log::Log;
use crate::mailbox::Mailbox;
use crate::partition::{CacheMemory, IndexMemory, Limits, Partition};
use crate::plan::Plan;
use crate::reads::Reads;
use crate::recover::RecoverConfig;
use crate::scrubber::Scrubber;
use crate::space::Space;
use crate::turn::{Pace, Shard};

const PRODUCERS_MAX: usize = 65_536;
const IDEMPOTENCY_KEYS_MAX: usize = 262_144;
const DEDUP_WINDOW_SECONDS: u64 = crate::dedup::WINDOW_SECONDS_DEFAULT as u64;

/// Everything that a shard is made of.
pub struct Parts<D: Driver> {
    /// Number of the shard.
    pub shard: usize,
    /// What it may hold.
    pub plan: Plan,
    /// Batch buffers, `plan.batch_buffers` of `plan.batch_bytes`; already registered where the driver wants that.
    pub pool: BufferPool,
    /// What all shards know.
    pub shared: Arc<Shared>,
    /// Which log it runs, in which term.
    pub recover: RecoverConfig,
    /// Key of the store's digests.
    pub digest_key: [u8; 16],
    /// The two checkpoint files.
    pub checkpoints: [Option<FileId>; 2],
    /// Log bytes behind a checkpoint that ask for the next.
    pub checkpoint_log_bytes: u64,
    /// Sealed segments are verified again at this rate; 0 = never.
    pub scrub_bytes_per_second: u64,
    /// Disk use is held to about so many hundredths of what can still be read; 0: nothing is freed.
    pub space_amplification_percent: u64,
    /// Its end of the queues between shards.
    pub mailbox: Mailbox<Box<Parcel<D::Socket>>>,
    /// The world.
    pub driver: D,
    /// How it waits.
    pub pace: Pace,
}

/// A shard that has not recovered its log yet: call `recover`, then `start`.
///
/// # Errors
/// No memory; the message says for what.
pub fn assemble<D: Driver>(parts: Parts<D>) -> io::Result<Shard<D>> {
    let Parts {
        shard,
        plan,
        pool,
        shared,
        recover,
        digest_key,
        checkpoints,
        checkpoint_log_bytes,
        scrub_bytes_per_second,
        space_amplification_percent,
        mailbox,
        mut driver,
        pace,
    } = parts;
    let no_memory = |what: &str, e: io::Error| {
        io::Error::new(
            e.kind(),
            format!("shard {shard}: no memory for the {what}: {e}"),
        )
    };
    // A restart from a checkpoint meets keys that had left the index since, beside those that took their places: the table has
    // room for more than the plan, where the address space may be had, and whoever adds keys asks the plan.
    let index_buckets = (plan.index_bytes as usize / size_of::<index::Bucket>()).max(64);
    let index = Index::new(IndexMemory(
        Region::reserve(2 * index_buckets)
            .or_else(|_| Region::reserve(index_buckets))
            .map_err(|e| no_memory("index", e))?,
    ));
    let cache_memory = CacheMemory(
        Region::reserve((plan.cache_bytes as usize).max(1))
            .map_err(|e| no_memory("read cache", e))?,
    );
    let partition = Partition::new(
        Log::recovering(recover.identity, recover.segment_bytes, pool),
        index,
        DigestKey::new(digest_key),
        ReadCache::new(cache_memory),
        Limits {
            shards: shared.logs.len() as u64,
            index_keys: plan.index_keys,
            index_keys_for_data: plan.index_keys_for_data,
            streams_max: crate::streams::STREAMS_MAX_DEFAULT,
            producers: ProducerLimits {
                producers_max: PRODUCERS_MAX,
                bytes_max: plan.dedup_bytes as usize / 2,
                window_seconds: DEDUP_WINDOW_SECONDS,
            },
            keys: KeyLimits {
                keys_max: IDEMPOTENCY_KEYS_MAX,
                bytes_max: plan.dedup_bytes as usize / 2,
            },
            dedup_window_seconds: DEDUP_WINDOW_SECONDS,
        },
    );
    let scrubber = Scrubber::new(scrub_bytes_per_second, plan.chunk_bytes());
    let reads = Reads::new(plan.chunk_bytes()).map_err(|e| no_memory("device reads", e))?;
    let now = driver.now();
    let core = Core::new(shard, recover.epoch, shared, partition, reads, now);
    Ok(Shard::new(
        core,
        driver,
        mailbox,
        Checkpointer::new(checkpoints, checkpoint_log_bytes),
        scrubber,
        Space::new(space_amplification_percent),
        pace,
    ))
}

impl Bounds {
    /// The bounds of a shard whose store has such segments.
    pub fn new(payload_bytes_max: u32, segment_bytes: u64, connections_max: u32) -> Bounds {
        let segment = segment_bytes as usize;
        Bounds {
            payload_bytes_max,
            // A frame, and a body, is one unit of the log: it must fit a segment several times over.
            frame_bytes_max: (payload_bytes_max + 128 * 1024)
                .max((4 << 20).min(segment as u32 / 4)),
            body_bytes_max: (payload_bytes_max as usize + 128 * 1024)
                .max((16 << 20).min(segment / 4)),
            connections_max,
            unsent_bytes_max: 1 << 20,
            unparsed_bytes_max: 256 * 1024,
            stalled_client_ns: 30_000_000_000,
            request_timeout_ns: 10_000_000_000,
            connection_jobs_max: 128,
            connection_heavy_max: 4,
            unsent_bytes_total: crate::plan::UNSENT_BYTES_TOTAL,
            unparsed_bytes_total: crate::plan::UNPARSED_BYTES_TOTAL,
            jobs_max: 65_536,
        }
    }
}
