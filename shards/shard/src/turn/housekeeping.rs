//! What a turn does now and then: figures for the gauges, clients that are late, the idle mark, the scrubber, the pace of
//! preparing segments, checkpoints.
//!
//! Nothing of it is needed for a request to be answered.

use super::Shard;
use crate::core::State;
use crate::driver::Driver;

const HOUSEKEEPING_NS: u64 = 10_000_000;
/// Housekeeping that comes so late was kept from running (a stopped process, a suspended machine): clients are given their
/// time anew.
const GAP_NS: u64 = 1_000_000_000;

impl<D: Driver> Shard<D> {
    pub(super) fn housekeeping(&mut self) {
        let now_ns = self.core.now.monotonic_ns;
        if now_ns - self.housekeeping_ns < HOUSEKEEPING_NS {
            return;
        }
        if now_ns - self.housekeeping_ns > GAP_NS {
            self.awake_since_ns = now_ns;
        }
        self.housekeeping_ns = now_ns;
        self.core.outside.mailbox_depth = self.mailbox.depth_total() as u64;
        self.core.outside.space_held_up = self.space.is_held_up();
        self.core.outside.segments_released = self.space.released;
        self.core.outside.segments_left_reserved = self.fill_seen.segments_left;
        self.core.outside.relocated_bytes = self.space.relocated_bytes;
        self.core.outside.relocated_records = self.space.relocated_records;
        self.core.outside.checkpoint_seconds = self.checkpointer.seconds;
        self.core.outside.checkpoint_bytes = self.checkpointer.bytes;
        self.core.outside.scrubbed_bytes = self.scrubber.bytes;
        self.core.outside.scrub_errors = self.scrubber.errors;
        self.core.outside.checkpoint_ended_ns = self.checkpointer.ended_ns;
        self.core.wake_scans();
        self.core.resume_tails();
        let late = self.core.late_clients(self.awake_since_ns);
        for id in late.asking {
            self.core.metrics.late_request();
            self.core.refuse_late_request(id);
        }
        for id in late.taking {
            self.core.metrics.slow_client();
            tracing::info!(
                shard = self.core.id,
                "dropped a client that took no bytes for too long"
            );
            self.close(id);
        }
        if self.core.state != State::Ready {
            return;
        }
        if now_ns - self.last_work_ns > self.pace.mark_after_ns
            && self.core.partition.log.mark_idle()
        {
            self.core.partition.log.pump(&mut self.driver, now_ns);
        }
        if !self.stopping {
            let log = &self.core.partition.log;
            self.scrubber.step(log, &mut self.driver, now_ns);
            let bytes_over = self.bytes_over();
            let log = &mut self.core.partition.log;
            log.give_back(&mut self.driver, now_ns, bytes_over);
        }
        let keys = self.core.partition.index.len();
        let checkpoint_bytes = self.checkpointer.bytes_to_reserve(&self.core.partition);
        self.core.partition.log.note_keys(keys, checkpoint_bytes);
        let device_share =
            self.fill_seen.device_bytes_per_second / self.core.shared.logs.len().max(1) as u64;
        let fill = self.core.partition.log.fill(now_ns, device_share);
        self.fill_seen = self.driver.pace_preparation(fill);
        self.checkpointer.step(
            &mut self.core.partition,
            &mut self.driver,
            now_ns,
            false,
            self.space.replay_from(),
        );
    }
}
