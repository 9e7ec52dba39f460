//! The chain: every batch names the one before it by term and hash, so that a log is one history or none.

use crate::BLOCK_BYTES;

/// What the next batch must continue: carried by recovery, the writer and the checkpoint.
///
/// A checkpoint may be used only once the batch before its chain point is durable: recovery starts
/// reading there and does not look back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainPoint {
    /// writer's term of the last batch (0 before the first)
    pub epoch: u32,
    /// Dense number of the next batch, from 1.
    pub next_batch: u64,
    /// First lsn of the next batch, from 1.
    pub next_lsn: u64,
    /// Hash of the last batch's portable header (zeroes before the first).
    pub hash: [u8; 16],
    /// Log time of the last batch.
    pub log_time_us: u64,
    /// where the next batch would start
    pub segment: u32,
    /// Byte offset there; the segment's size when it is full.
    pub offset: u32,
}

impl ChainPoint {
    /// Before the first batch of a log whose first segment is `first_segment`.
    pub fn genesis(first_segment: u32) -> ChainPoint {
        ChainPoint {
            epoch: 0,
            next_batch: 1,
            next_lsn: 1,
            hash: [0; 16],
            log_time_us: 0,
            segment: first_segment,
            offset: BLOCK_BYTES as u32,
        }
    }
}
