//! What a producer may rely on, and what the bounds cost.

use super::*;
use crate::dedup::{ChunkError, Versions};
use proptest::prelude::*;
use std::collections::BTreeMap;

const S: u64 = 1_000_000;

fn answer(first_lsn: u64) -> Answer {
    Answer {
        first_lsn,
        records: 1,
        versions: Versions::from([1].as_slice()),
    }
}

fn producers(producers_max: usize, bytes_max: usize) -> Producers {
    Producers::new(ProducerLimits {
        producers_max,
        bytes_max,
        window_seconds: 100,
    })
}

fn plenty() -> Producers {
    producers(1000, usize::MAX)
}

/// Sum over all producers, to hold the running total against.
fn bytes_counted(producers: &Producers) -> usize {
    producers
        .slots
        .iter()
        .map(|(_, producer)| producer.bytes())
        .sum()
}

#[test]
fn sequences_count_up_by_one_and_repeats_get_their_answer() {
    let mut p = plenty();
    assert_eq!(p.check(1, 1, 11), ProducerCheck::New);
    p.record(1, 1, 11, answer(100), 0);
    assert_eq!(p.check(1, 1, 11), ProducerCheck::Repeat(&answer(100)));
    assert_eq!(p.check(1, 2, 12), ProducerCheck::New);
    assert_eq!(p.check(1, 3, 13), ProducerCheck::OutOfOrder { expected: 2 });
    p.record(1, 2, 12, answer(101), 0);
    assert_eq!(p.check(1, 1, 11), ProducerCheck::Repeat(&answer(100)));
    assert_eq!(p.check(1, 2, 12), ProducerCheck::Repeat(&answer(101)));
    assert_eq!(
        p.check(2, 2, 12),
        ProducerCheck::New,
        "another producer has its own order"
    );
}

#[test]
fn an_unknown_producer_starts_anywhere_but_at_nothing() {
    let mut p = plenty();
    assert_eq!(p.check(1, 0, 0), ProducerCheck::OutOfOrder { expected: 1 });
    assert_eq!(p.check(1, 77, 0), ProducerCheck::New);
    p.record(1, 77, 0, answer(1), 0);
    assert_eq!(
        p.check(1, 76, 0),
        ProducerCheck::Forgotten,
        "it may have been done in an earlier life"
    );
    assert_eq!(p.check(1, 0, 0), ProducerCheck::Forgotten);
    assert_eq!(p.check(1, 78, 0), ProducerCheck::New);
}

#[test]
fn a_sequence_used_for_something_else_is_a_mismatch() {
    let mut p = plenty();
    p.record(1, 1, 11, answer(100), 0);
    p.record(1, 2, 0, answer(101), 0);
    assert_eq!(p.check(1, 1, 12), ProducerCheck::Mismatch);
    assert_eq!(
        p.check(1, 1, 0),
        ProducerCheck::Repeat(&answer(100)),
        "unknown matches any"
    );
    assert_eq!(
        p.check(1, 2, 12),
        ProducerCheck::Repeat(&answer(101)),
        "unknown matches any"
    );
}

#[test]
fn the_window_is_as_long_as_it_says() {
    let mut p = plenty();
    let window = WINDOW_SEQUENCES as u64;
    for sequence in 1..=window + 1 {
        p.record(1, sequence, sequence, answer(sequence), 0);
    }
    assert_eq!(p.check(1, 1, 1), ProducerCheck::Forgotten);
    assert_eq!(p.check(1, 2, 2), ProducerCheck::Repeat(&answer(2)));
    assert_eq!(
        p.slots[0].window.capacity(),
        WINDOW_SEQUENCES,
        "it does not grow beyond"
    );
    assert_eq!(p.bytes(), bytes_counted(&p));
}

#[test]
fn silence_longer_than_the_window_is_forgotten_by_log_time() {
    let mut p = plenty();
    p.record(1, 1, 1, answer(1), 10 * S);
    p.record(2, 1, 1, answer(2), 50 * S);
    p.expire(110 * S - 1);
    assert_eq!(p.len(), 2);
    p.record(2, 2, 1, answer(3), 110 * S);
    assert_eq!(p.check(1, 1, 1), ProducerCheck::New);
    assert_eq!(
        p.check(2, 1, 1),
        ProducerCheck::Repeat(&answer(2)),
        "an active producer keeps its window"
    );
    assert_eq!((p.len(), p.expired(), p.evicted()), (1, 1, 0));
    p.expire(1000 * S);
    assert_eq!((p.len(), p.bytes()), (0, 0));
    assert!(p.is_empty());
}

#[test]
fn the_least_recently_used_makes_room_and_is_counted() {
    let mut p = producers(2, usize::MAX);
    p.record(1, 1, 1, answer(1), S);
    p.record(2, 1, 1, answer(2), S);
    p.record(1, 2, 1, answer(3), S);
    p.record(3, 1, 1, answer(4), S);
    assert_eq!(
        p.check(2, 1, 1),
        ProducerCheck::New,
        "producer 2 was used least recently"
    );
    assert_eq!(p.check(1, 1, 1), ProducerCheck::Repeat(&answer(1)));
    assert_eq!((p.len(), p.evicted()), (2, 1));
}

#[test]
fn bytes_are_bounded_by_evicting_others_and_then_by_own_old_answers() {
    let large = |lsn| Answer {
        first_lsn: lsn,
        records: 1000,
        versions: Versions::from(vec![3; 1000].as_slice()),
    };
    let mut p = producers(100, 40_000);
    for sequence in 1..=50 {
        p.record(1, sequence, 1, answer(sequence), 0);
    }
    for sequence in 1..=50 {
        p.record(2, sequence, 1, large(sequence), 0);
        assert!(p.bytes() <= p.bytes_max(), "{} at {sequence}", p.bytes());
        assert_eq!(p.bytes(), bytes_counted(&p));
    }
    assert_eq!((p.len(), p.evicted()), (1, 1));
    assert_eq!(p.check(2, 50, 1), ProducerCheck::Repeat(&large(50)));
    assert_eq!(p.check(2, 1, 1), ProducerCheck::Forgotten);
}

#[test]
fn an_answer_with_more_versions_than_a_chunk_holds_goes_out_in_parts() {
    let mut p = plenty();
    let versions: Vec<u32> = (0..120_000).collect();
    let large = Answer {
        first_lsn: 9,
        records: 120_000,
        versions: Versions::from(versions.as_slice()),
    };
    p.record(1, 1, 1, answer(1), 0);
    p.record(1, 2, 1, large.clone(), 0);
    p.record(1, 3, 1, answer(7), 0);
    let (mut restored, mut cursor, mut chunks, mut chunk) =
        (plenty(), Some(ProducersCursor::default()), 0, Vec::new());
    while let Some(at) = cursor {
        cursor = p.export(at, usize::MAX, &mut chunk);
        assert!(chunk.len() <= super::super::chunk::CHUNK_BYTES_MAX);
        restored.import(&chunk).unwrap();
        chunks += 1;
    }
    assert_eq!(chunks, 3);
    assert_eq!(restored.check(1, 2, 1), ProducerCheck::Repeat(&large));
    assert_eq!(restored.check(1, 3, 1), ProducerCheck::Repeat(&answer(7)));
    assert_eq!(restored.bytes(), bytes_counted(&restored));
}

#[test]
fn an_answer_whose_versions_are_not_all_there_is_not_given() {
    let mut p = plenty();
    let half = Answer {
        records: 2,
        ..answer(1)
    };
    p.record(1, 1, 1, half, 0);
    assert_eq!(p.check(1, 1, 1), ProducerCheck::Forgotten);
}

#[test]
fn import_refuses_every_cut_and_what_makes_no_sense() {
    let mut p = plenty();
    p.record(1, 5, 1, answer(1), 0);
    let mut chunk = Vec::new();
    assert_eq!(p.export(ProducersCursor::default(), 1000, &mut chunk), None);
    for length in 0..chunk.len() {
        assert_eq!(
            plenty().import(&chunk[..length]),
            Err(ChunkError::Short),
            "cut at {length}"
        );
    }
    chunk[8 + 16] = 99; // forgotten_through above last_sequence
    assert!(matches!(
        plenty().import(&chunk),
        Err(ChunkError::Malformed(_))
    ));
}

#[test]
fn import_keeps_smaller_bounds_and_the_order_of_last_use() {
    let mut p = plenty();
    for id in 0..10 {
        p.record(id, 1, 1, answer(1), (20 - id as u64) * S);
    }
    let mut chunk = Vec::new();
    assert_eq!(
        p.export(ProducersCursor::default(), usize::MAX, &mut chunk),
        None
    );
    let mut small = producers(3, usize::MAX);
    small.import(&chunk).unwrap();
    assert_eq!((small.len(), small.evicted()), (3, 7));
    assert_eq!(
        small.check(0, 1, 1),
        ProducerCheck::Repeat(&answer(1)),
        "the most recently used stays"
    );
    assert_eq!(small.check(9, 1, 1), ProducerCheck::New);
    assert_eq!(small.bytes(), bytes_counted(&small));
}

proptest! {
    /// Against a map of all that was ever answered.
    #[test]
    fn never_a_wrong_answer_and_never_two_effects(requests in prop::collection::vec((0u128..6, 0u64..8, 0u64..3), 1..400)) {
        let mut p = producers(4, 12_000);
        let mut done: BTreeMap<(u128, u64), (u64, u64)> = BTreeMap::new();
        let mut last: BTreeMap<u128, u64> = BTreeMap::new();
        for (number, (id, back, fingerprint)) in requests.into_iter().enumerate() {
            let lsn = number as u64 + 1;
            let sequence = (last.get(&id).copied().unwrap_or(0) + 3).saturating_sub(back);
            match p.check(id, sequence, fingerprint) {
                ProducerCheck::New => {
                    if !p.by_id.contains_key(&id) {
                        done.retain(|(of, _), _| *of != id); // evicted: a stranger, whose earlier life nobody remembers
                    }
                    prop_assert!(!done.contains_key(&(id, sequence)), "{id}/{sequence} would be done twice");
                    p.record(id, sequence, fingerprint, answer(lsn), lsn);
                    done.insert((id, sequence), (lsn, fingerprint));
                    let end = last.entry(id).or_default();
                    *end = (*end).max(sequence);
                }
                ProducerCheck::Repeat(given) => prop_assert_eq!(given.first_lsn, done[&(id, sequence)].0),
                ProducerCheck::Mismatch => prop_assert_ne!(fingerprint, done[&(id, sequence)].1),
                ProducerCheck::OutOfOrder { expected } => prop_assert_ne!(sequence, expected),
                ProducerCheck::Forgotten => (),
            }
            prop_assert!(p.len() <= 4);
            prop_assert_eq!(p.bytes(), bytes_counted(&p));
            prop_assert_eq!(p.by_id.len(), p.slots.len());
        }
    }

    /// Checkpoint in slices while requests go on, then replay from where the log stood at the first slice: the same answers as never stopping.
    #[test]
    fn checkpoint_and_replay_end_where_the_first_run_was(requests in prop::collection::vec((0u128..5, 1usize..9), 1..300), start in 0usize..300, slice in 1usize..900) {
        let mut run = producers(10, usize::MAX);
        let start = start.min(requests.len());
        let (mut chunks, mut cursor, mut log) = (Vec::new(), Some(ProducersCursor::default()), Vec::new());
        let mut next: BTreeMap<u128, u64> = BTreeMap::new();
        let mut export = |run: &Producers, cursor: &mut Option<ProducersCursor>| {
            let mut chunk = Vec::new();
            if let Some(at) = *cursor {
                *cursor = run.export(at, slice, &mut chunk);
                chunks.push(chunk);
            }
        };
        for (number, (id, records)) in requests.iter().enumerate() {
            let sequence = next.entry(*id).or_default();
            *sequence += 1;
            let lsn = number as u64 * 10;
            let versions: Vec<u32> = (0..*records as u32).collect();
            let answer = Answer { first_lsn: lsn, records: *records as u32, versions: Versions::from(versions.as_slice()) };
            log.push((*id, *sequence, answer.clone(), lsn));
            run.record(*id, *sequence, lsn, answer, lsn);
            if number >= start { export(&run, &mut cursor); }
        }
        while cursor.is_some() { export(&run, &mut cursor); }
        let mut restarted = producers(10, usize::MAX);
        for chunk in &chunks { restarted.import(chunk).unwrap(); }
        for (id, sequence, answer, lsn) in log.drain(start..) { restarted.record(id, sequence, lsn, answer, lsn); }
        prop_assert_eq!(restarted.bytes(), bytes_counted(&restarted));
        for (id, last) in next {
            for sequence in 0..=last + 2 {
                prop_assert_eq!(restarted.check(id, sequence, 0), run.check(id, sequence, 0), "{}/{}", id, sequence);
            }
        }
    }
}
