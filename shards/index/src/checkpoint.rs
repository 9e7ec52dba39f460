//! A checkpoint file: a header block, then pages of sections, each with its own checksum.
//!
//! Written in slices while the shard goes on, so entries are each as of the slice that carried them, and the
//! log from `replay_from` on says what changed since. The header is written last: a file without a valid one is no
//! checkpoint. The bytes are drawn in CHECKPOINT.md, which is kept in step with this module.
//!
//! Invariants: any flipped bit of a block or page is found; a page of another store, log, timeline, checkpoint or place is
//! refused by name. It does not know files, the order of writes, or what the streams, producers and idempotency
//! sections hold.

use crate::digest::{Digest, TableKey, UNUSED_BITS};
use crate::entry::{Entry, Packed};
use rkyv::rancor::Error;
use rkyv::{Archive, Serialize};
use wal::chain::ChainPoint;
use wal::{FormatError, LogIdentity};

/// Bytes of a page; page n lies at `HEADER_BYTES + n * PAGE_BYTES` of the file.
pub const PAGE_BYTES: usize = 256 * 1024;
/// Bytes of the header block.
pub const HEADER_BYTES: usize = 4096;
/// Version of the header block and the pages.
pub const VERSION: u32 = 1;
/// Free-form bytes that fit into a page.
pub const SECTION_BYTES_MAX: usize = PAGE_BYTES - PAGE_HEAD_BYTES;
/// Entries that fit into a page.
pub const PAGE_ENTRIES: usize = SECTION_BYTES_MAX / ENTRY_BYTES;

const HEADER_MAGIC: [u8; 8] = *b"PINIONCK";
const PAGE_MAGIC: [u8; 4] = *b"PNCP";
const PAGE_HEAD_BYTES: usize = 96;
/// Digest high (8), fingerprint (4), packed entry (20).
const ENTRY_BYTES: usize = 32;
/// Where the checksums lie; they cover every other byte.
const HEADER_CRC_AT: usize = 12;
const PAGE_CRC_AT: usize = 4;

/// What a checkpoint holds and where the log goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointHeader {
    /// The log that it belongs to.
    pub identity: LogIdentity,
    /// +1 each time; pages carry it.
    pub sequence: u64,
    /// Replay starts here.
    pub replay_from: ChainPoint,
    /// The largest lsn that any entry may name; valid only if the log holds it.
    pub max_lsn: u64,
    /// Pages behind the header block.
    pub pages: u64,
    /// Entries in them: what to size the index for.
    pub keys: u64,
    /// Log time when it was finished, in microseconds.
    pub log_time_us: u64,
    /// Segments up to this one hold nothing that is still there: their files are spare. 0: none was released.
    pub released_through: u32,
    /// Record bytes in the segments behind those: a hint for compaction, 0 = unknown.
    pub record_bytes: u64,
    /// Of them, bytes that nobody can read any more, about: a hint.
    pub dead_bytes: u64,
    /// Of them, bytes that end with their stream's max_age_seconds and have not yet: a hint.
    pub aging_bytes: u64,
    /// Bytes of the batches in those segments that are not records: headers and padding. A hint.
    pub padding_bytes: u64,
    /// Last lsn that these four count; a replay counts what comes behind it. 0: a replay counts everything.
    pub counted_lsn: u64,
}

/// What a page holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Section {
    /// Index entries in digest order.
    Entries = 1,
    /// Stream definitions.
    Streams = 2,
    /// Producer ids and sequences.
    Producers = 3,
    /// Idempotency-Key answers.
    IdempotencyKeys = 4,
    /// What an earlier set of logs left: answers and version numbers.
    Carried = 5,
}

impl Section {
    fn from_byte(byte: u8) -> Option<Section> {
        [
            Section::Entries,
            Section::Streams,
            Section::Producers,
            Section::IdempotencyKeys,
            Section::Carried,
        ]
        .into_iter()
        .find(|section| *section as u8 == byte)
    }
}

/// A verified page.
pub enum Page<'a> {
    /// In digest order.
    Entries(Box<dyn Iterator<Item = (Digest, Entry)> + 'a>),
    /// Free-form bytes of a section.
    Bytes(Section, &'a [u8]),
}

/// Identity and place of a log, as both layouts hold it.
#[derive(Archive, Serialize, Clone, Copy)]
struct DiskIdentity {
    store: [u8; 16],
    log: [u8; 16],
    number: u32,
    timeline: u32,
}

#[derive(Archive, Serialize)]
struct DiskHeader {
    magic: [u8; 8],
    version: u32,
    crc: u32,
    identity: DiskIdentity,
    sequence: u64,
    replay_epoch: u32,
    replay_segment: u32,
    replay_offset: u32,
    released_through: u32,
    replay_batch: u64,
    replay_lsn: u64,
    replay_hash: [u8; 16],
    replay_log_time_us: u64,
    max_lsn: u64,
    pages: u64,
    keys: u64,
    log_time_us: u64,
    record_bytes: u64,
    dead_bytes: u64,
    aging_bytes: u64,
    padding_bytes: u64,
    counted_lsn: u64,
}

#[derive(Archive, Serialize)]
struct DiskPageHead {
    magic: [u8; 4],
    crc: u32,
    version: u32,
    section: u8,
    unused: [u8; 3],
    count: u32,
    bytes: u32,
    page: u64,
    sequence: u64,
    identity: DiskIdentity,
    reserved: [u8; 16],
}

const _: () = assert!(size_of::<ArchivedDiskHeader>() == 192);
const _: () = assert!(size_of::<ArchivedDiskPageHead>() == PAGE_HEAD_BYTES);
const _: () = assert!(PAGE_ENTRIES * ENTRY_BYTES == SECTION_BYTES_MAX);

impl From<&LogIdentity> for DiskIdentity {
    fn from(identity: &LogIdentity) -> DiskIdentity {
        DiskIdentity {
            store: identity.store,
            log: identity.log,
            number: identity.number,
            timeline: identity.timeline,
        }
    }
}

impl From<&ArchivedDiskIdentity> for LogIdentity {
    fn from(disk: &ArchivedDiskIdentity) -> LogIdentity {
        LogIdentity {
            store: disk.store,
            log: disk.log,
            number: disk.number.into(),
            timeline: disk.timeline.into(),
        }
    }
}

/// CRC32C of all of `bytes` but the four at `crc_at`.
fn checksum(bytes: &[u8], crc_at: usize) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..crc_at]), &bytes[crc_at + 4..])
}

fn seal(bytes: &mut [u8], crc_at: usize) {
    let crc = checksum(bytes, crc_at);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn malformed(what: &'static str, why: impl Into<String>) -> FormatError {
    FormatError::Malformed {
        what,
        why: why.into(),
    }
}

impl CheckpointHeader {
    /// Write the header block.
    ///
    /// # Panics
    /// When `block` is not [`HEADER_BYTES`] long.
    pub fn encode(&self, block: &mut [u8]) {
        assert_eq!(
            block.len(),
            HEADER_BYTES,
            "a checkpoint header is one block"
        );
        let disk = DiskHeader {
            magic: HEADER_MAGIC,
            version: VERSION,
            crc: 0,
            identity: (&self.identity).into(),
            sequence: self.sequence,
            replay_epoch: self.replay_from.epoch,
            replay_segment: self.replay_from.segment,
            replay_offset: self.replay_from.offset,
            released_through: self.released_through,
            replay_batch: self.replay_from.next_batch,
            replay_lsn: self.replay_from.next_lsn,
            replay_hash: self.replay_from.hash,
            replay_log_time_us: self.replay_from.log_time_us,
            max_lsn: self.max_lsn,
            pages: self.pages,
            keys: self.keys,
            log_time_us: self.log_time_us,
            record_bytes: self.record_bytes,
            dead_bytes: self.dead_bytes,
            aging_bytes: self.aging_bytes,
            padding_bytes: self.padding_bytes,
            counted_lsn: self.counted_lsn,
        };
        let head = rkyv::to_bytes::<Error>(&disk).expect("fixed layout");
        block.fill(0);
        block[..head.len()].copy_from_slice(&head);
        seal(block, HEADER_CRC_AT);
    }

    /// Read and verify a header block.
    ///
    /// # Errors
    /// What is wrong with it: length, magic, version or checksum.
    pub fn decode(block: &[u8]) -> Result<CheckpointHeader, FormatError> {
        const WHAT: &str = "checkpoint header";
        if block.len() != HEADER_BYTES {
            return Err(FormatError::Short(WHAT));
        }
        let disk =
            rkyv::access::<ArchivedDiskHeader, Error>(&block[..size_of::<ArchivedDiskHeader>()])
                .map_err(|error| malformed(WHAT, error.to_string()))?;
        if disk.magic != HEADER_MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        // Before the checksum: a newer version may compute it differently, and should be refused by name.
        if disk.version != VERSION {
            return Err(FormatError::Version {
                what: WHAT,
                found: disk.version.into(),
                known: VERSION,
            });
        }
        if disk.crc != checksum(block, HEADER_CRC_AT) {
            return Err(FormatError::Checksum(WHAT));
        }
        Ok(CheckpointHeader {
            identity: (&disk.identity).into(),
            sequence: disk.sequence.into(),
            replay_from: ChainPoint {
                epoch: disk.replay_epoch.into(),
                next_batch: disk.replay_batch.into(),
                next_lsn: disk.replay_lsn.into(),
                hash: disk.replay_hash,
                log_time_us: disk.replay_log_time_us.into(),
                segment: disk.replay_segment.into(),
                offset: disk.replay_offset.into(),
            },
            max_lsn: disk.max_lsn.into(),
            pages: disk.pages.into(),
            keys: disk.keys.into(),
            log_time_us: disk.log_time_us.into(),
            released_through: disk.released_through.into(),
            record_bytes: disk.record_bytes.into(),
            dead_bytes: disk.dead_bytes.into(),
            aging_bytes: disk.aging_bytes.into(),
            padding_bytes: disk.padding_bytes.into(),
            counted_lsn: disk.counted_lsn.into(),
        })
    }
}

/// Fill `page` with as many entries as fit ([`PAGE_ENTRIES`]); returns how many. Digests are stored in canonical form, see
/// [`Digest::canonical`].
///
/// # Panics
/// When `page` is not [`PAGE_BYTES`] long, or an entry cannot be packed.
pub fn encode_entries(
    identity: &LogIdentity,
    sequence: u64,
    page_number: u64,
    entries: &[(Digest, Entry)],
    page: &mut [u8],
) -> usize {
    let entries = &entries[..entries.len().min(PAGE_ENTRIES)];
    let used = entries.len() * ENTRY_BYTES;
    start_page(
        identity,
        sequence,
        page_number,
        Section::Entries,
        entries.len(),
        used,
        page,
    );
    let (units, _) = page[PAGE_HEAD_BYTES..].as_chunks_mut::<ENTRY_BYTES>();
    for (unit, (digest, entry)) in units.iter_mut().zip(entries) {
        let key = TableKey::of(*digest);
        unit[..8].copy_from_slice(&key.high.to_le_bytes());
        unit[8..12].copy_from_slice(&key.fingerprint.to_le_bytes());
        let (words, _) = unit[12..].as_chunks_mut::<4>();
        for (bytes, word) in words.iter_mut().zip(entry.pack()) {
            *bytes = word.to_le_bytes();
        }
    }
    seal(page, PAGE_CRC_AT);
    entries.len()
}

/// Fill `page` with free-form bytes of a section.
///
/// # Panics
/// When `page` is not [`PAGE_BYTES`] long, there are more than [`SECTION_BYTES_MAX`] bytes, or the section is
/// [`Section::Entries`].
pub fn encode_bytes(
    identity: &LogIdentity,
    sequence: u64,
    page_number: u64,
    section: Section,
    bytes: &[u8],
    page: &mut [u8],
) {
    assert_ne!(
        section,
        Section::Entries,
        "entries have a layout of their own"
    );
    assert!(
        bytes.len() <= SECTION_BYTES_MAX,
        "{} bytes for one page",
        bytes.len()
    );
    start_page(
        identity,
        sequence,
        page_number,
        section,
        0,
        bytes.len(),
        page,
    );
    page[PAGE_HEAD_BYTES..][..bytes.len()].copy_from_slice(bytes);
    seal(page, PAGE_CRC_AT);
}

/// Page head, and zeroes behind the `used` bytes that the caller will write.
fn start_page(
    identity: &LogIdentity,
    sequence: u64,
    page_number: u64,
    section: Section,
    count: usize,
    used: usize,
    page: &mut [u8],
) {
    assert_eq!(page.len(), PAGE_BYTES, "a checkpoint page has one size");
    let small = |n: usize| u32::try_from(n).expect("less than a page");
    let head = DiskPageHead {
        magic: PAGE_MAGIC,
        crc: 0,
        version: VERSION,
        section: section as u8,
        unused: [0; 3],
        count: small(count),
        bytes: small(used),
        page: page_number,
        sequence,
        identity: identity.into(),
        reserved: [0; 16],
    };
    let head = rkyv::to_bytes::<Error>(&head).expect("fixed layout");
    page[..PAGE_HEAD_BYTES].copy_from_slice(&head);
    page[PAGE_HEAD_BYTES + used..].fill(0);
}

/// Read and verify page `page_number` of the checkpoint that `header` heads.
///
/// # Errors
/// What is wrong with it: length, magic, version, checksum, or that it belongs elsewhere.
pub fn decode_page<'a>(
    header: &CheckpointHeader,
    page_number: u64,
    page: &'a [u8],
) -> Result<Page<'a>, FormatError> {
    const WHAT: &str = "checkpoint page";
    if page.len() != PAGE_BYTES {
        return Err(FormatError::Short(WHAT));
    }
    let (head, body) = page.split_at(PAGE_HEAD_BYTES);
    let head = rkyv::access::<ArchivedDiskPageHead, Error>(head)
        .map_err(|error| malformed(WHAT, error.to_string()))?;
    if head.magic != PAGE_MAGIC {
        return Err(FormatError::Magic(WHAT));
    }
    if head.version != VERSION {
        return Err(FormatError::Version {
            what: WHAT,
            found: head.version.into(),
            known: VERSION,
        });
    }
    if head.crc != checksum(page, PAGE_CRC_AT) {
        return Err(FormatError::Checksum(WHAT));
    }
    if LogIdentity::from(&head.identity) != header.identity {
        return Err(malformed(
            WHAT,
            "it belongs to another log, store or timeline",
        ));
    }
    if head.sequence != header.sequence {
        let (found, wanted) = (head.sequence.to_native(), header.sequence);
        return Err(malformed(
            WHAT,
            format!("it belongs to checkpoint {found}, not {wanted}"),
        ));
    }
    if head.page != page_number {
        let found = head.page.to_native();
        return Err(malformed(
            WHAT,
            format!("it is page {found}, not {page_number}"),
        ));
    }
    let Some(section) = Section::from_byte(head.section) else {
        return Err(malformed(
            WHAT,
            format!("section {} is unknown", head.section),
        ));
    };
    let Some(body) = body.get(..head.bytes.to_native() as usize) else {
        return Err(malformed(WHAT, "it claims more bytes than a page has"));
    };
    if section != Section::Entries {
        return Ok(Page::Bytes(section, body));
    }
    let (units, rest) = body.as_chunks::<ENTRY_BYTES>();
    if units.len() != head.count.to_native() as usize || !rest.is_empty() {
        return Err(malformed(WHAT, "count and length of its entries disagree"));
    }
    Ok(Page::Entries(Box::new(units.iter().map(decode_entry))))
}

fn decode_entry(unit: &[u8; ENTRY_BYTES]) -> (Digest, Entry) {
    let word = |at: usize| u32::from_le_bytes([unit[at], unit[at + 1], unit[at + 2], unit[at + 3]]);
    let packed: Packed = std::array::from_fn(|i| word(12 + 4 * i));
    let high = u128::from(word(4)) << 32 | u128::from(word(0));
    let digest = high << 64 | u128::from(word(8)) << UNUSED_BITS;
    (Digest(digest), Entry::unpack(&packed))
}
