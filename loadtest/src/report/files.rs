//! `--output DIR`: the files that a published figure is kept with.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2Serializer;
use hdrhistogram::serialization::interval_log::IntervalLogWriterBuilder;
use plotters::prelude::*;

use super::{Summary, human_us};
use crate::generator::Phase;
use crate::timeline::Span;

/// Writes all of them; the directory is made if it is not there.
pub fn write(
    directory: &Path,
    summary: &Summary,
    all_ns: &Histogram<u64>,
    spans: &[Span],
    began: SystemTime,
) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    let file = |name: &str| -> anyhow::Result<BufWriter<File>> {
        let path = directory.join(name);
        Ok(BufWriter::new(
            File::create(&path).with_context(|| format!("writing {}", path.display()))?,
        ))
    };
    let mut json = file("summary.json")?;
    serde_json::to_writer_pretty(&mut json, summary)?;
    writeln!(json)?;
    json.flush()?;
    percentiles(file("latency.csv")?, all_ns)?;
    timeline(file("timeline.csv")?, spans)?;
    interval_log(file("latency.hlog")?, summary, spans, began)?;
    plot(&directory.join("latency.svg"), summary, all_ns)
}

/// The percentile curve: one row per step of the HDR iteration.
fn percentiles(out: BufWriter<File>, all_ns: &Histogram<u64>) -> anyhow::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    csv.write_record(["percentile", "latency_us", "count_until"])?;
    let mut count = 0;
    for value in all_ns.iter_quantiles(5) {
        count += value.count_since_last_iteration();
        csv.write_record([
            format!("{:.6}", value.quantile_iterated_to() * 100.0),
            format!("{:.3}", value.value_iterated_to() as f64 / 1e3),
            count.to_string(),
        ])?;
    }
    Ok(csv.flush()?)
}

/// A row per interval and phase.
fn timeline(out: BufWriter<File>, spans: &[Span]) -> anyhow::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    let names = [
        "second",
        "phase",
        "records_per_second",
        "requests_per_second",
        "p50_us",
        "p99_us",
        "p999_us",
        "max_us",
        "errors",
        "backlog",
    ];
    csv.write_record(names)?;
    for span in spans {
        // The drain ends when it is done, so that it has no rate.
        let rate = |count: u64| match span.phase {
            Phase::Drain => String::new(),
            _ => format!("{:.0}", count as f64 / span.seconds()),
        };
        csv.write_record([
            format!("{:.3}", span.end_ns as f64 / 1e9),
            format!("{:?}", span.phase).to_lowercase(),
            rate(span.records),
            rate(span.requests),
            span.latency.p50_us.to_string(),
            span.latency.p99_us.to_string(),
            span.latency.p999_us.to_string(),
            span.latency.max_us.to_string(),
            span.failed.to_string(),
            span.backlog.to_string(),
        ])?;
    }
    Ok(csv.flush()?)
}

/// The interval log that HdrHistogram's tools read; values in nanoseconds, maxima in milliseconds.
fn interval_log(
    mut out: BufWriter<File>,
    summary: &Summary,
    spans: &[Span],
    began: SystemTime,
) -> anyhow::Result<()> {
    let mut serializer = V2Serializer::new();
    let mut log = IntervalLogWriterBuilder::new()
        .add_comment(&summary.command)
        .with_start_time(began)
        .with_base_time(began)
        .with_max_value_divisor(1e6)
        .begin_log_with(&mut out, &mut serializer)?;
    for span in spans.iter().filter(|span| span.phase != Phase::Warmup) {
        let start = Duration::from_nanos(span.start_ns);
        let length = Duration::from_nanos(span.end_ns - span.start_ns);
        log.write_histogram(&span.histogram_ns(), start, length, None)
            .map_err(|error| anyhow::anyhow!("writing latency.hlog: {error:?}"))?;
    }
    Ok(out.flush()?)
}

/// Latency over percentile, nines spread out evenly: 90, 99, 99.9 and so on are one step apart.
fn plot(path: &Path, summary: &Summary, all_ns: &Histogram<u64>) -> anyhow::Result<()> {
    let points: Vec<(f64, f64)> = all_ns
        .iter_quantiles(10)
        .filter(|value| value.quantile_iterated_to() < 1.0)
        .map(|value| {
            (
                nines(value.quantile_iterated_to()),
                (value.value_iterated_to() as f64 / 1e3).max(0.1),
            )
        })
        .collect();
    let last = points.last().map_or(1.0, |point| point.0).max(1.0);
    let top = (all_ns.max() as f64 / 1e3).max(1.0) * 1.2;
    let bottom = points.first().map_or(0.1, |point| point.1) * 0.8;
    let title = format!(
        "{} {} {}: {}, p99 {}",
        summary.run.protocol,
        summary.run.workload,
        summary.run.durability,
        format_args!("{} records/s", super::human(summary.records_per_second)),
        human_us(summary.latency.p99_us)
    );
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, (960, 540)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption(title, ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..last, (bottom..top).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("percentile")
            .y_desc("latency (us)")
            .x_labels(last.ceil() as usize + 1)
            .x_label_formatter(&|x| percentile_label(*x))
            .y_label_formatter(&|y| human_us(*y))
            .draw()?;
        chart.draw_series(LineSeries::new(
            points.iter().copied(),
            BLUE.stroke_width(2),
        ))?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow::anyhow!("drawing {}: {error}", path.display()))
}

/// 0.9 is 1, 0.99 is 2, and so on.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

/// The inverse of [`nines`], as a percentage.
fn percentile_label(nines: f64) -> String {
    let percent = 100.0 - 100.0 * 10f64.powf(-nines);
    let digits = (nines.ceil() as usize).saturating_sub(2);
    format!("{percent:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nines_are_evenly_spaced() {
        assert_eq!(
            [0.0, 1.0, 2.0, 3.0, 4.0].map(percentile_label),
            ["0", "90", "99", "99.9", "99.99"]
        );
        assert!((nines(0.999) - 3.0).abs() < 1e-9);
    }
}
