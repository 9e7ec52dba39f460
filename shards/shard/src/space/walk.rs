//! A segment is walked: chunks are read, batches verified, and what is worth it is copied.

use uring::Buffer;
use wal::BLOCK_BYTES;
use wal::scan;

use super::{RETRY_NS, SLICE_BYTES, Stage, Walk};
use crate::driver::Driver;
use crate::log::Blocked;
use crate::token::Token;
use crate::turn::Shard;
use crate::worth::Worth;

impl<D: Driver> Shard<D> {
    pub(super) fn read_on(&mut self, mut walk: Walk) {
        let left = (self.core.partition.log.segment_bytes()).saturating_sub(u64::from(walk.offset));
        if left < BLOCK_BYTES as u64 {
            walk.lose(walk.end_lsn);
        }
        if walk.next_lsn >= walk.end_lsn {
            return self.settle(walk);
        }
        let chunk = self.core.reads.chunk_bytes();
        let buffer = match self.space.free.take() {
            Some(buffer) => buffer,
            None => match Buffer::new(chunk) {
                Ok(buffer) => buffer,
                Err(error) => {
                    tracing::warn!("no memory to compact the log with: {error}");
                    self.space.not_before_ns = self.core.now.monotonic_ns + RETRY_NS;
                    return;
                }
            },
        };
        let len = (chunk as u64).min(left) as usize;
        walk.chunk = len as u32;
        self.space.sequence += 1;
        let token = Token::space(self.space.sequence);
        self.driver
            .read(walk.file, u64::from(walk.offset), buffer, len, token);
        self.space.stage = Stage::Reading(walk);
    }

    /// A chunk was read.
    pub(crate) fn space_read(&mut self, buffer: Buffer, result: std::io::Result<usize>) {
        let Stage::Reading(mut walk) = std::mem::replace(&mut self.space.stage, Stage::Idle) else {
            return;
        };
        match result {
            Ok(got) => {
                let at = walk.offset;
                self.space.stage = Stage::Walking(walk, buffer, got, at);
            }
            Err(error) => {
                self.space.free = Some(buffer);
                if self.space.told != walk.segment {
                    let (shard, segment, offset) = (self.core.id, walk.segment, walk.offset);
                    tracing::warn!(shard, "segment {segment} at offset {offset}: {error}");
                }
                walk.offset += walk.chunk;
                self.read_on(walk);
            }
        }
    }

    /// Walk on through a chunk whose first byte lies at `start`.
    pub(super) fn walk_slice(&mut self, mut walk: Walk, buffer: Buffer, got: usize, start: u32) {
        let slice_from = walk.walked;
        let identity = self.core.partition.log.identity;
        let header = wal::segment::SegmentHeader {
            identity,
            segment: walk.segment,
            generation: walk.generation,
            segment_bytes: self.core.partition.log.segment_bytes(),
        };
        while walk.next_lsn < walk.end_lsn {
            if self.space.walk_bytes == 0
                || self.space.copy_bytes == 0
                || walk.walked - slice_from >= SLICE_BYTES
            {
                self.space.stage = Stage::Walking(walk, buffer, got, start);
                return;
            }
            let rest = buffer[..got]
                .get((walk.offset - start) as usize..)
                .unwrap_or(&[]);
            let info = match scan::batch_at(&identity, &header, walk.offset, rest) {
                Ok(info) if info.bytes as usize <= rest.len() => info,
                // Cut by the end of the chunk: the next one starts with it.
                Ok(_) if walk.offset > start => {
                    self.space.free = Some(buffer);
                    return self.read_on(walk);
                }
                _ if rest.len() < BLOCK_BYTES => {
                    self.space.free = Some(buffer);
                    if walk.offset == start {
                        walk.offset += walk.chunk.max(BLOCK_BYTES as u32);
                    }
                    return self.read_on(walk);
                }
                // A batch was here. The next one starts at some block.
                _ => {
                    walk.offset += BLOCK_BYTES as u32;
                    self.space.walk_bytes =
                        self.space.walk_bytes.saturating_sub(BLOCK_BYTES as u64);
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
                    walk.padding += u64::from(info.bytes - info.body_bytes);
                }
                Ok(false) => {
                    self.space.stage = Stage::Walking(walk, buffer, got, start);
                    return;
                }
                Err(why) => {
                    self.space.free = Some(buffer);
                    return self.space_stuck(walk.segment, &why);
                }
            }
        }
        self.space.free = Some(buffer);
        self.settle(walk);
    }

    /// The records of one batch from `walk.next_lsn` on. False: stopped inside, for want of budget or room.
    fn walk_batch(
        &mut self,
        walk: &mut Walk,
        info: &scan::BatchInfo,
        bytes: &[u8],
    ) -> Result<bool, String> {
        let codec = self.core.partition.log.codec;
        let partition = &mut self.core.partition;
        for (lsn, (_, record)) in (info.first_lsn..).zip(scan::records(&codec, info, bytes)) {
            if lsn < walk.next_lsn {
                continue;
            }
            let Ok(record) = record else {
                walk.lose(lsn + 1);
                continue;
            };
            let link = match partition.worth(&record) {
                Worth::Unknown => {
                    return Err(format!("the index does not know lsn {}", record.lsn));
                }
                Worth::Dead => None,
                Worth::Newest => Some(0),
                Worth::Older(link) => Some(link),
            };
            let length = record.bytes as u64;
            match link {
                None => partition.let_go(&record),
                Some(link) => {
                    if self.space.copy_bytes == 0 {
                        return Ok(false);
                    }
                    match partition.relocate(&record, link) {
                        Ok((lsn, bytes)) => {
                            walk.last_copy_lsn = lsn;
                            walk.worth += length;
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
                    }
                }
            }
            walk.walked += length;
            self.space.walk_bytes = self.space.walk_bytes.saturating_sub(length);
            walk.next_lsn = record.lsn + 1;
        }
        walk.lose(info.first_lsn + u64::from(info.records));
        Ok(true)
    }
}
