//! Every write fails once, with every errno that matters; and the process ends at every write, before it and behind it.

use tuning::Error;
use tuning::apply::apply;
use tuning::recorded::Recorded;
use tuning::revert::{Conflict, revert};
use tuning::settings::Profile;

use crate::support::{Fault, Faulty, MACHINES, STATE, content, machine, profiles, request};

const NEVER: usize = usize::MAX;
const JOURNAL: &str = "/var/lib/pinion/tuning/journal.json";

/// Every machine and profile that writes something, with the number of writes.
fn cases() -> Vec<(Recorded, &'static str, Profile, usize)> {
    let mut cases = Vec::new();
    for (name, ..) in MACHINES {
        for profile in profiles() {
            let (fresh, data) = machine(name);
            let tried = fresh.clone();
            let counting = Faulty::new(&tried, Fault::Panic, NEVER);
            apply(request(&counting, data, &profile)).expect("nothing fails here");
            let writes = counting.writes.get();
            if writes > 0 {
                cases.push((fresh, data, profile, writes));
            }
        }
    }
    assert_eq!(
        cases.len(),
        8,
        "every machine but the container has something to change"
    );
    cases
}

/// Every write of a small machine; of a large one the first and last, and a part of those between, which are all alike.
fn sampled(writes: usize) -> impl Iterator<Item = usize> {
    (0..writes).filter(move |at| writes < 40 || *at < 5 || *at + 4 > writes || at % 37 == 0)
}

#[test]
fn a_write_that_fails_leaves_all_or_nothing() {
    for (fresh, data, profile, writes) in cases() {
        let before = content(&fresh);
        let all = fresh.clone();
        apply(request(&all, data, &profile)).expect("nothing fails here");
        for at in sampled(writes) {
            for errno in [1, 2, 5, 22] {
                let machine = fresh.clone();
                let faulty = Faulty::new(&machine, Fault::Errno(errno), at);
                let result = apply(request(&faulty, data, &profile));
                let now = content(&machine);
                let what = format!("errno {errno} at write {at} of {writes}, {}", profile.name);
                match result {
                    Ok(applied) => {
                        assert_eq!(applied.left_out.len(), 1, "{what}");
                        assert!(errno == 2 || errno == 5, "{what}: {:?}", applied.left_out);
                        let differing = now.iter().filter(|(path, text)| {
                            **path != JOURNAL && content(&all).get(*path) != Some(text)
                        });
                        // What is left out, and the queue length that would have come with another scheduler.
                        assert!(differing.count() <= 2, "{what}");
                    }
                    Err(Error::RolledBack { .. } | Error::State { .. }) => {
                        let mut expected = before.clone();
                        // Only the removal of the journal itself can fail and leave one: all that it names is in force.
                        if let Some(journal) = now.get(JOURNAL) {
                            expected.insert(JOURNAL.to_owned(), journal.clone());
                        }
                        assert_eq!(now, expected, "{what}");
                    }
                    Err(error) => panic!("{what}: {error}"),
                }
                revert(&machine, STATE, Conflict::Refuse).expect("nothing fails any more");
                assert_eq!(content(&machine), before, "{what}, reverted");
            }
        }
    }
}

#[test]
fn a_run_that_died_is_undone_by_revert_and_finished_by_apply() {
    for (fresh, data, profile, writes) in cases() {
        let before = content(&fresh);
        let all = fresh.clone();
        apply(request(&all, data, &profile)).expect("nothing fails here");
        for at in sampled(writes) {
            for fault in [Fault::DeathBefore, Fault::DeathBehind] {
                let machine = fresh.clone();
                let faulty = Faulty::new(&machine, fault, at);
                // A death behind the last write is no failure that anybody hears of.
                let _ = apply(request(&faulty, data, &profile));
                let what = format!("{fault:?} write {at} of {writes}, {}", profile.name);

                let undone = machine.clone();
                let reverted =
                    revert(&undone, STATE, Conflict::Refuse).expect("nothing fails any more");
                assert_eq!(reverted.left().collect::<Vec<_>>(), [""; 0], "{what}");
                assert_eq!(content(&undone), before, "{what}, undone");

                apply(request(&machine, data, &profile)).expect("nothing fails any more");
                assert_eq!(content(&machine), content(&all), "{what}, finished");
                revert(&machine, STATE, Conflict::Refuse).expect("nothing fails any more");
                assert_eq!(content(&machine), before, "{what}, finished and undone");
            }
        }
    }
}

#[test]
fn a_revert_that_died_is_finished_by_either() {
    for (fresh, data, profile, _) in cases() {
        let before = content(&fresh);
        let all = fresh.clone();
        apply(request(&all, data, &profile)).expect("nothing fails here");
        let counted = all.clone();
        let counting = Faulty::new(&counted, Fault::Panic, NEVER);
        revert(&counting, STATE, Conflict::Refuse).expect("nothing fails here");
        let writes = counting.writes.get();
        for at in sampled(writes) {
            for fault in [Fault::DeathBefore, Fault::DeathBehind, Fault::Errno(5)] {
                let machine = all.clone();
                let faulty = Faulty::new(&machine, fault, at);
                let _ = revert(&faulty, STATE, Conflict::Refuse);
                let what = format!("{fault:?} write {at} of {writes}, {}", profile.name);

                let applied = machine.clone();
                apply(request(&applied, data, &profile)).expect("nothing fails any more");
                revert(&applied, STATE, Conflict::Refuse).expect("nothing fails any more");
                assert_eq!(content(&applied), before, "{what}, applied and undone");

                revert(&machine, STATE, Conflict::Refuse).expect("nothing fails any more");
                assert_eq!(content(&machine), before, "{what}, undone");
            }
        }
    }
}
