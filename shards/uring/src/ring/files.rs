//! Files registered with a ring: an operation on one names a place in the ring's table, and the kernel takes no reference
//! to the file for each.
//!
//! Invariants: a registered file stays open as long as the ring, so a descriptor number stands for one file; the table
//! is given to the kernel sparse, before the first file, and its places are never taken back.
//!
//! For the files of a log, which stay. Sockets come and go: two system calls for each, one of them before its last
//! operation may be forgotten, would cost a short connection more than they save a long one.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;

use io_uring::{IoUring, types};

use crate::limits;

/// Places asked for; the kernel takes no more than the limit on open files.
const TABLE_ENTRIES: u64 = 16_384;

#[derive(Default)]
pub(crate) struct RegisteredFiles {
    files: Vec<Rc<OwnedFd>>,
    places: HashMap<RawFd, u32>,
    table_entries: u32,
}

impl RegisteredFiles {
    /// Err: the table is full, or the kernel gives none. The file works unregistered.
    pub(crate) fn add(&mut self, file: &Rc<OwnedFd>, uring: &IoUring) -> io::Result<()> {
        if self.places.contains_key(&file.as_raw_fd()) {
            return Ok(());
        }
        if self.table_entries == 0 {
            let entries = TABLE_ENTRIES.min(limits::nofile().soft) as u32;
            uring.submitter().register_files_sparse(entries)?;
            self.table_entries = entries;
        }
        let place = self.files.len() as u32;
        if place >= self.table_entries {
            return Err(io::Error::new(
                io::ErrorKind::QuotaExceeded,
                "the ring's table of registered files is full",
            ));
        }
        let fd = file.as_raw_fd();
        uring.submitter().register_files_update(place, &[fd])?;
        self.files.push(Rc::clone(file));
        self.places.insert(fd, place);
        Ok(())
    }

    /// How an operation names the file.
    pub(crate) fn target(&self, file: &OwnedFd) -> Target {
        let fd = file.as_raw_fd();
        match self.places.get(&fd) {
            Some(&place) => Target::Place(types::Fixed(place)),
            None => Target::Descriptor(types::Fd(fd)),
        }
    }
}

/// What stands for a file in an entry of the queue.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// A place in the ring's table.
    Place(types::Fixed),
    /// A number in the process's table.
    Descriptor(types::Fd),
}

/// The same entry for either kind of target; the crate below has a type for each.
macro_rules! on_target {
    ($target:expr, $file:ident => $entry:expr) => {
        match $target {
            crate::ring::files::Target::Place($file) => $entry,
            crate::ring::files::Target::Descriptor($file) => $entry,
        }
    };
}
pub(crate) use on_target;
