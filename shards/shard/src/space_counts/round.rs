//! A round through the log, and what it says of what was thought to lie dead nobody knows where.
//!
//! Deaths are counted one by one, but at an average length, so that their sum drifts away from the truth a little with every
//! record, for as long as a server runs. Once all segments that were there when a round began are released, everything that had
//! died until then was found, byte for byte: what was thought of it more, or less, is an error, and taken out of the sum.
//!
//! It does not know the other sums, nor records: when one died is said by [`died_about`].

/// The lsn of the write that a version fell out of its key's history by, about.
///
/// `first_lsn` and `version` are its own, `newest_lsn` and `newest` the key's, which shows `depth` versions. The writes between
/// are taken to lie evenly, as they do on average where they come at random.
pub fn died_about(
    (first_lsn, version): (u64, u32),
    (newest_lsn, newest): (u64, u32),
    depth: u32,
) -> u64 {
    let back = newest.saturating_sub(version).max(1);
    let between = u128::from(newest_lsn.saturating_sub(first_lsn));
    first_lsn + (between * u128::from(depth.min(back)) / u128::from(back)) as u64
}

/// See the module's header.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    /// The first lsn that was not there when it began.
    begin_lsn: u64,
    /// The last segment that was.
    last_segment: u32,
    /// What was thought to lie dead somewhere. None in the first of a life: what was dead behind a restart is in that sum, wherever
    /// it lies.
    thought: Option<u64>,
    /// Of that, found. Below zero where more was found than anybody had thought of, and what died since had to be taken for it.
    found: i64,
}

impl Round {
    /// The first of a life: nobody knows how far off the sum is.
    pub fn first(next_lsn: u64, open_segment: u32) -> Round {
        Round {
            begin_lsn: next_lsn,
            last_segment: open_segment,
            thought: None,
            found: 0,
        }
    }

    /// It begins where the log ends, with so much thought to lie dead somewhere.
    pub fn begin(next_lsn: u64, open_segment: u32, thought: u64) -> Round {
        Round {
            thought: Some(thought),
            ..Round::first(next_lsn, open_segment)
        }
    }

    /// Whether it is the first of a life.
    pub fn is_first(&self) -> bool {
        self.thought.is_none()
    }

    /// Whether what died with the write of this lsn had died when the round began.
    pub fn was_dead(&self, died_lsn: u64) -> bool {
        died_lsn < self.begin_lsn
    }

    /// A segment is released, and so many bytes are taken from the sum, less what of the segment had died since the round began.
    /// At the end of the round: how many bytes more than there were had been thought of (fewer: below zero).
    pub fn released(&mut self, segment: u32, found: i64) -> Option<i64> {
        self.found += found;
        let thought = self.thought.map_or(self.found, |thought| thought as i64);
        (segment >= self.last_segment).then(|| thought - self.found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_died_by_the_write_that_came_a_depth_later() {
        let newest = (1_000, 12);
        assert_eq!(died_about((200, 4), newest, 8), 1_000, "by the newest");
        assert_eq!(died_about((200, 4), newest, 2), 400);
        assert_eq!(died_about((200, 4), newest, 20), 1_000);
        assert_eq!(died_about((1_000, 12), newest, 1), 1_000);
        let far = died_about((u64::MAX - 20, 1), (u64::MAX, 3), 1);
        assert_eq!(far, u64::MAX - 10);
    }

    #[test]
    fn a_round_ends_with_its_last_segment_and_says_how_far_off_the_sum_was() {
        let mut round = Round::begin(100, 7, 500);
        assert!(round.was_dead(99) && !round.was_dead(100));
        assert_eq!(round.released(5, 200), None);
        assert_eq!(round.released(7, 200), Some(100));
        assert_eq!(Round::begin(1, 1, 5).released(1, 9), Some(-4));
        assert_eq!(Round::first(1, 1).released(1, 9), Some(0));
    }
}
