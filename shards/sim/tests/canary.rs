//! Tests of the tests: a world that is broken must be noticed, by the library and by the command.

use std::process::Command;

use sim::disk::CrashMode;
use sim::machine::Mutant;
use sim::random::{Options, random};
use sim::scenario::{Request, SMALL, crash_behind, fresh};

/// Of so many seeds, those that noticed.
fn caught(mutant: Mutant, seeds: std::ops::Range<u64>, options: Options) -> Vec<u64> {
    let caught: Vec<u64> = seeds
        .clone()
        .filter(|seed| random(*seed, Options { mutant, ..options }).is_err())
        .collect();
    println!(
        "{}: {} of {seeds:?}, the first is {:?}",
        mutant.name(),
        caught.len(),
        caught.first()
    );
    caught
}

const NO_FAULTS: Options = Options {
    lives: 6,
    requests: 60,
    faults: false,
    mutant: Mutant::None,
    trace: false,
};

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
    assert!(why.starts_with("[ack = durable]"), "{why}");
}

#[test]
fn a_driver_that_completes_writes_before_they_are_durable_is_caught_by_random_runs() {
    assert!(caught(Mutant::AckBeforeFlush, 0..20, NO_FAULTS).len() >= 12);
}

#[test]
fn a_driver_whose_syncs_do_nothing_is_caught() {
    assert!(caught(Mutant::SkipSync, 0..60, NO_FAULTS).len() >= 3);
}

#[test]
fn a_driver_whose_directory_syncs_do_nothing_is_caught() {
    assert!(caught(Mutant::SkipDirectorySync, 0..60, NO_FAULTS).len() >= 3);
}

#[test]
fn a_driver_that_hides_short_writes_is_caught() {
    let options = Options {
        lives: 8,
        ..Options::default()
    };
    assert!(!caught(Mutant::IgnoreShort, 0..80, options).is_empty());
}

#[test]
fn a_driver_that_reports_failed_writes_as_done_is_caught() {
    let options = Options {
        lives: 8,
        ..Options::default()
    };
    assert!(!caught(Mutant::RetryFailed, 0..80, options).is_empty());
}

#[test]
fn the_command_fails_in_a_broken_world_and_prints_a_shorter_way_that_fails_too() {
    let sim = |words: &[&str]| {
        Command::new(env!("CARGO_BIN_EXE_sim"))
            .args(words)
            .output()
            .expect("sim starts")
    };
    let output = sim(&["--seeds", "0..40", "--mutant", "ack-before-flush"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(" failed: ["), "a promise is named: {said}");
    let shortest = said
        .lines()
        .find_map(|line| line.strip_prefix("the shortest way: cargo run --release -p sim -- "))
        .unwrap_or_else(|| panic!("{said}"));
    let words: Vec<&str> = shortest.split(' ').collect();
    assert!(words.contains(&"--requests"), "{shortest}");
    let again = sim(&words);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&again.stdout).contains(" ns tick "),
        "the trace is printed"
    );
}

#[test]
fn the_command_says_what_it_injected_and_how_fast_it_was() {
    let output = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["--seeds", "0..8", "--jobs", "2"])
        .output()
        .expect("sim starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    for word in [
        "8 runs",
        "seeds per minute",
        "injected: ",
        "3/N",
        "power lost",
    ] {
        assert!(said.contains(word), "{word}: {said}");
    }
    let endless = Command::new(env!("CARGO_BIN_EXE_sim"))
        .args(["--seeds", "0.."])
        .output()
        .expect("sim starts");
    assert_eq!(endless.status.code(), Some(2));
}
