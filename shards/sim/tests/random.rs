//! Random runs from fixed seeds: many lives, crashes, broken disk operations, several shards, checkpoints, segment rolls.

use sim::random::{Options, Report, random, traced};

fn run(seeds: std::ops::Range<u64>, options: Options) -> Report {
    let mut total = Report::default();
    for seed in seeds {
        match random(seed, options) {
            Ok(report) => total.add(&report),
            Err(failure) => panic!(
                "seed {seed}: {}\nshow it again: cargo run --release -p sim -- --seed {seed} --lives {} --requests {}{}",
                failure.why,
                options.lives,
                options.requests,
                if options.faults { "" } else { " --no-faults" }
            ),
        }
    }
    println!("{total}");
    total
}

#[test]
fn what_was_promised_holds_through_crashes_of_the_machine() {
    let total = run(
        0..200,
        Options {
            faults: false,
            ..Options::default()
        },
    );
    assert!(
        total.crashes > 400
            && total.crashes_in_recovery[0] > 30
            && total.crashes_in_recovery[2] > 0,
        "{total:?}"
    );
    assert!(
        total.checkpoints > 30 && total.rolls > 100,
        "checkpoints and rolls are among what is crashed: {total:?}"
    );
    assert!(
        total.limited > 30 && total.ended > 500,
        "limits in bytes are among what is promised: {total:?}"
    );
}

#[test]
fn what_was_promised_holds_with_broken_disk_operations_too() {
    let total = run(1000..1150, Options::default());
    assert!(total.faults() > 20, "{total:?}");
}

#[test]
fn long_lives_with_many_requests_keep_what_was_promised() {
    run(
        2000..2020,
        Options {
            lives: 4,
            requests: 400,
            ..Options::default()
        },
    );
}

#[test]
fn a_seed_replays_to_the_last_line_of_its_trace() {
    for seed in 0..20 {
        let options = Options {
            trace: true,
            ..Options::default()
        };
        let (first, second) = (traced(seed, options), traced(seed, options));
        assert!(first.1.len() > 100, "{}", first.1.len());
        let differs = first.1.iter().zip(&second.1).find(|(a, b)| a != b);
        assert!(
            differs.is_none() && first.1.len() == second.1.len(),
            "seed {seed}: {differs:#?}"
        );
        assert_eq!(first.0, second.0);
    }
}
