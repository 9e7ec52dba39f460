//! The data directory: who holds it, what it is, which files it has.
//!
//! Owns `LOCK`, the two superblock copies and the directory names. Opening makes a new store in an empty directory and
//! takes the next epoch in an existing one, durably, before any shard runs. It does not read logs.

mod reshard;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use uring::Buffer;
use wal::superblock::{LogEntry, Superblock};
use wal::{BLOCK_BYTES, LogIdentity};
use wire::slot;

pub use reshard::{Progress, Reshard, Settled};

/// Name of a log's directory.
pub fn log_directory(data: &Path, number: u32) -> PathBuf {
    data.join(format!("log-{number:08}"))
}

/// Name of a segment file, by slot.
pub fn segment_path(directory: &Path, slot: u32) -> PathBuf {
    directory.join(format!("segment-{slot:08}.seg"))
}

const SUPERBLOCKS: [&str; 2] = ["superblock-a", "superblock-b"];
const CHECKPOINTS: [&str; 2] = ["checkpoint-a", "checkpoint-b"];

/// Why a data directory cannot be used, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error(
        "{path}: another process is using this data directory; stop it, or give --data another directory"
    )]
    InUse { path: PathBuf },
    #[error(
        "{path} was made with {found} shards, not {wanted}: start with --shards {found}, or change it first: `pinion reshard {path} --shards {wanted}`"
    )]
    ShardCount {
        path: PathBuf,
        found: u32,
        wanted: u32,
    },
    #[error(
        "{path} was made with segments of {found} bytes, not {wanted}: start with --segment-bytes {found}"
    )]
    SegmentBytes {
        path: PathBuf,
        found: u64,
        wanted: u64,
    },
    #[error("{path}: {source}; fix the cause, or give --data another directory")]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{path}: the {limit} file descriptors that this process may have are used up: run `ulimit -n 65536` first (systemd: LimitNOFILE=65536)"
    )]
    Descriptors { path: PathBuf, limit: u64 },
    #[error(
        "{path}: neither superblock copy can be read ({source}); if this is not a pinion directory, give --data another one"
    )]
    Superblock {
        path: PathBuf,
        source: wal::FormatError,
    },
    #[error(
        "{path} holds log directories but no superblock: move superblock-a and superblock-b back from where they went"
    )]
    SuperblockMissing { path: PathBuf },
    #[error(
        "{path} is left of a change of the number of shards and cannot be followed ({source}): if superblock-a or superblock-b was moved away, move it back; else run `pinion verify` on the directory"
    )]
    Reshard { path: PathBuf, source: io::Error },
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StoreError + '_ {
    move |source| failed(path.to_owned(), source)
}

fn failed(path: PathBuf, source: io::Error) -> StoreError {
    if uring::file::is_out_of_descriptors(&source) {
        let limit = uring::limits::nofile().soft;
        return StoreError::Descriptors { path, limit };
    }
    StoreError::Io { path, source }
}

/// An open data directory. Dropping it lets go of the lock, as far as no [`OpenLog`] of it holds it too.
pub struct Store {
    pub path: PathBuf,
    pub superblock: Superblock,
    lock: OwnedFd,
}

/// The files of one log, opened.
pub struct OpenLog {
    pub directory: PathBuf,
    /// (slot, file, bytes)
    pub segments: Vec<(u32, OwnedFd, u64)>,
    pub checkpoints: [Option<OwnedFd>; 2],
    /// There is no room for two more segments of every log.
    pub no_room: bool,
    /// The store's lock, for whoever has writes on their way: a write may outlive the process that started it.
    pub lock: OwnedFd,
}

impl Store {
    /// Open `path`, or make a store of `shards` logs in it. `None` takes what the store has (or the default for a new one).
    pub fn open(
        path: &Path,
        shards: u32,
        segment_bytes: u64,
        explicit_shards: bool,
        explicit_segments: bool,
    ) -> Result<Store, StoreError> {
        fs::create_dir_all(path).map_err(at(path))?;
        let lock_path = path.join("LOCK");
        let lock =
            uring::file::lock_exclusive(&lock_path, Duration::from_secs(2)).map_err(|e| match e
                .kind()
            {
                io::ErrorKind::WouldBlock => StoreError::InUse {
                    path: path.to_owned(),
                },
                _ => failed(lock_path.clone(), e),
            })?;
        let superblock = match read_superblocks(path)? {
            Some(superblock) => {
                if explicit_shards && superblock.shards != shards {
                    return Err(StoreError::ShardCount {
                        path: path.to_owned(),
                        found: superblock.shards,
                        wanted: shards,
                    });
                }
                if explicit_segments && superblock.segment_bytes != segment_bytes {
                    return Err(StoreError::SegmentBytes {
                        path: path.to_owned(),
                        found: superblock.segment_bytes,
                        wanted: segment_bytes,
                    });
                }
                superblock
            }
            None => {
                if has_logs(path)? {
                    return Err(StoreError::SuperblockMissing {
                        path: path.to_owned(),
                    });
                }
                new_superblock(shards, segment_bytes)
            }
        };
        let mut store = Store {
            path: path.to_owned(),
            superblock,
            lock,
        };
        // A new term before anything is written in it: batches of two lives of this log can never be taken for one.
        for log in &mut store.superblock.logs {
            log.epoch += 1;
        }
        store.write_superblock()?;
        // Both copies have their place from the start: on a disk that the logs have filled there would be none for the second.
        if SUPERBLOCKS.iter().any(|name| !path.join(name).exists()) {
            store.write_superblock()?;
        }
        store.settle_reshard()?;
        // Behind the superblock: a crash in between leaves a store without logs, not logs without a store.
        for log in &store.superblock.logs {
            let directory = log_directory(path, log.number);
            fs::create_dir_all(&directory).map_err(at(&directory))?;
        }
        uring::file::sync_directory(path).map_err(at(path))?;
        Ok(store)
    }

    /// A change of the number of shards ended early, before or behind its switch: what it left is removed, and told. The
    /// superblock was written just now: if its older copy named other logs, it does no longer.
    fn settle_reshard(&self) -> Result<(), StoreError> {
        let settled =
            Reshard::settle(&self.path, &self.superblock, &mut || ()).map_err(|source| {
                StoreError::Reshard {
                    path: Reshard::path(&self.path),
                    source,
                }
            })?;
        match settled {
            Some(Settled {
                progress: Progress::Unfinished,
                removed,
                shards,
            }) => tracing::warn!(
                "a change to {shards} shards was not finished: this store still has {}; what there was of logs {removed:?} is removed. Run `pinion reshard {} --shards {shards}` again to have it",
                self.superblock.shards,
                self.path.display()
            ),
            Some(settled) => tracing::warn!(
                "a change to {} shards had only its old logs {:?} left to remove: that is done",
                settled.shards,
                settled.removed
            ),
            None => {}
        }
        Ok(())
    }

    pub fn identity(&self, shard: usize) -> LogIdentity {
        let log = &self.superblock.logs[shard];
        LogIdentity {
            store: self.superblock.store,
            log: log.log,
            number: log.number,
            timeline: log.timeline,
        }
    }

    pub fn store_uuid(&self) -> String {
        uuid::Uuid::from_bytes(self.superblock.store).to_string()
    }

    /// Make the superblock durable: the older copy is overwritten, so one good copy is there at any moment.
    pub fn write_superblock(&mut self) -> Result<(), StoreError> {
        self.superblock.sequence += 1;
        let name = SUPERBLOCKS[(self.superblock.sequence % 2) as usize];
        let path = self.path.join(name);
        let write = || -> io::Result<()> {
            let mut block = Buffer::new(BLOCK_BYTES)?;
            self.superblock
                .encode(&mut block[..BLOCK_BYTES])
                .map_err(io::Error::other)?;
            let file = uring::file::open_direct(&path, true)?;
            uring::file::pwrite_all(&file, 0, &block[..BLOCK_BYTES])?;
            uring::file::fdatasync(&file)?;
            uring::file::sync_directory(&self.path)
        };
        write().map_err(at(&path))
    }

    /// Remember at a clean close what each log holds.
    pub fn close(mut self, durable_lsns: &[u64]) -> Result<(), StoreError> {
        for (log, lsn) in self.superblock.logs.iter_mut().zip(durable_lsns) {
            log.durable_lsn = log.durable_lsn.max(*lsn);
        }
        self.write_superblock()
    }

    /// Open the files of a shard's log. Everything is synced before it is read: what a crash left in caches must not be
    /// trusted and then lost.
    pub fn open_log(&self, shard: usize) -> Result<OpenLog, StoreError> {
        let directory = log_directory(&self.path, self.superblock.logs[shard].number);
        let mut segments = Vec::new();
        for entry in fs::read_dir(&directory).map_err(at(&directory))? {
            let path = entry.map_err(at(&directory))?.path();
            let Some(slot) = slot_of(&path) else { continue };
            let file = uring::file::open_direct(&path, false).map_err(at(&path))?;
            uring::file::fdatasync(&file).map_err(at(&path))?;
            let bytes = fs::metadata(&path).map_err(at(&path))?.len();
            segments.push((slot, file, bytes));
        }
        segments.sort_by_key(|(slot, ..)| *slot);
        let mut checkpoints = [None, None];
        for (slot, path) in checkpoints.iter_mut().zip(checkpoint_paths(&directory)) {
            *slot = Some(uring::file::open_direct(&path, true).map_err(at(&path))?);
        }
        uring::file::sync_directory(&directory).map_err(at(&directory))?;
        let free_bytes = uring::limits::free_bytes(&directory).map_err(at(&directory))?;
        let one_each = self.superblock.segment_bytes * u64::from(self.superblock.shards);
        Ok(OpenLog {
            directory,
            segments,
            checkpoints,
            no_room: free_bytes < 2 * one_each,
            lock: self.lock.try_clone().map_err(at(&self.path))?,
        })
    }
}

/// The two checkpoint files of the log in `directory`.
pub(crate) fn checkpoint_paths(directory: &Path) -> [PathBuf; 2] {
    CHECKPOINTS.map(|name| directory.join(name))
}

/// A store without a superblock, of whatever numbers: those grow with every change of the number of shards.
fn has_logs(path: &Path) -> Result<bool, StoreError> {
    for entry in fs::read_dir(path).map_err(at(path))? {
        let name = entry.map_err(at(path))?.file_name();
        if name.to_str().is_some_and(|name| name.starts_with("log-")) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn slot_of(path: &Path) -> Option<u32> {
    path.file_name()?
        .to_str()?
        .strip_prefix("segment-")?
        .strip_suffix(".seg")?
        .parse()
        .ok()
}

fn read_superblocks(path: &Path) -> Result<Option<Superblock>, StoreError> {
    let mut copies = Vec::new();
    for name in SUPERBLOCKS {
        let path = path.join(name);
        match fs::read(&path) {
            Ok(bytes) => copies.push(bytes),
            Err(e) if e.kind() == io::ErrorKind::NotFound => copies.push(Vec::new()),
            Err(source) => return Err(failed(path, source)),
        }
    }
    if copies.iter().all(Vec::is_empty) {
        return Ok(None);
    }
    Superblock::choose(&copies[0], &copies[1])
        .map(Some)
        .map_err(|source| StoreError::Superblock {
            path: path.to_owned(),
            source,
        })
}

/// The timeline that a new directory begins with: cursors name it, and one from another directory must not be taken for one of
/// this. Later timelines count up from it, so it stays far from the end.
fn first_timeline(drawn: uuid::Uuid) -> u32 {
    let [a, b, c, d, ..] = *drawn.as_bytes();
    (u32::from_le_bytes([a, b, c, d]) >> 1).max(1)
}

pub(crate) fn new_superblock(shards: u32, segment_bytes: u64) -> Superblock {
    let timeline = first_timeline(uuid::Uuid::new_v4());
    let logs = (0..shards)
        .map(|number| {
            let range = slot::range_of_shard(number as u16, shards as u16);
            LogEntry {
                log: uuid::Uuid::new_v4().into_bytes(),
                number,
                timeline,
                epoch: 0,
                slot_first: *range.start(),
                slot_last: *range.end(),
                durable_lsn: 0,
            }
        })
        .collect();
    Superblock {
        sequence: 0,
        features: 0,
        store: uuid::Uuid::new_v4().into_bytes(),
        digest_key: uuid::Uuid::new_v4().into_bytes(),
        shards,
        segment_bytes,
        map_epoch: 1,
        logs,
    }
}
