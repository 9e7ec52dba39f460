//! What was measured: latencies, counts, errors by name. Adds up over threads and intervals.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Latencies are kept in nanoseconds up to this one (ten minutes); longer ones count as this.
pub const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// Why a request failed, as the client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Refused, by the protocol's own number.
    Refused(u16),
    /// A read of a key that must exist found nothing.
    NotFound,
    /// The connection ended before the answer.
    ConnectionLost,
    /// No answer until the end of the drain.
    Unanswered,
    /// Bytes that are not the protocol.
    Broken,
}

/// Counts and latencies of some span of time.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Latency of good appends in nanoseconds.
    pub append_ns: Histogram<u64>,
    /// Latency of answered reads in nanoseconds.
    pub read_ns: Histogram<u64>,
    /// Answered requests, without refusals.
    pub requests: u64,
    /// Records appended or read by them.
    pub records: u64,
    /// Reads that found nothing where nothing had to be.
    pub not_found: u64,
    /// Bytes of answers.
    pub bytes_in: u64,
    /// Bytes of requests.
    pub bytes_out: u64,
    /// Failed requests.
    pub failures: BTreeMap<Failure, u64>,
}

impl Default for Tally {
    fn default() -> Tally {
        let histogram = || {
            Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3)
                .expect("bounds are 1 and above 2, 3 digits")
        };
        Tally {
            append_ns: histogram(),
            read_ns: histogram(),
            requests: 0,
            records: 0,
            not_found: 0,
            bytes_in: 0,
            bytes_out: 0,
            failures: BTreeMap::new(),
        }
    }
}

impl Tally {
    /// Counts `count` failures.
    #[cold]
    pub fn fail(&mut self, failure: Failure, count: u64) {
        if count > 0 {
            *self.failures.entry(failure).or_default() += count;
        }
    }

    /// Failed requests of all kinds.
    pub fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Latencies of all operations together.
    pub fn latency_ns(&self) -> Histogram<u64> {
        let mut all = self.append_ns.clone();
        all.add(&self.read_ns)
            .expect("both histograms have the same bounds");
        all
    }

    /// Adds what another thread or interval measured.
    pub fn add(&mut self, other: &Tally) {
        self.append_ns
            .add(&other.append_ns)
            .expect("all tallies have the same bounds");
        self.read_ns
            .add(&other.read_ns)
            .expect("all tallies have the same bounds");
        self.requests += other.requests;
        self.records += other.records;
        self.not_found += other.not_found;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        for (&failure, &count) in &other.failures {
            *self.failures.entry(failure).or_default() += count;
        }
    }
}
