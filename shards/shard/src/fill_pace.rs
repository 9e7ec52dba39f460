//! How the next segment is filled beside a log that is being written: how fast, and whether to the end.
//!
//! A durable write into blocks that were written before is up to twice as fast as one into blocks that are merely
//! reserved, so segments are filled with zeroes ahead of the log. Two things bound that:
//!
//! - A durable write waits for everything that the device has not yet made stable, so a segment filled at full speed is
//!   paid for by the acks behind it: on a disk of 0.9 GB/s, 64 MiB of zeroes raised the p99 of a durable append at 64 k/s
//!   from 1 to 27 ms. The fill is cut into slices and held a little above the rate at which the log uses segments up.
//! - Every byte is written twice that way. Where the device has no room for both, the zeroes cost more than they save: on
//!   a disk of 0.5 GB/s appends of 100 records went at 0.55 M/s with them, with a p99 of 165 ms, and at 1.3 M/s with 9 ms
//!   into reserved blocks. Then what is left of the segment stays reserved.
//!
//! Owns the measured rates and the order that the preparing thread reads; knows neither files nor segments.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Slowest fill beside a log that is being written: a segment of 64 MiB then takes four seconds.
const LEAST_BYTES_PER_SECOND: u64 = 16 << 20;
/// The fill is so many times faster than the log, so that the log never has to wait for it in the steady state.
const FASTER: u64 = 2;
/// A log that takes more than this part of what the device takes has no room for a fill beside it: with one at twice its
/// rate, three quarters of the device would be theirs.
const LARGEST_PART: u64 = 4;
/// Time over which the log's rate is averaged.
const AVERAGE_NS: u64 = 100_000_000;
/// With no segment ahead, and the open one full in less than this, the log would wait for the fill.
const DRY_NS: u64 = 250_000_000;
/// The device's rate is that of so many bytes at least, written while the log was idle.
const MEASURED_BYTES: u64 = 16 << 20;

/// What the preparing thread does with the segment that it fills.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// As fast as the device takes it: the log is idle.
    Unlimited,
    /// The same beside a log that is about to need it.
    Hurry,
    /// At most so many bytes per second.
    PerSecond(u64),
    /// Not to the end: hand it over as it is, the rest reserved.
    Leave,
}

/// What the preparing thread has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FillSeen {
    /// How fast the device took zeroes while the log was idle; 0 = not known yet.
    pub device_bytes_per_second: u64,
    /// Segments handed over before they were filled to the end.
    pub segments_left: u64,
}

/// Between the shard, which orders, and its preparing thread, which tells what it has seen.
#[derive(Clone, Debug, Default)]
pub struct FillPace(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// 0 = unlimited, `HURRY`, `LEAVE`, or bytes per second.
    order: AtomicU64,
    device_bytes_per_second: AtomicU64,
    segments_left: AtomicU64,
}

const HURRY: u64 = u64::MAX - 1;
const LEAVE: u64 = u64::MAX;

impl FillPace {
    /// Set by the shard.
    pub fn set(&self, fill: Fill) {
        let order = match fill {
            Fill::Unlimited => 0,
            Fill::PerSecond(bytes) => bytes.clamp(1, HURRY - 1),
            Fill::Hurry => HURRY,
            Fill::Leave => LEAVE,
        };
        self.0.order.store(order, Ordering::Relaxed);
    }

    /// The order that holds now.
    pub fn order(&self) -> Fill {
        match self.0.order.load(Ordering::Relaxed) {
            0 => Fill::Unlimited,
            HURRY => Fill::Hurry,
            LEAVE => Fill::Leave,
            bytes => Fill::PerSecond(bytes),
        }
    }

    /// What the thread has seen so far.
    pub fn seen(&self) -> FillSeen {
        FillSeen {
            device_bytes_per_second: self.0.device_bytes_per_second.load(Ordering::Relaxed),
            segments_left: self.0.segments_left.load(Ordering::Relaxed),
        }
    }

    /// A segment was handed over before it was filled.
    pub fn left_one(&self) {
        self.0.segments_left.fetch_add(1, Ordering::Relaxed);
    }

    /// Rest until a slice of `bytes` that was begun at `started` has taken as long as it should.
    pub fn rest(&self, bytes: u64, started: Instant) {
        if let Some(time) = slice_time(bytes, self.order()) {
            std::thread::sleep(time.saturating_sub(started.elapsed()));
        }
    }
}

/// How long `bytes` should take; None: they may go at once.
fn slice_time(bytes: u64, fill: Fill) -> Option<Duration> {
    match fill {
        Fill::PerSecond(rate) => Some(Duration::from_secs_f64(bytes as f64 / rate as f64)),
        Fill::Unlimited | Fill::Hurry | Fill::Leave => None,
    }
}

/// The device's rate, from slices that were written while the log was idle.
#[derive(Debug)]
pub struct DeviceRate<'a> {
    pace: &'a FillPace,
    bytes: u64,
    time: Duration,
}

impl<'a> DeviceRate<'a> {
    /// Nothing measured yet.
    pub fn new(pace: &'a FillPace) -> DeviceRate<'a> {
        DeviceRate {
            pace,
            bytes: 0,
            time: Duration::ZERO,
        }
    }

    /// A slice took `time`. Counts while the log is idle.
    pub fn slice(&mut self, bytes: u64, time: Duration) {
        if self.pace.order() != Fill::Unlimited {
            return;
        }
        self.bytes += bytes;
        self.time += time;
        if self.bytes >= MEASURED_BYTES && !self.time.is_zero() {
            let rate = self.bytes as f64 / self.time.as_secs_f64();
            let told = &self.pace.0.device_bytes_per_second;
            told.store(rate as u64, Ordering::Relaxed);
        }
    }
}

/// How far the log is from the end of its segments.
#[derive(Clone, Copy, Debug)]
pub struct Ahead {
    /// Segments that are ready.
    pub segments: usize,
    /// Bytes left in the open one.
    pub open_bytes: u64,
}

/// The log's rate, and what follows from it for the fill.
#[derive(Clone, Debug, Default)]
pub struct LogRate {
    since_ns: u64,
    bytes_before: u64,
    bytes_per_second: u64,
    /// The log's rate when it had used up what was ahead of it, until it is half of that.
    outran_at: Option<u64>,
}

impl LogRate {
    /// Bytes went into the log of late.
    pub fn is_busy(&self) -> bool {
        self.bytes_per_second > 0
    }

    /// Called now and then with the bytes that the log has written so far, what is ahead of it, and this log's share of
    /// what the device takes (bytes per second, 0 = not known).
    pub fn fill(
        &mut self,
        now_ns: u64,
        bytes_written: u64,
        ahead: Ahead,
        device_bytes_per_second: u64,
    ) -> Fill {
        let passed = now_ns.saturating_sub(self.since_ns);
        if passed >= AVERAGE_NS {
            let bytes = bytes_written.saturating_sub(self.bytes_before);
            let rate = u128::from(bytes) * 1_000_000_000 / u128::from(passed);
            self.bytes_per_second = u64::try_from(rate).unwrap_or(u64::MAX);
            (self.since_ns, self.bytes_before) = (now_ns, bytes_written);
        }
        let rate = self.bytes_per_second;
        if rate == 0 {
            // Nobody is held up.
            self.outran_at = None;
            return Fill::Unlimited;
        }
        let lasts_ns = u128::from(ahead.open_bytes) * 1_000_000_000 / u128::from(rate);
        if ahead.segments == 0 && lasts_ns < u128::from(DRY_NS) {
            self.outran_at = Some(rate);
        }
        if self.outran_at.is_some_and(|at| rate < at / 2) {
            self.outran_at = None;
        }
        let takes_most =
            device_bytes_per_second > 0 && rate > device_bytes_per_second / LARGEST_PART;
        if self.outran_at.is_some() || takes_most {
            Fill::Leave
        } else if ahead.segments == 0 {
            // About to run dry, and everybody would be held up.
            Fill::Hurry
        } else {
            Fill::PerSecond((FASTER * rate).max(LEAST_BYTES_PER_SECOND))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;
    const ONE: Ahead = Ahead {
        segments: 1,
        open_bytes: 64 << 20,
    };
    const NONE: Ahead = Ahead { segments: 0, ..ONE };

    #[test]
    fn a_fill_beside_a_busy_log_is_twice_as_fast_as_the_log() {
        let mut rate = LogRate::default();
        rate.fill(SECOND, 0, ONE, 0);
        assert_eq!(
            rate.fill(2 * SECOND, 100 << 20, ONE, 0),
            Fill::PerSecond(200 << 20)
        );
    }

    #[test]
    fn a_fill_is_not_held_back_while_the_log_is_idle_or_has_nothing_ahead() {
        let mut rate = LogRate::default();
        rate.fill(SECOND, 0, ONE, 0);
        assert_eq!(
            rate.fill(2 * SECOND, 1 << 20, ONE, 0),
            Fill::PerSecond(16 << 20)
        );
        assert_eq!(rate.fill(2 * SECOND + 1, 1 << 20, NONE, 0), Fill::Hurry);
        assert_eq!(rate.fill(3 * SECOND, 1 << 20, ONE, 0), Fill::Unlimited);
    }

    #[test]
    fn a_log_that_takes_most_of_the_device_has_it_to_itself() {
        let mut rate = LogRate::default();
        rate.fill(SECOND, 0, ONE, 400 << 20);
        assert_eq!(
            rate.fill(2 * SECOND, 101 << 20, ONE, 400 << 20),
            Fill::Leave
        );
        assert_eq!(
            rate.fill(3 * SECOND, 200 << 20, ONE, 400 << 20),
            Fill::PerSecond(198 << 20)
        );
    }

    #[test]
    fn a_log_that_outran_the_fill_is_not_caught_up_with_before_it_slows_down() {
        let mut rate = LogRate::default();
        rate.fill(SECOND, 0, ONE, 0);
        let nearly_dry = Ahead {
            segments: 0,
            open_bytes: 20 << 20,
        };
        assert_eq!(rate.fill(2 * SECOND, 100 << 20, nearly_dry, 0), Fill::Leave);
        assert_eq!(
            rate.fill(3 * SECOND, 160 << 20, ONE, 0),
            Fill::Leave,
            "60 MiB/s are more than half"
        );
        assert_eq!(
            rate.fill(4 * SECOND, 200 << 20, ONE, 0),
            Fill::PerSecond(80 << 20)
        );
    }

    #[test]
    fn a_slice_takes_its_bytes_over_the_rate() {
        assert_eq!(slice_time(1 << 20, Fill::Unlimited), None);
        assert_eq!(slice_time(1 << 20, Fill::Leave), None);
        assert_eq!(
            slice_time(1 << 20, Fill::PerSecond(16 << 20)),
            Some(Duration::from_micros(62_500))
        );
    }

    #[test]
    fn an_order_arrives_as_it_was_given() {
        let pace = FillPace::default();
        assert_eq!(pace.order(), Fill::Unlimited);
        for fill in [
            Fill::PerSecond(7),
            Fill::Leave,
            Fill::Hurry,
            Fill::Unlimited,
        ] {
            pace.set(fill);
            assert_eq!(pace.order(), fill);
        }
    }

    #[test]
    fn the_device_is_measured_only_while_the_log_is_idle() {
        let pace = FillPace::default();
        let mut measured = DeviceRate::new(&pace);
        let second = Duration::from_secs(1);
        measured.slice(8 << 20, second);
        assert_eq!(pace.seen().device_bytes_per_second, 0, "too little");
        for beside_a_log in [Fill::PerSecond(1), Fill::Hurry] {
            pace.set(beside_a_log);
            measured.slice(64 << 20, second);
            assert_eq!(pace.seen().device_bytes_per_second, 0);
        }
        pace.set(Fill::Unlimited);
        measured.slice(24 << 20, second);
        assert_eq!(pace.seen().device_bytes_per_second, 16 << 20);
    }
}
