//! Writes, flushes and segment files.

use std::ops::Range;
use std::rc::Rc;

use uring::{Buffer, WriteDurability};

use super::{CLASS_FLUSH, RingDriver};
use crate::driver::{Event, FileId};

impl RingDriver {
    pub(super) fn start_write(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        durability: WriteDurability,
        token: u64,
    ) {
        let file = Rc::clone(&self.files[file.0 as usize]);
        if let Err(error) = self
            .ring
            .write(file, offset, buffer, range, durability, token)
        {
            self.ready.push_back(Event::Written {
                token,
                result: Err(error),
            });
        }
    }

    pub(super) fn flush_behind(&mut self, token: u64, bytes: usize) {
        let Some(entry) = self.flushing.iter_mut().find(|(t, ..)| *t == token) else {
            return;
        };
        entry.2 = bytes;
        let file = Rc::clone(&self.files[entry.1.0 as usize]);
        if let Err(error) = self.ring.fdatasync(file, CLASS_FLUSH | token) {
            self.flushing.retain(|(t, ..)| *t != token);
            self.ready.push_back(Event::Written {
                token,
                result: Err(error),
            });
        }
    }

    pub(super) fn take_prepared(&mut self) {
        while self.preparing > 0
            && let Ok(prepared) = self.prepared.1.try_recv()
        {
            self.preparing -= 1;
            let result = prepared.result.map(|file| match prepared.recycled {
                Some(id) => id,
                None => {
                    self.files.push(Rc::new(file));
                    FileId(self.files.len() as u32 - 1)
                }
            });
            self.ready.push_back(Event::SegmentReady {
                token: prepared.token,
                result,
            });
        }
    }
}
