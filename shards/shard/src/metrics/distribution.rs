//! One distribution: an HDR histogram to record into, fixed buckets to show.
//!
//! # Invariants
//! - Bounds and precision (two significant digits) are fixed at start: recording never allocates. What is out of bounds counts at the bound.
//! - `sum` and `count` are exact. A bucket's edge is as sharp as the histogram's cells: a value up to 0.8 % above an edge may count below it.

use hdrhistogram::Histogram;

/// Buckets shown, at most; the last one (+Inf) not counted.
pub const BUCKETS_MAX: usize = 24;

/// Unit, bounds and edges of a distribution.
#[derive(Debug)]
pub struct Scale {
    /// smallest and largest value told apart from its neighbours
    bounds: (u64, u64),
    /// upper edges of the buckets, in the recorded unit, ascending
    edges: &'static [u64],
    /// recorded units in one shown unit
    divisor: f64,
}

impl Scale {
    /// Recorded in nanoseconds, shown in seconds: 1 µs to 60 s, edges 1-2-5 from 10 µs to 10 s.
    pub const LATENCY: &'static Scale = &Scale {
        bounds: (1_000, 60_000_000_000),
        edges: &[
            10_000,
            20_000,
            50_000,
            100_000,
            200_000,
            500_000,
            1_000_000,
            2_000_000,
            5_000_000,
            10_000_000,
            20_000_000,
            50_000_000,
            100_000_000,
            200_000_000,
            500_000_000,
            1_000_000_000,
            2_000_000_000,
            5_000_000_000,
            10_000_000_000,
        ],
        divisor: 1e9,
    };

    /// Records of a batch.
    pub const RECORDS: &'static Scale = &Scale {
        bounds: (1, 1 << 20),
        edges: &[
            1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000,
        ],
        divisor: 1.0,
    };

    /// Bytes of a batch: from one block up.
    pub const BYTES: &'static Scale = &Scale {
        bounds: (1, 1 << 28),
        edges: &[
            4 << 10,
            8 << 10,
            16 << 10,
            32 << 10,
            64 << 10,
            128 << 10,
            256 << 10,
            512 << 10,
            1 << 20,
            2 << 20,
            4 << 20,
            8 << 20,
        ],
        divisor: 1.0,
    };
}

/// Where a shard records.
#[derive(Debug)]
pub struct Distribution {
    scale: &'static Scale,
    histogram: Histogram<u64>,
    sum: u64,
}

impl Distribution {
    /// Empty.
    pub fn new(scale: &'static Scale) -> Distribution {
        assert!(scale.edges.len() <= BUCKETS_MAX && scale.edges.is_sorted());
        let (low, high) = scale.bounds;
        let histogram = Histogram::new_with_bounds(low, high, 2)
            .expect("bounds are constants that a histogram can have");
        Distribution {
            scale,
            histogram,
            sum: 0,
        }
    }

    /// `count` equal values at once: acks that are released together are one entry.
    #[inline]
    pub fn record_many(&mut self, value: u64, count: u64) {
        self.histogram.saturating_record_n(value, count);
        self.sum = self.sum.saturating_add(value.saturating_mul(count));
    }

    /// One value.
    #[inline]
    pub fn record(&mut self, value: u64) {
        self.record_many(value, 1);
    }

    /// What was recorded, in buckets. Sums cells, most of which are outside the span of what was recorded and cost nothing.
    pub fn snapshot(&self) -> DistributionSnapshot {
        let mut buckets = [0; BUCKETS_MAX + 1];
        let count = self.histogram.len();
        let mut counted = 0;
        let mut from = 0;
        for (bucket, &edge) in buckets.iter_mut().zip(self.scale.edges) {
            if counted == count {
                break;
            }
            if edge >= from {
                *bucket = self.histogram.count_between(from, edge);
                counted += *bucket;
                from = self.histogram.next_non_equivalent(edge);
            }
        }
        buckets[self.scale.edges.len()] = count - counted;
        DistributionSnapshot {
            scale: self.scale,
            buckets,
            count,
            sum: self.sum,
        }
    }
}

/// A distribution as it was at one moment. Plain data.
#[derive(Clone, Copy, Debug)]
pub struct DistributionSnapshot {
    scale: &'static Scale,
    /// not cumulative; the one behind the last edge is +Inf
    buckets: [u64; BUCKETS_MAX + 1],
    count: u64,
    sum: u64,
}

impl DistributionSnapshot {
    /// Values recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Sum of the values, in the shown unit.
    pub fn sum(&self) -> f64 {
        self.sum as f64 / self.scale.divisor
    }

    /// Upper edge in the shown unit (`f64::MAX` for +Inf) and count of each bucket, not cumulative.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let edges = self
            .scale
            .edges
            .iter()
            .map(|&edge| edge as f64 / self.scale.divisor);
        edges.chain([f64::MAX]).zip(self.buckets)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_group_counts_as_its_members() {
        let mut distribution = Distribution::new(Scale::RECORDS);
        distribution.record_many(3, 10);
        distribution.record(600);
        let snapshot = distribution.snapshot();
        assert_eq!((snapshot.count(), snapshot.sum()), (11, 630.0));
        let filled: Vec<(f64, u64)> = snapshot.buckets().filter(|(_, count)| *count > 0).collect();
        assert_eq!(filled, [(5.0, 10), (1000.0, 1)]);
    }

    #[test]
    fn what_is_out_of_bounds_is_counted_at_the_bound() {
        let mut distribution = Distribution::new(Scale::LATENCY);
        distribution.record(0);
        distribution.record(3_600_000_000_000);
        let filled: Vec<(f64, u64)> = distribution
            .snapshot()
            .buckets()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(filled, [(1e-5, 1), (f64::MAX, 1)]);
    }

    proptest! {
        #[test]
        fn buckets_hold_every_value_once_and_near_its_edges(values in prop::collection::vec(0u64..40_000_000_000, 0..200), small in prop::collection::vec(0u64..3_000_000, 0..200)) {
            let mut distribution = Distribution::new(Scale::LATENCY);
            let values: Vec<u64> = values.into_iter().chain(small).collect();
            for &value in &values { distribution.record(value); }
            let snapshot = distribution.snapshot();
            prop_assert_eq!(snapshot.count(), values.len() as u64);
            prop_assert_eq!(snapshot.buckets().map(|(_, count)| count).sum::<u64>(), values.len() as u64);
            let mut below = 0;
            for (edge, count) in snapshot.buckets() {
                below += count;
                let at_least = values.iter().filter(|&&v| v as f64 / 1e9 <= edge).count() as u64;
                let at_most = values.iter().filter(|&&v| v as f64 / 1e9 <= edge * 1.008 + 1e-6).count() as u64;
                prop_assert!((at_least..=at_most).contains(&below), "edge {edge}: {below} of {at_least}..={at_most}");
            }
        }
    }
}
