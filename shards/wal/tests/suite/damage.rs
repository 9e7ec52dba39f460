//! Damage, torn writes and stale bytes: everything is found, nothing wrong is ever shown.

use crate::support::{Image, Owned, identity, put, records};
use wal::{
    BLOCK_BYTES, LogIdentity,
    chain::ChainPoint,
    record::RecordCodec,
    recovery::Decision,
    scan::{self, Stop, Term},
    segment::SegmentHeader,
    writer::{ReadySegment, SealedBatch, Writer},
};

type Batch = SealedBatch<Vec<u8>>;

/// Three units in one segment of seven blocks: batches at blocks 1, 2 to 3 and 4; blocks 5 and 6 unwritten.
fn small() -> (Image, Vec<(u32, u32)>, Writer<Vec<u8>>) {
    let mut image = Image::new(7 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    let mut extensions = Vec::new();
    wal::extension::push(&mut extensions, 1, b"image/png");
    let units = [
        vec![
            put(b"a", b"one"),
            Owned {
                extensions,
                ..put(b"longer key", b"payload")
            },
        ],
        vec![put(b"b", &[5; 4100])],
        vec![put(b"c", b""), put(b"", b"d"), put(b"e", &[1; 77])],
    ];
    let mut places = Vec::new();
    for (at, unit) in units.iter().enumerate() {
        let (_, batches) = image.seal_unit(&mut writer, unit, [0, 2, 3][at]);
        assert_eq!(batches.len(), 1);
        image.write(&batches[0]);
        places.push((batches[0].offset, batches[0].bytes));
    }
    assert_eq!(places, [(4096, 4096), (8192, 8192), (16384, 4096)]);
    (image, places, writer)
}

#[test]
fn every_flipped_bit_is_found_or_belongs_to_nobody() {
    let (image, places, _) = small();
    let (whole, end, _) = image.walk(ChainPoint::genesis(1), 1);
    let codec = RecordCodec::new(&identity());
    let header = image.header(1);
    let mut file = image.files[&1].clone();
    for at in 0..file.len() {
        let batch = places
            .iter()
            .position(|(offset, bytes)| (*offset..offset + bytes).contains(&(at as u32)));
        let record = whole.iter().find(|seen| {
            let start = seen.location.offset as usize;
            (start..start + seen.record.encoded_bytes()).contains(&at)
        });
        for bit in 0..8 {
            file[at] ^= 1 << bit;
            if at < BLOCK_BYTES {
                assert!(
                    SegmentHeader::decode(&file).is_err(),
                    "byte {at} bit {bit} of the segment header"
                );
            } else {
                let mut shown = 0;
                let (stopped, stop) = scan::walk(
                    &identity(),
                    &header,
                    &file,
                    ChainPoint::genesis(1),
                    &mut |_, _, view| {
                        assert_eq!(Owned::of(&view), whole[shown].record, "byte {at} bit {bit}");
                        shown += 1;
                    },
                );
                let wanted = batch.map_or(whole.len(), |batch| [0, 2, 3][batch]);
                assert_eq!(
                    shown, wanted,
                    "byte {at} bit {bit} in batch {batch:?}: {stop:?}"
                );
                assert_eq!(
                    stopped.offset,
                    batch.map_or(end.offset, |batch| places[batch].0)
                );
                assert!(
                    matches!(stop, Stop::Invalid(_) | Stop::NoBatch),
                    "byte {at} bit {bit}: {stop:?}"
                );
                // The third batch's mark says that lsn 3 was durable: damage to the first two is proven.
                if batch.is_some_and(|batch| batch < 2) {
                    let proof = scan::proof_of_durability(
                        &identity(),
                        &header,
                        &file,
                        stopped.offset,
                        stopped.next_lsn,
                    );
                    assert!(
                        proof.is_some_and(|proof| proof.batch == 3 || proof.batch == 2),
                        "byte {at} bit {bit}"
                    );
                }
            }
            if let Some(record) = record {
                assert!(
                    codec
                        .decode(record.lsn, &file[record.location.offset as usize..])
                        .is_err(),
                    "byte {at} bit {bit} alone"
                );
            }
            file[at] ^= 1 << bit;
        }
    }
}

#[test]
fn a_batch_torn_at_any_sector_is_cut_and_damage_where_it_was_durable() {
    const SECTOR: usize = 512;
    const FIRST_PAYLOAD: usize = 19 * SECTOR - 192 - 48 - 4;
    let mut image = Image::new(16 * BLOCK_BYTES);
    let mut writer = image.writer(2, ChainPoint::genesis(1));
    image.unit(&mut writer, &[put(b"before", b"1")], 0);
    let before = writer.chain();
    let (_, batches) = image.seal_unit(
        &mut writer,
        &[put(b"torn", &[7; FIRST_PAYLOAD]), put(b"too", &[8; 1500])],
        1,
    );
    let batch = &batches[0];
    let sectors = batch.bytes as usize / SECTOR;
    let whole = &batch.buffer[..batch.bytes as usize];
    // Zeroes, noise, and what an earlier term left: the same lsns and lengths, other payloads. Its second record verifies
    // alone and begins with a sector, so that only the body checksum tells it from the one that belongs there.
    let stale: Vec<u8> = {
        let at = ChainPoint { epoch: 0, ..before };
        let mut writer = Writer::new(identity(), 1, at, image.ready(1));
        writer.open(vec![0; 16384], 100).unwrap();
        writer.append(&put(b"torn", &[6; FIRST_PAYLOAD]).as_new());
        let second = writer.append(&put(b"too", &[9; 1500]).as_new());
        assert_eq!(second.location.offset as usize % SECTOR, 0);
        writer.seal(true, 0, 0).unwrap().buffer[..whole.len()].to_vec()
    };
    let under = [vec![0; whole.len()], vec![0x5a; whole.len()], stale];
    let prefixes = (0..sectors).map(|landed| (0..landed).collect::<Vec<_>>());
    let suffixes = (1..=sectors).map(|from| (from..sectors).collect());
    let holes = (0..sectors).map(|hole| (0..sectors).filter(|sector| *sector != hole).collect());
    for landed in prefixes.chain(suffixes).chain(holes) {
        for under in &under {
            let mut image = image.clone();
            let place =
                &mut image.files.get_mut(&1).unwrap()[batch.offset as usize..][..whole.len()];
            place.copy_from_slice(under);
            for sector in &landed {
                let range = sector * SECTOR..(sector + 1) * SECTOR;
                place[range.clone()].copy_from_slice(&whole[range]);
            }
            let complete = place == whole;
            let torn = image.recover(ChainPoint::genesis(1), 0);
            assert_eq!(
                torn.seen.len(),
                if complete { 3 } else { 1 },
                "sectors {landed:?}"
            );
            assert_eq!(torn.decision, Decision::Cut, "sectors {landed:?}");
            if !complete {
                assert_eq!(torn.at, before);
                let acked = image.recover(ChainPoint::genesis(1), 2);
                assert_eq!(
                    acked.decision,
                    Decision::Damage,
                    "sectors {landed:?}, known durable"
                );
            }
        }
    }
}

#[test]
fn a_lost_write_is_damage_when_a_later_batch_proves_it_and_a_torn_tail_when_none_does() {
    let mut image = Image::new(64 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    let mut batches: Vec<Batch> = Vec::new();
    for (n, durable) in [0, 0, 0, 2, 3].into_iter().enumerate() {
        let (_, mut sealed) = image.seal_unit(&mut writer, &[put(&[n as u8], b"x")], durable);
        batches.append(&mut sealed);
    }
    for lost in 0..batches.len() {
        let mut image = image.clone();
        for (n, batch) in batches.iter().enumerate() {
            if n != lost {
                image.write(batch);
            }
        }
        let recovered = image.recover(ChainPoint::genesis(1), 0);
        assert_eq!(recovered.seen.len(), lost);
        assert_eq!(recovered.stop, Stop::NoBatch);
        // lsn lost+1 is missing; the marks on disk reach 3 unless the batch that says so is the lost one
        let marked = if lost == 4 { 2 } else { 3 };
        let wanted = if lost < marked {
            Decision::Damage
        } else {
            Decision::Cut
        };
        assert_eq!(recovered.decision, wanted, "batch {} lost", lost + 1);
    }
}

/// Put `batch`, laid out under some other identity or history, where the next batch of `image` is due. Nothing of it may show.
fn refused(image: &Image, at: &ChainPoint, bytes: &[u8], what: &str) -> Stop {
    let mut image = image.clone();
    let before = image.recover(ChainPoint::genesis(1), 0);
    image.files.get_mut(&at.segment).unwrap()[at.offset as usize..][..bytes.len()]
        .copy_from_slice(bytes);
    let after = image.recover(ChainPoint::genesis(1), 0);
    assert_eq!(records(&after.seen), records(&before.seen), "{what}");
    assert_eq!(after.at, before.at, "{what}");
    after.stop
}

fn one_batch(identity: LogIdentity, epoch: u32, at: ChainPoint, generation: u32) -> Vec<u8> {
    let mut writer = Writer::new(
        identity,
        epoch,
        at,
        ReadySegment {
            segment: at.segment,
            generation,
            bytes: 1 << 16,
            file: 0,
        },
    );
    writer.open(vec![0; 8192], 100).unwrap();
    writer.append(&put(b"stray", b"must not show").as_new());
    let sealed = writer.seal(true, 0, 0).unwrap();
    sealed.buffer[..sealed.bytes as usize].to_vec()
}

#[test]
fn only_the_very_batch_that_is_due_is_accepted() {
    let mut image = Image::new(16 * BLOCK_BYTES);
    let mut writer = image.writer(3, ChainPoint::genesis(1));
    image.unit(&mut writer, &[put(b"a", b"1")], 0);
    image.unit(&mut writer, &[put(b"b", b"2")], 1);
    let at = writer.chain();
    let who = identity();

    // The canary: what is due, made by the same helper, is accepted.
    let mut good = image.clone();
    good.files.get_mut(&1).unwrap()[at.offset as usize..][..4096]
        .copy_from_slice(&one_batch(who, 4, at, 1));
    assert_eq!(good.recover(ChainPoint::genesis(1), 0).seen.len(), 3);

    let stray = |identity, at, generation| one_batch(identity, 4, at, generation);
    let invalid = [
        (
            "another store",
            stray(
                LogIdentity {
                    store: [9; 16],
                    ..who
                },
                at,
                1,
            ),
        ),
        (
            "another log",
            stray(
                LogIdentity {
                    log: [9; 16],
                    ..who
                },
                at,
                1,
            ),
        ),
        (
            "another timeline",
            stray(LogIdentity { timeline: 2, ..who }, at, 1),
        ),
        ("a generation to come", stray(who, at, 2)),
        (
            "another block",
            stray(
                who,
                ChainPoint {
                    offset: at.offset + 4096,
                    ..at
                },
                1,
            ),
        ),
        (
            "another segment",
            stray(who, ChainPoint { segment: 2, ..at }, 1),
        ),
    ];
    for (what, bytes) in &invalid {
        let alone = scan::batch_at(&who, &image.header(1), at.offset, bytes);
        assert!(matches!(alone, Err(Stop::Invalid(_))), "{what}: {alone:?}");
        let stop = refused(&image, &at, bytes, what);
        assert!(matches!(stop, Stop::Invalid(_)), "{what}: {stop:?}");
    }
    let unchained = [
        (
            "another hash",
            ChainPoint {
                hash: [1; 16],
                ..at
            },
        ),
        (
            "another batch number",
            ChainPoint {
                next_batch: at.next_batch + 1,
                ..at
            },
        ),
        (
            "another lsn",
            ChainPoint {
                next_lsn: at.next_lsn + 1,
                ..at
            },
        ),
        ("behind another term", ChainPoint { epoch: 2, ..at }),
    ];
    for (what, chain) in unchained {
        let stop = refused(&image, &at, &stray(who, chain, 1), what);
        assert!(
            matches!(
                stop,
                Stop::Unchained {
                    epoch: 4,
                    term: Term::Newer,
                    ..
                }
            ),
            "{what}: {stop:?}"
        );
    }
    let below = one_batch(who, 2, ChainPoint { epoch: 1, ..at }, 1);
    assert!(matches!(
        refused(&image, &at, &below, "an older term"),
        Stop::Unchained {
            term: Term::Older,
            ..
        }
    ));
    let same = one_batch(who, 3, ChainPoint { epoch: 1, ..at }, 1);
    assert!(matches!(
        refused(&image, &at, &same, "the same term"),
        Stop::Unchained {
            term: Term::Same,
            ..
        }
    ));
    // The batch before, once more: right term, right log, wrong place.
    let copy = image.files[&1][4096..8192].to_vec();
    assert!(matches!(
        refused(&image, &at, &copy, "a batch of this log again"),
        Stop::Invalid(_)
    ));
}

#[test]
fn a_proof_is_found_in_parts_of_a_segment_as_in_the_whole() {
    let mut image = Image::new(16 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    for n in 0..9_u8 {
        image.unit(&mut writer, &[put(&[n], b"x")], u64::from(n));
    }
    let (header, file) = (image.header(1), &image.files[&1]);
    let mut proofs = 0;
    for lsn in 0..12 {
        let whole = scan::proof_of_durability(&identity(), &header, file, 0, lsn);
        for blocks in [1, 2, 5, 16] {
            let part_bytes = blocks * BLOCK_BYTES;
            let in_parts = file.chunks(part_bytes).enumerate().find_map(|(n, part)| {
                let offset = (n * part_bytes) as u32;
                scan::proof_in_part(&identity(), &header, part, offset, lsn)
            });
            assert_eq!(in_parts, whole, "lsn {lsn} in parts of {blocks} blocks");
        }
        proofs += usize::from(whole.is_some());
    }
    assert_eq!(proofs, 9, "marks go up to 8");
}

#[test]
fn a_recycled_file_shows_nothing_of_its_earlier_life() {
    let mut image = Image::new(4 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    for n in 0..3_u8 {
        image.unit(&mut writer, &[put(&[n], b"old")], 0);
    }
    let mut file = image.files[&1].clone();
    let header = SegmentHeader {
        segment: 5,
        generation: 2,
        ..image.header(1)
    };
    header.encode(&mut file);
    let at = ChainPoint {
        segment: 5,
        ..ChainPoint::genesis(1)
    };
    let (stopped, stop) = scan::walk(&identity(), &header, &file, at, &mut |_, _, _| {
        panic!("a record of an earlier life")
    });
    assert_eq!((stopped, stop), (at, Stop::NoBatch));
    assert_eq!(scan::find_batch(&identity(), &header, &file, 0), None);
    assert_eq!(
        scan::proof_of_durability(&identity(), &header, &file, 0, 0),
        None
    );
    // Nor under the right number and the wrong life, nor with another log's header.
    let header = SegmentHeader {
        generation: 2,
        ..image.header(1)
    };
    assert_eq!(scan::find_batch(&identity(), &header, &file, 0), None);
    let other = LogIdentity {
        timeline: 2,
        ..identity()
    };
    let (_, stop) = scan::walk(
        &other,
        &image.header(1),
        &image.files[&1],
        ChainPoint::genesis(1),
        &mut |_, _, _| panic!(),
    );
    assert!(matches!(stop, Stop::Invalid(_)));
}

#[test]
fn what_a_cut_left_behind_never_comes_back() {
    let mut image = Image::new(32 * BLOCK_BYTES);
    let mut first = image.writer(1, ChainPoint::genesis(1));
    image.unit(&mut first, &[put(b"kept", b"")], 0);
    let mut in_flight: Vec<Batch> = Vec::new();
    for n in 0..4_u8 {
        in_flight.append(&mut image.seal_unit(&mut first, &[put(&[n], b"in flight")], 1).1);
    }
    // The first of four in flight is lost, the others landed.
    for batch in &in_flight[1..] {
        image.write(batch);
    }
    let cut = image.recover(ChainPoint::genesis(1), 1);
    assert_eq!((cut.decision, cut.seen.len()), (Decision::Cut, 1));

    // The next writer covers them block by block; at every step only its own batches show.
    let mut second = image.writer(2, cut.at);
    for n in 1..=4_usize {
        let durable = second.next_lsn() - 1;
        image.unit(&mut second, &[put(&[n as u8], b"new")], durable);
        let recovered = image.recover(ChainPoint::genesis(1), durable);
        assert_eq!(recovered.decision, Decision::Cut, "step {n}");
        assert_eq!(recovered.seen.len(), 1 + n);
        assert!(
            recovered.seen[1..]
                .iter()
                .all(|seen| seen.record.payload == b"new" && seen.batch.epoch == 2)
        );
        if n < 4 {
            assert!(
                matches!(
                    recovered.stop,
                    Stop::Unchained {
                        epoch: 1,
                        term: Term::Older,
                        ..
                    }
                ),
                "step {n}"
            );
        }
    }
    // And the lost one, turning up late, is not the batch that the log goes on with now.
    image.write(&in_flight[0]);
    let late = image.recover(ChainPoint::genesis(1), 5);
    assert_eq!((late.seen.len(), late.decision), (2, Decision::Damage));
}

#[test]
fn a_newer_terms_batch_behind_a_gap_is_a_torn_tail_unless_proven() {
    let mut image = Image::new(32 * BLOCK_BYTES);
    let mut first = image.writer(1, ChainPoint::genesis(1));
    image.unit(&mut first, &[put(b"kept", b"")], 0);
    // Half a unit of term 1: chained, never committed.
    image.open(&mut first, 20_000);
    first.append(&put(b"half", b"a unit").as_new());
    let half = first.seal(false, 1, 0).unwrap();
    image.write(&half);
    let cut = image.recover(ChainPoint::genesis(1), 1);
    assert_eq!((cut.decision, cut.at.offset), (Decision::Cut, half.offset));
    // Term 2 has two batches in flight from the cut on; only the second lands, behind the half unit.
    let mut second = image.writer(2, cut.at);
    let (_, lost) = image.seal_unit(&mut second, &[put(b"lost", b"")], 1);
    let (_, landed) = image.seal_unit(&mut second, &[put(b"landed", b"")], 1);
    assert_eq!(lost[0].bytes, half.bytes);
    image.write(&landed[0]);
    let torn = image.recover(ChainPoint::genesis(1), 1);
    assert!(matches!(
        torn.stop,
        Stop::Unchained {
            epoch: 2,
            term: Term::Newer,
            ..
        }
    ));
    assert_eq!((torn.decision, torn.at), (Decision::Cut, cut.at));
    // Its mark says that lsn 2 had been durable: then it is damage.
    let (_, later) = image.seal_unit(&mut second, &[put(b"later", b"")], 2);
    image.write(&later[0]);
    assert_eq!(
        image.recover(ChainPoint::genesis(1), 1).decision,
        Decision::Damage
    );
}

#[test]
fn damage_in_one_segment_is_proven_by_the_next() {
    let mut image = Image::new(3 * BLOCK_BYTES);
    let mut writer = image.writer(1, ChainPoint::genesis(1));
    for n in 0..4_u8 {
        let durable = writer.next_lsn() - 1;
        image.unit(&mut writer, &[put(&[n], b"x")], durable);
    }
    let at = 2 * BLOCK_BYTES + 200;
    image.files.get_mut(&1).unwrap()[at] ^= 1;
    let recovered = image.recover(ChainPoint::genesis(1), 0);
    assert_eq!(
        (
            recovered.decision,
            recovered.at.next_lsn,
            recovered.at.offset
        ),
        (Decision::Damage, 2, 8192)
    );
    // A header that does not read is damage just so.
    image.files.get_mut(&1).unwrap()[at] ^= 1;
    image.files.get_mut(&1).unwrap()[3] ^= 1;
    let recovered = image.recover(ChainPoint::genesis(1), 0);
    assert_eq!(
        (recovered.decision, recovered.seen.len()),
        (Decision::Damage, 0)
    );
}
