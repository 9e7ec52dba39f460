//! A key's versions, newest to oldest: from memory where they are there, from the device where they are not.
//!
//! A walk begins at the newest version, or at the nearest waypoint above what is asked for, and follows the links of the records. What
//! a policy has ended ends the walk: everything older is ended too. Versions that lie close together, of a key that is written all the
//! time, are read several at once. It does not know connections or protocols.

use index::Digest;
use wal::record::RecordView;
use wal::{BLOCK_BYTES, Link, Location};
use wire::cursor::Walked;

use crate::core::Core;
use crate::hop::{Answer, Origin};
use crate::owner::{ANSWER_BYTES_MAX, is_record_of};
use crate::partition::{Found, Partition};
use crate::reads::{Brought, SMALL_READ_BYTES, Then};
use crate::records::RecordSet;
use crate::waypoints;
use crate::worth::Ended;

/// How far a history reads ahead when it does not know a record's length.
const RECORD_GUESS_BYTES: usize = 1024;

/// What is read before a version when the next older one is likely to lie there: with it a small buffer is full.
const DENSE_READ_BYTES: usize = SMALL_READ_BYTES - 2 * BLOCK_BYTES;

/// A history on its way.
pub struct History {
    origin: Origin,
    key: Vec<u8>,
    stream: u32,
    digest: Digest,
    /// Versions from here up are skipped (0: none).
    before: u32,
    /// Versions below this are not shown (policy).
    oldest_version: u32,
    /// Records that are not shown (policy).
    ended: Ended,
    limit: usize,
    gate: u64,
    set: RecordSet,
    /// The version that is looked at, as the next newer one names it.
    at: Link,
    /// From there to the next newer version, where that is no further than one read reaches.
    apart: Option<usize>,
}

/// What one version means for the walk.
struct Step {
    /// The next older version, if the walk goes on.
    next: Option<Link>,
    /// Another walk may want to begin here.
    waypoint: Option<u32>,
}

impl<S> Core<S> {
    pub(crate) fn serve_history(
        &mut self,
        origin: Origin,
        stream: &[u8],
        key: &[u8],
        before: u32,
        limit: usize,
    ) {
        let found = self.partition.streams.lookup(stream).and_then(|id| {
            let digest = self.partition.digests.digest(id, key);
            let entry = self.partition.index.get(digest)?;
            Some((id, digest, entry))
        });
        let Some((stream, digest, entry)) = found else {
            return self.answer(origin, 0, Answer::Refused(self.not_found()));
        };
        let newest = Link {
            lsn: entry.lsn,
            location: entry.location,
        };
        let policy = self.partition.durable_policy(stream);
        let depth = policy.and_then(|policy| policy.history_depth);
        let history = History {
            origin,
            key: key.to_vec(),
            stream,
            digest,
            before,
            oldest_version: depth.map_or(0, |d| entry.version.saturating_sub(d) + 1),
            ended: self.partition.ended(stream),
            limit,
            gate: self.partition.gate(entry.lsn),
            set: RecordSet::new(self.log_number()),
            at: newest,
            apart: None,
        };
        let (from, bytes) = match waypoint(&self.partition, digest, before) {
            Some(nearer) => (nearer, RECORD_GUESS_BYTES),
            None => (newest, entry.bytes as usize),
        };
        self.walk_history(Box::new(history), from, bytes);
    }

    /// Follow a history from `link` through memory; read the device where memory ends.
    fn walk_history(&mut self, mut history: Box<History>, mut link: Link, mut bytes: usize) {
        loop {
            history.at = link;
            let place = match self.partition.resolve(link) {
                Some((place, None)) => place,
                Some((place, Some(known))) => {
                    (bytes, history.apart) = (known, None);
                    place
                }
                // No older version, or none that is still there.
                None => return self.end_history(*history),
            };
            let entry = index::Entry {
                lsn: place.lsn,
                version: 0,
                tombstone: false,
                location: place.location,
                bytes: 0,
            };
            let step = match self.partition.find_entry(entry) {
                Found::Memory { record, .. } => history.take(&record),
                _ => {
                    let (before, bytes) = match history.apart {
                        // It ends where the newer one begins, or before that.
                        Some(apart) => (DENSE_READ_BYTES, apart),
                        None => (0, bytes),
                    };
                    let then = Then::History(history);
                    return self.read_record_and_before(place, before, bytes, then);
                }
            };
            match self.stepped(&history, &step) {
                Some(next) => {
                    history.apart = apart(next.location, place.location);
                    (link, bytes) = (next, RECORD_GUESS_BYTES);
                }
                None => return self.end_history(*history),
            }
        }
    }

    /// The device gave the version at `place`, and what lies around it.
    pub(crate) fn history_read(
        &mut self,
        mut history: Box<History>,
        mut place: Location,
        record: &RecordView<'_>,
        brought: &Brought<'_>,
    ) {
        let mut step = history.take(record);
        while let Some(next) = self.stepped(&history, &step) {
            history.apart = apart(next.location, place);
            let bytes = brought.from(next.location).filter(|_| {
                let log = &self.partition.log;
                next.lsn != 0 && !log.is_released(next.location.segment)
            });
            let Some(Ok(older)) =
                bytes.map(|bytes| self.partition.log.codec.decode(next.lsn, bytes))
            else {
                // Elsewhere, or not whole in these bytes.
                return self.walk_history(history, next, RECORD_GUESS_BYTES);
            };
            (history.at, place) = (next, next.location);
            step = history.take(&older);
        }
        self.end_history(*history);
    }

    fn stepped(&mut self, history: &History, step: &Step) -> Option<Link> {
        if let Some(version) = step.waypoint {
            let waypoints = &mut self.partition.waypoints;
            waypoints.put(history.digest, version, history.at);
        }
        step.next
    }

    fn end_history(&mut self, history: History) {
        let answer = Answer::Records {
            set: history.set,
            next_lsn: 0,
            walked: Walked::default(),
            more: false,
        };
        self.answer(history.origin, history.gate, answer);
    }
}

/// From an older version to a newer one, if that is so little that one read can bring more than one of them.
fn apart(older: Location, newer: Location) -> Option<usize> {
    let apart = newer.offset.checked_sub(older.offset)? as usize;
    (older.segment == newer.segment && apart <= DENSE_READ_BYTES / 2).then_some(apart)
}

/// Where a walk to the versions below `before` may begin instead of at the newest.
fn waypoint(partition: &Partition, digest: Digest, before: u32) -> Option<Link> {
    if before == 0 {
        return None;
    }
    let leads_somewhere = |link| partition.resolve(link).is_some();
    let waypoints = &partition.waypoints;
    waypoints.nearest(digest, before, leads_somewhere)
}

impl History {
    pub(crate) fn origin(&self) -> Origin {
        self.origin
    }

    /// Take one version.
    fn take(&mut self, record: &RecordView<'_>) -> Step {
        let is_shown = is_record_of(record, self.stream, &self.key)
            && record.version >= self.oldest_version
            && !self.ended.has(record);
        if !is_shown {
            return Step {
                next: None,
                waypoint: None,
            };
        }
        let wanted = self.before == 0 || record.version < self.before;
        if wanted {
            self.set.push(record);
        }
        let full = self.set.len() >= self.limit || self.set.bytes() >= ANSWER_BYTES_MAX;
        let waypoint = full || record.version.is_multiple_of(waypoints::EVERY);
        Step {
            next: (!full).then_some(record.previous),
            waypoint: waypoint.then_some(record.version),
        }
    }
}
