//! The memory plan: every holder of memory, how much it gets, and the sum. Printed at start and kept to.

use crate::copies::Copies;
use crate::reads::Reads;
use crate::space;
use crate::waypoints::Waypoints;

/// What the operator asked for.
#[derive(Clone, Debug)]
pub struct PlanInput {
    /// Cap on the plan of all shards together; None: three quarters of the machine's memory.
    pub memory_bytes: Option<u64>,
    /// Shards that divide it.
    pub shards: usize,
    /// Connections per shard.
    pub connections_max: u32,
    /// Largest payload of one record.
    pub payload_bytes_max: u32,
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Read cache per shard, where the operator says.
    pub cache_bytes: Option<u64>,
}

/// What one shard may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of one batch buffer.
    pub batch_bytes: usize,
    /// Batch buffers.
    pub batch_buffers: usize,
    /// Receive buffers, provided to the kernel.
    pub recv_buffers: u16,
    /// Bytes of one receive buffer.
    pub recv_buffer_bytes: u32,
    /// Read cache.
    pub cache_bytes: u64,
    /// What the index may come to.
    pub index_bytes: u64,
    /// Keys that it has room for then.
    pub index_keys: u64,
    /// Keys above which new ones are refused.
    pub index_keys_for_data: u64,
    /// All connections at rest.
    pub connection_bytes: u64,
    /// Retry windows.
    pub dedup_bytes: u64,
    lines: Vec<(String, u64)>,
}

/// The plan cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// What every shard needs is more than there is.
    #[error(
        "{given} bytes of memory are not enough for {shards} shards: the fixed parts take {fixed} bytes each; give --memory at least {least} or use fewer shards"
    )]
    TooLittle {
        /// Of all shards.
        given: u64,
        /// Shards that share it.
        shards: usize,
        /// Of one shard.
        fixed: u64,
        /// What would do.
        least: u64,
    },
    /// The read cache would leave too little to the index.
    #[error(
        "a read cache of {asked} bytes for each shard is more than half of the {left} that its other parts leave: give --cache at most {most}, or more --memory"
    )]
    Cache {
        /// Of one shard.
        asked: u64,
        /// What a shard has for cache and index.
        left: u64,
        /// What would do.
        most: u64,
    },
}

/// The largest batch that any run writes: a record of the largest size that the index can name, and headers.
const BATCH_BYTES_EVER: usize = (2 << 20) + 64 * 1024;
const RECV_BUFFERS: u16 = 256;
const RECV_BUFFER_BYTES: u32 = 32 * 1024;
const BATCH_BUFFERS: usize = 24;
/// What an idle connection costs: its struct, kernel-independent queues, two small buffers.
const CONNECTION_BYTES: u64 = 8 * 1024;
const DEDUP_BYTES: u64 = 64 << 20;
/// Unread replies of all connections of a shard, above which large reads are refused.
pub const UNSENT_BYTES_TOTAL: u64 = 128 << 20;
/// Unparsed requests of all connections of a shard, above which large ones are refused.
pub const UNPARSED_BYTES_TOTAL: u64 = 64 << 20;
/// What a key takes of the index, at most.
const INDEX_KEY_BYTES: u64 = 40;
/// So much of the index's room is kept for copies of older versions, which need places of their own: where new keys have taken
/// all of it, compaction could free nothing any more, not even what would give places back.
const INDEX_KEYS_KEPT_SHARE: u64 = 16;
/// Index memory is address space until keys come; this much is the least that is worth starting with.
const INDEX_BYTES_LEAST: u64 = 16 << 20;

impl Plan {
    /// Divide the memory. The index gets what is left: it is what grows with the data.
    pub fn new(input: &PlanInput) -> Result<Plan, PlanError> {
        let shards = input.shards as u64;
        let given = input
            .memory_bytes
            .unwrap_or_else(|| machine_memory_bytes() / 4 * 3);
        let each = given / shards;
        // A batch holds the largest record with its header, extensions and the batch's own header.
        let batch_bytes = (input.payload_bytes_max as usize + 64 * 1024)
            .next_multiple_of(4096)
            .min(input.segment_bytes as usize - 4096);
        let batches = BATCH_BUFFERS as u64 * batch_bytes as u64;
        let recv = u64::from(RECV_BUFFERS) * u64::from(RECV_BUFFER_BYTES);
        let reads = Reads::plan_bytes(chunk_bytes(batch_bytes)) + Waypoints::PLAN_BYTES;
        let scrub = chunk_bytes(batch_bytes) as u64;
        let compaction = space::BUFFERS as u64 * chunk_bytes(batch_bytes) as u64
            + Copies::plan_bytes(input.segment_bytes);
        let connections = u64::from(input.connections_max) * CONNECTION_BYTES;
        // Recovery holds two segments; it ends before the cache and the index are full.
        let fixed = batches
            + recv
            + reads
            + scrub
            + compaction
            + connections
            + UNSENT_BYTES_TOTAL
            + UNPARSED_BYTES_TOTAL
            + DEDUP_BYTES;
        let left = each.saturating_sub(fixed);
        let cache_bytes = input
            .cache_bytes
            .unwrap_or((left / 8).clamp(4 << 20, 256 << 20).min(left / 2));
        if cache_bytes > left / 2 && left / 2 >= INDEX_BYTES_LEAST {
            return Err(PlanError::Cache {
                asked: cache_bytes,
                left,
                most: left / 2,
            });
        }
        let index_bytes = left.saturating_sub(cache_bytes);
        if index_bytes < INDEX_BYTES_LEAST {
            let least = (fixed + 2 * INDEX_BYTES_LEAST + (4 << 20)) * shards;
            return Err(PlanError::TooLittle {
                given,
                shards: input.shards,
                fixed,
                least,
            });
        }
        let index_keys = index_bytes / INDEX_KEY_BYTES;
        let index_keys_for_data = index_keys - index_keys / INDEX_KEYS_KEPT_SHARE;
        let lines = vec![
            // Batches being filled, in flight, and kept for reads of recent records.
            (
                format!(
                    "batch buffers ({BATCH_BUFFERS} x {} KiB)",
                    batch_bytes / 1024
                ),
                batches,
            ),
            // Provided to the kernel; what has arrived and is not parsed.
            (
                format!(
                    "receive buffers ({RECV_BUFFERS} x {} KiB)",
                    RECV_BUFFER_BYTES / 1024
                ),
                recv,
            ),
            // Cold records and scan chunks on their way from the device; where walks through histories may begin.
            ("device reads".into(), reads),
            // The part of a sealed segment that is being verified again.
            ("scrub".into(), scrub),
            // Parts of the oldest segment, one that is walked and one on its way; and which records were copied.
            ("compaction".into(), compaction),
            // Connections at rest.
            (
                format!(
                    "connections ({} x {} KiB)",
                    input.connections_max,
                    CONNECTION_BYTES / 1024
                ),
                connections,
            ),
            // What clients have not read yet, and requests that have not arrived whole: taken from the heap as needed.
            ("unread replies, at most".into(), UNSENT_BYTES_TOTAL),
            ("unfinished requests, at most".into(), UNPARSED_BYTES_TOTAL),
            // Answers of producers and Idempotency-Keys.
            ("retry windows".into(), DEDUP_BYTES),
            ("read cache".into(), cache_bytes),
            // Committed as keys come.
            (
                format!("index (room for {index_keys_for_data} keys)"),
                index_bytes,
            ),
        ];
        Ok(Plan {
            batch_bytes,
            batch_buffers: BATCH_BUFFERS,
            recv_buffers: RECV_BUFFERS,
            recv_buffer_bytes: RECV_BUFFER_BYTES,
            cache_bytes,
            index_bytes,
            index_keys,
            index_keys_for_data,
            connection_bytes: connections,
            dedup_bytes: DEDUP_BYTES,
            lines,
        })
    }

    /// Holder and bytes, for the banner.
    pub fn lines(&self) -> &[(String, u64)] {
        &self.lines
    }
    /// Sum of the lines.
    pub fn total_bytes(&self) -> u64 {
        self.lines.iter().map(|(_, bytes)| bytes).sum()
    }
    /// The largest read: a whole batch, and a block because it may start anywhere in one.
    pub fn chunk_bytes(&self) -> usize {
        chunk_bytes(self.batch_bytes)
    }
}

/// Records that an earlier run took with a higher bound are read too.
fn chunk_bytes(batch_bytes: usize) -> usize {
    batch_bytes.max(BATCH_BYTES_EVER) + 2 * 4096
}

/// MemTotal of /proc/meminfo; 2 GiB where it cannot be read.
pub fn machine_memory_bytes() -> u64 {
    std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|l| l.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(2 << 30, |kib| kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(memory: u64, shards: usize) -> PlanInput {
        PlanInput {
            memory_bytes: Some(memory),
            shards,
            connections_max: 1024,
            payload_bytes_max: 1 << 20,
            segment_bytes: 64 << 20,
            cache_bytes: None,
        }
    }

    #[test]
    fn the_lines_add_up_to_no_more_than_what_was_given() {
        for shards in [1, 2, 7] {
            let plan = Plan::new(&input(4 << 30, shards)).unwrap();
            assert!(plan.total_bytes() * shards as u64 <= 4 << 30);
        }
    }

    #[test]
    fn a_cache_that_leaves_no_room_for_the_index_says_how_much_would() {
        let with = |cache_bytes| {
            Plan::new(&PlanInput {
                cache_bytes: Some(cache_bytes),
                ..input(4 << 30, 2)
            })
        };
        let error = with(100 << 30).unwrap_err();
        let PlanError::Cache { most, .. } = error else {
            panic!("{error}")
        };
        assert_eq!(with(most).unwrap().cache_bytes, most);
        assert!(with(most + 1).is_err());
    }

    #[test]
    fn too_little_memory_says_how_much_is_needed() {
        let error = Plan::new(&input(64 << 20, 1)).unwrap_err();
        let PlanError::TooLittle { least, .. } = error else {
            panic!("{error}")
        };
        assert!(
            Plan::new(&input(least, 1)).is_ok(),
            "what the error asks for is enough"
        );
    }
}
