//! Out-of-order write completions in, the durable lsn out.
//!
//! Invariant: the durable lsn is the last lsn of a batch that ends a unit and has no unfinished batch before it.

use std::collections::VecDeque;

/// Turns out-of-order write completions into the durable lsn.
#[derive(Debug, Default)]
pub struct Commits {
    durable_lsn: u64,
    /// Batches from the oldest unfinished one on, dense.
    waiting: VecDeque<Waiting>,
    /// Number of `waiting[0]`, or of the next batch to be submitted.
    first_batch: u64,
    unfinished: usize,
}

#[derive(Debug)]
struct Waiting {
    last_lsn: u64,
    commits: bool,
    complete: bool,
}

impl Commits {
    /// Nothing in flight; `next_batch` will be the first one submitted.
    pub fn new(durable_lsn: u64, next_batch: u64) -> Commits {
        Commits {
            durable_lsn,
            waiting: VecDeque::new(),
            first_batch: next_batch,
            unfinished: 0,
        }
    }

    /// A batch was given to the device. Batches are submitted in order, without gaps.
    ///
    /// # Panics
    /// When this is not the next batch.
    pub fn submitted(&mut self, batch: u64, last_lsn: u64, commits: bool) {
        assert_eq!(
            batch,
            self.first_batch + self.waiting.len() as u64,
            "batches are submitted in order"
        );
        self.waiting.push_back(Waiting {
            last_lsn,
            commits,
            complete: false,
        });
        self.unfinished += 1;
    }

    /// A batch is on stable storage. Returns the new durable lsn if it moved.
    ///
    /// # Panics
    /// When the batch is not in flight.
    pub fn completed(&mut self, batch: u64) -> Option<u64> {
        let place = batch
            .checked_sub(self.first_batch)
            .and_then(|place| usize::try_from(place).ok());
        let done = place
            .and_then(|place| self.waiting.get_mut(place))
            .expect("a completed batch was submitted");
        assert!(!done.complete, "batch {batch} completes once");
        done.complete = true;
        self.unfinished -= 1;
        let before = self.durable_lsn;
        while self.waiting.front().is_some_and(|front| front.complete) {
            let front = self.waiting.pop_front().expect("it was there");
            self.first_batch += 1;
            if front.commits {
                assert!(
                    front.last_lsn >= self.durable_lsn,
                    "the durable lsn never goes back"
                );
                self.durable_lsn = front.last_lsn;
            }
        }
        (self.durable_lsn > before).then_some(self.durable_lsn)
    }

    /// Every record up to here survives a crash.
    pub fn durable_lsn(&self) -> u64 {
        self.durable_lsn
    }

    /// Batches that the device has not confirmed.
    pub fn in_flight(&self) -> usize {
        self.unfinished
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_durable_lsn_moves_only_over_complete_units() {
        let mut commits = Commits::new(10, 5);
        commits.submitted(5, 12, true);
        commits.submitted(6, 15, false);
        commits.submitted(7, 20, true);
        commits.submitted(8, 20, true); // a mark batch: no records
        assert_eq!(commits.in_flight(), 4);
        assert_eq!(commits.completed(7), None, "earlier batches are out");
        assert_eq!(commits.completed(5), Some(12));
        assert_eq!(commits.completed(6), Some(20));
        assert_eq!(commits.completed(8), None, "a mark moves nothing");
        assert_eq!((commits.durable_lsn(), commits.in_flight()), (20, 0));
        commits.submitted(9, 25, false);
        assert_eq!(commits.completed(9), None, "half a unit is not durable");
        assert_eq!(commits.durable_lsn(), 20);
    }

    #[test]
    fn every_order_of_completions_ends_at_the_same_lsn() {
        for seed in 0..120_u64 {
            let mut order: Vec<u64> = (1..=5).collect();
            let mut rest = seed;
            for left in (1..order.len()).rev() {
                order.swap(left, (rest % (left as u64 + 1)) as usize);
                rest /= left as u64 + 1;
            }
            let mut commits = Commits::new(0, 1);
            for batch in 1..=5 {
                commits.submitted(batch, batch * 10, batch % 2 == 1);
            }
            let mut last = 0;
            for (at, batch) in order.iter().enumerate() {
                if let Some(durable) = commits.completed(*batch) {
                    assert!(durable > last, "it only moves forward");
                    last = durable;
                }
                let complete = (1..=5)
                    .take_while(|batch| order[..=at].contains(batch))
                    .last()
                    .unwrap_or(0);
                assert_eq!(
                    commits.durable_lsn(),
                    [0, 10, 10, 30, 30, 50][complete as usize]
                );
            }
            assert_eq!(commits.durable_lsn(), 50);
        }
    }

    #[test]
    #[should_panic(expected = "completes once")]
    fn a_batch_cannot_complete_twice() {
        let mut commits = Commits::new(0, 1);
        commits.submitted(1, 1, true);
        commits.submitted(2, 2, true);
        commits.completed(2);
        commits.completed(2);
    }
}
