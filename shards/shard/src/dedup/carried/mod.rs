//! What an earlier set of logs left to this one when the number of shards was changed: answers that a retry may still ask for,
//! and the version numbers of keys whose records are gone.
//!
//! Written once, as notes of the new log (`wal::extension::CARRIED`), and kept in its checkpoints from then on. Nothing is ever
//! added by a running shard, so an import is the only way in.
//!
//! # Invariants
//! - A producer counted per log before: two requests of it may have the same sequence. They are told apart by their fingerprints.
//! - Everything that a producer did before lies at or below its `floor`; what it does from now on lies above, and is [`Producers`](super::Producers)'.
//! - An answer says which slots it speaks for. A request over several logs may have been stored by some of them only.
//! - Importing what is there already changes nothing.
//!
//! It does not know the log, requests, slots' owners, or a clock.

use ahash::{AHashMap, AHashSet};
use index::{Digest, DigestKey};

use super::{Answer, ChunkError, ChunkReader, Kind};

mod bytes;

pub use bytes::export;
use bytes::{Read, read_item};

/// Slots from the first to the last.
pub type Slots = (u16, u16);

/// A piece of what was left. What a chunk holds, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Largest sequence that a producer used in any of the earlier logs, and when it is forgotten.
    Producer {
        id: u128,
        floor: u64,
        expires_us: u64,
    },
    /// One request of a producer.
    Request {
        id: u128,
        sequence: u64,
        fingerprint: u64,
        answer: Answer,
    },
    /// One Idempotency-Key.
    Key {
        digest: u128,
        fingerprint: u64,
        expires_us: u64,
        answer: Answer,
        slots: Vec<Slots>,
    },
    /// In the digests of `origin`, stream `stream` of this log goes by the id `digested`.
    Alias {
        origin: u16,
        stream: u32,
        digested: u32,
    },
    /// A key without a record: its next version follows this one.
    Version {
        origin: u16,
        digest: Digest,
        version: u32,
    },
    /// Of a stream, records and payload bytes that were counted and are gone. Counted once, by the note's lsn; not kept here.
    Counted {
        stream: u32,
        records: u64,
        payload_bytes: u64,
    },
}

/// What an Idempotency-Key is to the earlier logs.
#[derive(Debug, PartialEq, Eq)]
pub enum CarriedKey<'a> {
    Unknown,
    Repeat(&'a Answer),
    Mismatch,
    /// Some of the records were stored, of others nothing is known.
    InPart,
}

/// What a producer's sequence is to the earlier logs.
#[derive(Debug, PartialEq, Eq)]
pub enum CarriedSequence<'a> {
    /// Nothing was left of this producer, or the sequence is a new one.
    Unknown,
    Repeat(&'a Answer),
    Mismatch,
    /// It is none of the remembered ones, and new ones lie above this.
    Below(u64),
}

#[derive(Debug)]
struct CarriedProducer {
    floor: u64,
    expires_us: u64,
    requests: Vec<u32>,
}

/// See the module's header.
#[derive(Debug, Default)]
pub struct Carried {
    /// In the order they came; never moved, so that an export can go on where it was.
    items: Vec<Item>,
    producers: AHashMap<u128, CarriedProducer>,
    keys: AHashMap<u128, Vec<u32>>,
    /// By stream of this log: (origin, id in its digests).
    aliases: AHashMap<u32, Vec<(u16, u32)>>,
    versions: AHashMap<(u16, Digest), u32>,
    known: AHashSet<u128>,
}

/// Where an export goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CarriedCursor {
    item: usize,
    /// Versions exported of it.
    versions: usize,
}

impl Carried {
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Everything, in the order it came.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// What request `sequence` of a producer is.
    pub fn check_sequence(
        &self,
        id: u128,
        sequence: u64,
        fingerprint: u64,
        log_time_us: u64,
    ) -> CarriedSequence<'_> {
        let Some(producer) = self.producers.get(&id) else {
            return CarriedSequence::Unknown;
        };
        if producer.expires_us <= log_time_us || sequence > producer.floor {
            return CarriedSequence::Unknown;
        }
        let mut used = false;
        for at in &producer.requests {
            if let Item::Request {
                sequence: of,
                fingerprint: remembered,
                answer,
                ..
            } = &self.items[*at as usize]
                && *of == sequence
            {
                if *remembered == fingerprint {
                    return CarriedSequence::Repeat(answer);
                }
                used = true;
            }
        }
        match used {
            true => CarriedSequence::Mismatch,
            false => CarriedSequence::Below(producer.floor),
        }
    }

    /// What a request under an Idempotency-Key is, whose records lie in `slots`.
    pub fn check_key(
        &self,
        digest: u128,
        fingerprint: u64,
        log_time_us: u64,
        slots: impl Iterator<Item = u16>,
    ) -> CarriedKey<'_> {
        let Some(places) = self.keys.get(&digest) else {
            return CarriedKey::Unknown;
        };
        let mut found: Vec<(&Answer, &[Slots])> = Vec::new();
        let mut mismatch = false;
        for at in places {
            if let Item::Key {
                fingerprint: remembered,
                expires_us,
                answer,
                slots,
                ..
            } = &self.items[*at as usize]
                && *expires_us > log_time_us
            {
                if *remembered != fingerprint && *remembered != 0 && fingerprint != 0 {
                    mismatch = true;
                } else {
                    found.push((answer, slots));
                }
            }
        }
        let Some((answer, _)) = found.first() else {
            return match mismatch {
                true => CarriedKey::Mismatch,
                false => CarriedKey::Unknown,
            };
        };
        let (mut stored, mut unknown) = (0, 0);
        for slot in slots {
            let covered = found
                .iter()
                .flat_map(|(_, slots)| slots.iter())
                .any(|(first, last)| (*first..=*last).contains(&slot));
            if covered {
                stored += 1;
            } else {
                unknown += 1;
            }
        }
        match (stored, unknown) {
            (0, _) => CarriedKey::Unknown,
            (_, 0) => CarriedKey::Repeat(answer),
            _ => CarriedKey::InPart,
        }
    }

    /// The last version of a key that has no record here; 0: none is known.
    #[cold]
    pub fn last_version(&self, digests: &DigestKey, stream: u32, key: &[u8]) -> u32 {
        let aliases = self.aliases.get(&stream).into_iter().flatten();
        let versions = aliases.filter_map(|(origin, digested)| {
            let digest = digests.digest(*digested, key);
            self.versions.get(&(*origin, digest)).copied()
        });
        versions.max().unwrap_or(0)
    }

    /// No key without a record is known: nobody has to look.
    #[inline]
    pub fn has_versions(&self) -> bool {
        !self.versions.is_empty()
    }

    /// Take in one item; the same one again changes nothing.
    pub fn add(&mut self, item: Item) {
        let at = self.items.len() as u32;
        match &item {
            Item::Producer {
                id,
                floor,
                expires_us,
            } => {
                let is_new = self.known.insert(*id);
                let producer = self.producers.entry(*id).or_insert(CarriedProducer {
                    floor: 0,
                    expires_us: 0,
                    requests: Vec::new(),
                });
                producer.floor = producer.floor.max(*floor);
                producer.expires_us = producer.expires_us.max(*expires_us);
                if !is_new {
                    return;
                }
            }
            Item::Request {
                id,
                sequence,
                fingerprint,
                ..
            } => {
                let producer = self.producers.entry(*id).or_insert(CarriedProducer {
                    floor: *sequence,
                    expires_us: 0,
                    requests: Vec::new(),
                });
                let same = producer.requests.iter().copied().find(|at| {
                    matches!(&self.items[*at as usize], Item::Request { sequence: s, fingerprint: f, .. }
                        if s == sequence && f == fingerprint)
                });
                match same {
                    Some(at) => {
                        self.items[at as usize] = item;
                        return;
                    }
                    None => producer.requests.push(at),
                }
            }
            Item::Key {
                digest,
                fingerprint,
                slots,
                ..
            } => {
                let places = self.keys.entry(*digest).or_default();
                let same = places.iter().copied().find(|at| {
                    matches!(&self.items[*at as usize], Item::Key { fingerprint: f, slots: s, .. }
                        if f == fingerprint && s == slots)
                });
                match same {
                    Some(at) => {
                        self.items[at as usize] = item;
                        return;
                    }
                    None => places.push(at),
                }
            }
            Item::Alias {
                origin,
                stream,
                digested,
            } => {
                let aliases = self.aliases.entry(*stream).or_default();
                if aliases.contains(&(*origin, *digested)) {
                    return;
                }
                aliases.push((*origin, *digested));
            }
            Item::Version {
                origin,
                digest,
                version,
            } => {
                if self.versions.insert((*origin, *digest), *version).is_some() {
                    return;
                }
            }
            Item::Counted { .. } => return,
        }
        self.items.push(item);
    }

    /// One chunk into `out`, as the windows' exports do it. `None`: that was the last.
    pub fn export(
        &self,
        cursor: CarriedCursor,
        bytes_max: usize,
        out: &mut Vec<u8>,
    ) -> Option<CarriedCursor> {
        export(&self.items, cursor, bytes_max, out)
    }

    /// Take in a chunk. `counted` is told of streams' counts, which are not kept here.
    ///
    /// # Errors
    /// When the bytes are not such a chunk.
    pub fn import(
        &mut self,
        chunk: &[u8],
        counted: &mut dyn FnMut(u32, u64, u64),
    ) -> Result<(), ChunkError> {
        let mut reader = ChunkReader::begin(Kind::Carried, chunk)?;
        for _ in 0..reader.entries() {
            match read_item(&mut reader)? {
                Read::Whole(Item::Counted {
                    stream,
                    records,
                    payload_bytes,
                }) => counted(stream, records, payload_bytes),
                Read::Whole(item) => self.add(item),
                Read::More {
                    id,
                    sequence,
                    fingerprint,
                    from,
                    versions,
                } => self.append_versions(id, sequence, fingerprint, from, &versions)?,
            }
        }
        reader.end()
    }

    fn append_versions(
        &mut self,
        id: u128,
        sequence: u64,
        fingerprint: u64,
        from: usize,
        more: &[u32],
    ) -> Result<(), ChunkError> {
        let places = self.producers.get(&id).map(|p| p.requests.clone());
        for at in places.into_iter().flatten() {
            if let Item::Request {
                sequence: s,
                fingerprint: f,
                answer,
                ..
            } = &mut self.items[at as usize]
                && (*s, *f) == (sequence, fingerprint)
                && answer.versions.len() == from
            {
                answer.versions.append(more);
                return Ok(());
            }
        }
        Err(ChunkError::Malformed(
            "part of an answer without the part before",
        ))
    }
}

#[cfg(test)]
mod tests;
