//! `pinion tune prove`: does the tuning pay here? The load test before and after, in turns, and a report that may say no.
//!
//! Every round measures untuned, applies the profile, measures again and puts everything back (`pinion tune apply` and
//! `revert`, as an operator would type them), so that a machine that drifts drifts for both sides. Owns the rounds and the
//! verdict; knows neither what is tuned nor how the load is made.

mod measure;
mod plot;
mod report;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::exit::{Failure, output, usage};
use measure::{Bench, Run};

/// Flags of `pinion tune prove`.
#[derive(Args, Debug)]
pub struct ProveFlags {
    /// Profile to apply between the measurements
    #[arg(long, value_name = "PROFILE", default_value = "throughput")]
    pub profile: String,
    /// Change this machine's settings (and put them back): without this, only what would be done is said
    #[arg(long)]
    pub yes: bool,
    /// Rounds of one measurement before and one after
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub rounds: usize,
    /// Seconds of each measurement
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub seconds: u32,
    /// Directory for the data of the servers that are measured, on the disk in question; what is made in it is removed
    #[arg(long, value_name = "DIR", default_value = "./prove-data")]
    pub data: PathBuf,
    /// Where the report goes
    #[arg(long, value_name = "DIR", default_value = "./prove")]
    pub output: PathBuf,
    /// Where apply keeps what it found; without it, where apply keeps it anyway
    #[arg(long, value_name = "DIR")]
    pub state: Option<PathBuf>,
    /// The load generator; without it the one beside this program
    #[arg(long, value_name = "FILE")]
    pub loadtest: Option<PathBuf>,
    /// Cores for the server, a list or ranges
    #[arg(long, value_name = "LIST")]
    pub server_cores: Option<String>,
    /// Cores for the load generator
    #[arg(long, value_name = "LIST")]
    pub client_cores: Option<String>,
    /// Flags of the load test, behind --; without any: --connections 50 --pipeline 1
    #[arg(last = true, value_name = "FLAGS")]
    pub load: Vec<String>,
}

/// Measures in turns, restores the host whatever happens, and writes the report.
pub fn run(flags: &ProveFlags) -> Result<(), Failure> {
    if !(2..=100).contains(&flags.rounds) {
        return Err(usage(format!(
            "--rounds {} is out of range: type 2 to 100 (5 or more let a difference be told from chance)",
            flags.rounds
        )));
    }
    let tuning = Tuning::new(flags)?;
    if !flags.yes {
        let plan = tuning.command("plan", false).status()?;
        eprintln!(
            "nothing was changed or measured: --yes applies this {} times for {} s each, measures, and puts it back",
            flags.rounds, flags.seconds
        );
        return match plan.code() {
            Some(0 | 3) => Ok(()),
            _ => Err(anyhow::anyhow!("the plan could not be made").into()),
        };
    }
    std::fs::create_dir_all(&flags.output)
        .with_context(|| format!("--output {}", flags.output.display()))?;
    let bench = Bench::new(flags)?;
    let (mut before, mut after) = (Vec::new(), Vec::new());
    for round in 0..flags.rounds {
        eprintln!("round {} of {}: as it is", round + 1, flags.rounds);
        before.push(bench.run(&format!("before-{round}"))?);
        eprintln!("round {} of {}: tuned", round + 1, flags.rounds);
        let applied = tuning.apply()?;
        let measured = bench.run(&format!("after-{round}"));
        // Also behind a measurement that failed.
        applied.revert()?;
        after.push(measured?);
    }
    let report = report::render(flags, &before, &after);
    let path = flags.output.join("report.md");
    std::fs::write(&path, &report).with_context(|| format!("writing {}", path.display()))?;
    plot::draw(&flags.output.join("latency.svg"), &before, &after)?;
    let mut out = std::io::stdout().lock();
    output(std::io::Write::write_all(&mut out, report.as_bytes()))?;
    eprintln!("report and raw output are in {}", flags.output.display());
    Ok(())
}

/// `pinion tune` of this very program.
struct Tuning {
    program: PathBuf,
    arguments: Vec<String>,
    profile: [String; 4],
}

/// The profile is in force until this is reverted, or dropped.
struct Applied<'a> {
    tuning: &'a Tuning,
    reverted: bool,
}

impl Tuning {
    fn new(flags: &ProveFlags) -> anyhow::Result<Tuning> {
        let state = flags.state.as_deref().map(Path::display);
        Ok(Tuning {
            program: std::env::current_exe().context("where is this program?")?,
            arguments: state.map_or_else(Vec::new, |state| {
                vec!["--state".to_owned(), state.to_string()]
            }),
            profile: [
                "--profile".to_owned(),
                flags.profile.clone(),
                "--data".to_owned(),
                flags.data.display().to_string(),
            ],
        })
    }

    fn command(&self, what: &str, yes: bool) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["tune", what]).args(&self.arguments);
        if what != "revert" {
            command.args(&self.profile);
        }
        if yes {
            command.arg("--yes");
        }
        command
    }

    fn apply(&self) -> anyhow::Result<Applied<'_>> {
        let applied = Applied {
            tuning: self,
            reverted: false,
        };
        let status = self
            .command("apply", true)
            .stdout(std::process::Stdio::null())
            .status()?;
        if !status.success() {
            bail!("`pinion tune apply` ended with {status}; nothing is left of it");
        }
        Ok(applied)
    }

    fn revert(&self) -> anyhow::Result<()> {
        let status = self
            .command("revert", true)
            .stdout(std::process::Stdio::null())
            .status()?;
        if !status.success() {
            bail!(
                "the settings are not all back: `pinion tune revert --yes` ended with {status}; type it again, it says what is in the way"
            );
        }
        Ok(())
    }
}

impl Applied<'_> {
    fn revert(mut self) -> anyhow::Result<()> {
        self.reverted = true;
        self.tuning.revert()
    }
}

impl Drop for Applied<'_> {
    fn drop(&mut self) {
        if !self.reverted
            && let Err(error) = self.tuning.revert()
        {
            eprintln!("{error:#}");
        }
    }
}

/// Two sets of runs differ if all of one lie on the same side of all of the other. With five of each, chance does that once in
/// 126 times (the exact rank-sum test).
fn differ(before: &[f64], after: &[f64]) -> bool {
    let bounds = |values: &[f64]| {
        values
            .iter()
            .fold((f64::MAX, f64::MIN), |(low, high), value| {
                (low.min(*value), high.max(*value))
            })
    };
    let ((low_before, high_before), (low_after, high_after)) = (bounds(before), bounds(after));
    high_before < low_after || high_after < low_before
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        odd if odd % 2 == 1 => sorted[odd / 2],
        even => (sorted[even / 2 - 1] + sorted[even / 2]) / 2.0,
    }
}

fn each(runs: &[Run], pick: impl Fn(&Run) -> f64) -> Vec<f64> {
    runs.iter().map(pick).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_one_that_no_run_contradicts() {
        assert!(differ(&[1.0, 2.0, 3.0], &[3.5, 4.0, 9.0]));
        assert!(differ(&[5.0, 6.0], &[1.0, 2.0]));
        assert!(!differ(&[1.0, 2.0, 4.0], &[3.5, 4.0, 9.0]));
        assert!(!differ(&[1.0, 1.0], &[1.0, 1.0]));
    }

    #[test]
    fn medians_of_odd_and_even_counts() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
