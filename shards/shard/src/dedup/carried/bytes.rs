//! Items as bytes: what the chunks of notes and checkpoints hold.

use index::Digest;

use super::{CarriedCursor, Item, Slots};
use crate::dedup::{Answer, ChunkError, ChunkReader, ChunkWriter, Kind, Versions};

const PRODUCER: u8 = 1;
const REQUEST: u8 = 2;
const KEY: u8 = 3;
const ALIAS: u8 = 4;
const VERSION: u8 = 5;
const COUNTED: u8 = 6;

/// An item's bytes without lists: none is longer.
const ITEM_BYTES_MAX: usize = 1 + 16 + 8 + 8 + 8 + 4 + 4 + 4;

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

/// One item of a chunk.
pub(super) enum Read {
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

pub(super) fn read_item(reader: &mut ChunkReader<'_>) -> Result<Read, ChunkError> {
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
