//! What the control groups above this process leave it of the machine (kernel documentation: admin-guide/cgroup-v2, and
//! cgroup-v1 where that is mounted). A limit of any group on the way up counts; the least is in force.

use serde::Serialize;

use super::{Memory, text};
use crate::system::System;

/// Limits of control groups. None: no group sets one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Groups {
    /// Bytes of memory.
    pub memory_bytes: Option<u64>,
    /// Processor time, in cores.
    pub cores: Option<f64>,
    /// Processes and threads.
    pub threads: Option<u64>,
}

/// Version 1 says "no limit" with the largest multiple of a page below 2^63.
const NO_LIMIT: u64 = 1 << 62;

impl Groups {
    /// Of this process.
    pub fn gather(system: &dyn System) -> Groups {
        // What the machine does not have is no limit.
        let machine = Memory::gather(system).total_bytes;
        let own = text(system, "/proc/self/cgroup").unwrap_or_default();
        let mounts = text(system, "/proc/self/mountinfo").unwrap_or_default();
        let least = |controller: &str, read: &dyn Fn(&str) -> Option<f64>| {
            let folders = folders(&own, &mounts, controller);
            let limits = folders.iter().filter_map(|folder| read(folder));
            limits.reduce(f64::min)
        };
        let number = |folder: &str, names: [&str; 2]| {
            let found = names
                .iter()
                .find_map(|name| text(system, &format!("{folder}/{name}")))?;
            let number: u64 = found.parse().ok()?;
            (number < NO_LIMIT).then_some(number as f64)
        };
        let cores = |folder: &str| {
            if let Some(both) = text(system, &format!("{folder}/cpu.max")) {
                return share(both.split_once(' ')?);
            }
            let quota = text(system, &format!("{folder}/cpu.cfs_quota_us"))?;
            let period = text(system, &format!("{folder}/cpu.cfs_period_us"))?;
            share((&quota, &period))
        };
        let bytes = |folder: &str| number(folder, ["memory.max", "memory.limit_in_bytes"]);
        let threads = |folder: &str| number(folder, ["pids.max", "pids.max"]);
        Groups {
            memory_bytes: least("memory", &bytes)
                .map(|bytes| bytes as u64)
                .filter(|bytes| machine == 0 || *bytes < machine),
            cores: least("cpu", &cores),
            threads: least("pids", &threads).map(|threads| threads as u64),
        }
    }
}

/// Quota and period in microseconds; `max` and -1 are no quota.
fn share((quota, period): (&str, &str)) -> Option<f64> {
    let (quota, period): (u64, u64) = (quota.parse().ok()?, period.parse().ok()?);
    (period > 0).then(|| quota as f64 / period as f64)
}

/// The folders of this process's groups that `controller` may be limited in, its own first. Both hierarchies where both are
/// mounted: a controller lives in one of them, and the files of the other are not there.
fn folders(own: &str, mounts: &str, controller: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in own.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
            continue;
        };
        let second = controllers.is_empty();
        if !second && !controllers.split(',').any(|name| name == controller) {
            continue;
        }
        let hierarchy = mounts.lines().find_map(|mount| {
            let (before, after) = mount.split_once(" - ")?;
            let mut after = after.split(' ');
            let (kind, options) = (after.next()?, after.nth(1)?);
            let is_it = match second {
                true => kind == "cgroup2",
                false => kind == "cgroup" && options.split(',').any(|name| name == controller),
            };
            let mut before = before.split(' ').skip(3);
            is_it.then_some((before.next()?, before.next()?))
        });
        let Some((root, point)) = hierarchy else {
            continue;
        };
        // A container without a namespace of groups sees its whole path, and only its own part of the tree.
        let below = match root {
            "/" => path,
            root => path.strip_prefix(root).unwrap_or(""),
        };
        let mut folder = below.trim_end_matches('/');
        loop {
            found.push(format!("{point}{folder}"));
            match folder.rfind('/') {
                Some(end) => folder = &folder[..end],
                None => break,
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::Recorded;

    fn groups(machine: &str) -> Groups {
        Groups::gather(&Recorded::parse(machine).expect("a machine"))
    }

    const SECOND: &str = "== /proc/self/mountinfo\n\
        30 25 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n\
        == /proc/self/cgroup\n0::/system.slice/pinion.service\n";

    #[test]
    fn the_least_limit_on_the_way_up_counts() {
        let found = groups(&format!(
            "{SECOND}== /sys/fs/cgroup/system.slice/pinion.service/memory.max\nmax\n\
            == /sys/fs/cgroup/system.slice/memory.max\n4294967296\n\
            == /sys/fs/cgroup/system.slice/pinion.service/cpu.max\n250000 100000\n\
            == /sys/fs/cgroup/system.slice/cpu.max\nmax 100000\n\
            == /sys/fs/cgroup/system.slice/pinion.service/pids.max\n512\n\
            == /sys/fs/cgroup/system.slice/pids.max\n64\n"
        ));
        let wanted = Groups {
            memory_bytes: Some(4 << 30),
            cores: Some(2.5),
            threads: Some(64),
        };
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_first_version_is_understood_beside_the_second() {
        let found = groups(
            "== /proc/self/mountinfo\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 /docker/a1 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            == /proc/self/cgroup\n5:cpu,cpuacct:/jobs\n4:memory:/docker/a1\n0::/\n\
            == /sys/fs/cgroup/memory/memory.limit_in_bytes\n1073741824\n\
            == /sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_quota_us\n150000\n\
            == /sys/fs/cgroup/cpu,cpuacct/jobs/cpu.cfs_period_us\n100000\n\
            == /sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us\n-1\n\
            == /sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us\n100000\n",
        );
        assert_eq!(
            (found.memory_bytes, found.cores),
            (Some(1 << 30), Some(1.5))
        );
        assert_eq!(found.threads, None);
    }

    #[test]
    fn no_limit_is_none_however_it_is_written() {
        let none = groups(&format!(
            "{SECOND}== /sys/fs/cgroup/system.slice/pinion.service/memory.max\nmax\n\
            == /sys/fs/cgroup/system.slice/pinion.service/cpu.max\nmax 100000\n"
        ));
        assert_eq!(none, Groups::default());
        let first = groups(
            "== /proc/self/mountinfo\n35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            == /proc/self/cgroup\n4:memory:/\n\
            == /sys/fs/cgroup/memory/memory.limit_in_bytes\n9223372036854771712\n",
        );
        assert_eq!(first, Groups::default());
        assert_eq!(groups("== /proc/self/cgroup\n0::/x\n"), Groups::default());
        let larger = groups(&format!(
            "{SECOND}== /proc/meminfo\nMemTotal: 1048576 kB\n\
            == /sys/fs/cgroup/system.slice/memory.max\n4294967296\n"
        ));
        assert_eq!(
            larger,
            Groups::default(),
            "the machine has a quarter of that"
        );
    }
}
