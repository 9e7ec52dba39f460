//! Reads, writes and flushes of this shard's files, and segment files that a thread prepares.
//!
//! An operation that the ring has no room for waits here and starts at a later poll, in order. Only what the kernel says
//! of an operation itself becomes its failure: a failed log write ends all acks of the shard, a full queue must not.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::rc::Rc;

use uring::{Buffer, WriteDurability};

use super::{CLASS_FLUSH, RingDriver};
use crate::driver::{Event, FileId};

/// Contexts of the ring that only operations on files get: all that are ever in flight together.
pub(super) const DISK_OPERATIONS: usize = crate::profile::LARGE_WRITES_IN_FLIGHT_MAX
    + crate::reads::READS_AT_ONCE
    // Of a checkpoint: pages, and a sync.
    + crate::checkpointer::PAGES_AT_ONCE
    + 1
    // Of a recovery: two segments, a header or part.
    + 3
    // Of the scrub.
    + 1;

/// What is started on a file as soon as there is room.
pub(super) enum DiskOperation {
    Read {
        file: FileId,
        offset: u64,
        buffer: Buffer,
        len: usize,
        token: u64,
    },
    Sync {
        file: FileId,
        /// With its class: the flush behind a write, or a sync that was asked for.
        token: u64,
    },
    Write {
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        durability: WriteDurability,
        token: u64,
    },
}

impl RingDriver {
    /// Start an operation, behind those that wait already.
    pub(super) fn on_disk(&mut self, operation: DiskOperation) {
        self.waiting_disk.push_back(operation);
        self.start_disk();
    }

    /// Start what waits, in order, while the ring has room.
    pub(super) fn start_disk(&mut self) {
        while !self.waiting_disk.is_empty() {
            let room = self.ring.has_room(0);
            if matches!(room, Ok(false)) {
                return;
            }
            let Some(operation) = self.waiting_disk.pop_front() else {
                return;
            };
            self.start_operation(operation, room.map(|_| ()));
        }
    }

    fn start_operation(&mut self, operation: DiskOperation, room: io::Result<()>) {
        let ring = &mut self.ring;
        match operation {
            DiskOperation::Read {
                file,
                offset,
                buffer,
                len,
                token,
            } => {
                if let Err(error) = room {
                    return self.ready.push_back(Event::Read {
                        token,
                        buffer,
                        result: Err(error),
                    });
                }
                let file = Rc::clone(&self.files[file.0 as usize]);
                ring.read(file, offset, buffer, len, token)
                    .expect("there is room, and a read is no longer than its buffer");
            }
            DiskOperation::Sync { file, token } => {
                let file = Rc::clone(&self.files[file.0 as usize]);
                if let Err(error) = room.and_then(|()| ring.fdatasync(file, token)) {
                    return self.synced(token, Err(error));
                }
            }
            DiskOperation::Write {
                file,
                offset,
                buffer,
                range,
                durability,
                token,
            } => {
                let file = Rc::clone(&self.files[file.0 as usize]);
                let started =
                    room.and_then(|()| ring.write(file, offset, buffer, range, durability, token));
                if let Err(error) = started {
                    return self.written(token, Err(error));
                }
            }
        }
        self.disk_in_flight += 1;
    }

    /// A write came back, or was refused by the kernel.
    pub(super) fn written(&mut self, token: u64, result: io::Result<usize>) {
        let flush = self.flushing.iter_mut().find(|(t, ..)| *t == token);
        match (result, flush) {
            (Ok(count), Some((_, file, bytes))) => {
                *bytes = count;
                let file = *file;
                self.on_disk(DiskOperation::Sync {
                    file,
                    token: CLASS_FLUSH | token,
                });
            }
            (result, _) => {
                self.flushing.retain(|(t, ..)| *t != token);
                self.ready.push_back(Event::Written { token, result });
            }
        }
    }

    /// A sync came back: one that was asked for, or the second half of a durable write.
    pub(super) fn synced(&mut self, token: u64, result: io::Result<()>) {
        if token & super::CLASS_MASK != CLASS_FLUSH {
            return self.ready.push_back(Event::Synced { token, result });
        }
        let token = token & !super::CLASS_MASK;
        let Some(at) = self.flushing.iter().position(|(t, ..)| *t == token) else {
            return;
        };
        let (_, _, bytes) = self.flushing.swap_remove(at);
        self.ready.push_back(Event::Written {
            token,
            result: result.map(|()| bytes),
        });
    }

    /// Take a file of the log, for as long as the driver lives.
    pub(super) fn add_file(&mut self, file: OwnedFd) -> FileId {
        let file = Rc::new(file);
        if let Err(error) = self.ring.register_file(&file) {
            tracing::debug!("a file goes unregistered: {error}");
        }
        self.files.push(file);
        FileId(self.files.len() as u32 - 1)
    }

    pub(super) fn take_prepared(&mut self) {
        while self.preparing > 0
            && let Ok(prepared) = self.prepared.1.try_recv()
        {
            self.preparing -= 1;
            let result = prepared.result.map(|file| match prepared.recycled {
                Some(id) => id,
                None => self.add_file(file),
            });
            self.ready.push_back(Event::SegmentReady {
                token: prepared.token,
                result,
            });
        }
    }
}
