//! `pinion tune probe`: what the device under a data directory does, for some seconds, and what `serve` makes of it.
//!
//! Durable writes by size, depth and method, reads by depth, written against reserved space, on a raw ring (`ring`) as the
//! log does them and through glommio (`executor`) as the offline tools do. The result is the device profile that the next
//! start reads, a table and a plot (`report`). Knows the device only through files in the data directory.

mod executor;
mod plot;
mod report;
mod ring;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use shard::profile::{LARGE_WRITES_IN_FLIGHT_MAX, Profile, SyncLatency, percentiles};

use crate::exit::{Failure, output, usage};

/// Bytes of each scratch file.
const SPAN_BYTES: u64 = 64 << 20;
const WRITE_BYTES: [usize; 5] = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20];
const WRITE_DEPTHS: [usize; 5] = [1, 2, 4, 8, 16];
const READ_DEPTHS: [usize; 6] = [1, 2, 4, 8, 16, 32];
const EXECUTOR_DEPTHS: [usize; 3] = [1, 4, 16];
/// What reads and single durable writes are measured with: a cold key, a lone ack.
const SMALL_BYTES: usize = 4 << 10;
/// What decides how many large writes are worth having in flight.
const LARGE_BYTES: usize = 256 << 10;
/// So much of the best throughput is enough: what lies above is noise, and depth costs latency.
const NEARLY_BEST: f64 = 0.95;

/// Flags of `pinion tune probe`.
#[derive(Args, Debug)]
pub struct ProbeFlags {
    /// Data directory whose device is measured; made if it is not there
    #[arg(
        long,
        value_name = "DIR",
        env = "PINION_DATA",
        default_value = "./data"
    )]
    pub data: PathBuf,
    /// How long to measure, about; 2 to 10
    #[arg(long, value_name = "SECONDS", default_value_t = 6.0)]
    pub seconds: f64,
    /// Where the plot goes; without it DIR/device.svg
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub json: bool,
}

/// A way to a durable write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Method {
    /// RWF_DSYNC on the write.
    Dsync,
    /// A file opened with O_DSYNC.
    OpenDsync,
    /// A write, then fdatasync.
    Fdatasync,
}

const METHODS: [Method; 3] = [Method::Dsync, Method::OpenDsync, Method::Fdatasync];

/// One operation, over and over, so many in flight.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    operations: u64,
    p50_us: f64,
    p99_us: f64,
    bytes_per_second: f64,
}

impl Series {
    fn new(latencies: Vec<Duration>, bytes: usize, took: Duration) -> Series {
        let operations = latencies.len() as u64;
        let SyncLatency { p50_us, p99_us } = percentiles(latencies);
        let bytes_per_second =
            operations as f64 * bytes as f64 / took.as_secs_f64().max(f64::MIN_POSITIVE);
        Series {
            operations,
            p50_us,
            p99_us,
            bytes_per_second,
        }
    }
}

/// Durable writes of one size at one depth.
#[derive(Clone, Debug, Serialize)]
struct WriteCell {
    method: Method,
    bytes: usize,
    depth: usize,
    #[serde(flatten)]
    series: Series,
}

/// Something by depth.
#[derive(Clone, Debug, Serialize)]
struct DepthCell {
    depth: usize,
    #[serde(flatten)]
    series: Series,
}

/// glommio at one depth.
#[derive(Clone, Debug, Serialize)]
struct ExecutorCell {
    depth: usize,
    write_then_fdatasync: Series,
    reads: Series,
}

/// Everything that was measured.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    writes: Vec<WriteCell>,
    reads_4k: Vec<DepthCell>,
    /// Single 4 KiB writes with RWF_DSYNC into written extents, and into reserved ones.
    written_4k: Series,
    unwritten_4k: Series,
    executor_4k: Vec<ExecutorCell>,
    /// Kernel threads (io-wq) that had to do what the ring could not do without waiting: behind writes that sync by
    /// themselves, and behind reads and everything else. fdatasync is always handed to one.
    workers_after_writes: usize,
    workers_after_all: usize,
}

/// Measures, prints, draws, and keeps the profile.
pub fn run(flags: &ProbeFlags) -> Result<(), Failure> {
    if !(2.0..=10.0).contains(&flags.seconds) {
        return Err(usage(format!(
            "--seconds {} is out of range: type 2 to 10",
            flags.seconds
        )));
    }
    let data = &flags.data;
    std::fs::create_dir_all(data).with_context(|| format!("--data {}", data.display()))?;
    let started = Instant::now();
    let measured = measure(flags).with_context(|| format!("probing {}", data.display()))?;
    let profile = profile(flags, &measured)
        .with_context(|| format!("measuring durable writes in {}", data.display()))?;
    let before = Profile::stored(data);
    profile
        .store(data)
        .with_context(|| format!("keeping the profile in {}", data.display()))?;
    let plot = flags
        .plot
        .clone()
        .unwrap_or_else(|| data.join("device.svg"));
    plot::draw(&plot, &measured, &profile)?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        return Ok(output(report::json(&mut out, &measured, &profile))?);
    }
    let seconds = started.elapsed().as_secs_f64();
    output(report::tables(&mut out, &measured, &profile, seconds))?;
    Ok(output(report::conclusion(
        &mut out, &profile, before, data, &plot,
    ))?)
}

fn measure(flags: &ProbeFlags) -> anyhow::Result<Measured> {
    let cells = METHODS.len() * WRITE_BYTES.len() * WRITE_DEPTHS.len()
        + READ_DEPTHS.len()
        + 2 * EXECUTOR_DEPTHS.len()
        + 3;
    let each = Duration::from_secs_f64(flags.seconds / cells as f64);
    // Whoever is busy near the disk makes its writes wait for a scheduler tick; the shards give way, so this does.
    let _ = uring::scheduling::give_way_to_workers();
    let mut bench = ring::Bench::new(&flags.data)?;
    // First, while the ring has no kernel thread yet: one that is there later came with these.
    let written_4k = bench.writes(Method::Dsync, SMALL_BYTES, 1, each)?;
    bench.writes(Method::OpenDsync, LARGE_BYTES, 4, each)?;
    let workers_after_writes = ring::worker_threads();
    let mut writes = Vec::new();
    for bytes in WRITE_BYTES {
        for depth in WRITE_DEPTHS {
            // The methods next to each other, so that a busy moment hits all of them.
            for method in METHODS {
                let series = bench.writes(method, bytes, depth, each)?;
                writes.push(WriteCell {
                    method,
                    bytes,
                    depth,
                    series,
                });
            }
        }
    }
    let unwritten_4k = bench.unwritten_writes(SMALL_BYTES, 1, each)?;
    let mut reads_4k = Vec::new();
    for depth in READ_DEPTHS {
        let series = bench.reads(SMALL_BYTES, depth, each)?;
        reads_4k.push(DepthCell { depth, series });
    }
    let workers_after_all = ring::worker_threads();
    drop(bench);
    let executor_4k = executor::measure(&flags.data, SMALL_BYTES, &EXECUTOR_DEPTHS, each)?
        .into_iter()
        .map(|(depth, write_then_fdatasync, reads)| ExecutorCell {
            depth,
            write_then_fdatasync,
            reads,
        })
        .collect();
    Ok(Measured {
        writes,
        reads_4k,
        written_4k,
        unwritten_4k,
        executor_4k,
        workers_after_writes,
        workers_after_all,
    })
}

impl Measured {
    fn write(&self, method: Method, bytes: usize, depth: usize) -> &Series {
        let cell = self
            .writes
            .iter()
            .find(|cell| (cell.method, cell.bytes, cell.depth) == (method, bytes, depth));
        &cell.expect("every cell was measured").series
    }
}

/// What `serve` goes by: the method and what one durable write takes, measured as a first start does (in turns, longer than
/// a cell of the table, so that a busy moment decides nothing), and how many large ones are worth having in flight.
fn profile(flags: &ProbeFlags, measured: &Measured) -> std::io::Result<Profile> {
    let mut profile = Profile::measure(&flags.data)?;
    // How many the device takes hardly depends on the method; the middle one of three forgets one busy moment.
    let rates = WRITE_DEPTHS.map(|depth| {
        let rate = |method| measured.write(method, LARGE_BYTES, depth).bytes_per_second;
        let mut rates = METHODS.map(rate);
        rates.sort_by(f64::total_cmp);
        (depth, rates[1])
    });
    profile.large_writes_in_flight = Some(enough(&rates).min(LARGE_WRITES_IN_FLIGHT_MAX));
    Ok(profile)
}

/// The smallest depth that gives nearly the best rate; two at least, so that one write is on its way while the next is made.
fn enough(rates: &[(usize, f64)]) -> usize {
    let best = rates.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
    let least = rates
        .iter()
        .find(|(_, rate)| *rate >= NEARLY_BEST * best)
        .map_or(2, |(depth, _)| *depth);
    least.max(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_goes_no_further_than_it_pays() {
        let rates = |rates: [f64; 5]| {
            let rates: Vec<(usize, f64)> = WRITE_DEPTHS.into_iter().zip(rates).collect();
            enough(&rates)
        };
        assert_eq!(rates([100.0, 180.0, 300.0, 390.0, 400.0]), 8);
        assert_eq!(rates([100.0, 180.0, 300.0, 390.0, 600.0]), 16);
        // A device that is saturated by one still gets two: the host's time lies between them.
        assert_eq!(rates([400.0, 400.0, 390.0, 400.0, 400.0]), 2);
    }

    #[test]
    fn a_series_knows_its_rate() {
        let series = Series::new(
            vec![Duration::from_micros(100); 50],
            4096,
            Duration::from_millis(10),
        );
        assert_eq!((series.operations, series.p50_us), (50, 100.0));
        assert!((series.bytes_per_second - 50.0 * 4096.0 * 100.0).abs() < 1.0);
    }
}
