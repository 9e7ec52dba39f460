//! When a small open batch is written: the commit window.
//!
//! A device write of 4 KiB costs nearly what one of 64 KiB does, and every flush costs the kernel, the device and, under a
//! hypervisor, the host: beyond some rate of flushes acks get slower, not faster (a VM that is frozen for 12 ms out of every
//! 100 once it sends more than about 3,500 flushes a second). So under load small batches are started at least a window
//! apart, three times what one durable write was measured to take; whoever arrives meanwhile shares the next write. A lone
//! writer gains nothing from waiting and never does; batches that are large already are not held back either.
//! Owns the window and what it knows of the load; does not know batches, devices or clocks.

use std::time::Duration;

/// The window is so many times the measured latency of one durable write.
const LATENCIES: f64 = 3.0;
/// Longest derived window: above it the device's own latency spaces the writes.
const LONGEST: Duration = Duration::from_micros(500);
/// While batches carry no more records than this on average, waiting would only delay them.
const LONE_RECORDS: u64 = 2;
/// Weight of the past in the average, in sixteenths of a record.
const SIXTEENTHS: u64 = 16;

/// The window that follows from the measured median of a durable write.
pub fn derived_window(sync_p50_us: f64) -> Duration {
    Duration::from_secs_f64((LATENCIES * sync_p50_us.max(0.0)).min(1e6) / 1e6).min(LONGEST)
}

/// Spacing of small batches.
#[derive(Clone, Debug, Default)]
pub struct CommitWindow {
    window_ns: u64,
    started_ns: u64,
    /// Mean records of the last few batches, in sixteenths.
    mean: u64,
}

impl CommitWindow {
    /// Zero: never wait.
    pub fn new(window: Duration) -> CommitWindow {
        CommitWindow {
            window_ns: window.as_nanos() as u64,
            ..CommitWindow::default()
        }
    }

    /// A batch with so many records was started.
    pub fn started(&mut self, now_ns: u64, records: u32) {
        self.started_ns = now_ns;
        self.mean = (3 * self.mean + SIXTEENTHS * u64::from(records)) / 4;
    }

    /// The earliest time for the next small batch.
    pub fn due_ns(&self) -> u64 {
        if self.mean <= LONE_RECORDS * SIXTEENTHS {
            0
        } else {
            self.started_ns + self.window_ns
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_micros(300);

    #[test]
    fn a_lone_writer_never_waits() {
        let mut window = CommitWindow::new(WINDOW);
        for at in 0..100 {
            assert_eq!(window.due_ns(), 0);
            window.started(at * 1_000, 1 + (at % 2) as u32);
        }
    }

    #[test]
    fn under_load_batches_are_a_window_apart() {
        let mut window = CommitWindow::new(WINDOW);
        window.started(1_000_000, 50);
        assert_eq!(window.due_ns(), 1_300_000);
    }

    #[test]
    fn when_the_load_is_gone_the_waiting_ends() {
        let mut window = CommitWindow::new(WINDOW);
        window.started(0, 1000);
        let batches = (1..100).find(|at| {
            window.started(at * 1_000_000, 1);
            window.due_ns() == 0
        });
        assert!(batches.is_some_and(|b| b < 30), "{batches:?}");
    }

    #[test]
    fn a_window_of_zero_is_off() {
        let mut window = CommitWindow::new(Duration::ZERO);
        window.started(77, 1000);
        assert_eq!(window.due_ns(), 77);
    }

    #[test]
    fn the_window_follows_the_device() {
        assert_eq!(derived_window(20.0), Duration::from_micros(60));
        assert_eq!(derived_window(110.0), Duration::from_micros(330));
        assert_eq!(derived_window(5_000.0), LONGEST);
        assert_eq!(derived_window(f64::NAN), Duration::ZERO);
    }
}
