//! Units of records into the log: everything that can refuse one, then all of its records.
//!
//! Behind the last check nothing can fail: room and capacity are there for the whole unit before its first record is laid
//! down. Index, streams and counts change with each record as it goes in.

use index::Entry;
use wal::record::{Kind, NewRecord};
use wal::{Link, extension};
use wire::native::AppendIter;
use wire::{Code, Condition, ContentType, Durability, Policy, Refusal};

use super::repeats::{ONCE_BYTES, push_once};
use super::{Appended, Later, NotAppended, Partition, Unit, definition_bytes, refuse, refuse_for};
use crate::log::{Blocked, Claim};
use crate::waypoints;

impl Partition {
    /// Append a unit. `versions` gets one version per record (cleared first).
    pub fn append(
        &mut self,
        unit: &Unit<'_>,
        versions: &mut Vec<u32>,
    ) -> Result<Appended, NotAppended> {
        let result = self.try_append(unit, versions);
        if !matches!(result, Err(NotAppended::Later(_))) {
            self.probes.known.clear();
        }
        result
    }

    fn try_append(
        &mut self,
        unit: &Unit<'_>,
        versions: &mut Vec<u32>,
    ) -> Result<Appended, NotAppended> {
        versions.clear();
        let log_time_us = self.log.log_time_us();
        if let Some(repeat) = self.repeated(unit, log_time_us, versions)? {
            return Ok(repeat);
        }
        if unit.repeat_only {
            let message = "a frame with a producer sequence must keep to one shard: split it by slot (see the topology), each shard has its own sequence";
            return Err(NotAppended::Refused(refuse(Code::Malformed, message)));
        }
        let known = self.streams.lookup(unit.stream);
        let stream = known.unwrap_or_else(|| self.streams.next_id());

        // Hash everything, then ask for every line, then look: the misses of a whole unit overlap.
        self.scratch.clear();
        let (mut bytes, mut largest) = (0, 0);
        let mut conditional = unit.tombstone_needs_live;
        for record in unit.records.clone() {
            let digest = unit
                .digest
                .unwrap_or_else(|| self.digests.digest(stream, record.key));
            self.scratch.push(digest);
            let length = encoded_bytes(&record);
            bytes += length;
            largest = largest.max(length);
            conditional |= record.condition != Condition::None;
        }
        if unit.count > 1 {
            self.index.prefetch_many(&self.scratch);
        }
        if conditional {
            self.check_conditions(unit)?;
        }
        let keys_max = self.limits.index_keys_for_data;
        if self.index.len() + u64::from(unit.count) > keys_max
            && self.new_keys() > keys_max.saturating_sub(self.index.len())
        {
            let message = format!(
                "the index of this shard is full at {} keys: give pinion more with --memory, or use more shards",
                self.index.len()
            );
            return Err(NotAppended::Refused(refuse_for(
                Code::Overloaded,
                1000,
                message,
            )));
        }
        // What marks a repeat stands on the first record, which may be the largest.
        bytes += self.once_bytes(&unit.once);
        largest += self.once_bytes(&unit.once);
        if known.is_none() {
            bytes += definition_bytes(unit.stream);
            largest = largest.max(definition_bytes(unit.stream));
        }
        if !self.log.unit_fits(bytes, largest) {
            return Err(NotAppended::Refused(too_large(bytes)));
        }
        let claim = match self.log.is_tight() && deletes_only(unit) {
            true => Claim::Freeing,
            false => Claim::Data,
        };
        self.log
            .make_room(bytes, largest, claim)
            .map_err(|b| self.blocked(&b))?;

        if known.is_none() {
            self.define_stream(stream, unit.stream, &Policy::default())?;
        }
        let window_seconds = self.dedup_window_seconds(stream);
        let appended = self.lay_down(unit, stream, log_time_us, window_seconds, versions);
        self.remember(&unit.once, &appended, versions, log_time_us, window_seconds);
        Ok(appended)
    }

    /// Whether a part of a request over several shards is more than any shard takes at once: known before one has been asked.
    pub fn part_fits(&self, stream: &[u8], records: AppendIter<'_>) -> Result<(), Refusal> {
        let (mut bytes, mut largest) = (0, 0);
        for record in records {
            let length = encoded_bytes(&record);
            bytes += length;
            largest = largest.max(length);
        }
        let first = ONCE_BYTES + definition_bytes(stream);
        match self.log.unit_fits(bytes + first, largest + first) {
            true => Ok(()),
            false => Err(too_large(bytes)),
        }
    }

    fn lay_down(
        &mut self,
        unit: &Unit<'_>,
        stream: u32,
        log_time_us: u64,
        window_seconds: u32,
        versions: &mut Vec<u32>,
    ) -> Appended {
        let first_lsn = self.log.next_lsn();
        let mut last_lsn = first_lsn;
        let mut payload_bytes = 0;
        let (mut born, mut died) = (0i64, 0i64);
        for (i, record) in unit.records.clone().enumerate() {
            let digest = self.scratch[i];
            let found = self.index.locate(digest);
            let before = found.map(|(_, entry)| entry);
            self.extensions.clear();
            if i == 0 {
                push_once(&mut self.extensions, &unit.once, unit.count, window_seconds);
            }
            let content_type = match record.content_type {
                ContentType::Code(code) => code,
                ContentType::Other(text) => {
                    extension::push(&mut self.extensions, extension::CONTENT_TYPE, text);
                    wal::record::content_type::OTHER
                }
            };
            let version = match before {
                Some(entry) => entry.version.saturating_add(1),
                None if self.carried.has_versions() => {
                    let last = self.carried.last_version(&self.digests, stream, record.key);
                    last.saturating_add(1)
                }
                None => 1,
            };
            let previous = before.map_or(Link::default(), |e| Link {
                lsn: e.lsn,
                location: e.location,
            });
            let appended = self.log.append(&NewRecord {
                kind: if record.tombstone {
                    Kind::Tombstone
                } else {
                    Kind::Put
                },
                content_type,
                stream,
                version,
                timestamp_us: log_time_us,
                previous,
                key: record.key,
                payload: record.payload,
                extensions: &self.extensions,
            });
            let entry = Entry {
                lsn: appended.lsn,
                version,
                tombstone: record.tombstone,
                location: appended.location,
                bytes: appended.bytes,
            };
            match found {
                Some((place, _)) => self.index.replace(place, entry),
                None => drop(
                    self.index
                        .put(digest, entry)
                        .expect("capacity was checked for the whole unit"),
                ),
            }
            if version.is_multiple_of(waypoints::EVERY) {
                let link = Link {
                    lsn: appended.lsn,
                    location: appended.location,
                };
                self.waypoints.put(digest, version, link);
            }
            self.note_laid_down(
                stream,
                appended.bytes.into(),
                appended.location.segment,
                log_time_us,
            );
            self.note_replaced(stream, before, &entry);
            let durable_lsn = self.log.durable_lsn();
            self.streams
                .hold(stream, appended.lsn, appended.bytes.into(), durable_lsn);
            let was_live = before.is_some_and(|e| self.is_live(&e));
            born += i64::from(!record.tombstone && !was_live);
            died += i64::from(record.tombstone && was_live);
            payload_bytes += record.payload.len() as u64;
            versions.push(version);
            last_lsn = appended.lsn;
        }
        self.streams.count(
            stream,
            u64::from(unit.count),
            payload_bytes,
            born - died,
            last_lsn,
        );
        self.note_ended();
        Appended {
            first_lsn,
            last_lsn,
            records: unit.count,
            repeated: false,
        }
    }

    /// Keys of the unit at hand that the index does not know, repeats counted.
    #[cold]
    fn new_keys(&self) -> u64 {
        self.scratch
            .iter()
            .filter(|digest| self.index.get(**digest).is_none())
            .count() as u64
    }

    pub(super) fn blocked(&self, blocked: &Blocked) -> NotAppended {
        match blocked {
            Blocked::Buffers | Blocked::Segment | Blocked::Index => NotAppended::Later(Later::Room),
            Blocked::DiskFull => NotAppended::Refused(refuse_for(
                Code::DiskFull,
                1000,
                "the disk is full: reads go on, writes resume when space is back or compaction has made some; delete records, or give streams a limit in age, bytes or versions",
            )),
            Blocked::NoSegment => NotAppended::Refused(refuse_for(
                Code::Unavailable,
                1000,
                format!(
                    "this shard cannot make another segment ({}): reads go on, writes resume when that is mended",
                    self.log
                        .no_segment()
                        .map_or_else(|| "reason unknown".to_owned(), |error| error.to_string())
                ),
            )),
            Blocked::Failed => NotAppended::Refused(refuse_for(
                Code::Unavailable,
                5000,
                format!(
                    "a write of this shard's log failed ({}): it takes no writes until pinion is restarted and has re-read the media",
                    self.log.failed().unwrap_or("reason unknown")
                ),
            )),
        }
    }
}

/// Nothing but tombstones.
fn deletes_only(unit: &Unit<'_>) -> bool {
    unit.records.clone().all(|record| record.tombstone)
}

fn too_large(bytes: usize) -> Refusal {
    let message = format!(
        "the request takes {bytes} bytes of one shard's log, more than one may: send it in parts"
    );
    refuse(Code::TooLarge, message)
}

/// Encoded length of a wire record in the log, without what only the first record of a unit carries.
fn encoded_bytes(record: &wire::AppendRecord<'_>) -> usize {
    let other = match record.content_type {
        ContentType::Code(_) => 0,
        ContentType::Other(text) => extension::encoded_bytes(text.len()),
    };
    wal::record::encoded_bytes_of(record.key.len(), record.payload.len(), other)
}

/// Durable appends are gated on their last lsn; buffered ones are answered at once.
pub fn append_gate(durability: Durability, last_lsn: u64) -> u64 {
    match durability {
        Durability::Durable => last_lsn,
        Durability::Buffered => 0,
    }
}
