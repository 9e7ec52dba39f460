//! One log and what its records mean: streams, keys with versions, idempotency windows, the read cache.
//!
//! Takes units of records and gives lsns, versions and refusals; finds the newest record of a key. A unit is appended
//! whole or not at all: everything that can refuse it is checked before its first record is laid down. It does not know
//! connections, protocols' framing, other shards, or the device beyond `Log`.
//!
//! `append` lays units down, `conditions` decides theirs, `repeats` recognises those that were seen before, `find` looks records up, `memory` is where
//! index and cache lie.

mod append;
mod conditions;
mod find;
mod memory;
mod repeats;

use index::{Digest, DigestKey, Entry, Index};
use wal::Link;
use wal::record::{Kind, NewRecord, RecordView};
use wire::native::AppendIter;
use wire::{Code, Policy, Refusal};

use crate::cache::ReadCache;
use crate::copies::Copies;
use crate::dedup::{Carried, ChunkError, IdempotencyKeys, KeyLimits, ProducerLimits, Producers};
use crate::log::{Claim, Log};
use crate::streams::Streams;
use crate::waypoints::Waypoints;

pub use crate::space_counts::SpaceCounts;
pub use append::append_gate;
pub use conditions::{Probed, Probes};
pub use memory::{CacheMemory, IndexMemory};

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
    /// Try again when what it waits for has come.
    Later(Later),
}

/// What a request waits for that was not taken; nothing was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Later {
    /// A buffer or a segment of the log.
    Room,
    /// Records that its conditions are about: those in `Probes::wanted`.
    Read,
    /// What all shards say of its Idempotency-Key; the job that asks them has it tried again.
    KeyUse,
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
    /// Keys that the memory plan has room for in the index, and above how many new ones are refused.
    pub index_keys: u64,
    pub index_keys_for_data: u64,
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
    pub limits: Limits,
    /// Digests of the unit at hand.
    scratch: Vec<Digest>,
    extensions: Vec<u8>,
    /// What conditions had to have read.
    pub probes: Probes,
    /// Places inside long histories.
    pub waypoints: Waypoints,
    pub damage: u64,
    /// Bytes of records that streams' limits in bytes have ended, in this run and what it replayed.
    pub ended_bytes: u64,
    /// What compaction goes by.
    pub space: SpaceCounts,
    /// What of the segments that are still there was copied forward.
    pub copies: Copies,
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
            probes: Probes::default(),
            waypoints: Waypoints::default(),
            damage: 0,
            ended_bytes: 0,
            space: SpaceCounts::default(),
            copies: Copies::default(),
        }
    }

    /// Empty the index, the streams and the windows: a checkpoint turned out to be damaged half way.
    pub fn forget_everything(&mut self) {
        // What it was sized for is still to come, from elsewhere.
        self.index.reset(self.index.sized_for());
        self.space = SpaceCounts::default();
        self.copies = Copies::default();
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

    /// Define a stream, or change its policy: a record of its own in the log.
    pub fn put_stream(&mut self, name: &[u8], policy: &Policy) -> Result<u64, NotAppended> {
        let id = self
            .streams
            .lookup(name)
            .unwrap_or_else(|| self.streams.next_id());
        self.log
            .make_room(
                definition_bytes(name),
                definition_bytes(name),
                Claim::Freeing,
            )
            .map_err(|b| self.blocked(&b))?;
        self.define_stream(id, name, policy)
    }

    fn define_stream(&mut self, id: u32, name: &[u8], policy: &Policy) -> Result<u64, NotAppended> {
        let before = self.shown(id);
        let (lsn, durable_lsn) = (self.log.next_lsn(), self.log.durable_lsn());
        self.streams
            .define(id, name, policy.clone(), lsn, durable_lsn)
            .map_err(|e| NotAppended::Refused(refuse(Code::Overloaded, e.to_string())))?;
        self.note_policy(id, before);
        let json = serde_json::to_vec(policy).expect("a policy is plain data");
        let timestamp_us = self.log.log_time_us();
        let appended = self.log.append(&NewRecord {
            kind: Kind::StreamDefinition,
            content_type: wal::record::content_type::JSON,
            stream: id,
            version: 0,
            timestamp_us,
            previous: Link::default(),
            key: name,
            payload: &json,
            extensions: &[],
        });
        let bytes = appended.bytes.into();
        self.note_laid_down(id, bytes, appended.location.segment, timestamp_us);
        Ok(appended.lsn)
    }

    /// The lsn that must be durable before a reply may show `lsn` (0: it already is).
    pub fn gate(&self, lsn: u64) -> u64 {
        if lsn > self.log.durable_lsn() { lsn } else { 0 }
    }
}

fn definition_bytes(name: &[u8]) -> usize {
    // Policies are a few numbers; 512 bytes of JSON is more than the largest.
    wal::record::encoded_bytes_of(name.len(), 512, 0)
}
