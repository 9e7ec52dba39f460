//! Puts the intervals of all threads together: totals, and one small span per second for the timeline and the interval log.
//!
//! Invariant: memory grows by a few kilobytes per span, since its histogram is kept serialized.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2Serializer};

use crate::generator::{Interval, Phase};
use crate::report::Latency;
use crate::tally::Tally;

/// About a second of a run, over all threads.
pub struct Span {
    /// Which part of the run.
    pub phase: Phase,
    /// From when, in nanoseconds of the run.
    pub start_ns: u64,
    /// Until when.
    pub end_ns: u64,
    /// Records in it.
    pub records: u64,
    /// Requests in it.
    pub requests: u64,
    /// Failed requests in it.
    pub failed: u64,
    /// Requests due and not sent at its end.
    pub backlog: u64,
    /// Latency in it.
    pub latency: Latency,
    histogram: Vec<u8>,
}

impl Span {
    fn of(interval: &Interval) -> Span {
        let histogram = interval.tally.latency_ns();
        let mut serialized = Vec::new();
        V2Serializer::new()
            .serialize(&histogram, &mut serialized)
            .expect("memory takes every histogram");
        Span {
            phase: interval.phase,
            start_ns: interval.start_ns,
            end_ns: interval.end_ns,
            records: interval.tally.records,
            requests: interval.tally.requests,
            failed: interval.tally.failed(),
            backlog: interval.backlog,
            latency: Latency::of(&histogram),
            histogram: serialized,
        }
    }

    /// Length of the span.
    pub fn seconds(&self) -> f64 {
        (self.end_ns - self.start_ns).max(1) as f64 / 1e9
    }

    /// Latencies in nanoseconds.
    pub fn histogram_ns(&self) -> Histogram<u64> {
        Deserializer::new()
            .deserialize(&mut self.histogram.as_slice())
            .expect("it was serialized here")
    }
}

/// All that was measured in a run.
pub struct Timeline {
    threads: usize,
    /// Intervals that not every thread has reported yet, by their start.
    open: BTreeMap<u64, (Interval, usize)>,
    /// In order of time.
    pub spans: Vec<Span>,
    /// By phase: warm-up, measured, drain.
    totals: [Tally; 3],
    measured_ns: u64,
    /// Requests due and never sent.
    pub unsent: u64,
}

impl Timeline {
    /// For the intervals of `threads` threads.
    pub fn new(threads: usize) -> Timeline {
        Timeline {
            threads,
            open: BTreeMap::new(),
            spans: Vec::new(),
            totals: Default::default(),
            measured_ns: 0,
            unsent: 0,
        }
    }

    /// Adds one thread's interval. Returns the span that it completes.
    pub fn add(&mut self, interval: Interval) -> Option<&Span> {
        self.totals[interval.phase as usize].add(&interval.tally);
        let start_ns = interval.start_ns;
        if interval.last {
            self.unsent += interval.backlog;
        }
        match self.open.get_mut(&start_ns) {
            None => {
                self.open.insert(start_ns, (interval, 1));
            }
            Some((open, reported)) => {
                open.end_ns = open.end_ns.max(interval.end_ns);
                open.backlog += interval.backlog;
                open.tally.add(&interval.tally);
                *reported += 1;
            }
        }
        if self.open[&start_ns].1 < self.threads {
            return None;
        }
        let (complete, _) = self.open.remove(&start_ns)?;
        self.close(&complete);
        self.spans.last()
    }

    /// Every thread has ended: intervals that some of them did not reach any more are complete as well.
    pub fn finish(&mut self) {
        while let Some((_, (interval, _))) = self.open.pop_first() {
            self.close(&interval);
        }
    }

    fn close(&mut self, interval: &Interval) {
        if interval.phase == Phase::Measured {
            self.measured_ns += interval.end_ns - interval.start_ns;
        }
        self.spans.push(Span::of(interval));
    }

    /// What was done in the measured time.
    pub fn measured(&self) -> &Tally {
        &self.totals[Phase::Measured as usize]
    }

    /// The measured time in seconds.
    pub fn measured_seconds(&self) -> f64 {
        self.measured_ns.max(1) as f64 / 1e9
    }

    /// Latencies that count: of the measured time, and of what was answered afterwards.
    pub fn latencies(&self) -> Tally {
        let mut tally = self.totals[Phase::Measured as usize].clone();
        tally.add(&self.totals[Phase::Drain as usize]);
        tally
    }

    /// All phases together, for counting failures.
    pub fn everything(&self) -> Tally {
        let mut tally = self.latencies();
        tally.add(&self.totals[Phase::Warmup as usize]);
        tally
    }
}
