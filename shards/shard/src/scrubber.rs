//! Reads sealed segments again, slowly, and tells of damage before a client or a restart meets it.
//!
//! One read at a time into a buffer of its own, so many bytes a second, round and round from the oldest segment to the one
//! before the open one. Every batch is verified as recovery verifies it. Damage is counted, logged once a round with file,
//! offset and lsn, and left alone: one node can find it, not mend it. A segment that changed hands while it was read is not
//! judged. Behind the last batch of a segment may lie remains of a cut: they are not looked at.

use std::io;

use uring::Buffer;
use wal::scan::{self, Stop};
use wal::{BLOCK_BYTES, Location};

use crate::driver::Driver;
use crate::log::{Log, SegmentFile};
use crate::token::Token;

/// With nothing sealed, or behind an error, there is nothing to do for so long.
const IDLE_NS: u64 = 1_000_000_000;

/// The state of one shard's scrub.
pub struct Scrubber {
    /// 0: it rests.
    pub(crate) bytes_per_second: u64,
    chunk_bytes: usize,
    /// None while it is with the driver, or before it was needed.
    buffer: Option<Buffer>,
    /// What is being read.
    reading: Option<SegmentFile>,
    /// The next batch to verify, and the lsn that it begins with.
    at: Location,
    next_lsn: u64,
    due_ns: u64,
    /// Bytes verified, since the start.
    pub bytes: u64,
    /// Places that did not verify or could not be read, since the start.
    pub errors: u64,
}

impl Scrubber {
    /// Reads chunks of `chunk_bytes`, which hold a whole batch wherever it starts.
    pub fn new(bytes_per_second: u64, chunk_bytes: usize) -> Scrubber {
        Scrubber {
            bytes_per_second,
            chunk_bytes,
            buffer: None,
            reading: None,
            at: Location::default(),
            next_lsn: 0,
            due_ns: 0,
            bytes: 0,
            errors: 0,
        }
    }

    /// Start the next read if it is time for one.
    pub fn step<D: Driver>(&mut self, log: &Log, driver: &mut D, now_ns: u64) {
        if self.bytes_per_second == 0 || self.reading.is_some() || now_ns < self.due_ns {
            return;
        }
        let Some(segment) = self.place(log) else {
            self.due_ns = now_ns + IDLE_NS;
            return;
        };
        let buffer = match self.buffer.take() {
            Some(buffer) => buffer,
            None => match Buffer::new(self.chunk_bytes) {
                Ok(buffer) => buffer,
                Err(_) => {
                    self.due_ns = now_ns + IDLE_NS;
                    return;
                }
            },
        };
        let left = log.segment_bytes() as usize - self.at.offset as usize;
        let bytes = self.chunk_bytes.min(left);
        self.reading = Some(segment);
        driver.read(
            segment.file,
            u64::from(self.at.offset),
            buffer,
            bytes,
            Token::scrub(),
        );
    }

    /// The segment to read from, with `at` set in it; None while nothing is sealed.
    fn place(&mut self, log: &Log) -> Option<SegmentFile> {
        for _ in 0..2 {
            if let Some(segment) = log.segment(self.at.segment).copied()
                && let Some(end_lsn) = sealed_until(log, &segment)
            {
                if self.next_lsn < end_lsn && u64::from(self.at.offset) < log.segment_bytes() {
                    return Some(segment);
                }
                if let Some(next) = log.segment(segment.segment + 1).copied()
                    && sealed_until(log, &next).is_some()
                {
                    self.enter(&next);
                    return Some(next);
                }
            }
            // The round is over, or the segment was given back: from the oldest on.
            let oldest = *log.segments().next()?;
            // One that is not sealed may not know yet where it begins.
            sealed_until(log, &oldest)?;
            self.enter(&oldest);
        }
        None
    }

    fn enter(&mut self, segment: &SegmentFile) {
        self.at = Location {
            segment: segment.segment,
            offset: BLOCK_BYTES as u32,
        };
        self.next_lsn = segment.first_lsn;
    }

    /// A read came back.
    pub fn read_done(&mut self, log: &Log, buffer: Buffer, result: io::Result<usize>, now_ns: u64) {
        let Some(segment) = self.reading.take() else {
            return;
        };
        let same =
            |now: &SegmentFile| (now.slot, now.generation) == (segment.slot, segment.generation);
        let unchanged = log.segment(segment.segment).is_some_and(same);
        let (bytes_before, errors_before) = (self.bytes, self.errors);
        match (result, sealed_until(log, &segment)) {
            (Ok(count), Some(end_lsn)) if unchanged => {
                let count = count.min(buffer.len());
                self.verify(log, &segment, &buffer[..count], end_lsn);
            }
            (Err(error), _) if unchanged => self.found(log, &segment, &error.to_string()),
            _ => {}
        }
        self.buffer = Some(buffer);
        let verified = (self.bytes - bytes_before).max(BLOCK_BYTES as u64);
        let rest_ns = u128::from(verified) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let rest_ns = u64::try_from(rest_ns).unwrap_or(u64::MAX);
        // A device that fails every read must not fill the log with it.
        let least_ns = u64::from(self.errors > errors_before) * IDLE_NS;
        self.due_ns = now_ns.saturating_add(rest_ns.max(least_ns));
    }

    fn verify(&mut self, log: &Log, segment: &SegmentFile, bytes: &[u8], end_lsn: u64) {
        let header = log.header_of(segment);
        let mut used = 0;
        if bytes.is_empty() {
            return self.found(log, segment, "the file ends here");
        }
        while self.next_lsn < end_lsn && used < bytes.len() {
            let rest = &bytes[used..];
            match scan::batch_verified(&log.identity, &header, self.at.offset, rest) {
                Ok(info) if info.first_lsn == self.next_lsn => {
                    used += info.bytes as usize;
                    self.bytes += u64::from(info.bytes);
                    self.at.offset += info.bytes;
                    self.next_lsn += u64::from(info.records);
                }
                // The chunk ends in the middle of a batch: the next chunk starts at it.
                _ if used > 0 && is_cut_short(log, segment, self.at.offset, rest) => return,
                Ok(info) => {
                    let why = format!("a batch of lsn {} stands here", info.first_lsn);
                    return self.found(log, segment, &why);
                }
                Err(stop) => return self.found(log, segment, &why(&stop)),
            }
        }
    }

    /// Count and tell, then go on with the next segment: behind damage nothing says where the next batch is.
    fn found(&mut self, log: &Log, segment: &SegmentFile, why: &str) {
        self.errors += 1;
        tracing::error!(
            "log {} is damaged: segment-{:08}.seg (segment {}) at offset {}, lsn {}: {why}; run `pinion verify` on the data directory",
            log.identity.number,
            segment.slot,
            segment.segment,
            self.at.offset,
            self.next_lsn
        );
        self.next_lsn = u64::MAX;
    }
}

/// First lsn of the segment behind `segment`, once the log has gone on to it for good.
fn sealed_until(log: &Log, segment: &SegmentFile) -> Option<u64> {
    let next = log.segment(segment.segment + 1)?;
    let durable = next.first_lsn != 0 && next.first_lsn <= log.durable_lsn() + 1;
    (segment.first_lsn != 0 && durable && segment.segment < log.chain().segment)
        .then_some(next.first_lsn)
}

fn is_cut_short(log: &Log, segment: &SegmentFile, offset: u32, rest: &[u8]) -> bool {
    rest.len() < BLOCK_BYTES
        || scan::batch_at(&log.identity, &log.header_of(segment), offset, rest)
            .is_ok_and(|info| info.bytes as usize > rest.len())
}

fn why(stop: &Stop) -> String {
    match stop {
        Stop::Invalid(why) => why.clone(),
        other => format!("no batch where one must be ({other:?})"),
    }
}
