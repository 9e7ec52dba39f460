//! Chunks there and back, and what a retry is told.

use super::*;

fn answer(first_lsn: u64, versions: &[u32]) -> Answer {
    Answer {
        first_lsn,
        records: versions.len() as u32,
        versions: versions.into(),
    }
}

fn items() -> Vec<Item> {
    let producer = Item::Producer {
        id: 7,
        floor: 9,
        expires_us: 1000,
    };
    let request = |sequence, fingerprint, lsn, versions: &[u32]| Item::Request {
        id: 7,
        sequence,
        fingerprint,
        answer: answer(lsn, versions),
    };
    let key = |fingerprint, slots: &[Slots]| Item::Key {
        digest: 5,
        fingerprint,
        expires_us: 1000,
        answer: answer(20, &[4]),
        slots: slots.into(),
    };
    let many: Vec<u32> = (0..90_000).collect();
    vec![
        producer,
        request(3, 30, 11, &[1]),
        request(3, 31, 12, &[2]),
        request(9, 90, 13, &many),
        key(50, &[(0, 99)]),
        key(50, &[(200, 299)]),
        Item::Alias {
            origin: 2,
            stream: 1,
            digested: 6,
        },
        Item::Version {
            origin: 2,
            digest: DigestKey::new([1; 16]).digest(6, b"gone"),
            version: 8,
        },
    ]
}

fn imported(bytes_max: usize, times: usize) -> Carried {
    let mut carried = Carried::default();
    for _ in 0..times {
        let (mut cursor, mut chunk) = (Some(CarriedCursor::default()), Vec::new());
        while let Some(at) = cursor {
            cursor = export(&items(), at, bytes_max, &mut chunk);
            carried.import(&chunk, &mut |_, _, _| ()).unwrap();
        }
    }
    carried
}

#[test]
fn what_was_exported_is_imported_whatever_the_chunks_and_however_often() {
    for (bytes_max, times) in [(usize::MAX, 1), (100, 1), (usize::MAX, 2), (1000, 3)] {
        assert_eq!(imported(bytes_max, times).items(), items(), "{bytes_max}");
    }
    let again = imported(1000, 1);
    let mut chunk = Vec::new();
    assert!(
        again
            .export(CarriedCursor::default(), 1000, &mut chunk)
            .is_some()
    );
}

#[test]
fn sequences_of_two_logs_are_told_apart_by_what_they_asked() {
    let carried = imported(usize::MAX, 1);
    let check = |sequence, fingerprint| carried.check_sequence(7, sequence, fingerprint, 999);
    assert_eq!(check(3, 30), CarriedSequence::Repeat(&answer(11, &[1])));
    assert_eq!(check(3, 31), CarriedSequence::Repeat(&answer(12, &[2])));
    assert_eq!(check(3, 32), CarriedSequence::Mismatch);
    assert_eq!(check(4, 30), CarriedSequence::Below(9));
    assert_eq!(check(10, 30), CarriedSequence::Unknown);
    assert_eq!(
        carried.check_sequence(8, 3, 30, 999),
        CarriedSequence::Unknown
    );
    assert_eq!(
        carried.check_sequence(7, 3, 30, 1000),
        CarriedSequence::Unknown,
        "its time is over"
    );
}

#[test]
fn a_key_is_a_repeat_only_for_the_slots_that_stored_it() {
    let carried = imported(usize::MAX, 1);
    let check =
        |fingerprint, slots: &[u16]| carried.check_key(5, fingerprint, 999, slots.iter().copied());
    assert_eq!(
        check(50, &[0, 99, 200]),
        CarriedKey::Repeat(&answer(20, &[4]))
    );
    assert_eq!(check(50, &[100]), CarriedKey::Unknown);
    assert_eq!(check(50, &[99, 100]), CarriedKey::InPart);
    assert_eq!(check(51, &[0]), CarriedKey::Mismatch);
    assert_eq!(
        carried.check_key(5, 50, 1000, [0].into_iter()),
        CarriedKey::Unknown
    );
}

#[test]
fn versions_are_found_under_the_ids_that_streams_had() {
    let (carried, digests) = (imported(usize::MAX, 1), DigestKey::new([1; 16]));
    assert_eq!(carried.last_version(&digests, 1, b"gone"), 8);
    assert_eq!(carried.last_version(&digests, 6, b"gone"), 0);
    assert_eq!(carried.last_version(&digests, 1, b"never"), 0);
}
