//! The note that a change of the number of shards leaves in the data directory while it runs, and what is done about one that
//! was found: of the two sets of logs that it names, the superblock names one; the other is not the store's and is removed.
//!
//! Invariants: the note is durable before the first new log is made, and goes last. A log that it does not name is never touched.
//! So the only moment that decides is the write of the superblock.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use wal::superblock::Superblock;

use super::log_directory;

const NAME: &str = "reshard.json";

/// Numbers of the logs before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reshard {
    /// Logs that the store has until the switch.
    pub from: Vec<u32>,
    /// Logs that it has from then on.
    pub to: Vec<u32>,
}

/// How far a change of shards came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The store is the old one; the new logs are of no use.
    Unfinished,
    /// The store is the new one; the old logs are of no use.
    Switched,
}

/// What was found and removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// How far it had come.
    pub progress: Progress,
    /// The logs that were removed.
    pub removed: Vec<u32>,
    /// Shards that it was about, after it.
    pub shards: usize,
}

impl Reshard {
    /// Where it lies.
    pub fn path(directory: &Path) -> PathBuf {
        directory.join(NAME)
    }

    /// The one in this directory.
    pub fn find(directory: &Path) -> io::Result<Option<Reshard>> {
        match fs::read(Reshard::path(directory)) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(io::Error::from),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Make it durable.
    pub fn write(&self, directory: &Path) -> io::Result<()> {
        uring::file::replace(&Reshard::path(directory), &serde_json::to_vec(self)?)
    }

    /// Which of the two sets the superblock names, and the other one, whose files may go.
    pub fn progress(&self, superblock: &Superblock) -> io::Result<(Progress, &[u32])> {
        let named: Vec<u32> = superblock.logs.iter().map(|log| log.number).collect();
        if self.from.iter().any(|log| self.to.contains(log)) {
            return Err(io::Error::other("it names a log as old and as new"));
        }
        if named == self.from {
            Ok((Progress::Unfinished, &self.to))
        } else if named == self.to {
            Ok((Progress::Switched, &self.from))
        } else {
            let why = format!(
                "it speaks of logs {:?} and {:?}, the superblock of {named:?}",
                self.from, self.to
            );
            Err(io::Error::other(why))
        }
    }

    /// Remove what is left of a change that ended early, if one did. Both superblock copies must name the same logs by now.
    /// `step` is called behind everything that is durable.
    pub fn settle(
        directory: &Path,
        superblock: &Superblock,
        step: &mut dyn FnMut(),
    ) -> io::Result<Option<Settled>> {
        let Some(reshard) = Reshard::find(directory)? else {
            return Ok(None);
        };
        let (progress, leftover) = reshard.progress(superblock)?;
        for number in leftover {
            match fs::remove_dir_all(log_directory(directory, *number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => step(),
            }
        }
        uring::file::sync_directory(directory)?;
        step();
        fs::remove_file(Reshard::path(directory))?;
        uring::file::sync_directory(directory)?;
        step();
        Ok(Some(Settled {
            progress,
            removed: leftover.to_vec(),
            shards: reshard.to.len(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::new_superblock;

    fn made(shards: u32, reshard: &Reshard) -> (tempfile::TempDir, Superblock) {
        let directory = tempfile::tempdir().unwrap();
        for number in reshard.from.iter().chain(&reshard.to) {
            let log = log_directory(directory.path(), *number);
            fs::create_dir(&log).unwrap();
            fs::write(log.join("segment-00000000.seg"), b"bytes").unwrap();
        }
        reshard.write(directory.path()).unwrap();
        (directory, new_superblock(shards, 8192))
    }

    fn logs(directory: &Path) -> Vec<u32> {
        (0..20)
            .filter(|number| log_directory(directory, *number).exists())
            .collect()
    }

    #[test]
    fn what_the_superblock_does_not_name_goes_and_nothing_else() {
        let (old, new) = (vec![0, 1], vec![2, 3, 4]);
        for (from, to, progress) in [
            (old.clone(), new.clone(), Progress::Unfinished),
            (new.clone(), old.clone(), Progress::Switched),
        ] {
            let (directory, superblock) = made(2, &Reshard { from, to });
            fs::create_dir(log_directory(directory.path(), 9)).unwrap();
            let settled = Reshard::settle(directory.path(), &superblock, &mut || ()).unwrap();
            let settled = settled.expect("there was one");
            assert_eq!((settled.progress, &settled.removed), (progress, &new));
            assert_eq!(logs(directory.path()), [0, 1, 9]);
            let again = Reshard::settle(directory.path(), &superblock, &mut || ()).unwrap();
            assert_eq!(again, None);
        }
    }

    #[test]
    fn a_note_of_other_logs_is_refused_and_nothing_is_removed() {
        let reshard = Reshard {
            from: vec![5, 6],
            to: vec![7],
        };
        let (directory, superblock) = made(2, &reshard);
        let error = Reshard::settle(directory.path(), &superblock, &mut || ()).unwrap_err();
        assert!(error.to_string().contains("[0, 1]"), "{error}");
        assert_eq!(logs(directory.path()), [5, 6, 7]);
    }
}
