//! What the kernel knows about this process. Reads /proc: some tens of microseconds, to be done once a scrape.

use std::sync::atomic::{AtomicU64, Ordering};

/// Of the process, as the host that it runs on is: whoever watches the host's settings writes it.
static TUNING_DRIFT: AtomicU64 = AtomicU64::new(0);

/// So many settings of the applied tuning are no longer as they were left.
pub fn note_tuning_drift(settings: usize) {
    TUNING_DRIFT.store(settings as u64, Ordering::Relaxed);
}

/// Figures of the process, all shards together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessUsage {
    /// resident memory
    pub resident_bytes: u64,
    /// open file descriptors
    pub open_files: u64,
    /// see [`note_tuning_drift`]
    pub tuning_drift: u64,
}

impl ProcessUsage {
    /// As of now. What cannot be read is 0: a scrape does not fail for it.
    pub fn read() -> ProcessUsage {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
        // one of them is the directory being read
        ProcessUsage {
            resident_bytes: resident_bytes(&status),
            open_files: open_files.saturating_sub(1),
            tuning_drift: TUNING_DRIFT.load(Ordering::Relaxed),
        }
    }
}

/// The line `VmRSS: 123456 kB` of /proc/self/status.
fn resident_bytes(status: &str) -> u64 {
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_read() {
        let usage = ProcessUsage::read();
        assert!(
            usage.resident_bytes > 100_000 && usage.open_files >= 3,
            "{usage:?}"
        );
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t     12 kB\n"), 12 * 1024);
        assert_eq!(resident_bytes(""), 0);
    }
}
