//! Chunks of a segment on their way from the device: the next one is read while this one is walked.
//!
//! A chunk starts with a batch, so where the next one starts is known as soon as the headers of this one are there. One read is
//! in flight at a time. A chunk that turns out not to be the one that is wanted is dropped and the wanted one read: a walk goes
//! where it goes. It does not know what is in a record.

use std::io;

use uring::Buffer;
use wal::BLOCK_BYTES;
use wal::scan;
use wal::segment::SegmentHeader;

use super::{RETRY_NS, Stage, Walk};
use crate::driver::Driver;
use crate::token::Token;
use crate::turn::Shard;

/// One that is walked and one that is read.
pub const BUFFERS: usize = 2;

/// Where a chunk lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    segment: u32,
    generation: u32,
    offset: u32,
    bytes: u32,
}

/// See the module's header.
#[derive(Default)]
pub(super) struct Ahead {
    reading: Option<Place>,
    /// Before anybody wanted it.
    arrived: Option<(Place, Buffer, io::Result<usize>)>,
    free: Vec<Buffer>,
    sequence: u64,
}

impl Ahead {
    /// Nobody looks at this buffer any more.
    pub fn free(&mut self, buffer: Buffer) {
        self.free.push(buffer);
    }

    /// Have what has arrived be of elsewhere. False: nothing has.
    #[cfg(test)]
    pub fn mislead(&mut self) -> bool {
        let place = self.arrived.as_mut().map(|(place, ..)| place);
        place
            .map(|place| place.offset += BLOCK_BYTES as u32)
            .is_some()
    }

    /// The chunk that has arrived is of no use.
    pub fn drop_arrived(&mut self) {
        if let Some((_, buffer, _)) = self.arrived.take() {
            self.free(buffer);
        }
    }
}

impl Walk {
    /// Where the chunk behind this one starts, unless it is known to be the last.
    fn next_chunk(&self, header: &SegmentHeader, chunk: &[u8]) -> Option<u32> {
        let mut at = 0;
        while let Ok(info) = scan::batch_at(
            &header.identity,
            header,
            self.offset + at as u32,
            &chunk[at..],
        ) {
            if at + info.bytes as usize > chunk.len() {
                break;
            }
            at += info.bytes as usize;
            if info.first_lsn + u64::from(info.records) >= self.end_lsn {
                return None;
            }
        }
        (at > 0).then_some(self.offset + at as u32)
    }
}

impl<D: Driver> Shard<D> {
    /// Get the chunk from `walk.offset` on.
    pub(super) fn read_on(&mut self, mut walk: Walk) {
        let left = self.left_behind(walk.offset);
        if left < BLOCK_BYTES as u64 {
            walk.lose(walk.end_lsn);
        }
        if walk.next_lsn >= walk.end_lsn {
            return self.walked(walk);
        }
        let wanted = self.chunk_at(&walk, walk.offset);
        match self.space.ahead.arrived.take() {
            Some((place, buffer, result)) if place == wanted => {
                return self.chunk_here(walk, place, buffer, result);
            }
            Some((_, buffer, _)) => self.space.ahead.free(buffer),
            None => {}
        }
        if self.space.ahead.reading.is_none()
            && let Err(error) = self.read_chunk(&walk, wanted)
        {
            tracing::warn!("no memory to compact the log with: {error}");
            self.space.not_before_ns = self.core.now.monotonic_ns + RETRY_NS;
            return;
        }
        // What is on its way is it, or has to come back before it can be read.
        self.space.stage = Stage::Reading(walk);
    }

    fn left_behind(&self, offset: u32) -> u64 {
        (self.core.partition.log.segment_bytes()).saturating_sub(u64::from(offset))
    }

    fn chunk_at(&self, walk: &Walk, offset: u32) -> Place {
        let bytes = (self.core.reads.chunk_bytes() as u64).min(self.left_behind(offset));
        Place {
            segment: walk.segment,
            generation: walk.generation,
            offset,
            bytes: bytes as u32,
        }
    }

    fn read_chunk(&mut self, walk: &Walk, place: Place) -> io::Result<()> {
        let ahead = &mut self.space.ahead;
        let buffer = match ahead.free.pop() {
            Some(buffer) => buffer,
            None => Buffer::new(self.core.reads.chunk_bytes())?,
        };
        ahead.sequence += 1;
        ahead.reading = Some(place);
        let token = Token::space(ahead.sequence);
        let (offset, bytes) = (u64::from(place.offset), place.bytes as usize);
        self.driver.read(walk.file, offset, buffer, bytes, token);
        Ok(())
    }

    /// A chunk was read.
    pub(crate) fn space_read(&mut self, buffer: Buffer, result: io::Result<usize>) {
        let Some(place) = self.space.ahead.reading.take() else {
            return;
        };
        self.space.ahead.arrived = Some((place, buffer, result));
        match std::mem::replace(&mut self.space.stage, Stage::Idle) {
            Stage::Reading(walk) => self.read_on(walk),
            stage => self.space.stage = stage,
        }
    }

    /// The wanted chunk is there: walk it, and read the next one.
    fn chunk_here(&mut self, mut walk: Walk, place: Place, buffer: Buffer, got: io::Result<usize>) {
        walk.chunk = place.bytes;
        let got = match got {
            Ok(got) => got,
            Err(error) => {
                self.space.ahead.free(buffer);
                if self.space.told != walk.segment {
                    let (shard, segment, offset) = (self.core.id, walk.segment, walk.offset);
                    tracing::warn!(shard, "segment {segment} at offset {offset}: {error}");
                }
                walk.offset += walk.chunk;
                return self.read_on(walk);
            }
        };
        let header = self.header_of(&walk);
        if let Some(offset) = walk.next_chunk(&header, &buffer[..got])
            && self.left_behind(offset) >= BLOCK_BYTES as u64
        {
            let next = self.chunk_at(&walk, offset);
            // Without the memory it is read when it is wanted, and told about then.
            let _ = self.read_chunk(&walk, next);
        }
        self.space.stage = Stage::Walking(walk, buffer, got, place.offset);
    }
}
