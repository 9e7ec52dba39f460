//! Bits that rot on the media of a store at rest: damage below the durable mark stops the shard and says where; a torn tail is cut.

use sim::disk::{CrashMode, Role};
use sim::host::{Host, Opened, Snapshot};
use sim::scenario::{Request, SMALL, filled};
use sim::trial::Fate;

const REQUESTS: [Request; 6] = [
    Request::Put,
    Request::Unit,
    Request::Tombstone,
    Request::Producer,
    Request::Unit,
    Request::Put,
];

fn opened(store: &Snapshot, seed: u64, damage: impl Fn(&mut Host)) -> (Opened, Host) {
    let mut host = Host::from_snapshot(seed, store);
    damage(&mut host);
    (host.open(), host)
}

fn flip(host: &mut Host, offset: usize, bit: u8) {
    let mut m = host.machine.borrow_mut();
    let file = m.disk.find(0, Role::Segment(0)).expect("the first segment");
    m.disk
        .image_mut(file)
        .change(offset, |byte| *byte ^= 1 << bit);
}

/// One bit of the first page of each checkpoint that there is.
fn spoil_checkpoints(host: &mut Host) {
    let mut m = host.machine.borrow_mut();
    for which in 0..2 {
        let Some(file) = m.disk.find(0, Role::Checkpoint(which)) else {
            continue;
        };
        let image = m.disk.image_mut(file);
        if !image.bytes().is_empty() {
            image.change(4096 + 100, |byte| *byte ^= 1);
        }
    }
}

/// Offset, bytes and records of each batch of the first segment, by the lengths that FORMAT.md draws.
fn batches(store: &Snapshot) -> Vec<(usize, usize, u32)> {
    let host = Host::from_snapshot(1, store);
    let mut m = host.machine.borrow_mut();
    let file = m.disk.find(0, Role::Segment(0)).expect("the first segment");
    let image = m.disk.image_mut(file);
    let word =
        |at: usize| u32::from_le_bytes(image.bytes()[at..at + 4].try_into().expect("four bytes"));
    let (mut at, mut found) = (4096, Vec::new());
    while image.bytes()[at..at + 8] == *b"pinBATCH" {
        found.push((at, word(at + 36) as usize, word(at + 64 + 48)));
        at += word(at + 36) as usize;
    }
    found
}

#[test]
fn a_flipped_bit_in_an_acked_batch_stops_the_shard_with_file_offset_and_lsn() {
    // Closed cleanly, so the superblock knows what was durable, the checkpoint rotten too, so that the log is read from its
    // start; and killed, so only the marks in the log know.
    for close in [true, false] {
        let (store, _) = filled(SMALL, &REQUESTS, close).unwrap();
        let batches = batches(&store);
        let acked: Vec<_> = batches
            .iter()
            .filter(|(_, _, records)| *records > 0)
            .collect();
        assert!(acked.len() >= REQUESTS.len(), "{batches:?}");
        for (batch, ..) in acked {
            for offset in [0, 9, 40, 57, 64, 80, 100, 130, 185, 192, 200, 230, 260] {
                let (opened, _host) = opened(&store, offset as u64, |host| {
                    flip(host, batch + offset, (offset % 8) as u8);
                    spoil_checkpoints(host);
                });
                match opened {
                    Opened::Stopped(why) => {
                        let names = why.contains("segment-00000000.seg")
                            && why.contains(&format!("offset {batch}"))
                            && why.contains("lsn");
                        assert!(names, "batch at {batch}, byte {offset}: {why}");
                    }
                    other => panic!(
                        "a flipped bit in byte {offset} of the batch at {batch} (closed: {close}) was not noticed: {other:?}"
                    ),
                }
            }
        }
    }
}

#[test]
fn a_rotten_checkpoint_is_not_used_and_nothing_is_missing() {
    let (store, mut trial) = filled(SMALL, &REQUESTS, true).unwrap();
    trial.host = Host::from_snapshot(9, &store);
    spoil_checkpoints(&mut trial.host);
    let before = trial.checkpoints;
    assert_eq!(trial.open().unwrap(), Fate::Alive(()));
    assert_eq!(trial.checkpoints, before, "its pages do not verify");
    assert_eq!(trial.verify(10).unwrap(), Fate::Alive(()));
    assert_eq!(
        trial.repeat().unwrap(),
        Fate::Alive(()),
        "the retry windows come from the log then"
    );
}

#[test]
fn a_damaged_segment_header_stops_the_shard() {
    let (store, _) = filled(SMALL, &REQUESTS, true).unwrap();
    for offset in [0, 8, 20, 40] {
        let (opened, _host) = opened(&store, 7, |host| flip(host, offset, 3));
        match opened {
            Opened::Stopped(why) => assert!(why.contains("segment-00000000.seg"), "{why}"),
            other => panic!("byte {offset}: {other:?}"),
        }
    }
}

#[test]
fn bits_that_rot_while_the_shard_runs_are_found_by_the_read_and_not_served() {
    let (store, mut trial) = filled(SMALL, &REQUESTS, true).unwrap();
    trial.host = Host::from_snapshot(3, &store);
    assert_eq!(trial.open().unwrap(), Fate::Alive(()));
    for block in 1..8 {
        for offset in [250, 300, 1000] {
            flip(&mut trial.host, block * 4096 + offset, 1);
        }
    }
    let why = trial.verify(100).unwrap_err();
    assert!(
        why.contains("damaged"),
        "a damaged record must be refused, not served: {why}"
    );
}

#[test]
fn a_torn_tail_is_cut_and_what_was_acked_before_it_is_there() {
    let (store, mut trial) = filled(SMALL, &REQUESTS, false).unwrap();
    trial.host = Host::from_snapshot(5, &store);
    let tail = batches(&store)
        .last()
        .map_or(4096, |(at, bytes, _)| at + bytes);
    {
        let mut m = trial.host.machine.borrow_mut();
        let file = m.disk.find(0, Role::Segment(0)).expect("the first segment");
        let image = m.disk.image_mut(file);
        let head = image.bytes()[4096..4096 + 128].to_vec();
        // The beginning of a batch that never got further.
        for (i, byte) in head.into_iter().enumerate() {
            image.change(tail + i, |b| *b = byte);
        }
    }
    assert_eq!(trial.open().unwrap(), Fate::Alive(()));
    assert_eq!(trial.verify(10).unwrap(), Fate::Alive(()));
    trial.crash(CrashMode::DropAll).unwrap();
}
