//! What a value was before changes that are not durable yet: a crash may take them back, so readers are shown what was before.
//!
//! Invariant: changes come in lsn order. It does not know what the value is, or who asks.

use std::collections::VecDeque;

/// See the module's header. Empty while all changes are durable, or none was made in this run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settling<T> {
    /// (the change's lsn, the value that it ended), ascending.
    before: VecDeque<(u64, T)>,
}

impl<T> Default for Settling<T> {
    fn default() -> Settling<T> {
        Settling {
            before: VecDeque::new(),
        }
    }
}

impl<T> Settling<T> {
    /// The record at `lsn` ended the value `before`. What is durable by now is forgotten.
    pub fn changed(&mut self, lsn: u64, before: T, durable_lsn: u64) {
        while self
            .before
            .front()
            .is_some_and(|(at, _)| *at <= durable_lsn)
        {
            self.before.pop_front();
        }
        if lsn > durable_lsn {
            self.before.push_back((lsn, before));
        }
    }

    /// The value as what is durable says; `now`: as the whole log does.
    #[inline]
    pub fn durable<'a>(&'a self, now: &'a T, durable_lsn: u64) -> &'a T {
        let undone = self.before.iter().find(|(at, _)| *at > durable_lsn);
        undone.map_or(now, |(_, before)| before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_shown_when_it_is_durable_and_not_before() {
        let mut settling = Settling::default();
        // The value becomes "b" at lsn 10 and "c" at 20.
        settling.changed(10, "a", 5);
        settling.changed(20, "b", 5);
        let seen = |durable_lsn| *settling.durable(&"c", durable_lsn);
        assert_eq!(
            [5, 9, 10, 19, 20, 99].map(seen),
            ["a", "a", "b", "b", "c", "c"]
        );
        settling.changed(30, "c", 20);
        assert_eq!(settling.before.len(), 1, "what is durable is forgotten");
        settling.changed(40, "d", 40);
        assert_eq!(settling, Settling::default());
    }
}
