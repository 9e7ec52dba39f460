//! Checkpoints of a partition, written in the background in slices that do not stall the shard.
//!
//! A checkpoint says: the index, the streams and the retry windows as they were while it was written, and the place in the
//! log from which replay makes them current. It may name records up to `max_lsn`; its header, which makes it valid, is
//! written only once they are durable. Two files are written in turns, so the last good one is never touched.

use std::rc::Rc;

use index::checkpoint::{
    CheckpointHeader, HEADER_BYTES, PAGE_BYTES, PAGE_ENTRIES, SECTION_BYTES_MAX, Section,
    encode_bytes, encode_entries,
};
use index::{Digest, Entry};
use uring::Buffer;
use wal::LogIdentity;
use wal::chain::ChainPoint;

use crate::dedup::{CarriedCursor, ProducersCursor};
use crate::driver::{Driver, FileId, LogFiles};
use crate::partition::{Partition, SpaceCounts};
use crate::token::Token;

/// Pages in flight at once, and between two looks at the clock.
pub(crate) const PAGES_AT_ONCE: usize = 2;

/// Behind one that failed.
const RETRY_NS: u64 = 5_000_000_000;

enum Stage {
    Idle,
    /// Sections, in file order. Streams come behind the entries: replay counts only records above a stream's last lsn, and
    /// tells a new key from a known one by the index, so the index must not hold what the counts do not.
    Entries(Digest),
    Streams(u32),
    Producers(ProducersCursor),
    Keys(u64),
    Carried(CarriedCursor),
    /// All pages are written: wait until `max_lsn` is durable, then sync them.
    Settle,
    SyncPages,
    Header,
    SyncHeader,
}

/// Writes checkpoints of one log.
pub struct Checkpointer {
    files: [Option<FileId>; 2],
    /// Which file is written next.
    turn: usize,
    sequence: u64,
    /// Log bytes behind the last checkpoint that ask for the next.
    every_log_bytes: u64,
    stage: Stage,
    identity: Option<LogIdentity>,
    from: Option<ChainPoint>,
    /// What was released when it began.
    released_through: u32,
    /// Last lsn that was sealed when it began.
    taken_lsn: u64,
    /// The same of the last good checkpoint in each file; 0 where there is none.
    released_in: [u32; 2],
    space: SpaceCounts,
    /// Last lsn that they count.
    counted_lsn: u64,
    max_lsn: u64,
    pages: u64,
    keys: u64,
    in_flight: usize,
    free: Vec<Buffer>,
    entries: Vec<(Digest, Entry)>,
    chunk: Vec<u8>,
    last: Option<(u64, u64)>,
    last_log_bytes: u64,
    started_ns: u64,
    failed: bool,
    retry_at_ns: u64,
    /// For the metrics: how many, how long the last took, its bytes, when it ended.
    pub written: u64,
    pub seconds: f64,
    pub bytes: u64,
    pub ended_ns: u64,
}

impl Checkpointer {
    /// `every_log_bytes`: how much log may gather before a checkpoint is begun.
    pub fn new(files: [Option<FileId>; 2], every_log_bytes: u64) -> Checkpointer {
        Checkpointer {
            files,
            turn: 0,
            sequence: 0,
            every_log_bytes,
            stage: Stage::Idle,
            identity: None,
            from: None,
            released_through: 0,
            taken_lsn: 0,
            released_in: [0; 2],
            space: SpaceCounts::default(),
            counted_lsn: 0,
            max_lsn: 0,
            pages: 0,
            keys: 0,
            in_flight: 0,
            free: Vec::new(),
            entries: Vec::new(),
            chunk: Vec::new(),
            last: None,
            last_log_bytes: 0,
            started_ns: 0,
            failed: false,
            retry_at_ns: 0,
            written: 0,
            seconds: 0.0,
            bytes: 0,
            ended_ns: 0,
        }
    }

    /// A header with this number is there, usable or not: its pages must never be taken for those of a later one.
    pub(crate) fn seen(&mut self, sequence: u64) {
        self.sequence = self.sequence.max(sequence);
    }

    /// Recovery used this checkpoint: the other file is written next.
    pub(crate) fn loaded(&mut self, header: &CheckpointHeader, file: FileId, files: &LogFiles) {
        self.turn = usize::from(files.checkpoints[0] == Some(file));
        self.last = Some((header.replay_from.next_lsn - 1, header.max_lsn));
        // Whether the other one could be used, and what it says, is not known: it is written next.
        self.released_in[1 - self.turn] = header.released_through;
    }

    /// Segments up to this one are released in every checkpoint that could be used: their files may be overwritten.
    pub fn recyclable_through(&self) -> u32 {
        self.released_in[0].min(self.released_in[1])
    }

    /// About the bytes of a checkpoint.
    pub(crate) fn bytes_of_next(partition: &Partition) -> u64 {
        let entries = partition.index.len().div_ceil(PAGE_ENTRIES as u64);
        (entries + 3) * PAGE_BYTES as u64
    }

    /// What a checkpoint may come to while the open segment and those ahead are filled, if keys go on coming as they did.
    pub(crate) fn bytes_to_reserve(&self, partition: &Partition) -> u64 {
        let segment = partition.log.segment_bytes();
        let now = Checkpointer::bytes_of_next(partition).max(self.bytes);
        let log = partition.space.record_bytes.max(segment);
        // An entry of a checkpoint is no longer than the record that it names, however large the checkpoint is by now.
        let more = u128::from(now) * u128::from(3 * segment) / u128::from(log);
        now + (more as u64).min(3 * segment) + segment / 8
    }

    /// Enough segments wait for checkpoints that let go of them.
    fn is_wanted_for_space(partition: &Partition) -> bool {
        let waiting = partition.log.released_segments() as u64 * partition.log.segment_bytes();
        waiting
            >= partition
                .log
                .segment_bytes()
                .max(2 * Checkpointer::bytes_of_next(partition))
            || (waiting > 0 && partition.log.is_tight())
    }

    /// The last checkpoint holds everything that the log does.
    pub fn is_current(&self, partition: &Partition) -> bool {
        matches!(self.stage, Stage::Idle)
            && self
                .last
                .is_some_and(|(from, _)| from + 1 == partition.log.next_lsn())
    }
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// A file is being written over.
    #[cfg(test)]
    pub(crate) fn is_writing(&self) -> bool {
        !matches!(self.stage, Stage::Idle)
    }

    /// Do a slice of work, or begin a checkpoint when one is due (`now` asks for one at once).
    pub fn step<D: Driver>(
        &mut self,
        partition: &mut Partition,
        driver: &mut D,
        now_ns: u64,
        at_once: bool,
        replay_from: Option<ChainPoint>,
    ) {
        let Some(file) = self.files[self.turn] else {
            return;
        };
        if matches!(self.stage, Stage::Idle) {
            let grown = partition.log.bytes_written - self.last_log_bytes;
            // A checkpoint that costs more to write than the log it saves is not worth it.
            let worth = self.every_log_bytes.max(2 * 36 * partition.index.len());
            // One that failed is tried again after a while, however little the log has grown since; a drain does not wait for it.
            let due = grown >= worth
                || (self.failed && !at_once)
                || Checkpointer::is_wanted_for_space(partition)
                || (at_once && !self.is_current(partition) && !self.failed);
            // Writes of one that was given up must not land in the next.
            if !due
                || self.in_flight > 0
                || partition.log.failed().is_some()
                || (now_ns < self.retry_at_ns && !at_once)
            {
                return;
            }
            self.begin(partition, now_ns, replay_from);
        }
        while self.in_flight < PAGES_AT_ONCE && self.advance(partition, driver, file, now_ns) {}
    }

    /// `replay_from`: an earlier place than the log's end, where something needs the log behind it replayed.
    fn begin(&mut self, partition: &mut Partition, now_ns: u64, replay_from: Option<ChainPoint>) {
        // What is sealed is what the chain covers; records of the open batch have higher lsns and are replayed.
        let end = partition.log.chain();
        self.taken_lsn = end.next_lsn - 1;
        let from = replay_from.unwrap_or(end);
        self.from = Some(from);
        self.identity = Some(partition.log.identity);
        self.sequence += 1;
        self.last_log_bytes = partition.log.bytes_written;
        // What is to be replayed must be there, released or not.
        self.released_through = (partition.log.first_segment() - 1).min(from.segment - 1);
        self.space = partition.space.clone();
        self.counted_lsn = partition.log.next_lsn() - 1;
        (self.pages, self.keys, self.max_lsn) = (0, 0, 0);
        self.failed = false;
        self.started_ns = now_ns;
        self.stage = Stage::Entries(Digest(0));
    }

    /// One step of the current stage. False: wait for a completion (or for the log).
    fn advance<D: Driver>(
        &mut self,
        partition: &mut Partition,
        driver: &mut D,
        file: FileId,
        now_ns: u64,
    ) -> bool {
        let Some(identity) = self.identity else {
            return false;
        };
        // A page that is left out would be keys that are lost: without memory for it there is no checkpoint.
        if matches!(
            self.stage,
            Stage::Entries(_)
                | Stage::Streams(_)
                | Stage::Producers(_)
                | Stage::Keys(_)
                | Stage::Carried(_)
        ) && self.free.is_empty()
        {
            match Buffer::new(PAGE_BYTES) {
                Ok(buffer) => self.free.push(buffer),
                Err(error) => return self.fail(&error.to_string(), now_ns),
            }
        }
        match self.stage {
            Stage::Idle => return false,
            Stage::Streams(cursor) => {
                self.chunk.clear();
                let next = partition
                    .streams
                    .export(cursor, SECTION_BYTES_MAX, &mut self.chunk);
                self.page(driver, file, |sequence, number, chunk, _, page| {
                    encode_bytes(&identity, sequence, number, Section::Streams, chunk, page)
                });
                self.stage =
                    next.map_or(Stage::Producers(ProducersCursor::default()), Stage::Streams);
            }
            Stage::Producers(cursor) => {
                self.chunk.clear();
                let next = partition
                    .producers
                    .export(cursor, SECTION_BYTES_MAX, &mut self.chunk);
                self.page(driver, file, |sequence, number, chunk, _, page| {
                    encode_bytes(&identity, sequence, number, Section::Producers, chunk, page)
                });
                self.stage = next.map_or(Stage::Keys(0), Stage::Producers);
            }
            Stage::Keys(cursor) => {
                self.chunk.clear();
                let next = partition
                    .keys
                    .export(cursor, SECTION_BYTES_MAX, &mut self.chunk);
                self.page(driver, file, |sequence, number, chunk, _, page| {
                    encode_bytes(
                        &identity,
                        sequence,
                        number,
                        Section::IdempotencyKeys,
                        chunk,
                        page,
                    );
                });
                self.stage = next.map_or(Stage::Carried(CarriedCursor::default()), Stage::Keys);
            }
            Stage::Carried(cursor) => {
                let mut next = None;
                // A store whose shards were never changed has no such section.
                if !partition.carried.is_empty() {
                    self.chunk.clear();
                    next = partition
                        .carried
                        .export(cursor, SECTION_BYTES_MAX, &mut self.chunk);
                    self.page(driver, file, |sequence, number, chunk, _, page| {
                        encode_bytes(&identity, sequence, number, Section::Carried, chunk, page)
                    });
                }
                self.stage = next.map_or(Stage::Settle, Stage::Carried);
                if next.is_none() {
                    self.max_lsn = partition.log.next_lsn() - 1;
                }
            }
            Stage::Entries(cursor) => {
                self.entries.clear();
                let next = partition
                    .index
                    .export(cursor, PAGE_ENTRIES, &mut self.entries);
                self.keys += self.entries.len() as u64;
                if !self.entries.is_empty() {
                    self.page(driver, file, |sequence, number, _, entries, page| {
                        encode_entries(&identity, sequence, number, entries, page);
                    });
                }
                self.stage = next.map_or(Stage::Streams(0), Stage::Entries);
            }
            Stage::Settle => {
                let from = self.from.expect("set when it began");
                // The batch before the replay point too (it may be a mark without records): a log that went on behind a
                // lost batch could not be read without this checkpoint.
                if self.in_flight > 0
                    || partition.log.durable_lsn() < self.max_lsn
                    || !partition.log.is_complete_below(from.next_batch)
                {
                    return false;
                }
                driver.sync(file, Token::checkpoint(self.sequence));
                self.in_flight += 1;
                self.stage = Stage::SyncPages;
                return false;
            }
            Stage::SyncPages => {
                if self.in_flight > 0 {
                    return false;
                }
                let header = CheckpointHeader {
                    identity,
                    sequence: self.sequence,
                    replay_from: self.from.expect("set when it began"),
                    max_lsn: self.max_lsn,
                    pages: self.pages,
                    keys: self.keys,
                    log_time_us: partition.log.log_time_us(),
                    released_through: self.released_through,
                    record_bytes: self.space.record_bytes,
                    dead_bytes: self.space.dead_bytes,
                    aging_bytes: self.space.aging_bytes(),
                    padding_bytes: self.space.padding_bytes,
                    counted_lsn: self.counted_lsn,
                };
                let Ok(mut buffer) = Buffer::new(HEADER_BYTES) else {
                    return self.fail("no memory for the header", now_ns);
                };
                header.encode(&mut buffer[..HEADER_BYTES]);
                driver.write(
                    file,
                    0,
                    Rc::new(buffer),
                    0..HEADER_BYTES,
                    Token::checkpoint(self.sequence),
                );
                self.in_flight += 1;
                self.stage = Stage::Header;
                return false;
            }
            Stage::Header => {
                if self.in_flight > 0 {
                    return false;
                }
                driver.sync(file, Token::checkpoint(self.sequence));
                self.in_flight += 1;
                self.stage = Stage::SyncHeader;
                return false;
            }
            Stage::SyncHeader => {
                if self.in_flight > 0 {
                    return false;
                }
                self.last = Some((self.taken_lsn, self.max_lsn));
                self.released_in[self.turn] = self.released_through;
                self.turn = 1 - self.turn;
                self.written += 1;
                self.seconds = (now_ns - self.started_ns) as f64 / 1e9;
                self.bytes = HEADER_BYTES as u64 + self.pages * PAGE_BYTES as u64;
                self.ended_ns = now_ns;
                self.stage = Stage::Idle;
                tracing::debug!(
                    log = identity.number,
                    "checkpoint {} written: {} keys, {:.3} s",
                    self.sequence,
                    self.keys,
                    self.seconds
                );
                return false;
            }
        }
        true
    }

    fn page<D: Driver>(
        &mut self,
        driver: &mut D,
        file: FileId,
        encode: impl FnOnce(u64, u64, &[u8], &[(Digest, Entry)], &mut [u8]),
    ) {
        let mut buffer = self.free.pop().expect("advance has made one");
        encode(
            self.sequence,
            self.pages,
            &self.chunk,
            &self.entries,
            &mut buffer[..PAGE_BYTES],
        );
        let offset = HEADER_BYTES as u64 + self.pages * PAGE_BYTES as u64;
        driver.write(
            file,
            offset,
            Rc::new(buffer),
            0..PAGE_BYTES,
            Token::checkpoint(self.sequence),
        );
        self.pages += 1;
        self.in_flight += 1;
    }

    fn fail(&mut self, why: &str, now_ns: u64) -> bool {
        tracing::warn!(
            "checkpoint {} given up ({why}): the last one stays, a restart replays more log",
            self.sequence
        );
        self.failed = true;
        self.stage = Stage::Idle;
        self.retry_at_ns = now_ns + RETRY_NS;
        false
    }

    /// A page or the header was written.
    pub(crate) fn written(&mut self, result: std::io::Result<usize>, now_ns: u64) {
        self.in_flight -= 1;
        let whole = match self.stage {
            Stage::Header => HEADER_BYTES,
            _ => PAGE_BYTES,
        };
        match result {
            Ok(count) if count == whole => {}
            // It was given up before.
            Ok(_) if matches!(self.stage, Stage::Idle) => {}
            Ok(count) => {
                self.fail(&format!("short write of {count} bytes"), now_ns);
            }
            Err(error) => {
                self.fail(&error.to_string(), now_ns);
            }
        }
    }

    pub(crate) fn synced(&mut self, result: std::io::Result<()>, now_ns: u64) {
        self.in_flight -= 1;
        if let Err(error) = result {
            self.fail(&error.to_string(), now_ns);
        }
    }
}
