//! A segment is walked: batches are verified, and what is worth it is copied.

use index::Digest;
use uring::Buffer;
use wal::BLOCK_BYTES;
use wal::record::RecordView;
use wal::scan;
use wal::segment::SegmentHeader;

use super::{Stage, Walk};
use crate::driver::Driver;
use crate::log::Blocked;
use crate::turn::Shard;
use crate::worth::Worth;

/// Records whose keys are looked up together, so that the cache misses overlap.
const TOGETHER: usize = 32;

impl<D: Driver> Shard<D> {
    pub(super) fn header_of(&self, walk: &Walk) -> SegmentHeader {
        SegmentHeader {
            identity: self.core.partition.log.identity,
            segment: walk.segment,
            generation: walk.generation,
            segment_bytes: self.core.partition.log.segment_bytes(),
        }
    }

    /// Walk on through a chunk whose first byte lies at `start`.
    pub(super) fn walk_slice(&mut self, mut walk: Walk, buffer: Buffer, got: usize, start: u32) {
        let header = self.header_of(&walk);
        while walk.next_lsn < walk.end_lsn {
            if self.space.walk_bytes == 0
                || self.space.copy_bytes == 0
                || self.space.slice_bytes == 0
            {
                self.space.stage = Stage::Walking(walk, buffer, got, start);
                return;
            }
            let rest = buffer[..got]
                .get((walk.offset - start) as usize..)
                .unwrap_or(&[]);
            let info = match scan::batch_at(&header.identity, &header, walk.offset, rest) {
                Ok(info) if info.bytes as usize <= rest.len() => info,
                // Cut by the end of the chunk: the next one starts with it.
                Ok(_) if walk.offset > start => {
                    self.space.ahead.free(buffer);
                    return self.read_on(walk);
                }
                _ if rest.len() < BLOCK_BYTES => {
                    self.space.ahead.free(buffer);
                    if walk.offset == start {
                        walk.offset += walk.chunk.max(BLOCK_BYTES as u32);
                    }
                    return self.read_on(walk);
                }
                // A batch was here. The next one starts at some block.
                _ => {
                    walk.offset += BLOCK_BYTES as u32;
                    self.space.spend(BLOCK_BYTES as u64);
                    continue;
                }
            };
            walk.lose(info.first_lsn.min(walk.end_lsn));
            if walk.next_lsn >= walk.end_lsn {
                break;
            }
            match self.walk_batch(&mut walk, &info, rest) {
                Ok(true) => {
                    walk.offset += info.bytes;
                    walk.found.padding += u64::from(info.bytes - info.body_bytes);
                }
                Ok(false) => {
                    self.space.stage = Stage::Walking(walk, buffer, got, start);
                    return;
                }
                Err(why) => {
                    self.space.ahead.free(buffer);
                    return self.space_stuck(walk.segment, &why);
                }
            }
        }
        self.space.ahead.free(buffer);
        self.walked(walk);
    }

    /// The records of one batch from `walk.next_lsn` on. False: stopped inside, for want of budget or room.
    fn walk_batch(
        &mut self,
        walk: &mut Walk,
        info: &scan::BatchInfo,
        bytes: &[u8],
    ) -> Result<bool, String> {
        let codec = self.core.partition.log.codec;
        let from_lsn = walk.next_lsn;
        let mut records = (info.first_lsn..)
            .zip(scan::records(&codec, info, bytes))
            .skip_while(|(lsn, _)| *lsn < from_lsn);
        let mut some = Vec::with_capacity(TOGETHER);
        let mut digests = Vec::with_capacity(TOGETHER);
        loop {
            let partition = &self.core.partition;
            digests.clear();
            some.extend(records.by_ref().take(TOGETHER).map(|(lsn, (_, record))| {
                let record = record.ok().map(|record| {
                    let digest = partition.digests.digest(record.stream, record.key);
                    digests.push(digest);
                    (record, digest)
                });
                (lsn, record)
            }));
            if some.is_empty() {
                break;
            }
            partition.index.prefetch_many(&digests);
            for (lsn, record) in some.drain(..) {
                let Some((record, digest)) = record else {
                    walk.lose(lsn + 1);
                    continue;
                };
                if !self.walk_record(walk, &record, digest)? {
                    return Ok(false);
                }
            }
        }
        walk.lose(info.first_lsn + u64::from(info.records));
        Ok(true)
    }

    /// Copy a record that is worth it, let go of one that is not. False: there is no budget or room.
    fn walk_record(
        &mut self,
        walk: &mut Walk,
        record: &RecordView<'_>,
        digest: Digest,
    ) -> Result<bool, String> {
        let partition = &mut self.core.partition;
        let newest = partition.newest(digest);
        let length = record.bytes as u64;
        let link = match partition.worth(record, &newest) {
            Worth::Unknown => {
                return Err(format!("the index does not know lsn {}", record.lsn));
            }
            Worth::Dead => None,
            Worth::Newest => Some(0),
            Worth::Older(link) => Some(link),
        };
        match link {
            None => {
                if partition.was_dead(record, &newest) {
                    walk.found.was_dead += length;
                }
                partition.let_go(record, &newest);
            }
            Some(_) if self.space.copy_bytes == 0 => return Ok(false),
            Some(link) => match partition.relocate(record, link) {
                Ok(bytes) => {
                    walk.found.copied += length;
                    self.space.relocated_bytes += bytes;
                    self.space.relocated_records += 1;
                    self.space.copy_bytes = self.space.copy_bytes.saturating_sub(bytes);
                }
                Err(Blocked::Buffers) => {
                    self.space.waits = true;
                    return Ok(false);
                }
                // Room comes with time.
                Err(_) => {
                    self.space.copy_bytes = 0;
                    return Ok(false);
                }
            },
        }
        walk.found.walked += length;
        self.space.spend(length);
        walk.next_lsn = record.lsn + 1;
        Ok(true)
    }
}
