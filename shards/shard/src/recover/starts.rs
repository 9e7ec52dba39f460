//! Where each segment of a recovered log begins: the lsn and the log time of its first batch.
//!
//! Segments in front of the replay are not read whole by a recovery, so the first batch of one may be damaged without
//! anything having noticed. Compaction, scrub and scans go by where segments begin; a segment that merely seemed empty
//! would end all three in silence, or have them step over what it holds. So a beginning that cannot be read is told, and
//! worked out from the batches around it: batch numbers are dense and every segment begins with a batch.

use wal::BLOCK_BYTES;
use wal::chain::ChainPoint;
use wal::scan::{self, BatchInfo};

use super::{RecoverConfig, RecoverError};
use crate::driver::Driver;
use crate::log::SegmentFile;
use crate::turn::Shard;

impl<D: Driver> Shard<D> {
    /// Set where the segments of a log that ends at `end` begin. What could not be read is told and counted as damage.
    pub(super) fn find_starts(
        &mut self,
        live: &mut [SegmentFile],
        end: &ChainPoint,
        config: &RecoverConfig,
    ) -> Result<(), RecoverError> {
        for i in 0..live.len() {
            let segment = live[i];
            if segment.segment == end.segment && end.offset as usize <= BLOCK_BYTES {
                // Nothing is in it yet.
                continue;
            }
            let block = self.read_all(
                segment.file,
                BLOCK_BYTES as u64,
                BLOCK_BYTES,
                &format!("the first batch of segment-{:08}.seg", segment.slot),
            )?;
            let (header, offset) = (segment.header(config), BLOCK_BYTES as u32);
            match scan::batch_at(&config.identity, &header, offset, &block[..BLOCK_BYTES]) {
                Ok(info) => {
                    live[i].first_lsn = info.first_lsn;
                    live[i].first_time_us = info.log_time_us;
                }
                Err(_) => self.work_out_start(live, i, end, config)?,
            }
        }
        Ok(())
    }

    /// The first batch of segment `i` cannot be read.
    fn work_out_start(
        &mut self,
        live: &mut [SegmentFile],
        i: usize,
        end: &ChainPoint,
        config: &RecoverConfig,
    ) -> Result<(), RecoverError> {
        let behind = self.read_whole(&live[i], config)?;
        let header = live[i].header(config);
        let second = scan::find_batch(&config.identity, &header, &behind, BLOCK_BYTES as u32);
        drop(behind);
        // Not earlier than what lies before it: age is counted from here.
        live[i].first_time_us = second.map_or(end.log_time_us, |batch| batch.log_time_us);
        let known = match i.checked_sub(1) {
            // What lay in front of the oldest segment is gone: an lsn that is too low makes nobody step over anything.
            None => {
                live[i].first_lsn = 1;
                true
            }
            Some(before) => {
                let (lsn, known) = self.end_of(&live[before], second.as_ref(), config)?;
                live[before].end_unknown = !known;
                live[i].first_lsn = lsn;
                known
            }
        };
        self.core.partition.damage += 1;
        let about = if known { "" } else { "about " };
        tracing::error!(
            "log {} is damaged: the first batch of segment-{:08}.seg (segment {}) at offset {BLOCK_BYTES}, {about}lsn {}, cannot be read; \
             run `pinion verify` on the data directory",
            config.identity.number,
            live[i].slot,
            live[i].segment,
            live[i].first_lsn
        );
        Ok(())
    }

    /// The lsn behind the last batch of a sealed segment, and whether it is known to be the last: `second` is the first
    /// batch that can be read in the next segment, whose own first cannot.
    fn end_of(
        &mut self,
        segment: &SegmentFile,
        second: Option<&BatchInfo>,
        config: &RecoverConfig,
    ) -> Result<(u64, bool), RecoverError> {
        let bytes = self.read_whole(segment, config)?;
        let header = segment.header(config);
        let batches = scan::batches(&config.identity, &header, &bytes);
        let Some(last) = batches.max_by_key(|batch| batch.batch) else {
            return Ok((segment.first_lsn, false));
        };
        let end = (last.offset + last.bytes) as usize;
        let nothing_follows = bytes[end.min(bytes.len())..].iter().all(|byte| *byte == 0);
        // Every segment begins with a batch: if only one is missing between the two, it is that one.
        let one_is_missing = second.is_some_and(|second| second.batch == last.batch + 2);
        let lsn = last.first_lsn + u64::from(last.records);
        Ok((lsn, nothing_follows || one_is_missing))
    }

    fn read_whole(
        &mut self,
        segment: &SegmentFile,
        config: &RecoverConfig,
    ) -> Result<uring::Buffer, RecoverError> {
        let what = format!("segment-{:08}.seg", segment.slot);
        self.read_all(segment.file, 0, config.segment_bytes as usize, &what)
    }
}
