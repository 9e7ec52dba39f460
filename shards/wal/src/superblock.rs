//! The superblock: what a data directory is. One block, two copies, the larger sequence wins.
//!
//! Invariants of a decoded superblock: its slot ranges lie below 16384 and do not overlap; its features are
//! all known to this binary. Writing the copies one after the other, and syncing between, is the caller's.

use crate::{BLOCK_BYTES, FormatError, layout};
use rkyv::{Archive, Serialize};

const WHAT: &str = "superblock";
const MAGIC: [u8; 8] = *b"pinSUPER";
/// Version of the superblock's layout.
pub const VERSION: u32 = 1;
/// Features of the low half must be known to whoever opens the directory.
const FEATURES_REQUIRED: u64 = 0xffff_ffff;
/// The logs hold retry windows and version numbers that an earlier set of logs left (extension 24): a binary that skips
/// those notes would store a repeat twice.
pub const FEATURE_CARRIED: u64 = 1;
const FEATURES_KNOWN: u64 = FEATURE_CARRIED;
/// Slots of the key space.
const SLOTS: u16 = 16384;

/// One block, two copies, the larger sequence wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// +1 at every write.
    pub sequence: u64,
    /// What a reader must know (low half) or may ignore (high half).
    pub features: u64,
    /// The directory's uuid.
    pub store: [u8; 16],
    /// keys the digest of every key in this store
    pub digest_key: [u8; 16],
    /// Shards that the directory was made with.
    pub shards: u32,
    /// Size of its segment files.
    pub segment_bytes: u64,
    /// +1 at every change of the slot ranges.
    pub map_epoch: u64,
    /// Its logs, at most [`LOGS_MAX`].
    pub logs: Vec<LogEntry>,
}

/// One log of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// The log's uuid.
    pub log: [u8; 16],
    /// Its number in the store.
    pub number: u32,
    /// Its timeline.
    pub timeline: u32,
    /// writer's term: +1 at every open
    pub epoch: u32,
    /// First slot that it holds.
    pub slot_first: u16,
    /// Last slot that it holds.
    pub slot_last: u16,
    /// durable lsn at the last clean close
    pub durable_lsn: u64,
}

#[derive(Archive, Serialize)]
struct Head {
    magic: [u8; 8],
    version: u32,
    shards: u32,
    sequence: u64,
    features: u64,
    store: [u8; 16],
    digest_key: [u8; 16],
    segment_bytes: u64,
    map_epoch: u64,
    logs: u32,
    reserved: [u8; 44],
}
const HEAD_BYTES: usize = 128;
const _: () = assert!(
    size_of::<ArchivedHead>() == HEAD_BYTES,
    "FORMAT.md draws 128 bytes"
);
/// Kept for the members of a replicated store.
const MEMBERS_BYTES: usize = 320;

#[derive(Archive, Serialize)]
struct Entry {
    log: [u8; 16],
    number: u32,
    timeline: u32,
    epoch: u32,
    slot_first: u16,
    slot_last: u16,
    durable_lsn: u64,
    reserved: [u8; 8],
}
const ENTRY_BYTES: usize = 48;
const _: () = assert!(
    size_of::<ArchivedEntry>() == ENTRY_BYTES,
    "FORMAT.md draws 48 bytes"
);

const ENTRIES: usize = HEAD_BYTES + MEMBERS_BYTES;
/// Logs that a superblock has room for.
pub const LOGS_MAX: usize = (BLOCK_BYTES - size_of::<u64>() - ENTRIES) / ENTRY_BYTES;

fn malformed(why: String) -> FormatError {
    FormatError::Malformed { what: WHAT, why }
}

impl Superblock {
    /// Lay it into the first 4096 bytes of `block`.
    ///
    /// # Errors
    /// `Short` when the block is, `Malformed` when there are more logs than fit or their slots make no sense.
    pub fn encode(&self, block: &mut [u8]) -> Result<(), FormatError> {
        let block = block
            .get_mut(..BLOCK_BYTES)
            .ok_or(FormatError::Short(WHAT))?;
        if self.logs.len() > LOGS_MAX {
            return Err(malformed(format!(
                "{} logs; there is room for {LOGS_MAX}",
                self.logs.len()
            )));
        }
        self.check()?;
        block.fill(0);
        let head = Head {
            magic: MAGIC,
            version: VERSION,
            shards: self.shards,
            sequence: self.sequence,
            features: self.features,
            store: self.store,
            digest_key: self.digest_key,
            segment_bytes: self.segment_bytes,
            map_epoch: self.map_epoch,
            logs: self.logs.len() as u32, // at most LOGS_MAX
            reserved: [0; 44],
        };
        layout::put(&head, &mut block[..HEAD_BYTES]);
        for (log, place) in self
            .logs
            .iter()
            .zip(block[ENTRIES..].chunks_exact_mut(ENTRY_BYTES))
        {
            let entry = Entry {
                log: log.log,
                number: log.number,
                timeline: log.timeline,
                epoch: log.epoch,
                slot_first: log.slot_first,
                slot_last: log.slot_last,
                durable_lsn: log.durable_lsn,
                reserved: [0; 8],
            };
            layout::put(&entry, place);
        }
        layout::close_block(block);
        Ok(())
    }

    /// Read one copy from the first 4096 bytes of `block`.
    ///
    /// # Errors
    /// Every [`FormatError`]; `Version` and unknown features only from a copy whose checksum holds.
    pub fn decode(block: &[u8]) -> Result<Superblock, FormatError> {
        let block = block.get(..BLOCK_BYTES).ok_or(FormatError::Short(WHAT))?;
        let head = layout::get::<ArchivedHead>(&block[..HEAD_BYTES]);
        if head.magic != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        if !layout::block_is_intact(block) {
            return Err(FormatError::Checksum(WHAT));
        }
        if head.version.to_native() != VERSION {
            return Err(FormatError::Version {
                what: WHAT,
                found: head.version.to_native(),
                known: VERSION,
            });
        }
        let logs = head.logs.to_native() as usize;
        if logs > LOGS_MAX {
            return Err(malformed(format!(
                "{logs} logs; there is room for {LOGS_MAX}"
            )));
        }
        let logs = block[ENTRIES..]
            .chunks_exact(ENTRY_BYTES)
            .take(logs)
            .map(|place| {
                let entry = layout::get::<ArchivedEntry>(place);
                LogEntry {
                    log: entry.log,
                    number: entry.number.to_native(),
                    timeline: entry.timeline.to_native(),
                    epoch: entry.epoch.to_native(),
                    slot_first: entry.slot_first.to_native(),
                    slot_last: entry.slot_last.to_native(),
                    durable_lsn: entry.durable_lsn.to_native(),
                }
            });
        let superblock = Superblock {
            sequence: head.sequence.to_native(),
            features: head.features.to_native(),
            store: head.store,
            digest_key: head.digest_key,
            shards: head.shards.to_native(),
            segment_bytes: head.segment_bytes.to_native(),
            map_epoch: head.map_epoch.to_native(),
            logs: logs.collect(),
        };
        superblock.check()?;
        Ok(superblock)
    }

    fn check(&self) -> Result<(), FormatError> {
        let unknown = self.features & FEATURES_REQUIRED & !FEATURES_KNOWN;
        if unknown != 0 {
            return Err(malformed(format!(
                "features {unknown:#x} need a newer binary"
            )));
        }
        for (at, log) in self.logs.iter().enumerate() {
            if log.slot_first > log.slot_last || log.slot_last >= SLOTS {
                return Err(malformed(format!(
                    "log {} holds slots {} to {}",
                    log.number, log.slot_first, log.slot_last
                )));
            }
            let overlap = self.logs[..at].iter().find(|other| {
                other.slot_first <= log.slot_last && log.slot_first <= other.slot_last
            });
            if let Some(other) = overlap {
                return Err(malformed(format!(
                    "logs {} and {} hold the same slots",
                    other.number, log.number
                )));
            }
        }
        Ok(())
    }

    /// The newer valid copy; Err when neither is.
    ///
    /// # Errors
    /// Also when an intact copy is of another format or asks for unknown features: the other copy is then not what this
    /// directory is now. When both copies are intact and of different stores, neither is chosen.
    pub fn choose(a: &[u8], b: &[u8]) -> Result<Superblock, FormatError> {
        match (Superblock::decode(a), Superblock::decode(b)) {
            (Err(why @ (FormatError::Version { .. } | FormatError::Malformed { .. })), _) => {
                Err(why)
            }
            (_, Err(why @ (FormatError::Version { .. } | FormatError::Malformed { .. }))) => {
                Err(why)
            }
            (Ok(a), Ok(b)) if a.store != b.store => Err(malformed(
                "its two copies belong to different stores".into(),
            )),
            (Ok(a), Ok(b)) => Ok(if b.sequence > a.sequence { b } else { a }),
            (Ok(only), Err(_)) | (Err(_), Ok(only)) => Ok(only),
            (Err(a), Err(FormatError::Magic(_))) => Err(a),
            (Err(_), Err(b)) => Err(b),
        }
    }
}
