//! `sim`: replay one random run, or look for one that fails.
//!
//! Owns the command line and what people see. It does not know what a run does.

use std::io::Write;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use sim::random::{Options, Report, traced};

/// Runs the shipped shard on a simulated disk, clock and network, crashes it, and holds what is left against what it promised.
#[derive(Parser)]
struct Arguments {
    /// Replay this run and print everything that was done to it
    #[arg(long, conflicts_with = "seeds", required_unless_present = "seeds")]
    seed: Option<u64>,
    /// Run these, A..B
    #[arg(long, value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Lives of the machine, at most
    #[arg(long, default_value_t = Options::default().lives)]
    lives: u64,
    /// Requests of a life, at most
    #[arg(long, default_value_t = Options::default().requests)]
    requests: u64,
    /// Break no disk operation, only crash
    #[arg(long)]
    no_faults: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write it as A..B")?;
    let number = |n: &str| n.parse::<u64>().map_err(|e| format!("{n}: {e}"));
    Ok(number(from)?..number(to)?)
}

fn command(arguments: &Arguments, seed: u64) -> String {
    let faults = if arguments.no_faults {
        " --no-faults"
    } else {
        ""
    };
    format!(
        "cargo run --release -p sim -- --seed {seed} --lives {} --requests {}{faults}",
        arguments.lives, arguments.requests
    )
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let trace = arguments.seed.is_some();
    let options = Options {
        lives: arguments.lives.max(2),
        requests: arguments.requests.max(1),
        faults: !arguments.no_faults,
        trace,
        ..Options::default()
    };
    let seeds = match (&arguments.seeds, arguments.seed) {
        (Some(seeds), _) => seeds.clone(),
        (None, seed) => seed.unwrap_or(0)..seed.unwrap_or(0) + 1,
    };
    let started = Instant::now();
    let mut total = Report::default();
    for seed in seeds.clone() {
        // A panic inside the shard is a failure too, and in a release build it ends the process here.
        let again = command(&arguments, seed);
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            eprintln!("seed {seed} panicked: {info}\nshow it again: {again}");
        }));
        let (result, trace) = traced(seed, options);
        std::panic::set_hook(hook);
        // Whoever reads only the beginning (`| head`) is no error.
        let _ = std::io::stdout()
            .write_all((trace.join("\n") + if trace.is_empty() { "" } else { "\n" }).as_bytes());
        match result {
            Ok(report) => add(&mut total, report),
            Err(why) => {
                eprintln!(
                    "seed {seed} failed: {why}\nshow it again: {}",
                    command(&arguments, seed)
                );
                return ExitCode::FAILURE;
            }
        }
    }
    let Report {
        lives,
        crashes,
        crashes_in_recovery,
        faults,
        checkpoints,
        rolls,
        appends,
        records,
    } = total;
    println!(
        "{} runs in {:.1} s: {lives} lives, {crashes} crashes ({crashes_in_recovery} of them in a recovery), {faults} broken operations, \
         {checkpoints} recoveries from a checkpoint, {rolls} segment rolls, {appends} appends, {records} records at the end; every promise held",
        seeds.end - seeds.start,
        started.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

fn add(total: &mut Report, one: Report) {
    total.lives += one.lives;
    total.crashes += one.crashes;
    total.crashes_in_recovery += one.crashes_in_recovery;
    total.faults += one.faults;
    total.checkpoints += one.checkpoints;
    total.rolls += one.rolls;
    total.appends += one.appends;
    total.records += one.records;
}
