//! Reading a segment's bytes batch by batch, and saying exactly why reading stopped.
//!
//! Every byte of a batch is verified before a record of it is shown: both headers, the chain, every record,
//! the body checksum, the zero padding. A batch that does not end a unit is shown only once the batch that
//! does has been verified: a unit is all there or not at all. What a stop means is [`crate::recovery`]'s to say.

use crate::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, Location, LogIdentity,
    batch::{self, Absent, BodyChecksum, Header},
    chain::ChainPoint,
    record::{self, RecordCodec, RecordError, RecordView},
    segment,
};

pub use crate::batch::BatchKind;

/// What the headers of a batch say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchInfo {
    /// Dense number in the log.
    pub batch: u64,
    /// Term of its writer.
    pub epoch: u32,
    /// Segment that it lies in.
    pub segment: u32,
    /// Where it starts there.
    pub offset: u32,
    /// Its length on disk, padding included.
    pub bytes: u32,
    /// Length of its records.
    pub body_bytes: u32,
    /// What it carries.
    pub kind: BatchKind,
    /// Number of its first record (of the next one, when it has none).
    pub first_lsn: u64,
    /// How many records it has.
    pub records: u32,
    /// Whether it ends a unit.
    pub commits: bool,
    /// The lsn that its writer knew to be durable.
    pub durable_mark: u64,
    /// Its log time.
    pub log_time_us: u64,
}

/// A stray batch's term against that of the last batch in the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Term {
    /// Left over from before a cut.
    Older,
    /// The writer that wrote the chain's end wrote this too: two histories under one term.
    Same,
    /// A later writer's, whose earlier batches are not here.
    Newer,
}

/// Why reading stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// no batch of this generation starts here (zeroes, or an older life of the file)
    NoBatch,
    /// something of this generation is here but does not verify
    Invalid(String),
    /// a batch whose headers verify and that does not continue the chain
    Unchained {
        /// Its number.
        batch: u64,
        /// Its writer's term.
        epoch: u32,
        /// That term against the chain's.
        term: Term,
    },
    /// end of the segment file
    End,
}

impl From<Absent> for Stop {
    fn from(absent: Absent) -> Stop {
        match absent {
            Absent::Nothing => Stop::NoBatch,
            Absent::Broken(why) => Stop::Invalid(why),
        }
    }
}

/// Walks `bytes` (a whole segment, header block included) from `at`. `visit` sees every record of every verified batch.
/// Returns the chain position after the last good batch and why it stopped.
///
/// When `at` lies in the segment before, the walk starts at the first batch of this one. Batches of a unit whose last
/// batch is missing are not visited, and the position returned lies before them.
pub fn walk<'a>(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    bytes: &'a [u8],
    at: ChainPoint,
    visit: &mut dyn FnMut(&BatchInfo, Location, RecordView<'a>),
) -> (ChainPoint, Stop) {
    if header.identity != *identity {
        return (at, Stop::Invalid("segment header names another log".into()));
    }
    let mut committed = at;
    if at.segment != header.segment {
        if at.segment.checked_add(1) != Some(header.segment) {
            return (
                at,
                Stop::Invalid(format!(
                    "segment {} does not follow segment {}",
                    header.segment, at.segment
                )),
            );
        }
        committed.segment = header.segment;
        committed.offset = BLOCK_BYTES as u32;
    }
    let codec = RecordCodec::new(identity);
    let mut checksum = BodyChecksum::new();
    let mut tip = committed;
    let mut held: Vec<BatchInfo> = Vec::new();
    let stop = loop {
        let Some(rest) = bytes
            .get(tip.offset as usize..)
            .filter(|rest| rest.len() >= BLOCK_BYTES)
        else {
            break Stop::End;
        };
        let found = match batch::read(identity, header, tip.offset, rest) {
            Ok(found) => found,
            Err(absent) => break absent.into(),
        };
        if !found.continues(&tip) {
            let term = match found.info.epoch.cmp(&tip.epoch) {
                std::cmp::Ordering::Less => Term::Older,
                std::cmp::Ordering::Equal => Term::Same,
                std::cmp::Ordering::Greater => Term::Newer,
            };
            break Stop::Unchained {
                batch: found.info.batch,
                epoch: found.info.epoch,
                term,
            };
        }
        if let Err(why) = verify_body(&codec, &mut checksum, &found, rest) {
            break Stop::Invalid(why);
        }
        tip = found.after();
        held.push(found.info);
        if found.info.commits {
            for info in held.drain(..) {
                let batch = &bytes[info.offset as usize..][..info.bytes as usize];
                for (location, record) in Records::unverified(&info, batch) {
                    visit(&info, location, record);
                }
            }
            committed = tip;
        }
    };
    (committed, stop)
}

/// Everything behind a batch's headers: each record, their number and length, the body checksum, the padding.
fn verify_body(
    codec: &RecordCodec,
    checksum: &mut BodyChecksum,
    found: &Header,
    bytes: &[u8],
) -> Result<(), String> {
    let info = &found.info;
    let Some(batch) = bytes.get(..info.bytes as usize) else {
        return Err("batch is cut short".into());
    };
    let (body, padding) = batch[BATCH_HEADER_BYTES..].split_at(info.body_bytes as usize);
    checksum.reset();
    let mut rest = body;
    for ordinal in 0..u64::from(info.records) {
        let lsn = info.first_lsn + ordinal;
        let record = codec
            .decode(lsn, rest)
            .map_err(|why| format!("lsn {lsn}: {why}"))?;
        checksum.push(record::fingerprint(rest));
        rest = &rest[record.bytes..];
    }
    if !rest.is_empty() {
        return Err(format!("{} bytes behind the last record", rest.len()));
    }
    if checksum.finish() != found.body_checksum {
        return Err("body checksum does not match".into());
    }
    if padding.iter().any(|byte| *byte != 0) {
        return Err("padding is not zero".into());
    }
    Ok(())
}

/// Any batch of this log and generation at or after `from` that verifies on its own and says (durable mark) that lsn >= `lsn` was durable.
///
/// Only its headers are asked: they are one sector, and what they say was true when they were written, whatever
/// became of the body. Marks of batches left over from before a cut are below the cut, so they never prove too much.
pub fn proof_of_durability(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    bytes: &[u8],
    from: u32,
    lsn: u64,
) -> Option<BatchInfo> {
    headers(identity, header, bytes, from).find(|info| info.durable_mark >= lsn)
}

/// The same for whole blocks of a segment that start at `offset` of it, so that it need not be in memory whole.
pub fn proof_in_part(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    part: &[u8],
    offset: u32,
    lsn: u64,
) -> Option<BatchInfo> {
    headers_in_part(identity, header, part, offset, 0).find(|info| info.durable_mark >= lsn)
}

/// First valid batch header at or after `bytes_offset` (for binary search by lsn), whatever the chain. `bytes` is a whole segment.
pub fn find_batch(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    bytes: &[u8],
    bytes_offset: u32,
) -> Option<BatchInfo> {
    headers(identity, header, bytes, bytes_offset).next()
}

/// Every batch of a whole segment whose headers verify, in file order, whatever the chain.
pub fn batches(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    bytes: &[u8],
) -> impl Iterator<Item = BatchInfo> {
    headers(identity, header, bytes, 0)
}

/// Every block at or after `from` that starts with batch headers which verify and belong there.
fn headers(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    bytes: &[u8],
    from: u32,
) -> impl Iterator<Item = BatchInfo> {
    headers_in_part(identity, header, bytes, 0, from)
}

/// The same in `part`, which starts at `offset` of the segment.
fn headers_in_part(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    part: &[u8],
    offset: u32,
    from: u32,
) -> impl Iterator<Item = BatchInfo> {
    // The segment's own header is no batch.
    let first = (from as usize)
        .next_multiple_of(BLOCK_BYTES)
        .max(BLOCK_BYTES)
        .saturating_sub(offset as usize);
    (first..part.len())
        .step_by(BLOCK_BYTES)
        .filter_map(move |at| {
            let place = offset.checked_add(u32::try_from(at).ok()?)?;
            batch::read(identity, header, place, &part[at..])
                .ok()
                .map(|found| found.info)
        })
}

/// The headers of the batch that starts `bytes`, read from `offset` of its segment; its body is not looked at.
///
/// # Errors
/// `NoBatch` or `Invalid`.
pub fn batch_at(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    offset: u32,
    bytes: &[u8],
) -> Result<BatchInfo, Stop> {
    Ok(batch::read(identity, header, offset, bytes)?.info)
}

/// The batch that starts `bytes`, every byte of it verified; whatever the chain.
///
/// # Errors
/// `NoBatch` or `Invalid`; a batch that `bytes` does not hold to its end is `Invalid` too.
pub fn batch_verified(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    offset: u32,
    bytes: &[u8],
) -> Result<BatchInfo, Stop> {
    let found = batch::read(identity, header, offset, bytes)?;
    let codec = RecordCodec::new(identity);
    verify_body(&codec, &mut BodyChecksum::new(), &found, bytes).map_err(Stop::Invalid)?;
    Ok(found.info)
}

/// Whether the first batch of the segment that follows `at` continues it. One block of `bytes` is enough: the body is not looked at.
pub fn continues(
    identity: &LogIdentity,
    header: &segment::SegmentHeader,
    bytes: &[u8],
    at: &ChainPoint,
) -> bool {
    header.identity == *identity
        && at.segment.checked_add(1) == Some(header.segment)
        && bytes
            .get(BLOCK_BYTES..)
            .and_then(|rest| batch::read(identity, header, BLOCK_BYTES as u32, rest).ok())
            .is_some_and(|found| found.continues(at))
}

/// The records of one batch, each verified on its own: for readers that come by one batch at a time.
/// `bytes` are the batch from its start. Goes on behind a record that does not verify where its length leads to one that does.
pub fn records<'a>(
    codec: &RecordCodec,
    info: &BatchInfo,
    bytes: &'a [u8],
) -> impl Iterator<Item = (Location, Result<RecordView<'a>, RecordError>)> {
    let codec = *codec;
    let mut walk = Records::unverified(info, bytes);
    std::iter::from_fn(move || {
        if walk.left == 0 {
            return None;
        }
        let location = walk.location;
        let record = codec.decode(walk.lsn, walk.rest);
        match &record {
            Ok(record) => walk.advance(record.bytes),
            Err(_) => match walk.behind() {
                Some(bytes) if codec.decode(walk.lsn + 1, &walk.rest[bytes..]).is_ok() => {
                    walk.advance(bytes);
                }
                _ => walk.left = 0,
            },
        }
        Some((location, record))
    })
}

/// Steps through a batch's records without checking them.
struct Records<'a> {
    rest: &'a [u8],
    lsn: u64,
    location: Location,
    left: u32,
}

impl<'a> Records<'a> {
    fn unverified(info: &BatchInfo, batch: &'a [u8]) -> Records<'a> {
        let end = batch
            .len()
            .min(BATCH_HEADER_BYTES + info.body_bytes as usize);
        Records {
            rest: batch.get(BATCH_HEADER_BYTES..end).unwrap_or(&[]),
            lsn: info.first_lsn,
            location: Location {
                segment: info.segment,
                offset: info.offset + BATCH_HEADER_BYTES as u32,
            },
            left: info.records,
        }
    }

    /// The length of the record at hand, as far as it can be believed: another one follows it in the batch.
    fn behind(&self) -> Option<usize> {
        RecordCodec::peek_bytes(self.rest).filter(|bytes| self.left > 1 && *bytes < self.rest.len())
    }

    fn advance(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
        self.lsn += 1;
        self.location.offset += bytes as u32; // inside a segment
        self.left -= 1;
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = (Location, RecordView<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let location = self.location;
        let bytes = RecordCodec::peek_bytes(self.rest).expect("the body was verified");
        let record = record::parse(self.lsn, &self.rest[..bytes]).expect("the body was verified");
        self.advance(bytes);
        Some((location, record))
    }
}
