//! How fast the next segment may be zero-filled beside a log that is being written.
//!
//! A durable write waits for everything that the device has not yet made stable, so a segment filled at full speed is
//! paid for by the acks behind it: on a disk of 0.9 GB/s, 64 MiB of zeroes raised the p99 of a durable append at 64 k/s
//! from 1 to 27 ms. The fill is therefore cut into slices and held a little above the rate at which the log uses segments
//! up. Owns the measured rate and the figure that the preparing thread reads; knows neither files nor segments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slowest fill beside a log that is being written: a segment of 64 MiB then takes four seconds.
const LEAST_BYTES_PER_SECOND: u64 = 16 << 20;
/// The fill is so many times faster than the log, so that the log never has to wait for it in the steady state.
const FASTER: u64 = 2;
/// Time over which the log's rate is averaged.
const AVERAGE_NS: u64 = 100_000_000;

/// What the preparing thread holds itself to: bytes per second, 0 = as fast as the device takes them.
#[derive(Clone, Debug, Default)]
pub struct FillPace(Arc<AtomicU64>);

impl FillPace {
    /// Set by the shard.
    pub fn set(&self, bytes_per_second: u64) {
        self.0.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Bytes per second, 0 = unlimited.
    pub fn bytes_per_second(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Rest until a slice of `bytes` that was begun at `started` has taken as long as it should.
    pub fn rest(&self, bytes: u64, started: Instant) {
        if let Some(time) = slice_time(bytes, self.bytes_per_second()) {
            std::thread::sleep(time.saturating_sub(started.elapsed()));
        }
    }
}

/// How long `bytes` should take; None: they may go at once.
fn slice_time(bytes: u64, bytes_per_second: u64) -> Option<Duration> {
    (bytes_per_second > 0).then(|| Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64))
}

/// The log's rate, and what follows from it for the fill.
#[derive(Clone, Debug, Default)]
pub struct LogRate {
    since_ns: u64,
    bytes_before: u64,
    bytes_per_second: u64,
}

impl LogRate {
    /// Bytes went into the log of late.
    pub fn is_busy(&self) -> bool {
        self.bytes_per_second > 0
    }

    /// Called now and then with the bytes that the log has written so far and the segments that are ready ahead of it.
    /// Returns the rate for the fill: unlimited while the log is idle (nobody is held up) or about to run dry (everybody
    /// would be).
    pub fn fill_rate(&mut self, now_ns: u64, bytes_written: u64, segments_ahead: usize) -> u64 {
        let passed = now_ns.saturating_sub(self.since_ns);
        if passed >= AVERAGE_NS {
            let bytes = bytes_written.saturating_sub(self.bytes_before);
            let rate = u128::from(bytes) * 1_000_000_000 / u128::from(passed);
            self.bytes_per_second = u64::try_from(rate).unwrap_or(u64::MAX);
            (self.since_ns, self.bytes_before) = (now_ns, bytes_written);
        }
        if self.bytes_per_second == 0 || segments_ahead == 0 {
            return 0;
        }
        (FASTER * self.bytes_per_second).max(LEAST_BYTES_PER_SECOND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_fill_beside_a_busy_log_is_twice_as_fast_as_the_log() {
        let mut rate = LogRate::default();
        rate.fill_rate(SECOND, 0, 1);
        assert_eq!(rate.fill_rate(2 * SECOND, 100 << 20, 1), 200 << 20);
    }

    #[test]
    fn a_fill_is_not_held_back_while_the_log_is_idle_or_has_nothing_ahead() {
        let mut rate = LogRate::default();
        rate.fill_rate(SECOND, 0, 1);
        assert_eq!(rate.fill_rate(2 * SECOND, 1 << 20, 1), 16 << 20);
        assert_eq!(rate.fill_rate(2 * SECOND + 1, 1 << 20, 0), 0);
        assert_eq!(rate.fill_rate(3 * SECOND, 1 << 20, 1), 0);
    }

    #[test]
    fn a_slice_takes_its_bytes_over_the_rate() {
        assert_eq!(slice_time(1 << 20, 0), None);
        assert_eq!(
            slice_time(1 << 20, 16 << 20),
            Some(Duration::from_micros(62_500))
        );
    }
}
