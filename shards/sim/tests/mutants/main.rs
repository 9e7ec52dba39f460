//! The kill matrix: builds of the engine that are wrong in one place, and the test that each of them fails.
//!
//! MUTANTS.md is the matrix for people; the first tests here hold it against the sources at every run. The last one, which
//! `.ci/run` asks for, copies the tree, makes every build wrong that the matrix names and sees its test fail.

mod builds;
mod document;
mod tree;

use builds::BUILDS;

#[test]
fn the_document_lists_every_build_with_the_test_that_kills_it() {
    let rows = document::rows("## Builds");
    let named: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
    let built: Vec<_> = BUILDS.iter().map(|build| build.name).collect();
    assert_eq!(named, built, "MUTANTS.md and builds.rs name other builds");
    for (row, build) in rows.iter().zip(BUILDS) {
        assert_eq!(row[2], build.killer.to_string(), "{}", build.name);
    }
}

#[test]
fn every_edit_of_a_build_finds_its_place_once() {
    for build in BUILDS {
        for edit in build.edits {
            let source = tree::read(edit.file);
            let places = source.matches(edit.from).count();
            assert_eq!(
                places, 1,
                "{}: {:?} is {places} times in {}: the code has moved, take the edit along",
                build.name, edit.from, edit.file
            );
            assert!(edit.to.contains("MUTANT"), "{}: not switched", build.name);
        }
    }
}

#[test]
fn every_killer_is_a_test_that_is_there_and_is_not_ignored() {
    let liars = document::rows("## Devices");
    let killers = BUILDS.iter().map(|build| build.killer.to_string());
    for killer in killers.chain(liars.iter().map(|row| row[2].clone())) {
        let (place, test) = killer.split_once("::").expect("file::test");
        let source = tree::read(&format!("shards/{place}"));
        let at = source
            .find(&format!("fn {test}()"))
            .unwrap_or_else(|| panic!("{killer} is not there"));
        let attributes = source[..at].rsplit('}').next().unwrap_or_default();
        assert!(attributes.contains("#[test]"), "{killer} is no test");
        assert!(!attributes.contains("#[ignore"), "{killer} is ignored");
    }
}

#[test]
fn the_document_lists_every_lying_device() {
    let rows = document::rows("## Devices");
    let named: Vec<_> = rows.iter().map(|row| row[0].as_str()).collect();
    let liars = sim::machine::Mutant::ALL.map(sim::machine::Mutant::name);
    assert_eq!(named, liars);
}

/// Minutes on a fresh checkout, seconds after that. `.ci/run` runs it.
#[test]
#[ignore = "builds a copy of the tree"]
fn every_build_is_killed_by_its_test_and_the_honest_one_by_none() {
    let copy = tree::Copy::with_edits(BUILDS.iter().flat_map(|build| build.edits));
    copy.build();
    let mut killers: Vec<_> = BUILDS.iter().map(|build| build.killer).collect();
    killers.sort_unstable();
    killers.dedup();
    for killer in killers {
        let (passed, output) = copy.run(None, killer);
        assert!(passed, "without a mutant {killer} fails:\n{output}");
    }
    let mut alive = Vec::new();
    for build in BUILDS {
        let (passed, output) = copy.run(Some(build.name), build.killer);
        let failed = output.contains(&format!("test {} ... FAILED", build.killer.test));
        println!(
            "{}: {}",
            build.name,
            if failed { "killed" } else { "alive" }
        );
        let why = output
            .lines()
            .skip_while(|line| !line.contains("panicked at"));
        for line in why.skip(1).take(1) {
            println!("    {}", line.chars().take(200).collect::<String>());
        }
        if passed || !failed {
            alive.push(build.name);
        }
    }
    assert!(alive.is_empty(), "these live: {alive:?}");
}
