//! Old sectors that come back: what an earlier life of a segment file left behind is found, never served.

use sim::disk::CrashMode;
use sim::host::{Host, Snapshot};
use sim::machine::FaultKind;
use sim::scenario::{Request, SMALL, StoreConfig, filled, send};
use sim::trial::{Fate, Trial};

const CONFIG: StoreConfig = StoreConfig {
    segment_bytes: 128 * 1024,
    // What comes to lie where is what these tests are about.
    space_amplification_percent: 0,
    ..SMALL
};
/// Blocks that the first write of the second segment takes.
const BLOCK_BYTES: usize = 4096;

/// Bytes of the file that holds segment 2, and its number on the disk.
fn second_segment(trial: &Trial) -> Option<(usize, Vec<u8>)> {
    let mut m = trial.host.machine.borrow_mut();
    let segments = m.disk.segments(0);
    segments.into_iter().find_map(|(_, file, _)| {
        let image = m.disk.image_mut(file);
        let bytes = image.bytes();
        let number = u32::from_le_bytes(bytes.get(52..56)?.try_into().ok()?);
        (bytes.starts_with(b"pinSEGMT") && number == 2).then(|| (file, bytes.to_vec()))
    })
}

/// Fill segment 1, then start three batches, of which the first ends segment 1 and the others lie in segment 2.
fn into_the_second_segment(trial: &mut Trial) {
    send(trial, Request::Large);
    trial.settle().unwrap();
    send(trial, Request::Unit);
    trial.turn().unwrap();
    for _ in 0..2 {
        send(trial, Request::Large);
        trial.turn().unwrap();
    }
}

/// A store whose log was cut in segment 1 while whole batches of segment 2 were on the media, and those.
fn cut(store: &Snapshot, seed: u64) -> Option<(Trial, Vec<u8>)> {
    let mut trial = Trial::new(Host::from_snapshot(seed, store), 1, 1);
    assert_eq!(trial.open().unwrap(), Fate::Alive(()));
    into_the_second_segment(&mut trial);
    for _ in 0..seed % 7 {
        trial.turn().unwrap();
    }
    trial.crash(CrashMode::Mixed).unwrap();
    let (_, old) = second_segment(&trial)?;
    assert_eq!(trial.open().unwrap(), Fate::Alive(()));
    trial.verify(100).unwrap();
    let unit_lost = trial.oracle.records() == 20;
    let batch_left = old[BLOCK_BYTES..].starts_with(b"pinBATCH");
    (unit_lost && batch_left).then_some((trial, old))
}

/// The requests of the life that was cut, again and acked; then so many others that no batch of them is in memory.
fn same_again(trial: &mut Trial) {
    send(trial, Request::Unit);
    trial.settle().unwrap();
    for _ in 0..2 {
        send(trial, Request::Large);
        trial.settle().unwrap();
    }
    for _ in 0..40 {
        send(trial, Request::Put);
        trial.settle().unwrap();
    }
}

#[test]
fn sectors_of_an_earlier_life_of_a_recycled_segment_are_refused_by_a_scan() {
    let (store, _) = filled(CONFIG, &[], false).unwrap();
    let mut cases = 0;
    for seed in 0..240 {
        let Some((mut trial, old)) = cut(&store, seed) else {
            continue;
        };
        cases += 1;
        same_again(&mut trial);
        let (file, new) = second_segment(&trial).unwrap();
        let batch = new[BLOCK_BYTES..].starts_with(b"pinBATCH");
        assert!(batch && new != old, "the same places were written again");
        {
            let mut m = trial.host.machine.borrow_mut();
            let image = m.disk.image_mut(file);
            for (block, bytes) in old.chunks(BLOCK_BYTES).enumerate().skip(1) {
                if bytes.iter().any(|byte| *byte != 0) {
                    for (at, byte) in bytes.iter().enumerate() {
                        image.change(block * BLOCK_BYTES + at, |b| *b = *byte);
                    }
                }
            }
            m.lie = Some(FaultKind::Lost);
        }
        let said = trial.dump(1000).unwrap_err();
        assert!(trial.refused_for_damage, "seed {seed}: {said}");
        assert!(said.contains("generation"), "seed {seed}: {said}");
    }
    assert!(cases >= 3, "{cases}");
}

/// A record's checksum names its log and lsn, not the term that wrote it: a record of a cut tail verified in the place of the
/// one that was acked under its lsn, when the device had lost the write. A recovery wipes what it cuts off.
#[test]
fn a_lost_write_in_the_place_of_a_batch_that_was_cut_off_is_found_by_every_read() {
    let (store, _) = filled(CONFIG, &[], false).unwrap();
    let mut cases = 0;
    for seed in 0..240 {
        let Some((mut trial, _)) = cut(&store, seed) else {
            continue;
        };
        cases += 1;
        let (_, before) = second_segment(&trial).unwrap();
        same_again(&mut trial);
        let (file, new) = second_segment(&trial).unwrap();
        {
            let mut m = trial.host.machine.borrow_mut();
            let image = m.disk.image_mut(file);
            // All writes but the first of the segment are lost: the sectors that were there stay.
            let first = 17 * BLOCK_BYTES;
            for (offset, byte) in before.iter().enumerate().skip(BLOCK_BYTES + first) {
                if new[offset] != *byte {
                    image.change(offset, |b| *b = *byte);
                }
            }
            m.lie = Some(FaultKind::Lost);
        }
        trial
            .read_behind_a_lie()
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        trial.dump(1000).unwrap_err();
        assert!(trial.refused_for_damage, "seed {seed}");
    }
    assert!(cases >= 3, "{cases}");
}
