//! One log and what its records mean: streams, keys with versions, idempotency windows, the read cache.
//!
//! Takes units of records and gives lsns, versions and refusals; finds the newest record of a key. A unit is appended
//! whole or not at all: everything that can refuse it is checked before its first record is laid down. It does not know
//! connections, protocols' framing, other shards, or the device beyond `Log`.

mod repeats;

use index::{Digest, DigestKey, Entry, Index, TableMemory};
use repeats::push_once;
use uring::Region;
use wal::record::{Kind, NewRecord, RecordView};
use wal::{Link, extension};
use wire::native::AppendIter;
use wire::{Code, Condition, ContentType, Durability, Policy, Refusal};

use crate::cache::ReadCache;
use crate::dedup::{Carried, ChunkError, IdempotencyKeys, KeyLimits, ProducerLimits, Producers};
use crate::log::{Blocked, Log};
use crate::streams::Streams;

pub use crate::worth::SpaceCounts;

/// Huge-page memory for the index table.
pub struct IndexMemory(pub Region<index::Bucket>);

impl TableMemory for IndexMemory {
    fn buckets(&self) -> &[index::Bucket] {
        &self.0
    }
    fn buckets_mut(&mut self) -> &mut [index::Bucket] {
        &mut self.0
    }
    #[inline]
    fn prefetch(&self, bucket: usize) {
        uring::prefetch(&self.0[bucket]);
    }
    #[inline]
    fn prefetch_line(&self, bucket: usize, line: usize) {
        uring::prefetch(&self.0[bucket].words[line * 8]);
    }
}

/// Huge-page memory for the read cache.
pub struct CacheMemory(pub Region<u8>);

impl AsRef<[u8]> for CacheMemory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl AsMut<[u8]> for CacheMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

/// What makes a repeat of a unit recognisable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Once {
    No,
    Producer {
        id: u128,
        sequence: u64,
        fingerprint: u64,
    },
    /// Digest of stream, record key and Idempotency-Key.
    Key {
        digest: u128,
        fingerprint: u64,
    },
}

/// Records of one request that go to this log together.
pub struct Unit<'a> {
    pub stream: &'a [u8],
    pub records: AppendIter<'a>,
    pub count: u32,
    pub once: Once,
    /// Refuse tombstones of keys without a live record (HTTP DELETE answers 404).
    pub tombstone_needs_live: bool,
    /// The records belong to several shards: this one may only know that they were stored before, when one had them all.
    pub repeat_only: bool,
    /// Digest of the key of a unit of one record, where a look ahead has computed it and asked for its lines.
    pub digest: Option<Digest>,
}

/// What an appended (or repeated) unit got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub first_lsn: u64,
    pub last_lsn: u64,
    pub records: u32,
    pub repeated: bool,
}

/// Why a unit was not appended.
#[derive(Debug)]
pub enum NotAppended {
    /// Tell the client.
    Refused(Refusal),
    /// Tell the client once this lsn is durable: the refusal speaks of a record that a crash could still take back.
    RefusedBehind(Refusal, u64),
    /// Try again when a buffer or a segment is free.
    Later,
}

/// Where the newest record of a key is.
pub enum Found<'a> {
    Nowhere,
    Memory {
        record: RecordView<'a>,
        entry: Entry,
    },
    Device {
        entry: Entry,
    },
}

/// Bounds of what a partition remembers besides keys.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub streams_max: usize,
    pub producers: ProducerLimits,
    pub keys: KeyLimits,
    /// Shards that share a stream's bytes.
    pub shards: u64,
    /// How long an Idempotency-Key is remembered where the stream's policy does not say.
    pub dedup_window_seconds: u64,
}

/// See the module's header.
pub struct Partition {
    pub log: Log,
    pub index: Index<IndexMemory>,
    pub digests: DigestKey,
    pub streams: Streams,
    pub producers: Producers,
    pub keys: IdempotencyKeys,
    /// What earlier logs left; empty unless the number of shards was changed.
    pub carried: Carried,
    pub cache: ReadCache<CacheMemory>,
    limits: Limits,
    /// Digests of the unit at hand.
    scratch: Vec<Digest>,
    extensions: Vec<u8>,
    pub damage: u64,
    /// Bytes of records that streams' limits in bytes have ended, in this run and what it replayed.
    pub ended_bytes: u64,
    /// What compaction goes by.
    pub space: SpaceCounts,
    /// Records of segments that are still there, copied forward as the newest of their keys. What is superseded since looks
    /// like any older version, and must not be copied twice.
    pub copied: ahash::AHashSet<u64>,
}

/// A refusal in one line.
pub fn refuse(code: Code, message: impl Into<String>) -> Refusal {
    Refusal {
        code,
        message: message.into(),
        retry_after_ms: None,
    }
}

/// A refusal that says when to try again.
pub fn refuse_for(code: Code, retry_after_ms: u32, message: impl Into<String>) -> Refusal {
    Refusal {
        code,
        message: message.into(),
        retry_after_ms: Some(retry_after_ms),
    }
}

impl Partition {
    pub fn new(
        log: Log,
        index: Index<IndexMemory>,
        digests: DigestKey,
        cache: ReadCache<CacheMemory>,
        limits: Limits,
    ) -> Partition {
        Partition {
            log,
            index,
            digests,
            streams: Streams::new(limits.streams_max, limits.shards),
            producers: Producers::new(limits.producers),
            keys: IdempotencyKeys::new(limits.keys),
            carried: Carried::default(),
            cache,
            limits,
            scratch: Vec::new(),
            extensions: Vec::new(),
            damage: 0,
            ended_bytes: 0,
            space: SpaceCounts::default(),
            copied: ahash::AHashSet::new(),
        }
    }

    /// Empty the index, the streams and the windows: a checkpoint turned out to be damaged half way.
    pub fn forget_everything(&mut self) {
        // What it was sized for is still to come, from elsewhere.
        self.index.reset(self.index.sized_for());
        self.space = SpaceCounts::default();
        self.copied = ahash::AHashSet::new();
        self.streams = Streams::new(self.limits.streams_max, self.limits.shards);
        self.producers = Producers::new(self.limits.producers);
        self.keys = IdempotencyKeys::new(self.limits.keys);
        self.carried = Carried::default();
    }

    /// Take in a note of what earlier logs left.
    pub fn carry(&mut self, chunk: &[u8], lsn: u64) -> Result<(), ChunkError> {
        let Partition {
            carried, streams, ..
        } = self;
        carried.import(chunk, &mut |stream, records, payload_bytes| {
            // A log defines its streams before anything is said of them; one that does not is not worth stopping for.
            if streams.get(stream).is_some() {
                streams.count(stream, records, payload_bytes, 0, lsn);
            }
        })
    }

    /// Append a unit. `versions` gets one version per record (cleared first).
    pub fn append(
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
        if self.index.len() + u64::from(unit.count) > self.index.capacity_keys()
            && self.new_keys() > self.index.capacity_keys() - self.index.len()
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
            let message = format!(
                "the request takes {bytes} bytes of log, more than one may: send it in parts"
            );
            return Err(NotAppended::Refused(refuse(Code::TooLarge, message)));
        }
        self.log
            .make_room(bytes, largest)
            .map_err(|b| self.blocked(&b))?;

        if known.is_none() {
            self.define_stream(stream, unit.stream, &Policy::default())?;
        }
        let window_seconds = self.dedup_window_seconds(stream);
        let appended = self.lay_down(unit, stream, log_time_us, window_seconds, versions);
        self.remember(&unit.once, &appended, versions, log_time_us, window_seconds);
        Ok(appended)
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
            self.note_laid_down(
                stream,
                appended.bytes.into(),
                appended.location.segment,
                log_time_us,
            );
            self.note_replaced(stream, before, &entry);
            self.streams
                .hold(stream, appended.lsn, appended.bytes.into());
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

    fn check_conditions(&self, unit: &Unit<'_>) -> Result<(), NotAppended> {
        let mut seen = ahash::AHashSet::new();
        for (i, record) in unit.records.clone().enumerate() {
            let digest = self.scratch[i];
            let first = unit.count == 1 || seen.insert(digest.0);
            let unconditional = record.condition == Condition::None;
            if unconditional && !(unit.tombstone_needs_live && record.tombstone) {
                continue;
            }
            let newest = self.index.get(digest);
            let live = newest.filter(|e| self.is_live(e));
            if !first && !unconditional {
                let message =
                    "a condition on a key that the same request writes before: send the two apart";
                return Err(NotAppended::Refused(refuse(Code::Malformed, message)));
            }
            let refusal = match (record.condition, live) {
                (Condition::None, None) => {
                    Some(refuse(Code::NotFound, "no such record: nothing to delete"))
                }
                (Condition::New, Some(e)) => Some(refuse(
                    Code::ConditionFailed,
                    format!("the key exists at version {}", e.version),
                )),
                (Condition::Version(wanted), Some(e)) if e.version != wanted => Some(refuse(
                    Code::ConditionFailed,
                    format!("the key is at version {}, not {wanted}", e.version),
                )),
                (Condition::Version(wanted), None) => Some(refuse(
                    Code::ConditionFailed,
                    format!("the key has no live record, so it is not at version {wanted}"),
                )),
                _ => None,
            };
            if let Some(refusal) = refusal {
                return Err(NotAppended::RefusedBehind(
                    refusal,
                    newest.map_or(0, |e| e.lsn),
                ));
            }
        }
        Ok(())
    }

    /// Define a stream, or change its policy: a record of its own in the log.
    pub fn put_stream(&mut self, name: &[u8], policy: &Policy) -> Result<u64, NotAppended> {
        let id = self
            .streams
            .lookup(name)
            .unwrap_or_else(|| self.streams.next_id());
        self.log
            .make_room(definition_bytes(name), definition_bytes(name))
            .map_err(|b| self.blocked(&b))?;
        self.define_stream(id, name, policy)
    }

    fn define_stream(&mut self, id: u32, name: &[u8], policy: &Policy) -> Result<u64, NotAppended> {
        self.streams
            .define(id, name, policy.clone(), self.log.next_lsn())
            .map_err(|e| NotAppended::Refused(refuse(Code::Overloaded, e.to_string())))?;
        self.note_ended();
        let json = serde_json::to_vec(policy).expect("a policy is plain data");
        let appended = self.log.append(&NewRecord {
            kind: Kind::StreamDefinition,
            content_type: wal::record::content_type::JSON,
            stream: id,
            version: 0,
            timestamp_us: self.log.log_time_us(),
            previous: Link::default(),
            key: name,
            payload: &json,
            extensions: &[],
        });
        Ok(appended.lsn)
    }

    fn blocked(&self, blocked: &Blocked) -> NotAppended {
        match blocked {
            Blocked::Buffers | Blocked::Segment | Blocked::Index => NotAppended::Later,
            Blocked::DiskFull => NotAppended::Refused(refuse_for(
                Code::DiskFull,
                1000,
                "the disk is full: reads go on, writes resume when space is back",
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

    /// Digest of a key of a known stream; asks for the index line that it will be looked up in.
    #[inline]
    pub fn look_ahead(&self, stream: &[u8], key: &[u8]) -> Option<Digest> {
        let digest = self.digests.digest(self.streams.lookup(stream)?, key);
        self.index.prefetch(digest);
        Some(digest)
    }

    /// A batch is durable: keep its records readable without the device when it is small (see `Log::small_batch`).
    pub fn keep_small_batch(&mut self, batch: u64) {
        let Some((first_lsn, mut bytes)) = self.log.small_batch(batch) else {
            return;
        };
        let mut lsn = first_lsn;
        while let Some(length) = wal::record::RecordCodec::peek_bytes(bytes)
            && let Some((record, rest)) = bytes.split_at_checked(length)
        {
            self.cache.insert(lsn, record);
            (lsn, bytes) = (lsn + 1, rest);
        }
    }

    /// Ask for the bytes of a key's newest record, where they are in memory. The index line should be on its way already.
    #[inline]
    pub fn prefetch_record(&self, digest: Digest) {
        /// Lines asked for; what follows comes by the hardware's own prefetch of the stream.
        const LINES: usize = 6;
        let Some(entry) = self.index.get(digest) else {
            return;
        };
        if let Some(bytes) = self.log.in_memory(entry.location) {
            for line in bytes[..bytes.len().min(entry.bytes as usize)]
                .chunks(64)
                .take(LINES)
            {
                uring::prefetch(&line[0]);
            }
        }
    }

    /// The newest record of a key, from memory where it is there. Bytes in memory were checksummed when they were laid
    /// down or read; the caller compares stream and key, so a wrong index entry is never served.
    pub fn find(&mut self, stream: u32, key: &[u8], digest: Option<Digest>) -> Found<'_> {
        let digest = digest.unwrap_or_else(|| self.digests.digest(stream, key));
        match self.index.get(digest) {
            Some(entry) if entry.tombstone || self.is_live(&entry) => self.find_entry(entry),
            _ => Found::Nowhere,
        }
    }

    /// The record of an index entry or of a history link.
    pub fn find_entry(&mut self, entry: Entry) -> Found<'_> {
        if self.log.is_released(entry.location.segment) {
            return Found::Device { entry };
        }
        if let Some(bytes) = self.log.in_memory(entry.location) {
            if let Ok(record) = self.log.codec.read_kept(entry.lsn, bytes) {
                return Found::Memory { record, entry };
            }
            return Found::Device { entry };
        }
        if let Some(bytes) = self.cache.get(entry.lsn)
            && let Ok(record) = self.log.codec.read_kept(entry.lsn, bytes)
        {
            return Found::Memory { record, entry };
        }
        Found::Device { entry }
    }

    /// The lsn that must be durable before a reply may show `lsn` (0: it already is).
    pub fn gate(&self, lsn: u64) -> u64 {
        if lsn > self.log.durable_lsn() { lsn } else { 0 }
    }
}

/// Encoded length of a wire record in the log, without what only the first record of a unit carries.
fn encoded_bytes(record: &wire::AppendRecord<'_>) -> usize {
    let other = match record.content_type {
        ContentType::Code(_) => 0,
        ContentType::Other(text) => extension::encoded_bytes(text.len()),
    };
    wal::record::encoded_bytes_of(record.key.len(), record.payload.len(), other)
}

fn definition_bytes(name: &[u8]) -> usize {
    // Policies are a few numbers; 512 bytes of JSON is more than the largest.
    wal::record::encoded_bytes_of(name.len(), 512, 0)
}

/// Durable appends are gated on their last lsn; buffered ones are answered at once.
pub fn append_gate(durability: Durability, last_lsn: u64) -> u64 {
    match durability {
        Durability::Durable => last_lsn,
        Durability::Buffered => 0,
    }
}
