//! The data directory: its filesystem, how that is mounted, and the disks under it, through partitions, mappings and mirrors.

use std::path::Path;

use serde::Serialize;

use super::{Choice, Interrupt, names, number, text};
use crate::system::System;

/// `nvme0q3` is the third queue of all namespaces of nvme0; a virtio disk's are called by the name of its virtio device.
fn interrupts(system: &dyn System, disk: &str) -> Vec<Interrupt> {
    let start = match disk
        .strip_prefix("nvme")
        .and_then(|rest| rest.split_once('n'))
    {
        Some((controller, _)) => format!("nvme{controller}q"),
        None => match system.link(&format!("/sys/block/{disk}/device")) {
            Ok(link) if link.contains("virtio") => {
                format!("{}-req.", link.rsplit('/').next().unwrap_or_default())
            }
            _ => return Vec::new(),
        },
    };
    let table = text(system, "/proc/interrupts").unwrap_or_default();
    Interrupt::of_queues(system, &table, |_, name| name.starts_with(&start))
}

/// Where the engine's data lie.
#[derive(Clone, Debug, Serialize)]
pub struct Data {
    /// The directory, without links.
    pub path: String,
    /// Type of the filesystem.
    pub filesystem: Option<String>,
    /// Where that is mounted.
    pub mount_point: Option<String>,
    /// Options of the mount and of the filesystem.
    pub options: Vec<String>,
    /// Whole disks under it; none for memory and network filesystems.
    pub disks: Vec<Disk>,
    /// Whether fstrim runs on a timer.
    pub fstrim_timer: bool,
}

/// A whole disk.
#[derive(Clone, Debug, Serialize)]
pub struct Disk {
    /// The kernel's name for it: `nvme0n1`.
    pub name: String,
    /// What the device calls itself.
    pub model: Option<String>,
    /// Scheduler in force, and those offered.
    pub scheduler: Option<Choice>,
    /// `write back` (volatile: an ack waits for a flush) or `write through`. Read, never changed.
    pub write_cache: Option<String>,
    /// Whether one write can be forced to the medium.
    pub fua: Option<bool>,
    /// Requests that may wait in each queue.
    pub requests_max: Option<u64>,
    /// Smallest direct transfer in bytes.
    pub logical_block_bytes: Option<u32>,
    /// What the medium writes without reading first.
    pub physical_block_bytes: Option<u32>,
    /// Microseconds of latency for which background writes are throttled; 0 never.
    pub throttle_us: Option<i64>,
    /// Largest write that is never torn, in bytes; 0 for none.
    pub atomic_write_bytes_max: Option<u64>,
    /// Interrupts of its queues, of NVMe and of a hypervisor's disks. Told and never set: the kernel spreads them over the
    /// cores itself, and refuses another affinity (IRQD_AFFINITY_MANAGED).
    pub interrupts: Vec<Interrupt>,
}

impl Disk {
    /// NVMe, with a command set made for deep queues.
    #[must_use]
    pub fn is_nvme(&self) -> bool {
        self.name.starts_with("nvme")
    }

    /// A disk of a hypervisor.
    #[must_use]
    pub fn is_virtual(&self) -> bool {
        self.name.starts_with("vd") || self.name.starts_with("xvd")
    }

    fn gather(system: &dyn System, name: &str) -> Disk {
        let path = |file: &str| format!("/sys/block/{name}/queue/{file}");
        Disk {
            name: name.to_owned(),
            model: text(system, &format!("/sys/block/{name}/device/model")),
            scheduler: text(system, &path("scheduler")).and_then(|text| Choice::parse(&text)),
            write_cache: text(system, &path("write_cache")),
            fua: number::<u8>(system, &path("fua")).map(|fua| fua == 1),
            requests_max: number(system, &path("nr_requests")),
            logical_block_bytes: number(system, &path("logical_block_size")),
            physical_block_bytes: number(system, &path("physical_block_size")),
            throttle_us: number(system, &path("wbt_lat_usec")),
            atomic_write_bytes_max: number(system, &path("atomic_write_max_bytes")),
            interrupts: interrupts(system, name),
        }
    }
}

struct Mount<'a> {
    point: String,
    device: &'a str,
    filesystem: &'a str,
    source: &'a str,
    options: Vec<String>,
}

/// The mount with the longest mount point above `path`; of equal ones the last, which hides the others.
fn mount_of<'a>(table: &'a str, path: &str) -> Option<Mount<'a>> {
    let parse = |line: &'a str| {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<&str> = before.split(' ').collect();
        let after: Vec<&str> = after.split(' ').collect();
        let mut options: Vec<String> = Vec::new();
        for option in before
            .get(5)?
            .split(',')
            .chain(after.get(2).copied().unwrap_or_default().split(','))
        {
            if !options.iter().any(|known| known == option) {
                options.push(option.to_owned());
            }
        }
        Some(Mount {
            point: before.get(4)?.replace("\\040", " "),
            device: before.get(2)?,
            filesystem: after.first()?,
            source: after.get(1)?,
            options,
        })
    };
    table
        .lines()
        .filter_map(parse)
        .filter(|mount| Path::new(path).starts_with(&mount.point))
        .max_by_key(|mount| mount.point.len())
}

/// Whole disks under a block device, found through what it is a part of or made of.
fn disks_under(system: &dyn System, name: &str, sysfs: &str, depth: usize) -> Vec<String> {
    let slaves = names(system, &format!("/sys/class/block/{name}/slaves"));
    if !slaves.is_empty() && depth < 8 {
        let mut disks = Vec::new();
        for slave in slaves {
            let link = system
                .link(&format!("/sys/class/block/{slave}"))
                .unwrap_or_default();
            disks.extend(disks_under(system, &slave, &link, depth + 1));
        }
        disks.sort();
        disks.dedup();
        return disks;
    }
    // …/block/vda/vda1 is a part of …/block/vda; …/nvme/nvme0/nvme0n1 is whole, whatever its parent.
    let mut parts = sysfs.rsplit('/').skip(1);
    let parent = parts.next().unwrap_or_default();
    if text(system, &format!("/sys/class/block/{name}/partition")).is_some() {
        return vec![parent.to_owned()];
    }
    vec![name.to_owned()]
}

impl Data {
    pub(super) fn gather(system: &dyn System, directory: &str) -> Data {
        let path = system
            .canonical(directory)
            .unwrap_or_else(|_| directory.to_owned());
        let table = text(system, "/proc/self/mountinfo").unwrap_or_default();
        let mount = mount_of(&table, &path);
        let disks = mount.as_ref().map_or_else(Vec::new, |mount| {
            // Filesystems such as btrfs have a device number of their own; their source names a real one.
            let link = system
                .link(&format!("/sys/dev/block/{}", mount.device))
                .or_else(|_| {
                    let name = mount.source.rsplit('/').next().unwrap_or_default();
                    system.link(&format!("/sys/class/block/{name}"))
                });
            link.map_or_else(
                |_| Vec::new(),
                |link| {
                    let name = link.rsplit('/').next().unwrap_or_default().to_owned();
                    disks_under(system, &name, &link, 0)
                },
            )
        });
        let timer = "timers.target.wants/fstrim.timer";
        Data {
            path,
            filesystem: mount.as_ref().map(|mount| mount.filesystem.to_owned()),
            mount_point: mount.as_ref().map(|mount| mount.point.clone()),
            options: mount.map_or_else(Vec::new, |mount| mount.options),
            disks: disks
                .iter()
                .map(|name| Disk::gather(system, name))
                .collect(),
            fstrim_timer: system.link(&format!("/etc/systemd/system/{timer}")).is_ok()
                || system
                    .link(&format!("/usr/lib/systemd/system/{timer}"))
                    .is_ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorded::Recorded;

    #[test]
    fn disks_are_found_through_partitions_mappings_and_mirrors() {
        let machine = Recorded::parse(
            "== /proc/self/mountinfo\n1 0 253:0 / / rw - ext4 /dev/mapper/root rw,discard\n\
             2 1 9:0 / /data rw,noatime - xfs /dev/md0 rw\n3 1 0:5 / /dev rw - devtmpfs x rw\n\
             == /sys/dev/block/253:0 -> ../../devices/virtual/block/dm-0\n\
             == /sys/dev/block/9:0 -> ../../devices/virtual/block/md0\n\
             == /sys/class/block/dm-0/slaves/nvme0n1p3/\n\
             == /sys/class/block/nvme0n1p3 -> ../../devices/pci/nvme/nvme0/nvme0n1/nvme0n1p3\n\
             == /sys/class/block/nvme0n1p3/partition\n3\n\
             == /sys/class/block/md0/slaves/nvme1n1/\n== /sys/class/block/md0/slaves/sda1/\n\
             == /sys/class/block/nvme1n1 -> ../../devices/pci/nvme/nvme1/nvme1n1\n\
             == /sys/class/block/sda1 -> ../../devices/pci/ata1/block/sda/sda1\n\
             == /sys/class/block/sda1/partition\n1\n",
        )
        .expect("a machine");
        let disks = |path: &str| -> Vec<String> {
            let data = Data::gather(&machine, path);
            data.disks.into_iter().map(|disk| disk.name).collect()
        };
        assert_eq!(disks("/home/x"), ["nvme0n1"]);
        assert_eq!(disks("/data/pinion"), ["nvme1n1", "sda"]);
        assert_eq!(disks("/database"), ["nvme0n1"]);
        assert_eq!(disks("/dev/shm"), [""; 0]);
        assert_eq!(Data::gather(&machine, "/").options, ["rw", "discard"]);
    }

    #[test]
    fn queues_of_disks_and_the_cores_that_their_interrupts_go_to() {
        let machine = Recorded::parse(
            "== /proc/interrupts\n      CPU0 CPU1\n 30: 1 0 PCI-MSIX-0000:00:02.0 0-edge virtio1-config\n\
             31: 0 7 PCI-MSIX-0000:00:02.0 1-edge virtio1-req.0\n 32: 0 7 PCI-MSIX-0000:00:03.0 1-edge virtio11-req.0\n\
             40: 9 0 IR-PCI-MSI 0-edge nvme1q0\n 41: 0 9 IR-PCI-MSI 1-edge nvme1q1\n 42: 0 9 IR-PCI-MSI 1-edge nvme10q1\n\
             == /proc/irq/31/smp_affinity_list\n0-1\n== /proc/irq/41/smp_affinity_list\n1\n\
             == /sys/block/vda/device -> ../../../virtio1\n",
        )
        .expect("a machine");
        let told = |disk: &str| -> Vec<(u32, usize, Vec<usize>)> {
            (interrupts(&machine, disk).into_iter())
                .map(|found| (found.number, found.queue, found.affinity))
                .collect()
        };
        assert_eq!(told("vda"), [(31, 0, vec![0, 1])]);
        assert_eq!(told("nvme1n1"), [(40, 0, vec![]), (41, 1, vec![1])]);
        assert_eq!(told("sda"), []);
    }
}
