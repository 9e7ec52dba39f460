//! Starts each server in a process of its own, loads it, writes the table.
//!
//! Every figure comes from a fresh server: what an earlier load left behind in one runtime cannot help or harm it. Runs go
//! round all servers before they begin again, so that a machine that changes its mood does so for all of them.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::Context;

use super::Runtime;
use super::client::{self, Outcome, Work};
use super::ping::REPLY;
use crate::{Checksum, machine, median};

/// Who sends the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Load {
    /// redis-benchmark where it is installed, else ours.
    Auto,
    /// `redis-benchmark -t ping_mbulk` (Debian: redis-tools).
    RedisBenchmark,
    /// The client that is built in; it checks every reply.
    Own,
}

/// What is compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Servers, in the order of the table.
    pub runtimes: Vec<Runtime>,
    /// Requests in flight per connection, one table row each.
    pub pipelines: Vec<usize>,
    /// Connections of the client.
    pub connections: usize,
    /// Per server and pipeline; the figure is their median.
    pub runs: usize,
    /// Requests of a run with one in flight; deeper pipelines send up to 32 times as many.
    pub requests: u64,
    /// Core of the server.
    pub server_core: usize,
    /// Core of the client.
    pub client_core: usize,
    /// Who sends.
    pub load: Load,
    /// Where table and README go; None: standard output only.
    pub output: Option<PathBuf>,
}

#[derive(serde::Serialize)]
struct Row {
    runtime: &'static str,
    version: String,
    client: String,
    connections: usize,
    pipeline: usize,
    requests: u64,
    runs: usize,
    per_second: f64,
    per_second_min: f64,
    per_second_max: f64,
    /// Of all threads of the server, spinning included; median.
    server_cpu_us_per_request: f64,
    /// Of what the client has checked the replies to be; empty where it does not look at them.
    hash: String,
}

/// What one run measured.
#[derive(Clone, Copy)]
struct Run {
    outcome: Outcome,
    server_cpu_us: f64,
}

/// Compare, print the table, keep it.
///
/// # Errors
/// A server that does not start or stops answering; a core that is not to be had.
pub fn compare(comparison: &Comparison) -> anyhow::Result<()> {
    anyhow::ensure!(comparison.runs > 0, "--runs 0 measures nothing");
    machine::pin(comparison.client_core)?;
    let redis_benchmark = client::redis_benchmark_version();
    let (name, load): (String, fn(&Work) -> anyhow::Result<Outcome>) =
        match (comparison.load, redis_benchmark) {
            (Load::RedisBenchmark, None) => {
                anyhow::bail!("no redis-benchmark here: apt install redis-tools, or --client own")
            }
            (Load::Auto | Load::RedisBenchmark, Some(version)) => {
                (version, client::redis_benchmark)
            }
            (Load::Auto | Load::Own, _) => ("own".to_owned(), client::own),
        };
    let command = machine::command_line();
    println!("# {}", machine::line());
    println!("# {command}");
    println!(
        "# server on core {}, client on core {}",
        comparison.server_core, comparison.client_core
    );
    let cases: Vec<(usize, Runtime)> = comparison
        .pipelines
        .iter()
        .flat_map(|pipeline| {
            comparison
                .runtimes
                .iter()
                .map(move |runtime| (*pipeline, *runtime))
        })
        .collect();
    let mut measured = vec![Vec::new(); cases.len()];
    for round in 1..=comparison.runs {
        for ((pipeline, runtime), runs) in cases.iter().zip(&mut measured) {
            let run = measure(comparison, *runtime, *pipeline, load)
                .with_context(|| format!("{}, pipeline {pipeline}, run {round}", runtime.name()))?;
            eprintln!(
                "# run {round}: {}, pipeline {pipeline}: {:.0}/s",
                runtime.name(),
                run.outcome.per_second
            );
            runs.push(run);
        }
    }
    let rows: Vec<Row> = cases
        .iter()
        .zip(&measured)
        .map(|((pipeline, runtime), runs)| row(comparison, *runtime, *pipeline, &name, runs))
        .collect();
    write(&rows, std::io::stdout().lock())?;
    if let Some(folder) = &comparison.output {
        machine::keep_run(
            folder,
            "Runtime comparison",
            &command,
            "runtimes.csv",
            |file| write(&rows, file),
        )?;
        println!("# kept in {}", folder.display());
    }
    Ok(())
}

fn write(rows: &[Row], out: impl Write) -> anyhow::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    for row in rows {
        csv.serialize(row)?;
    }
    Ok(csv.flush()?)
}

fn row(
    comparison: &Comparison,
    runtime: Runtime,
    pipeline: usize,
    client: &str,
    runs: &[Run],
) -> Row {
    let sorted = |value: fn(&Run) -> f64| {
        let mut values: Vec<f64> = runs.iter().map(value).collect();
        values.sort_unstable_by(f64::total_cmp);
        values
    };
    let rates = sorted(|run| run.outcome.per_second.round());
    let cpu = sorted(|run| run.server_cpu_us / run.outcome.requests as f64);
    let requests = runs[0].outcome.requests;
    let hash = if client == "own" {
        let mut checksum = Checksum::default();
        checksum.add_bytes(REPLY);
        checksum.add(requests);
        format!("{:016x}", checksum.finish())
    } else {
        String::new()
    };
    Row {
        runtime: runtime.name(),
        version: version(runtime),
        client: client.to_owned(),
        connections: comparison.connections,
        pipeline,
        requests,
        runs: runs.len(),
        per_second: median(&rates),
        per_second_min: rates[0],
        per_second_max: rates[rates.len() - 1],
        server_cpu_us_per_request: (median(&cpu) * 1000.0).round() / 1000.0,
        hash,
    }
}

fn measure(
    comparison: &Comparison,
    runtime: Runtime,
    pipeline: usize,
    load: fn(&Work) -> anyhow::Result<Outcome>,
) -> anyhow::Result<Run> {
    let server = Server::start(runtime, comparison.server_core)?;
    let work = Work {
        address: server.address,
        connections: comparison.connections,
        pipeline,
        requests: comparison.requests * pipeline.clamp(1, 32) as u64,
    };
    let warm_up = Work {
        requests: work.requests / 10,
        ..work
    };
    load(&warm_up)?;
    let before = server.cpu_ns()?;
    let outcome = load(&work)?;
    let server_cpu_us = (server.cpu_ns()? - before) as f64 / 1000.0;
    Ok(Run {
        outcome,
        server_cpu_us,
    })
}

/// A server process; ended when this is dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(runtime: Runtime, core: usize) -> anyhow::Result<Server> {
        let child = Command::new(std::env::current_exe()?)
            .args(["serve", runtime.name(), "--core", &core.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        // From here on the child ends with this value, whatever happens next.
        let mut server = Server {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
        };
        let output = server
            .child
            .stdout
            .take()
            .context("standard output is a pipe")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        server.address = line
            .trim()
            .parse()
            .with_context(|| format!("the server said {line:?} instead of its address"))?;
        Ok(server)
    }

    /// CPU time of all threads, nanoseconds.
    fn cpu_ns(&self) -> anyhow::Result<u64> {
        let mut total = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let path = task?.path().join("schedstat");
            let text =
                std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let first = text
                .split_whitespace()
                .next()
                .context("schedstat is three numbers")?;
            total += first.parse::<u64>()?;
        }
        Ok(total)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As the lock file has it.
fn version(runtime: Runtime) -> String {
    let package = match runtime.name() {
        "ring" => "uring",
        "glommio" => "glommio-ng",
        name => name,
    };
    locked_version(include_str!("../../../Cargo.lock"), package)
        .unwrap_or("unknown")
        .to_owned()
}

fn locked_version<'a>(lock: &'a str, package: &str) -> Option<&'a str> {
    let name = format!("name = \"{package}\"");
    let mut lines = lock.lines().skip_while(|line| *line != name);
    lines
        .nth(1)?
        .strip_prefix("version = \"")?
        .strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_lock_file() {
        assert_eq!(
            locked_version(include_str!("../../../Cargo.lock"), "uring"),
            Some("0.1.0")
        );
        assert_eq!(
            locked_version("name = \"a-b\"\nversion = \"1\"\n", "a"),
            None
        );
        assert_eq!(version(Runtime::Ring), "0.1.0");
    }
}
