//! Old logs as their records say them, and what becomes of them.

use wal::record::{Kind, RecordView};
use wal::scan;
use wal::segment::SegmentHeader;
use wal::{Link, Location, extension};

use super::*;
use crate::dedup::{
    Carried, CarriedKey, CarriedSequence, IdempotencyExtension, Item, ProducerExtension,
};
use crate::store::new_superblock;

const POLICY: &[u8] = br#"{"history_depth":2}"#;

fn record<'a>(lsn: u64, key: &'a [u8], timestamp_us: u64, extensions: &'a [u8]) -> RecordView<'a> {
    RecordView {
        lsn,
        kind: Kind::Put,
        content_type: 0,
        stream: 1,
        version: 1,
        timestamp_us,
        previous: Link::default(),
        key,
        payload: b"payload",
        extensions,
        bytes: 64,
    }
}

fn definition<'a>(name: &'a [u8], policy: &'a [u8]) -> RecordView<'a> {
    RecordView {
        kind: Kind::StreamDefinition,
        payload: policy,
        ..record(1, name, 1, &[])
    }
}

fn once(window_seconds: u32) -> Vec<u8> {
    let mut out = Vec::new();
    let key = IdempotencyExtension {
        digest: 9,
        fingerprint: 90,
        records: 1,
        window_seconds,
    };
    extension::push(&mut out, extension::IDEMPOTENCY, &key.encode());
    out
}

fn produced(sequence: u64, fingerprint: u64) -> Vec<u8> {
    let mut out = Vec::new();
    let producer = ProducerExtension {
        id: 7,
        sequence,
        fingerprint,
        records: 1,
    };
    extension::push(&mut out, extension::PRODUCER, &producer.encode());
    out
}

/// Old logs of equal slot ranges, each with a stream and these records; merged into `shards`.
fn merged(logs: &[Vec<RecordView<'_>>], shards: u32) -> (Merge, Superblock) {
    let old = new_superblock(logs.len() as u32, 1 << 20);
    let new = superblock_with(&old, shards, 1);
    let timeline = old.logs[0].timeline + 1;
    assert!(new.logs.iter().all(|log| log.timeline == timeline));
    let mut sources = Vec::new();
    for (log, records) in old.logs.iter().zip(logs) {
        let slots = (log.slot_first, log.slot_last);
        let mut source = Source::new(
            log.number,
            slots,
            old.digest_key,
            (logs.len() as u32, shards),
        );
        for record in records {
            source.record(Location::default(), record).unwrap();
        }
        source.read_once(0);
        sources.push(source);
    }
    let mut merge = Merge::new(sources, &new).unwrap();
    for (at, records) in logs.iter().enumerate() {
        for record in records.iter().filter(|record| record.kind == Kind::Put) {
            merge.take(at, record.lsn, record).unwrap();
        }
    }
    merge.finish();
    (merge, new)
}

/// What the notes of a new log say, and its puts as (lsn, key).
fn read(target: &mut Target) -> (Carried, Vec<(u64, Vec<u8>)>) {
    let identity = target.identity();
    let mut bytes = vec![0; 1 << 20];
    for write in target.take_writes() {
        let at = write.offset as usize;
        bytes[at..at + write.bytes.len()].copy_from_slice(&write.bytes);
    }
    let header = SegmentHeader {
        identity,
        segment: 1,
        generation: 1,
        segment_bytes: 1 << 20,
    };
    let (mut carried, mut puts) = (Carried::default(), Vec::new());
    let from = wal::chain::ChainPoint::genesis(1);
    scan::walk(
        &identity,
        &header,
        &bytes,
        from,
        &mut |_, _, record| match record.kind {
            Kind::Note => carried.import(record.payload, &mut |_, _, _| ()).unwrap(),
            Kind::Put => puts.push((record.lsn, record.key.to_vec())),
            _ => {}
        },
    );
    (carried, puts)
}

/// Keys of the lower and the upper half of the slots.
fn keys() -> [Vec<u8>; 2] {
    let key = |upper: bool| {
        (0..)
            .map(|i| format!("k{i}").into_bytes())
            .find(|key| (slot::slot_of(key) >= 8192) == upper)
            .unwrap()
    };
    [key(false), key(true)]
}

#[test]
fn a_request_that_one_log_stored_and_another_did_not_is_neither_a_repeat_nor_new() {
    let [low, high] = keys();
    let once = once(100);
    let stored = vec![definition(b"s", POLICY), record(2, &low, 10, &once)];
    let other = vec![definition(b"s", POLICY), record(2, &high, 11, &[])];
    let (mut merge, _) = merged(&[stored, other], 1);
    let (carried, puts) = read(&mut merge.targets()[0]);
    let check =
        |keys: &[&[u8]]| carried.check_key(9, 90, 20, keys.iter().map(|k| slot::slot_of(k)));
    let place = puts
        .iter()
        .find(|(_, key)| *key == low)
        .map(|(lsn, _)| *lsn);
    match check(&[&low]) {
        CarriedKey::Repeat(answer) => assert_eq!(Some(answer.first_lsn), place),
        other => panic!("{other:?}"),
    }
    assert_eq!(check(&[&high]), CarriedKey::Unknown);
    assert_eq!(check(&[&low, &high]), CarriedKey::InPart);
}

#[test]
fn one_sequence_of_two_logs_is_known_in_both_meanings_and_new_ones_lie_above_all() {
    let [low, high] = keys();
    let (three, four, other) = (produced(3, 30), produced(4, 40), produced(3, 31));
    let first = vec![
        definition(b"s", POLICY),
        record(2, &low, 10, &three),
        record(3, &low, 11, &four),
    ];
    let second = vec![definition(b"s", POLICY), record(2, &high, 12, &other)];
    let (mut merge, _) = merged(&[first, second], 1);
    let (carried, _) = read(&mut merge.targets()[0]);
    let check = |sequence, fingerprint| carried.check_sequence(7, sequence, fingerprint, 20);
    assert!(matches!(check(3, 30), CarriedSequence::Repeat(_)));
    assert!(matches!(check(3, 31), CarriedSequence::Repeat(_)));
    assert_eq!(check(2, 20), CarriedSequence::Below(4));
    assert_eq!(check(5, 50), CarriedSequence::Unknown);
}

#[test]
fn what_is_over_is_not_left_behind() {
    let [low, high] = keys();
    let once = once(1);
    let late = vec![definition(b"s", POLICY), record(2, &high, 5_000_000, &[])];
    let early = vec![definition(b"s", POLICY), record(2, &low, 10, &once)];
    let (mut merge, _) = merged(&[early, late], 3);
    for target in merge.targets() {
        let (carried, _) = read(target);
        let keys = carried.items().iter();
        assert_eq!(
            keys.filter(|item| matches!(item, Item::Key { .. })).count(),
            0
        );
    }
}

#[test]
fn what_a_limit_in_bytes_has_ended_stays_ended() {
    // Records of 64 bytes: a limit of 640 keeps ten of them, and the step that it is counted in.
    let policy = br#"{"max_bytes":640}"#;
    let names: Vec<Vec<u8>> = (0..40).map(|i| format!("k{i:02}").into_bytes()).collect();
    let mut log = vec![definition(b"s", policy)];
    log.extend(
        (2..)
            .zip(&names)
            .map(|(lsn, key)| record(lsn, key, lsn, &[])),
    );
    // No limit any more: what it had ended does not come back.
    let mut freed = log.clone();
    freed.push(RecordView {
        lsn: 42,
        ..definition(b"s", b"{}")
    });
    for log in [log, freed] {
        let (mut merge, _) = merged(std::slice::from_ref(&log), 3);
        let read: Vec<_> = merge.targets().iter_mut().map(read).collect();
        let mut left: Vec<Vec<u8>> = read
            .iter()
            .flat_map(|(_, puts)| puts.iter().map(|(_, key)| key.clone()))
            .collect();
        left.sort();
        assert!((10..=11).contains(&left.len()), "{} are left", left.len());
        assert_eq!(left, names[names.len() - left.len()..]);
        let versions = read.iter().flat_map(|(carried, _)| carried.items());
        let versions = versions.filter(|item| matches!(item, Item::Version { .. }));
        // Every new log gets them all: which of them has the key cannot be told from its digest.
        assert_eq!(versions.count(), 3 * (names.len() - left.len()));
    }
}

#[test]
fn every_new_log_knows_every_stream_with_the_policy_that_was_set() {
    let [low, high] = keys();
    let first = vec![definition(b"met", b"{}"), record(2, &low, 10, &[])];
    let second = vec![definition(b"met", POLICY), record(2, &high, 11, &[])];
    let (merge, new) = merged(&[first, second], 3);
    assert_eq!(merge.streams().len(), 1);
    assert_eq!(merge.streams()[0].policy.history_depth, Some(2));
    let numbers: Vec<u32> = new.logs.iter().map(|log| log.number).collect();
    assert_eq!((numbers, new.map_epoch), (vec![2, 3, 4], 2));
    let slots: Vec<_> = new
        .logs
        .iter()
        .map(|l| (l.slot_first, l.slot_last))
        .collect();
    assert_eq!(slots, [(0, 5461), (5462, 10922), (10923, 16383)]);
}
