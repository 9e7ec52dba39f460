//! The open end of a log: lays records into batches, batches into segments. One batch is open at a time.
//!
//! Invariants: lsns and batch numbers are dense; every batch continues the chain; no block is given out
//! twice; log time never goes back; the batches of one unit lie in one segment, so that recovery, which
//! reads segment by segment, holds a unit back within one. The writer does not know when a batch
//! reaches the device: [`Commits`] does the sums once the caller has been told.

use crate::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, Location, LogIdentity,
    batch::{self, BodyChecksum, Seal},
    chain::ChainPoint,
    layout,
    record::{self, NewRecord, RecordCodec},
};
use std::collections::VecDeque;

pub use crate::commits::Commits;

/// A prepared (zero-filled, header durable) segment, ready to be written.
#[derive(Clone, Copy, Debug)]
pub struct ReadySegment {
    /// Number in the log.
    pub segment: u32,
    /// Life of the file.
    pub generation: u32,
    /// Size of the file, a multiple of 4096.
    pub bytes: u32,
    /// the caller's handle of the file
    pub file: u32,
}

/// Where an appended record went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Its number.
    pub lsn: u64,
    /// Its place.
    pub location: Location,
    /// Its encoded length.
    pub bytes: u32,
}

/// A batch ready for the device: write buffer[..bytes] at `offset` of `file`.
#[derive(Debug)]
pub struct SealedBatch<B> {
    /// Dense number of the batch.
    pub batch: u64,
    /// The caller's handle of the segment's file.
    pub file: u32,
    /// Number of the segment.
    pub segment: u32,
    /// Where to write, a multiple of 4096.
    pub offset: u32,
    /// How much, a multiple of 4096.
    pub bytes: u32,
    /// How much of that is records; the rest is headers and padding.
    pub body_bytes: u32,
    /// The bytes.
    pub buffer: B,
    /// Number of the first record.
    pub first_lsn: u64,
    /// Number of the last record; `first_lsn - 1` when there is none.
    pub last_lsn: u64,
    /// How many there are; 0 for a batch that carries only its durable mark.
    pub records: u32,
    /// acks may be released once this and all earlier batches are durable
    pub commits: bool,
}

/// The open end of a log.
pub struct Writer<B> {
    identity: LogIdentity,
    epoch: u32,
    codec: RecordCodec,
    chain: ChainPoint,
    current: ReadySegment,
    ahead: VecDeque<ReadySegment>,
    /// The last sealed batch left its unit open.
    in_unit: bool,
    buffer: Option<B>,
    /// Record bytes in the open batch, and how many fit.
    body_bytes: usize,
    body_bytes_max: usize,
    records: u32,
    checksum: BodyChecksum,
}

/// Segment bytes that a unit of `record_bytes` needs when it is laid out with buffers of `buffer_bytes`.
///
/// Two neighbouring batches of a unit hold together more than one buffer's room, whatever the records' sizes,
/// or the second one's first record would have gone into the first.
pub fn segment_bytes_of_unit(record_bytes: usize, buffer_bytes: usize) -> usize {
    let room = body_room(buffer_bytes);
    if record_bytes <= room {
        return layout::whole_blocks(BATCH_HEADER_BYTES + record_bytes);
    }
    let batches = 2 * record_bytes.div_ceil(room) + 1;
    layout::whole_blocks(record_bytes + batches * (BATCH_HEADER_BYTES + BLOCK_BYTES - 1))
}

/// Largest unit (sum of its records' encoded bytes) that a log with such segments and buffers can take: what a request is held against.
pub fn unit_bytes_max(segment_bytes: usize, buffer_bytes: usize) -> usize {
    let available = segment_bytes - BLOCK_BYTES;
    let (mut fits, mut beyond) = (0, available);
    while beyond - fits > 1 {
        let middle = fits + (beyond - fits) / 2;
        if segment_bytes_of_unit(middle, buffer_bytes) <= available {
            fits = middle;
        } else {
            beyond = middle;
        }
    }
    fits / 8 * 8
}

/// Record bytes that fit into a buffer.
fn body_room(buffer_bytes: usize) -> usize {
    (buffer_bytes / BLOCK_BYTES * BLOCK_BYTES).saturating_sub(BATCH_HEADER_BYTES)
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Writer<B> {
    /// `epoch` is this writer's term, larger than any before it. `current` is the segment that `at` lies in, or the next one.
    ///
    /// # Panics
    /// When the term is not larger, or the segment is another one.
    pub fn new(
        identity: LogIdentity,
        epoch: u32,
        at: ChainPoint,
        current: ReadySegment,
    ) -> Writer<B> {
        assert!(
            epoch > at.epoch,
            "a writer's term ({epoch}) is larger than any before it ({})",
            at.epoch
        );
        let mut writer = Writer {
            identity,
            epoch,
            codec: RecordCodec::new(&identity),
            chain: at,
            current,
            ahead: VecDeque::new(),
            in_unit: false,
            buffer: None,
            body_bytes: 0,
            body_bytes_max: 0,
            records: 0,
            checksum: BodyChecksum::new(),
        };
        if current.segment != at.segment {
            assert_eq!(
                current.segment,
                at.segment + 1,
                "a log's segments are numbered without gaps"
            );
            writer.enter(current);
        }
        assert_eq!(
            current.bytes as usize % BLOCK_BYTES,
            0,
            "segments are whole blocks"
        );
        assert_eq!(
            writer.chain.offset as usize % BLOCK_BYTES,
            0,
            "batches start at whole blocks"
        );
        assert!(
            writer.chain.offset as usize >= BLOCK_BYTES && writer.chain.offset <= current.bytes,
            "the chain goes on inside the segment"
        );
        writer
    }

    /// Queue the segment that follows the last one given (its number must be +1).
    ///
    /// # Panics
    /// When it does not follow.
    pub fn add_segment(&mut self, segment: ReadySegment) {
        let last = self.ahead.back().unwrap_or(&self.current);
        assert_eq!(
            segment.segment,
            last.segment + 1,
            "a log's segments are numbered without gaps"
        );
        assert_eq!(
            segment.bytes as usize % BLOCK_BYTES,
            0,
            "segments are whole blocks"
        );
        self.ahead.push_back(segment);
    }

    /// Segments ready behind the current one.
    pub fn segments_ahead(&self) -> usize {
        self.ahead.len()
    }

    /// Open a batch in `buffer` (at least BATCH_HEADER_BYTES + one record). Rolls to the next segment when less than `least_room` would be left in this one;
    /// gives the buffer back when there is no segment to roll to.
    ///
    /// A unit that does not fit the open batch begins a batch of its own, and `least_room` is then the
    /// encoded bytes of the whole unit, even if that is more than a buffer holds: the writer adds the
    /// headers of the batches that it will take and rolls before the unit rather than inside it. While
    /// the unit goes on (the last batch was sealed with `commits = false`) `least_room` is what is left
    /// of it, and the writer never rolls.
    ///
    /// # Panics
    /// When a batch is open, when the buffer holds no record, or when a unit outgrows what was asked for when it
    /// began or is larger than a segment holds: hold requests against [`unit_bytes_max`].
    pub fn open(&mut self, buffer: B, least_room: usize) -> Result<(), B> {
        assert!(self.buffer.is_none(), "one batch is open at a time");
        let buffer_bytes = buffer.as_ref().len();
        let room = body_room(buffer_bytes);
        assert!(
            room >= record::HEADER_BYTES,
            "a buffer of {buffer_bytes} bytes holds no record"
        );
        let left = (self.current.bytes - self.chain.offset) as usize;
        if self.in_unit {
            assert!(
                left >= BATCH_HEADER_BYTES + least_room,
                "a unit began with less room than it needs: {least_room} more, {left} left in the segment"
            );
        } else {
            // Nothing is gained by rolling out of an empty segment: what asks for more than one holds starts at its front.
            let whole_segment = self.current.bytes as usize - BLOCK_BYTES;
            let needed = segment_bytes_of_unit(least_room, buffer_bytes).min(whole_segment);
            if needed > left {
                let Some(next) = self.ahead.pop_front() else {
                    return Err(buffer);
                };
                self.enter(next);
            }
        }
        let left = (self.current.bytes - self.chain.offset) as usize;
        self.body_bytes_max = room.min(left - BATCH_HEADER_BYTES);
        self.body_bytes = 0;
        self.records = 0;
        self.checksum.reset();
        self.buffer = Some(buffer);
        Ok(())
    }

    fn enter(&mut self, segment: ReadySegment) {
        self.current = segment;
        self.chain.segment = segment.segment;
        self.chain.offset = BLOCK_BYTES as u32;
    }

    /// Bytes that batches can still take: of this segment behind what is sealed and open, and of those ahead.
    pub fn bytes_left(&self) -> u64 {
        let open = match self.buffer {
            Some(_) => layout::whole_blocks(BATCH_HEADER_BYTES + self.body_bytes),
            None => 0,
        };
        let here = u64::from(self.current.bytes - self.chain.offset).saturating_sub(open as u64);
        let ahead = self
            .ahead
            .iter()
            .map(|next| u64::from(next.bytes) - BLOCK_BYTES as u64);
        here + ahead.sum::<u64>()
    }

    /// Whether a batch is open.
    pub fn is_open(&self) -> bool {
        self.buffer.is_some()
    }

    /// Record bytes that still fit into the open batch (0 when none is open).
    #[inline]
    pub fn room(&self) -> usize {
        self.body_bytes_max - self.body_bytes
    }

    /// Records in the open batch (0 when none is open).
    pub fn records(&self) -> u32 {
        self.records
    }

    /// Next lsn to be given out.
    #[inline]
    pub fn next_lsn(&self) -> u64 {
        self.chain.next_lsn + u64::from(self.records)
    }

    /// Whether the last sealed batch left a unit open.
    pub fn in_unit(&self) -> bool {
        self.in_unit
    }

    /// Copy a record into the open batch. Precondition: encoded_bytes(record) <= room(). Checksums it.
    ///
    /// # Panics
    /// When no batch is open, when the record does not fit, when its key is over the limit or its extensions are not whole blocks.
    #[inline]
    pub fn append(&mut self, record: &NewRecord<'_>) -> Appended {
        let bytes = record::encoded_bytes(record);
        assert!(
            bytes <= self.room(),
            "a record of {bytes} bytes in a room of {}",
            self.room()
        );
        let lsn = self.next_lsn();
        let start = BATCH_HEADER_BYTES + self.body_bytes;
        let buffer = self
            .buffer
            .as_mut()
            .expect("room is zero when no batch is open")
            .as_mut();
        let place = &mut buffer[start..start + bytes];
        self.codec.encode(lsn, record, place);
        self.checksum.push(record::fingerprint(place));
        self.body_bytes += bytes;
        self.records += 1;
        // Both fit u32: encode checked the record's length, open() the batch's place in its segment.
        Appended {
            lsn,
            location: Location {
                segment: self.chain.segment,
                offset: self.chain.offset + start as u32,
            },
            bytes: bytes as u32,
        }
    }

    /// Bytes of a record that is still in the open batch: from its start to the end of the last record.
    pub fn open_bytes(&self, location: Location) -> Option<&[u8]> {
        let buffer = self.buffer.as_ref()?.as_ref();
        if location.segment != self.chain.segment {
            return None;
        }
        let start = location.offset.checked_sub(self.chain.offset)? as usize;
        let end = BATCH_HEADER_BYTES + self.body_bytes;
        (start >= BATCH_HEADER_BYTES && start < end).then(|| &buffer[start..end])
    }

    /// Close the open batch. `commits = false`: a unit goes on in the next batch, a crash between them takes both back. `durable_lsn`: what is known durable now.
    ///
    /// A batch without records is a mark: it carries nothing but `durable_lsn`, which lets recovery tell damage
    /// from a torn tail. None when no batch is open.
    ///
    /// # Panics
    /// When a mark does not commit, or when `durable_lsn` names a record of this batch or a later one.
    pub fn seal(
        &mut self,
        commits: bool,
        durable_lsn: u64,
        log_time_us: u64,
    ) -> Option<SealedBatch<B>> {
        let mut buffer = self.buffer.take()?;
        let before = self.chain;
        assert!(
            commits || self.records > 0,
            "a batch without records ends no unit and begins none"
        );
        assert!(
            durable_lsn < before.next_lsn,
            "lsn {durable_lsn} is in a batch that was never written"
        );
        let seal = Seal {
            epoch: self.epoch,
            records: self.records,
            body_bytes: u32::try_from(self.body_bytes).expect("a batch lies in a segment"),
            body_checksum: self.checksum.finish(),
            commits,
            durable_mark: durable_lsn,
            log_time_us: log_time_us.max(before.log_time_us), // log time never goes back
            generation: self.current.generation,
        };
        let (bytes, after) = batch::seal(&self.identity, &before, &seal, buffer.as_mut());
        assert!(
            after.offset <= self.current.bytes,
            "a batch lies in its segment"
        );
        let (records, body_bytes) = (self.records, seal.body_bytes);
        self.chain = after;
        self.in_unit = !commits;
        self.body_bytes = 0;
        self.body_bytes_max = 0;
        self.records = 0;
        Some(SealedBatch {
            batch: before.next_batch,
            file: self.current.file,
            segment: before.segment,
            offset: before.offset,
            bytes,
            body_bytes,
            buffer,
            first_lsn: before.next_lsn,
            last_lsn: after.next_lsn - 1,
            records,
            commits,
        })
    }

    /// Chain position after the last sealed batch (for the checkpoint).
    ///
    /// It runs ahead of the device: a checkpoint that holds it may be used once that batch is durable.
    pub fn chain(&self) -> ChainPoint {
        self.chain
    }
}
