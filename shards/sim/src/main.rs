//! `sim`: replay one random run, or look for one that fails.
//!
//! Owns the command line, the search and what people see. It does not know what a run does.

mod shorten;

use std::cell::Cell;
use std::io::Write;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use sim::machine::Mutant;
use sim::random::{Options, Report, traced};

thread_local! {
    /// The seed that this thread runs, for whoever panics.
    static SEED: Cell<u64> = const { Cell::new(0) };
}

/// Runs the shipped shard on a simulated disk, clock and network, crashes it, and holds what is left against what it promised.
#[derive(Parser, Clone, Debug)]
#[command(name = "sim")]
struct Arguments {
    /// Replay this run and print everything that was done to it
    #[arg(long, conflicts_with = "seeds", required_unless_present = "seeds")]
    seed: Option<u64>,
    /// Search these, A..B (A..: without an end, for --minutes)
    #[arg(long, value_parser = range)]
    seeds: Option<Range<u64>>,
    /// Stop the search after so many minutes
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads of the search
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Lives of the machine, at most
    #[arg(long, default_value_t = Options::default().lives)]
    lives: u64,
    /// Requests of a life, at most
    #[arg(long, default_value_t = Options::default().requests)]
    requests: u64,
    /// Break no disk operation and no connection, only crash
    #[arg(long)]
    no_faults: bool,
    /// Do not print the trace of --seed, nor look for a shorter run that fails
    #[arg(long)]
    quiet: bool,
    /// Let the device lie all the time: the search must then fail (a test of the tests)
    #[arg(long, hide = true, value_parser = Mutant::by_name)]
    mutant: Option<Mutant>,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("write it as A..B")?;
    let number = |n: &str| n.parse::<u64>().map_err(|e| format!("{n}: {e}"));
    let range = number(from)?..if to.is_empty() { u64::MAX } else { number(to)? };
    if range.is_empty() {
        return Err("there is no seed between them".into());
    }
    Ok(range)
}

impl Arguments {
    fn options(&self) -> Options {
        Options {
            lives: self.lives.max(2),
            requests: self.requests.max(1),
            faults: !self.no_faults,
            mutant: self.mutant.unwrap_or_default(),
            trace: self.seed.is_some() && !self.quiet,
        }
    }

    /// What shows one seed again, as arguments.
    fn again(&self, seed: u64) -> Vec<String> {
        let mut words = vec!["--seed".into(), seed.to_string()];
        let usual = Options::default();
        for (name, value, usual) in [
            ("--lives", self.lives, usual.lives),
            ("--requests", self.requests, usual.requests),
        ] {
            if value != usual {
                words.extend([name.into(), value.to_string()]);
            }
        }
        if self.no_faults {
            words.push("--no-faults".into());
        }
        if let Some(mutant) = self.mutant {
            words.extend(["--mutant".into(), mutant.name().into()]);
        }
        words
    }

    /// Say how a seed that failed is seen again, at its shortest.
    fn tell(&self, seed: u64) {
        let command =
            |words: &[String]| format!("cargo run --release -p sim -- {}", words.join(" "));
        eprintln!("show it again: {}", command(&self.again(seed)));
        if !self.quiet {
            let shorter = shorten::shortest(self, seed);
            eprintln!("the shortest way: {}", command(&shorter.again(seed)));
        }
    }
}

/// What the threads of a search share.
struct Search {
    arguments: Arguments,
    next: AtomicU64,
    end: u64,
    until: Option<Instant>,
    done: AtomicU64,
    failed: AtomicBool,
    total: Mutex<Report>,
}

impl Search {
    fn work(&self) {
        let options = self.arguments.options();
        while !self.failed.load(Ordering::Relaxed)
            && self.until.is_none_or(|until| Instant::now() < until)
        {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed >= self.end {
                break;
            }
            SEED.set(seed);
            let (result, trace) = traced(seed, options);
            if !trace.is_empty() {
                // Whoever reads only the beginning (`| head`) is no error.
                let _ = std::io::stdout().write_all((trace.join("\n") + "\n").as_bytes());
            }
            match result {
                Ok(report) => {
                    self.done.fetch_add(1, Ordering::Relaxed);
                    self.total
                        .lock()
                        .expect("nobody panics with the sum in hand")
                        .add(&report);
                }
                Err(why) => {
                    if !self.failed.swap(true, Ordering::Relaxed) {
                        eprintln!("seed {seed} failed: {why}");
                        self.arguments.tell(seed);
                    }
                }
            }
        }
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let (first, end) = match (&arguments.seeds, arguments.seed) {
        (Some(seeds), _) => (seeds.start, seeds.end),
        (None, seed) => (seed.unwrap_or(0), seed.unwrap_or(0).saturating_add(1)),
    };
    if end == u64::MAX && arguments.minutes.is_none() {
        eprintln!("a search without an end needs --minutes: sim --seeds {first}.. --minutes 10");
        return ExitCode::from(2);
    }
    let started = Instant::now();
    let search = Search {
        next: AtomicU64::new(first),
        end,
        until: arguments
            .minutes
            .map(|minutes| started + Duration::from_secs_f64(minutes * 60.0)),
        done: AtomicU64::new(0),
        failed: AtomicBool::new(false),
        total: Mutex::default(),
        arguments: arguments.clone(),
    };
    // A panic inside the shard is a failure too, and in a release build it ends the process behind this.
    let for_panics = arguments.clone();
    std::panic::set_hook(Box::new(move |info| {
        let seed = SEED.get();
        eprintln!("seed {seed} panicked: {info}");
        for_panics.tell(seed);
    }));
    let jobs = arguments.jobs.max(1);
    let panicked = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs).map(|_| scope.spawn(|| search.work())).collect();
        threads.into_iter().any(|thread| thread.join().is_err())
    });
    if panicked || search.failed.load(Ordering::Relaxed) {
        return ExitCode::FAILURE;
    }
    let (runs, seconds) = (
        search.done.load(Ordering::Relaxed),
        started.elapsed().as_secs_f64(),
    );
    println!(
        "{runs} runs (seeds {first}..{}) in {seconds:.1} s on {jobs} thread(s), {:.0} seeds per minute; every promise held",
        first + runs,
        runs as f64 / seconds * 60.0
    );
    println!("{}", search.total.lock().expect("all threads have ended"));
    println!(
        "0 failures in {runs} runs: under {:.2e} a run with 95 % confidence (3/N)",
        3.0 / runs.max(1) as f64
    );
    ExitCode::SUCCESS
}
