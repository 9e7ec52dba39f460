//! The seam to a machine: everything that the tuner reads or writes passes one of these calls.
//!
//! `Host` is the machine itself, or one below a directory. A recorded machine (`recorded`) and the faulty ones of the tests are
//! others. Paths are absolute, as the machine itself would name them. Nothing here knows what a setting means.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the tuner may ask of a machine.
pub trait System {
    /// The whole text of a file.
    fn read(&self, path: &str) -> io::Result<String>;
    /// Names in a directory, sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    /// Where a symbolic link points.
    fn link(&self, path: &str) -> io::Result<String>;
    /// The path without links; of one that does not exist, its nearest ancestor that does.
    fn canonical(&self, path: &str) -> io::Result<String>;
    /// What `ethtool QUERY NIC` prints. NotFound where there is no ethtool.
    fn ethtool(&self, query: &str, nic: &str) -> io::Result<String>;

    /// Writes a setting of the kernel: one write into a file that is there.
    fn set(&self, path: &str, value: &str) -> io::Result<()>;
    /// `ethtool FLAG NIC OPTION VALUE`.
    fn ethtool_set(&self, flag: &str, nic: &str, option: &str, value: &str) -> io::Result<()>;
    /// Puts a file in place durably: whole or not at all, whatever interrupts it.
    fn replace(&self, path: &str, text: &str) -> io::Result<()>;
    /// Makes a symbolic link; one that is there already with this target is fine.
    fn make_link(&self, path: &str, target: &str) -> io::Result<()>;
    /// Removes a file or link durably; one that is not there is fine.
    fn remove(&self, path: &str) -> io::Result<()>;
    /// Removes a directory if nothing is in it.
    fn remove_directory(&self, path: &str) -> io::Result<()>;
    /// Keeps other tuners of this machine out for as long as the lock lives. WouldBlock: one is there.
    fn lock(&self, path: &str) -> io::Result<Lock>;
}

/// Held while settings are being changed.
#[derive(Debug)]
pub struct Lock {
    _file: Option<File>,
}

impl Lock {
    /// The lock of a machine that nobody else can reach.
    #[must_use]
    pub fn alone() -> Lock {
        Lock { _file: None }
    }
}

/// The machine that this process runs on, or a tree of files that looks like one.
#[derive(Clone, Debug)]
pub struct Host {
    root: PathBuf,
}

impl Host {
    /// This machine.
    #[must_use]
    pub fn this() -> Host {
        Host::below(Path::new("/"))
    }

    /// The tree below `root`.
    #[must_use]
    pub fn below(root: &Path) -> Host {
        Host {
            root: root.to_owned(),
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Runs ethtool; its own words on standard error become the error.
    fn run_ethtool(&self, arguments: &[&str]) -> io::Result<String> {
        // Not everybody's PATH has the directories of administrators.
        let mut result = Err(io::Error::from(io::ErrorKind::NotFound));
        for program in ["ethtool", "/usr/sbin/ethtool", "/sbin/ethtool"] {
            result = Command::new(program).args(arguments).output();
            if !matches!(&result, Err(error) if error.kind() == io::ErrorKind::NotFound) {
                break;
            }
        }
        let output = result?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        let kind = if said.contains("not supported") {
            io::ErrorKind::Unsupported
        } else if said.contains("not permitted") {
            io::ErrorKind::PermissionDenied
        } else {
            io::ErrorKind::Other
        };
        Err(io::Error::new(
            kind,
            format!("ethtool {}: {said}", arguments.join(" ")),
        ))
    }
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Like create_dir_all, and what was made is there after a crash too.
fn make_directories(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = directory.parent().unwrap_or(Path::new("/"));
    make_directories(parent)?;
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_directory(parent),
    }
}

impl System for Host {
    fn read(&self, path: &str) -> io::Result<String> {
        fs::read(self.at(path)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = fs::read_dir(self.at(path))?
            .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
            .collect::<io::Result<Vec<String>>>()?;
        names.sort();
        Ok(names)
    }

    fn link(&self, path: &str) -> io::Result<String> {
        fs::read_link(self.at(path)).map(|target| target.to_string_lossy().into_owned())
    }

    fn canonical(&self, path: &str) -> io::Result<String> {
        let absolute = std::path::absolute(path)?;
        let existing = absolute
            .ancestors()
            .map(|ancestor| self.at(&ancestor.to_string_lossy()))
            .find(|ancestor| ancestor.exists())
            .ok_or(io::ErrorKind::NotFound)?;
        let found = existing.canonicalize()?;
        let below = found
            .strip_prefix(&self.root)
            .map_err(|_| io::ErrorKind::NotFound)?;
        Ok(Path::new("/").join(below).to_string_lossy().into_owned())
    }

    fn ethtool(&self, query: &str, nic: &str) -> io::Result<String> {
        self.run_ethtool(&[query, nic])
    }

    fn set(&self, path: &str, value: &str) -> io::Result<()> {
        // No O_TRUNC and no O_CREAT: a setting that is not there must not become a file.
        let mut file = OpenOptions::new().write(true).open(self.at(path))?;
        file.write_all(format!("{value}\n").as_bytes())
    }

    fn ethtool_set(&self, flag: &str, nic: &str, option: &str, value: &str) -> io::Result<()> {
        self.run_ethtool(&[flag, nic, option, value]).map(drop)
    }

    fn replace(&self, path: &str, text: &str) -> io::Result<()> {
        let path = self.at(path);
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        make_directories(directory)?;
        // Hidden and with an ending that neither sysctl, udev nor systemd reads, should we die before the rename.
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let draft = directory.join(format!(".{}.draft", name.to_string_lossy()));
        let mut file = File::create(&draft)?;
        file.write_all(text.as_bytes())?;
        if let Ok(old) = fs::metadata(&path) {
            file.set_permissions(old.permissions())?;
        }
        file.sync_all()?;
        fs::rename(&draft, &path)?;
        sync_directory(directory)
    }

    fn make_link(&self, path: &str, target: &str) -> io::Result<()> {
        let path = self.at(path);
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        make_directories(directory)?;
        match symlink(target, &path) {
            Err(error)
                if error.kind() == io::ErrorKind::AlreadyExists
                    && fs::read_link(&path).is_ok_and(|there| there == Path::new(target)) => {}
            result => result?,
        }
        sync_directory(directory)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let path = self.at(path);
        match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => {
                result?;
                path.parent().map_or(Ok(()), sync_directory)
            }
        }
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        use io::ErrorKind::{DirectoryNotEmpty, NotFound};
        match fs::remove_dir(self.at(path)) {
            Err(error) if matches!(error.kind(), DirectoryNotEmpty | NotFound) => Ok(()),
            result => result,
        }
    }

    fn lock(&self, path: &str) -> io::Result<Lock> {
        let path = self.at(path);
        make_directories(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(path)?;
        file.try_lock()?;
        Ok(Lock { _file: Some(file) })
    }
}
