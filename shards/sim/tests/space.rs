//! A crash behind every disk operation of a store that is compacted and written to.

use sim::disk::CrashMode;
use sim::space::{Full, crash_behind, full, newest_checkpoint_lost};

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

/// One checkpoint that lets go of a segment is not enough: the file is what the other one leads to, until that is written over.
#[test]
fn a_file_that_only_one_checkpoint_has_freed_is_not_filled_again() {
    for depth in [1, 3] {
        let filled = newest_checkpoint_lost(&full(depth, 30).unwrap(), 30)
            .unwrap_or_else(|why| panic!("{depth} versions a key: {why}"));
        assert!(filled >= 3, "a free file would have been used: {filled}");
    }
}
