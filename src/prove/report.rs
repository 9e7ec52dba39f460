//! The report: what was measured, the noise, and what may be said of the difference.

use std::fmt::Write as _;

use super::measure::Run;
use super::{ProveFlags, differ, each, median};

type Figure = (&'static str, fn(&Run) -> f64);

const FIGURES: [Figure; 4] = [
    ("records/s", |run| run.records_per_second),
    ("p50, us", |run| run.p50_us),
    ("p99, us", |run| run.p99_us),
    ("p99.9, us", |run| run.p999_us),
];
/// With fewer rounds a difference that no run contradicts is still chance too often.
const ROUNDS_TO_TELL: usize = 4;

/// Markdown; also what is printed.
pub(super) fn render(flags: &ProveFlags, before: &[Run], after: &[Run]) -> String {
    let mut out = format!(
        "# pinion tune prove, profile {}\n\n{} rounds in turns, {} s each, load: {}\n\n",
        flags.profile,
        before.len(),
        flags.seconds,
        if flags.load.is_empty() {
            "append, 50 connections, 1 in flight".to_owned()
        } else {
            flags.load.join(" ")
        }
    );
    out.push_str(
        "| | as it was: median (range) | tuned: median (range) | difference |\n|---|---|---|---|\n",
    );
    let mut measurable = 0;
    for (name, pick) in FIGURES {
        let (before, after) = (each(before, pick), each(after, pick));
        let change = 100.0 * (median(&after) / median(&before).max(f64::MIN_POSITIVE) - 1.0);
        let verdict = if before.len() < ROUNDS_TO_TELL {
            format!("{change:+.0} %, too few rounds to tell from chance")
        } else if differ(&before, &after) {
            measurable += 1;
            format!("{change:+.0} %")
        } else {
            "no measurable difference".to_owned()
        };
        let _ = writeln!(
            out,
            "| {name} | {} | {} | {verdict} |",
            with_range(&before),
            with_range(&after)
        );
    }
    out.push_str(if measurable == 0 {
        "\nNo measurable difference on this machine under this load: the profile is not worth its risk here, unless another load shows more.\n"
    } else {
        "\nA difference is called one where all runs of one side lie on the same side of all runs of the other.\n"
    });
    out.push_str("\n![latency](latency.svg)\n");
    out
}

fn with_range(values: &[f64]) -> String {
    let low = values.iter().copied().fold(f64::MAX, f64::min);
    let high = values.iter().copied().fold(f64::MIN, f64::max);
    format!("{:.0} ({low:.0} to {high:.0})", median(values))
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;

    fn runs(p99_us: &[f64]) -> Vec<Run> {
        p99_us
            .iter()
            .map(|p99_us| Run {
                records_per_second: 1000.0,
                p50_us: 100.0,
                p99_us: *p99_us,
                p999_us: 900.0,
                errors: 0,
                curve: Vec::new(),
            })
            .collect()
    }

    #[test]
    fn it_says_so_where_there_is_nothing() {
        let command = ProveFlags::augment_args(clap::Command::new("prove"));
        let flags = ProveFlags::from_arg_matches(&command.get_matches_from(["prove"])).unwrap();
        let before = runs(&[500.0, 520.0, 480.0, 510.0, 490.0]);
        let same = render(&flags, &before, &runs(&[505.0, 470.0, 530.0, 500.0, 495.0]));
        assert_eq!(
            same.matches("no measurable difference").count(),
            4,
            "{same}"
        );
        assert!(same.contains("No measurable difference on this machine"));
        let better = render(&flags, &before, &runs(&[250.0, 260.0, 240.0, 255.0, 245.0]));
        assert!(
            better.contains("| p99, us | 500 (480 to 520) | 250 (240 to 260) | -50 % |"),
            "{better}"
        );
        assert!(!better.contains("No measurable"));
        let few = render(&flags, &before[..2], &runs(&[250.0, 260.0]));
        assert!(few.contains("-50 %, too few rounds"), "{few}");
    }
}
