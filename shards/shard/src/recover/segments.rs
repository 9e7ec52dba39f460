//! Which file holds which segment, by what the headers say, and the first segment of a new log.

use std::collections::BTreeMap;

use wal::BLOCK_BYTES;
use wal::scan::{self, Stop};
use wal::segment::SegmentHeader;

use super::{RecoverConfig, RecoverError};
use crate::driver::{Driver, Event, LogFiles, SegmentSource};
use crate::log::{SegmentFile, UNMADE};
use crate::token::Token;
use crate::turn::Shard;

/// The files of a log, sorted.
pub(super) struct Found {
    /// By segment number.
    pub segments: BTreeMap<u32, SegmentFile>,
    /// Files that hold nothing.
    pub spare: Vec<SegmentFile>,
    /// Keys that the newest header speaks of.
    pub keys_hint: u64,
}

impl<D: Driver> Shard<D> {
    /// Sort the files by what their headers say.
    pub(super) fn find_segments(
        &mut self,
        files: &LogFiles,
        config: &RecoverConfig,
    ) -> Result<Found, RecoverError> {
        let mut segments = BTreeMap::new();
        let mut spare = Vec::new();
        let mut keys_hint = (0, 0);
        for &(slot, file, bytes) in &files.segments {
            if bytes < 2 * BLOCK_BYTES as u64 {
                spare.push(SegmentFile::empty(slot, UNMADE, 0, 0));
                continue;
            }
            let block = self.read_all(
                file,
                0,
                2 * BLOCK_BYTES,
                &format!("the header of segment-{slot:08}.seg"),
            )?;
            // A file that a crash left half made may hold anything but a batch.
            let nothing = SegmentHeader {
                identity: config.identity,
                segment: 0,
                generation: 0,
                segment_bytes: config.segment_bytes,
            };
            let first_batch = scan::batch_at(
                &config.identity,
                &nothing,
                BLOCK_BYTES as u32,
                &block[BLOCK_BYTES..2 * BLOCK_BYTES],
            );
            let unused = matches!(first_batch, Err(Stop::NoBatch));
            match SegmentHeader::decode(&block[..BLOCK_BYTES]) {
                Ok(header)
                    if header.identity == config.identity && bytes >= header.segment_bytes =>
                {
                    let found = SegmentFile::empty(slot, file, header.segment, header.generation);
                    let keys = SegmentHeader::keys_hint(&block[..BLOCK_BYTES]);
                    keys_hint = keys_hint.max((header.segment, keys));
                    if let Some(twin) = segments.insert(header.segment, found) {
                        let why = format!(
                            "segment-{slot:08}.seg and segment-{:08}.seg both hold segment {}",
                            twin.slot, header.segment
                        );
                        return Err(RecoverError::Damage(why));
                    }
                }
                Ok(header) if header.identity == config.identity => {
                    let why = format!(
                        "segment-{slot:08}.seg is cut short: {bytes} bytes, and its header says {}; put the whole file back, or run `pinion repair` on the data directory",
                        header.segment_bytes
                    );
                    return Err(RecoverError::Damage(why));
                }
                Ok(header) => {
                    let why = format!(
                        "segment-{slot:08}.seg belongs to log {} (timeline {}), not to log {} (timeline {}): move it away",
                        header.identity.number,
                        header.identity.timeline,
                        config.identity.number,
                        config.identity.timeline
                    );
                    return Err(RecoverError::Damage(why));
                }
                // Never used: the header comes last when a file is made, and no batch was ever written behind it.
                Err(_) if unused => spare.push(SegmentFile::empty(slot, UNMADE, 0, 0)),
                Err(error) => {
                    let why = format!(
                        "segment-{slot:08}.seg at offset 0: {error}, but it holds batches; run `pinion verify` on the data directory"
                    );
                    return Err(RecoverError::Damage(why));
                }
            }
        }
        Ok(Found {
            segments,
            spare,
            keys_hint: keys_hint.1,
        })
    }

    /// A new log: make its first segment.
    pub(super) fn first_segment(
        &mut self,
        spare: &mut Vec<SegmentFile>,
        next_slot: u32,
        config: &RecoverConfig,
    ) -> Result<SegmentFile, RecoverError> {
        let old = spare.pop();
        let (slot, generation) = old.map_or((next_slot, 1), |o| (o.slot, o.generation + 1));
        let header =
            crate::log::segment_header(&config.identity, 1, generation, config.segment_bytes, 0);
        // An old file may be short (a crash while it was made): then it is made again from scratch.
        self.driver.prepare_segment(
            slot,
            SegmentSource::New,
            config.segment_bytes,
            header,
            0,
            Token::segment(slot),
        );
        loop {
            for event in self.poll_some()? {
                match event {
                    Event::SegmentReady {
                        result: Ok(file), ..
                    } => {
                        return Ok(SegmentFile::empty(slot, file, 1, generation));
                    }
                    Event::SegmentReady {
                        result: Err(error), ..
                    } => {
                        return Err(RecoverError::Io {
                            what: format!("(while making) segment-{slot:08}.seg"),
                            error,
                        });
                    }
                    other => self.event(other),
                }
            }
        }
    }
}
