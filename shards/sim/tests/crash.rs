//! A crash behind every disk operation of small workloads, enumerated.

use sim::disk::CrashMode;
use sim::host::Snapshot;
use sim::machine::Mutant;
use sim::scenario::{Request, SMALL, crash_behind, fresh};

/// Crashes behind each tick of a workload, in one mode or, where asked, in each. Gives the number of states.
fn enumerate(requests: &[Request], pipelined: bool, every_mode: bool, store: &Snapshot) -> u64 {
    let mut states = 0;
    for k in 1.. {
        let one = CrashMode::ALL
            [(k as usize + requests.len() + usize::from(pipelined)) % CrashMode::ALL.len()];
        let modes = if every_mode {
            CrashMode::ALL.to_vec()
        } else {
            vec![one]
        };
        let mut ended = false;
        for mode in modes {
            states += 1;
            match crash_behind(store, requests, pipelined, k, mode, Mutant::None) {
                Ok(through) => ended = through,
                Err(failure) => panic!(
                    "{requests:?}, pipelined: {pipelined}, k = {k}, {mode:?}: {}",
                    failure.why
                ),
            }
        }
        if ended {
            return states;
        }
    }
    unreachable!("a workload comes to its end")
}

#[test]
fn a_crash_in_every_mode_behind_every_disk_operation_of_every_single_request_loses_nothing() {
    let store = fresh(SMALL).unwrap();
    let states: u64 = Request::ALL
        .iter()
        .map(|a| enumerate(&[*a], false, true, &store))
        .sum();
    println!("{states} states");
    assert!(states > 300);
}

#[test]
fn a_crash_behind_every_disk_operation_of_every_pair_of_requests_loses_nothing() {
    let store = fresh(SMALL).unwrap();
    let mut states = 0;
    for a in Request::ALL {
        for b in Request::ALL {
            states +=
                enumerate(&[a, b], false, false, &store) + enumerate(&[a, b], true, false, &store);
        }
    }
    println!("{states} states");
    assert!(states > 1000);
}

#[test]
fn a_crash_behind_every_disk_operation_of_three_batches_loses_nothing() {
    let store = fresh(SMALL).unwrap();
    let kinds = [
        Request::Put,
        Request::Unit,
        Request::Large,
        Request::Tombstone,
    ];
    let mut states = 0;
    for a in kinds {
        for b in kinds {
            for c in kinds {
                states += enumerate(&[a, b, c], false, false, &store);
            }
        }
    }
    println!("{states} states");
    assert!(states > 1000);
}
