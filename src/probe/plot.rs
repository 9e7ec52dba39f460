//! One SVG of a probe: what a single durable write takes by size, and what several in flight move.

use std::path::Path;

use plotters::prelude::*;
use shard::profile::Profile;

use super::{LARGE_BYTES, METHODS, Measured, WRITE_BYTES, WRITE_DEPTHS};

const COLORS: [RGBColor; 3] = [BLUE, RED, GREEN];

/// Left: median latency at depth 1 over size. Right: throughput of large writes over depth. A line per method.
pub(super) fn draw(path: &Path, measured: &Measured, profile: &Profile) -> anyhow::Result<()> {
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, (1200, 520)).into_drawing_area();
        root.fill(&WHITE)?;
        let root = root.titled(
            &format!(
                "{} on {}: durable writes",
                profile.filesystem, profile.device
            ),
            ("sans-serif", 20),
        )?;
        let (left, right) = root.split_horizontally(600);
        latency_by_size(&left, measured)?;
        throughput_by_depth(&right, measured)?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow::anyhow!("drawing {}: {error}", path.display()))
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

fn latency_by_size(area: &Area<'_>, measured: &Measured) -> Drawn {
    let points = |method| {
        WRITE_BYTES.map(|bytes| {
            let kib = (bytes >> 10) as f64;
            (kib, measured.write(method, bytes, 1).p50_us.max(1.0))
        })
    };
    let all = || METHODS.into_iter().flat_map(points);
    let low = all().map(|point| point.1).fold(f64::MAX, f64::min);
    let high = all().map(|point| point.1).fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption("one at a time: median by size", ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (4.0..1024.0).log_scale().base(4.0),
            (low / 1.5..high * 1.5).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc("KiB")
        .y_desc("us")
        .x_label_formatter(&|kib| format!("{kib:.0}"))
        .y_label_formatter(&|us| format!("{us:.0}"))
        .draw()?;
    for (method, color) in METHODS.into_iter().zip(COLORS) {
        chart
            .draw_series(LineSeries::new(points(method), color.stroke_width(2)))?
            .label(method.title())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
    }
    chart
        .configure_series_labels()
        .background_style(WHITE)
        .border_style(BLACK)
        .position(SeriesLabelPosition::UpperLeft)
        .draw()?;
    Ok(())
}

fn throughput_by_depth(area: &Area<'_>, measured: &Measured) -> Drawn {
    let points = |method| {
        WRITE_DEPTHS.map(|depth| {
            let series = measured.write(method, LARGE_BYTES, depth);
            (depth as f64, series.bytes_per_second / 1e6)
        })
    };
    let high = METHODS
        .into_iter()
        .flat_map(points)
        .map(|point| point.1)
        .fold(1.0, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(
            format!("{} KiB in flight: MB/s by depth", LARGE_BYTES >> 10),
            ("sans-serif", 16),
        )
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d((1.0..16.0).log_scale().base(2.0), 0.0..high * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("writes in flight")
        .y_desc("MB/s")
        .x_label_formatter(&|depth| format!("{depth:.0}"))
        .draw()?;
    for (method, color) in METHODS.into_iter().zip(COLORS) {
        chart.draw_series(LineSeries::new(points(method), color.stroke_width(2)))?;
    }
    Ok(())
}
