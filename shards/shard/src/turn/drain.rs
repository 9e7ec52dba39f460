//! The drain: nothing new is taken, what was taken is answered, the other shards are answered until they ask no more, and a
//! last checkpoint is written.

use super::Shard;
use crate::core::State;
use crate::driver::Driver;

/// Clients that take their last replies more slowly than this lose them.
const DRAIN_MAX_NS: u64 = 2_000_000_000;

impl<D: Driver> Shard<D> {
    /// Begin to drain: stop accepting; when everything acked is out and a last checkpoint is written, `turn` returns false.
    pub fn drain(&mut self) {
        if !self.stopping {
            self.stopping = true;
            self.core.draining = true;
            self.core.drain_since_ns = self.driver.now().monotonic_ns;
            // Who waits for news is told that there is none.
            for scan in &mut self.core.waiting {
                scan.wait_until_ns = 0;
            }
            self.driver.stop_accepting();
        }
    }

    pub(super) fn is_drained(&mut self) -> bool {
        self.core.refuse_what_the_drain_leaves();
        if self.core.partition.log.is_dirty() && self.core.partition.log.failed().is_none() {
            return false;
        }
        // What was taken is answered: own requests that others or the device still work on.
        let owed = self
            .core
            .conns
            .iter_mut()
            .any(|c| c.out.has_unsent() || c.jobs > 0);
        let late = self.drain_is_late();
        if owed && !late {
            return false;
        }
        // Nothing is parsed any more, so nothing new comes up. But another shard may have requests under way that it asks
        // of this one, or may not have heard of the drain yet: its questions are answered until it has none.
        self.core.settle();
        let asked = self.core.has_inbound() || self.mailbox.waiting() > 0;
        if !self.core.all_settled() || (asked && !late) {
            return false;
        }
        // Behind a failed write no checkpoint can settle: what is there is what a restart reads.
        if self.core.state != State::Ready || self.core.partition.log.failed().is_some() {
            return true;
        }
        let now_ns = self.core.now.monotonic_ns;
        self.checkpointer.step(
            &mut self.core.partition,
            &mut self.driver,
            now_ns,
            true,
            self.space.replay_from(),
        );
        self.checkpointer.is_current(&self.core.partition) || self.checkpointer.failed()
    }

    /// Clients that do not take their last replies do not hold up the drain for long.
    fn drain_is_late(&self) -> bool {
        self.core
            .now
            .monotonic_ns
            .saturating_sub(self.core.drain_since_ns)
            > DRAIN_MAX_NS
    }
}
