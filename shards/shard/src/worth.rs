//! What records of an old segment are still worth, and copying those forward that are.
//!
//! Space is freed from the front of the log only. A record that can still be read (the newest of its key, an older version
//! that the stream's policy shows) is appended once more as a relocated copy, which keeps everything that a reply said of it;
//! the index then names the copy. It does not know when that is done, or at which pace: that is `space`'s.

use std::collections::VecDeque;

use index::Entry;
use index::checkpoint::CheckpointHeader;
use wal::extension::{self, Relocated};
use wal::record::{Kind, NewRecord, RecordView};
use wal::{Link, Location};

use crate::log::{Blocked, Claim};
use crate::partition::Partition;

/// Files that hold nothing count too when disk use is held down, but a log that holds no more than so many hundredths of what
/// is alive is left alone: under uniform overwrites about as many bytes would be copied as are freed.
const LEAST_PERCENT: u64 = 140;

/// What is known of the bytes in the log. An estimate: it decides when compaction looks, never what it frees.
#[derive(Clone, Debug, Default)]
pub struct SpaceCounts {
    /// Record bytes in the segments that are not released.
    pub record_bytes: u64,
    /// Of them, about so many that nobody can read any more.
    pub dead_bytes: u64,
    /// Beside them: headers and padding of their batches. Where every record has a batch of its own this is most of the log.
    pub padding_bytes: u64,
    /// Last lsn that is counted by what a checkpoint remembered.
    counted_lsn: u64,
    /// Of streams with a largest age: (segment, when the last of them ends in log time, bytes), by segment.
    aging: VecDeque<(u32, u64, u64)>,
}

impl SpaceCounts {
    /// As a checkpoint remembers it; what ages there does so until `ends_us` at the latest.
    pub fn of(header: &CheckpointHeader, ends_us: u64) -> SpaceCounts {
        let aging = (header.aging_bytes > 0).then_some((0, ends_us, header.aging_bytes));
        SpaceCounts {
            record_bytes: header.record_bytes,
            dead_bytes: header.dead_bytes,
            padding_bytes: header.padding_bytes,
            counted_lsn: header.counted_lsn,
            aging: aging.into_iter().collect(),
        }
    }

    /// Bytes that will end by age.
    pub fn aging_bytes(&self) -> u64 {
        self.aging.iter().map(|(.., bytes)| bytes).sum()
    }

    /// Whether a replay that comes to `lsn` has it in the checkpoint's counts already.
    pub fn has_counted(&self, lsn: u64) -> bool {
        lsn <= self.counted_lsn
    }

    /// Whether the log takes more than `percent` hundredths of what of it can still be read, so that a walk is worth it.
    ///
    /// `idle_bytes`, of files that hold nothing: Some where packing costs nothing but the copies. Then padding counts as well,
    /// and such files, as long as the log itself takes `LEAST_PERCENT`.
    pub fn is_too_much(&self, idle_bytes: Option<u64>, percent: u64) -> bool {
        let alive = self.record_bytes.saturating_sub(self.dead_bytes);
        let Some(idle_bytes) = idle_bytes else {
            return self.record_bytes > alive.saturating_mul(percent) / 100;
        };
        let log = self.record_bytes + self.padding_bytes;
        log + idle_bytes > alive.saturating_mul(percent) / 100
            && log > alive.saturating_mul(percent.min(LEAST_PERCENT)) / 100
    }

    /// Time has passed.
    pub fn age(&mut self, log_time_us: u64) {
        while let Some((_, ends_us, bytes)) = self.aging.front()
            && *ends_us < log_time_us
        {
            self.dead_bytes = (self.dead_bytes + bytes).min(self.record_bytes);
            self.aging.pop_front();
        }
    }

    /// A segment is released in which `walked` record bytes were found, of which `copied` were worth it. What was thought to
    /// be dead and is not is forgotten with it: an estimate that is too high dies out in one round through the log.
    pub fn released(&mut self, segment: u32, walked: u64, copied: u64, padding: u64) {
        self.padding_bytes = self.padding_bytes.saturating_sub(padding);
        let expected =
            u128::from(self.dead_bytes) * u128::from(walked) / u128::from(self.record_bytes.max(1));
        let dead = (walked - copied.min(walked)).max(expected as u64);
        self.dead_bytes = self.dead_bytes.saturating_sub(dead);
        self.record_bytes = self.record_bytes.saturating_sub(walked);
        self.dead_bytes = self.dead_bytes.min(self.record_bytes);
        while let Some((of, ..)) = self.aging.front()
            && (1..=segment).contains(of)
        {
            self.aging.pop_front();
        }
    }
}

/// Which records of a stream its policy has ended, by their age or their place: they are not served, and not copied forward.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ended {
    before_us: u64,
    below_lsn: u64,
}

impl Ended {
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
        let age = self
            .streams
            .get(stream)
            .and_then(|s| s.policy.max_age_seconds);
        age.map_or(0, |s| {
            self.log
                .log_time_us()
                .saturating_sub(s.saturating_mul(1_000_000))
        })
    }

    /// Which records of a stream are ended by its policy.
    #[inline]
    pub fn ended(&self, stream: u32) -> Ended {
        Ended {
            before_us: self.oldest_us(stream),
            below_lsn: self.streams.get(stream).map_or(0, |s| s.held.below()),
        }
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
        self.space.record_bytes += bytes;
        let age = self
            .streams
            .get(stream)
            .and_then(|s| s.policy.max_age_seconds);
        if let Some(seconds) = age {
            let ends_us = timestamp_us.saturating_add(seconds.saturating_mul(1_000_000));
            match self.space.aging.back_mut() {
                Some((of, last_us, sum)) if *of == segment => {
                    (*last_us, *sum) = ((*last_us).max(ends_us), *sum + bytes);
                }
                _ => self.space.aging.push_back((segment, ends_us, bytes)),
            }
        }
    }

    /// A record took another's place in the index: which bytes died of it, about.
    #[inline]
    pub fn note_replaced(&mut self, stream: u32, before: Option<Entry>, entry: &Entry) {
        let Some(before) = before.filter(|before| self.is_live(before)) else {
            return;
        };
        let depth = self
            .streams
            .get(stream)
            .and_then(|s| s.policy.history_depth);
        if depth.is_some_and(|depth| entry.version > depth) {
            // What falls out of the history is taken to be as long as what came; an entry knows lengths by class only.
            let died = if entry.tombstone {
                before.bytes / 4 * 3 + entry.bytes
            } else {
                before.bytes.min(entry.bytes)
            };
            self.space.dead_bytes += u64::from(died);
        }
    }

    /// What a record in the oldest segment is worth.
    pub fn worth(&self, record: &RecordView<'_>) -> Worth {
        // Definitions and answers are in both checkpoints before the file is used again.
        if !matches!(record.kind, Kind::Put | Kind::Tombstone) {
            return Worth::Dead;
        }
        let Some(stream) = self.streams.get(record.stream) else {
            return Worth::Unknown;
        };
        let depth = stream.policy.history_depth.map(|depth| depth.max(1));
        let expired = self.ended(record.stream).has(record);
        let Some(newest) = self
            .index
            .get(self.digests.digest(record.stream, record.key))
        else {
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
        if link == 0 && self.copied.contains(&record.lsn) {
            return Worth::Dead;
        }
        let named = if link == 0 { record.lsn } else { link };
        match self.index.get(self.digests.forward(named)) {
            Some(place) if place.lsn > record.lsn => Worth::Dead,
            _ => Worth::Older(named),
        }
    }

    /// A record that is worth nothing leaves with its segment: what only it needed goes too.
    pub fn let_go(&mut self, record: &RecordView<'_>) {
        if !matches!(record.kind, Kind::Put | Kind::Tombstone) {
            return;
        }
        let digest = self.digests.digest(record.stream, record.key);
        match self.index.get(digest) {
            Some(newest) if newest.lsn == record.lsn && record.kind == Kind::Put => {
                self.streams.key_ended(record.stream);
                // Without a history there is nothing that the version numbers would have to go on from.
                if record.version == 1 {
                    self.index.remove(digest);
                }
            }
            _ => {}
        }
        let link = Relocated::of(record.extensions).map_or(0, |relocated| relocated.link);
        let forward = self.digests.forward(link);
        let is_named = |place: Entry| place.lsn == record.lsn;
        if link != 0 && self.index.get(forward).is_some_and(is_named) {
            self.index.remove(forward);
        }
    }

    /// Append a record once more, as it is, and let the index name the copy. `link`: of an older version, the lsn that the next
    /// version's link names it by; 0: it is the newest of its key. Gives the copy's lsn and length.
    pub fn relocate(&mut self, record: &RecordView<'_>, link: u64) -> Result<(u64, u64), Blocked> {
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
        if self.index.len() >= self.index.capacity_keys() && self.index.get(digest).is_none() {
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
            self.copied.insert(record.lsn);
        }
        Ok((appended.lsn, copied))
    }

    /// Some stream shows older versions of a key, which only links name.
    pub fn shows_older_versions(&self) -> bool {
        let mut all = self.streams.iter();
        all.any(|(_, s)| s.policy.history_depth.is_none_or(|depth| depth > 1))
    }

    /// The oldest segment is released: nothing in it is worth anything.
    pub fn release_front(&mut self, walked: u64, copied: u64, padding: u64) {
        let segment = self.log.first_segment();
        self.log.release_front();
        self.space.released(segment, walked, copied, padding);
        let first = self.log.first_lsn();
        self.copied.retain(|lsn| *lsn >= first);
        if self.copied.is_empty() {
            self.copied = ahash::AHashSet::new();
        }
    }

    /// Everything before this lsn is ended by its stream's limit in bytes, where every stream has one.
    pub fn all_ended_below(&self) -> u64 {
        let all = self.streams.iter().filter(|(_, s)| s.records > 0);
        all.map(|(_, s)| s.held.below()).min().unwrap_or(0)
    }

    /// The largest age, where every stream has one: what is older than that is dead, whatever it is.
    pub fn all_older_than_us(&self) -> Option<u64> {
        let ages = self.streams.iter().map(|(_, s)| s.policy.max_age_seconds);
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
