//! What a load did, for its last lines: totals, bad lines, and the latency of acks.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::text::{counted, human};

/// Latencies beyond this are counted as this.
const LATENCY_US_MAX: u64 = 10 * 60 * 1_000_000;

/// Totals of one run.
pub struct Report {
    /// Records that were acked.
    pub records: u64,
    /// Bytes of their keys and payloads.
    pub bytes: u64,
    /// Lines that were skipped.
    pub skipped: u64,
    /// The first of them: line and reason.
    pub first_skipped: Option<(u64, String)>,
    /// From the first byte read to the last ack.
    pub elapsed: Duration,
    latency_us: Histogram<u64>,
}

impl Default for Report {
    fn default() -> Report {
        let latency_us =
            Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are constants");
        Report {
            records: 0,
            bytes: 0,
            skipped: 0,
            first_skipped: None,
            elapsed: Duration::ZERO,
            latency_us,
        }
    }
}

impl Report {
    /// One frame was acked, `latency` after it was handed to the client.
    pub fn acked(&mut self, latency: Duration) {
        let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
        self.latency_us.saturating_record(us.max(1));
    }

    /// One line was no record.
    pub fn skip(&mut self, line: u64, why: String) {
        self.skipped += 1;
        self.first_skipped.get_or_insert((line, why));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        writeln!(
            f,
            "loaded {} ({}) in {seconds:.2} s: {:.0} records/s",
            counted(self.records, "record"),
            human(self.bytes),
            self.records as f64 / seconds.max(1e-9),
        )?;
        if let Some((line, why)) = &self.first_skipped {
            writeln!(
                f,
                "skipped {}, the first: line {line}: {why}",
                counted(self.skipped, "line")
            )?;
        }
        let at = |quantile: f64| self.latency_us.value_at_quantile(quantile) as f64 / 1000.0;
        writeln!(
            f,
            "ack latency of {}: p50 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms",
            counted(self.latency_us.len(), "frame"),
            at(0.5),
            at(0.99),
            at(0.999),
            self.latency_us.max() as f64 / 1000.0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_names_everything_that_was_not_stored() {
        let mut report = Report {
            records: 2000,
            bytes: 4096,
            elapsed: Duration::from_millis(500),
            ..Report::default()
        };
        report.acked(Duration::from_micros(1500));
        report.skip(17, "no field \"k\"".into());
        report.skip(18, "other".into());
        assert_eq!(
            report.to_string(),
            "loaded 2000 records (4 KiB) in 0.50 s: 4000 records/s\n\
             skipped 2 lines, the first: line 17: no field \"k\"\n\
             ack latency of 1 frame: p50 1.50 ms, p99 1.50 ms, p99.9 1.50 ms, max 1.50 ms\n"
        );
    }
}
