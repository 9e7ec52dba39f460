//! Files that hold nothing and wait to be used again, and when the space of those that nobody misses is given back.
//!
//! Blocks that were written before take durable writes faster than new ones (see `preparer`), so files are used again. But a
//! burst, or a large deletion, leaves more of them than what follows needs: those that lay unused for a while are cut to
//! nothing. Their names and handles stay, and are filled anew when the log grows again.
//!
//! # Invariants
//! - Only a file whose header names a released segment is cut: if the cut does not survive a crash, it is what it was before.
//!
//! It does not know the device, nor why files became spare.

use std::time::Duration;

use super::{SegmentFile, UNMADE};
use crate::driver::{FileId, SegmentSource};

/// A look that comes later than this after the last one counts as so much: the process stood still, not the log.
const LOOK_NS_MAX: u64 = 1_000_000_000;

/// When the space of spare files is given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparePolicy {
    /// Nobody has wanted them for so long.
    pub patience: Duration,
    /// The same where the log's files take more than they may: only as many are given back as that is.
    pub patience_over: Duration,
    /// So many are kept all the same.
    pub kept: usize,
}

impl SparePolicy {
    /// It never is.
    pub const NEVER: SparePolicy = SparePolicy {
        patience: Duration::MAX,
        patience_over: Duration::MAX,
        kept: usize::MAX,
    };
}

impl Default for SparePolicy {
    fn default() -> SparePolicy {
        SparePolicy {
            patience: Duration::from_secs(60),
            patience_over: Duration::from_secs(5),
            kept: 1,
        }
    }
}

/// A file that holds nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spare {
    pub file: SegmentFile,
    /// Its blocks are there.
    pub has_space: bool,
}

impl Spare {
    /// Where the next segment in it comes from.
    pub fn source(&self) -> SegmentSource {
        match (self.file.file, self.has_space) {
            (UNMADE, _) => SegmentSource::New,
            (file, true) => SegmentSource::Recycled(file),
            (file, false) => SegmentSource::Emptied(file),
        }
    }
}

impl From<SegmentFile> for Spare {
    fn from(file: SegmentFile) -> Spare {
        Spare {
            file,
            has_space: file.file != UNMADE,
        }
    }
}

/// See the module's header.
pub(super) struct Spares {
    files: Vec<Spare>,
    policy: SparePolicy,
    /// Over the long patience, and over the short one.
    long: Count,
    short: Count,
    looked_ns: u64,
}

impl Spares {
    pub fn new(files: Vec<SegmentFile>, policy: SparePolicy) -> Spares {
        Spares {
            files: files.into_iter().map(Spare::from).collect(),
            policy,
            long: Count::default(),
            short: Count::default(),
            looked_ns: 0,
        }
    }

    pub fn push(&mut self, spare: Spare) {
        self.files.push(spare);
    }

    /// Those whose blocks are there.
    pub fn with_space(&self) -> usize {
        self.files.iter().filter(|spare| spare.has_space).count()
    }

    /// One for the segment with this number.
    pub fn take(&mut self, segment: u32) -> Option<Spare> {
        // A file whose header names this very segment goes first: no two files may ever name the same one.
        let at = (self.files.iter())
            .position(|spare| spare.file.segment == segment)
            .or(self.files.iter().rposition(|spare| spare.has_space))
            .or(self.files.len().checked_sub(1))?;
        let taken = self.files.swap_remove(at);
        let left = self.with_space();
        self.long.saw(left);
        self.short.saw(left);
        Some(taken)
    }

    /// Files that lay unused since the last time, cut from now on: slot and handle. `first_segment`: those before are released.
    /// `over`: so many are more than the log may take.
    pub fn unused(&mut self, now_ns: u64, first_segment: u32, over: usize) -> Vec<(u32, FileId)> {
        let passed_ns = now_ns.saturating_sub(self.looked_ns).min(LOOK_NS_MAX);
        self.looked_ns = now_ns;
        let there = self.with_space();
        let unwanted = self.long.look(passed_ns, self.policy.patience, there);
        let unwanted_lately = self.short.look(passed_ns, self.policy.patience_over, there);
        let surplus = unwanted.max(unwanted_lately.min(over.saturating_add(self.policy.kept)));
        let cut: Vec<(u32, FileId)> = (self.files.iter_mut())
            .filter(|spare| spare.has_space && spare.file.segment < first_segment)
            .take(surplus.saturating_sub(self.policy.kept))
            .map(|spare| {
                spare.has_space = false;
                (spare.file.slot, spare.file.file)
            })
            .collect();
        self.long.saw(there - cut.len());
        self.short.saw(there - cut.len());
        cut
    }
}

/// Of files with space, the fewest at a time over some patience.
#[derive(Default)]
struct Count {
    fewest: usize,
    awake_ns: u64,
}

impl Count {
    fn saw(&mut self, files: usize) {
        self.fewest = self.fewest.min(files);
    }

    /// Time has passed: the fewest since the last time, if that is long ago.
    fn look(&mut self, passed_ns: u64, patience: Duration, there: usize) -> usize {
        self.awake_ns += passed_ns;
        if u128::from(self.awake_ns) < patience.as_nanos() {
            return 0;
        }
        self.awake_ns = 0;
        std::mem::replace(&mut self.fewest, there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: SparePolicy = SparePolicy {
        patience: Duration::from_secs(3),
        patience_over: Duration::from_secs(1),
        kept: 1,
    };

    fn spare(segment: u32) -> SegmentFile {
        SegmentFile::empty(segment, FileId(segment), segment, 1)
    }

    /// Slots that are cut in so many seconds, with a look every half of one.
    fn cut_in(spares: &mut Spares, from_ns: u64, seconds: u64, first_segment: u32) -> Vec<u32> {
        let looks = (1..=2 * seconds).map(|look| from_ns + look * 500_000_000);
        looks
            .flat_map(|now_ns| spares.unused(now_ns, first_segment, 0))
            .map(|(slot, _)| slot)
            .collect()
    }

    #[test]
    fn a_file_whose_header_may_name_a_segment_to_come_is_not_cut() {
        // If the cut were lost in a crash, two files would name segment 9.
        let mut spares = Spares::new(vec![spare(9), spare(2), spare(3)], POLICY);
        assert_eq!(cut_in(&mut spares, 0, 10, 9), [2, 3]);
        assert_eq!(spares.take(9).map(|taken| taken.file.slot), Some(9));
    }

    #[test]
    fn what_is_more_than_the_log_may_take_goes_sooner_and_no_more_than_that() {
        let mut spares = Spares::new((1..=9).map(spare).collect(), POLICY);
        let cut = |spares: &mut Spares, ms: u64, over| {
            let now_ns = 1_000_000 * ms;
            spares.unused(now_ns, 99, over).len()
        };
        assert_eq!(cut(&mut spares, 900, 3), 0);
        assert_eq!(cut(&mut spares, 1_000, 3), 0, "none was missed yet");
        assert_eq!(cut(&mut spares, 2_000, 0), 0, "it may");
        let taken: Vec<Spare> = (0..4).filter_map(|_| spares.take(99)).collect();
        taken.into_iter().for_each(|one| spares.push(one));
        assert_eq!(cut(&mut spares, 2_900, 3), 0);
        assert_eq!(cut(&mut spares, 2_999, 3), 0);
        assert_eq!(cut(&mut spares, 3_000, 3), 3);
        // The long patience ends too, and of the fewest one is kept.
        assert_eq!(cut(&mut spares, 3_900, 0), 0);
        assert_eq!(spares.with_space(), 6);
        assert_eq!(cut(&mut spares, 4_000, 99), 5);
        assert_eq!(cut(&mut spares, 5_000, 99), 0);
    }

    #[test]
    fn the_fewest_at_a_time_count_and_time_in_which_nothing_ran_does_not() {
        let mut spares = Spares::new((1..=5).map(spare).collect(), POLICY);
        assert_eq!(cut_in(&mut spares, 0, 3, 9), [0; 0], "none was missed yet");
        // Taken and back again: those were wanted.
        let taken: Vec<Spare> = (0..3).filter_map(|_| spares.take(9)).collect();
        taken.into_iter().for_each(|one| spares.push(one));
        assert_eq!(
            spares.unused(1_000_000_000_000, 9, 0),
            [],
            "a pause is a second"
        );
        assert_eq!(cut_in(&mut spares, 1_000_000_000_000, 3, 9).len(), 1);
        assert_eq!(spares.with_space(), 4);
    }
}
