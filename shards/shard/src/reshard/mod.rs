//! Records of one set of logs laid down anew in another set: for `pinion reshard`, while no server runs.
//!
//! Bytes in, batches out; performs no I/O. [`Source`] learns all of an old log before anything is laid down (its first reading);
//! [`Merge`] takes the records of the second reading one by one and gives the batches of the new logs.
//!
//! # Invariants
//! - Every record that a reader could find before is found after, with its key, payload, type, version and time; versions of a
//!   key are laid down in their order, and a link names the version just before.
//! - Records of one old log keep their order in every new log. Copies that compaction made stand where their first place was.
//! - All new logs know all streams, under the same ids, so an id says the same everywhere.
//! - What a retry may ask for is left to every new log that it may ask (`dedup::Carried`).
//!
//! It does not know files, directories, the order of durable steps, or a clock.

mod left;
mod source;
mod target;
#[cfg(test)]
mod tests;

use wal::LogIdentity;
use wal::record::{Kind, RecordView};
use wal::superblock::{FEATURE_CARRIED, LogEntry, Superblock};
use wire::Policy;
use wire::slot;

pub use source::{Copied, Source, SourceError};
pub use target::{Target, Write};

/// The superblock of the store behind the change: new logs, on a timeline of their own, under a new map epoch.
/// `above`: numbers up to this one are or were in use.
pub fn superblock_with(old: &Superblock, shards: u32, above: u32) -> Superblock {
    let timeline = old.logs.iter().map(|log| log.timeline).max().unwrap_or(0) + 1;
    let logs = (0..shards)
        .map(|shard| {
            let range = slot::range_of_shard(shard as u16, shards as u16);
            LogEntry {
                log: uuid::Uuid::new_v4().into_bytes(),
                number: above + 1 + shard,
                timeline,
                epoch: 1,
                slot_first: *range.start(),
                slot_last: *range.end(),
                durable_lsn: 0,
            }
        })
        .collect();
    Superblock {
        sequence: old.sequence,
        features: old.features | FEATURE_CARRIED,
        shards,
        map_epoch: old.map_epoch + 1,
        logs,
        ..old.clone()
    }
}

/// Who a log of this store is.
pub fn identity(superblock: &Superblock, log: &LogEntry) -> LogIdentity {
    LogIdentity {
        store: superblock.store,
        log: log.log,
        number: log.number,
        timeline: log.timeline,
    }
}

/// A stream as all new logs define it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamPlan {
    /// As clients call it; its id is its place, from 1.
    pub name: Box<[u8]>,
    /// The policy that was set last.
    pub policy: Policy,
}

/// Old logs on their way into new ones.
pub struct Merge {
    sources: Vec<Source>,
    targets: Vec<Target>,
    streams: Vec<StreamPlan>,
    /// Per source, the new id of each old one, which counts from 1.
    ids: Vec<Vec<u32>>,
    extensions: Vec<u8>,
}

impl Merge {
    /// `superblock` is the new store's. Every new log begins with the definitions of all streams.
    ///
    /// # Errors
    /// When there is no memory for the keys of the new logs.
    pub fn new(sources: Vec<Source>, superblock: &Superblock) -> std::io::Result<Merge> {
        let (streams, ids) = streams_of(&sources);
        let mut targets = Vec::new();
        for (at, log) in superblock.logs.iter().enumerate() {
            let records = sources.iter().map(|s| s.records_for(at)).sum();
            targets.push(Target::new(superblock, log, records)?);
        }
        let mut merge = Merge {
            sources,
            targets,
            streams,
            ids,
            extensions: Vec::new(),
        };
        for target in &mut merge.targets {
            for (id, stream) in (1..).zip(&merge.streams) {
                target.define(id, stream);
            }
        }
        Ok(merge)
    }

    /// The old logs.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The new logs.
    pub fn targets(&mut self) -> &mut [Target] {
        &mut self.targets
    }

    /// The streams of the new logs, by id from 1.
    pub fn streams(&self) -> &[StreamPlan] {
        &self.streams
    }

    /// A put or tombstone of an old log, in order. `first`: the lsn of its first place. Gives the new log that it went to;
    /// None: nobody could read it any more.
    ///
    /// # Errors
    /// When its stream was never defined, which the log's checksums do not show.
    pub fn take(
        &mut self,
        source: usize,
        first: u64,
        record: &RecordView<'_>,
    ) -> Result<Option<usize>, SourceError> {
        debug_assert!(matches!(record.kind, Kind::Put | Kind::Tombstone));
        let old = &mut self.sources[source];
        if old.is_outlived(record) || old.is_over_limit(first, record) {
            return Ok(None);
        }
        let stream = (record.stream as usize)
            .checked_sub(1)
            .and_then(|at| self.ids[source].get(at).copied())
            .ok_or(SourceError::Stream {
                lsn: record.lsn,
                stream: record.stream,
            })?;
        let shards = self.targets.len() as u16;
        let at = usize::from(slot::shard_of_slot(slot::slot_of(record.key), shards));
        source::kept_extensions(record.extensions, &mut self.extensions);
        let lsn = self.targets[at].append(stream, record, &self.extensions);
        old.went(first, record, at, lsn);
        Ok(Some(at))
    }

    /// Everything was taken: leave behind what retries may ask for, and close the last batch of every new log.
    pub fn finish(&mut self) {
        let log_time_us = self.sources.iter().map(Source::log_time_us).max();
        let log_time_us = log_time_us.unwrap_or(0);
        for at in 0..self.targets.len() {
            let items = left::left_to(&self.sources, &self.ids, &self.targets[at], at, log_time_us);
            self.targets[at].finish(&items, log_time_us);
        }
    }
}

/// All streams in the order of the old logs, and per old log where each of its own is among them.
fn streams_of(sources: &[Source]) -> (Vec<StreamPlan>, Vec<Vec<u32>>) {
    let mut streams: Vec<StreamPlan> = Vec::new();
    let mut set: Vec<(u64, bool)> = Vec::new();
    let mut by_name = ahash::AHashMap::new();
    let mut ids = Vec::new();
    for source in sources {
        let mut own = Vec::new();
        for (id, stream) in source.streams().iter() {
            let at = *by_name.entry(stream.name.clone()).or_insert_with(|| {
                streams.push(StreamPlan {
                    name: stream.name.clone(),
                    policy: Policy::default(),
                });
                set.push((0, false));
                streams.len() - 1
            });
            // A policy is set in every log, one after the other: a crash in between leaves the last one in some of them. A
            // log that met the stream by a record has the default.
            let when = (source.defined_us(id), stream.policy != Policy::default());
            if when >= set[at] {
                set[at] = when;
                streams[at].policy = stream.policy.clone();
            }
            own.push(at as u32 + 1);
        }
        ids.push(own);
    }
    (streams, ids)
}
