//! What a stream with a limit in bytes still holds, and below which lsn its records are ended.
//!
//! Counted are the bytes that records of the stream take in this log, in the order in which they were appended: versions that
//! were overwritten too, copies that compaction makes not. They are counted in steps of a share of the limit, and the oldest
//! step ends once those behind it reach the limit: at least the limit stays, and at most a step and a record more.
//!
//! Invariant: everything here follows from the records and definitions of the log in their order, so a replay ends the same
//! records. What was ended stays ended, whatever the policy becomes. It does not know the index, the device or the policy of
//! other logs.

use std::collections::VecDeque;

use crate::settling::Settling;

/// The limit is counted in so many steps.
const STEPS: u64 = 64;

/// See the module's header.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Held {
    /// Records whose first place is before this lsn are ended.
    below: u64,
    /// What `below` was, until what moved it is durable.
    #[serde(skip)]
    settling: Settling<u64>,
    /// The definition that set the limit: an earlier one says nothing new.
    defined: u64,
    /// (first lsn, bytes), ascending; empty without a limit.
    steps: VecDeque<(u64, u64)>,
}

impl Held {
    /// Records whose first place is before this lsn are ended.
    #[inline]
    pub fn below(&self) -> u64 {
        self.below
    }

    /// The same, as what is durable says.
    #[inline]
    pub fn durably_below(&self, durable_lsn: u64) -> u64 {
        *self.settling.durable(&self.below, durable_lsn)
    }

    /// There is nothing to remember.
    pub fn is_empty(&self) -> bool {
        *self == Held::default()
    }

    /// Whether the definition at `lsn` is older than what this says.
    pub fn is_newer_than(&self, lsn: u64) -> bool {
        self.defined > lsn
    }

    /// The definition at `lsn` set this limit. What was there before is not counted, and ends as one step. Gives the bytes that it ended.
    pub fn define(&mut self, lsn: u64, limit: Option<u64>, durable_lsn: u64) -> u64 {
        if self.defined == lsn {
            return 0;
        }
        let Some(limit) = limit else {
            self.steps.clear();
            // Only what ended something has to be remembered.
            self.defined = if self.below > 0 { lsn } else { 0 };
            return 0;
        };
        self.defined = lsn;
        if self.steps.is_empty() {
            self.steps.push_back((0, 0));
            self.steps.push_back((lsn, 0));
        }
        self.end(lsn, limit, durable_lsn)
    }

    /// A record was appended. Gives the bytes that it ended.
    #[inline]
    pub fn count(&mut self, lsn: u64, bytes: u64, limit: u64, durable_lsn: u64) -> u64 {
        match self.steps.back_mut() {
            Some((_, sum)) if *sum < (limit / STEPS).max(1) => *sum += bytes,
            _ => self.steps.push_back((lsn, bytes)),
        }
        self.end(lsn, limit, durable_lsn)
    }

    fn end(&mut self, lsn: u64, limit: u64, durable_lsn: u64) -> u64 {
        let before = self.below;
        let mut ended = 0;
        let mut held: u64 = self.steps.iter().map(|(_, bytes)| bytes).sum();
        while let (Some((_, bytes)), Some((next, _))) = (self.steps.front(), self.steps.get(1))
            && held - bytes >= limit
        {
            (ended, held) = (ended + bytes, held - bytes);
            self.below = *next;
            self.steps.pop_front();
        }
        if self.below != before {
            self.settling.changed(lsn, before, durable_lsn);
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_least_the_limit_stays_and_a_step_and_a_record_more_at_most() {
        for limit in [0, 1, 63, 64, 1000, 100_000] {
            let mut held = Held::default();
            held.define(7, Some(limit), u64::MAX);
            let mut lengths = VecDeque::new();
            for lsn in 8..5000 {
                let bytes = 50 + lsn * 7919 % 100;
                lengths.push_back((lsn, bytes));
                held.count(lsn, bytes, limit, u64::MAX);
                while lengths.front().is_some_and(|(lsn, _)| *lsn < held.below()) {
                    lengths.pop_front();
                }
                let sum: u64 = lengths.iter().map(|(_, bytes)| bytes).sum();
                assert!(held.below() == 0 || sum >= limit, "{limit}: {sum} at {lsn}");
                assert!(
                    sum <= limit + limit / STEPS + 2 * 150,
                    "{limit}: {sum} at {lsn}"
                );
                assert!(held.steps.len() as u64 <= STEPS + 2);
            }
            assert!(limit == 100_000 || held.below() > 4000);
        }
    }

    #[test]
    fn what_was_there_before_the_limit_ends_once_as_much_as_the_limit_has_come() {
        let mut held = Held::default();
        held.define(100, Some(1000), u64::MAX);
        for lsn in 101..110 {
            held.count(lsn, 100, 1000, u64::MAX);
        }
        assert_eq!(held.below(), 0);
        held.count(110, 100, 1000, u64::MAX);
        assert_eq!(held.below(), 100);
    }

    #[test]
    fn a_smaller_limit_ends_at_once_and_none_brings_nothing_back() {
        let mut held = Held::default();
        held.define(1, Some(1000), u64::MAX);
        for lsn in 2..12 {
            held.count(lsn, 100, 1000, u64::MAX);
        }
        assert_eq!(held.below(), 1);
        assert_eq!(held.define(12, Some(300), u64::MAX), 700);
        assert_eq!(held.below(), 9);
        held.define(13, None, u64::MAX);
        assert_eq!(held.below(), 9);
        assert!(held.is_newer_than(12) && !held.is_newer_than(13));
        // Read back once more.
        let text = serde_json::to_string(&held).unwrap();
        assert_eq!(serde_json::from_str::<Held>(&text).unwrap(), held);
    }
}
