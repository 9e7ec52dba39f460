//! Batches that no chain vouches for: before the place where a log is entered, and behind the one where it ends.

use wal::record::{RecordCodec, RecordView};
use wal::scan::{self, BatchInfo};
use wal::segment::SegmentHeader;
use wal::{BLOCK_BYTES, Location, LogIdentity};

use super::report::Spot;

/// Checks batches without a chain to hold them to: each on its own, and their numbers against each other.
#[derive(Default)]
pub struct Loose {
    last: Option<BatchInfo>,
    /// First place that does not verify; its file is the caller's to fill in.
    pub broken: Option<Spot>,
}

impl Loose {
    /// Counts the batches in `range` of a segment that verify; `visit` sees their records, each with its lsn.
    pub fn read(
        &mut self,
        codec: &RecordCodec,
        segment: &Segment<'_>,
        range: std::ops::Range<u32>,
        mut visit: impl FnMut(u64, Location, &RecordView<'_>),
    ) -> u64 {
        let (mut batches, mut offset) = (0, range.start);
        let mut broken = |offset: u32, lsn: u64, why: String| {
            self.broken.get_or_insert(Spot {
                file: String::new(),
                offset: u64::from(offset),
                lsn: Some(lsn),
                why,
            });
        };
        while let Some(info) =
            scan::find_batch(segment.identity, segment.header, segment.bytes, offset)
            && info.offset < range.end
        {
            if let Some(last) = &self.last
                && (info.batch, info.first_lsn)
                    != (last.batch + 1, last.first_lsn + u64::from(last.records))
            {
                let place = if last.segment == info.segment {
                    last.offset + last.bytes
                } else {
                    BLOCK_BYTES as u32
                };
                broken(
                    place,
                    last.first_lsn + u64::from(last.records),
                    format!("batch {} does not follow batch {}", info.batch, last.batch),
                );
            }
            let content = segment
                .bytes
                .get(info.offset as usize..)
                .unwrap_or_default();
            let mut whole = content.len() >= info.bytes as usize;
            for (lsn, (location, record)) in
                (info.first_lsn..).zip(scan::records(codec, &info, content))
            {
                match record {
                    Ok(record) => visit(lsn, location, &record),
                    Err(error) => {
                        whole = false;
                        broken(info.offset, lsn, error.to_string());
                    }
                }
            }
            batches += u64::from(whole);
            offset = info.offset
                + if whole {
                    info.bytes
                } else {
                    BLOCK_BYTES as u32
                };
            self.last = Some(info);
        }
        batches
    }
}

/// A segment's bytes and what its header says.
pub struct Segment<'a> {
    /// Whose log it is of.
    pub identity: &'a LogIdentity,
    /// Its header.
    pub header: &'a SegmentHeader,
    /// The whole file.
    pub bytes: &'a [u8],
}
