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

use super::{Answer, ChunkError, ChunkReader, ChunkWriter, Kind, Versions};

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

const PRODUCER: u8 = 1;
const REQUEST: u8 = 2;
const KEY: u8 = 3;
const ALIAS: u8 = 4;
const VERSION: u8 = 5;
const COUNTED: u8 = 6;

/// An item's bytes without lists: none is longer.
const ITEM_BYTES_MAX: usize = 1 + 16 + 8 + 8 + 8 + 4 + 4 + 4;

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

/// Writes items, from `cursor` on, into one chunk.
pub fn export(
    items: &[Item],
    cursor: CarriedCursor,
    bytes_max: usize,
    out: &mut Vec<u8>,
) -> Option<CarriedCursor> {
    let mut chunk = ChunkWriter::begin(Kind::Carried, bytes_max, out);
    let mut at = cursor;
    while let Some(item) = items.get(at.item) {
        let lists = match item {
            Item::Key { answer, slots, .. } => answer.versions.len() * 4 + slots.len() * 4,
            _ => 0,
        };
        if chunk.room() < ITEM_BYTES_MAX + lists + size_of::<u32>() && !chunk.is_empty() {
            return Some(at);
        }
        match item {
            Item::Producer {
                id,
                floor,
                expires_us,
            } => {
                let chunk = chunk.entry().u8(PRODUCER).u128(*id);
                chunk.u64(*floor).u64(*expires_us);
            }
            Item::Request {
                id,
                sequence,
                fingerprint,
                answer,
            } => {
                let left = answer.versions.len() - at.versions;
                let fits = chunk.room().saturating_sub(ITEM_BYTES_MAX) / size_of::<u32>();
                let count = left.min(fits.max(1));
                let versions = &answer.versions[at.versions..at.versions + count];
                let chunk = chunk.entry().u8(REQUEST).u128(*id);
                chunk.u64(*sequence).u64(*fingerprint);
                chunk.u64(answer.first_lsn).u32(answer.records);
                chunk.u32(at.versions as u32).u32(count as u32);
                for version in versions {
                    chunk.u32(*version);
                }
                if count < left {
                    at.versions += count;
                    return Some(at);
                }
            }
            Item::Key {
                digest,
                fingerprint,
                expires_us,
                answer,
                slots,
            } => {
                let chunk = chunk.entry().u8(KEY).u128(*digest);
                chunk.u64(*fingerprint).u64(*expires_us);
                chunk.u64(answer.first_lsn).u32(answer.records);
                chunk
                    .u16(answer.versions.len() as u16)
                    .u16(slots.len() as u16);
                for version in answer.versions.iter() {
                    chunk.u32(*version);
                }
                for (first, last) in slots {
                    chunk.u16(*first).u16(*last);
                }
            }
            Item::Alias {
                origin,
                stream,
                digested,
            } => {
                let chunk = chunk.entry().u8(ALIAS).u16(*origin);
                chunk.u32(*stream).u32(*digested);
            }
            Item::Version {
                origin,
                digest,
                version,
            } => {
                let chunk = chunk.entry().u8(VERSION).u16(*origin);
                chunk.u128(digest.0).u32(*version);
            }
            Item::Counted {
                stream,
                records,
                payload_bytes,
            } => {
                let chunk = chunk.entry().u8(COUNTED).u32(*stream);
                chunk.u64(*records).u64(*payload_bytes);
            }
        }
        at = CarriedCursor {
            item: at.item + 1,
            versions: 0,
        };
    }
    None
}

enum Read {
    Whole(Item),
    /// A later part of a request's versions.
    More {
        id: u128,
        sequence: u64,
        fingerprint: u64,
        from: usize,
        versions: Vec<u32>,
    },
}

fn read_item(reader: &mut ChunkReader<'_>) -> Result<Read, ChunkError> {
    let item = match reader.u8()? {
        PRODUCER => Item::Producer {
            id: reader.u128()?,
            floor: reader.u64()?,
            expires_us: reader.u64()?,
        },
        REQUEST => {
            let (id, sequence, fingerprint) = (reader.u128()?, reader.u64()?, reader.u64()?);
            let (first_lsn, records) = (reader.u64()?, reader.u32()?);
            let (from, count) = (reader.u32()? as usize, reader.u32()? as usize);
            let versions = read_versions(reader, count)?;
            if from > 0 {
                return Ok(Read::More {
                    id,
                    sequence,
                    fingerprint,
                    from,
                    versions,
                });
            }
            let versions = Versions::from(versions.as_slice());
            Item::Request {
                id,
                sequence,
                fingerprint,
                answer: Answer {
                    first_lsn,
                    records,
                    versions,
                },
            }
        }
        KEY => {
            let (digest, fingerprint, expires_us) = (reader.u128()?, reader.u64()?, reader.u64()?);
            let (first_lsn, records) = (reader.u64()?, reader.u32()?);
            let (versions, slots) = (usize::from(reader.u16()?), reader.u16()?);
            let versions = Versions::from(read_versions(reader, versions)?.as_slice());
            let slots = (0..slots)
                .map(|_| Ok((reader.u16()?, reader.u16()?)))
                .collect::<Result<Vec<Slots>, ChunkError>>()?;
            Item::Key {
                digest,
                fingerprint,
                expires_us,
                answer: Answer {
                    first_lsn,
                    records,
                    versions,
                },
                slots,
            }
        }
        ALIAS => Item::Alias {
            origin: reader.u16()?,
            stream: reader.u32()?,
            digested: reader.u32()?,
        },
        VERSION => Item::Version {
            origin: reader.u16()?,
            digest: Digest(reader.u128()?),
            version: reader.u32()?,
        },
        COUNTED => Item::Counted {
            stream: reader.u32()?,
            records: reader.u64()?,
            payload_bytes: reader.u64()?,
        },
        _ => return Err(ChunkError::Malformed("an item of a kind that nobody knows")),
    };
    Ok(Read::Whole(item))
}

fn read_versions(reader: &mut ChunkReader<'_>, count: usize) -> Result<Vec<u32>, ChunkError> {
    let bytes = count
        .checked_mul(size_of::<u32>())
        .ok_or(ChunkError::Short)?;
    let (words, _) = reader.bytes(bytes)?.as_chunks::<4>();
    Ok(words.iter().map(|word| u32::from_le_bytes(*word)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(first_lsn: u64, versions: &[u32]) -> Answer {
        Answer {
            first_lsn,
            records: versions.len() as u32,
            versions: versions.into(),
        }
    }

    fn items() -> Vec<Item> {
        let producer = Item::Producer {
            id: 7,
            floor: 9,
            expires_us: 1000,
        };
        let request = |sequence, fingerprint, lsn, versions: &[u32]| Item::Request {
            id: 7,
            sequence,
            fingerprint,
            answer: answer(lsn, versions),
        };
        let key = |fingerprint, slots: &[Slots]| Item::Key {
            digest: 5,
            fingerprint,
            expires_us: 1000,
            answer: answer(20, &[4]),
            slots: slots.into(),
        };
        let many: Vec<u32> = (0..90_000).collect();
        vec![
            producer,
            request(3, 30, 11, &[1]),
            request(3, 31, 12, &[2]),
            request(9, 90, 13, &many),
            key(50, &[(0, 99)]),
            key(50, &[(200, 299)]),
            Item::Alias {
                origin: 2,
                stream: 1,
                digested: 6,
            },
            Item::Version {
                origin: 2,
                digest: DigestKey::new([1; 16]).digest(6, b"gone"),
                version: 8,
            },
        ]
    }

    fn imported(bytes_max: usize, times: usize) -> Carried {
        let mut carried = Carried::default();
        for _ in 0..times {
            let (mut cursor, mut chunk) = (Some(CarriedCursor::default()), Vec::new());
            while let Some(at) = cursor {
                cursor = export(&items(), at, bytes_max, &mut chunk);
                carried.import(&chunk, &mut |_, _, _| ()).unwrap();
            }
        }
        carried
    }

    #[test]
    fn what_was_exported_is_imported_whatever_the_chunks_and_however_often() {
        for (bytes_max, times) in [(usize::MAX, 1), (100, 1), (usize::MAX, 2), (1000, 3)] {
            assert_eq!(imported(bytes_max, times).items(), items(), "{bytes_max}");
        }
        let again = imported(1000, 1);
        let mut chunk = Vec::new();
        assert!(
            again
                .export(CarriedCursor::default(), 1000, &mut chunk)
                .is_some()
        );
    }

    #[test]
    fn sequences_of_two_logs_are_told_apart_by_what_they_asked() {
        let carried = imported(usize::MAX, 1);
        let check = |sequence, fingerprint| carried.check_sequence(7, sequence, fingerprint, 999);
        assert_eq!(check(3, 30), CarriedSequence::Repeat(&answer(11, &[1])));
        assert_eq!(check(3, 31), CarriedSequence::Repeat(&answer(12, &[2])));
        assert_eq!(check(3, 32), CarriedSequence::Mismatch);
        assert_eq!(check(4, 30), CarriedSequence::Below(9));
        assert_eq!(check(10, 30), CarriedSequence::Unknown);
        assert_eq!(
            carried.check_sequence(8, 3, 30, 999),
            CarriedSequence::Unknown
        );
        assert_eq!(
            carried.check_sequence(7, 3, 30, 1000),
            CarriedSequence::Unknown,
            "its time is over"
        );
    }

    #[test]
    fn a_key_is_a_repeat_only_for_the_slots_that_stored_it() {
        let carried = imported(usize::MAX, 1);
        let check = |fingerprint, slots: &[u16]| {
            carried.check_key(5, fingerprint, 999, slots.iter().copied())
        };
        assert_eq!(
            check(50, &[0, 99, 200]),
            CarriedKey::Repeat(&answer(20, &[4]))
        );
        assert_eq!(check(50, &[100]), CarriedKey::Unknown);
        assert_eq!(check(50, &[99, 100]), CarriedKey::InPart);
        assert_eq!(check(51, &[0]), CarriedKey::Mismatch);
        assert_eq!(
            carried.check_key(5, 50, 1000, [0].into_iter()),
            CarriedKey::Unknown
        );
    }

    #[test]
    fn versions_are_found_under_the_ids_that_streams_had() {
        let (carried, digests) = (imported(usize::MAX, 1), DigestKey::new([1; 16]));
        assert_eq!(carried.last_version(&digests, 1, b"gone"), 8);
        assert_eq!(carried.last_version(&digests, 6, b"gone"), 0);
        assert_eq!(carried.last_version(&digests, 1, b"never"), 0);
    }
}
