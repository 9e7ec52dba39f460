//! What a run says about itself: the summary as text and as one JSON object.

pub mod files;

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::machine::Machine;
use crate::tally::Tally;
use crate::verify::Verdict;

/// The result of a run. Field names are the interface of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Records appended or read per second of the measured time.
    pub records_per_second: f64,
    /// Requests answered per second of the measured time.
    pub requests_per_second: f64,
    /// Latency of all operations.
    #[serde(flatten)]
    pub latency: Latency,
    /// Latency of appends alone, where there were reads too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<Latency>,
    /// Latency of reads alone, where there were appends too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read: Option<Latency>,
    /// Failed requests, warm-up included.
    pub errors: u64,
    /// The same by name.
    pub errors_by_code: BTreeMap<String, u64>,
    /// Reads that found nothing where nothing had to be.
    pub not_found: u64,
    /// Open loop: requests that were due and never sent; their waiting time is in the latency.
    pub unsent: u64,
    /// Records in the measured time.
    pub records: u64,
    /// Requests in the measured time.
    pub requests: u64,
    /// The measured time.
    pub seconds: f64,
    /// Bytes of requests per second.
    pub sent_bytes_per_second: f64,
    /// Bytes of answers per second.
    pub received_bytes_per_second: f64,
    /// What reading back found, with `--verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verify: Option<Verdict>,
    /// What was run.
    pub run: Run,
    /// What the server says it is.
    pub server: serde_json::Value,
    /// Where the load ran.
    pub machine: Machine,
    /// Of the tree.
    pub commit: String,
    /// As it was typed.
    pub command: String,
}

/// The settings that a figure depends on.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "each is the flag of that name")]
pub struct Run {
    pub to: String,
    pub protocol: String,
    pub workload: String,
    #[serde(rename = "loop")]
    pub loop_kind: &'static str,
    pub rate: Option<f64>,
    pub connections: u32,
    pub pipeline: u32,
    pub batch: u32,
    pub payload_bytes: u32,
    pub key_bytes: u32,
    pub keys: u64,
    pub distribution: String,
    pub get_share: Option<f64>,
    pub warmup_seconds: f64,
    pub durability: &'static str,
    /// What the sockets really have.
    pub congestion: String,
    pub threads: u32,
    pub cores: Vec<usize>,
    pub seed: u64,
}

/// Percentiles in microseconds.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
    pub mean_us: f64,
}

impl Latency {
    /// From nanoseconds.
    pub fn of(histogram: &Histogram<u64>) -> Latency {
        let us = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            p50_us: us(0.5),
            p90_us: us(0.9),
            p99_us: us(0.99),
            p999_us: us(0.999),
            max_us: histogram.max() as f64 / 1e3,
            mean_us: (histogram.mean() / 10.0).round() / 100.0,
        }
    }
}

/// Appends' and reads' own latencies, where there were both.
pub fn by_operation(tally: &Tally) -> (Option<Latency>, Option<Latency>) {
    if tally.append_ns.is_empty() || tally.read_ns.is_empty() {
        return (None, None);
    }
    (
        Some(Latency::of(&tally.append_ns)),
        Some(Latency::of(&tally.read_ns)),
    )
}

/// `1234567` as `1.23 M`.
pub fn human(number: f64) -> String {
    match number {
        n if n >= 1e9 => format!("{:.2} G", n / 1e9),
        n if n >= 1e6 => format!("{:.2} M", n / 1e6),
        n if n >= 1e4 => format!("{:.1} k", n / 1e3),
        n => format!("{n:.0}"),
    }
}

/// Microseconds, as a time.
pub fn human_us(us: f64) -> String {
    match us {
        us if us >= 1e6 => format!("{:.2} s", us / 1e6),
        us if us >= 1e3 => format!("{:.2} ms", us / 1e3),
        us => format!("{us:.1} us"),
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let run = &self.run;
        let pace = match run.rate {
            Some(rate) => format!("open loop at {} records/s", human(rate)),
            None => "closed loop".to_owned(),
        };
        writeln!(
            f,
            "{} over {}, {pace}, acks {}",
            run.workload, run.protocol, run.durability
        )?;
        writeln!(
            f,
            "  {} connections x {} in flight x {} records, {}-byte payloads, {} keys of {} bytes {}",
            run.connections,
            run.pipeline,
            run.batch,
            run.payload_bytes,
            run.keys,
            run.key_bytes,
            run.distribution,
        )?;
        writeln!(
            f,
            "  throughput  {} records/s   {} requests/s   {} bytes/s out   {} bytes/s in   over {:.1} s",
            human(self.records_per_second),
            human(self.requests_per_second),
            human(self.sent_bytes_per_second),
            human(self.received_bytes_per_second),
            self.seconds,
        )?;
        writeln!(f, "  latency     {}", line(&self.latency))?;
        for (name, latency) in [("  appends   ", &self.append), ("  reads     ", &self.read)] {
            if let Some(latency) = latency {
                writeln!(f, "{name}  {}", line(latency))?;
            }
        }
        let mut errors = String::new();
        for (name, count) in &self.errors_by_code {
            write!(errors, "   {name} {count}")?;
        }
        writeln!(f, "  errors      {}{errors}", self.errors)?;
        if self.not_found > 0 {
            writeln!(
                f,
                "  not found   {} reads of keys that were never written (see --preload)",
                self.not_found
            )?;
        }
        if self.unsent > 0 {
            writeln!(
                f,
                "  unsent      {} requests were due and never found room: the server did not keep up",
                self.unsent
            )?;
        }
        if let Some(verdict) = &self.verify {
            writeln!(
                f,
                "  verify      {} acked writes, {} keys read back, {} lost, {} wrong",
                verdict.acked_writes, verdict.checked_keys, verdict.lost, verdict.wrong
            )?;
        }
        writeln!(f, "  server      {} {}", run.to, self.server)?;
        writeln!(
            f,
            "  machine     {}, {} cores, Linux {}",
            self.machine.cpu, self.machine.cores, self.machine.kernel
        )?;
        write!(
            f,
            "  commit      {}   congestion control {}   seed {}",
            self.commit, run.congestion, run.seed
        )
    }
}

fn line(latency: &Latency) -> String {
    format!(
        "p50 {}   p90 {}   p99 {}   p99.9 {}   max {}",
        human_us(latency.p50_us),
        human_us(latency.p90_us),
        human_us(latency.p99_us),
        human_us(latency.p999_us),
        human_us(latency.max_us)
    )
}
