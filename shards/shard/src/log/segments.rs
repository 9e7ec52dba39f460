//! The segments under a log: which file holds which, the next ones being prepared, the oldest ones released and used again.

use wal::writer::ReadySegment;
use wal::{BLOCK_BYTES, LogIdentity};

use super::room::is_full;
use super::spares::Spare;
use super::{Log, SegmentFile, UNMADE};
use crate::driver::{Driver, FileId, SegmentSource};
use crate::fill_pace::{Ahead, Fill};
use crate::token::Token;

/// While the log is written to, a larger reserve of segments may melt to half, and to no less than this.
const BUSY_AHEAD: usize = 2;

impl Log {
    /// The header of a segment of this log.
    pub fn header_of(&self, segment: &SegmentFile) -> wal::segment::SegmentHeader {
        wal::segment::SegmentHeader {
            identity: self.identity,
            segment: segment.segment,
            generation: segment.generation,
            segment_bytes: self.segment_bytes,
        }
    }

    /// The segment with this number.
    pub fn segment(&self, segment: u32) -> Option<&SegmentFile> {
        let first = self.segments.front()?.segment;
        self.segments
            .get(segment.checked_sub(first)? as usize)
            .inspect(|s| assert_eq!(s.segment, segment))
    }

    /// Number of the first segment that is not released.
    #[inline]
    pub fn first_segment(&self) -> u32 {
        self.segments.front().map_or(1, |s| s.segment)
    }

    /// Whether a segment was released: what named a place in it found its record moved, or dead.
    #[inline]
    pub fn is_released(&self, segment: u32) -> bool {
        segment < self.first_segment()
    }

    /// First lsn that is still in the log.
    pub fn first_lsn(&self) -> u64 {
        match self.segments.front() {
            Some(front) if front.first_lsn != 0 => front.first_lsn,
            _ => self.writer.chain().next_lsn,
        }
    }

    /// The oldest segment and the one behind it, if the log has gone on to that one and all of the oldest is on the device: it
    /// can be walked, and released.
    pub fn oldest_sealed(&self) -> Option<(SegmentFile, SegmentFile)> {
        let (first, second) = (*self.segments.front()?, *self.segments.get(1)?);
        let is_sealed = second.first_lsn != 0 && first.segment < self.writer.chain().segment;
        (is_sealed && second.first_lsn <= self.durable_lsn() + 1).then_some((first, second))
    }

    /// Segments with batches, the open one included.
    pub fn segments_used(&self) -> usize {
        self.segments.iter().filter(|s| s.first_lsn != 0).count()
    }

    /// Let go of the oldest segment: nothing that can be read lies in it. Its file is kept as it is until `recycle`.
    ///
    /// # Panics
    /// When it is the open one.
    pub fn release_front(&mut self) {
        let (front, _) = self
            .oldest_sealed()
            .expect("only sealed segments are released");
        self.segments.pop_front();
        self.released.push_back(front);
    }

    /// Bytes of the files that are prepared.
    pub fn ahead_bytes(&self) -> u64 {
        self.writer.segments_ahead() as u64 * self.segment_bytes
    }

    /// Bytes of the files that hold nothing any more and wait to be used again: released or spare.
    pub fn waiting_bytes(&self) -> u64 {
        let files = self.released.len() + self.spares.with_space();
        files as u64 * self.segment_bytes
    }

    /// Segments that were released and whose files wait for checkpoints that say so.
    pub fn released_segments(&self) -> usize {
        self.released.len()
    }

    /// Both checkpoints say that segments up to `through` are released: their files may be used again, but for those that
    /// `is_held` by a read.
    pub fn recycle(&mut self, through: u32, is_held: impl Fn(FileId) -> bool) {
        while let Some(oldest) = self.released.front()
            && oldest.segment <= through
            && !is_held(oldest.file)
        {
            if let Some(oldest) = self.released.pop_front() {
                self.spares.push(oldest.into());
            }
            self.recycled += 1;
        }
    }

    /// Give the space of files back that nobody has wanted for a while; earlier, if the log's files take so much more than they may.
    pub fn give_back<D: Driver>(&mut self, driver: &mut D, now_ns: u64, bytes_over: u64) {
        // On a full disk it might be somebody else's before the log wants it again.
        if self.no_segment.is_some() {
            return;
        }
        let over = bytes_over.div_ceil(self.segment_bytes) as usize;
        for (slot, file) in self.spares.unused(now_ns, self.first_segment(), over) {
            driver.empty_segment(slot, file);
            self.given_back += 1;
        }
    }

    /// The segment in which `lsn` lies, by the first lsns.
    pub fn segment_of_lsn(&self, lsn: u64) -> Option<&SegmentFile> {
        let holding = self
            .segments
            .partition_point(|s| s.first_lsn != 0 && s.first_lsn <= lsn);
        self.segments
            .get(holding.saturating_sub(1))
            .filter(|s| s.first_lsn != 0)
    }

    /// How many keys the index has now, and how large a checkpoint of it may become while the segments ahead are filled.
    pub fn note_keys(&mut self, keys: u64, checkpoint_bytes: u64) {
        self.keys_hint = keys;
        self.checkpoint_bytes = checkpoint_bytes;
    }

    /// How the next segment is filled beside this log, whose share of what the device takes is `device_bytes_per_second`
    /// (0 = not known).
    pub fn fill(&mut self, now_ns: u64, device_bytes_per_second: u64) -> Fill {
        let ahead = Ahead {
            segments: self.writer.segments_ahead(),
            open_bytes: self
                .segment_bytes
                .saturating_sub(self.writer.chain().offset.into()),
        };
        self.rate
            .fill(now_ns, self.bytes_written, ahead, device_bytes_per_second)
    }

    pub(super) fn prepare_ahead<D: Driver>(&mut self, driver: &mut D, now_ns: u64) {
        let ahead = self.writer.segments_ahead();
        // A large reserve is for bursts: it is filled up again behind them, not beside them.
        let wanted = if self.rate.is_busy() {
            self.segments_ahead
                .min(BUSY_AHEAD.max(self.segments_ahead / 2))
        } else {
            self.segments_ahead
        };
        // On a full disk one is kept for compaction, and one is for data.
        let wanted = match self.no_segment {
            Some(_) => wanted.max(2),
            None => wanted,
        };
        if self.pending.is_some() || ahead >= wanted || now_ns < self.prepare_retry_ns {
            return;
        }
        let segment = self.segments.back().map_or(1, |s| s.segment + 1);
        let old = self.spares.take(segment);
        let (slot, generation) = match &old {
            Some(Spare { file, .. }) => (file.slot, file.generation + 1),
            None => (self.next_slot, 1),
        };
        if old.is_none() {
            self.next_slot += 1;
        }
        let header = segment_header(
            &self.identity,
            segment,
            generation,
            self.segment_bytes,
            self.keys_hint,
        );
        let source = old.map_or(SegmentSource::New, |old| old.source());
        let file = source.file().unwrap_or(UNMADE);
        let made = SegmentFile::empty(slot, file, segment, generation);
        self.pending = Some((made, old));
        driver.prepare_segment(
            slot,
            source,
            self.segment_bytes,
            header,
            self.checkpoint_bytes,
            Token::segment(slot),
        );
    }

    /// A segment file became ready, or could not be made.
    pub fn segment_ready(&mut self, result: std::io::Result<FileId>, now_ns: u64) {
        let Some((made, old)) = self.pending.take() else {
            return;
        };
        match result {
            Ok(file) => {
                self.refused = false;
                // A file that is used again says nothing about the room for a new one.
                if (old.is_none_or(|old| !old.has_space) || !self.is_tight())
                    && let Some(error) = self.no_segment.take()
                {
                    let number = self.identity.number;
                    tracing::info!(log = number, "segments can be made again (before: {error})");
                }
                let made = SegmentFile { file, ..made };
                self.segments.push_back(made);
                self.writer.add_segment(ready(&made, self.segment_bytes));
            }
            Err(error) => {
                if self.no_segment.as_ref().map(std::io::Error::kind) != Some(error.kind()) {
                    let what = if is_full(&error) {
                        "no room for another segment"
                    } else {
                        "no segment can be made"
                    };
                    tracing::warn!(
                        log = self.identity.number,
                        "{what} ({error}): writes are refused once only the room is left that compaction needs; they resume when it has made more, or when that is mended"
                    );
                }
                self.no_segment = Some(error);
                self.prepare_retry_ns = now_ns + 500_000_000;
                match old {
                    // Its header may be the old one or the new one: it is tried again for the same segment.
                    Some(old) => {
                        let file = SegmentFile {
                            segment: made.segment,
                            ..old.file
                        };
                        self.spares.push(Spare { file, ..old });
                    }
                    None => self.next_slot -= 1,
                }
            }
        }
    }
}

pub(super) fn ready(s: &SegmentFile, segment_bytes: u64) -> ReadySegment {
    ReadySegment {
        segment: s.segment,
        generation: s.generation,
        bytes: segment_bytes as u32,
        file: s.file.0,
    }
}

/// The header block of a segment, as the driver writes it.
pub fn segment_header(
    identity: &LogIdentity,
    segment: u32,
    generation: u32,
    segment_bytes: u64,
    keys_hint: u64,
) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    wal::segment::SegmentHeader {
        identity: *identity,
        segment,
        generation,
        segment_bytes,
    }
    .encode_with_keys(&mut block, keys_hint);
    block
}
