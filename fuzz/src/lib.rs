//! What the fuzz targets do with their bytes: feed every decoder, and hold what it says to what must be true of any answer.
//!
//! A decoder that only must not panic is half a target. Here a parser's answer may not depend on how the bytes were cut, what
//! is decoded encodes to the same value again, and damage to a log is found, never served.

use index::checkpoint::{self, CheckpointHeader, HEADER_BYTES, PAGE_BYTES};
use wal::chain::ChainPoint;
use wal::record::{Kind, NewRecord, RecordCodec};
use wal::segment::SegmentHeader;
use wal::superblock::Superblock;
use wal::writer::{ReadySegment, Writer};
use wal::{BLOCK_BYTES, Link, LogIdentity, scan};

#[cfg(feature = "config")]
#[allow(dead_code)]
#[path = "../../src/config/mod.rs"]
mod config_file;
#[cfg(feature = "config")]
#[allow(dead_code)]
#[path = "../../src/exit.rs"]
mod exit;
#[cfg(feature = "config")]
#[allow(dead_code)]
#[path = "../../src/units.rs"]
mod units;

pub fn identity() -> LogIdentity {
    LogIdentity {
        store: *b"store-of-a-fuzz.",
        log: *b"the log's uuid..",
        number: 3,
        timeline: 1,
    }
}

pub const NATIVE: wire::native::Limits = wire::native::Limits {
    frame_bytes_max: 1 << 20,
    payload_bytes_max: 256 << 10,
};
pub const HTTP: wire::http::Limits = wire::http::Limits {
    head_bytes_max: 4096,
    body_bytes_max: 64 << 10,
    payload_bytes_max: 32 << 10,
};

/// Places to cut a message at: all of a short one, some of a long one.
fn cuts(bytes: &[u8]) -> impl Iterator<Item = usize> {
    (0..bytes.len()).step_by(bytes.len() / 64 + 1)
}

/// Native requests, as many as there are.
pub fn native(data: &[u8]) {
    use wire::native::{Parsed, Request, parse};
    let mut rest = data;
    loop {
        let consumed = match parse(rest, &NATIVE) {
            Parsed::Incomplete { needed } => {
                assert!(needed > rest.len(), "it has what it asks for");
                break;
            }
            Parsed::Broken(_) => break,
            Parsed::Request {
                consumed, request, ..
            } => {
                if let Request::Append(append) = &request {
                    let bytes: usize = append.iter().map(|r| r.key.len() + r.payload.len()).sum();
                    assert!(bytes <= consumed);
                }
                consumed
            }
            Parsed::Refused { consumed, .. } => consumed,
        };
        assert!(consumed > 0 && consumed <= rest.len());
        for cut in cuts(&rest[..consumed]) {
            assert!(
                matches!(parse(&rest[..cut], &NATIVE), Parsed::Incomplete { .. }),
                "a part was taken for the whole"
            );
        }
        rest = &rest[consumed..];
    }
}

/// HTTP requests, as many as there are.
pub fn http(data: &[u8]) {
    use wire::http::{Parsed, parse};
    let mut rest = data;
    loop {
        let consumed = match parse(rest, &HTTP) {
            Parsed::Incomplete { needed, .. } => {
                assert!(needed > rest.len(), "it has what it asks for");
                break;
            }
            Parsed::Refused { consumed: None, .. } => break,
            Parsed::Request { consumed, .. } => {
                for cut in cuts(&rest[..consumed]) {
                    assert!(
                        matches!(parse(&rest[..cut], &HTTP), Parsed::Incomplete { .. }),
                        "a part was taken for the whole"
                    );
                }
                consumed
            }
            Parsed::Refused {
                consumed: Some(consumed),
                ..
            } => consumed,
        };
        assert!(consumed > 0 && consumed <= rest.len());
        rest = &rest[consumed..];
    }
}

/// The lines of an NDJSON body.
pub fn ndjson(data: &[u8]) {
    let mut last = 0;
    for line in wire::ndjson::lines(data, 4096) {
        match line {
            Ok(line) => assert!(line.payload.len() <= 4096),
            Err((number, why)) => {
                assert!(number > last && !why.message.is_empty());
                last = number;
            }
        }
    }
}

/// What a client reads.
pub fn reply(data: &[u8]) {
    use wire::native::{parse_reply, peek_reply};
    let mut rest = data;
    while let Ok(Some((id, opcode, reply, consumed))) = parse_reply(rest) {
        assert!(consumed > 0 && consumed <= rest.len());
        if let Some((peeked, op, _, bytes)) = peek_reply(rest) {
            assert_eq!((peeked, op, bytes), (id, opcode, consumed));
        }
        if let wire::native::Reply::Bytes { body, .. } = reply {
            let _ = wire::Topology::decode(body);
        }
        rest = &rest[consumed..];
    }
}

/// A cursor, which is opaque to clients and comes back from them.
pub fn cursor(data: &[u8]) {
    if let Some(cursor) = wire::Cursor::decode(data) {
        assert_eq!(
            wire::Cursor::decode(cursor.encode().as_bytes()),
            Some(cursor)
        );
    }
}

/// One record of the log.
pub fn record(data: &[u8]) {
    let codec = RecordCodec::new(&identity());
    let claimed = RecordCodec::peek_bytes(data);
    for lsn in [1, 7] {
        if let Ok(record) = codec.decode(lsn, data) {
            assert!(record.key.len() + record.payload.len() <= data.len());
            assert!(claimed.is_some_and(|bytes| bytes <= data.len()));
            assert!(codec.read_kept(lsn, data).is_ok());
        }
        let _ = codec.read_kept(lsn, data);
    }
}

pub fn segment_header(bytes: usize) -> SegmentHeader {
    SegmentHeader {
        identity: identity(),
        segment: 1,
        generation: 2,
        segment_bytes: bytes as u64,
    }
}

/// Name of the n-th record, so that a walk can tell what it is shown.
fn payload(n: usize, length: usize) -> Vec<u8> {
    let mut payload = format!("{n} ").into_bytes();
    payload.resize(payload.len() + length, b'.');
    payload
}

/// A segment as the writer makes it: a batch for every byte of `shape`, with so many records as its low bits say.
pub fn written_segment(shape: &[u8]) -> (Vec<u8>, usize) {
    const BYTES: usize = 64 << 10;
    let mut file = vec![0; BYTES];
    segment_header(BYTES).encode(&mut file[..BLOCK_BYTES]);
    let ready = ReadySegment {
        segment: 1,
        generation: 2,
        bytes: BYTES as u32,
        file: 0,
    };
    let mut writer = Writer::<Vec<u8>>::new(identity(), 1, ChainPoint::genesis(1), ready);
    let (mut records, mut in_unit) = (0, false);
    // Seven full buffers fit the segment.
    for byte in shape.iter().take(7) {
        if writer.open(vec![0; 8 << 10], 0).is_err() {
            break;
        }
        // A batch without records ends no unit.
        for _ in 0..(byte % 5).max(u8::from(in_unit)) {
            let payload = payload(records, usize::from(byte >> 3) * 20);
            let key = format!("key-{records}");
            let record = NewRecord {
                kind: Kind::Put,
                content_type: 1,
                stream: 1,
                version: records as u32 + 1,
                timestamp_us: 1_700_000_000_000_000 + records as u64,
                previous: Link::default(),
                key: key.as_bytes(),
                payload: &payload,
                extensions: &[],
            };
            if writer.room() < wal::record::encoded_bytes(&record) {
                break;
            }
            writer.append(&record);
            records += 1;
        }
        let commits = byte & 0x40 == 0 || writer.records() == 0;
        in_unit = !commits;
        if let Some(sealed) = writer.seal(commits, 0, 1_700_000_000_000_000) {
            let at = sealed.offset as usize;
            file[at..at + sealed.bytes as usize]
                .copy_from_slice(&sealed.buffer[..sealed.bytes as usize]);
        }
    }
    (file, records)
}

/// A segment of the log: as it is, or well written and then damaged as the bytes say. What is shown was written, in order.
pub fn segment(data: &[u8]) {
    let Some((mode, data)) = data.split_first() else {
        return;
    };
    if mode & 1 == 0 {
        let header = segment_header(data.len());
        let mut seen = 0;
        let (end, _) = scan::walk(
            &identity(),
            &header,
            data,
            ChainPoint::genesis(1),
            &mut |_, location, _| {
                seen += 1;
                assert!((location.offset as usize) < data.len());
            },
        );
        assert!(end.next_lsn > seen);
        let _ = scan::proof_of_durability(&identity(), &header, data, 0, 1);
        for lsn in [1, 2] {
            let _ = scan::find_batch(&identity(), &header, data, lsn);
        }
        return;
    }
    let (shape, damage) = data.split_at(data.len().min(8));
    let (mut file, records) = written_segment(shape);
    // Four bytes each: where, and what to do to the byte there.
    for change in damage.chunks_exact(4).take(8) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]]));
        let length = 1 << (change[2] & 7);
        let end = (at + length).min(file.len());
        match change[2] >> 6 {
            0 => file[at..end].iter_mut().for_each(|b| *b ^= change[3]),
            1 => file[at..end].fill(change[3]),
            // A block of the file in another's place: a misdirected or stale write.
            _ => {
                let (from, to) = (at / BLOCK_BYTES, usize::from(change[3]) % 16);
                let block = file[from * BLOCK_BYTES..][..BLOCK_BYTES].to_vec();
                file[to * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&block);
            }
        }
    }
    let header = segment_header(file.len());
    let mut seen = 0;
    scan::walk(
        &identity(),
        &header,
        &file,
        ChainPoint::genesis(1),
        &mut |_, _, record| {
            assert_eq!(record.lsn, seen as u64 + 1, "records come in order");
            assert_eq!(record.key, format!("key-{seen}").as_bytes());
            assert!(record.payload.starts_with(format!("{seen} ").as_bytes()));
            assert!(
                record.payload[format!("{seen} ").len()..]
                    .iter()
                    .all(|b| *b == b'.')
            );
            seen += 1;
        },
    );
    assert!(seen <= records, "{seen} of {records}");
    if damage.len() < 4 && shape.iter().all(|byte| byte & 0x40 == 0) {
        assert_eq!(seen, records, "nothing was damaged");
    }
}

/// The first block of a segment file.
pub fn header(data: &[u8]) {
    if let Ok(header) = SegmentHeader::decode(data) {
        let mut block = vec![0; BLOCK_BYTES];
        header.encode_with_keys(&mut block, SegmentHeader::keys_hint(data));
        assert_eq!(SegmentHeader::decode(&block), Ok(header));
    }
}

/// The superblock, and the choice between its copies.
pub fn superblock(data: &[u8]) {
    if let Ok(superblock) = Superblock::decode(data) {
        let mut block = vec![0; BLOCK_BYTES];
        superblock.encode(&mut block).expect("it was decoded");
        assert_eq!(Superblock::decode(&block), Ok(superblock));
    }
    let (a, b) = data.split_at(data.len() / 2);
    let _ = Superblock::choose(a, b);
}

pub fn checkpoint_header() -> CheckpointHeader {
    CheckpointHeader {
        identity: identity(),
        sequence: 5,
        replay_from: ChainPoint::genesis(1),
        max_lsn: 100,
        pages: 3,
        keys: 100,
        log_time_us: 1_700_000_000_000_000,
        released_through: 0,
        record_bytes: 0,
        dead_bytes: 0,
        aging_bytes: 0,
        padding_bytes: 0,
        counted_lsn: 0,
    }
}

/// A checkpoint's header and its pages.
pub fn checkpoint(data: &[u8]) {
    if let Ok(header) = CheckpointHeader::decode(data) {
        let mut block = vec![0; HEADER_BYTES];
        header.encode(&mut block);
        assert_eq!(CheckpointHeader::decode(&block), Ok(header));
    }
    let mut page = data.to_vec();
    page.resize(PAGE_BYTES, 0);
    for number in 0..2 {
        if let Ok(checkpoint::Page::Entries(entries)) =
            checkpoint::decode_page(&checkpoint_header(), number, &page)
        {
            assert!(entries.count() <= checkpoint::PAGE_ENTRIES);
        }
    }
}

/// `pinion.toml`.
#[cfg(feature = "config")]
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(mut settings) = toml::from_str::<config_file::ServeFlags>(text) {
        let printed = toml::to_string(&settings).expect("settings are plain data");
        toml::from_str::<config_file::ServeFlags>(&printed).expect("what is printed can be read");
        // The file that it names is not ours to read.
        settings.token_file = None;
        let _ = config_file::resolve(settings);
    }
}
