//! A crash behind every disk operation of small workloads, enumerated.

use sim::disk::CrashMode;
use sim::machine::Mutant;
use sim::scenario::{Request, SMALL, crash_behind, fresh};

fn workloads() -> Vec<Vec<Request>> {
    let mut all: Vec<Vec<Request>> = Request::ALL.iter().map(|a| vec![*a]).collect();
    for a in Request::ALL {
        for b in Request::ALL {
            all.push(vec![a, b]);
        }
    }
    all
}

#[test]
fn a_crash_behind_every_disk_operation_of_every_small_workload_loses_nothing() {
    let store = fresh(SMALL).unwrap();
    let mut states = 0;
    for requests in workloads() {
        for pipelined in [false, true] {
            for k in 1.. {
                let mode = CrashMode::ALL[(k as usize + requests.len()) % CrashMode::ALL.len()];
                states += 1;
                match crash_behind(&store, &requests, pipelined, k, mode, Mutant::None) {
                    Ok(true) => break,
                    Ok(false) => {}
                    Err(failure) => panic!("{requests:?}, pipelined: {pipelined}, k = {k}, {mode:?}: {}", failure.why),
                }
            }
        }
    }
    println!("{states} states");
}
