//! Filesystems that can be broken: ext4 or XFS on a loop device, over a file on disk, in a small tmpfs or on a filesystem of
//! the test's own. Gone when dropped, also when a test fails.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::skipped;

const MIB: u64 = 1 << 20;

/// What the filesystem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ext4,
    /// Takes 300 MiB at least.
    Xfs,
}

impl Kind {
    /// The command that makes one in the file that follows.
    fn make(self) -> &'static [&'static str] {
        match self {
            Kind::Ext4 => &[
                "mkfs.ext4",
                "-q",
                "-F",
                "-m",
                "0",
                "-E",
                "lazy_itable_init=0,lazy_journal_init=0",
            ],
            Kind::Xfs => &["mkfs.xfs", "-q", "-f"],
        }
    }
}

/// What a shutdown of the filesystem does with what its journal has in memory.
#[derive(Clone, Copy, Debug)]
pub enum Journal {
    Written = 1,
    Lost = 2,
}

/// Where the bytes of the device lie.
enum Beneath<'a> {
    Disk,
    /// In a tmpfs of so many MiB.
    Memory(u64),
    Directory(&'a Path),
}

/// A mounted filesystem that nobody else uses.
pub struct Ground {
    mount: PathBuf,
    image: PathBuf,
    device: String,
    memory: Option<PathBuf>,
    _around: tempfile::TempDir,
}

/// Runs a command of the system; its output, or what it complained of.
pub fn system(command: &[&str]) -> Result<String, String> {
    let output = Command::new(command[0])
        .args(&command[1..])
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{command:?}: {}", text(&output.stderr)))
    }
}

/// A ring that the kernel takes apart may hold files for a moment.
pub fn unmount(mount: &Path) -> Result<(), String> {
    let mut result = Ok(String::new());
    for _ in 0..200 {
        result = system(&["umount", path_text(mount)]);
        if result.is_ok() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    result.map(drop)
}

fn why_not(kind: Kind) -> Option<String> {
    let missing = ["losetup", kind.make()[0], "mount", "umount", "fallocate"]
        .into_iter()
        .find(|name| {
            Command::new(name)
                .arg("--version")
                .output()
                .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
        });
    if let Some(name) = missing {
        return Some(format!("{name} is not installed"));
    }
    match system(&["id", "-u"]) {
        Ok(id) if id == "0" => system(&["losetup", "--find"]).err(),
        _ => Some("not root".to_owned()),
    }
}

impl Ground {
    /// ext4 of `mib` over a sparse file in the target directory, mounted at `at`. None: it cannot be had here, which is said.
    pub fn on_disk(test: &str, at: &Path, mib: u64) -> Option<Ground> {
        Ground::of_kind(Kind::Ext4, test, at, mib)
    }

    /// The same of any kind.
    pub fn of_kind(kind: Kind, test: &str, at: &Path, mib: u64) -> Option<Ground> {
        Ground::make(kind, test, at, mib, Beneath::Disk)
    }

    /// ext4 of `mib` over a file in `directory`, which is somebody else's.
    pub fn over(test: &str, at: &Path, mib: u64, directory: &Path) -> Option<Ground> {
        Ground::make(Kind::Ext4, test, at, mib, Beneath::Directory(directory))
    }

    /// The same over a file in a tmpfs of `memory_mib`, which is smaller: what does not fit fails below the filesystem.
    pub fn in_memory(test: &str, at: &Path, mib: u64, memory_mib: u64) -> Option<Ground> {
        Ground::make(Kind::Ext4, test, at, mib, Beneath::Memory(memory_mib))
    }

    fn make(kind: Kind, test: &str, at: &Path, mib: u64, beneath: Beneath<'_>) -> Option<Ground> {
        if let Some(why) = why_not(kind) {
            skipped(test, &format!("needs root and loop devices ({why})"));
            return None;
        }
        let around = tempfile::Builder::new()
            .prefix("pinion-ground-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("the target directory can be written");
        let mut ground = Ground {
            mount: at.to_owned(),
            image: around.path().join("image"),
            device: String::new(),
            memory: None,
            _around: around,
        };
        match ground.set_up(kind, mib, beneath) {
            Ok(()) => Some(ground),
            Err(why) => {
                skipped(test, &format!("needs root and loop devices ({why})"));
                None
            }
        }
    }

    fn set_up(&mut self, kind: Kind, mib: u64, beneath: Beneath<'_>) -> Result<(), String> {
        match beneath {
            Beneath::Disk => {}
            Beneath::Memory(memory_mib) => {
                let memory = self.image.with_file_name("memory");
                std::fs::create_dir(&memory).map_err(|error| error.to_string())?;
                let size = format!("size={memory_mib}m");
                system(&[
                    "mount",
                    "-t",
                    "tmpfs",
                    "-o",
                    &size,
                    "tmpfs",
                    path_text(&memory),
                ])?;
                self.image = memory.join("image");
                self.memory = Some(memory);
            }
            Beneath::Directory(directory) => self.image = directory.join("image"),
        }
        let image_and_its_name = || {
            let file = std::fs::File::create(&self.image)?;
            file.set_len(mib * MIB)?;
            file.sync_all()?;
            std::fs::File::open(self.image.parent().expect("a directory"))?.sync_all()
        };
        image_and_its_name().map_err(|error| error.to_string())?;
        system(&[kind.make(), &[path_text(&self.image)]].concat())?;
        self.attach()
    }

    /// A device of the image, mounted.
    pub fn attach(&mut self) -> Result<(), String> {
        self.device = system(&["losetup", "--find", "--show", path_text(&self.image)])?;
        self.mount()
    }

    /// Neither mounted nor a device any more; nobody has the image open.
    pub fn detach(&mut self) -> Result<(), String> {
        self.unmount()?;
        system(&["losetup", "--detach", &self.device])?;
        self.device.clear();
        Ok(())
    }

    pub fn mount(&self) -> Result<(), String> {
        std::fs::create_dir_all(&self.mount).map_err(|error| error.to_string())?;
        system(&["mount", &self.device, path_text(&self.mount)]).map(drop)
    }

    pub fn unmount(&self) -> Result<(), String> {
        unmount(&self.mount)
    }

    /// What is on the medium now, as after a crash: unmounted, mounted again, the journal replayed.
    #[track_caller]
    pub fn remount(&self) {
        self.unmount()
            .and_then(|()| self.mount())
            .unwrap_or_else(|why| panic!("{why}"));
    }

    /// The filesystem is gone under whoever uses it, and dirty data with it: EXT4_IOC_SHUTDOWN, which is XFS_IOC_GOINGDOWN by
    /// another name.
    #[track_caller]
    pub fn shut_down(&self, journal: Journal) {
        let script = format!(
            "import fcntl, os, struct, sys\n\
            fd = os.open(sys.argv[1], os.O_RDONLY)\n\
            fcntl.ioctl(fd, 0x8004587d, struct.pack('I', {}))\n",
            journal as u32
        );
        let done = system(&["python3", "-c", &script, path_text(&self.mount)]);
        done.unwrap_or_else(|why| panic!("{why}"));
    }

    /// From now on a write to a block that holds only zeroes fails with EIO: the image loses its zeroes, and what memory there
    /// was for them goes to another file.
    #[track_caller]
    pub fn break_new_blocks(&self) {
        let memory = self.memory.as_ref().expect("a ground in memory");
        system(&["sync", "-f", path_text(&self.mount)])
            .and_then(|_| system(&["fallocate", "--dig-holes", path_text(&self.image)]))
            .unwrap_or_else(|why| panic!("{why}"));
        fill(&memory.join("ballast"));
    }

    #[track_caller]
    pub fn mend(&self) {
        let memory = self.memory.as_ref().expect("a ground in memory");
        std::fs::remove_file(memory.join("ballast")).expect("it is there");
    }
}

/// Writes a file until nothing more fits.
pub fn fill(path: &Path) -> u64 {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).expect("a new file");
    let (mut bytes, mut piece) = (0, 1 << 20);
    while piece > 0 {
        match file.write(&vec![0xaa; piece]) {
            Ok(written) => bytes += written as u64,
            Err(_) => piece /= 2,
        }
    }
    bytes
}

pub fn path_text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}

impl Drop for Ground {
    fn drop(&mut self) {
        let mounted = |path: &Path| {
            std::fs::read_to_string("/proc/self/mounts")
                .is_ok_and(|all| all.lines().any(|l| l.split(' ').nth(1) == path.to_str()))
        };
        let mut problems = Vec::new();
        if mounted(&self.mount) && self.unmount().is_err() {
            problems.extend(system(&["umount", "--lazy", path_text(&self.mount)]).err());
        }
        if !self.device.is_empty() {
            problems.extend(system(&["losetup", "--detach", &self.device]).err());
        }
        if let Some(memory) = self.memory.as_deref().filter(|memory| mounted(memory))
            && system(&["umount", path_text(memory)]).is_err()
        {
            problems.extend(system(&["umount", "--lazy", path_text(memory)]).err());
        }
        if !problems.is_empty() {
            eprintln!("left behind: {problems:?}");
        }
    }
}
