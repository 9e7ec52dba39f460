//! From the files of a log to a partition that takes writes: checkpoint, then the log behind it.
//!
//! Runs inside the shard's turn: while reads are awaited, connections are served (with 503 and its native twin). The
//! decision what an unreadable place means is `wal::recovery`'s; this module gathers the evidence. It writes nothing:
//! a crash during recovery leaves the files as they were.

use std::collections::BTreeMap;
use std::time::Duration;

use index::checkpoint::{self, CheckpointHeader, Page, Section};
use uring::Buffer;
use wal::chain::ChainPoint;
use wal::recovery::{Decision, Evidence, decide};
use wal::scan::{self, Stop};
use wal::segment::SegmentHeader;
use wal::{BLOCK_BYTES, LogIdentity};

use crate::driver::{Driver, Event, FileId, LogFiles, Patience};
use crate::log::{Log, LogStart, SegmentFile, UNMADE};
use crate::replay::Replay;
use crate::token::{Kind, Token};
use crate::turn::Shard;

/// Pages of a checkpoint read at once.
const CHECKPOINT_READ_PAGES: usize = 16;

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
    /// Durable lsn that the superblock remembers from the last clean close.
    pub closed_durable_lsn: u64,
}

/// What recovery did, for the log line and the metrics.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Recovered {
    /// How long it took.
    pub seconds: f64,
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
    /// The device or the file system refused.
    #[error("reading {what} failed: {error}")]
    Io {
        /// What was read.
        what: String,
        /// What the system said.
        error: std::io::Error,
    },
}

/// What happened in one look at a driver.
type Events<D> = Vec<Event<<D as Driver>::Socket, <D as Driver>::Received>>;

struct Loaded {
    header: SegmentHeader,
    bytes: Buffer,
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
        let (segments, mut spare) = self.find_segments(files, config)?;
        let next_slot = files
            .segments
            .iter()
            .map(|(slot, ..)| slot + 1)
            .max()
            .unwrap_or(0);

        let checkpoint = self.load_checkpoint(files, config, &mut report)?;
        let mut at = match &checkpoint {
            Some(header) => header.replay_from,
            None => ChainPoint::genesis(1),
        };
        let must_hold = checkpoint
            .as_ref()
            .map_or(0, |c| c.max_lsn)
            .max(config.closed_durable_lsn);

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
        // Only a new log has no segment at the place where its replay starts.
        if !segments.contains_key(&at.segment) && (checkpoint.is_some() || !segments.is_empty()) {
            let why = format!(
                "segment {} of log {} is missing, and replay starts in it",
                at.segment, config.identity.number
            );
            return Err(RecoverError::Damage(why));
        }
        let mut next = self.load(&segments, at.segment, config)?;
        while let Some(loaded) = next.take() {
            let number = loaded.header.segment;
            let ahead = self.start_load(&segments, number + 1, config)?;
            let (after, stop) = self.walk(&config.identity, &loaded, at, &mut replay, number)?;
            report.log_bytes += u64::from(after.offset)
                - u64::from(if at.segment == number { at.offset } else { 0 });
            let following = self.finish_load(ahead, &segments, number + 1, config)?;
            let next_continues = following
                .as_ref()
                .is_some_and(|f| scan::continues(&config.identity, &f.header, &f.bytes, &after));
            let proven_durable = !next_continues
                && self.is_proven(
                    &segments,
                    &loaded,
                    &after,
                    following.as_ref(),
                    must_hold,
                    config,
                )?;
            at = after;
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

        // What lies behind the end was never acked: its files are free.
        let mut live: Vec<SegmentFile> = Vec::new();
        for (number, segment) in segments {
            if number <= at.segment {
                live.push(segment)
            } else {
                spare.push(segment)
            }
        }
        self.first_lsns(&mut live, config)?;
        if live.is_empty() {
            live.push(self.first_segment(&mut spare, next_slot, config)?);
        }
        // The superblock may be the older of its two copies: the log itself knows which terms were used.
        self.core.epoch = config.epoch.max(at.epoch + 1);
        let next_slot = next_slot.max(live.iter().map(|s| s.slot + 1).max().unwrap_or(0));
        let pool = self.core.partition.log.take_pool();
        self.core.partition.log = Log::new(
            LogStart {
                identity: config.identity,
                epoch: self.core.epoch,
                chain: at,
                segments: live,
                spare,
                next_slot,
                segment_bytes: config.segment_bytes,
                segments_ahead: config.segments_ahead,
            },
            pool,
        );
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
            &mut |_, location, record| {
                if failed.is_none()
                    && let Err(error) = replay.record(partition, location, &record)
                {
                    failed = Some(error);
                }
            },
        );
        match failed {
            None => Ok(walked),
            Some(error) => Err(RecoverError::Damage(format!(
                "log {} segment {number}: {error}",
                identity.number
            ))),
        }
    }

    /// Does anything behind `after` say that the next lsn was durable?
    fn is_proven(
        &mut self,
        segments: &BTreeMap<u32, SegmentFile>,
        stopped_in: &Loaded,
        after: &ChainPoint,
        following: Option<&Loaded>,
        must_hold: u64,
        config: &RecoverConfig,
    ) -> Result<bool, RecoverError> {
        let lsn = after.next_lsn;
        if lsn <= must_hold {
            return Ok(true);
        }
        let proves = |loaded: &Loaded, from: u32| {
            scan::proof_of_durability(&config.identity, &loaded.header, &loaded.bytes, from, lsn)
                .is_some()
        };
        if proves(stopped_in, after.offset) || following.is_some_and(|f| proves(f, 0)) {
            return Ok(true);
        }
        let later: Vec<u32> = segments
            .keys()
            .copied()
            .filter(|n| *n > stopped_in.header.segment + 1)
            .collect();
        for number in later {
            if let Some(loaded) = self.load(segments, number, config)?
                && proves(&loaded, 0)
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Sort the files by what their headers say.
    fn find_segments(
        &mut self,
        files: &LogFiles,
        config: &RecoverConfig,
    ) -> Result<(BTreeMap<u32, SegmentFile>, Vec<SegmentFile>), RecoverError> {
        let mut segments = BTreeMap::new();
        let mut spare = Vec::new();
        for &(slot, file, bytes) in &files.segments {
            if bytes < 2 * BLOCK_BYTES as u64 {
                spare.push(SegmentFile {
                    slot,
                    file: UNMADE,
                    segment: 0,
                    generation: 0,
                    first_lsn: 0,
                });
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
                    let found = SegmentFile {
                        slot,
                        file,
                        segment: header.segment,
                        generation: header.generation,
                        first_lsn: 0,
                    };
                    if let Some(twin) = segments.insert(header.segment, found) {
                        let why = format!(
                            "segment-{slot:08}.seg and segment-{:08}.seg both hold segment {}",
                            twin.slot, header.segment
                        );
                        return Err(RecoverError::Damage(why));
                    }
                }
                Ok(header) => {
                    let why = format!(
                        "segment-{slot:08}.seg belongs to log {} (timeline {}) or is cut short: it is not a file of log {} (timeline {}); move it away",
                        header.identity.number,
                        header.identity.timeline,
                        config.identity.number,
                        config.identity.timeline
                    );
                    return Err(RecoverError::Damage(why));
                }
                // Never used: the header comes last when a file is made, and no batch was ever written behind it.
                Err(_) if unused => spare.push(SegmentFile {
                    slot,
                    file: UNMADE,
                    segment: 0,
                    generation: 0,
                    first_lsn: 0,
                }),
                Err(error) => {
                    let why = format!(
                        "segment-{slot:08}.seg at offset 0: {error}, but it holds batches; run `pinion verify` on the data directory"
                    );
                    return Err(RecoverError::Damage(why));
                }
            }
        }
        Ok((segments, spare))
    }

    /// First lsn of each live segment, for scans.
    fn first_lsns(
        &mut self,
        live: &mut [SegmentFile],
        config: &RecoverConfig,
    ) -> Result<(), RecoverError> {
        for segment in live {
            let block = self.read_all(
                segment.file,
                BLOCK_BYTES as u64,
                BLOCK_BYTES,
                "the first batch of a segment",
            )?;
            let header = SegmentHeader {
                identity: config.identity,
                segment: segment.segment,
                generation: segment.generation,
                segment_bytes: config.segment_bytes,
            };
            if let Ok(info) = scan::batch_at(
                &config.identity,
                &header,
                BLOCK_BYTES as u32,
                &block[..BLOCK_BYTES],
            ) {
                segment.first_lsn = info.first_lsn;
            }
        }
        Ok(())
    }

    /// A new log: make its first segment.
    fn first_segment(
        &mut self,
        spare: &mut Vec<SegmentFile>,
        next_slot: u32,
        config: &RecoverConfig,
    ) -> Result<SegmentFile, RecoverError> {
        let old = spare.pop();
        let (slot, generation) = old.map_or((next_slot, 1), |o| (o.slot, o.generation + 1));
        let header =
            crate::log::segment_header(&config.identity, 1, generation, config.segment_bytes);
        // An old file may be short (a crash while it was made): then it is made again from scratch.
        self.driver.prepare_segment(
            slot,
            None,
            config.segment_bytes,
            header,
            Token::segment(slot),
        );
        loop {
            for event in self.poll_some()? {
                match event {
                    Event::SegmentReady {
                        result: Ok(file), ..
                    } => {
                        return Ok(SegmentFile {
                            slot,
                            file,
                            segment: 1,
                            generation,
                            first_lsn: 0,
                        });
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

    fn load(
        &mut self,
        segments: &BTreeMap<u32, SegmentFile>,
        number: u32,
        config: &RecoverConfig,
    ) -> Result<Option<Loaded>, RecoverError> {
        let started = self.start_load(segments, number, config)?;
        self.finish_load(started, segments, number, config)
    }

    fn start_load(
        &mut self,
        segments: &BTreeMap<u32, SegmentFile>,
        number: u32,
        config: &RecoverConfig,
    ) -> Result<Option<u64>, RecoverError> {
        let Some(segment) = segments.get(&number) else {
            return Ok(None);
        };
        let buffer =
            Buffer::new(config.segment_bytes as usize).map_err(|error| RecoverError::Io {
                what: format!("segment {number} (no memory for it)"),
                error,
            })?;
        Ok(Some(self.start_read(
            segment.file,
            0,
            buffer,
            config.segment_bytes as usize,
        )))
    }

    fn finish_load(
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
        let header = SegmentHeader {
            identity: config.identity,
            segment: number,
            generation: segment.generation,
            segment_bytes: config.segment_bytes,
        };
        Ok(Some(Loaded { header, bytes }))
    }

    fn read_all(
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

    fn start_read(&mut self, file: FileId, offset: u64, buffer: Buffer, len: usize) -> u64 {
        self.recovery_reads += 1;
        self.driver.read(
            file,
            offset,
            buffer,
            len,
            Token::recovery(self.recovery_reads),
        );
        self.recovery_reads
    }

    /// Wait for a read; everything else that happens meanwhile is handled as in any turn.
    fn await_read(
        &mut self,
        sequence: u64,
        len: usize,
        what: &str,
    ) -> Result<Buffer, RecoverError> {
        loop {
            if let Some(at) = self.recovery_done.iter().position(|(s, ..)| *s == sequence) {
                let (_, buffer, result) = self.recovery_done.swap_remove(at);
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
                match event {
                    Event::Read {
                        token,
                        buffer,
                        result,
                    } if matches!(Token::kind(token), Kind::Recovery(_)) => {
                        let Kind::Recovery(sequence) = Token::kind(token) else {
                            unreachable!("just matched")
                        };
                        self.recovery_done.push((sequence, buffer, result));
                    }
                    other => self.event(other),
                }
            }
            // Other shards' questions are refused rather than left waiting.
            self.take_mail();
            self.flush();
        }
    }

    /// A driver that fails will not bring what is awaited: recovery ends with its error.
    fn poll_some(&mut self) -> Result<Events<D>, RecoverError> {
        let mut events = Vec::new();
        let polled = self
            .driver
            .poll(Patience::Sleep(Duration::from_millis(20)), &mut events);
        polled.map_err(|error| RecoverError::Io {
            what: "from the ring".into(),
            error,
        })?;
        self.core.now = self.driver.now();
        Ok(events)
    }

    /// The newest checkpoint that verifies, loaded into the partition. Without one the whole log is replayed.
    fn load_checkpoint(
        &mut self,
        files: &LogFiles,
        config: &RecoverConfig,
        report: &mut Recovered,
    ) -> Result<Option<CheckpointHeader>, RecoverError> {
        let mut found = Vec::new();
        for file in files.checkpoints.iter().flatten() {
            let Ok(block) =
                self.read_all(*file, 0, checkpoint::HEADER_BYTES, "a checkpoint header")
            else {
                continue;
            };
            if let Ok(header) = CheckpointHeader::decode(&block[..checkpoint::HEADER_BYTES])
                && header.identity == config.identity
            {
                found.push((header, *file));
            }
        }
        found.sort_by_key(|(header, _)| std::cmp::Reverse(header.sequence));
        if let Some((newest, _)) = found.first() {
            self.checkpointer.seen(newest.sequence);
        }
        for (header, file) in found {
            match self.load_pages(&header, file) {
                Ok(bytes) => {
                    report.checkpoint_bytes = bytes;
                    report.checkpoint_keys = header.keys;
                    self.checkpointer.loaded(&header, file, files);
                    return Ok(Some(header));
                }
                Err(error) => {
                    tracing::warn!(
                        log = config.identity.number,
                        "checkpoint {} is not usable ({error}): falling back to an older one or to the log",
                        header.sequence
                    );
                    self.core.partition.forget_everything();
                }
            }
        }
        Ok(None)
    }

    fn load_pages(&mut self, header: &CheckpointHeader, file: FileId) -> Result<u64, RecoverError> {
        let pages = header.pages;
        self.core.partition.index.reset(header.keys);
        let mut page = 0;
        let read = |page: u64| {
            ((pages - page) as usize).min(CHECKPOINT_READ_PAGES) * checkpoint::PAGE_BYTES
        };
        let offset =
            |page: u64| checkpoint::HEADER_BYTES as u64 + page * checkpoint::PAGE_BYTES as u64;
        let mut ahead = None;
        while page < pages {
            let len = read(page);
            let sequence = match ahead.take() {
                Some(sequence) => sequence,
                None => {
                    let buffer = Buffer::new(len).map_err(|error| RecoverError::Io {
                        what: "a checkpoint".into(),
                        error,
                    })?;
                    self.start_read(file, offset(page), buffer, len)
                }
            };
            let buffer = self.await_read(sequence, len, "a checkpoint")?;
            let after = page + (len / checkpoint::PAGE_BYTES) as u64;
            if after < pages {
                let len = read(after);
                let buffer = Buffer::new(len).map_err(|error| RecoverError::Io {
                    what: "a checkpoint".into(),
                    error,
                })?;
                ahead = Some(self.start_read(file, offset(after), buffer, len));
                self.poll_and_keep()?;
            }
            for bytes in buffer[..len].chunks_exact(checkpoint::PAGE_BYTES) {
                self.load_page(header, page, bytes)?;
                page += 1;
            }
        }
        Ok(offset(pages))
    }

    /// Get a read that was just started to the device without waiting for it.
    fn poll_and_keep(&mut self) -> Result<(), RecoverError> {
        let mut events = Vec::new();
        let polled = self.driver.poll(Patience::None, &mut events);
        polled.map_err(|error| RecoverError::Io {
            what: "from the ring".into(),
            error,
        })?;
        for event in events {
            match event {
                Event::Read {
                    token,
                    buffer,
                    result,
                } if matches!(Token::kind(token), Kind::Recovery(_)) => {
                    let Kind::Recovery(sequence) = Token::kind(token) else {
                        unreachable!("just matched")
                    };
                    self.recovery_done.push((sequence, buffer, result));
                }
                other => self.event(other),
            }
        }
        Ok(())
    }

    fn load_page(
        &mut self,
        header: &CheckpointHeader,
        page: u64,
        bytes: &[u8],
    ) -> Result<(), RecoverError> {
        let damage = |why: String| RecoverError::Damage(format!("page {page}: {why}"));
        let partition = &mut self.core.partition;
        match checkpoint::decode_page(header, page, bytes).map_err(|e| damage(e.to_string()))? {
            Page::Entries(entries) => {
                for (digest, entry) in entries {
                    partition
                        .index
                        .put(digest, entry)
                        .map_err(|e| damage(e.to_string()))?;
                }
            }
            Page::Bytes(Section::Streams, chunk) => partition
                .streams
                .import(chunk)
                .map_err(|e| damage(e.to_string()))?,
            Page::Bytes(Section::Producers, chunk) => partition
                .producers
                .import(chunk)
                .map_err(|e| damage(e.to_string()))?,
            Page::Bytes(Section::IdempotencyKeys, chunk) => partition
                .keys
                .import(chunk)
                .map_err(|e| damage(e.to_string()))?,
            Page::Bytes(Section::Entries, _) => {
                return Err(damage("entries without their shape".into()));
            }
        }
        Ok(())
    }
}
