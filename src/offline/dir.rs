//! A data directory as files: who holds it, its superblock copies, and the files of each log. Reads names and two blocks;
//! decodes no log.
//!
//! ```text
//! DIR/LOCK                                   held by the server, shared by offline readers
//! DIR/superblock-a, DIR/superblock-b         4096 bytes each
//! DIR/device.toml                            measured device profile
//! DIR/log-00000000/segment-00000000.seg      the number is the file's slot; the segment's number is in its header
//! DIR/log-00000000/checkpoint-a, checkpoint-b
//! ```

use std::fs::{File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use shard::Reshard;
use wal::BLOCK_BYTES;
use wal::superblock::Superblock;

/// Names of the superblock copies.
pub(super) const SUPERBLOCKS: [&str; 2] = ["superblock-a", "superblock-b"];
const CHECKPOINTS: [&str; 2] = ["checkpoint-a", "checkpoint-b"];

/// The kernel closes a killed server's ring a moment after the process is gone, and the lock with it.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// A data directory that no server has, for as long as this value lives.
#[derive(Debug)]
pub struct Directory {
    /// As typed.
    pub path: PathBuf,
    /// Both copies, good or not.
    pub copies: Vec<SuperblockCopy>,
    /// The newer good copy.
    pub superblock: Option<Superblock>,
    /// In order of their number.
    pub logs: Vec<LogFiles>,
    /// A change of the number of shards that ended early; what it left is not among the logs.
    pub reshard: Option<Reshard>,
    _lock: Option<File>,
}

/// One of the two superblock files.
#[derive(Debug)]
pub struct SuperblockCopy {
    /// Its path.
    pub path: PathBuf,
    /// Its length; 0 when it is not there.
    pub bytes: usize,
    /// What it holds, or why it cannot be read.
    pub content: Result<Superblock, String>,
}

/// The files of one log.
#[derive(Clone, Debug)]
pub struct LogFiles {
    /// The data directory.
    pub directory: PathBuf,
    /// From the folder's name.
    pub number: u32,
    /// Segment files with their lengths, by slot.
    pub segments: Vec<(PathBuf, u64)>,
    /// Checkpoint files that are there, with their lengths.
    pub checkpoints: Vec<(PathBuf, u64)>,
}

impl LogFiles {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.segments
            .iter()
            .chain(&self.checkpoints)
            .map(|(_, bytes)| bytes)
            .sum()
    }
}

impl Directory {
    /// Takes the directory's lock (shared with other readers) and lists what is there.
    pub fn open(path: &Path) -> anyhow::Result<Directory> {
        Directory::open_locked(path, File::try_lock_shared)
    }

    /// [`Directory::open`] with nobody else, not even another reader: for who is about to write.
    pub fn open_alone(path: &Path) -> anyhow::Result<Directory> {
        // A copy of a directory may come without it, and a server may start on it meanwhile.
        if SUPERBLOCKS.iter().any(|name| path.join(name).exists()) {
            let lock = path.join("LOCK");
            File::options()
                .create(true)
                .append(true)
                .open(&lock)
                .with_context(|| lock.display().to_string())?;
        }
        Directory::open_locked(path, File::try_lock)
    }

    fn open_locked(path: &Path, lock: TryLock) -> anyhow::Result<Directory> {
        let entries = std::fs::read_dir(path).with_context(|| path.display().to_string())?;
        let lock = take_lock(path, lock)?;
        let mut logs = Vec::new();
        for entry in entries {
            let entry = entry?;
            if let Some(number) = entry
                .file_name()
                .to_str()
                .and_then(|name| numbered(name, "log-", ""))
            {
                logs.push(log_files(path, &entry.path(), number)?);
            }
        }
        logs.sort_by_key(|log: &LogFiles| log.number);

        let copies: Vec<SuperblockCopy> = SUPERBLOCKS
            .iter()
            .map(|name| read_copy(&path.join(name)))
            .collect();
        if logs.is_empty() && copies.iter().all(|copy| !copy.path.exists()) {
            bail!(
                "{} has no superblock and no log: it is not a pinion data directory",
                path.display()
            );
        }
        let superblock = copies
            .iter()
            .filter_map(|copy| copy.content.as_ref().ok())
            .max_by_key(|copy| copy.sequence)
            .cloned();
        let reshard =
            Reshard::find(path).with_context(|| Reshard::path(path).display().to_string())?;
        if let (Some(reshard), Some(superblock)) = (&reshard, &superblock) {
            let (_, leftover) = reshard
                .progress(superblock)
                .with_context(|| Reshard::path(path).display().to_string())?;
            // Not the store's: the next start of a server, or `pinion reshard`, removes them.
            logs.retain(|log| !leftover.contains(&log.number));
        }
        Ok(Directory {
            path: path.to_owned(),
            copies,
            superblock,
            logs,
            reshard,
            _lock: lock,
        })
    }
}

/// Shared or alone.
type TryLock = fn(&File) -> Result<(), TryLockError>;

fn take_lock(directory: &Path, try_lock: TryLock) -> anyhow::Result<Option<File>> {
    let path = directory.join("LOCK");
    let file = match File::open(&path) {
        Ok(file) => file,
        // A copy of a directory may come without it; then there is nobody to keep out.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    let patience_ends = Instant::now() + LOCK_PATIENCE;
    loop {
        match try_lock(&file) {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) if Instant::now() < patience_ends => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(TryLockError::WouldBlock) => {
                bail!(
                    "{} is in use by a server or another tool: stop it first (SIGTERM drains a server)",
                    directory.display()
                )
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| path.display().to_string());
            }
        }
    }
}

fn read_copy(path: &Path) -> SuperblockCopy {
    let block = std::fs::read(path);
    SuperblockCopy {
        path: path.to_owned(),
        bytes: block.as_ref().map_or(0, Vec::len),
        content: match block {
            Ok(block) => Superblock::decode(&block).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        },
    }
}

pub(super) fn log_files(directory: &Path, folder: &Path, number: u32) -> anyhow::Result<LogFiles> {
    let mut segments = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        if entry
            .file_name()
            .to_str()
            .and_then(|name| numbered(name, "segment-", ".seg"))
            .is_some()
        {
            segments.push((entry.path(), entry.metadata()?.len()));
        }
    }
    segments.sort();
    let checkpoints = CHECKPOINTS
        .iter()
        .map(|name| folder.join(name))
        .filter_map(|path| {
            std::fs::metadata(&path)
                .ok()
                .map(|metadata| (path, metadata.len()))
        })
        .collect();
    Ok(LogFiles {
        directory: directory.to_owned(),
        number,
        segments,
        checkpoints,
    })
}

/// Makes the next superblock durable. The older copy is written over, as a server does.
pub(super) fn write_superblock(
    directory: &Path,
    superblock: &mut Superblock,
) -> anyhow::Result<()> {
    superblock.sequence += 1;
    let mut block = vec![0; BLOCK_BYTES];
    superblock.encode(&mut block)?;
    let path = directory.join(SUPERBLOCKS[(superblock.sequence % 2) as usize]);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)?;
    file.write_all(&block)?;
    file.sync_all()
        .with_context(|| path.display().to_string())?;
    sync_folder(directory)
}

/// Makes names in a folder durable.
pub(super) fn sync_folder(path: &Path) -> anyhow::Result<()> {
    File::open(path)?
        .sync_all()
        .with_context(|| path.display().to_string())
}

/// The number in `log-00000007` and `segment-00000012.seg`.
fn numbered(name: &str, prefix: &str, suffix: &str) -> Option<u32> {
    let digits = name.strip_prefix(prefix)?.strip_suffix(suffix)?;
    (digits.len() == 8 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_carry_eight_digits() {
        assert_eq!(numbered("log-00000007", "log-", ""), Some(7));
        assert_eq!(
            numbered("segment-00000012.seg", "segment-", ".seg"),
            Some(12)
        );
        for name in [
            "log-7",
            "log-0000000x",
            "log-000000007",
            "log-+0000007",
            "log-00000007.old",
            "LOCK",
        ] {
            assert_eq!(numbered(name, "log-", ""), None, "{name}");
        }
    }

    #[test]
    fn a_directory_that_a_server_has_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        std::fs::write(path.join("superblock-a"), [0; 4096]).expect("a file");
        let lock = File::create(path.join("LOCK")).expect("a file");
        lock.lock().expect("nobody else has it");
        let error = Directory::open(path).expect_err("the lock is held");
        assert!(error.to_string().contains("in use by a server"), "{error}");
        drop(lock);
        let opened = Directory::open(path).expect("the lock is free");
        assert!(
            opened.superblock.is_none() && opened.copies.iter().all(|copy| copy.content.is_err())
        );
        Directory::open(path).expect("readers share");
    }
}
