//! `pinion tune`: the host's settings, through the crate `tuning`. Flags become a profile and a machine; verdicts become text.
//!
//! Exit codes: 0 nothing to do (or done), 3 changes pending, 1 failed, 2 bad usage.

mod change;
pub mod drift;
mod text;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use tuning::apply::Request;
use tuning::check::Report;
use tuning::recorded::Recorded;
use tuning::recorder::Recorder;
use tuning::settings::{Base, Profile};
use tuning::system::Host;

use crate::exit::{self, Failure, usage};
use crate::probe::{self, ProbeFlags};
use crate::prove::{self, ProveFlags};

/// What to do with the host's settings.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Exit codes: 0 nothing to do, or done; 3 changes pending; 1 failed; 2 bad usage."
)]
pub enum TuneCommand {
    /// Show what this machine is and what would be changed, with the reasons; changes nothing
    Check(CheckFlags),
    /// Measure the device under a data directory for some seconds; `serve` goes by the result
    Probe(ProbeFlags),
    /// Print the difference between what is and what is wanted, or the script that makes it; changes nothing
    Plan(PlanFlags),
    /// Change what `plan` prints, all of it or nothing; the old values are kept for `revert`
    Apply(ChangeFlags),
    /// Read every changed setting again, and look at its effect where the kernel shows one; changes nothing
    Verify(VerifyFlags),
    /// Put every changed setting back as it was
    Revert(RevertFlags),
    /// Install files that set at boot what `plan` prints, or take them away again
    Persist(PersistFlags),
    /// Run the load test untuned and tuned, in turns, and report whether tuning pays here
    Prove(ProveFlags),
    /// Write down what `check` reads of this machine, for --machine elsewhere
    Record(RecordFlags),
}

/// What is wanted, and of which machine.
#[derive(Args, Clone, Debug)]
pub struct WantedFlags {
    /// `throughput`, `latency`, or a TOML file that extends one of them
    #[arg(long, value_name = "PROFILE", default_value = "throughput")]
    pub profile: String,
    /// Data directory: the disks under it are looked at
    #[arg(
        long,
        env = "PINION_DATA",
        value_name = "DIR",
        default_value = "./data"
    )]
    pub data: PathBuf,
    /// Also what resets the network card that the default route uses
    #[arg(long)]
    pub force: bool,
}

/// Flags of `pinion tune check`.
#[derive(Args, Debug)]
pub struct CheckFlags {
    #[command(flatten)]
    pub wanted: WantedFlags,
    #[command(flatten)]
    pub state: StateDirectory,
    /// Look at a recorded machine instead of this one (`pinion tune record`)
    #[arg(long, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Flags of `pinion tune plan`.
#[derive(Args, Debug)]
pub struct PlanFlags {
    #[command(flatten)]
    pub wanted: WantedFlags,
    #[command(flatten)]
    pub state: StateDirectory,
    /// Look at a recorded machine instead of this one (`pinion tune record`)
    #[arg(long, value_name = "FILE")]
    pub machine: Option<PathBuf>,
    /// Print a POSIX shell script that does the same
    #[arg(long)]
    pub script: bool,
}

/// Where the old values are kept.
#[derive(Args, Clone, Debug)]
pub struct StateDirectory {
    /// Directory for old values and for what was installed
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pinion/tuning")]
    pub state: PathBuf,
}

/// Flags of `pinion tune apply`.
#[derive(Args, Debug)]
pub struct ChangeFlags {
    #[command(flatten)]
    pub wanted: WantedFlags,
    #[command(flatten)]
    pub state: StateDirectory,
    /// Do it; without this the plan is printed and nothing is changed
    #[arg(long)]
    pub yes: bool,
}

/// Flags of `pinion tune verify`.
#[derive(Args, Debug)]
pub struct VerifyFlags {
    #[command(flatten)]
    pub wanted: WantedFlags,
    #[command(flatten)]
    pub state: StateDirectory,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Flags of `pinion tune revert`.
#[derive(Args, Debug)]
pub struct RevertFlags {
    #[command(flatten)]
    pub state: StateDirectory,
    /// Do it; without this the old values are printed and nothing is changed
    #[arg(long)]
    pub yes: bool,
    /// Also put back what somebody changed since
    #[arg(long, conflicts_with = "keep")]
    pub force: bool,
    /// Leave what somebody changed since as it is, and forget its old value
    #[arg(long)]
    pub keep: bool,
}

/// Flags of `pinion tune persist`.
#[derive(Args, Debug)]
pub struct PersistFlags {
    #[command(flatten)]
    pub wanted: WantedFlags,
    #[command(flatten)]
    pub state: StateDirectory,
    /// Do it; without this the files are printed and nothing is written
    #[arg(long)]
    pub yes: bool,
    /// Also the server's own unit and slice
    #[arg(long, conflicts_with = "remove")]
    pub systemd: bool,
    /// Take the installed files away again (with --force also those that were changed since)
    #[arg(long)]
    pub remove: bool,
}

/// Flags of `pinion tune record`.
#[derive(Args, Debug)]
pub struct RecordFlags {
    /// Data directory: the disks under it are recorded
    #[arg(
        long,
        env = "PINION_DATA",
        value_name = "DIR",
        default_value = "./data"
    )]
    pub data: PathBuf,
}

/// Runs one of them.
pub fn run(command: &TuneCommand) -> Result<(), Failure> {
    match command {
        TuneCommand::Check(flags) => check(flags),
        TuneCommand::Probe(flags) => probe::run(flags),
        TuneCommand::Prove(flags) => prove::run(flags),
        TuneCommand::Plan(flags) => plan(flags),
        TuneCommand::Apply(flags) => change::apply(flags),
        TuneCommand::Verify(flags) => change::verify(flags),
        TuneCommand::Revert(flags) => change::revert(flags),
        TuneCommand::Persist(flags) => change::persist(flags),
        TuneCommand::Record(flags) => record(flags),
    }
}

/// A built-in profile by name, else a file.
fn profile(name: &str) -> Result<Profile, Failure> {
    if let Some(base) = Base::ALL.into_iter().find(|base| base.name() == name) {
        return Ok(Profile::built_in(base));
    }
    let text = std::fs::read_to_string(name).map_err(|error| {
        usage(format!(
            "--profile {name}: {error}: type throughput, latency, or a file that extends one of them"
        ))
    })?;
    Profile::parse(name, &text).map_err(|error| usage(error.to_string()))
}

fn recorded(file: &Path) -> Result<Recorded, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| usage(format!("--machine {}: {error}", file.display())))?;
    Recorded::parse(&text).map_err(|error| usage(format!("--machine {}: {error}", file.display())))
}

fn path_text(path: &Path) -> Result<&str, Failure> {
    path.to_str()
        .ok_or_else(|| usage(format!("{} is not UTF-8", path.display())))
}

/// What to end with when nothing failed: 3 as long as something could be changed.
fn pending(changes: usize) -> Result<(), Failure> {
    match changes {
        0 => Ok(()),
        _ => Err(Failure::Pending),
    }
}

fn print(text: &str) -> anyhow::Result<()> {
    exit::output(std::io::stdout().lock().write_all(text.as_bytes()))
}

/// The verdicts on this machine, or on a recorded one, where nothing was ever tried.
fn report(
    wanted: &WantedFlags,
    state: &StateDirectory,
    machine: Option<&Path>,
) -> Result<Report, Failure> {
    let profile = profile(&wanted.profile)?;
    let data = path_text(&wanted.data)?;
    let Some(file) = machine else {
        let request = Request {
            system: &Host::this(),
            data,
            profile: &profile,
            force: wanted.force,
            state: path_text(&state.state)?,
        };
        return Ok(request.report());
    };
    let recorded = recorded(file)?;
    Ok(Report::of(&recorded, data, &profile, wanted.force))
}

fn check(flags: &CheckFlags) -> Result<(), Failure> {
    let report = report(&flags.wanted, &flags.state, flags.machine.as_deref())?;
    if flags.json {
        let json = serde_json::to_string_pretty(&report).context("a report is JSON")?;
        print(&format!("{json}\n"))?;
    } else {
        print(&text::report(&report))?;
    }
    pending(report.pending)
}

fn plan(flags: &PlanFlags) -> Result<(), Failure> {
    let report = report(&flags.wanted, &flags.state, flags.machine.as_deref())?;
    if flags.script {
        print(&tuning::script::script(&report))?;
    } else {
        print(&text::difference(&report))?;
    }
    pending(report.pending)
}

fn record(flags: &RecordFlags) -> Result<(), Failure> {
    let recorder = Recorder::new(Host::this());
    // Both profiles, so that whatever one of them asks is in it.
    for base in Base::ALL {
        Report::of(
            &recorder,
            path_text(&flags.data)?,
            &Profile::built_in(base),
            true,
        );
    }
    Ok(print(&recorder.text())?)
}
