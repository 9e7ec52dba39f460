//! How a turn begins: the ring is polled; with nothing to do the shard spins for a while, then sleeps.
//!
//! It never sleeps past the open batch's time, nor while another shard has mail for it.

use std::time::Duration;

use super::Shard;
use crate::driver::{Driver, Patience};

/// Looks at the ring between two yields of a spin.
const LOOKS_PER_YIELD: usize = 4;

impl<D: Driver> Shard<D> {
    /// Poll; with nothing to do, spin for a while, then sleep. The open batch's time ends both.
    pub(super) fn wait(&mut self) {
        self.poll(Patience::None);
        if self.has_news() || self.has_work() {
            return;
        }
        let log = &self.core.partition.log;
        let commit_ns = log.open_batch_due_ns().unwrap_or(u64::MAX);
        let started_ns = self.driver.now().monotonic_ns;
        self.spin_for_news(started_ns, commit_ns);
        if !self.has_news() {
            self.sleep_for_news(commit_ns);
        }
        let waited_ns = self.driver.now().monotonic_ns - started_ns;
        if self.has_news() || waited_ns < commit_ns.saturating_sub(started_ns) {
            self.spin.waited(waited_ns);
        }
    }

    fn has_news(&self) -> bool {
        !self.events.is_empty() || self.mailbox.waiting() > 0
    }

    fn spin_for_news(&mut self, started_ns: u64, commit_ns: u64) {
        let end_ns = commit_ns.min(started_ns + self.spin.length_ns());
        let mut now_ns = started_ns;
        while now_ns < end_ns {
            for _ in 0..LOOKS_PER_YIELD {
                self.poll(Patience::None);
                if self.has_news() {
                    return;
                }
            }
            // The kernel may finish a durable write in a worker bound to this very core: a spin that never
            // yields makes that write wait for the scheduler's tick.
            std::thread::yield_now();
            now_ns = self.driver.now().monotonic_ns;
        }
    }

    fn sleep_for_news(&mut self, commit_ns: u64) {
        let commit_in = commit_ns.saturating_sub(self.driver.now().monotonic_ns);
        if commit_in == 0 || !self.mailbox.prepare_sleep() {
            return;
        }
        let longest = if self.stopping {
            Duration::from_millis(1)
        } else {
            self.pace.sleep.min(self.core.next_deadline())
        };
        let sleep = longest.min(Duration::from_nanos(commit_in));
        self.poll(Patience::Sleep(sleep));
        self.mailbox.awake();
    }

    fn poll(&mut self, patience: Patience) {
        if let Err(error) = self.driver.poll(patience, &mut self.events) {
            // Without its ring a shard can neither ack nor answer: end the process, loudly, rather than hang its clients.
            panic!(
                "shard {}: the ring failed and cannot be used any more: {error}",
                self.core.id
            );
        }
    }

    fn has_work(&self) -> bool {
        self.parsed_late
            || (self.space.is_busy() && self.space_may_work())
            || (self.core.has_inbound()
                && !self.core.inbound_reads()
                && !self.core.partition.log.is_dirty())
    }
}
