//! What the simulator has found, one test each.

use sim::disk::CrashMode;
use sim::host::Host;
use sim::scenario::{Request, SMALL, StoreConfig, crash_at_start, filled};
use sim::trial::{Fate, Trial};
use wire::{Condition, Durability};

/// A crash while a segment file is made leaves a file of any length with anything in it. It was taken for a damaged one
/// (the shard did not start), or taken over as it was (the log ran over its end).
#[test]
fn a_crash_behind_every_operation_of_the_first_start_leaves_a_store_that_starts() {
    for mode in CrashMode::ALL {
        for seed in 0..8 {
            let mut k = 1;
            while !crash_at_start(
                None,
                StoreConfig {
                    segments_ahead: 2,
                    commit_window: std::time::Duration::ZERO,
                    ..SMALL
                },
                seed,
                &[k],
                mode,
            )
            .unwrap()
            {
                k += 1;
            }
        }
    }
}

/// A restart takes files over that were prepared and never used. It gave the number of one to another, and a crash then
/// left two files with the same number: damage, as it looked.
#[test]
fn crashes_behind_any_two_operations_of_two_restarts_leave_no_two_files_with_one_number() {
    let config = StoreConfig {
        segments_ahead: 2,
        commit_window: std::time::Duration::ZERO,
        ..SMALL
    };
    let (store, _) = filled(config, &[Request::Put, Request::Unit], false).unwrap();
    for mode in [CrashMode::DropAll, CrashMode::KeepAll, CrashMode::Torn] {
        for first in 8..40 {
            for second in [10, 14, 18, 22, 26] {
                crash_at_start(
                    Some(&store),
                    config,
                    first * 100 + second,
                    &[first, second],
                    mode,
                )
                .unwrap();
            }
        }
    }
}

/// A read for another shard was held for a commit that had happened while the device was read, and waited for the next one.
#[test]
fn a_read_for_another_shard_is_answered_though_its_commit_came_before_the_device() {
    let config = StoreConfig { shards: 2, ..SMALL };
    for seed in 0..40 {
        let mut trial = Trial::new(Host::new(seed, config), 2, 1);
        let key = sim::scenario::key_of(2, 1, 1);
        let put = |trial: &mut Trial| {
            let number = trial.oracle.appends.len();
            let payload = sim::oracle::payload(number, 0, 5000 / 2);
            let sent = sim::client::Sent {
                key: key.clone(),
                payload,
                tombstone: false,
                condition: Condition::None,
            };
            trial.append(1, 0, Durability::Durable, None, vec![sent]);
        };
        assert_eq!(trial.open().unwrap(), Fate::Alive(()));
        put(&mut trial);
        trial.settle().unwrap();
        // After a restart the old version is on the device only.
        trial.crash(CrashMode::DropAll).unwrap();
        assert_eq!(trial.open().unwrap(), Fate::Alive(()));
        put(&mut trial);
        trial.turn().unwrap();
        trial.ask(|lanes, m| lanes.history(m, 0, 0, &key, (0, 100), 1));
        trial
            .settle()
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
}

/// A recovery cut off a whole batch behind a torn one. When the log then went on in the next segment before it had come so far,
/// a scan took the cut batch for a part of the log.
#[test]
fn a_batch_that_was_cut_off_near_the_end_of_a_segment_is_not_scanned() {
    let config = StoreConfig {
        segment_bytes: 128 * 1024,
        ..SMALL
    };
    let (store, _) = filled(config, &[], false).unwrap();
    let mut cut = 0;
    for seed in 0..150 {
        let mut trial = Trial::new(Host::from_snapshot(seed, &store), 1, 1);
        assert_eq!(trial.open().unwrap(), Fate::Alive(()));
        sim::scenario::send(&mut trial, Request::Large);
        trial.settle().unwrap();
        // Two batches on their way, then the power fails.
        sim::scenario::send(&mut trial, Request::Put);
        trial.turn().unwrap();
        sim::scenario::send(&mut trial, Request::Put);
        trial.turn().unwrap();
        trial.crash(CrashMode::Mixed).unwrap();
        assert_eq!(trial.open().unwrap(), Fate::Alive(()));
        trial.verify(100).unwrap();
        cut += u32::from(trial.oracle.records() == 20);
        sim::scenario::send(&mut trial, Request::Put);
        trial.settle().unwrap();
        sim::scenario::send(&mut trial, Request::Large);
        trial.settle().unwrap();
        // From the device, not from memory.
        trial.crash(CrashMode::DropAll).unwrap();
        assert_eq!(trial.open().unwrap(), Fate::Alive(()));
        trial
            .verify(100)
            .unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    }
    assert!(cut > 10, "{cut}");
}
