//! A log written by the real writer into segment images, and read back.

use crate::support::{Image, Owned, Seen, identity, put, records};
use proptest::prelude::*;
use wal::{
    BATCH_HEADER_BYTES, BLOCK_BYTES, KEY_BYTES_MAX, Link, Location, LogIdentity,
    chain::ChainPoint,
    extension,
    record::{Kind, RecordCodec, RecordError},
    recovery::Decision,
    scan::{self, BatchKind, Stop},
    writer::{ReadySegment, Writer, segment_bytes_of_unit, unit_bytes_max},
};

#[test]
fn what_is_appended_is_what_a_walk_shows() {
    let mut image = Image::new(64 * 1024);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    let first = image.unit(&mut writer, &[put(b"a", b"one"), put(b"b", b"")], 0);
    let second = image.unit(&mut writer, &[put(b"a", &[7; 5000])], 2);
    assert_eq!(first[0].lsn, 1);
    assert_eq!(second[0].lsn, 3);
    assert_eq!(
        second[0].location,
        Location {
            segment: 1,
            offset: 2 * BLOCK_BYTES as u32 + 192
        }
    );

    let (seen, at, stop) = image.walk(ChainPoint::genesis(1), 1);
    assert_eq!(stop, Stop::NoBatch);
    assert_eq!(at, writer.chain());
    assert_eq!(
        records(&seen),
        [put(b"a", b"one"), put(b"b", b""), put(b"a", &[7; 5000])]
    );
    assert_eq!((seen[2].lsn, seen[2].location), (3, second[0].location));
    assert_eq!(
        (
            seen[2].batch.batch,
            seen[2].batch.durable_mark,
            seen[2].batch.epoch
        ),
        (2, 2, 1)
    );

    // A walk can start at any chain point, not only at the beginning.
    let (_, middle, _) = {
        let mut cut = image.clone();
        cut.files.get_mut(&1).unwrap()[2 * BLOCK_BYTES..].fill(0);
        cut.walk(ChainPoint::genesis(1), 1)
    };
    let (seen, end, _) = image.walk(middle, 1);
    assert_eq!(records(&seen), [put(b"a", &[7; 5000])]);
    assert_eq!(end, at);
}

#[test]
fn a_single_record_read_proves_its_log_its_timeline_and_its_lsn() {
    let mut image = Image::new(64 * 1024);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    let record = put(b"key", &[9; 300]);
    let at = image.unit(&mut writer, &[put(b"x", b""), record.clone()], 0)[1];
    let bytes = &image.files[&1][at.location.offset as usize..];
    let codec = RecordCodec::new(&identity());
    assert_eq!(RecordCodec::peek_bytes(bytes), Some(at.bytes as usize));
    assert_eq!(Owned::of(&codec.decode(at.lsn, bytes).unwrap()), record);
    assert!(matches!(
        codec.decode(at.lsn + 1, bytes),
        Err(RecordError::Checksum { .. })
    ));
    assert!(matches!(
        codec.decode(at.lsn + (1 << 40), bytes),
        Err(RecordError::Checksum { .. })
    ));
    for other in [
        LogIdentity {
            log: [1; 16],
            ..identity()
        },
        LogIdentity {
            timeline: 2,
            ..identity()
        },
    ] {
        assert!(matches!(
            RecordCodec::new(&other).decode(at.lsn, bytes),
            Err(RecordError::Checksum { .. })
        ));
    }
    let copy = LogIdentity {
        store: [1; 16],
        number: 77,
        ..identity()
    };
    assert!(
        RecordCodec::new(&copy).decode(at.lsn, bytes).is_ok(),
        "a copy on another machine reads the same"
    );
    assert_eq!(
        codec.decode(at.lsn, &bytes[..47]),
        Err(RecordError::Short {
            needed: 48,
            given: 47
        })
    );
    assert_eq!(
        codec.decode(at.lsn, &bytes[..100]),
        Err(RecordError::Short {
            needed: at.bytes as usize,
            given: 100
        })
    );
}

#[test]
fn the_portable_part_is_the_same_on_any_machine() {
    let lay = |store: [u8; 16], number: u32, segment: u32, generation: u32, filler: u8| {
        let identity = LogIdentity {
            store,
            number,
            ..identity()
        };
        let at = ChainPoint {
            segment,
            ..ChainPoint::genesis(1)
        };
        let mut writer = Writer::new(
            identity,
            1,
            at,
            ReadySegment {
                segment,
                generation,
                bytes: 1 << 20,
                file: 0,
            },
        );
        writer.open(vec![filler; 8192], 100).unwrap();
        writer.append(&put(b"key", b"payload").as_new());
        let sealed = writer.seal(true, 0, 5).unwrap();
        sealed.buffer[..sealed.bytes as usize].to_vec()
    };
    let here = lay([1; 16], 0, 1, 1, 0xff);
    let there = lay([2; 16], 9, 40, 7, 0x11);
    assert_ne!(here[..64], there[..64]);
    assert_eq!(here[64..], there[64..]);
}

#[test]
fn a_unit_is_all_there_or_not_at_all() {
    let mut image = Image::new(256 * 1024);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    image.unit(&mut writer, &[put(b"before", b"1")], 0);
    let before = writer.chain();
    let unit: Vec<Owned> = (0..40_u8).map(|n| put(&[n], &[n; 1000])).collect();
    let (_, batches) = image.seal_unit(&mut writer, &unit, 1);
    assert!(batches.len() >= 3, "the unit takes several batches");
    assert!(batches.iter().rev().skip(1).all(|batch| !batch.commits));
    let empty = image.clone();

    for written in 0..1_u32 << batches.len() {
        let mut image = empty.clone();
        for (at, batch) in batches.iter().enumerate() {
            if written & (1 << at) != 0 {
                image.write(batch);
            }
        }
        let recovered = image.recover(ChainPoint::genesis(1), 1);
        assert_eq!(recovered.decision, Decision::Cut);
        if written == (1 << batches.len()) - 1 {
            assert_eq!(recovered.seen.len(), 41);
            assert_eq!(recovered.at, writer.chain());
        } else {
            assert_eq!(recovered.seen.len(), 1, "batches {written:b}");
            assert_eq!(recovered.at, before);
        }
    }
}

#[test]
fn a_mark_batch_carries_only_its_mark() {
    let mut image = Image::new(64 * 1024);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    image.unit(&mut writer, &[put(b"a", b"1")], 0);
    image.open(&mut writer, 0);
    let mark = writer.seal(true, 1, 77).unwrap();
    assert_eq!(
        (mark.records, mark.first_lsn, mark.last_lsn, mark.bytes),
        (0, 2, 1, 4096)
    );
    image.write(&mark);
    image.unit(&mut writer, &[put(b"b", b"2")], 1);
    let recovered = image.recover(ChainPoint::genesis(1), 0);
    assert_eq!(recovered.seen.len(), 2);
    assert_eq!(recovered.at, writer.chain());
    let bytes = &image.files[&1];
    let found = scan::find_batch(&identity(), &image.header(1), bytes, 4097).unwrap();
    assert_eq!(
        (found.kind, found.durable_mark, found.records, found.batch),
        (BatchKind::Mark, 1, 0, 2)
    );
}

#[test]
fn log_time_never_goes_back() {
    let mut image = Image::new(64 * 1024);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    for (given, kept) in [(50, 50), (40, 50), (60, 60)] {
        image.open(&mut writer, 0);
        let sealed = writer.seal(true, 0, given).unwrap();
        image.write(&sealed);
        assert_eq!(writer.chain().log_time_us, kept);
    }
    let at = image.recover(ChainPoint::genesis(1), 0).at;
    assert_eq!(at.log_time_us, 60);
    let mut next = image.writer(2, at);
    image.open(&mut next, 0);
    next.seal(true, 0, 1).unwrap();
    assert_eq!(next.chain().log_time_us, 60, "not across writers either");
}

#[test]
fn a_batch_that_ends_with_its_segment_is_followed_by_the_next_one() {
    let mut image = Image::new(3 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    let exact = BLOCK_BYTES - BATCH_HEADER_BYTES - 48 - 8;
    for round in 0..5_u8 {
        image.unit(&mut writer, &[put(b"12345678", &vec![round; exact])], 0);
    }
    assert_eq!(image.files.len(), 3);
    assert_eq!(image.walk(ChainPoint::genesis(1), 1).2, Stop::End);
    let recovered = image.recover(ChainPoint::genesis(1), 0);
    assert_eq!(recovered.seen.len(), 5);
    assert_eq!(
        recovered.seen[2].location,
        Location {
            segment: 2,
            offset: 4096 + 192
        }
    );
    assert_eq!(recovered.at, writer.chain());

    // A writer may also be given the following segment when the last one is full.
    let (_, full, _) = image.walk(ChainPoint::genesis(1), 1);
    let writer: Writer<Vec<u8>> = Writer::new(
        identity(),
        2,
        full,
        ReadySegment {
            segment: 2,
            generation: 1,
            bytes: 12288,
            file: 0,
        },
    );
    assert_eq!((writer.chain().segment, writer.chain().offset), (2, 4096));
}

#[test]
fn open_gives_the_buffer_back_when_there_is_no_segment_to_roll_to() {
    let mut image = Image::new(3 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    image.unit(&mut writer, &[put(b"k", &[1; 1000])], 0);
    let buffer = writer
        .open(vec![3; 16384], 5000)
        .expect_err("one block is left, two are needed");
    assert_eq!(buffer, vec![3; 16384]);
    assert!(!writer.is_open());
    assert_eq!(writer.room(), 0);
    writer
        .open(buffer, 100)
        .expect("a small one still fits here");
    assert_eq!(
        writer.room(),
        BLOCK_BYTES - BATCH_HEADER_BYTES,
        "no more than the segment has left"
    );
}

#[test]
#[should_panic(expected = "a unit began with less room than it needs")]
fn a_unit_never_straddles_segments() {
    let mut image = Image::new(3 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    for _ in 0..3 {
        image.open(&mut writer, 1000);
        writer.append(&put(b"k", &[1; 1000]).as_new());
        writer.seal(false, 0, 0);
    }
}

#[test]
fn the_largest_unit_fits_whatever_its_records_are() {
    for (segment_bytes, buffer_bytes) in [
        (64 * 1024, 8192),
        (1 << 20, 65536),
        (1 << 20, 1 << 20),
        (12288, 4096),
    ] {
        let largest = unit_bytes_max(segment_bytes, buffer_bytes);
        assert!(segment_bytes_of_unit(largest, buffer_bytes) <= segment_bytes - BLOCK_BYTES);
        assert!(segment_bytes_of_unit(largest + 8, buffer_bytes) > segment_bytes - BLOCK_BYTES);
        // Alternating tiny and buffer-filling records waste the most: every batch holds one record.
        let room = (buffer_bytes - BATCH_HEADER_BYTES) / 8 * 8;
        let mut image = Image::new(segment_bytes);
        image.buffer_bytes = buffer_bytes;
        let mut writer = image.writer(1, ChainPoint::genesis(1));
        let (mut unit, mut left, mut big) = (Vec::new(), largest, false);
        while left >= 48 {
            let bytes = if big { room.min(left) } else { 48 };
            unit.push(put(b"", &vec![1; bytes - 48]));
            left -= bytes;
            big = !big;
        }
        image.unit(&mut writer, &unit, 0);
        assert_eq!(
            image.recover(ChainPoint::genesis(1), 0).seen.len(),
            unit.len()
        );
    }
}

#[test]
fn asking_for_more_than_a_segment_holds_starts_at_the_front_of_one() {
    let mut image = Image::new(4 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    image.open(&mut writer, 1 << 20);
    writer.append(&put(b"k", b"1").as_new());
    let sealed = writer.seal(true, 0, 0).unwrap();
    assert_eq!(
        (sealed.segment, sealed.offset),
        (1, 4096),
        "an empty segment is not left"
    );
    image.open(&mut writer, 1 << 20);
    writer.append(&put(b"k", b"2").as_new());
    let sealed = writer.seal(true, 0, 0).unwrap();
    assert_eq!((sealed.segment, sealed.offset), (2, 4096));
}

#[test]
fn open_bytes_answers_for_the_open_batch_only() {
    let mut image = Image::new(64 * 1024);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    let gone = image.unit(&mut writer, &[put(b"a", b"1")], 0)[0];
    assert_eq!(writer.open_bytes(gone.location), None);
    image.open(&mut writer, 100);
    assert_eq!(writer.open_bytes(gone.location), None);
    let here = writer.append(&put(b"b", b"2").as_new());
    let codec = RecordCodec::new(&identity());
    assert_eq!(
        codec
            .decode(here.lsn, writer.open_bytes(here.location).unwrap())
            .unwrap()
            .payload,
        b"2"
    );
    let after = Location {
        offset: here.location.offset + here.bytes,
        ..here.location
    };
    assert_eq!(writer.open_bytes(after), None);
    assert_eq!(
        writer.open_bytes(Location {
            segment: 2,
            ..here.location
        }),
        None
    );
    assert_eq!(
        writer.open_bytes(Location {
            offset: here.location.offset - 8,
            ..here.location
        }),
        None
    );
}

#[test]
#[should_panic(expected = "never written")]
fn a_mark_cannot_run_ahead_of_the_log() {
    let mut image = Image::new(64 * 1024);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    image.open(&mut writer, 100);
    writer.append(&put(b"a", b"1").as_new());
    writer.seal(true, 1, 0);
}

#[test]
#[should_panic(expected = "larger than any before it")]
fn a_term_is_never_used_twice() {
    let at = ChainPoint {
        epoch: 4,
        ..ChainPoint::genesis(1)
    };
    Image::new(64 * 1024).writer(4, at);
}

#[test]
#[should_panic(expected = "whole blocks")]
fn extensions_that_would_not_read_back_are_refused() {
    let mut image = Image::new(64 * 1024);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    image.open(&mut writer, 100);
    writer.append(
        &Owned {
            extensions: vec![1, 0, 99, 0],
            ..put(b"a", b"1")
        }
        .as_new(),
    );
}

fn any_record() -> impl Strategy<Value = Owned> {
    let kind = prop_oneof![
        Just(Kind::Put),
        Just(Kind::Tombstone),
        Just(Kind::StreamDefinition),
        Just(Kind::Note)
    ];
    let key = prop_oneof![4 => 0..40_usize, 1 => Just(KEY_BYTES_MAX)];
    let payload = prop_oneof![8 => 0..300_usize, 2 => 300..5000_usize, 1 => Just(12_000)];
    let extensions = proptest::collection::vec(
        (any::<u16>(), proptest::collection::vec(any::<u8>(), 0..40)),
        0..3,
    );
    (kind, key, payload, extensions, any::<u64>(), any::<u32>()).prop_map(
        |(kind, key, payload, blocks, seed, word)| {
            let mut extensions = Vec::new();
            for (kind, bytes) in blocks {
                extension::push(&mut extensions, kind, &bytes);
            }
            let byte = |at: usize| (seed.rotate_left(at as u32 % 64) as u8) ^ at as u8;
            Owned {
                kind,
                content_type: seed as u8,
                stream: word,
                version: word.rotate_left(7),
                timestamp_us: seed,
                previous: Link {
                    lsn: seed.rotate_left(9),
                    location: Location {
                        segment: word ^ 5,
                        offset: word ^ 9,
                    },
                },
                key: (0..key).map(byte).collect(),
                payload: (0..payload).map(byte).collect(),
                extensions,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Any units, laid out over any number of batches and segments, come back equal, wherever the writer was restarted between them.
    #[test]
    fn a_log_reads_back_equal(units in proptest::collection::vec((proptest::collection::vec(any_record(), 1..8), any::<bool>()), 1..12)) {
        let mut image = Image::new(40 * BLOCK_BYTES);
        let mut writer = image.writer(1, ChainPoint::genesis(1));
        let mut epoch = 1;
        let (mut wanted, mut places) = (Vec::new(), Vec::new());
        for (unit, restart) in &units {
            let durable = writer.next_lsn() - 1;
            places.extend(image.unit(&mut writer, unit, durable));
            wanted.extend(unit.iter().cloned());
            if *restart {
                let recovered = image.recover(ChainPoint::genesis(1), 0);
                prop_assert_eq!(recovered.at, writer.chain());
                epoch += 1;
                writer = image.writer(epoch, recovered.at);
            }
        }
        let recovered = image.recover(ChainPoint::genesis(1), 0);
        prop_assert_eq!(recovered.decision, Decision::Cut);
        prop_assert_eq!(&records(&recovered.seen), &wanted);
        prop_assert_eq!(recovered.at, writer.chain());
        let codec = RecordCodec::new(&identity());
        for (place, (Seen { lsn, location, batch, .. }, record)) in places.iter().zip(recovered.seen.iter().zip(&wanted)) {
            prop_assert_eq!((place.lsn, place.location), (*lsn, *location));
            let file = &image.files[&location.segment];
            let alone = codec.decode(*lsn, &file[location.offset as usize..]).unwrap();
            prop_assert_eq!(&Owned::of(&alone), record);
            prop_assert_eq!(alone.bytes, place.bytes as usize);
            // A reader that comes by one batch finds it too.
            let header = image.header(location.segment);
            let found = scan::batch_at(&identity(), &header, batch.offset, &file[batch.offset as usize..]).unwrap();
            let in_batch = scan::records(&codec, &found, &file[batch.offset as usize..]).find(|(at, _)| at == location);
            prop_assert_eq!(in_batch.unwrap().1.unwrap(), alone);
        }
    }
}

#[test]
fn a_segment_header_carries_a_hint_of_keys_that_older_ones_leave_at_zero() {
    let header = wal::segment::SegmentHeader {
        identity: identity(),
        segment: 7,
        generation: 2,
        segment_bytes: 1 << 20,
    };
    let mut block = vec![0; wal::BLOCK_BYTES];
    header.encode(&mut block);
    assert_eq!(wal::segment::SegmentHeader::keys_hint(&block), 0);
    header.encode_with_keys(&mut block, 12_345_678_901);
    assert_eq!(wal::segment::SegmentHeader::decode(&block), Ok(header));
    assert_eq!(
        wal::segment::SegmentHeader::keys_hint(&block),
        12_345_678_901
    );
}
