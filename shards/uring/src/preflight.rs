//! What must be there before a ring can work; every missing thing with its fix.
//!
//! Kernel: Linux 6.0 is needed (multishot receive), 6.1 recommended (DEFER_TASKRUN). Decided by setting up a small ring
//! rather than by the version number, because distributions carry newer io_uring code in older kernels.

use std::path::Path;

use crate::{Ring, RingConfig, file, limits};

/// Descriptors besides connections: log segments, listeners, rings, standard streams.
const DESCRIPTORS_OTHER: u64 = 512;
/// With fewer than this not even one shard starts: what it lacks would show as an error of some file that is all right.
const DESCRIPTORS_LEAST: u64 = 32;

/// One thing that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Nothing works without it; otherwise it works worse.
    pub fatal: bool,
    /// What was found, and what is needed.
    pub what: String,
    /// What to type.
    pub fix: String,
}

/// Look at everything. Empty = all is well. Raises the soft descriptor limit to the hard one on the way.
///
/// `data` must exist. `registered_bytes` is the sum over all rings of what they register and receive into.
pub fn check(data: &Path, connections_max: usize, registered_bytes: u64) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(ring());
    let nofile = limits::raise_nofile().unwrap_or_else(|_| limits::nofile().soft);
    findings.extend(descriptors(nofile, connections_max));
    findings.extend(locked_memory(
        limits::memlock().soft,
        limits::may_lock_freely(),
        registered_bytes,
    ));
    findings.extend(memory_filesystem(data).or_else(|| direct_io(data)));
    findings
}

/// A small ring, set up and closed again: whatever is wrong with the kernel or the container shows here.
fn ring() -> Option<Finding> {
    let config = RingConfig {
        entries: 4,
        recv_buffers: 1,
        recv_buffer_bytes: 4096,
        operations_max: 1,
    };
    match Ring::new(&config) {
        Ok(ring) if ring.features().missing.is_empty() => None,
        Ok(ring) => Some(Finding {
            fatal: false,
            what: format!(
                "Linux {} lacks {}",
                ring.features().kernel,
                ring.features().missing.join(", ")
            ),
            fix: "works, with more system calls per request; boot a newer kernel for less"
                .to_owned(),
        }),
        Err(error) => {
            let text = error.to_string();
            let (what, fix) = text
                .split_once(": ")
                .unwrap_or((&text, "see the kernel log: dmesg | tail"));
            Some(Finding {
                fatal: true,
                what: what.to_owned(),
                fix: fix.to_owned(),
            })
        }
    }
}

fn descriptors(found: u64, connections_max: usize) -> Option<Finding> {
    let needed = connections_max as u64 + DESCRIPTORS_OTHER;
    if found < DESCRIPTORS_LEAST {
        return Some(Finding {
            fatal: true,
            what: format!("{found} file descriptors are not enough to start"),
            fix: format!("run `ulimit -n {needed}` first (systemd: LimitNOFILE={needed})"),
        });
    }
    (found < needed).then(|| Finding {
        fatal: false,
        what: format!(
            "{found} file descriptors for {connections_max} connections, needed {needed}"
        ),
        fix: format!("ulimit -Hn {needed} (systemd: LimitNOFILE={needed})"),
    })
}

fn locked_memory(found: u64, unlimited: bool, needed: u64) -> Option<Finding> {
    (!unlimited && found < needed).then(|| Finding {
        fatal: false,
        what: format!("{found} bytes of lockable memory, needed {needed} to register buffers; going on without"),
        fix: "ulimit -l unlimited (systemd: LimitMEMLOCK=infinity, docker: --ulimit memlock=-1)".to_owned(),
    })
}

/// Newer kernels take O_DIRECT on tmpfs, and nothing of it reaches a disk.
fn memory_filesystem(data: &Path) -> Option<Finding> {
    let name = limits::filesystem_in_memory(data).ok().flatten()?;
    Some(Finding {
        fatal: true,
        what: format!(
            "{} is on {name}, which is memory: O_DIRECT reaches no disk there, and no ack outlives a power cut",
            data.display()
        ),
        fix: "choose a data directory on ext4 or XFS: findmnt -t ext4,xfs".to_owned(),
    })
}

fn direct_io(data: &Path) -> Option<Finding> {
    let path = data.join(format!(".direct-{}", std::process::id()));
    let opened = file::open_direct(&path, true);
    // A filesystem may create the file and then refuse the flag; and if nothing was created there is nothing to remove.
    let _ = std::fs::remove_file(&path);
    let error = opened.err()?;
    let unsupported = error.kind() == std::io::ErrorKind::Unsupported;
    Some(Finding {
        fatal: true,
        what: error.to_string(),
        fix: if unsupported {
            "choose a data directory on ext4 or XFS: findmnt -t ext4,xfs".to_owned()
        } else {
            format!(
                "make the directory writable: mkdir -p {0} && chown $USER {0}",
                data.display()
            )
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_connections_are_found() {
        let finding = descriptors(1024, 8192).unwrap();
        assert!(!finding.fatal && finding.fix.contains("ulimit -Hn"));
        assert_eq!(descriptors(1024, 10), None);
        assert!(descriptors(12, 10).unwrap().fatal);
    }

    #[test]
    fn memlock_matters_only_without_the_capability() {
        assert!(
            locked_memory(1 << 16, false, 1 << 20)
                .unwrap()
                .what
                .contains("65536")
        );
        assert_eq!(locked_memory(1 << 16, true, 1 << 20), None);
        assert_eq!(locked_memory(1 << 20, false, 1 << 20), None);
    }

    #[test]
    fn a_directory_without_direct_io_is_fatal() {
        let findings = check(Path::new("/proc/self"), 1, 0);
        assert!(
            findings
                .iter()
                .any(|finding| finding.fatal && !finding.fix.is_empty()),
            "{findings:?}"
        );
    }

    #[test]
    fn a_good_directory_has_no_fatal_finding() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let findings = check(dir.path(), 1, 4096);
        assert!(
            findings.iter().all(|finding| !finding.fatal),
            "{findings:?}"
        );
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
