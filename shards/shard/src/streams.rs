//! The streams of one log: name, id, policy, and what is counted of each.
//!
//! # Invariants
//! - Ids are dense from 1, in the order in which the log defined them. A stream is never renamed and never forgotten.
//! - Counts are those of records up to and including `last_lsn`. Records at or below it are not counted again, so a checkpoint written
//!   while records come in, and the replay behind it, count each record once.
//!
//! It does not know the log, the index, or what a policy means to a reader. Whether a record made a key or ended one is said by the caller.

use std::collections::HashMap;

use wire::Policy;

use crate::dedup::{ChunkError, ChunkReader, ChunkWriter, Kind};
use crate::held::Held;
use crate::settling::Settling;

/// Streams that a log has room for unless it is told otherwise.
pub const STREAMS_MAX_DEFAULT: usize = 65_536;

/// One stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// as clients call it
    pub name: Box<[u8]>,
    /// the last one set
    pub policy: Policy,
    /// what it was, until the definition that changed it is durable
    settling: Settling<Policy>,
    /// records appended, tombstones included
    pub records: u64,
    /// payload bytes of them
    pub payload_bytes: u64,
    /// keys whose newest record is no tombstone
    pub keys: u64,
    /// newest record counted
    pub last_lsn: u64,
    /// what its limit in bytes has left of it
    pub held: Held,
}

impl Stream {
    /// The policy that readers see: a definition that a crash may take back hides nothing yet.
    #[inline]
    pub fn durable_policy(&self, durable_lsn: u64) -> &Policy {
        self.settling.durable(&self.policy, durable_lsn)
    }
}

/// Why a stream was not defined.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum StreamsError {
    /// the bound is reached
    #[error(
        "this log has {0} streams, and that is its bound: use keys to tell things apart, not streams"
    )]
    Full(usize),
    /// longer than a wire name may be: no client can have asked for it
    #[error("a stream name of {0} bytes")]
    Name(usize),
    /// the id has another name, or the name another id: no log says so
    #[error("stream {id} cannot be {name:?}: that contradicts an earlier definition")]
    Contradicts {
        /// the id given
        id: u32,
        /// the name given
        name: String,
    },
    /// ids are dense
    #[error("stream {id} is defined before stream {expected}")]
    Skipped {
        /// the id given
        id: u32,
        /// the next id
        expected: u32,
    },
}

/// Why a checkpoint's chunk was not taken in.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum ImportError {
    /// its bytes are not a chunk
    #[error(transparent)]
    Chunk(#[from] ChunkError),
    /// what it says cannot be
    #[error(transparent)]
    Stream(#[from] StreamsError),
    /// its policy cannot be read
    #[error("policy of stream {id}: {why}")]
    Policy {
        /// of the stream
        id: u32,
        /// what the parser said
        why: String,
    },
}

/// The registry.
#[derive(Debug)]
pub struct Streams {
    /// stream `id` at `id - 1`
    streams: Vec<Stream>,
    by_name: HashMap<Box<[u8]>, u32, ahash::RandomState>,
    streams_max: usize,
    /// logs that share a limit in bytes
    shards: u64,
    /// bytes that limits have ended and that nobody has asked for yet
    pub ended_bytes: u64,
}

impl Streams {
    /// Empty, for at most `streams_max` streams.
    pub fn new(streams_max: usize, shards: u64) -> Streams {
        assert!(streams_max < u32::MAX as usize, "stream ids are u32");
        Streams {
            streams: Vec::new(),
            by_name: HashMap::default(),
            streams_max,
            shards,
            ended_bytes: 0,
        }
    }

    /// The id of a stream. No allocation.
    #[inline]
    pub fn lookup(&self, name: &[u8]) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The id that the next new stream gets.
    pub fn next_id(&self) -> u32 {
        self.streams.len() as u32 + 1
    }

    /// Define stream `id` on behalf of a client, or set the policy of one that is there. `lsn`: of the definition.
    ///
    /// # Errors
    /// [`StreamsError::Full`] when the bound is reached; the others when id and name contradict what was defined before.
    pub fn define(
        &mut self,
        id: u32,
        name: &[u8],
        policy: Policy,
        lsn: u64,
        durable_lsn: u64,
    ) -> Result<(), StreamsError> {
        if id == self.next_id() && self.streams.len() >= self.streams_max {
            return Err(StreamsError::Full(self.streams.len()));
        }
        self.set(id, name, policy, lsn, durable_lsn)
    }

    /// Take in a definition that the log holds. The bound does not apply: it may be smaller than that of the run which wrote it.
    ///
    /// # Errors
    /// When id and name contradict what was defined before: the log is damaged in a way that its checksums do not show.
    pub fn replay(
        &mut self,
        id: u32,
        name: &[u8],
        policy: Policy,
        lsn: u64,
    ) -> Result<(), StreamsError> {
        self.set(id, name, policy, lsn, u64::MAX)
    }

    fn set(
        &mut self,
        id: u32,
        name: &[u8],
        mut policy: Policy,
        lsn: u64,
        durable_lsn: u64,
    ) -> Result<(), StreamsError> {
        // Earlier versions took it; the newest was there all the same.
        policy.history_depth = policy.history_depth.map(|depth| depth.max(1));
        if name.len() > wire::STREAM_NAME_BYTES_MAX {
            return Err(StreamsError::Name(name.len()));
        }
        let contradicts = || StreamsError::Contradicts {
            id,
            name: String::from_utf8_lossy(name).into_owned(),
        };
        match (self.lookup(name), self.get(id)) {
            (Some(known), Some(_)) if known == id => {}
            (None, None) if id == self.next_id() => {
                self.by_name.insert(name.into(), id);
                let name = name.into();
                self.streams.push(Stream {
                    name,
                    policy: Policy::default(),
                    settling: Settling::default(),
                    records: 0,
                    payload_bytes: 0,
                    keys: 0,
                    last_lsn: 0,
                    held: Held::default(),
                });
            }
            (None, None) if id > 0 => {
                return Err(StreamsError::Skipped {
                    id,
                    expected: self.next_id(),
                });
            }
            _ => return Err(contradicts()),
        }
        let limit = self.share_of(&policy);
        let stream = &mut self.streams[id as usize - 1];
        // A checkpoint may know a later one.
        if !stream.held.is_newer_than(lsn) {
            let before = std::mem::replace(&mut stream.policy, policy);
            stream.settling.changed(lsn, before, durable_lsn);
            self.ended_bytes += stream.held.define(lsn, limit, durable_lsn);
        }
        Ok(())
    }

    /// A stream by id.
    #[inline]
    pub fn get(&self, id: u32) -> Option<&Stream> {
        self.streams.get((id as usize).checked_sub(1)?)
    }

    /// All streams, by id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Stream)> {
        (1..).zip(&self.streams)
    }

    /// Number of streams.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// The bound.
    pub fn streams_max(&self) -> usize {
        self.streams_max
    }

    /// None is defined.
    pub fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// This log's part of a limit in bytes.
    fn share_of(&self, policy: &Policy) -> Option<u64> {
        policy.max_bytes.map(|bytes| bytes.div_ceil(self.shards))
    }

    /// A record of `bytes` in the log counts towards its stream's limit; before `count` is told of it, and once like there.
    #[inline]
    pub fn hold(&mut self, id: u32, lsn: u64, bytes: u64, durable_lsn: u64) {
        let stream = &self.streams[id as usize - 1];
        if stream.policy.max_bytes.is_some()
            && lsn > stream.last_lsn
            && let Some(limit) = self.share_of(&stream.policy)
        {
            let held = &mut self.streams[id as usize - 1].held;
            self.ended_bytes += held.count(lsn, bytes, limit, durable_lsn);
        }
    }

    /// Count records of one stream that end at `last_lsn`. `keys`: keys made minus keys ended. What was counted already, by a checkpoint, is not
    /// counted again: a call's records lie either all at or below the stream's `last_lsn`, or all above it.
    ///
    /// # Panics
    /// When there is no such stream: its definition comes before its records in every log.
    #[inline]
    pub fn count(&mut self, id: u32, records: u64, payload_bytes: u64, keys: i64, last_lsn: u64) {
        let stream = &mut self.streams[id as usize - 1];
        if last_lsn <= stream.last_lsn {
            return;
        }
        stream.records += records;
        stream.payload_bytes += payload_bytes;
        // a figure for people: not worth stopping a shard for
        stream.keys = stream.keys.saturating_add_signed(keys);
        stream.last_lsn = last_lsn;
    }

    /// A key's last record has left the log by age.
    pub fn key_ended(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut((id as usize).wrapping_sub(1)) {
            stream.keys = stream.keys.saturating_sub(1);
        }
    }

    /// One chunk of a checkpoint into `out`: about `bytes_max` bytes at most, and no more than
    /// [`CHUNK_BYTES_MAX`](crate::dedup::CHUNK_BYTES_MAX). Returns where to go on, `None` at the end. Start with 0.
    ///
    /// The registry may change between calls. **Export it after the index**: the replay asks the index whether a record makes a key, which is right
    /// only for records that the index did not have when its last page was taken, and those are above every `last_lsn` taken before.
    pub fn export(&self, cursor: u32, bytes_max: usize, out: &mut Vec<u8>) -> Option<u32> {
        let mut chunk = ChunkWriter::begin(Kind::Streams, bytes_max, out);
        for (id, stream) in self.iter().skip(cursor as usize) {
            let policy = stored(stream);
            if chunk.room() < ENTRY_BYTES_MIN + stream.name.len() + policy.len()
                && !chunk.is_empty()
            {
                return Some(id - 1);
            }
            chunk
                .entry()
                .u32(id)
                .u16(stream.name.len() as u16)
                .u16(policy.len() as u16)
                .u64(stream.records)
                .u64(stream.payload_bytes)
                .u64(stream.keys)
                .u64(stream.last_lsn)
                .bytes(&stream.name)
                .bytes(&policy);
        }
        None
    }

    /// Take in a chunk of [`export`](Streams::export). Chunks come in the order they were exported.
    ///
    /// # Errors
    /// When the bytes are not such a chunk. Entries before the bad one stay: the caller drops the checkpoint as a whole.
    pub fn import(&mut self, chunk: &[u8]) -> Result<(), ImportError> {
        let mut reader = ChunkReader::begin(Kind::Streams, chunk)?;
        for _ in 0..reader.entries() {
            let id = reader.u32()?;
            let (name_bytes, policy_bytes) = (reader.u16()?, reader.u16()?);
            let (records, payload_bytes, keys, last_lsn) =
                (reader.u64()?, reader.u64()?, reader.u64()?, reader.u64()?);
            let name = reader.bytes(name_bytes.into())?;
            let (policy, held) =
                restored(reader.bytes(policy_bytes.into())?).map_err(|e| ImportError::Policy {
                    id,
                    why: e.to_string(),
                })?;
            self.replay(id, name, policy, 0)?;
            let stream = &mut self.streams[id as usize - 1];
            stream.held = held;
            (
                stream.records,
                stream.payload_bytes,
                stream.keys,
                stream.last_lsn,
            ) = (records, payload_bytes, keys, last_lsn);
        }
        Ok(reader.end()?)
    }
}

/// A policy as a checkpoint holds it: with what its limit in bytes has left, where there is any.
fn stored(stream: &Stream) -> Vec<u8> {
    let mut policy = serde_json::to_value(&stream.policy).expect("a policy is plain data");
    if !stream.held.is_empty() {
        policy[HELD] = serde_json::to_value(&stream.held).expect("numbers");
    }
    serde_json::to_vec(&policy).expect("a value is JSON")
}

fn restored(bytes: &[u8]) -> serde_json::Result<(Policy, Held)> {
    let mut policy: serde_json::Value = serde_json::from_slice(bytes)?;
    let held = policy.as_object_mut().and_then(|p| p.remove(HELD));
    let held = held.map_or(Ok(Held::default()), serde_json::from_value)?;
    Ok((serde_json::from_value(policy)?, held))
}

/// Beside the fields of a policy.
const HELD: &str = "held";

/// id, two lengths, four counts
const ENTRY_BYTES_MIN: usize = 4 + 2 + 2 + 4 * 8;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn policy(depth: u32) -> Policy {
        Policy {
            history_depth: Some(depth),
            // Some have a limit that a few records reach.
            max_bytes: depth.is_multiple_of(2).then_some(u64::from(depth) * 200),
            ..Policy::default()
        }
    }

    #[test]
    fn ids_are_dense_and_names_are_found() {
        let mut streams = Streams::new(10, 1);
        assert_eq!((streams.next_id(), streams.lookup(b"a")), (1, None));
        streams.define(1, b"a", policy(1), 0, u64::MAX).unwrap();
        streams.define(2, b"b", policy(2), 0, u64::MAX).unwrap();
        assert_eq!(
            (
                streams.lookup(b"a"),
                streams.lookup(b"b"),
                streams.next_id()
            ),
            (Some(1), Some(2), 3)
        );
        assert_eq!((streams.get(0), streams.get(3)), (None, None));
        assert_eq!(streams.get(2).unwrap().policy, policy(2));
        streams.define(1, b"a", policy(7), 0, u64::MAX).unwrap();
        assert_eq!(
            streams.get(1).unwrap().policy,
            policy(7),
            "a second definition sets the policy"
        );
        assert_eq!(
            streams
                .iter()
                .map(|(id, s)| (id, &*s.name))
                .collect::<Vec<_>>(),
            [(1, b"a".as_slice()), (2, b"b")]
        );
    }

    #[test]
    fn what_no_log_says_is_refused() {
        let mut streams = Streams::new(10, 1);
        streams.define(1, b"a", policy(1), 0, u64::MAX).unwrap();
        streams.define(2, b"b", policy(1), 0, u64::MAX).unwrap();
        let before = streams.streams.clone();
        assert!(matches!(
            streams.define(2, b"a", policy(2), 0, u64::MAX),
            Err(StreamsError::Contradicts { .. })
        ));
        assert!(matches!(
            streams.define(1, b"c", policy(2), 0, u64::MAX),
            Err(StreamsError::Contradicts { .. })
        ));
        assert!(matches!(
            streams.define(3, b"a", policy(2), 0, u64::MAX),
            Err(StreamsError::Contradicts { .. })
        ));
        assert!(matches!(
            streams.define(0, b"z", policy(2), 0, u64::MAX),
            Err(StreamsError::Contradicts { .. })
        ));
        assert_eq!(
            streams.define(4, b"d", policy(2), 0, u64::MAX),
            Err(StreamsError::Skipped { id: 4, expected: 3 })
        );
        assert_eq!(
            streams.define(3, &[b'x'; 129], policy(2), 0, u64::MAX),
            Err(StreamsError::Name(129))
        );
        assert_eq!(streams.streams, before);
    }

    #[test]
    fn the_bound_holds_for_clients_and_not_for_the_log() {
        let mut streams = Streams::new(1, 1);
        streams.define(1, b"a", policy(1), 0, u64::MAX).unwrap();
        assert_eq!(
            streams.define(2, b"b", policy(1), 0, u64::MAX),
            Err(StreamsError::Full(1))
        );
        streams.define(1, b"a", policy(2), 0, u64::MAX).unwrap();
        streams.replay(2, b"b", policy(1), 0).unwrap();
        assert_eq!(streams.len(), 2);
    }

    #[test]
    fn a_record_is_counted_once() {
        let mut streams = Streams::new(10, 1);
        streams.define(1, b"a", policy(1), 0, u64::MAX).unwrap();
        streams.count(1, 3, 30, 2, 13);
        streams.count(1, 1, 10, 1, 12);
        streams.count(1, 1, 0, -1, 14);
        let stream = streams.get(1).unwrap();
        assert_eq!(
            (
                stream.records,
                stream.payload_bytes,
                stream.keys,
                stream.last_lsn
            ),
            (4, 30, 1, 14)
        );
    }

    #[test]
    fn import_refuses_every_cut() {
        let mut streams = Streams::new(10, 1);
        streams.define(1, b"a", policy(1), 0, u64::MAX).unwrap();
        let mut chunk = Vec::new();
        assert_eq!(streams.export(0, 1000, &mut chunk), None);
        for length in 0..chunk.len() {
            assert_eq!(
                Streams::new(10, 1).import(&chunk[..length]),
                Err(ChunkError::Short.into()),
                "cut at {length}"
            );
        }
        *chunk.last_mut().unwrap() = b'x';
        assert!(matches!(
            Streams::new(10, 1).import(&chunk),
            Err(ImportError::Policy { id: 1, .. })
        ));
    }

    proptest! {
        /// Checkpoint in slices while streams are defined and records counted, then replay: as if never stopped.
        #[test]
        fn checkpoint_and_replay_end_where_the_first_run_was(steps in prop::collection::vec((0usize..12, 1u32..9, -1i64..2), 1..200), start in 0usize..200, slice in 0usize..400) {
            let names: Vec<String> = (0..12).map(|n| "s".repeat(n * 7 + 1)).collect();
            let mut run = Streams::new(20, 1);
            let (mut log, mut chunks, mut cursor) = (Vec::new(), Vec::new(), Some(0));
            let start = start.min(steps.len());
            let mut export = |run: &Streams, cursor: &mut Option<u32>| if let Some(at) = *cursor {
                let mut chunk = Vec::new();
                *cursor = run.export(at, slice, &mut chunk);
                chunks.push(chunk);
            };
            let apply = |streams: &mut Streams, (number, id, name, depth, keys): (usize, u32, &str, u32, i64)| {
                streams.replay(id, name.as_bytes(), policy(depth), number as u64 + 1).unwrap();
                streams.hold(id, number as u64 + 1, 100 + u64::from(depth), u64::MAX);
                streams.count(id, 1, depth.into(), keys, number as u64 + 1);
            };
            for (number, (name, depth, keys)) in steps.into_iter().enumerate() {
                let name = names[name].as_str();
                let id = run.lookup(name.as_bytes()).unwrap_or(run.next_id());
                let keys = if run.get(id).is_none_or(|s| s.keys == 0) { keys.max(0) } else { keys };
                let step = (number, id, name, depth, keys);
                log.push(step);
                apply(&mut run, step);
                if number >= start { export(&run, &mut cursor); }
            }
            while cursor.is_some() { export(&run, &mut cursor); }
            let mut restarted = Streams::new(20, 1);
            for chunk in &chunks { restarted.import(chunk).unwrap(); }
            for step in log.drain(start..) { apply(&mut restarted, step); }
            prop_assert_eq!(restarted.streams, run.streams);
        }
    }
}
