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
    pub listeners: ListenerDrops,
}

/// What became of connections before anybody could accept them, in the whole network namespace since it began (`TcpExt` of
/// /proc/net/netstat, proc_pid_net(5)). Nothing of it is seen by the process otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListenerDrops {
    /// handshakes that were done, and found the listener's queue full
    pub overflows: u64,
    /// connections that were dropped, for that or any other reason
    pub drops: u64,
    /// handshakes that were answered without being remembered, because too many were under way (RFC 4987, section 3.6)
    pub syn_cookies: u64,
}

impl ListenerDrops {
    /// A line of names, then one of numbers.
    fn of(netstat: &str) -> ListenerDrops {
        let mut lines = netstat
            .lines()
            .filter_map(|line| line.strip_prefix("TcpExt:"));
        let (names, numbers) = (lines.next().unwrap_or(""), lines.next().unwrap_or(""));
        let named = |wanted: &str| {
            let both = names.split_whitespace().zip(numbers.split_whitespace());
            let mut found = both.filter(|(name, _)| *name == wanted);
            found.next().and_then(|(_, n)| n.parse().ok()).unwrap_or(0)
        };
        ListenerDrops {
            overflows: named("ListenOverflows"),
            drops: named("ListenDrops"),
            syn_cookies: named("SyncookiesSent"),
        }
    }
}

impl ProcessUsage {
    /// As of now. What cannot be read is 0: a scrape does not fail for it.
    pub fn read() -> ProcessUsage {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let netstat = std::fs::read_to_string("/proc/self/net/netstat").unwrap_or_default();
        let open_files = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count) as u64;
        // one of them is the directory being read
        ProcessUsage {
            resident_bytes: resident_bytes(&status),
            open_files: open_files.saturating_sub(1),
            tuning_drift: TUNING_DRIFT.load(Ordering::Relaxed),
            listeners: ListenerDrops::of(&netstat),
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

    #[test]
    fn names_and_numbers_of_netstat_lie_in_two_lines() {
        let text = "TcpExt: SyncookiesSent PruneCalled ListenOverflows ListenDrops\n\
            TcpExt: 7 1 20 300\nIpExt: InNoRoutes\nIpExt: 0\n";
        let drops = ListenerDrops {
            overflows: 20,
            drops: 300,
            syn_cookies: 7,
        };
        assert_eq!(ListenerDrops::of(text), drops);
        assert_eq!(ListenerDrops::of("TcpExt: Other"), ListenerDrops::default());
        let kernels = std::fs::read_to_string("/proc/self/net/netstat").expect("Linux");
        assert!(kernels.contains(" ListenOverflows ListenDrops "));
    }
}
