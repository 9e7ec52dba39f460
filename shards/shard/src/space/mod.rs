//! Compaction: the oldest segment is walked, what is worth it is copied forward, and the segment is released.
//!
//! ```text
//! walk and copy ─► copies durable ─► released ─► said so by both checkpoints ─► no read holds it ─► file used again
//! ```
//! A segment counts as released only when all copies are durable, and its file is overwritten only when both checkpoints were
//! begun after that: whichever of them a restart uses, the log begins behind the segment, and everything that it held is in the
//! checkpoint or in the log behind it. Until then a crash finds the segment as it was, walks it again, and copies nothing twice.
//!
//! What cannot be read of a segment is never dropped for that: if the index names a record of it there, or a history may, the
//! segment stays, is told about and walked again later. What nobody can read any more holds nothing up.
//!
//! Paced: a slice of some blocks per turn, out of a budget that grows with time and with what producers write. It does not
//! know what makes a record worth keeping: that is `worth`'s.

mod ahead;
mod ending;
#[cfg(test)]
mod pace_tests;
mod walk;

use ahead::Ahead;
pub use ahead::BUFFERS;
use index::Digest;
use uring::Buffer;
use wal::BLOCK_BYTES;
use wal::chain::ChainPoint;

use crate::checkpointer::Checkpointer;
use crate::driver::{Driver, FileId};
use crate::space_counts::Found;
use crate::turn::Shard;

/// Budgets are filled up so often.
const REFILL_NS: u64 = 10_000_000;
/// What may be walked, and copied, in that time if producers write nothing; more by what they write.
const WALK_BYTES_IDLE: u64 = 512 * 1024;
const COPY_BYTES_IDLE: u64 = 128 * 1024;
/// Walked in one turn where turns are short, and the rest of a batch: what a request waits for it.
const SLICE_BYTES: u64 = 128 * 1024;
/// And at most, however much was written: a turn that writes much takes long by itself.
const SLICE_BYTES_MOST: u64 = 4 << 20;
/// About as many are released while two checkpoints are written, beside those that they wait for.
const SEGMENTS_IN_TWO_CHECKPOINTS: u64 = 6;
/// And so many are made beside all that while a device is slow for a second, and the checkpoints with it.
const SEGMENTS_OF_A_SLOW_SECOND: u64 = 1;
/// Files of so many segments are nobody's trouble, however little is alive.
const FEW_SEGMENTS: u64 = 8;
/// After something that time may mend.
const RETRY_NS: u64 = 1_000_000_000;
/// A segment that stays for what cannot be read in it is walked again so often: it may have been written anew.
const KEPT_RETRY_NS: u64 = 10_000_000_000;

/// On a full disk a segment's share so large that is dead is worth a walk.
const TIGHT_SEGMENT_SHARE: u64 = 16;

/// A segment on its way out.
struct Walk {
    segment: u32,
    generation: u32,
    file: FileId,
    /// Where the next batch starts.
    offset: u32,
    /// The next record, and the first that is not in this segment any more.
    next_lsn: u64,
    end_lsn: u64,
    found: Found,
    /// The end of the log when all had been looked at.
    settled_lsn: u64,
    /// Length of the last read.
    chunk: u32,
    /// (first, last) lsn of what does not verify.
    unreadable: Vec<(u64, u64)>,
}

impl Walk {
    fn lose(&mut self, end: u64) {
        if self.next_lsn < end {
            self.unreadable.push((self.next_lsn, end - 1));
            self.next_lsn = end;
        }
    }

    fn has_lost(&self, lsn: u64) -> bool {
        let mut all = self.unreadable.iter();
        all.any(|(first, last)| (*first..=*last).contains(&lsn))
    }
}

enum Stage {
    Idle,
    /// The next chunk is being read.
    Reading(Walk),
    /// A chunk is there: its first byte lies at this offset of the segment.
    Walking(Walk, Buffer, usize, u32),
    /// All is copied: wait until the copies are durable.
    Settle(Walk),
    /// Something does not verify: look through the index for what names it, from this digest on.
    Search(Walk, Digest),
}

/// In the worst case everything that is alive lies before everything that is dead: a log of `amplification` times what is alive
/// then copies one part for `amplification - 1` that it frees. A quarter more, or one that is too long would stay so.
fn copies_percent(amplification_percent: u64) -> u64 {
    let freed_percent = amplification_percent.saturating_sub(100).max(1);
    (125 * 100 / freed_percent).clamp(125, 1250)
}

/// See the module's header.
pub struct Space {
    /// Disk use is held to about so many times what can still be read, in hundredths.
    amplification_percent: u64,
    /// Bytes that have to be copied for 100 that producers write, at most, to hold it there.
    copies_percent: u64,
    stage: Stage,
    /// Where the log stood before the first copy of the oldest segment.
    began: Option<ChainPoint>,
    ahead: Ahead,
    walk_bytes: u64,
    copy_bytes: u64,
    /// How much more may be walked in this turn.
    slice_bytes: u64,
    /// What the log had written at the last turn.
    turn_bytes: u64,
    refilled_ns: u64,
    /// What the log had written then that was no copy.
    foreign_bytes: u64,
    not_before_ns: u64,
    /// The index and the log contradict each other: nothing is freed until a restart.
    stuck: bool,
    /// The oldest segment stays for records that cannot be read.
    keeps: bool,
    /// A copy stands in line for a batch buffer.
    waits: bool,
    /// The segment that was told about.
    told: u32,
    /// For the metrics.
    pub released: u64,
    pub relocated_bytes: u64,
    pub relocated_records: u64,
}

impl Space {
    /// Hold disk use to about `amplification_percent` hundredths of what can still be read; 0: free nothing.
    pub fn new(amplification_percent: u64) -> Space {
        Space {
            amplification_percent,
            copies_percent: copies_percent(amplification_percent),
            stage: Stage::Idle,
            began: None,
            ahead: Ahead::default(),
            walk_bytes: 0,
            copy_bytes: 0,
            slice_bytes: 0,
            turn_bytes: 0,
            refilled_ns: 0,
            foreign_bytes: 0,
            not_before_ns: 0,
            stuck: false,
            keeps: false,
            waits: false,
            told: 0,
            released: 0,
            relocated_bytes: 0,
            relocated_records: 0,
        }
    }

    /// A chunk waits to be walked and there is budget for it.
    pub fn is_busy(&self) -> bool {
        match self.stage {
            Stage::Walking(..) => self.walk_bytes > 0 && self.copy_bytes > 0 && !self.waits,
            Stage::Search(..) => true,
            _ => false,
        }
    }

    /// A turn begins. Batches are written by and by, turns are not alike: what one could not use is left for the next ones.
    fn begin_slice(&mut self, log_bytes: u64) {
        let written = log_bytes - std::mem::replace(&mut self.turn_bytes, log_bytes);
        self.slice_bytes = match self.stage {
            Stage::Walking(..) | Stage::Reading(_) => {
                let more = self.slice_bytes + self.walked_for(written);
                more.clamp(SLICE_BYTES, SLICE_BYTES_MOST)
            }
            _ => SLICE_BYTES,
        };
    }

    /// What has to be walked so that as much is freed as producers have written.
    fn walked_for(&self, written: u64) -> u64 {
        written + written * self.copies_percent / 100
    }

    /// So many bytes were walked.
    fn spend(&mut self, bytes: u64) {
        self.walk_bytes = self.walk_bytes.saturating_sub(bytes);
        self.slice_bytes = self.slice_bytes.saturating_sub(bytes);
    }

    /// Begin no walk for a while.
    #[cfg(test)]
    pub fn hold(&mut self, hold: bool) {
        self.not_before_ns = if hold { u64::MAX } else { 0 };
    }

    /// Nothing can be freed.
    pub fn is_held_up(&self) -> bool {
        self.stuck || self.keeps
    }

    /// While the oldest segment has copies a checkpoint has the log replayed from before the first of them: a replay must see
    /// every copy of a segment that it still finds, or it would not know what was copied already.
    pub fn replay_from(&self) -> Option<ChainPoint> {
        self.began
    }

    /// A replay from here on has found copies of records whose segment is not released: that walk is to be finished.
    pub fn goes_on(&mut self, replayed_from: ChainPoint) {
        self.began = Some(replayed_from);
    }
}

impl<D: Driver> Shard<D> {
    /// A slice of compaction.
    pub(crate) fn space_step(&mut self) {
        let now_ns = self.core.now.monotonic_ns;
        if now_ns - self.space.refilled_ns >= REFILL_NS {
            self.refill(now_ns);
        }
        self.space
            .begin_slice(self.core.partition.log.bytes_written);
        let waited = std::mem::replace(&mut self.space.waits, false);
        if !self.space_may_work() {
            if waited {
                self.core.space_leaves_line();
            }
            return;
        }
        if !waited {
            self.work_stage();
        } else if self.core.begin_turn_of_space() {
            let copied = self.space.relocated_records;
            self.work_stage();
            let got = !self.space.waits || self.space.relocated_records > copied;
            self.core.end_turn_of_space(got);
        } else {
            self.space.waits = true;
        }
        if self.space.waits {
            self.core.space_waits();
        }
    }

    /// Neither a drain nor a failed log waits for it.
    pub(crate) fn space_may_work(&self) -> bool {
        !self.stopping && self.core.partition.log.failed().is_none()
    }

    fn work_stage(&mut self) {
        match std::mem::replace(&mut self.space.stage, Stage::Idle) {
            Stage::Idle => {}
            Stage::Reading(walk) => self.space.stage = Stage::Reading(walk),
            Stage::Walking(walk, buffer, got, at) => {
                self.walk_slice(walk, buffer, got, at);
                // Into the next chunk, if it is there.
                if self.space.slice_bytes > 0 && self.space.is_busy() {
                    self.work_stage();
                }
            }
            Stage::Settle(walk) => self.settle(walk),
            Stage::Search(walk, from) => self.search(walk, from),
        }
    }

    /// Ten milliseconds have passed.
    fn refill(&mut self, now_ns: u64) {
        let space = &mut self.space;
        let partition = &mut self.core.partition;
        space.refilled_ns = now_ns;
        // Copies earn nothing: they would pay for more copies, and those for yet more.
        let foreign_bytes = (partition.log.bytes_written).saturating_sub(space.relocated_bytes);
        let written = foreign_bytes.saturating_sub(space.foreign_bytes);
        space.foreign_bytes = foreign_bytes.max(space.foreign_bytes);
        partition.space.padding_bytes += std::mem::take(&mut partition.log.padding_bytes);
        // Twice what a log needs that is as long as it may be: one that is longer gets shorter.
        space.walk_bytes = WALK_BYTES_IDLE + 2 * space.walked_for(written);
        space.copy_bytes = COPY_BYTES_IDLE.max(written * space.copies_percent / 100);
        partition.space.age(partition.log.log_time_us());
        let held = &self.core.reads;
        partition
            .log
            .recycle(self.checkpointer.recyclable_through(), |file| {
                held.holds(file)
            });
        self.begin_if_wanted();
    }

    fn begin_if_wanted(&mut self) {
        if matches!(self.space.stage, Stage::Idle)
            && self.core.now.monotonic_ns >= self.space.not_before_ns
            && !self.space.stuck
            && self.space_may_work()
            && self.is_space_wanted()
        {
            self.begin_walk();
        }
    }

    fn is_space_wanted(&self) -> bool {
        let partition = &self.core.partition;
        let Some((first, second)) = partition.log.oldest_sealed() else {
            return false;
        };
        if self.space.began.is_some() || self.space.amplification_percent == 0 {
            return self.space.began.is_some();
        }
        let counts = &partition.space;
        // Each copy of an older version takes a place in the index: that is paid for what is dead, not for packing.
        let idle_bytes = (!partition.shows_older_versions()).then(|| self.idle_bytes_ahead());
        // A walk that stops half way for want of room has taken some and given none: begun where copies of all fit, or where
        // most is dead anyway.
        let may_copy = !partition.log.is_tight()
            || partition.log.fits_copies_of(&first, &second)
            || 2 * counts.dead_bytes >= counts.record_bytes;
        // Where the disk is full all is worth the work that lets more be said than was kept for saying it.
        let tight = partition.log.is_tight()
            && counts.dead_bytes >= partition.log.segment_bytes() / TIGHT_SEGMENT_SHARE;
        may_copy
            && (tight
                || counts.looks
                || counts.is_too_much(idle_bytes, self.space.amplification_percent))
            || partition
                .all_older_than_us()
                .is_some_and(|oldest_us| second.first_time_us < oldest_us)
            || second.first_lsn <= partition.all_ended_below()
    }

    /// Bytes of the files that hold nothing, or will once what is released now waits for two checkpoints: a log that begins to
    /// free space when its files already take what they may would take more before the first of them is used again.
    fn idle_bytes_ahead(&self) -> u64 {
        let log = &self.core.partition.log;
        let checkpoints = 2 * Checkpointer::bytes_of_next(&self.core.partition);
        let waiting = checkpoints + SEGMENTS_IN_TWO_CHECKPOINTS * log.segment_bytes();
        let slow = SEGMENTS_OF_A_SLOW_SECOND * log.segment_bytes();
        log.ahead_bytes() + log.waiting_bytes().max(waiting) + slow
    }

    /// By how much the log's files take more than they may.
    pub(crate) fn bytes_over(&self) -> u64 {
        let counts = &self.core.partition.space;
        let log = &self.core.partition.log;
        let files =
            counts.record_bytes + counts.padding_bytes + log.ahead_bytes() + log.waiting_bytes();
        let may_take = match self.space.amplification_percent {
            0 => u64::MAX,
            percent => counts.alive_bytes().saturating_mul(percent) / 100,
        };
        files.saturating_sub(may_take.max(FEW_SEGMENTS * log.segment_bytes()))
    }

    fn begin_walk(&mut self) {
        let log = &self.core.partition.log;
        let Some((oldest, second)) = log.oldest_sealed() else {
            return;
        };
        if oldest.end_unknown {
            return self.space_stuck(
                oldest.segment,
                "its last batch cannot be read, nor the first of the next",
            );
        }
        let walk = Walk {
            segment: oldest.segment,
            generation: oldest.generation,
            file: oldest.file,
            offset: BLOCK_BYTES as u32,
            next_lsn: oldest.first_lsn,
            end_lsn: second.first_lsn,
            found: Found::default(),
            settled_lsn: 0,
            chunk: 0,
            unreadable: Vec::new(),
        };
        self.space.began.get_or_insert(log.chain());
        // A segment that was kept is walked anew for what it may give this time, not for what it gave.
        self.space.ahead.drop_arrived();
        self.read_on(walk);
    }
}
