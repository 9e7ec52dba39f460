//! Crashes in recoveries, three deep: what was acked is there, and a recovery that is repeated comes to the same end.

use sim::disk::CrashMode;
use sim::host::{Host, Snapshot};
use sim::oracle::Oracle;
use sim::scenario::{Request, SMALL, StoreConfig, crash_in_recoveries, filled, send};
use sim::trial::Fate;

/// A store that was torn while batches were on their way, with a checkpoint behind which there is log.
fn torn(seed: u64) -> (Snapshot, Oracle) {
    let config = StoreConfig {
        segment_bytes: 128 * 1024,
        checkpoint_log_bytes: 16 * 1024,
        ..SMALL
    };
    let requests = [
        Request::Unit,
        Request::Producer,
        Request::Large,
        Request::Put,
    ];
    let (store, mut trial) = filled(config, &requests, false).unwrap();
    trial.host = Host::from_snapshot(seed, &store);
    assert_eq!(trial.open().unwrap(), Fate::Alive(()));
    for request in [Request::Put, Request::Large, Request::Unit] {
        send(&mut trial, request);
        trial.turn().unwrap();
    }
    trial.crash(CrashMode::Torn).unwrap();
    (trial.host.snapshot(), trial.oracle)
}

#[test]
fn crashes_three_deep_in_recoveries_lose_nothing_and_a_second_recovery_shows_the_same() {
    let (mut cases, mut three_deep) = (0, 0);
    for seed in 0..2 {
        let (store, oracle) = torn(seed);
        for mode in [CrashMode::DropAll, CrashMode::Torn, CrashMode::Mixed] {
            for first in 1..12 {
                for (second, third) in [(1, 1), (3, 2), (5, 7), (9, 4)] {
                    let ticks = [first, second, third];
                    let deep =
                        crash_in_recoveries(&store, &oracle, seed * 100 + first, &ticks, mode)
                            .unwrap_or_else(|why| {
                                panic!("seed {seed}, {ticks:?}, {mode:?}: {why}")
                            });
                    cases += 1;
                    three_deep += usize::from(deep == 3);
                }
            }
        }
    }
    println!("{cases} cases, {three_deep} of them three deep");
    assert!(three_deep > 100, "{three_deep} of {cases}");
}
