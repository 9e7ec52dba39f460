//! What records of an old segment are still worth, and copying those forward that are.
//!
//! Space is freed from the front of the log only. A record that can still be read (the newest of its key, an older version
//! that the stream's policy shows) is appended once more as a relocated copy, which keeps everything that a reply said of it;
//! the index then names the copy. It does not know when that is done, or at which pace: that is `space`'s.

use index::{Digest, Entry};
use wal::extension::{self, Relocated};
use wal::record::{Kind, NewRecord, RecordView};
use wal::{Link, Location};
use wire::Policy;

use crate::log::{Blocked, Claim};
use crate::partition::Partition;
use crate::space_counts::{Found, died_about};

/// Which records of a stream its policy has ended, by their age or their place: they are not served, and not copied forward.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ended {
    before_us: u64,
    below_lsn: u64,
}

impl Ended {
    /// The policy ends none.
    pub fn is_none(&self) -> bool {
        self.before_us == 0 && self.below_lsn == 0
    }

    /// Whether a record of this log time is, that has (or is a copy of what has) this lsn.
    pub fn has_at(&self, timestamp_us: u64, position: u64) -> bool {
        timestamp_us < self.before_us || position < self.below_lsn
    }

    /// Whether a record is.
    #[inline]
    pub fn has(&self, record: &RecordView<'_>) -> bool {
        record.timestamp_us < self.before_us
            || (record.lsn < self.below_lsn
                || self.below_lsn > 0 && {
                    // A copy ends with the record that it is of.
                    Relocated::of(record.extensions).is_some_and(|r| r.first < self.below_lsn)
                })
    }
}

/// What the index knows of a key.
#[derive(Clone, Copy, Debug)]
pub struct Newest {
    digest: Digest,
    entry: Option<Entry>,
}

/// What a record in the oldest segment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// Nobody can read it, or it was copied already.
    Dead,
    /// The newest of its key.
    Newest,
    /// An older version that the policy shows; the next version's link names it by this lsn.
    Older(u64),
    /// The index knows less than the log: nothing may be freed.
    Unknown,
}

impl Partition {
    /// Where a history goes on: the place that `link` names, or where that record was copied to, with its length if known.
    /// None: there is no older version, or it is gone.
    pub fn resolve(&self, link: Link) -> Option<(Link, Option<usize>)> {
        if link.lsn == 0 {
            return None;
        }
        if !self.log.is_released(link.location.segment) {
            return Some((link, None));
        }
        let entry = self.index.get(self.digests.forward(link.lsn))?;
        let place = Link {
            lsn: entry.lsn,
            location: entry.location,
        };
        (!self.log.is_released(entry.location.segment))
            .then_some((place, Some(entry.bytes as usize)))
    }

    /// Whether an index entry names a record that can be read and is no tombstone.
    #[inline]
    pub fn is_live(&self, entry: &Entry) -> bool {
        !entry.tombstone && !self.log.is_released(entry.location.segment)
    }

    /// Records of a stream that are older than this are not served (policy max_age_seconds, decided by log time).
    fn oldest_us(&self, stream: u32) -> u64 {
        let policy = self.durable_policy(stream);
        policy.and_then(|p| p.max_age_seconds).map_or(0, |s| {
            self.log
                .log_time_us()
                .saturating_sub(s.saturating_mul(1_000_000))
        })
    }

    /// What a stream shows, and what is kept of it: nothing goes by a definition that a crash may take back.
    #[inline]
    pub fn durable_policy(&self, stream: u32) -> Option<&Policy> {
        let stream = self.streams.get(stream)?;
        Some(stream.durable_policy(self.log.durable_lsn()))
    }

    /// The same, of every stream.
    fn durable_policies(&self) -> impl Iterator<Item = &Policy> {
        let durable_lsn = self.log.durable_lsn();
        (self.streams.iter()).map(move |(_, stream)| stream.durable_policy(durable_lsn))
    }

    /// Which records of a stream are ended by its policy, and by what is durable.
    #[inline]
    pub fn ended(&self, stream: u32) -> Ended {
        Ended {
            before_us: self.oldest_us(stream),
            below_lsn: self.ended_below(stream),
        }
    }

    fn ended_below(&self, stream: u32) -> u64 {
        let durable_lsn = self.log.durable_lsn();
        let stream = self.streams.get(stream);
        stream.map_or(0, |s| s.held.durably_below(durable_lsn))
    }

    /// Versions of a key and seconds that a stream with records shows.
    pub fn shown(&self, stream: u32) -> Option<(u32, u64)> {
        let stream = self.streams.get(stream).filter(|s| s.records > 0)?;
        let depth = stream.policy.history_depth.unwrap_or(u32::MAX);
        Some((depth, stream.policy.max_age_seconds.unwrap_or(u64::MAX)))
    }

    /// A stream has a new policy; it showed `before` until then. A limit in bytes says by itself what it ends.
    pub fn note_policy(&mut self, stream: u32, before: Option<(u32, u64)>) {
        let less = self.shown(stream).zip(before);
        self.space.looks |= less.is_some_and(|(now, before)| now.0 < before.0 || now.1 < before.1);
        self.note_ended();
    }

    /// Streams have come to their limit in bytes.
    pub fn note_ended(&mut self) {
        let bytes = std::mem::take(&mut self.streams.ended_bytes);
        if bytes > 0 {
            self.ended_bytes += bytes;
            let dead = self.space.dead_bytes + bytes;
            self.space.dead_bytes = dead.min(self.space.record_bytes);
        }
    }

    /// Record bytes were laid down.
    #[inline]
    pub fn note_laid_down(&mut self, stream: u32, bytes: u64, segment: u32, timestamp_us: u64) {
        self.space.laid_down(segment, bytes);
        let age = self
            .streams
            .get(stream)
            .and_then(|s| s.policy.max_age_seconds);
        if let Some(seconds) = age {
            let ends_us = timestamp_us.saturating_add(seconds.saturating_mul(1_000_000));
            self.space.will_age(segment, ends_us, bytes);
        }
    }

    /// A record took another's place in the index: what died of it.
    #[inline]
    pub fn note_replaced(&mut self, stream: u32, before: Option<Entry>, entry: &Entry) {
        let policy = self.streams.get(stream).map(|s| &s.policy);
        let Some(depth) = policy.and_then(|policy| policy.history_depth) else {
            return;
        };
        let there = before.filter(|before| !self.log.is_released(before.location.segment));
        if depth > 1 {
            // What falls out of the history is taken to be of the class of what came before.
            if let Some(before) = there.filter(|_| entry.version > depth) {
                self.space.died_somewhere(before.bytes);
            }
            return;
        }
        if let Some(before) = there.filter(|before| !before.tombstone) {
            self.space.died(before.location.segment, before.bytes);
        }
        // Without a history a tombstone is not kept for itself.
        if entry.tombstone {
            self.space.died(entry.location.segment, entry.bytes);
        }
    }

    /// The newest record of a key, as the index knows it.
    #[inline]
    pub fn newest(&self, digest: Digest) -> Newest {
        Newest {
            digest,
            entry: self.index.get(digest),
        }
    }

    /// What a record in the oldest segment is worth. `newest`: of its key.
    pub fn worth(&self, record: &RecordView<'_>, newest: &Newest) -> Worth {
        // Definitions and answers are in both checkpoints before the file is used again.
        if !matches!(record.kind, Kind::Put | Kind::Tombstone) {
            return Worth::Dead;
        }
        let Some(policy) = self.durable_policy(record.stream) else {
            return Worth::Unknown;
        };
        let depth = policy.history_depth;
        let expired = self.ended(record.stream).has(record);
        let Some(newest) = newest.entry else {
            // Only what has expired is taken out of the index.
            return Worth::Dead;
        };
        let link = Relocated::of(record.extensions).map_or(0, |relocated| relocated.link);
        if newest.lsn == record.lsn {
            // No version of a key is older than its tombstone and still shown; the index keeps the version numbers.
            let ended = record.kind == Kind::Tombstone && depth == Some(1);
            return if expired || ended {
                Worth::Dead
            } else {
                Worth::Newest
            };
        }
        if newest.lsn < record.lsn && link == 0 {
            return Worth::Unknown;
        }
        let back = newest.version.saturating_sub(record.version);
        if expired || back == 0 || depth.is_some_and(|depth| back >= depth) {
            return Worth::Dead;
        }
        if self.has_copy(record) {
            return Worth::Dead;
        }
        Worth::Older(if link == 0 { record.lsn } else { link })
    }

    /// Whether a record was copied forward from where it still is.
    fn has_copy(&self, record: &RecordView<'_>) -> bool {
        self.copies.contains(record.lsn) || self.older_copy(record).is_some()
    }

    /// The same, before this run: it is there again because of a crash, and its copy is durable.
    #[inline]
    pub fn was_copied_before(&self, record: &RecordView<'_>) -> bool {
        if self.copies.is_behind(record.lsn) {
            return false;
        }
        let upto = self.copies.before_upto();
        self.copies.contains_before(record.lsn)
            || self.older_copy(record).is_some_and(|lsn| lsn <= upto)
    }

    /// Where a record was copied to as an older version of its key.
    fn older_copy(&self, record: &RecordView<'_>) -> Option<u64> {
        let link = Relocated::of(record.extensions).map_or(0, |relocated| relocated.link);
        let named = if link == 0 { record.lsn } else { link };
        let place = self.index.get(self.digests.forward(named))?;
        (place.lsn > record.lsn).then_some(place.lsn)
    }

    /// Whether a record that is worth nothing is of those that died nobody noted where, and had before the counts' round began.
    pub fn was_dead(&self, record: &RecordView<'_>, newest: &Newest) -> bool {
        if !matches!(record.kind, Kind::Put | Kind::Tombstone) {
            return false;
        }
        let Some(stream) = self.streams.get(record.stream) else {
            return false;
        };
        let depth = stream.policy.history_depth.filter(|depth| *depth > 1);
        let below_lsn = stream.held.below();
        if depth.is_none() && below_lsn == 0 {
            return false;
        }
        let first_lsn =
            Relocated::of(record.extensions).map_or(record.lsn, |relocated| relocated.first);
        let mut died_lsn = u64::MAX;
        if let (Some(depth), Some(newest)) = (depth, newest.entry)
            && newest.version.saturating_sub(record.version) >= depth
        {
            let newest = (newest.lsn, newest.version);
            died_lsn = died_about((first_lsn, record.version), newest, depth);
        }
        if first_lsn < below_lsn {
            // The limit has kept about this distance from the log's end.
            let ended_lsn = first_lsn + self.log.next_lsn().saturating_sub(below_lsn);
            died_lsn = died_lsn.min(ended_lsn);
        }
        self.space.was_dead(died_lsn)
    }

    /// A record that is worth nothing leaves with its segment: what only it needed goes too.
    pub fn let_go(&mut self, record: &RecordView<'_>, newest: &Newest) {
        if !matches!(record.kind, Kind::Put | Kind::Tombstone) {
            return;
        }
        let is_named = |place: Entry| place.lsn == record.lsn;
        if newest.entry.is_some_and(is_named) && record.kind == Kind::Put {
            self.streams.key_ended(record.stream);
            // Without a history there is nothing that the version numbers would have to go on from.
            if record.version == 1 {
                self.index.remove(newest.digest);
            }
        }
        let link = Relocated::of(record.extensions).map_or(0, |relocated| relocated.link);
        if link != 0 {
            let forward = self.digests.forward(link);
            if self.index.get(forward).is_some_and(is_named) {
                self.index.remove(forward);
            }
        }
    }

    /// Append a record once more, as it is, and let the index name the copy. `link`: of an older version, the lsn that the next
    /// version's link names it by; 0: it is the newest of its key. Gives the copy's length.
    pub fn relocate(&mut self, record: &RecordView<'_>, link: u64) -> Result<u64, Blocked> {
        let before = Relocated::of(record.extensions);
        let mut extensions = Vec::new();
        for (kind, bytes) in extension::iter(record.extensions) {
            // What marks a repeat belongs to the request, which was answered long ago.
            if ![
                extension::PRODUCER,
                extension::IDEMPOTENCY,
                extension::RELOCATED,
            ]
            .contains(&kind)
            {
                extension::push(&mut extensions, kind, bytes);
            }
        }
        let relocated = Relocated {
            from: record.lsn,
            first: before.map_or(record.lsn, |before| before.first),
            link,
        };
        extension::push(&mut extensions, extension::RELOCATED, &relocated.encode());
        let bytes =
            wal::record::encoded_bytes_of(record.key.len(), record.payload.len(), extensions.len());
        let digest = match link {
            0 => self.digests.digest(record.stream, record.key),
            _ => self.digests.forward(link),
        };
        if self.index.len() >= self.limits.index_keys && self.index.get(digest).is_none() {
            return Err(Blocked::Index);
        }
        self.log.make_room(bytes, bytes, Claim::Copy)?;
        let appended = self.log.append(&NewRecord {
            kind: record.kind,
            content_type: record.content_type,
            stream: record.stream,
            version: record.version,
            timestamp_us: record.timestamp_us,
            previous: record.previous,
            key: record.key,
            payload: record.payload,
            extensions: &extensions,
        });
        let entry = Entry {
            lsn: appended.lsn,
            version: record.version,
            tombstone: record.kind == Kind::Tombstone,
            location: Location {
                ..appended.location
            },
            bytes: appended.bytes,
        };
        self.index
            .put(digest, entry)
            .expect("capacity was checked, or the key is there");
        let copied = u64::from(appended.bytes);
        self.note_laid_down(
            record.stream,
            copied,
            appended.location.segment,
            record.timestamp_us,
        );
        self.streams.count(record.stream, 0, 0, 0, appended.lsn);
        if link == 0 {
            self.copies.insert(record.lsn);
        }
        Ok(copied)
    }

    /// Some stream shows older versions of a key, which only links name.
    pub fn shows_older_versions(&self) -> bool {
        self.durable_policies()
            .any(|policy| policy.history_depth.is_none_or(|depth| depth > 1))
    }

    /// The oldest segment is released: nothing in it is worth anything.
    pub fn release_front(&mut self, found: Found) {
        let segment = self.log.first_segment();
        self.log.release_front();
        let end = (self.log.chain().segment, self.log.next_lsn());
        self.space.released(segment, found, end);
        self.copies.released(self.log.first_lsn());
    }

    /// Everything before this lsn is ended by its stream's limit in bytes, where every stream has one.
    pub fn all_ended_below(&self) -> u64 {
        let all = self.streams.iter().filter(|(_, s)| s.records > 0);
        all.map(|(id, _)| self.ended_below(id)).min().unwrap_or(0)
    }

    /// The largest age, where every stream has one: what is older than that is dead, whatever it is.
    pub fn all_older_than_us(&self) -> Option<u64> {
        let ages = self.durable_policies().map(|policy| policy.max_age_seconds);
        let largest = ages.reduce(|a, b| Some(a?.max(b?)))??;
        Some(
            self.log
                .log_time_us()
                .saturating_sub(largest.saturating_mul(1_000_000)),
        )
    }

    /// The largest age of any stream that has one.
    pub fn largest_age_us(&self) -> u64 {
        let ages = self
            .streams
            .iter()
            .filter_map(|(_, s)| s.policy.max_age_seconds);
        ages.max().unwrap_or(0).saturating_mul(1_000_000)
    }
}
