//! How fast is a segment read back, and replayed into an index?
//!
//! Segments lie in memory as recovery has them after its device reads. `walk` verifies every byte and shows every record;
//! `replay` also digests each key and puts it into an index that starts empty, in groups, so that cache misses overlap.
//! What a shard adds to that (streams, idempotency answers, the reads themselves) is not in these figures.

use index::{Digest, DigestKey, Entry, Index};
use shard::IndexMemory;
use uring::{Buffer, Region};
use wal::BATCH_HEADER_BYTES;
use wal::chain::ChainPoint;
use wal::record;
use wal::scan;
use wal::segment::SegmentHeader;
use wal::writer::Writer;

use crate::log_append::{
    BATCH_BYTES, SEGMENT_BYTES, identity, key, new_record, payload_source, ready,
};
use crate::{Bench, Checksum};

/// Index updates applied at once, as the shard's replay does.
const GROUP: usize = 64;

struct Image {
    segments: Vec<Buffer>,
    records: u64,
    bytes: u64,
}

pub(crate) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let (segment_bytes, segments) = bench.parameter((1 << 20, 2), (SEGMENT_BYTES, 8));
    for (payload_bytes, per_batch) in [(16, 100), (256, 1), (256, 100), (256, 1000), (1024, 100)] {
        let image = lay_out(segment_bytes, segments, payload_bytes, per_batch)?;
        let (records, bytes) = (image.records, image.bytes);
        bench.case(
            format!("walk, payload {payload_bytes}, {per_batch} per batch"),
            records,
            bytes,
            || walk(&image),
        );
        if (payload_bytes, per_batch) == (256, 100) {
            for (how, keys) in [("that grows", 0), ("sized beforehand", records)] {
                let buckets = records as usize / 8 + 64;
                bench.case_prepared(
                    format!("walk and replay into an index {how}, payload {payload_bytes}, {per_batch} per batch"),
                    records,
                    bytes,
                    || Region::reserve(buckets).map(|region| Index::with_keys(IndexMemory(region), keys)),
                    |index| {
                        let mut index = index.expect("address space for an index");
                        (replay(&image, &mut index), Some(index))
                    },
                );
            }
        }
    }
    Ok(())
}

/// Segments full of records, each with a key of its own.
fn lay_out(
    segment_bytes: u32,
    segments: u32,
    payload_bytes: usize,
    per_batch: u64,
) -> anyhow::Result<Image> {
    let source = payload_source();
    let mut writer = Writer::new(
        identity(),
        1,
        ChainPoint::genesis(1),
        ready(1, segment_bytes),
    );
    let mut image = Image {
        segments: Vec::new(),
        records: 0,
        bytes: 0,
    };
    for segment in 1..=segments {
        let mut file = Buffer::new(segment_bytes as usize)?;
        header(segment, segment_bytes).encode(&mut file);
        image.segments.push(file);
        if segment > 1 {
            writer.add_segment(ready(segment, segment_bytes));
        }
    }
    let mut buffer = Buffer::new(BATCH_BYTES)?;
    let bytes_each = record::encoded_bytes(&new_record(0, &key(0), &source, payload_bytes));
    let least_room = bytes_each * usize::try_from(per_batch)?;
    // The writer gives the buffer back when the last segment is full.
    while writer.open(buffer, least_room).is_ok() {
        for _ in 0..per_batch {
            let key = key(image.records);
            writer.append(&new_record(image.records, &key, &source, payload_bytes));
            image.records += 1;
        }
        let durable = writer.chain().next_lsn - 1;
        let sealed = writer.seal(true, durable, 0).expect("a batch is open");
        let file = &mut image.segments[sealed.segment as usize - 1];
        let (from, bytes) = (sealed.offset as usize, sealed.bytes as usize);
        file[from..from + bytes].copy_from_slice(&sealed.buffer[..bytes]);
        image.bytes += u64::from(sealed.bytes);
        buffer = sealed.buffer;
    }
    assert!(least_room + BATCH_HEADER_BYTES <= BATCH_BYTES && image.records > 0);
    Ok(image)
}

fn header(segment: u32, segment_bytes: u32) -> SegmentHeader {
    SegmentHeader {
        identity: identity(),
        segment,
        generation: 1,
        segment_bytes: u64::from(segment_bytes),
    }
}

fn walk(image: &Image) -> u64 {
    let mut checksum = Checksum::default();
    let mut records = 0;
    let at = each(image, &mut |location, view| {
        records += 1;
        checksum.add(view.lsn ^ u64::from(location.offset) << 32 ^ view.payload.len() as u64);
    });
    assert_eq!(records, image.records, "every record is read back");
    checksum.add_bytes(&at.hash);
    checksum.finish()
}

fn replay(image: &Image, index: &mut Index<IndexMemory>) -> u64 {
    let digests = DigestKey::new(*b"key of a digest.");
    let mut group: Vec<(Digest, Entry)> = Vec::with_capacity(GROUP);
    let at = each(image, &mut |location, view| {
        let digest = digests.digest(view.stream, view.key);
        index.prefetch(digest);
        let entry = Entry {
            lsn: view.lsn,
            version: view.version,
            tombstone: false,
            location,
            bytes: view.bytes as u32,
        };
        group.push((digest, entry));
        if group.len() == GROUP {
            apply(&mut group, index);
        }
    });
    apply(&mut group, index);
    assert_eq!(index.len(), image.records, "every key is in the index");
    let mut checksum = Checksum::default();
    checksum.add(index.len());
    checksum.add(index.bytes());
    checksum.add_bytes(&at.hash);
    checksum.finish()
}

fn apply(group: &mut Vec<(Digest, Entry)>, index: &mut Index<IndexMemory>) {
    for (digest, entry) in group.drain(..) {
        if index
            .get(digest)
            .is_none_or(|before| before.lsn < entry.lsn)
        {
            index
                .put(digest, entry)
                .expect("the index has room for every record");
        }
    }
}

/// Every record of every segment; where the chain ends.
fn each(image: &Image, visit: &mut dyn FnMut(wal::Location, record::RecordView<'_>)) -> ChainPoint {
    let mut at = ChainPoint::genesis(1);
    for (number, bytes) in image.segments.iter().enumerate() {
        let header = SegmentHeader::decode(bytes).expect("a header was laid down");
        assert_eq!(header.segment as usize, number + 1);
        (at, _) = scan::walk(
            &header.identity,
            &header,
            bytes,
            at,
            &mut |_, location, view| {
                visit(location, view);
            },
        );
    }
    at
}
