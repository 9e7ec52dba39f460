//! Where a figure comes from: machine, kernel, commit; and the folder that a published figure gets.
//!
//! It does not know what was measured.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// What stands above every result: processor, cores, memory, kernel, congestion control, commit, date.
pub fn line() -> String {
    format!(
        "{} ({} cores, {}, {} GiB), Linux {}, tcp {}, pinion {}, {}",
        processor(),
        cores().len(),
        host_kind(),
        memory_gib(),
        uring::limits::kernel_release(),
        congestion(),
        commit(),
        date()
    )
}

/// How this program was called, without the path to it.
pub fn command_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("cargo run --release -p benches -- {}", arguments.join(" "))
}

/// Cores that this process could use before it pinned anything, lowest first; one at least.
pub fn cores() -> &'static [core_affinity::CoreId] {
    static CORES: OnceLock<Vec<core_affinity::CoreId>> = OnceLock::new();
    CORES.get_or_init(|| {
        let cores = core_affinity::get_core_ids().unwrap_or_default();
        if cores.is_empty() {
            vec![core_affinity::CoreId { id: 0 }]
        } else {
            cores
        }
    })
}

/// Two cores to put the two ends of something on. False: there is only one, and both ends share it.
pub fn two_cores() -> ([core_affinity::CoreId; 2], bool) {
    let cores = cores();
    (
        [cores[0], *cores.get(1).unwrap_or(&cores[0])],
        cores.len() > 1,
    )
}

/// Bits in the kernel's set of cores; more would be outside the set.
const CORES_MAX: usize = 1024;

/// Pin the calling thread. Threads and processes that it starts afterwards begin on the same core.
///
/// # Errors
/// When the process may not use that core.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let allowed = cores();
    anyhow::ensure!(
        core < CORES_MAX && core_affinity::set_for_current(core_affinity::CoreId { id: core }),
        "cannot run on core {core}: this process may use {:?}",
        allowed.iter().map(|core| core.id).collect::<Vec<_>>()
    );
    Ok(())
}

/// `benches/runs/<date>-<kernel>-<host kind>/` of the tree that this was built from.
pub fn run_folder() -> PathBuf {
    let name = format!(
        "{}-{}-{}",
        date(),
        uring::limits::kernel_release(),
        host_kind()
    );
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("runs")
        .join(name)
}

/// Write a result into `folder`, and into its README what it is, where it comes from, and how to get it again.
///
/// Called again for the same folder it adds to the README, so that one folder can hold what was measured together.
///
/// # Errors
/// Files that cannot be written.
pub fn keep_run(
    folder: &Path,
    title: &str,
    command: &str,
    file: &str,
    write: impl FnOnce(File) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    fs::create_dir_all(folder)?;
    write(File::create(folder.join(file))?)?;
    let readme = folder.join("README.md");
    let before = fs::read_to_string(&readme).unwrap_or_default();
    let text = format!(
        "{before}{}# {title}\n\n- machine: {}\n- command: `{command}`\n- result: [{file}]({file})\n",
        if before.is_empty() { "" } else { "\n" },
        line()
    );
    fs::write(readme, text)?;
    Ok(())
}

/// TCP congestion control that a socket gets unless it asks for another.
pub fn congestion() -> String {
    fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

fn cpuinfo(field: &str) -> Option<String> {
    let text = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(field))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn processor() -> String {
    cpuinfo("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// `vm` where the processor says that a hypervisor is below it, else `metal`.
fn host_kind() -> &'static str {
    let flags = cpuinfo("flags").unwrap_or_default();
    if flags.split(' ').any(|flag| flag == "hypervisor") {
        "vm"
    } else {
        "metal"
    }
}

fn memory_gib() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or(0) / (1 << 20)
}

/// The tree's commit, with a `+` when what was built is not what is committed.
fn commit() -> String {
    let git = |arguments: &[&str]| {
        said(
            Command::new("git")
                .current_dir(env!("CARGO_MANIFEST_DIR"))
                .args(arguments),
        )
    };
    let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no", ".."])
        .is_some_and(|list| !list.is_empty());
    if changed { commit + "+" } else { commit }
}

fn date() -> String {
    said(Command::new("date").args(["-u", "+%F"])).unwrap_or_else(|| "undated".to_owned())
}

/// Standard output of a command that went well.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn pinning_hides_no_core() {
        let before = cores().len();
        std::thread::spawn(move || {
            pin(cores()[0].id).unwrap();
            assert_eq!(cores().len(), before);
        })
        .join()
        .unwrap();
        assert!(pin(1 << 20).is_err());
    }

    #[test]
    fn a_run_folder_says_where_its_figures_come_from() {
        let folder = tempfile::tempdir().unwrap();
        for file in ["a.csv", "b.csv"] {
            keep_run(folder.path(), "Title", "the command", file, |mut out| {
                Ok(out.write_all(b"x\n")?)
            })
            .unwrap();
        }
        let readme = fs::read_to_string(folder.path().join("README.md")).unwrap();
        assert!(
            readme.contains("`the command`")
                && readme.contains("(a.csv)")
                && readme.contains("(b.csv)"),
            "{readme}"
        );
        assert!(
            readme.contains(&uring::limits::kernel_release()),
            "{readme}"
        );
        assert_eq!(
            fs::read_to_string(folder.path().join("a.csv")).unwrap(),
            "x\n"
        );
    }
}
