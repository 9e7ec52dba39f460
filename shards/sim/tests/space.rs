//! A crash behind every disk operation of a store that is compacted and written to.

use sim::disk::CrashMode;
use sim::space::{Full, crash_behind, full};

/// Steps of the workload beside compaction.
const STEPS: usize = 24;

fn enumerate(full: &Full, stride: usize) -> u64 {
    let mut states = 0;
    let mut most = (0, 0);
    for k in (1..).step_by(stride) {
        states += 1;
        let mode = CrashMode::ALL[(k as usize / stride) % CrashMode::ALL.len()];
        match crash_behind(full, k, mode, STEPS) {
            Ok(outlook) => {
                most = (
                    outlook.released.0.max(most.0),
                    outlook.released.1.max(most.1),
                );
                if outlook.ended {
                    break;
                }
            }
            Err(why) => panic!("k = {k}, {mode:?}: {why}"),
        }
    }
    println!("{states} states, {most:?} segments released and recycled");
    assert!(most.0 > 3 && most.1 > 1, "compaction was at work: {most:?}");
    states
}

#[test]
fn a_crash_beside_compaction_loses_nothing_and_brings_nothing_back_with_one_version_a_key() {
    assert!(enumerate(&full(1, 30).unwrap(), 3) > 50);
}

#[test]
fn a_crash_beside_compaction_keeps_histories_of_three_versions_whole() {
    assert!(enumerate(&full(3, 30).unwrap(), 3) > 50);
}
