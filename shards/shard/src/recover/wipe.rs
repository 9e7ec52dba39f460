//! Zeroes over what a cut leaves behind.
//!
//! What lies behind the end of the log was never acked, and its lsns are given out again. A record's checksum names log and
//! lsn but no term, so an old record of a cut tail verifies in the place of a new one that the device has lost. With zeroes
//! there a lost write is found. Nothing is wiped before recovery has decided that it may be cut, and a crash in the middle
//! leaves less of what counted for nothing.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use uring::Buffer;
use wal::BLOCK_BYTES;

use super::{RecoverError, SegmentFile};
use crate::driver::{Driver, Event};
use crate::token::{Kind, Token};
use crate::turn::Shard;

/// Zeroes written at once.
const WIPE_BYTES: usize = 256 * 1024;

/// Part of a segment that is not zero.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stale {
    pub segment: u32,
    pub bytes: Range<usize>,
}

impl Stale {
    /// What is written in `part`, which starts at `offset` of its segment, from `from` of the segment on, in blocks; None if
    /// nothing is. The segment's own header stays.
    pub fn find(segment: u32, part: &[u8], offset: usize, from: usize) -> Option<Stale> {
        let skipped = from.max(BLOCK_BYTES).saturating_sub(offset);
        let blocks = part.get(skipped..)?.chunks(BLOCK_BYTES);
        let is_written = |block: &[u8]| block.iter().any(|byte| *byte != 0);
        let first = blocks.clone().position(is_written)?;
        let last = blocks.rev().position(is_written)?;
        let start = offset + skipped + first * BLOCK_BYTES;
        Some(Stale {
            segment,
            bytes: start..offset + part.len() - last * BLOCK_BYTES,
        })
    }
}

impl<D: Driver> Shard<D> {
    /// Make `stale` zero, durably.
    pub(super) fn wipe(&mut self, file: &SegmentFile, stale: &Stale) -> Result<(), RecoverError> {
        let failed = |error: io::Error| RecoverError::Io {
            what: format!(
                "(while wiping what was cut off) segment-{:08}.seg",
                file.slot
            ),
            error,
        };
        let zeroes = Buffer::new(WIPE_BYTES.min(stale.bytes.len())).map_err(failed)?;
        let zeroes = Rc::new(zeroes);
        let mut at = stale.bytes.start;
        while at < stale.bytes.end {
            let len = zeroes.len().min(stale.bytes.end - at);
            let token = Token::recovery(at as u64);
            self.driver
                .write_durable(file.file, at as u64, Rc::clone(&zeroes), 0..len, token);
            match self.await_write()? {
                Ok(count) if count == len => at += len,
                Ok(count) => {
                    let short = format!("{count} of {len} bytes");
                    return Err(failed(io::Error::other(short)));
                }
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    /// Wait for the one write that a recovery has under way.
    fn await_write(&mut self) -> Result<io::Result<usize>, RecoverError> {
        loop {
            let mut written = None;
            for event in self.poll_some()? {
                match event {
                    Event::Written { token, result }
                        if matches!(Token::kind(token), Kind::Recovery(_)) =>
                    {
                        written = Some(result);
                    }
                    other => self.event(other),
                }
            }
            self.take_mail();
            self.flush();
            if let Some(result) = written {
                return Ok(result);
            }
        }
    }
}
