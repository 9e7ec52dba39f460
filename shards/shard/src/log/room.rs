//! Room for an append: what fits at all, what has to wait for a buffer, and whom the last room on a full disk is for.
//!
//! Space comes back only through the log itself: compaction copies what is alive of the oldest segment, a tombstone or a
//! policy says what is dead. A log whose last block is taken by new data could do neither, and would be full for ever. So
//! once no new segment file can be made, new data is refused while there is still room for one segment's worth of copies. A copy
//! says where it comes from: of small records they are longer by half.

use std::collections::VecDeque;

use wal::extension::{HEAD_BYTES, Relocated};
use wal::{BATCH_HEADER_BYTES, BLOCK_BYTES};

use super::{Blocked, Line, Log, SegmentFile};

/// A unit takes at most so many of the batch buffers: the rest may be on their way to the device.
const UNIT_BUFFERS: (usize, usize) = (3, 4);

/// A copy is longer by this extension, where the record itself is none.
const COPY_ADDS_BYTES: u64 = (HEAD_BYTES + Relocated::BYTES).next_multiple_of(8) as u64;

/// The most records that one segment holds of those that are complete.
pub(super) fn densest(segments: &VecDeque<SegmentFile>) -> u64 {
    let firsts = segments.iter().map(|s| s.first_lsn).filter(|lsn| *lsn != 0);
    let pairs = firsts.clone().zip(firsts.skip(1));
    pairs
        .map(|(first, next)| next.saturating_sub(first))
        .max()
        .unwrap_or(0)
}

/// Whom an append is for. Where no new segment can be made, the last room is kept for what makes space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// New data.
    Data,
    /// A tombstone or a policy: it may be what lets go of something.
    Freeing,
    /// A copy that compaction makes, so that a whole segment can go.
    Copy,
}

impl Log {
    /// The most record bytes that one batch can hold.
    pub fn batch_room(&self) -> usize {
        self.pool
            .bytes_each()
            .min(self.segment_bytes as usize - BLOCK_BYTES)
            - BATCH_HEADER_BYTES
    }

    /// The most record bytes that a unit may take.
    pub fn unit_bytes_max(&self) -> usize {
        self.unit_bytes_max
    }

    /// Whether a unit of `bytes`, whose largest record has `largest`, can ever be appended.
    pub fn unit_fits(&self, bytes: usize, largest: usize) -> bool {
        let most = (self.pool.count() * UNIT_BUFFERS.0 / UNIT_BUFFERS.1).max(1);
        bytes <= self.unit_bytes_max && self.batches_of(bytes, largest) <= most
    }

    /// Batches that a unit may take. Records never span batches. Of two neighbours the second's first record did not fit the
    /// first, so together they are more than full; and a batch is left with less room than the largest record.
    fn batches_of(&self, bytes: usize, largest: usize) -> usize {
        let room = self.batch_room();
        if bytes <= room {
            return 1;
        }
        let pairs = 2 * bytes.div_ceil(room) + 1;
        match room.checked_sub(largest) {
            Some(filled) if filled > 0 => pairs.min(bytes.div_ceil(filled) + 1),
            _ => pairs,
        }
    }

    /// Make sure that a unit of `bytes` (all its records, encoded; the largest has `largest`) can be appended without
    /// another check. Only for units that fit: others would wait for ever.
    pub fn make_room(&mut self, bytes: usize, largest: usize, claim: Claim) -> Result<(), Blocked> {
        if self.writer.room() >= bytes && self.failed.is_none() && self.no_segment.is_none() {
            return Ok(());
        }
        self.make_room_slowly(bytes, largest, claim)
    }

    #[cold]
    fn make_room_slowly(
        &mut self,
        bytes: usize,
        largest: usize,
        claim: Claim,
    ) -> Result<(), Blocked> {
        if self.failed.is_some() {
            return Err(Blocked::Failed);
        }
        self.ask_for_kept_room(bytes, claim)?;
        if self.writer.room() >= bytes {
            return Ok(());
        }
        if self.line.waits && !self.line.turn {
            return Err(Blocked::Buffers);
        }
        let batches = self.batches_of(bytes, largest);
        while self.pool.available() < batches {
            if !self.evict_one() {
                return Err(Blocked::Buffers);
            }
        }
        if self.writer.is_open() {
            self.freeze(true);
        }
        self.open(bytes)?;
        self.line.turn = false;
        Ok(())
    }

    /// `waits`: requests stand in line for room, and only an append that needs no new buffer may overtake them. `turn`: what
    /// comes now is the first of them, until it has got what it needs.
    pub fn stand_in_line(&mut self, waits: bool, turn: bool) {
        self.line = Line { waits, turn };
    }

    pub(super) fn open(&mut self, least_room: usize) -> Result<(), Blocked> {
        assert!(!self.writer.is_open(), "one batch is open at a time");
        let Some(buffer) = self.pool.take() else {
            return Err(Blocked::Buffers);
        };
        match self.writer.open(buffer, least_room) {
            Ok(()) => {
                self.opened_ns = self.now_ns;
                Ok(())
            }
            Err(_buffer) => Err(self.no_room()),
        }
    }

    /// Why no new file can be made for a segment, want of space included; those that are there may be used again.
    pub fn is_tight(&self) -> bool {
        self.no_segment.as_ref().is_some_and(is_full)
    }

    /// The disk is full, and appends are refused for it, or will be when the open segment is.
    pub fn disk_full(&self) -> bool {
        self.is_tight() && self.refuses_data()
    }

    /// Why no segment can be made and appends are refused for it, if it is not for want of space.
    pub fn no_segment(&self) -> Option<&std::io::Error> {
        let error = self.no_segment.as_ref().filter(|error| !is_full(error))?;
        self.refuses_data().then_some(error)
    }

    fn refuses_data(&self) -> bool {
        self.refused || self.is_kept(self.pool.bytes_each(), Claim::Data)
    }

    /// Bytes of the log that `claim` may not take: a whole segment's records may be alive, and copies of them are longer and
    /// lie less densely.
    fn kept_bytes(&self, claim: Claim) -> u64 {
        let open = self.segments.iter().rfind(|s| s.first_lsn != 0);
        let records = open.map_or(0, |open| self.next_lsn() - open.first_lsn);
        let copies = self.segment_bytes + self.densest_records.max(records) * COPY_ADDS_BYTES;
        match claim {
            Claim::Data => copies + self.segment_bytes / 8,
            Claim::Freeing => copies + self.segment_bytes / 16,
            Claim::Copy => 0,
        }
    }

    /// Whether copies of all that two neighbouring segments say that the first one holds find room: one that is walked half way
    /// on a full disk has taken room and given none.
    pub fn fits_copies_of(&self, oldest: &SegmentFile, next: &SegmentFile) -> bool {
        let records = next.first_lsn.saturating_sub(oldest.first_lsn);
        self.writer.bytes_left() >= self.segment_bytes + records * COPY_ADDS_BYTES
    }

    fn is_kept(&self, bytes: usize, claim: Claim) -> bool {
        let needed = wal::writer::segment_bytes_of_unit(bytes, self.pool.bytes_each()) as u64;
        self.writer.bytes_left() < self.kept_bytes(claim) + needed
    }

    /// Refuse an append of `bytes` that would take what is kept for others.
    pub(super) fn ask_for_kept_room(&mut self, bytes: usize, claim: Claim) -> Result<(), Blocked> {
        if self.no_segment.is_none() || claim == Claim::Copy {
            return Ok(());
        }
        if self.is_kept(bytes, claim) {
            self.refused |= claim == Claim::Data;
            return Err(self.no_room());
        }
        Ok(())
    }

    /// What an append hears for which there is no segment.
    pub(super) fn no_room(&self) -> Blocked {
        match &self.no_segment {
            Some(error) if is_full(error) => Blocked::DiskFull,
            Some(_) => Blocked::NoSegment,
            None => Blocked::Segment,
        }
    }
}

/// Space is what is missing, or what this user may have of it.
pub(super) fn is_full(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
