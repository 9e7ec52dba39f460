//! One measurement: a server of this program on a fresh directory, the load generator against it, and what that printed.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use super::ProveFlags;

const LOAD: [&str; 4] = ["--connections", "50", "--pipeline", "1"];
const WARMUP_SECONDS: &str = "1";

/// What one run of the load test said.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Run {
    pub records_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub errors: u64,
    /// Percentile and latency in microseconds, rising: the HDR curve.
    #[serde(skip)]
    pub curve: Vec<(f64, f64)>,
}

/// How to measure.
pub(super) struct Bench<'a> {
    flags: &'a ProveFlags,
    program: PathBuf,
    loadtest: PathBuf,
}

/// Ended when dropped, its data removed.
struct Server {
    child: Child,
    data: PathBuf,
    address: String,
}

impl<'a> Bench<'a> {
    pub fn new(flags: &'a ProveFlags) -> anyhow::Result<Bench<'a>> {
        let program = std::env::current_exe().context("where is this program?")?;
        let loadtest = flags
            .loadtest
            .clone()
            .unwrap_or_else(|| program.with_file_name("loadtest"));
        if !loadtest.is_file() {
            bail!(
                "{} is not there: build it with `cargo build --release -p loadtest`, or name it with --loadtest FILE",
                loadtest.display()
            );
        }
        Ok(Bench {
            flags,
            program,
            loadtest,
        })
    }

    /// Measures once; the raw output goes to a folder of that name.
    pub fn run(&self, name: &str) -> anyhow::Result<Run> {
        let folder = self.flags.output.join(name);
        let server = self.serve().context("starting the server")?;
        let mut command = Command::new(&self.loadtest);
        command
            .args([
                "--to",
                &server.address,
                "--json",
                "--warmup-seconds",
                WARMUP_SECONDS,
            ])
            .args(["--seconds", &self.flags.seconds.to_string()])
            .arg("--output")
            .arg(&folder);
        if let Some(cores) = &self.flags.client_cores {
            command.args(["--cores", cores]);
        }
        if self.flags.load.is_empty() {
            command.args(LOAD);
        } else {
            command.args(&self.flags.load);
        }
        let done = command.stderr(Stdio::inherit()).output()?;
        if !done.status.success() {
            bail!("{command:?} ended with {}", done.status);
        }
        let mut run: Run = serde_json::from_slice(&done.stdout)
            .with_context(|| format!("what {} printed", self.loadtest.display()))?;
        if run.errors > 0 {
            bail!("{} requests failed: see {}", run.errors, folder.display());
        }
        run.curve = curve(&folder.join("latency.csv"))?;
        server.stop()?;
        Ok(run)
    }

    fn serve(&self) -> anyhow::Result<Server> {
        let data = self.flags.data.join("data");
        if data.exists() {
            bail!(
                "{} is there already: remove it, or choose another --data",
                data.display()
            );
        }
        let mut command = Command::new(&self.program);
        command
            .args([
                "serve",
                "--port",
                "0",
                "--http-port",
                "0",
                "--log",
                "warn",
                "--data",
            ])
            .arg(&data);
        if let Some(cores) = &self.flags.server_cores {
            command.args(["--cores", cores]);
        }
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().expect("piped");
        let mut server = Server {
            child,
            data,
            address: String::new(),
        };
        for line in BufReader::new(stdout).lines() {
            if let Some(rest) = line?.strip_prefix("pinion is serving native ") {
                let (address, _) = rest.split_once(' ').unwrap_or((rest, ""));
                address.clone_into(&mut server.address);
                return Ok(server);
            }
        }
        bail!("it ended with {}", server.child.wait()?)
    }
}

impl Server {
    /// A drain, as an operator does it.
    fn stop(mut self) -> anyhow::Result<()> {
        let process = i32::try_from(self.child.id()).expect("a process id");
        signal(process)?;
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the server's drain ended with {status}");
        }
        Ok(())
    }
}

fn signal(process: i32) -> anyhow::Result<()> {
    let done = Command::new("kill")
        .args(["-s", "TERM", &process.to_string()])
        .status()?;
    if !done.success() {
        bail!("SIGTERM could not be sent to {process}");
    }
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already behind a drain; otherwise something else failed, and that is the error to tell.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}

fn curve(path: &Path) -> anyhow::Result<Vec<(f64, f64)>> {
    let shown = || path.display().to_string();
    let mut reader = csv::Reader::from_path(path).with_context(shown)?;
    let mut points = Vec::new();
    for row in reader.deserialize() {
        let (percentile, latency_us, _count): (f64, f64, u64) = row.with_context(shown)?;
        points.push((percentile, latency_us));
    }
    Ok(points)
}

impl Run {
    /// Latency at a percentile: that of the curve's first step at or above it.
    pub fn at(&self, percentile: f64) -> f64 {
        let step = self.curve.iter().find(|(at, _)| *at >= percentile);
        step.or(self.curve.last()).map_or(0.0, |(_, us)| *us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_curve_is_read_at_the_first_step_above() {
        let run = Run {
            records_per_second: 1.0,
            p50_us: 1.0,
            p99_us: 1.0,
            p999_us: 1.0,
            errors: 0,
            curve: vec![(50.0, 10.0), (90.0, 20.0), (100.0, 70.0)],
        };
        assert_eq!(
            [0.0, 50.0, 50.1, 99.0, 100.0].map(|at| run.at(at)),
            [10.0, 10.0, 20.0, 70.0, 70.0]
        );
    }
}
