//! What the disk under a path promises, as far as the kernel says.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The block device under a directory. Fields are None where the kernel does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Kernel name of the whole device (not the partition), e.g. `nvme0n1`.
    pub name: String,
    /// Type of the filesystem, e.g. `ext4`.
    pub filesystem: String,
    /// Model the device reports.
    pub model: Option<String>,
    /// Whether writes may sit in a volatile cache until a flush. Some(false): a completed write is durable.
    pub volatile_cache: Option<bool>,
    /// Whether one write can be forced to the medium (FUA); without it every durable write is followed by a flush.
    pub fua: Option<bool>,
    /// Smallest O_DIRECT transfer in bytes.
    pub logical_block_bytes: Option<u32>,
    /// What the medium writes without read-modify-write.
    pub physical_block_bytes: Option<u32>,
    /// A spinning disk.
    pub rotational: Option<bool>,
    /// The largest request the kernel passes on in one piece.
    pub largest_request_bytes: Option<u64>,
    /// The I/O scheduler in force.
    pub scheduler: Option<String>,
}

/// Look through sysfs at the device which `path` (a file or directory that exists) is on.
///
/// NotFound for filesystems on no block device (tmpfs, NFS, overlay).
pub fn device_of(path: &Path) -> io::Result<Device> {
    let mount = mount_of(path)?;
    // Filesystems such as btrfs have an anonymous device number; their source names a real one.
    let number = std::fs::metadata(path)?.dev();
    let queue_owner = sysfs(number)
        .or_else(|| {
            std::fs::metadata(&mount.source)
                .ok()
                .and_then(|source| sysfs(source.rdev()))
        })
        .ok_or_else(|| {
            let what = format!(
                "{} ({}) is on no block device",
                path.display(),
                mount.filesystem
            );
            io::Error::new(io::ErrorKind::NotFound, what)
        })?;
    Ok(Device {
        filesystem: mount.filesystem,
        ..read_queue(&queue_owner)
    })
}

/// Type of the filesystem of the nearest existing ancestor of `path`, e.g. `ext4`.
pub fn filesystem_of(path: &Path) -> io::Result<String> {
    mount_of(path).map(|mount| mount.filesystem)
}

struct Mount {
    filesystem: String,
    source: PathBuf,
}

fn mount_of(path: &Path) -> io::Result<Mount> {
    let existing = path.ancestors().find(|ancestor| ancestor.exists());
    let existing = match existing {
        Some(found) => found.canonicalize()?,
        None => std::env::current_dir()?,
    };
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    mount_in(&table, &existing).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("no mount for {}", existing.display()),
        )
    })
}

/// The mount with the longest mount point that leads to `path`; of equal ones the last, which hides the others.
fn mount_in(table: &str, path: &Path) -> Option<Mount> {
    let mounts = table.lines().filter_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let point = before.split(' ').nth(4)?.replace("\\040", " ");
        let mut rest = after.split(' ');
        let (filesystem, source) = (rest.next()?.to_owned(), PathBuf::from(rest.next()?));
        path.starts_with(&point)
            .then_some((point.len(), Mount { filesystem, source }))
    });
    mounts
        .max_by_key(|(length, _)| *length)
        .map(|(_, mount)| mount)
}

/// Directory of the device that has a queue: the device itself, or the one a partition belongs to.
fn sysfs(number: u64) -> Option<PathBuf> {
    let link = format!(
        "/sys/dev/block/{}:{}",
        libc::major(number),
        libc::minor(number)
    );
    let device = Path::new(&link).canonicalize().ok()?;
    device
        .ancestors()
        .take(2)
        .find(|directory| directory.join("queue").is_dir())
        .map(Path::to_owned)
}

fn read_queue(device: &Path) -> Device {
    let text = |name: &str| {
        std::fs::read_to_string(device.join(name))
            .ok()
            .map(|s| s.trim().to_owned())
    };
    let number = |name: &str| text(name)?.parse::<u64>().ok();
    let small = |name: &str| number(name).and_then(|n| u32::try_from(n).ok());
    Device {
        name: device
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
        filesystem: String::new(),
        model: text("device/model").filter(|model| !model.is_empty()),
        volatile_cache: text("queue/write_cache").map(|mode| mode == "write back"),
        fua: number("queue/fua").map(|fua| fua == 1),
        logical_block_bytes: small("queue/logical_block_size"),
        physical_block_bytes: small("queue/physical_block_size"),
        rotational: number("queue/rotational").map(|rotational| rotational == 1),
        largest_request_bytes: number("queue/max_sectors_kb").map(|kib| kib * 1024),
        scheduler: text("queue/scheduler").map(|line| in_force(&line)),
    }
}

/// `none [mq-deadline] kyber` -> `mq-deadline`
fn in_force(line: &str) -> String {
    let bracketed = line
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'));
    bracketed.map_or(line, |(name, _)| name).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_mount_point_wins_and_the_last_of_equals() {
        let table = "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n\
                     2 1 0:5 / /var rw shared:1 - btrfs /dev/sdb rw\n\
                     3 1 0:6 / /var/my\\040data rw - xfs /dev/sdc rw\n\
                     4 1 0:7 / /var rw - tmpfs tmpfs rw\n";
        let found = |path: &str| mount_in(table, Path::new(path)).unwrap().filesystem;
        assert_eq!(found("/etc"), "ext4");
        assert_eq!(found("/var/lib"), "tmpfs");
        assert_eq!(found("/variety"), "ext4");
        assert_eq!(found("/var/my data/x"), "xfs");
    }

    #[test]
    fn the_scheduler_in_brackets_is_in_force() {
        assert_eq!(in_force("none [mq-deadline] kyber"), "mq-deadline");
        assert_eq!(in_force("none"), "none");
    }

    #[test]
    fn proc_is_on_no_device() {
        assert_eq!(
            device_of(Path::new("/proc")).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(filesystem_of(Path::new("/proc/no/such")).unwrap(), "proc");
    }

    #[test]
    fn a_device_reports_its_block_size() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"));
        match device_of(path) {
            Ok(device) => {
                assert!(!device.name.is_empty());
                assert!(device.logical_block_bytes.unwrap().is_power_of_two());
            }
            // Built on an overlay or a network filesystem: nothing to look at.
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::NotFound),
        }
    }
}
