//! Kernel, containers and namespaces, capabilities, memory and limits: what this process is allowed to see and touch.

use serde::Serialize;

use super::{Choice, number, text};
use crate::system::System;

/// The kernel and what it runs on.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// As uname says it.
    pub release: String,
    /// Ends with the boot; runtime settings end with it too.
    pub boot_id: String,
    /// What the boot loader passed.
    pub command_line: String,
    /// Whether this is a guest.
    pub virtual_machine: bool,
    /// Maker and name of the machine, where the firmware says.
    pub product: Option<String>,
    /// `kernel.io_uring_disabled`: 0 allowed, 1 only for a group, 2 for nobody. None before Linux 6.6: allowed.
    pub io_uring_disabled: Option<u8>,
}

/// What this process may touch.
#[derive(Clone, Debug, Serialize)]
pub struct Environment {
    /// What shows that this is a container; None on a host.
    pub container: Option<String>,
    /// Whether the network namespace is the one that the machine started with.
    pub initial_network: bool,
    /// Identity of the network namespace.
    pub network_namespace: String,
    /// Whether /sys shows the network cards of this network namespace, not those of another.
    pub sysfs_of_this_network: bool,
    /// Whether /proc/sys is mounted read-only.
    pub proc_sys_read_only: bool,
    /// Whether /sys is mounted read-only.
    pub sysfs_read_only: bool,
    /// CAP_NET_ADMIN.
    pub network_administrator: bool,
    /// CAP_SYS_ADMIN and CAP_DAC_OVERRIDE: root, in short.
    pub system_administrator: bool,
    /// Whether systemd runs this machine.
    pub systemd: bool,
}

/// The first namespaces of processes and users have the same inodes on every kernel since 3.8.
const INITIAL_NAMESPACES: [(&str, &str); 2] =
    [("pid", "pid:[4026531836]"), ("user", "user:[4026531837]")];

impl Kernel {
    pub(super) fn gather(system: &dyn System) -> Kernel {
        let read = |path: &str| text(system, path).unwrap_or_default();
        let information = read("/proc/cpuinfo");
        let dmi = |name: &str| text(system, &format!("/sys/class/dmi/id/{name}"));
        let product: Vec<String> = [dmi("sys_vendor"), dmi("product_name")]
            .into_iter()
            .flatten()
            .collect();
        Kernel {
            release: read("/proc/sys/kernel/osrelease"),
            boot_id: read("/proc/sys/kernel/random/boot_id"),
            command_line: read("/proc/cmdline"),
            virtual_machine: text(system, "/sys/hypervisor/type").is_some()
                || information
                    .lines()
                    .filter(|line| line.starts_with("flags"))
                    .any(|line| line.split_whitespace().any(|flag| flag == "hypervisor")),
            product: Some(product.join(" ")).filter(|product| !product.is_empty()),
            io_uring_disabled: number(system, "/proc/sys/kernel/io_uring_disabled"),
        }
    }
}

impl Environment {
    pub(super) fn gather(system: &dyn System) -> Environment {
        let status = text(system, "/proc/self/status").unwrap_or_default();
        let capabilities = status
            .lines()
            .find_map(|line| line.strip_prefix("CapEff:"))
            .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
            .unwrap_or(0);
        let capable = |bit: u32| capabilities >> bit & 1 == 1;
        let mounts = text(system, "/proc/self/mountinfo").unwrap_or_default();
        // Settings of the whole machine are shown in the first namespace alone; its inode differs between kernels.
        let initial_network = text(system, "/proc/sys/net/core/netdev_budget").is_some();
        Environment {
            container: container(system, &mounts),
            initial_network,
            network_namespace: system.link("/proc/self/ns/net").unwrap_or_default(),
            sysfs_of_this_network: initial_network || sysfs_is_of_this_network(system),
            proc_sys_read_only: read_only(&mounts, "/proc/sys/net"),
            sysfs_read_only: read_only(&mounts, "/sys/class"),
            network_administrator: capable(12),
            system_administrator: capable(21) && capable(1),
            systemd: system.list("/run/systemd/system").is_ok(),
        }
    }

    /// Whether settings of the whole machine belong to somebody else; the text says why.
    #[must_use]
    pub fn not_the_host(&self) -> Option<String> {
        match &self.container {
            Some(sign) => Some(format!(
                "settings of the whole machine are not a container's to change ({sign})"
            )),
            None if !self.initial_network => Some(
                "settings of the whole machine are not changed from inside a network namespace"
                    .to_owned(),
            ),
            None => None,
        }
    }
}

/// What shows that this process is in a container. A marker file alone does not: images of containers are booted as machines
/// too, so it counts only on the layered root filesystem of a container.
fn container(system: &dyn System, mounts: &str) -> Option<String> {
    for (kind, initial) in INITIAL_NAMESPACES {
        let link = system.link(&format!("/proc/self/ns/{kind}"));
        if link.is_ok_and(|namespace| namespace != initial) {
            return Some(format!("a {kind} namespace of its own"));
        }
    }
    let root = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(4) == Some("/"))?;
    let layered = root
        .split_once(" - ")
        .is_some_and(|(_, after)| after.contains("overlay"));
    [
        "/.dockerenv",
        "/run/.containerenv",
        "/run/systemd/container",
    ]
    .into_iter()
    .find(|marker| layered && system.read(marker).is_ok())
    .map(str::to_owned)
}

/// /proc/net follows the process, /sys the mount: in another network namespace it may show the cards of the first one.
fn sysfs_is_of_this_network(system: &dyn System) -> bool {
    let table = text(system, "/proc/net/dev").unwrap_or_default();
    let mut here: Vec<&str> = table
        .lines()
        .filter_map(|line| Some(line.split_once(':')?.0.trim()))
        .collect();
    here.sort_unstable();
    let shown = super::names(system, "/sys/class/net");
    if shown
        .iter()
        .filter(|name| *name != "bonding_masters")
        .ne(here.iter())
    {
        return false;
    }
    // The same names need not be the same cards: their numbers must fit too, where the multicast table tells them.
    let numbers = text(system, "/proc/net/igmp").unwrap_or_default();
    numbers
        .lines()
        .filter(|line| !line.starts_with(['\t', ' ']))
        .all(|line| {
            let mut words = line.split_whitespace();
            let (Some(index), Some(name)) = (
                words.next().and_then(|n| n.parse::<u32>().ok()),
                words.next(),
            ) else {
                return true;
            };
            let shown: Option<u32> = number(system, &format!("/sys/class/net/{name}/ifindex"));
            shown.is_none_or(|shown| shown == index)
        })
}

/// Whether the mount that holds `path` is read-only.
fn read_only(mounts: &str, path: &str) -> bool {
    mount_options(mounts, path).is_some_and(|options| options.split(',').any(|word| word == "ro"))
}

fn mount_options<'a>(mounts: &'a str, path: &str) -> Option<&'a str> {
    let fields = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(4);
        Some((words.next()?, words.next()?))
    });
    fields
        .filter(|(point, _)| std::path::Path::new(path).starts_with(point))
        .max_by_key(|(point, _)| point.len())
        .map(|(_, options)| options)
}

/// Memory and how it is handed out.
#[derive(Clone, Debug, Serialize)]
pub struct Memory {
    /// Bytes that the kernel manages.
    pub total_bytes: u64,
    /// Transparent huge pages.
    pub huge_pages: Option<Choice>,
    /// Bytes of swap.
    pub swap_bytes: u64,
}

impl Memory {
    pub(super) fn gather(system: &dyn System) -> Memory {
        let table = text(system, "/proc/meminfo").unwrap_or_default();
        let bytes = |name: &str| {
            let line = table.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024)
        };
        Memory {
            total_bytes: bytes("MemTotal:"),
            swap_bytes: bytes("SwapTotal:"),
            huge_pages: text(system, "/sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| Choice::parse(&text)),
        }
    }
}

/// Limits of this process, and so of a server that is started from here. `unlimited` is u64::MAX.
#[derive(Clone, Debug, Serialize)]
pub struct Limits {
    /// Open files.
    pub open_files: Option<u64>,
    /// Bytes of memory that may be locked.
    pub locked_bytes: Option<u64>,
}

impl Limits {
    pub(super) fn gather(system: &dyn System) -> Limits {
        let table = text(system, "/proc/self/limits").unwrap_or_default();
        let soft = |name: &str| {
            let rest = table.lines().find_map(|line| line.strip_prefix(name))?;
            match rest.split_whitespace().next()? {
                "unlimited" => Some(u64::MAX),
                number => number.parse().ok(),
            }
        };
        Limits {
            open_files: soft("Max open files"),
            locked_bytes: soft("Max locked memory"),
        }
    }
}

/// The kernel's receive path since boot, all cores together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SoftNet {
    /// Packets taken.
    pub processed: u64,
    /// Packets dropped because a core's backlog was full.
    pub dropped: u64,
    /// Rounds that ended with packets left.
    pub squeezed: u64,
}

impl SoftNet {
    pub(crate) fn gather(system: &dyn System) -> SoftNet {
        let table = text(system, "/proc/net/softnet_stat").unwrap_or_default();
        let mut sum = SoftNet::default();
        for line in table.lines() {
            let mut columns = line
                .split_whitespace()
                .map(|hex| u64::from_str_radix(hex, 16).unwrap_or(0));
            sum.processed += columns.next().unwrap_or(0);
            sum.dropped += columns.next().unwrap_or(0);
            sum.squeezed += columns.next().unwrap_or(0);
        }
        sum
    }
}
