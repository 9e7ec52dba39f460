//! From the files of a log to a partition that takes writes: checkpoint, then the log behind it.
//!
//! Runs inside the shard's turn: while reads are awaited, connections are served (with 503 and its native twin). The
//! decision what an unreadable place means is `wal::recovery`'s; this module gathers the evidence. It writes nothing
//! before the decision: a crash until then leaves the files as they were. Then what was cut off is wiped (`wipe`).

mod checkpoint;
mod reads;
mod segments;
mod starts;
mod wipe;

use std::collections::{BTreeMap, VecDeque};

use index::IndexError;
use uring::Buffer;
use wal::LogIdentity;
use wal::chain::ChainPoint;
use wal::recovery::{Decision, Evidence, decide};
use wal::scan::{self, Stop};
use wal::segment::SegmentHeader;

use crate::driver::{Driver, LogFiles};
pub use crate::log::SparePolicy;
use crate::log::{Log, LogStart, SegmentFile};
use crate::partition::SpaceCounts;
use crate::replay::{Replay, ReplayError};
use crate::turn::Shard;

use reads::Loaded;
pub(crate) use reads::RecoveryReads;
use segments::Found;
use wipe::Stale;

/// Of a segment that is only looked through for batch headers.
const PROOF_PART_BYTES: usize = 256 * 1024;
/// So many of them are on their way at once.
const PROOF_PARTS_AHEAD: usize = 4;

/// What recovery needs to know besides the files.
#[derive(Clone, Debug)]
pub struct RecoverConfig {
    /// Who the log is.
    pub identity: LogIdentity,
    /// The writer's new term.
    pub epoch: u32,
    /// Bytes of a segment file.
    pub segment_bytes: u64,
    /// Segments kept prepared ahead of the log.
    pub segments_ahead: usize,
    /// When spare segment files give their space back.
    pub spare_policy: SparePolicy,
    /// Durable lsn that the superblock remembers from the last clean close.
    pub closed_durable_lsn: u64,
    /// Small batches are written so far apart under load.
    pub commit_window: std::time::Duration,
    /// Large batches that are on their way to the device at once.
    pub large_in_flight_max: usize,
}

/// What recovery did, for the log line and the metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// How long it took.
    pub seconds: f64,
    /// Keys that the newest segment header speaks of: what the index was sized for.
    pub keys_expected: u64,
    /// Keys that came from the checkpoint.
    pub checkpoint_keys: u64,
    /// Bytes of checkpoint read.
    pub checkpoint_bytes: u64,
    /// Bytes of log replayed.
    pub log_bytes: u64,
    /// Records replayed.
    pub records: u64,
    /// Last lsn of the log.
    pub durable_lsn: u64,
    /// Bytes of torn tail that were cut, in blocks that look written.
    pub cut: bool,
}

/// Why a log cannot be used: names file, offset and lsn.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The bytes are not what was acked.
    #[error("{0}")]
    Damage(String),
    /// Nothing is damaged.
    #[error(
        "the log has more keys than --memory leaves room for in the index ({keys} so far): start with the memory that it was run with, or more"
    )]
    IndexFull {
        /// Keys that found room.
        keys: u64,
    },
    /// The device or the file system refused.
    #[error("reading {what} failed: {error}")]
    Io {
        /// What was read.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
}

impl<D: Driver> Shard<D> {
    /// Recover the log in `files` and become ready. On damage the shard stops; the process and other shards go on.
    pub fn recover(
        &mut self,
        files: &LogFiles,
        config: &RecoverConfig,
    ) -> Result<Recovered, RecoverError> {
        let started = self.driver.now().monotonic_ns;
        let mut report = Recovered::default();
        let Found {
            mut segments,
            mut spare,
            keys_hint,
        } = self.find_segments(files, config)?;
        // Room for all of them at once: an index that grows moves every key seven times.
        self.core.partition.index.reset(keys_hint);
        report.keys_expected = keys_hint;
        let next_slot = files
            .segments
            .iter()
            .map(|(slot, ..)| slot + 1)
            .max()
            .unwrap_or(0);

        let (checkpoint, checkpointed_lsn) = self.load_checkpoint(files, config, &mut report)?;
        let mut at = match &checkpoint {
            Some(header) => header.replay_from,
            None => ChainPoint::genesis(1),
        };
        let replayed_from = at;
        let must_hold = checkpointed_lsn.max(config.closed_durable_lsn);

        // Below the first segment lie files that were released and not used again yet. They are left as they are until
        // both checkpoints say so: the other one may still need them.
        let released_through = checkpoint.as_ref().map_or(0, |c| c.released_through);
        let behind = segments.split_off(&(released_through + 1));
        let released: Vec<SegmentFile> = std::mem::replace(&mut segments, behind)
            .into_values()
            .collect();
        if let Some(header) = &checkpoint {
            self.core.partition.space = SpaceCounts::of(
                header,
                header
                    .log_time_us
                    .saturating_add(self.core.partition.largest_age_us()),
            );
        }

        let mut replay = Replay::default();
        let mut numbers = segments.keys().copied();
        if let Some(first) = numbers.next()
            && first > at.segment
        {
            let why = format!(
                "segment {} of log {} is missing: the oldest file holds segment {first}",
                at.segment, config.identity.number
            );
            return Err(RecoverError::Damage(why));
        }
        let gap = (released_through + 1..at.segment).find(|n| !segments.contains_key(n));
        if let Some(number) = gap {
            let why = format!(
                "segment {number} of log {} is missing: segments up to {released_through} were released, this one was not",
                config.identity.number
            );
            return Err(RecoverError::Damage(why));
        }
        // Only a new log has no segment at the place where its replay starts.
        if !segments.contains_key(&at.segment) && (checkpoint.is_some() || !segments.is_empty()) {
            let why = format!(
                "segment {} of log {} is missing, and replay starts in it",
                at.segment, config.identity.number
            );
            return Err(RecoverError::Damage(why));
        }
        let mut stale = Vec::new();
        let mut next = self.load(&segments, at.segment, config)?;
        while let Some(loaded) = next.take() {
            let number = loaded.header.segment;
            // On its way to memory while this one is walked.
            let ahead = self.start_load(&segments, number + 1, config)?;
            let (after, stop) = self.walk(&config.identity, &loaded, at, &mut replay, number)?;
            report.log_bytes += u64::from(after.offset)
                - u64::from(if at.segment == number { at.offset } else { 0 });
            let following = self.finish_load(ahead, &segments, number + 1, config)?;
            let next_continues = following
                .as_ref()
                .is_some_and(|f| scan::continues(&config.identity, &f.header, &f.bytes, &after));
            let proven_durable = !next_continues
                && (after.next_lsn <= must_hold
                    || self.is_proven(
                        &segments,
                        &loaded,
                        &after,
                        following.as_ref(),
                        config,
                        &mut stale,
                    )?);
            at = after;
            self.recovery.give_back(loaded.bytes);
            match decide(&Evidence {
                stop: stop.clone(),
                next_continues,
                proven_durable,
            }) {
                Decision::NextSegment => next = following,
                Decision::Cut => {
                    report.cut = !matches!(stop, Stop::NoBatch | Stop::End);
                    break;
                }
                Decision::Damage => {
                    let file = segments.get(&number).map_or(0, |s| s.slot);
                    let why = format!(
                        "log {} is damaged below its durable mark: segment-{file:08}.seg (segment {number}) at offset {}, lsn {}: {stop:?}; \
                         run `pinion verify` on the data directory",
                        config.identity.number, at.offset, at.next_lsn
                    );
                    return Err(RecoverError::Damage(why));
                }
            }
        }
        let partition = &mut self.core.partition;
        replay
            .finish(partition)
            .map_err(|e| RecoverError::Damage(e.to_string()))?;
        if at.next_lsn <= must_hold {
            let why = format!(
                "log {} ends at lsn {}, but lsn {must_hold} was durable: segment {} at offset {} lost it; run `pinion verify` on the data directory",
                config.identity.number,
                at.next_lsn - 1,
                at.segment,
                at.offset
            );
            return Err(RecoverError::Damage(why));
        }

        for stale in stale {
            if let Some(file) = segments.get(&stale.segment).copied() {
                self.wipe(&file, &stale)?;
            }
        }
        // What lies behind the end was never acked: its files are free.
        let mut live: Vec<SegmentFile> = Vec::new();
        for (number, segment) in segments {
            if number <= at.segment {
                live.push(segment)
            } else {
                spare.push(segment)
            }
        }
        self.find_starts(&mut live, &at, config)?;
        if live.is_empty() {
            live.push(self.first_segment(&mut spare, next_slot, config)?);
        }
        // The superblock may be the older of its two copies: the log itself knows which terms were used.
        self.core.epoch = config.epoch.max(at.epoch + 1);
        let next_slot = next_slot.max(live.iter().map(|s| s.slot + 1).max().unwrap_or(0));
        let pool = self.core.partition.log.take_pool();
        // What had ended by its age when the checkpoint was written stays ended, whatever the clock says now.
        let ended_us = checkpoint.as_ref().map_or(0, |c| c.log_time_us);
        at.log_time_us = at.log_time_us.max(ended_us);
        self.core.partition.log = Log::new(
            LogStart {
                identity: config.identity,
                epoch: self.core.epoch,
                chain: at,
                segments: live,
                released,
                spare,
                spare_policy: config.spare_policy,
                next_slot,
                segment_bytes: config.segment_bytes,
                segments_ahead: config.segments_ahead,
                no_room: files.no_room,
                commit_window: config.commit_window,
                large_in_flight_max: config.large_in_flight_max,
            },
            pool,
        );
        self.recovery.release();
        let partition = &mut self.core.partition;
        let first = partition.log.first_lsn();
        partition.copies.replayed(first, at.next_lsn - 1);
        if !partition.copies.is_empty() {
            self.space.goes_on(replayed_from);
        }
        let (keys, planned) = (partition.index.len(), partition.limits.index_keys);
        if keys > planned {
            tracing::warn!(
                shard = self.core.id,
                "the index holds {keys} keys, and the memory plan has room for {planned}: new ones are refused until compaction has let go of those that have ended; --memory gives it more"
            );
        }
        report.records = replay.records;
        report.durable_lsn = at.next_lsn - 1;
        report.seconds = (self.driver.now().monotonic_ns - started) as f64 / 1e9;
        Ok(report)
    }

    fn walk(
        &mut self,
        identity: &LogIdentity,
        loaded: &Loaded,
        at: ChainPoint,
        replay: &mut Replay,
        number: u32,
    ) -> Result<(ChainPoint, Stop), RecoverError> {
        let partition = &mut self.core.partition;
        let mut failed = None;
        let walked = scan::walk(
            identity,
            &loaded.header,
            &loaded.bytes,
            at,
            &mut |batch, location, record| {
                if batch.first_lsn == record.lsn && !partition.space.has_counted(record.lsn) {
                    partition.space.padding_bytes += u64::from(batch.bytes - batch.body_bytes);
                }
                if failed.is_none()
                    && let Err(error) = replay.record(partition, location, &record)
                {
                    failed = Some(error);
                }
            },
        );
        match failed {
            None => Ok(walked),
            Some(ReplayError::Index(IndexError::Full { keys })) => {
                Err(RecoverError::IndexFull { keys })
            }
            Some(error) => Err(RecoverError::Damage(format!(
                "log {} segment {number}: {error}",
                identity.number
            ))),
        }
    }

    /// Does anything behind `after` say that the next lsn was durable? If nothing does, `stale` is what lies there.
    fn is_proven(
        &mut self,
        segments: &BTreeMap<u32, SegmentFile>,
        stopped_in: &Loaded,
        after: &ChainPoint,
        following: Option<&Loaded>,
        config: &RecoverConfig,
        stale: &mut Vec<Stale>,
    ) -> Result<bool, RecoverError> {
        let lsn = after.next_lsn;
        let proves = |loaded: &Loaded, from: u32| {
            scan::proof_of_durability(&config.identity, &loaded.header, &loaded.bytes, from, lsn)
                .is_some()
        };
        if proves(stopped_in, after.offset) || following.is_some_and(|f| proves(f, 0)) {
            return Ok(true);
        }
        let number = stopped_in.header.segment;
        let from = after.offset as usize;
        stale.extend(Stale::find(number, &stopped_in.bytes, 0, from));
        if let Some(following) = following {
            stale.extend(Stale::find(number + 1, &following.bytes, 0, 0));
        }
        let later: Vec<u32> = segments
            .keys()
            .copied()
            .filter(|n| *n > stopped_in.header.segment + 1)
            .collect();
        for number in later {
            if self.is_proven_in(segments, number, lsn, config, stale)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Does a batch of this segment say it? Its first batch nearly always does if any: the first part is read alone, the others
    /// some at once, up to the proof.
    fn is_proven_in(
        &mut self,
        segments: &BTreeMap<u32, SegmentFile>,
        number: u32,
        lsn: u64,
        config: &RecoverConfig,
        stale: &mut Vec<Stale>,
    ) -> Result<bool, RecoverError> {
        let Some(segment) = segments.get(&number).copied() else {
            return Ok(false);
        };
        let header = segment.header(config);
        let what = format!("segment-{:08}.seg", segment.slot);
        let part_bytes = PROOF_PART_BYTES.min(config.segment_bytes as usize);
        let mut offsets = (0..config.segment_bytes).step_by(part_bytes);
        let (mut ahead, mut free) = (VecDeque::new(), Vec::new());
        let (mut proven, mut at_once) = (false, 1);
        loop {
            while !proven
                && ahead.len() < at_once
                && let Some(offset) = offsets.next()
            {
                let buffer = match free.pop() {
                    Some(buffer) => buffer,
                    None => Buffer::new(part_bytes).map_err(|error| RecoverError::Io {
                        what: what.clone(),
                        error,
                    })?,
                };
                let bytes = part_bytes.min((config.segment_bytes - offset) as usize);
                let read = self.start_read(segment.file, offset, buffer, bytes);
                ahead.push_back((read, offset, bytes));
            }
            let Some((read, offset, bytes)) = ahead.pop_front() else {
                return Ok(proven);
            };
            let buffer = self.await_read(read, bytes, &what)?;
            // Behind a proof what is still on its way is awaited and not looked at.
            if !proven {
                let part = &buffer[..bytes];
                let offset_in_segment = offset as u32; // a segment is smaller than 4 GiB
                proven =
                    scan::proof_in_part(&config.identity, &header, part, offset_in_segment, lsn)
                        .is_some();
                if !proven {
                    stale.extend(Stale::find(number, part, offset as usize, 0));
                }
            }
            free.push(buffer);
            at_once = PROOF_PARTS_AHEAD;
        }
    }
}

impl SegmentFile {
    fn header(&self, config: &RecoverConfig) -> SegmentHeader {
        SegmentHeader {
            identity: config.identity,
            segment: self.segment,
            generation: self.generation,
            segment_bytes: config.segment_bytes,
        }
    }
}
