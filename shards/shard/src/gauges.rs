//! What goes up and down, read off a shard when somebody asks. Nothing here runs unless there is a scrape.

use crate::core::{Core, State};
use crate::metrics::{Gauges, MemoryBytes, SegmentCounts, ShardState};

/// What the core cannot see itself: left here by the turn's housekeeping.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outside {
    pub mailbox_depth: u64,
    pub checkpoint_seconds: f64,
    pub checkpoint_bytes: u64,
    /// Monotonic time of the last checkpoint's end, 0 before the first.
    pub checkpoint_ended_ns: u64,
    pub device_sync_seconds: f64,
    pub scrubbed_bytes: u64,
    pub scrub_errors: u64,
    pub space_held_up: bool,
    pub segments_released: u64,
    pub segments_left_reserved: u64,
    pub relocated_bytes: u64,
    pub relocated_records: u64,
}

pub(crate) fn update<S>(core: &mut Core<S>) {
    let log = &core.partition.log;
    let state = match &core.state {
        _ if core.draining => ShardState::Draining,
        State::Recovering => ShardState::Recovering,
        State::Stopped(_) => ShardState::Stopped,
        State::Ready if log.failed().is_some() => ShardState::Stopped,
        State::Ready if log.disk_full() => ShardState::DiskFull,
        State::Ready if log.no_segment().is_some() => ShardState::NoSegment,
        State::Ready => ShardState::Ready,
    };
    let ready = log.segments_ready() as u64;
    let held = log.segments().count() as u64;
    let outside = core.outside;
    let before = core.metrics.gauges;
    core.metrics.gauges = Gauges {
        state,
        mailbox_queue_depth: outside.mailbox_depth,
        connections: core.conns.len() as u64,
        index_bytes: core.partition.index.bytes(),
        index_keys: core.partition.index.len(),
        segments: SegmentCounts {
            active: 1,
            sealed: held.saturating_sub(ready + 1),
            ready,
            released: log.released_segments() as u64,
            spare: log.spare_segments() as u64,
        },
        memory: MemoryBytes {
            batches: log.buffer_bytes(),
            connections: core.unsent_bytes + core.unparsed_bytes,
            cache: (core.partition.cache.bytes() + core.partition.cache.table_bytes()) as u64,
            retries: (core.partition.producers.bytes() + core.partition.keys.bytes()) as u64,
            reads: core.reads.buffer_bytes(),
        },
        durable_lsn: log.durable_lsn(),
        device_sync_seconds: outside.device_sync_seconds,
        checkpoint_seconds: outside.checkpoint_seconds,
        checkpoint_bytes: outside.checkpoint_bytes,
        checkpoint_age_seconds: (outside.checkpoint_ended_ns > 0).then(|| {
            core.now
                .monotonic_ns
                .saturating_sub(outside.checkpoint_ended_ns) as f64
                / 1e9
        }),
        last_turn_timestamp_seconds: core.now.wall_us as f64 / 1e6,
        // Set once, when recovery ended.
        recovery_seconds: before.recovery_seconds,
        recovery_bytes: before.recovery_bytes,
        recovery_records: before.recovery_records,
        record_bytes: core.partition.space.record_bytes,
        dead_bytes: core.partition.space.dead_bytes,
        padding_bytes: core.partition.space.padding_bytes,
        space_held_up: outside.space_held_up,
    };
    let (recycled, given_back) = (log.recycled, log.given_back);
    let counters = &mut core.metrics.counters;
    counters.segments_released = outside.segments_released;
    counters.segments_recycled = recycled;
    counters.segments_given_back = given_back;
    counters.segments_left_reserved = outside.segments_left_reserved;
    counters.ended_bytes = core.partition.ended_bytes;
    counters.relocated_bytes = outside.relocated_bytes;
    counters.relocated_records = outside.relocated_records;
    counters.mailbox_hops = core.hops;
    counters.scrubbed_bytes = outside.scrubbed_bytes;
    counters.scrub_errors = outside.scrub_errors;
    counters.cache_hits = core.partition.cache.hits();
    counters.cache_misses = core.partition.cache.misses();
    counters.retry_evictions = core.partition.producers.evicted() + core.partition.keys.evicted();
}
