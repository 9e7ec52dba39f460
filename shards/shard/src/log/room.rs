//! The last room of a log on a full disk, and whom it is for.
//!
//! Space comes back only through the log itself: compaction copies what is alive of the oldest segment, a tombstone or a
//! policy says what is dead. A log whose last block is taken by new data could do neither, and would be full for ever. So
//! once no new segment file can be made, new data is refused while there is still room for one segment's worth of copies.

use super::{Blocked, Claim, Log};

impl Log {
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

    /// Bytes of the log that `claim` may not take: a whole segment's records may be alive, and copies of them lie less
    /// densely.
    fn kept_bytes(&self, claim: Claim) -> u64 {
        match claim {
            Claim::Data => self.segment_bytes + self.segment_bytes / 8,
            Claim::Freeing => self.segment_bytes + self.segment_bytes / 16,
            Claim::Copy => 0,
        }
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
