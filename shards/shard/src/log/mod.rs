//! The open end of a shard's log: batches being filled, written and kept for reads, and the segments under them.
//!
//! Owns the writer, the batch buffers and the segment files' numbers. Invariants: batches reach the device in order of
//! their number, at most `depth` at a time; the durable lsn moves only over a gap-free run of completed batches; after a
//! failed or short write nothing becomes durable here again. It does not know requests, keys or connections.

mod kept;
mod room;
mod segments;
mod spares;

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use uring::{Buffer, BufferPool};
use wal::record::{NewRecord, RecordCodec};
use wal::writer::{Appended, Commits, SealedBatch, Writer};
use wal::{BLOCK_BYTES, LogIdentity};

use crate::commit_window::CommitWindow;
use crate::driver::{Driver, FileId, Now};
use crate::fill_pace::LogRate;
use crate::profile::LARGE_WRITES_IN_FLIGHT;
use crate::token::Token;

pub use room::Claim;
use room::densest;
use segments::ready;
pub use segments::segment_header;
pub use spares::SparePolicy;
use spares::{Spare, Spares};

/// Below this a batch counts as small: two small writes in flight are enough, more of them only cost CPU.
const SMALL_BATCH_BYTES: usize = 128 * 1024;
const SMALL_BATCHES_IN_FLIGHT: usize = 2;
/// Of a file that a crash left half made: it is made again from scratch, under its old name.
pub const UNMADE: FileId = FileId(u32::MAX);

/// Why an append cannot be taken now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// All batch buffers are on their way to the device: try again when a write completes.
    Buffers,
    /// The next segment is being prepared.
    Segment,
    /// No segment can be prepared, the disk is full, and what room is left is not for this.
    DiskFull,
    /// No segment can be prepared for another reason; it is tried again.
    NoSegment,
    /// A write failed; only a restart re-reads the media.
    Failed,
    /// The index has no room for another place.
    Index,
}

/// A segment file that holds, or will hold, a numbered segment of this log.
#[derive(Clone, Copy, Debug)]
pub struct SegmentFile {
    pub slot: u32,
    pub file: FileId,
    pub segment: u32,
    pub generation: u32,
    /// First lsn in it, 0 while nothing is. Where its first batch cannot be read: the lsn behind the segment before it.
    pub first_lsn: u64,
    /// Log time of its first batch, 0 while there is none.
    pub first_time_us: u64,
    /// Damage hides where it ends: it must not be given up at the lsn that the next one seems to begin with.
    pub end_unknown: bool,
}

impl SegmentFile {
    /// Nothing is in it yet.
    pub fn empty(slot: u32, file: FileId, segment: u32, generation: u32) -> SegmentFile {
        SegmentFile {
            slot,
            file,
            segment,
            generation,
            first_lsn: 0,
            first_time_us: 0,
            end_unknown: false,
        }
    }
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Fate {
    Queued,
    InFlight,
    Durable,
}

struct Frozen {
    batch: u64,
    segment: u32,
    offset: u32,
    bytes: u32,
    file: FileId,
    buffer: Rc<Buffer>,
    fate: Fate,
    last_lsn: u64,
    records: u32,
    opened_ns: u64,
    submitted_ns: u64,
}

/// One completed device write, for the metrics.
#[derive(Clone, Copy, Debug)]
pub struct WriteDone {
    pub write_ns: u64,
    /// From the batch's first record to its completion.
    pub commit_ns: u64,
    pub bytes: u32,
    pub records: u32,
    /// The durable lsn if it moved.
    pub durable_lsn: Option<u64>,
}

/// The open end of the log. See the module's header.
pub struct Log {
    pub identity: LogIdentity,
    pub codec: RecordCodec,
    writer: Writer<Buffer>,
    commits: Commits,
    pool: BufferPool,
    /// Frozen batches in log order: queued, in flight, then kept for reads until their buffer is wanted.
    window: VecDeque<Frozen>,
    queued: usize,
    in_flight: usize,
    segments: VecDeque<SegmentFile>,
    segment_bytes: u64,
    segments_ahead: usize,
    next_slot: u32,
    /// The file being prepared, and its old life if it is recycled.
    pending: Option<(SegmentFile, Option<Spare>)>,
    prepare_retry_ns: u64,
    /// Segments that hold nothing any more, ascending, until no checkpoint that could be used speaks of them.
    released: VecDeque<SegmentFile>,
    /// Files without a segment, with the generation they last had.
    spares: Spares,
    /// Files whose space was given back.
    pub given_back: u64,
    /// For the metrics: files of released segments that were given to reuse.
    pub recycled: u64,
    marked_lsn: u64,
    failed: Option<String>,
    /// Why no new file could be made for a segment; None once one could. Files that are used again do not count.
    no_segment: Option<std::io::Error>,
    /// An append was refused for that, and nothing has made room since.
    refused: bool,
    /// The most records in one of the segments before the open one.
    densest_records: u64,
    checkpoint_bytes: u64,
    pub bytes_written: u64,
    /// Of what was sealed: headers and padding.
    pub padding_bytes: u64,
    log_time_us: u64,
    rate: LogRate,
    /// Keys in the index, for the headers of the segments to come.
    keys_hint: u64,
    commit_window: CommitWindow,
    large_in_flight_max: usize,
    /// Start of the turn, and when the open batch was opened.
    now_ns: u64,
    opened_ns: u64,
    unit_bytes_max: usize,
    line: Line,
}

/// Who may take batch buffers.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    /// Requests wait for buffers: others get none, or large units would wait for ever while small ones take each buffer
    /// that becomes free.
    waits: bool,
    /// The first of them asks now.
    turn: bool,
}

/// What recovery hands over: where the log continues and on which files.
pub struct LogStart {
    pub identity: LogIdentity,
    pub epoch: u32,
    pub chain: wal::chain::ChainPoint,
    /// Segments that hold data, ascending; the last is the one that `chain` points into.
    pub segments: Vec<SegmentFile>,
    /// Segments that were released, ascending; a checkpoint may still speak of them.
    pub released: Vec<SegmentFile>,
    /// Files that hold nothing any more.
    pub spare: Vec<SegmentFile>,
    /// When their space is given back to the filesystem.
    pub spare_policy: SparePolicy,
    pub next_slot: u32,
    pub segment_bytes: u64,
    pub segments_ahead: usize,
    /// The filesystem has no room for more segment files: known before the first one is tried.
    pub no_room: bool,
    /// Small batches are started so far apart under load.
    pub commit_window: Duration,
    /// Large batches that are on their way to the device at once.
    pub large_in_flight_max: usize,
}

impl Log {
    /// Continue a log. `start.segments` must not be empty.
    pub fn new(start: LogStart, pool: BufferPool) -> Log {
        let current = *start
            .segments
            .last()
            .expect("a log starts on a prepared segment");
        assert_eq!(
            current.segment, start.chain.segment,
            "the chain continues in the last segment"
        );
        let ready = ready(&current, start.segment_bytes);
        let segments = start.segments.into();
        let durable = start.chain.next_lsn - 1;
        let unit_bytes_max =
            wal::writer::unit_bytes_max(start.segment_bytes as usize, pool.bytes_each());
        Log {
            unit_bytes_max,
            line: Line::default(),
            now_ns: 0,
            opened_ns: 0,
            identity: start.identity,
            codec: RecordCodec::new(&start.identity),
            writer: Writer::new(start.identity, start.epoch, start.chain, ready),
            commits: Commits::new(durable, start.chain.next_batch),
            pool,
            window: VecDeque::new(),
            queued: 0,
            in_flight: 0,
            densest_records: densest(&segments),
            segments,
            segment_bytes: start.segment_bytes,
            segments_ahead: start.segments_ahead,
            next_slot: start.next_slot,
            pending: None,
            prepare_retry_ns: 0,
            released: start.released.into(),
            spares: Spares::new(start.spare, start.spare_policy),
            given_back: 0,
            recycled: 0,
            marked_lsn: 0,
            failed: None,
            no_segment: start
                .no_room
                .then(|| std::io::ErrorKind::StorageFull.into()),
            refused: false,
            checkpoint_bytes: 0,
            bytes_written: 0,
            padding_bytes: 0,
            log_time_us: start.chain.log_time_us,
            rate: LogRate::default(),
            keys_hint: 0,
            commit_window: CommitWindow::new(start.commit_window),
            large_in_flight_max: start.large_in_flight_max,
        }
    }

    /// Log time: the larger of the clock and the last one given.
    pub fn advance_time(&mut self, now: Now) {
        self.log_time_us = self.log_time_us.max(now.wall_us);
        self.now_ns = now.monotonic_ns;
    }
    pub fn log_time_us(&self) -> u64 {
        self.log_time_us
    }
    pub fn durable_lsn(&self) -> u64 {
        self.commits.durable_lsn()
    }
    pub fn next_lsn(&self) -> u64 {
        self.writer.next_lsn()
    }
    pub fn failed(&self) -> Option<&str> {
        self.failed.as_deref()
    }
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }
    pub fn chain(&self) -> wal::chain::ChainPoint {
        self.writer.chain()
    }
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = &SegmentFile> {
        self.segments.iter()
    }
    pub fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }
    pub fn spare_segments(&self) -> usize {
        self.spares.with_space()
    }
    pub fn segments_ready(&self) -> usize {
        self.writer.segments_ahead()
    }

    /// A log that is not recovered yet: refuses everything.
    pub fn recovering(identity: LogIdentity, segment_bytes: u64, pool: BufferPool) -> Log {
        let nowhere = SegmentFile::empty(0, UNMADE, 1, 0);
        let start = LogStart {
            identity,
            epoch: 1,
            chain: wal::chain::ChainPoint::genesis(1),
            segments: vec![nowhere],
            released: Vec::new(),
            spare: Vec::new(),
            spare_policy: SparePolicy::NEVER,
            next_slot: 0,
            segment_bytes,
            segments_ahead: 0,
            no_room: false,
            commit_window: Duration::ZERO,
            large_in_flight_max: LARGE_WRITES_IN_FLIGHT,
        };
        let mut log = Log::new(start, pool);
        log.failed = Some("the log is not recovered yet".into());
        log
    }

    /// Append one record of a unit that `make_room` has made room for.
    #[inline]
    pub fn append(&mut self, record: &NewRecord<'_>) -> Appended {
        if self.writer.room() < wal::record::encoded_bytes(record) {
            self.freeze(false);
            let least = wal::record::encoded_bytes(record);
            self.open(least)
                .expect("make_room has counted the buffers and the segment's room");
        }
        self.writer.append(record)
    }

    /// Seal the open batch and queue it.
    fn freeze(&mut self, commits: bool) {
        let durable = self.commits.durable_lsn();
        let Some(sealed) = self.writer.seal(commits, durable, self.log_time_us) else {
            return;
        };
        self.marked_lsn = durable;
        self.queue(sealed);
    }

    fn queue(&mut self, sealed: SealedBatch<Buffer>) {
        let SealedBatch {
            batch,
            file,
            segment,
            offset,
            bytes,
            body_bytes,
            buffer,
            first_lsn,
            last_lsn,
            records,
            commits,
        } = sealed;
        if let Some(s) = self
            .segments
            .iter_mut()
            .rev()
            .find(|s| s.segment == segment)
            && s.first_lsn == 0
        {
            debug_assert_eq!(
                offset as usize, BLOCK_BYTES,
                "a segment begins with its first batch"
            );
            s.first_lsn = first_lsn;
            s.first_time_us = self.log_time_us;
            self.densest_records = self.densest_records.max(densest(&self.segments));
        }
        self.window.push_back(Frozen {
            batch,
            segment,
            offset,
            bytes,
            file: FileId(file),
            buffer: Rc::new(buffer),
            fate: Fate::Queued,
            last_lsn,
            records,
            opened_ns: self.opened_ns,
            submitted_ns: 0,
        });
        self.queued += 1;
        self.padding_bytes += u64::from(bytes - body_bytes);
        self.commits.submitted(batch, last_lsn, commits);
    }

    /// When the open batch may be sealed if nothing else happens; None: there is none, or it waits for a write slot.
    pub fn open_batch_due_ns(&self) -> Option<u64> {
        if self.failed.is_some() || self.queued > 0 || !self.writer.is_open() {
            return None;
        }
        if self.writer.records() == 0 {
            return None;
        }
        let filled = self.pool.bytes_each().saturating_sub(self.writer.room());
        if filled >= SMALL_BATCH_BYTES {
            return (self.in_flight < self.large_in_flight_max).then_some(0);
        }
        (self.in_flight < SMALL_BATCHES_IN_FLIGHT).then(|| self.commit_window.due_ns())
    }

    /// Seal what is open if a write slot is free for it, and start queued writes. Called once a turn.
    pub fn pump<D: Driver>(&mut self, driver: &mut D, now_ns: u64) {
        if self.failed.is_some() {
            return;
        }
        if self.open_batch_due_ns().is_some_and(|due| due <= now_ns) {
            self.freeze(true);
        }
        while self.queued > 0 && self.in_flight < self.large_in_flight_max {
            let at = self.window.len() - self.queued;
            let frozen = &mut self.window[at];
            self.commit_window.started(now_ns, frozen.records);
            frozen.fate = Fate::InFlight;
            frozen.submitted_ns = now_ns;
            driver.write_durable(
                frozen.file,
                u64::from(frozen.offset),
                Rc::clone(&frozen.buffer),
                0..frozen.bytes as usize,
                Token::log_write(frozen.batch),
            );
            self.queued -= 1;
            self.in_flight += 1;
        }
        self.prepare_ahead(driver, now_ns);
    }

    /// While nothing else happens: write down that the last acks are durable, so that damage to the very last batch is
    /// told from a torn tail. At most one empty batch after each burst.
    pub fn mark_idle(&mut self) -> bool {
        if self.failed.is_some()
            || self.in_flight > 0
            || self.queued > 0
            || self.marked_lsn >= self.commits.durable_lsn()
        {
            return false;
        }
        if self.writer.is_open() && self.writer.records() > 0 {
            return false;
        }
        if self.pool.available() == 0 && !self.evict_one() {
            return false;
        }
        if !self.writer.is_open() && self.open(0).is_err() {
            return false;
        }
        self.freeze(true);
        true
    }

    /// True while acked or appended records are not yet covered by the device.
    pub fn is_dirty(&self) -> bool {
        self.in_flight > 0
            || self.queued > 0
            || (self.writer.is_open() && self.writer.records() > 0)
    }

    /// A write of batch `batch` came back.
    pub fn written(
        &mut self,
        batch: u64,
        result: std::io::Result<usize>,
        now_ns: u64,
    ) -> Option<WriteDone> {
        let first = self.window.front().map_or(0, |f| f.batch);
        let index = usize::try_from(batch.checked_sub(first)?).ok()?;
        let frozen = self.window.get_mut(index)?;
        assert_eq!(frozen.batch, batch, "the window is dense in batch numbers");
        self.in_flight -= 1;
        let problem = match result {
            Ok(n) if n == frozen.bytes as usize => None,
            Ok(n) => Some(format!("short write: {n} of {} bytes", frozen.bytes)),
            Err(e) => Some(e.to_string()),
        };
        if let Some(problem) = problem {
            let where_ = format!(
                "segment {} offset {} batch {batch}: {problem}",
                frozen.segment, frozen.offset
            );
            tracing::error!(
                log = self.identity.number,
                "log write failed, nothing is acked here until a restart re-reads the media: {where_}"
            );
            self.failed.get_or_insert(where_);
            return None;
        }
        frozen.fate = Fate::Durable;
        let done = WriteDone {
            write_ns: now_ns.saturating_sub(frozen.submitted_ns),
            commit_ns: now_ns.saturating_sub(frozen.opened_ns),
            bytes: frozen.bytes,
            records: frozen.records,
            durable_lsn: None,
        };
        self.bytes_written += u64::from(done.bytes);
        // Behind a failed write nothing may become durable, even if a later batch did reach the device.
        let durable_lsn = if self.failed.is_some() {
            None
        } else {
            self.commits.completed(batch)
        };
        Some(WriteDone {
            durable_lsn,
            ..done
        })
    }

    /// Bytes of all batch buffers.
    pub fn buffer_bytes(&self) -> u64 {
        (self.pool.count() * self.pool.bytes_each()) as u64
    }

    /// Every batch numbered below `batch` is on stable storage.
    pub fn is_complete_below(&self, batch: u64) -> bool {
        self.window
            .iter()
            .all(|f| f.batch >= batch || f.fate == Fate::Durable)
    }

    /// Take the buffers for the log that replaces this one.
    pub fn take_pool(&mut self) -> BufferPool {
        self.window.clear();
        self.pool.clone()
    }

    /// Give up the oldest kept batch so that its buffer can be filled again.
    fn evict_one(&mut self) -> bool {
        match self.window.front() {
            Some(f) if f.fate == Fate::Durable => {
                self.window.pop_front();
                true
            }
            _ => false,
        }
    }
}
