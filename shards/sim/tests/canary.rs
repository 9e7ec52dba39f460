//! Tests of the tests: a driver that lies about durability must be caught.

use sim::disk::CrashMode;
use sim::machine::Mutant;
use sim::random::{Options, random};
use sim::scenario::{Request, SMALL, crash_behind, fresh};

#[test]
fn a_driver_that_completes_writes_before_they_are_durable_is_caught_by_a_small_workload() {
    let store = fresh(SMALL).unwrap();
    let caught = (1..60).find_map(|k| {
        crash_behind(
            &store,
            &[Request::Put],
            false,
            k,
            CrashMode::DropAll,
            Mutant::AckBeforeFlush,
        )
        .err()
    });
    let why = caught.expect("an ack before the flush goes unnoticed").why;
    assert!(
        why.contains("claimed that lsn") || why.contains("is lost"),
        "{why}"
    );
}

#[test]
fn a_driver_that_completes_writes_before_they_are_durable_is_caught_by_random_runs() {
    let options = Options {
        faults: false,
        mutant: Mutant::AckBeforeFlush,
        ..Options::default()
    };
    let caught = (0..20)
        .filter(|seed| random(*seed, options).is_err())
        .count();
    assert!(caught >= 15, "only {caught} of 20 runs noticed");
}

#[test]
fn a_driver_whose_syncs_do_nothing_is_caught() {
    let options = Options {
        faults: false,
        mutant: Mutant::SkipSync,
        ..Options::default()
    };
    let caught = (0..100)
        .filter(|seed| random(*seed, options).is_err())
        .count();
    assert!(caught >= 5, "only {caught} of 100 runs noticed");
}

#[test]
fn a_driver_that_hides_short_writes_is_caught() {
    let options = Options {
        mutant: Mutant::IgnoreShort,
        lives: 8,
        ..Options::default()
    };
    let caught = (0..300)
        .filter(|seed| random(*seed, options).is_err())
        .count();
    assert!(caught >= 3, "only {caught} of 300 runs noticed");
}
