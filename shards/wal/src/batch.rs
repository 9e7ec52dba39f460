//! The two headers of a batch: the local envelope, which says where it lies, and the portable header,
//! which says what it is. Laid down by the writer, read by scans; both drawn in `FORMAT.md`.
//!
//! Invariants: the portable header and the records never mention store, segment, generation or block;
//! the envelope's checksum is seeded with the portable header's, so one cannot be read with another's.

use crate::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, LogIdentity, chain::ChainPoint, layout, scan::BatchInfo,
    segment::SegmentHeader,
};
use rkyv::{Archive, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64, xxh3_64_with_seed, xxh3_128};

/// Bytes of the local envelope.
pub(crate) const ENVELOPE_BYTES: usize = 64;
/// Bytes of the portable header.
pub(crate) const PORTABLE_BYTES: usize = 128;
/// Both headers close with their checksum.
const CHECKSUM_BYTES: usize = size_of::<u64>();

const ENVELOPE_MAGIC: [u8; 8] = *b"pinBATCH";
const PORTABLE_MAGIC: [u8; 8] = *b"pinPORT\x01";
/// The batch ends a unit: it and every batch since the last such one count from here on.
const FLAG_COMMIT: u16 = 1;
/// Flags of the low byte must be understood; those of the high byte may be ignored.
const FLAGS_REQUIRED: u16 = 0x00ff;

#[derive(Archive, Serialize)]
struct Envelope {
    magic: [u8; 8],
    store: [u8; 16],
    segment: u32,
    generation: u32,
    block: u32,
    bytes: u32,
    durable_mark: u64,
    reserved: [u8; 8],
    checksum: u64,
}
const _: () = assert!(
    size_of::<ArchivedEnvelope>() == ENVELOPE_BYTES,
    "FORMAT.md draws 64 bytes"
);

#[derive(Archive, Serialize)]
struct Portable {
    magic: [u8; 8],
    log: [u8; 16],
    timeline: u32,
    epoch: u32,
    batch: u64,
    first_lsn: u64,
    records: u32,
    body_bytes: u32,
    log_time_us: u64,
    previous_hash: [u8; 16],
    body_checksum: [u8; 16],
    previous_epoch: u32,
    kind: u16,
    flags: u16,
    reserved: [u8; 16],
    checksum: u64,
}
const _: () = assert!(
    size_of::<ArchivedPortable>() == PORTABLE_BYTES,
    "FORMAT.md draws 128 bytes"
);

/// What a batch carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum BatchKind {
    /// Records.
    Records = 1,
    /// Nothing but its durable mark.
    Mark = 2,
}

/// Collects the body checksum: xxh3-128 over each record's first eight bytes (length and CRC), in order.
/// Payload bytes are not read again. Words are gathered so that the hash is fed in stripes of its own size.
pub(crate) struct BodyChecksum {
    words: [u8; BodyChecksum::GATHERED_BYTES],
    used: usize,
    hash: Xxh3,
}

impl BodyChecksum {
    const GATHERED_BYTES: usize = 256;

    pub(crate) fn new() -> BodyChecksum {
        BodyChecksum {
            words: [0; BodyChecksum::GATHERED_BYTES],
            used: 0,
            hash: Xxh3::new(),
        }
    }

    pub(crate) fn reset(&mut self) {
        self.used = 0;
        self.hash.reset();
    }

    #[inline]
    pub(crate) fn push(&mut self, fingerprint: &[u8; 8]) {
        self.words[self.used..self.used + 8].copy_from_slice(fingerprint);
        self.used += 8;
        if self.used == self.words.len() {
            self.hash.update(&self.words);
            self.used = 0;
        }
    }

    pub(crate) fn finish(&mut self) -> [u8; 16] {
        self.hash.update(&self.words[..self.used]);
        self.used = 0;
        self.hash.digest128().to_le_bytes()
    }
}

/// What the writer knows of a batch when it seals it.
pub(crate) struct Seal {
    pub(crate) epoch: u32,
    pub(crate) records: u32,
    pub(crate) body_bytes: u32,
    pub(crate) body_checksum: [u8; 16],
    pub(crate) commits: bool,
    pub(crate) durable_mark: u64,
    pub(crate) log_time_us: u64,
    pub(crate) generation: u32,
}

/// Fill the headers of the batch that starts `buffer` and continues `chain`; zero the padding behind its body.
/// Returns the batch's bytes and the chain point behind it.
pub(crate) fn seal(
    identity: &LogIdentity,
    chain: &ChainPoint,
    seal: &Seal,
    buffer: &mut [u8],
) -> (u32, ChainPoint) {
    let body_end = BATCH_HEADER_BYTES + seal.body_bytes as usize;
    let end = layout::whole_blocks(body_end);
    buffer[body_end..end].fill(0); // buffers are reused; stale bytes must not reach the device
    let bytes = u32::try_from(end).expect("a batch lies in a segment");

    let portable = Portable {
        magic: PORTABLE_MAGIC,
        log: identity.log,
        timeline: identity.timeline,
        epoch: seal.epoch,
        batch: chain.next_batch,
        first_lsn: chain.next_lsn,
        records: seal.records,
        body_bytes: seal.body_bytes,
        log_time_us: seal.log_time_us,
        previous_hash: chain.hash,
        body_checksum: seal.body_checksum,
        previous_epoch: chain.epoch,
        kind: if seal.records == 0 {
            BatchKind::Mark
        } else {
            BatchKind::Records
        } as u16,
        flags: if seal.commits { FLAG_COMMIT } else { 0 },
        reserved: [0; 16],
        checksum: 0,
    };
    let (envelope_place, rest) = buffer.split_at_mut(ENVELOPE_BYTES);
    let portable_place = &mut rest[..PORTABLE_BYTES];
    layout::put(&portable, portable_place);
    let portable_checksum = xxh3_64(&portable_place[..PORTABLE_BYTES - CHECKSUM_BYTES]);
    portable_place[PORTABLE_BYTES - CHECKSUM_BYTES..]
        .copy_from_slice(&portable_checksum.to_le_bytes());

    let envelope = Envelope {
        magic: ENVELOPE_MAGIC,
        store: identity.store,
        segment: chain.segment,
        generation: seal.generation,
        block: chain.offset / BLOCK_BYTES as u32,
        bytes,
        durable_mark: seal.durable_mark,
        reserved: [0; 8],
        checksum: 0,
    };
    layout::put(&envelope, envelope_place);
    let checksum = xxh3_64_with_seed(
        &envelope_place[..ENVELOPE_BYTES - CHECKSUM_BYTES],
        portable_checksum,
    );
    envelope_place[ENVELOPE_BYTES - CHECKSUM_BYTES..].copy_from_slice(&checksum.to_le_bytes());

    let after = ChainPoint {
        epoch: seal.epoch,
        next_batch: chain.next_batch + 1,
        next_lsn: chain.next_lsn + u64::from(seal.records),
        hash: xxh3_128(portable_place).to_le_bytes(),
        log_time_us: seal.log_time_us,
        segment: chain.segment,
        offset: chain.offset + bytes,
    };
    (bytes, after)
}

/// A batch whose two headers verify and belong where they were found. Its body has not been looked at.
pub(crate) struct Header {
    pub(crate) info: BatchInfo,
    pub(crate) body_checksum: [u8; 16],
    previous_epoch: u32,
    previous_hash: [u8; 16],
    hash: [u8; 16],
}

impl Header {
    /// Whether this batch is the one that `chain` waits for.
    pub(crate) fn continues(&self, chain: &ChainPoint) -> bool {
        self.info.batch == chain.next_batch
            && self.info.first_lsn == chain.next_lsn
            && self.previous_epoch == chain.epoch
            && self.previous_hash == chain.hash
            && self.info.epoch >= chain.epoch
    }

    /// The chain point behind this batch.
    pub(crate) fn after(&self) -> ChainPoint {
        ChainPoint {
            epoch: self.info.epoch,
            next_batch: self.info.batch + 1,
            next_lsn: self.info.first_lsn + u64::from(self.info.records),
            hash: self.hash,
            log_time_us: self.info.log_time_us,
            segment: self.info.segment,
            offset: self.info.offset + self.info.bytes,
        }
    }
}

/// Why no batch of this life of the segment starts at a block.
#[derive(Debug)]
pub(crate) enum Absent {
    /// Zeroes, the middle of something, or a batch of an older life of the file.
    Nothing,
    /// A batch that is damaged or belongs elsewhere.
    Broken(String),
}

/// Read the headers of the batch that starts `bytes`, which were found at `offset` of the segment.
pub(crate) fn read(
    identity: &LogIdentity,
    segment: &SegmentHeader,
    offset: u32,
    bytes: &[u8],
) -> Result<Header, Absent> {
    let broken = |why: String| Err(Absent::Broken(why));
    let Some(headers) = bytes.first_chunk::<BATCH_HEADER_BYTES>() else {
        return Err(Absent::Nothing);
    };
    let (envelope_place, portable_place) = headers.split_at(ENVELOPE_BYTES);
    if envelope_place[..ENVELOPE_MAGIC.len()] != ENVELOPE_MAGIC {
        return Err(Absent::Nothing);
    }
    let envelope = layout::get::<ArchivedEnvelope>(envelope_place);
    let portable = layout::get::<ArchivedPortable>(portable_place);
    let checksum = xxh3_64_with_seed(
        &envelope_place[..ENVELOPE_BYTES - CHECKSUM_BYTES],
        portable.checksum.to_native(),
    );
    if envelope.checksum.to_native() != checksum {
        return broken("envelope checksum does not match".into());
    }
    if envelope.store != identity.store {
        return broken("envelope names another store".into());
    }
    let (number, generation, block) = (
        envelope.segment.to_native(),
        envelope.generation.to_native(),
        envelope.block.to_native(),
    );
    if generation < segment.generation && number < segment.segment {
        return Err(Absent::Nothing); // an older life of this file
    }
    if (number, generation, block)
        != (
            segment.segment,
            segment.generation,
            offset / BLOCK_BYTES as u32,
        )
    {
        return broken(format!(
            "misdirected: envelope names segment {number}, generation {generation}, block {block}"
        ));
    }
    if portable.magic != PORTABLE_MAGIC {
        return broken("portable header has other magic bytes".into());
    }
    if portable.checksum.to_native() != xxh3_64(&portable_place[..PORTABLE_BYTES - CHECKSUM_BYTES])
    {
        return broken("portable header checksum does not match".into());
    }
    if portable.log != identity.log || portable.timeline.to_native() != identity.timeline {
        return broken(format!(
            "another log or timeline ({})",
            portable.timeline.to_native()
        ));
    }
    let (records, body_bytes, length) = (
        portable.records.to_native(),
        portable.body_bytes.to_native(),
        envelope.bytes.to_native(),
    );
    let commits = portable.flags.to_native() & FLAG_COMMIT != 0;
    let kind = match portable.kind.to_native() {
        1 => BatchKind::Records,
        2 => BatchKind::Mark,
        other => return broken(format!("batch kind {other} needs a newer binary")),
    };
    if portable.flags.to_native() & FLAGS_REQUIRED & !FLAG_COMMIT != 0 {
        return broken(format!(
            "batch flags {:#x} need a newer binary",
            portable.flags.to_native()
        ));
    }
    if (kind == BatchKind::Mark) != (records == 0)
        || (kind == BatchKind::Mark && (body_bytes != 0 || !commits))
    {
        return broken(format!(
            "a {kind:?} batch with {records} records in {body_bytes} bytes"
        ));
    }
    let room = segment.segment_bytes.saturating_sub(u64::from(offset));
    if u64::from(length) > room
        || layout::whole_blocks(BATCH_HEADER_BYTES + body_bytes as usize) != length as usize
    {
        return broken(format!(
            "{body_bytes} bytes of records in a batch of {length}, {room} left in the segment"
        ));
    }
    Ok(Header {
        info: BatchInfo {
            batch: portable.batch.to_native(),
            epoch: portable.epoch.to_native(),
            segment: number,
            offset,
            bytes: length,
            body_bytes,
            kind,
            first_lsn: portable.first_lsn.to_native(),
            records,
            commits,
            durable_mark: envelope.durable_mark.to_native(),
            log_time_us: portable.log_time_us.to_native(),
        },
        body_checksum: portable.body_checksum,
        previous_epoch: portable.previous_epoch.to_native(),
        previous_hash: portable.previous_hash,
        hash: xxh3_128(portable_place).to_le_bytes(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_never_goes_back_along_the_chain() {
        let identity = LogIdentity {
            store: [1; 16],
            log: [2; 16],
            number: 0,
            timeline: 1,
        };
        let segment = SegmentHeader {
            identity,
            segment: 1,
            generation: 1,
            segment_bytes: 1 << 16,
        };
        let chain = ChainPoint {
            epoch: 3,
            ..ChainPoint::genesis(1)
        };
        for epoch in [2, 3, 4] {
            let mark = Seal {
                epoch,
                records: 0,
                body_bytes: 0,
                body_checksum: BodyChecksum::new().finish(),
                commits: true,
                durable_mark: 0,
                log_time_us: 0,
                generation: 1,
            };
            let mut buffer = vec![0; BLOCK_BYTES];
            let (_, after) = seal(&identity, &chain, &mark, &mut buffer);
            let header =
                read(&identity, &segment, chain.offset, &buffer).expect("its headers verify");
            assert_eq!(
                header.continues(&chain),
                epoch >= 3,
                "term {epoch} behind 3"
            );
            assert_eq!(header.after(), after);
        }
    }
}
