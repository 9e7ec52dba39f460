//! Where a figure comes from: processor, kernel, commit. Printed with every result.

use std::fs;
use std::process::Command;

use serde::Serialize;

/// The machine that the load ran on.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Processor, as the kernel names it.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Kernel release.
    pub kernel: String,
}

/// Looks at /proc; what is not there is called unknown.
pub fn machine() -> Machine {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))
        .and_then(|line| line.split_once(':'))
        .map_or("unknown", |(_, name)| name.trim());
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Machine {
        cpu: cpu.to_owned(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
        kernel: if kernel.is_empty() {
            "unknown".to_owned()
        } else {
            kernel.trim().to_owned()
        },
    }
}

/// The commit of the tree that this program was built from (`-dirty` when files differ from it), or, away from the tree, the one
/// named by `PINION_COMMIT` when it was built.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .args(["-C", env!("CARGO_MANIFEST_DIR")])
            .args(arguments)
            .output()
            .ok()?;
        output
            .status
            .success()
            .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    match git(&["rev-parse", "--short=12", "HEAD"]) {
        Some(head) => {
            let dirty = git(&["status", "--porcelain", "--untracked-files=no"])
                .is_some_and(|files| !files.is_empty());
            if dirty { format!("{head}-dirty") } else { head }
        }
        None => option_env!("PINION_COMMIT").unwrap_or("unknown").to_owned(),
    }
}
