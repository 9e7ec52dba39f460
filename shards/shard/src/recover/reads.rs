//! Reads of a recovery: started, awaited, and kept when they arrive out of turn.
//!
//! A recovery holds two segment buffers and uses them in turns: fresh memory for each would be zeroed by the kernel first.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use uring::Buffer;
use wal::segment::SegmentHeader;

use super::{RecoverConfig, RecoverError};
use crate::driver::{Driver, Event, FileId, Patience};
use crate::log::SegmentFile;
use crate::token::Token;
use crate::turn::Shard;

/// What happened in one look at a driver.
type Events<D> = Vec<Event<<D as Driver>::Socket, <D as Driver>::Received>>;

/// One segment in memory.
pub(super) struct Loaded {
    pub header: SegmentHeader,
    pub bytes: Buffer,
}

/// Reads under way and the buffers that are free for more.
#[derive(Default)]
pub(crate) struct RecoveryReads {
    started: u64,
    done: Vec<(u64, Buffer, io::Result<usize>)>,
    spare: Vec<Buffer>,
}

impl RecoveryReads {
    /// A read came back before anybody asked for it, or after its recovery was given up.
    pub fn arrived(&mut self, sequence: u64, buffer: Buffer, result: io::Result<usize>) {
        self.done.push((sequence, buffer, result));
    }

    fn position(&self, sequence: u64) -> Option<usize> {
        self.done.iter().position(|(s, ..)| *s == sequence)
    }

    /// A segment has been walked: its memory serves the next but one.
    pub(super) fn give_back(&mut self, buffer: Buffer) {
        self.spare.push(buffer);
    }

    /// The recovery is over.
    pub(super) fn release(&mut self) {
        self.spare.clear();
    }
}

impl<D: Driver> Shard<D> {
    /// A whole segment; None if there is none of that number.
    pub(super) fn load(
        &mut self,
        segments: &BTreeMap<u32, SegmentFile>,
        number: u32,
        config: &RecoverConfig,
    ) -> Result<Option<Loaded>, RecoverError> {
        let started = self.start_load(segments, number, config)?;
        self.finish_load(started, segments, number, config)
    }

    /// Begin to read a whole segment.
    pub(super) fn start_load(
        &mut self,
        segments: &BTreeMap<u32, SegmentFile>,
        number: u32,
        config: &RecoverConfig,
    ) -> Result<Option<u64>, RecoverError> {
        let Some(segment) = segments.get(&number) else {
            return Ok(None);
        };
        let buffer = match self.recovery.spare.pop() {
            Some(buffer) => buffer,
            None => {
                Buffer::new(config.segment_bytes as usize).map_err(|error| RecoverError::Io {
                    what: format!("segment {number} (no memory for it)"),
                    error,
                })?
            }
        };
        let bytes = config.segment_bytes as usize;
        let sequence = self.start_read(segment.file, 0, buffer, bytes);
        self.poll_and_keep()?;
        Ok(Some(sequence))
    }

    /// Wait for what `start_load` began.
    pub(super) fn finish_load(
        &mut self,
        started: Option<u64>,
        segments: &BTreeMap<u32, SegmentFile>,
        number: u32,
        config: &RecoverConfig,
    ) -> Result<Option<Loaded>, RecoverError> {
        let (Some(sequence), Some(segment)) = (started, segments.get(&number)) else {
            return Ok(None);
        };
        let bytes = self.await_read(
            sequence,
            config.segment_bytes as usize,
            &format!("segment-{:08}.seg", segment.slot),
        )?;
        let header = segment.header(config);
        Ok(Some(Loaded { header, bytes }))
    }

    pub(super) fn read_all(
        &mut self,
        file: FileId,
        offset: u64,
        len: usize,
        what: &str,
    ) -> Result<Buffer, RecoverError> {
        let buffer = Buffer::new(len).map_err(|error| RecoverError::Io {
            what: what.into(),
            error,
        })?;
        let sequence = self.start_read(file, offset, buffer, len);
        self.await_read(sequence, len, what)
    }

    pub(super) fn start_read(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Buffer,
        len: usize,
    ) -> u64 {
        self.recovery.started += 1;
        let sequence = self.recovery.started;
        self.driver
            .read(file, offset, buffer, len, Token::recovery(sequence));
        sequence
    }

    /// Wait for a read; everything else that happens meanwhile is handled as in any turn.
    pub(super) fn await_read(
        &mut self,
        sequence: u64,
        len: usize,
        what: &str,
    ) -> Result<Buffer, RecoverError> {
        loop {
            if let Some(at) = self.recovery.position(sequence) {
                let (_, buffer, result) = self.recovery.done.swap_remove(at);
                return match result {
                    Ok(got) if got >= len => Ok(buffer),
                    Ok(got) => {
                        let error = std::io::Error::other(format!(
                            "{got} of {len} bytes: the file is cut short"
                        ));
                        Err(RecoverError::Io {
                            what: what.into(),
                            error,
                        })
                    }
                    Err(error) => Err(RecoverError::Io {
                        what: what.into(),
                        error,
                    }),
                };
            }
            for event in self.poll_some()? {
                self.event(event);
            }
            // Other shards' questions are refused rather than left waiting.
            self.take_mail();
            self.flush();
        }
    }

    /// A driver that fails will not bring what is awaited: recovery ends with its error.
    pub(super) fn poll_some(&mut self) -> Result<Events<D>, RecoverError> {
        self.poll_for(Patience::Sleep(Duration::from_millis(20)))
    }

    /// Get a read that was just started to the device without waiting for it.
    pub(super) fn poll_and_keep(&mut self) -> Result<(), RecoverError> {
        for event in self.poll_for(Patience::None)? {
            self.event(event);
        }
        Ok(())
    }

    fn poll_for(&mut self, patience: Patience) -> Result<Events<D>, RecoverError> {
        let mut events = Vec::new();
        let polled = self.driver.poll(patience, &mut events);
        polled.map_err(|error| RecoverError::Io {
            what: "from the ring".into(),
            error,
        })?;
        self.core.now = self.driver.now();
        Ok(events)
    }
}
