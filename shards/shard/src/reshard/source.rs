//! An old log, as much of it as must be known before its records are laid down anew.

use ahash::AHashMap;
use index::checkpoint::{self, CheckpointHeader, Page, Section};
use index::{Digest, DigestKey};
use wal::Location;
use wal::extension::{self, Relocated};
use wal::record::{Kind, RecordView};
use wire::{Policy, slot};

use crate::dedup::{Carried, IdempotencyKeys, Item, KeyLimits, ProducerLimits, Producers, Slots};
use crate::replay::Requests;
use crate::streams::{STREAMS_MAX_DEFAULT, Streams};

/// A log whose checksums hold and that still makes no sense.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// A record of a stream that has no definition.
    #[error("lsn {lsn}: stream {stream} was never defined")]
    Stream {
        /// Of the record.
        lsn: u64,
        /// Its stream's id.
        stream: u32,
    },
    /// A record that cannot be taken in.
    #[error("lsn {lsn}: {why}")]
    Record {
        /// Of the record.
        lsn: u64,
        /// What is wrong with it.
        why: String,
    },
    /// A page of a checkpoint that cannot be taken in.
    #[error("checkpoint page {page}: {why}")]
    Page {
        /// From 0.
        page: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// A record that compaction copied, while its first place is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// lsn of its first place.
    pub first: u64,
    /// lsn of the copy.
    pub lsn: u64,
    /// Where the copy lies.
    pub location: Location,
    /// Its encoded length.
    pub bytes: u32,
}

/// What was counted of records that go to one new log.
#[derive(Clone, Copy, Debug, Default)]
struct Amount {
    records: u64,
    bytes: u64,
}

/// See the module's header.
pub struct Source {
    /// Number of the log.
    pub number: u32,
    pub(super) slots: Slots,
    digests: DigestKey,
    streams: Streams,
    defined_us: AHashMap<u32, u64>,
    pub(super) producers: Producers,
    pub(super) keys: IdempotencyKeys,
    pub(super) carried: Carried,
    requests: Requests,
    /// Last versions of keys whose newest record is gone.
    pub(super) ended: AHashMap<Digest, u32>,
    /// The same of keys whose records are still there and that a limit in bytes has ended.
    pub(super) over_limit: AHashMap<Digest, u32>,
    copied: Vec<Copied>,
    first_lsn: u64,
    log_time_us: u64,
    amounts: Vec<Amount>,
    /// First records of requests that may be repeated: where they went.
    went: AHashMap<u64, Option<(usize, u64)>>,
    /// By stream, records and payload bytes that were laid down anew.
    kept: AHashMap<u32, (u64, u64)>,
}

impl Source {
    /// Nothing is known yet. `shards`: how many logs there are, and how many new ones there will be.
    pub fn new(number: u32, slots: (u16, u16), digest_key: [u8; 16], shards: (u32, u32)) -> Source {
        Source {
            number,
            slots,
            digests: DigestKey::new(digest_key),
            streams: Streams::new(STREAMS_MAX_DEFAULT, shards.0.into()),
            defined_us: AHashMap::new(),
            producers: Producers::new(ProducerLimits::default()),
            keys: IdempotencyKeys::new(KeyLimits::default()),
            carried: Carried::default(),
            requests: Requests::default(),
            ended: AHashMap::new(),
            over_limit: AHashMap::new(),
            copied: Vec::new(),
            first_lsn: 0,
            log_time_us: 0,
            amounts: vec![Amount::default(); shards.1 as usize],
            went: AHashMap::new(),
            kept: AHashMap::new(),
        }
    }

    /// A page of the checkpoint in use, before any record; in order.
    ///
    /// # Errors
    /// When it does not verify or makes no sense.
    pub fn checkpoint_page(
        &mut self,
        header: &CheckpointHeader,
        number: u64,
        bytes: &[u8],
    ) -> Result<(), SourceError> {
        let failed = |why: String| SourceError::Page { page: number, why };
        self.log_time_us = self.log_time_us.max(header.log_time_us);
        match checkpoint::decode_page(header, number, bytes).map_err(|e| failed(e.to_string()))? {
            // What names a released segment is a key that ended: of it only the version number goes on.
            Page::Entries(entries) => self.ended.extend(
                entries
                    .filter(|(_, entry)| entry.location.segment <= header.released_through)
                    .map(|(digest, entry)| (digest, entry.version)),
            ),
            Page::Bytes(Section::Streams, chunk) => self
                .streams
                .import(chunk)
                .map_err(|e| failed(e.to_string()))?,
            Page::Bytes(Section::Producers, chunk) => self
                .producers
                .import(chunk)
                .map_err(|e| failed(e.to_string()))?,
            Page::Bytes(Section::IdempotencyKeys, chunk) => {
                self.keys.import(chunk).map_err(|e| failed(e.to_string()))?;
            }
            Page::Bytes(Section::Carried, chunk) => self
                .carried
                .import(chunk, &mut |_, _, _| ())
                .map_err(|e| failed(e.to_string()))?,
            Page::Bytes(Section::Entries, _) => {
                return Err(failed("entries without their shape".into()));
            }
        }
        Ok(())
    }

    /// A record of the first reading; all that are there, in order of lsns.
    ///
    /// # Errors
    /// When it makes no sense.
    pub fn record(
        &mut self,
        location: Location,
        record: &RecordView<'_>,
    ) -> Result<(), SourceError> {
        let failed = |why: String| SourceError::Record {
            lsn: record.lsn,
            why,
        };
        if self.first_lsn == 0 {
            self.first_lsn = record.lsn;
        }
        self.log_time_us = self.log_time_us.max(record.timestamp_us);
        match record.kind {
            Kind::StreamDefinition => {
                let policy: Policy =
                    serde_json::from_slice(record.payload).map_err(|e| failed(e.to_string()))?;
                self.defined_us.insert(record.stream, record.timestamp_us);
                return self
                    .streams
                    .replay(record.stream, record.key, policy, record.lsn)
                    .map_err(|e| failed(e.to_string()));
            }
            Kind::Note => {
                if extension::find(record.extensions, extension::CARRIED).is_none() {
                    return Ok(());
                }
                let (streams, lsn) = (&mut self.streams, record.lsn);
                return self
                    .carried
                    .import(record.payload, &mut |stream, records, payload_bytes| {
                        if streams.get(stream).is_some() {
                            streams.count(stream, records, payload_bytes, 0, lsn);
                        }
                    })
                    .map_err(|e| failed(e.to_string()));
            }
            Kind::Put | Kind::Tombstone => {}
        }
        if self.streams.get(record.stream).is_none() {
            return Err(SourceError::Stream {
                lsn: record.lsn,
                stream: record.stream,
            });
        }
        let shards = self.amounts.len() as u16;
        let at = usize::from(slot::shard_of_slot(slot::slot_of(record.key), shards));
        self.amounts[at].records += 1;
        self.amounts[at].bytes += record.bytes as u64;
        if !self.ended.is_empty() {
            let digest = self.digests.digest(record.stream, record.key);
            if self.ended.get(&digest).is_some_and(|v| *v < record.version) {
                self.ended.remove(&digest);
            }
        }
        if let Some(relocated) = Relocated::of(record.extensions) {
            self.copied.push(Copied {
                first: relocated.first,
                lsn: record.lsn,
                location,
                bytes: record.bytes as u32,
            });
            return Ok(());
        }
        let payload_bytes = record.payload.len() as u64;
        self.streams
            .hold(record.stream, record.lsn, record.bytes as u64, u64::MAX);
        self.streams
            .count(record.stream, 1, payload_bytes, 0, record.lsn);
        self.requests
            .record(record, &mut self.producers, &mut self.keys);
        Ok(())
    }

    /// The first reading is over. `log_time_us`: of the log's last batch. What compaction copied is sorted by its first place;
    /// what still is in its first place, and all but the last copy of a record, are left out.
    pub fn read_once(&mut self, log_time_us: u64) {
        self.log_time_us = self.log_time_us.max(log_time_us);
        let first_lsn = self.first_lsn;
        self.copied.retain(|copied| copied.first < first_lsn);
        self.copied
            .sort_unstable_by_key(|copied| (copied.first, std::cmp::Reverse(copied.lsn)));
        self.copied.dedup_by_key(|copied| copied.first);
        for (.., answers) in self.producers.all() {
            self.went
                .extend(answers.map(|(_, _, answer)| (answer.first_lsn, None)));
        }
        self.went
            .extend(self.keys.all().map(|(.., answer)| (answer.first_lsn, None)));
        for item in self.carried.items() {
            if let Item::Request { answer, .. } | Item::Key { answer, .. } = item {
                self.went.insert(answer.first_lsn, None);
            }
        }
        self.went.remove(&0);
    }

    /// Records whose first place is gone, in the order of those.
    pub fn copied(&self) -> &[Copied] {
        &self.copied
    }

    /// The largest log time that anything here has.
    pub fn log_time_us(&self) -> u64 {
        self.log_time_us
    }

    /// Records that will go to a new log, at most.
    pub fn records_for(&self, target: usize) -> u64 {
        self.amounts[target].records
    }

    /// Their bytes, at most.
    pub fn bytes_for(&self, target: usize) -> u64 {
        self.amounts[target].bytes
    }

    /// Answers that retries may ask for.
    pub fn answers(&self) -> usize {
        self.went.len()
    }

    pub(super) fn streams(&self) -> &Streams {
        &self.streams
    }

    pub(super) fn defined_us(&self, stream: u32) -> u64 {
        self.defined_us.get(&stream).copied().unwrap_or(0)
    }

    /// An older version of a key that has ended since, and whose end left no record.
    pub(super) fn is_outlived(&self, record: &RecordView<'_>) -> bool {
        !self.ended.is_empty()
            && self
                .ended
                .contains_key(&self.digests.digest(record.stream, record.key))
    }

    /// Whether the stream's limit in bytes has ended a record of first place `first`: it stays so whatever the new logs count.
    /// Records come in the order of their first places, so a key is over the limit until a record of it is not.
    pub(super) fn is_over_limit(&mut self, first: u64, record: &RecordView<'_>) -> bool {
        let held = self.streams.get(record.stream).map(|stream| &stream.held);
        let over = held.is_some_and(|held| first < held.below());
        if over {
            let digest = self.digests.digest(record.stream, record.key);
            self.over_limit.insert(digest, record.version);
        } else if !self.over_limit.is_empty() {
            let digest = self.digests.digest(record.stream, record.key);
            self.over_limit.remove(&digest);
        }
        over
    }

    /// A record of first place `first` was laid down in a new log.
    pub(super) fn went(&mut self, first: u64, record: &RecordView<'_>, target: usize, lsn: u64) {
        if let Some(place) = self.went.get_mut(&first) {
            *place = Some((target, lsn));
        }
        let kept = self.kept.entry(record.stream).or_default();
        *kept = (kept.0 + 1, kept.1 + record.payload.len() as u64);
    }

    /// Where the record that had this lsn is now: new log and lsn there. None: it is gone.
    pub(super) fn place_of(&self, lsn: u64) -> Option<(usize, u64)> {
        self.went.get(&lsn).copied().flatten()
    }

    /// Records and payload bytes that a stream counts and that are gone.
    pub(super) fn gone(&self, stream: u32) -> (u64, u64) {
        let kept = self.kept.get(&stream).copied().unwrap_or_default();
        let counted = self.streams.get(stream);
        counted.map_or((0, 0), |counted| {
            (
                counted.records.saturating_sub(kept.0),
                counted.payload_bytes.saturating_sub(kept.1),
            )
        })
    }
}

/// What a record keeps of its extensions: not what belongs to its request, nor to its old place.
pub(super) fn kept_extensions(extensions: &[u8], out: &mut Vec<u8>) {
    out.clear();
    for (kind, bytes) in extension::iter(extensions) {
        if ![
            extension::PRODUCER,
            extension::IDEMPOTENCY,
            extension::RELOCATED,
        ]
        .contains(&kind)
        {
            extension::push(out, kind, bytes);
        }
    }
}
