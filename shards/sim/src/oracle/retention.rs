//! What a limit in bytes may take from a stream, and what it may never take.
//!
//! In each log a limited stream has a front: the lsn of the first record that the last restart showed. What lies before it is
//! ended and stays so, through every later crash; what lies behind it is held to every other promise. A front is where it
//! may be if the records behind it reach the limit, and exceed it by no more than a step and a record.
//!
//! Sizes are bounds from outside: how the engine counts is not computed once more. Between two restarts a read may find less
//! than the last front says, if so much was sent since.

use std::collections::{BTreeMap, HashMap};

use wal::{extension, record};
use wire::ContentType;

use super::{Broken, Oracle, name_of, owner};
use crate::client::{Append, Outcome, Seen, Sent, content_type};
use crate::promise::Promise;

/// The engine counts in so many steps a limit (ARCHITECTURE, "Bytes.").
const STEPS: u64 = 64;
/// What a producer's mark adds to the first record of a unit, at most.
const PRODUCER_BYTES_MAX: u64 = 64;

/// Limits that were ever asked for, in bytes a log.
#[derive(Clone, Copy, Debug)]
struct Limit {
    lowest: u64,
    highest: u64,
}

/// The limits of a store and where they have led.
#[derive(Clone, Default)]
pub(super) struct Retention {
    /// By stream. Set before its first record, and never taken away.
    limits: BTreeMap<usize, Limit>,
    /// By log and stream: the first record that the last restart showed, where others may have been ended before it.
    fronts: HashMap<(usize, usize), u64>,
    /// Policies that were sent: each may take an lsn in each log.
    policies: u64,
    /// Records are copied forward: any lsn may be a copy's.
    copies: bool,
}

impl Retention {
    /// Lsns of a log that may belong to no record. None: any number.
    pub fn lsns_without_records(&self) -> Option<u64> {
        (!self.copies).then_some(self.policies)
    }

    fn front(&self, log: usize, stream: usize) -> u64 {
        self.fronts.get(&(log, stream)).copied().unwrap_or(0)
    }

    /// Whether a record of a stream at this place was ended before the last restart.
    pub fn has_ended(&self, log: usize, stream: usize, lsn: u64) -> bool {
        lsn < self.front(log, stream)
    }

    /// Whether anything of a stream may have been.
    pub fn has_ended_any(&self, log: usize, stream: usize) -> bool {
        self.front(log, stream) > 0
    }

    /// The last of the fronts in a log.
    pub fn last_front(&self, log: usize) -> u64 {
        let of_log = self.fronts.iter().filter(|((l, _), _)| *l == log);
        of_log.map(|(_, front)| *front).max().unwrap_or(0)
    }
}

/// Bytes of a record in the log, but for a producer's mark.
fn bytes_of(key: &[u8], payload: &[u8], content_type: &[u8]) -> u64 {
    let mut extensions = Vec::new();
    if let ContentType::Other(text) = ContentType::from_header(content_type) {
        extension::push(&mut extensions, extension::CONTENT_TYPE, text);
    }
    record::encoded_bytes_of(key.len(), payload.len(), extensions.len()) as u64
}

/// Bytes of a record in the log: at least, and at most.
fn bounds(append: &Append, key: &[u8], payload: &[u8], content_type: &[u8]) -> (u64, u64) {
    let least = bytes_of(key, payload, content_type);
    let mark = append.producer.map_or(0, |_| PRODUCER_BYTES_MAX);
    (least, least + mark)
}

impl Append {
    /// Lsns of its records in `log`, if they were acked.
    fn acked_lsns(&self, log: usize) -> Option<std::ops::Range<u64>> {
        let Outcome::Acked { parts, .. } = &self.outcome else {
            return None;
        };
        let part = parts.iter().find(|part| part.0 as usize == log)?;
        Some(part.1..part.1 + u64::from(part.2))
    }

    /// Its records that belong to `log`, with their ordinals.
    fn records_of(&self, shards: usize, log: usize) -> impl Iterator<Item = (usize, &Sent)> {
        let all = self.records.iter().enumerate();
        all.filter(move |(_, record)| owner(shards, &record.key) == log)
    }
}

impl Oracle {
    /// A limit in bytes is about to be asked for: from now on it may be in force. The first one comes before the stream's
    /// first record.
    pub fn limit(&mut self, stream: usize, max_bytes: u64) {
        let share = max_bytes.div_ceil(self.shards as u64);
        let entry = self.retention.limits.entry(stream).or_insert(Limit {
            lowest: share,
            highest: share,
        });
        entry.lowest = entry.lowest.min(share);
        entry.highest = entry.highest.max(share);
        self.retention.policies += 1;
    }

    /// The store is compacted.
    pub fn copies_records(&mut self) {
        self.retention.copies = true;
    }

    /// Keys of limited streams that the last restart showed no record of, though some were sent.
    pub fn ended_keys(&self) -> Vec<(usize, Vec<u8>)> {
        let there = self.histories();
        let mut keys: Vec<(usize, Vec<u8>)> = self
            .appends
            .iter()
            .filter(|append| self.retention.limits.contains_key(&append.stream))
            .flat_map(|append| {
                let keys = append.records.iter().map(|record| record.key.clone());
                keys.map(|key| (append.stream, key))
            })
            .filter(|key| !there.contains_key(key))
            .collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// Records that limits have ended so far, of those that were acked.
    pub fn ended_records(&self) -> u64 {
        let mut ended = 0;
        for append in &self.appends {
            for log in 0..self.shards {
                let front = self.retention.front(log, append.stream);
                if let Some(lsns) = append.acked_lsns(log) {
                    ended += lsns.end.min(front).saturating_sub(lsns.start);
                }
            }
        }
        ended
    }

    /// Take the fronts from what a restart shows.
    pub(super) fn move_fronts(&mut self, dump: &[BTreeMap<u64, Seen>]) -> Result<(), Broken> {
        for (stream, limit) in self.retention.limits.clone() {
            for (log, records) in dump.iter().enumerate() {
                let of_stream = || records.values().filter(|seen| seen.stream == stream);
                let Some(first) = of_stream().next() else {
                    continue;
                };
                let before = self.retention.front(log, stream);
                if first.lsn < before {
                    return Err(Promise::Retention.broken(format!(
                        "records of stream {stream} before lsn {before} of log {log} were ended, now {first:?} is there"
                    )));
                }
                let (mut least, mut most, mut largest) = (0, 0, 0);
                for seen in of_stream() {
                    let append = name_of(seen).and_then(|(number, _)| self.appends.get(number));
                    let (low, high) = append.map_or((0, 0), |append| {
                        bounds(append, &seen.key, &seen.payload, &seen.content_type)
                    });
                    (least, most, largest) = (least + low, most + high, largest.max(high));
                }
                let step = (limit.highest / STEPS).max(1);
                if least > limit.highest + step + largest {
                    return Err(Promise::Retention.broken(format!(
                        "stream {stream} still shows {least} bytes in log {log} from lsn {} on, {limit:?} a log",
                        first.lsn
                    )));
                }
                if most >= limit.lowest {
                    self.retention.fronts.insert((log, stream), first.lsn);
                } else if let Some(ended) = self.known_before(log, stream, first.lsn) {
                    return Err(Promise::Retention.broken(format!(
                        "lsn {ended} of log {log} is ended, and only {most} bytes of stream {stream} are left behind it, from lsn {} on: {limit:?} a log",
                        first.lsn
                    )));
                }
            }
        }
        Ok(())
    }

    /// A record of a stream that was durable before `lsn`.
    fn known_before(&self, log: usize, stream: usize, lsn: u64) -> Option<u64> {
        let shown = self.shown.range((log as u32, 0)..(log as u32, lsn));
        let read = shown.map(|(_, seen)| seen);
        let listed = self.truth[log].range(..lsn).map(|(_, seen)| seen);
        let mut seen = read.chain(listed).filter(|seen| seen.stream == stream);
        let acked = |append: &Append| {
            let durable = append.durability == wire::Durability::Durable;
            let lsns = append.acked_lsns(log).filter(|_| durable)?;
            (append.stream == stream && lsns.start < lsn).then_some(lsns.start)
        };
        seen.next()
            .map(|seen| seen.lsn)
            .or_else(|| self.appends.iter().find_map(acked))
    }

    /// Whether so much was sent behind `version` of a key that its stream's limit may have ended it.
    pub(super) fn may_have_ended(&self, stream: usize, key: &[u8], version: u32) -> bool {
        let Some(limit) = self.retention.limits.get(&stream) else {
            return false;
        };
        let log = owner(self.shards, key);
        let Some(lsn) = self.place_of(log, stream, key, version) else {
            return false;
        };
        let mut behind = 0;
        for (number, append) in self.appends.iter().enumerate() {
            if append.stream != stream {
                continue;
            }
            let mut lsns = append.acked_lsns(log);
            for (ordinal, sent) in append.records_of(self.shards, log) {
                let before = lsns.as_mut().and_then(Iterator::next);
                if before.is_none_or(|at| at > lsn) {
                    let kind = content_type(number, ordinal, sent);
                    behind += bounds(append, &sent.key, &sent.payload, &kind).1;
                }
            }
        }
        behind >= limit.lowest
    }

    /// The first place at which a version of a key was acked or shown: an ended key begins anew.
    fn place_of(&self, log: usize, stream: usize, key: &[u8], version: u32) -> Option<u64> {
        let is = |seen: &&Seen| seen.stream == stream && seen.key == key && seen.version == version;
        let shown = self.shown.range((log as u32, 0)..=(log as u32, u64::MAX));
        let read = shown.map(|(_, seen)| seen).filter(is);
        let listed = self.truth[log].values().filter(is);
        let acked = self.appends.iter().filter_map(|append| {
            let (Outcome::Acked { versions, .. }, true) =
                (&append.outcome, append.stream == stream)
            else {
                return None;
            };
            let mut lsns = append.acked_lsns(log)?;
            let mut own = append.records_of(self.shards, log);
            own.find_map(|(ordinal, sent)| {
                let lsn = lsns.next()?;
                (sent.key == key && versions[ordinal] == version).then_some(lsn)
            })
        });
        read.chain(listed).map(|seen| seen.lsn).chain(acked).min()
    }
}
