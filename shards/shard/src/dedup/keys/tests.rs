//! What a client with an `Idempotency-Key` may rely on, and what the bounds cost.

use super::*;
use proptest::prelude::*;

fn answer(first_lsn: u64) -> Answer {
    Answer {
        first_lsn,
        records: 1,
        versions: Versions::from([3].as_slice()),
    }
}
fn keys(keys_max: usize) -> IdempotencyKeys {
    IdempotencyKeys::new(KeyLimits {
        keys_max,
        bytes_max: usize::MAX >> 1,
    })
}
const S: u64 = 1_000_000;

#[test]
fn a_repeat_gets_the_first_answer_until_its_window_has_passed() {
    let mut keys = keys(10);
    keys.record(7, 70, answer(1), 5 * S, 10);
    assert_eq!(keys.check(7, 70, 5 * S), KeyCheck::Repeat(&answer(1)));
    assert_eq!(keys.check(7, 70, 15 * S - 1), KeyCheck::Repeat(&answer(1)));
    assert_eq!(keys.check(7, 70, 15 * S), KeyCheck::New);
    assert_eq!(keys.check(8, 70, 5 * S), KeyCheck::New);
    keys.record(7, 71, answer(9), 15 * S, 10);
    assert_eq!(keys.check(7, 71, 15 * S), KeyCheck::Repeat(&answer(9)));
    assert_eq!((keys.len(), keys.expired(), keys.evicted()), (1, 1, 0));
}

#[test]
fn another_request_under_the_key_is_a_mismatch() {
    let mut keys = keys(10);
    keys.record(7, 70, answer(1), 0, 10);
    assert_eq!(keys.check(7, 71, 0), KeyCheck::Mismatch);
    assert_eq!(
        keys.check(7, 0, 0),
        KeyCheck::Repeat(&answer(1)),
        "unknown matches any"
    );
    keys.record(8, 0, answer(2), 0, 10);
    assert_eq!(
        keys.check(8, 71, 0),
        KeyCheck::Repeat(&answer(2)),
        "unknown matches any"
    );
}

#[test]
fn many_versions_are_not_kept() {
    let mut keys = keys(10);
    let many = Answer {
        first_lsn: 4,
        records: 5,
        versions: Versions::from([1, 1, 1, 1, 1].as_slice()),
    };
    keys.record(7, 70, many.clone(), 0, 10);
    assert_eq!(many.last_lsn(), 8);
    assert_eq!(
        keys.check(7, 70, 0),
        KeyCheck::Repeat(&Answer {
            versions: Versions::NONE,
            ..many
        })
    );
}

#[test]
fn the_oldest_goes_when_the_bound_is_reached_and_is_counted() {
    let mut keys = keys(3);
    for digest in 1..=4u64 {
        keys.record(u128::from(digest), 1, answer(digest), 0, 10);
    }
    assert_eq!(keys.check(1, 1, 0), KeyCheck::New);
    assert_eq!(keys.check(2, 1, 0), KeyCheck::Repeat(&answer(2)));
    assert_eq!((keys.len(), keys.evicted(), keys.expired()), (3, 1, 0));
}

#[test]
fn a_long_window_in_front_does_not_let_a_short_one_count_longer() {
    let mut keys = keys(10);
    keys.record(1, 1, answer(1), 0, 100);
    keys.record(2, 1, answer(2), 0, 10);
    keys.expire(50 * S);
    assert_eq!(keys.check(1, 1, 50 * S), KeyCheck::Repeat(&answer(1)));
    assert_eq!(keys.check(2, 1, 50 * S), KeyCheck::New);
    keys.record(2, 1, answer(3), 50 * S, 100);
    keys.expire(100 * S);
    assert_eq!(
        keys.check(2, 1, 100 * S),
        KeyCheck::Repeat(&answer(3)),
        "the dead entry took nothing with it"
    );
    assert_eq!((keys.len(), keys.next - keys.first), (1, 1));
}

#[test]
fn memory_stays_within_what_was_reserved() {
    let limits = KeyLimits {
        keys_max: usize::MAX >> 1,
        bytes_max: 100_000,
    };
    let mut keys = IdempotencyKeys::new(limits);
    assert!(
        keys.bytes_max() <= limits.bytes_max && keys.bytes_max() > limits.bytes_max / 2,
        "{}",
        keys.bytes_max()
    );
    let (ring, table) = (keys.ring.capacity(), keys.table.capacity());
    for lsn in 1..10_000u64 {
        keys.record(u128::from(lsn) << 64 | 1, 1, answer(lsn), lsn, 100);
        assert!(keys.bytes() <= keys.bytes_max());
    }
    assert_eq!((keys.ring.capacity(), keys.table.capacity()), (ring, table));
    assert_eq!(keys.len(), keys.keys_max());
}

#[test]
fn bounds_too_small_for_one_key_remember_none_and_say_so() {
    let mut keys = IdempotencyKeys::new(KeyLimits {
        keys_max: 10,
        bytes_max: 5,
    });
    keys.record(1, 1, answer(1), 0, 10);
    assert_eq!(
        (keys.check(1, 1, 0), keys.evicted(), keys.bytes_max()),
        (KeyCheck::New, 1, 0)
    );
}

#[test]
fn import_refuses_every_cut() {
    let mut source = keys(10);
    source.record(1, 1, answer(1), 0, 10);
    let mut chunk = Vec::new();
    assert_eq!(source.export(0, 1000, &mut chunk), None);
    for length in 0..chunk.len() {
        assert_eq!(
            keys(10).import(&chunk[..length]),
            Err(ChunkError::Short),
            "cut at {length}"
        );
    }
}

proptest! {
    /// A list of what was said, oldest first, is all that the structure is.
    #[test]
    fn behaves_as_a_list(operations in prop::collection::vec((0u8..4, 0u128..12, 0u64..3, 1u32..20), 1..200)) {
        const KEYS: usize = 5;
        let mut keys = keys(KEYS);
        let mut model: Vec<Entry> = Vec::new(); // dead entries included, as in the ring
        let mut now = 0;
        for (number, (operation, digest, fingerprint, seconds)) in operations.into_iter().enumerate() {
            let digest = digest * 8; // few homes, so that searches run into each other
            let lsn = number as u64 + 1;
            let live = model.iter().rev().find(|e| e.digest == digest).filter(|e| e.expires_us > now).cloned();
            let wanted = match &live {
                None => KeyCheck::New,
                Some(e) if e.fingerprint != fingerprint && e.fingerprint != 0 && fingerprint != 0 => KeyCheck::Mismatch,
                Some(e) => KeyCheck::Repeat(&e.answer),
            };
            prop_assert_eq!(&keys.check(digest, fingerprint, now), &wanted);
            if operation == 0 {
                now += u64::from(seconds) * S / 2;
            } else if wanted == KeyCheck::New {
                keys.record(digest, fingerprint, answer(lsn), now, seconds);
                while model.first().is_some_and(|e| e.expires_us <= now) { model.remove(0); }
                if model.len() == KEYS { model.remove(0); }
                model.push(Entry { digest, fingerprint, expires_us: now + u64::from(seconds) * S, answer: answer(lsn) });
            }
        }
    }

    /// Checkpoint in slices while requests go on, then replay from where the log stood at the first slice: the same answers as never stopping.
    #[test]
    fn checkpoint_and_replay_end_where_the_first_run_was(uses in prop::collection::vec((0u128..40, 0u64..5), 1..120), start in 0usize..120, slice in 1usize..200) {
        let mut run = keys(200);
        let start = start.min(uses.len());
        let mut chunks = Vec::new();
        let mut cursor = Some(0);
        let mut now = 0;
        let mut log = Vec::new();
        for (number, (digest, pause)) in uses.iter().enumerate() {
            now += pause * S;
            if run.check(*digest, 0, now) == KeyCheck::New {
                log.push((number, *digest, answer(number as u64 + 1), now));
                run.record(*digest, 1, answer(number as u64 + 1), now, 60);
            }
            if number >= start && let Some(at) = cursor {
                let mut chunk = Vec::new();
                cursor = run.export(at, slice, &mut chunk);
                chunks.push(chunk);
            }
        }
        while let Some(at) = cursor {
            let mut chunk = Vec::new();
            cursor = run.export(at, slice, &mut chunk);
            chunks.push(chunk);
        }
        let mut restarted = keys(200);
        for chunk in &chunks { restarted.import(chunk).unwrap(); }
        for (number, digest, answer, at) in log {
            if number >= start { restarted.record(digest, 1, answer, at, 60); }
        }
        for digest in 0..40 {
            prop_assert_eq!(restarted.check(digest, 1, now), run.check(digest, 1, now));
        }
    }
}
