//! Both HDR curves in one SVG, with bars where the runs of a side differ.

use std::path::Path;

use plotters::prelude::*;

use super::measure::Run;
use super::{each, median};

/// Percentiles that are drawn, evenly in nines.
const STEPS: usize = 40;
/// Up to 99.99.
const NINES_MAX: f64 = 4.0;
/// Where the spread of the runs is drawn.
const BARS: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

/// Medians of the runs at each percentile; bars from the least to the most of them.
pub(super) fn draw(path: &Path, before: &[Run], after: &[Run]) -> anyhow::Result<()> {
    let draw = || -> Result<(), Box<dyn std::error::Error>> {
        let sides = [("as it was", before, BLUE), ("tuned", after, RED)];
        let all = sides.iter().flat_map(|(_, runs, _)| runs.iter());
        let high = all.clone().map(|run| run.at(99.99)).fold(1.0, f64::max);
        let low = all.map(|run| run.at(1.0)).fold(f64::MAX, f64::min).max(0.1);
        let root = SVGBackend::new(path, (960, 540)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .caption("latency before and after tuning", ("sans-serif", 20))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(72)
            .build_cartesian_2d(0.0..NINES_MAX, (low * 0.8..high * 1.2).log_scale())?;
        chart
            .configure_mesh()
            .x_desc("percentile")
            .y_desc("us")
            .x_labels(5)
            .x_label_formatter(&|nines| percentile(*nines).to_string())
            .y_label_formatter(&|us| format!("{us:.0}"))
            .draw()?;
        for (index, (name, runs, color)) in sides.into_iter().enumerate() {
            let curve = (0..=STEPS).map(|step| {
                let nines = NINES_MAX * step as f64 / STEPS as f64;
                (nines, median(&each(runs, |run| run.at(percentile(nines)))))
            });
            chart
                .draw_series(LineSeries::new(curve, color.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color));
            chart.draw_series(BARS.iter().map(|at| {
                let values = each(runs, |run| run.at(*at));
                let low = values.iter().copied().fold(f64::MAX, f64::min);
                let high = values.iter().copied().fold(f64::MIN, f64::max);
                // Side by side, so that neither hides the other.
                let x = nines(*at) + 0.02 * index as f64;
                ErrorBar::new_vertical(x, low, median(&values), high, color.filled(), 8)
            }))?;
        }
        chart
            .configure_series_labels()
            .background_style(WHITE)
            .border_style(BLACK)
            .position(SeriesLabelPosition::UpperLeft)
            .draw()?;
        root.present()?;
        Ok(())
    };
    draw().map_err(|error| anyhow::anyhow!("drawing {}: {error}", path.display()))
}

/// 90 is 1, 99 is 2, and so on.
fn nines(percentile: f64) -> f64 {
    -(1.0 - percentile / 100.0).log10()
}

/// The inverse, rounded to what is worth reading.
fn percentile(nines: f64) -> f64 {
    let percent = 100.0 - 100.0 * 10f64.powf(-nines);
    (percent * 1000.0).round() / 1000.0
}
