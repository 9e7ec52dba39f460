//! Scans that compaction overtakes: what they show of records that move while they are under way.

use std::collections::BTreeMap;

use crate::space_tests::{begin, restart, scan, write};
use crate::test_driver::{TestDriver, put_policy};
use crate::turn::Shard;

/// 120 keys written once, then a scan of them in pages of `page`, between which two other keys are written as often as
/// `rewrites` says. How often the scan showed each of the 120.
fn overtaken(page: usize, rewrites: &[usize]) -> Vec<usize> {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    // Beside histories files that hold nothing do not count: compaction begins at twice what is alive.
    let answer = shard.ask(client, put_policy("histories", "{}"));
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    for number in 0..120 {
        write(&mut shard, client, 100 + number, number);
    }
    let (mut number, mut pages) = (1000, 0);
    let writer = shard.connect();
    let shown = scan(&mut shard, client, page, |shard| {
        for _ in 0..rewrites.get(pages).copied().unwrap_or(0) {
            write(shard, writer, number % 2, number);
            number += 1;
        }
        pages += 1;
        shard.turns(100);
    });
    assert!(shard.space.released >= 3, "compaction was there");
    // One that nothing overtakes shows every key once, wherever it begins.
    let all = scan(&mut shard, client, 11, |_| ());
    let keys: std::collections::BTreeSet<_> = all.iter().map(|one| one.0.clone()).collect();
    assert_eq!((keys.len(), all.len()), (122, 122));
    let count = |key: usize| {
        shown
            .iter()
            .filter(|one| one.0 == format!("k{key}"))
            .count()
    };
    (100..220).map(count).collect()
}

#[test]
fn a_scan_that_compaction_overtakes_shows_every_record_once() {
    assert_eq!(overtaken(20, &[400]), vec![1; 120]);
    assert_eq!(overtaken(20, &[0, 0, 300]), vec![1; 120]);
}

#[test]
fn a_scan_that_compaction_overtakes_several_times_shows_every_record_once() {
    for (page, rewrites) in SEVERAL {
        assert_eq!(
            overtaken(*page, rewrites),
            vec![1; 120],
            "{page} {rewrites:?}"
        );
    }
}

/// Compaction overtakes, is overtaken, and overtakes again, but never goes through the whole log before the scan has.
const SEVERAL: &[(usize, &[usize])] = &[
    (20, &[150, 60, 60]),
    (3, &[100, 60, 20, 20, 20, 20]),
    (3, &[0, 0, 150, 0, 0, 0, 30, 0, 0, 0, 30, 0, 0, 0, 30]),
    (1, &[130, 10, 10, 10, 10, 10, 10, 10, 10, 10]),
];

#[test]
fn a_scan_that_compaction_overtakes_again_and_again_leaves_nothing_out() {
    for (page, rewrites) in [(20, vec![160; 6]), (3, vec![40; 60])] {
        let counts = overtaken(page, &rewrites);
        assert!(counts.iter().all(|count| *count >= 1), "{counts:?}");
    }
}

/// What a reader has seen stays seen while it is away, however often compaction goes through the log meanwhile.
#[test]
fn a_reader_that_was_at_the_end_and_comes_back_later_is_shown_news_only() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    let writer = shard.connect();
    let mut number = 0;
    let mut rewrite = |shard: &mut Shard<TestDriver>, times: usize| {
        for _ in 0..times {
            write(shard, writer, number % 2, number);
            number += 1;
        }
        shard.turns(100);
    };
    for number in 0..40 {
        write(&mut shard, client, 100 + number, number);
    }
    // The reader begins when the cold records have moved already.
    rewrite(&mut shard, 300);
    let mut pages = 0;
    let shown = scan(&mut shard, client, 42, |shard| {
        pages += 1;
        // A page holds a MiB: the fourth is the last that has records.
        if pages == 4 {
            rewrite(shard, 600);
        }
    });
    let cold = shown.iter().filter(|one| one.0.len() == 4).count();
    assert!(
        shard.space.released > 20,
        "{} released",
        shard.space.released
    );
    assert_eq!(cold, 40);
}

/// A hundred and twenty cold keys, some of which compaction had moved before and was moving again when the shard crashed: their
/// copies fill the rest of one segment, which is given, and go on in the next.
fn crashed_in_a_walk() -> (Shard<TestDriver>, u64, u32) {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    for number in 0..120 {
        write(&mut shard, client, 100 + number, number);
    }
    let (mut number, mut copies_in) = (0, 0);
    while shard.space.released < 16 || copies_in == 0 || tail(&shard) == copies_in {
        write(&mut shard, client, number % 2, number);
        number += 1;
        assert!(number < 3000, "no walk whose copies lie in two segments");
        copies_in = match copies(&shard) {
            0 => 0,
            _ if copies_in > 0 => copies_in,
            _ => tail(&shard),
        };
    }
    // The roll reaches the disk.
    shard.turns(3);
    let (shard, client) = restart(shard, 2);
    assert!(copies(&shard) > 0 && oldest(&shard) < copies_in && copies_in < tail(&shard));
    (shard, client, copies_in)
}

/// Each of the cold keys was shown once.
fn assert_each_once(shown: Vec<(String, String, u64, String)>) {
    let mut counts = BTreeMap::new();
    for (key, ..) in shown.into_iter().filter(|one| one.0.len() == 4) {
        *counts.entry(key).or_insert(0) += 1;
    }
    assert_eq!(counts.len(), 120);
    counts.retain(|_, count| *count != 1);
    assert!(counts.is_empty(), "not once: {counts:?}");
}

/// A scan shows its first page; then all is released that has the copies from before the crash.
#[test]
fn a_scan_behind_a_crash_shows_once_what_was_being_copied() {
    let (mut shard, client, copies_in) = crashed_in_a_walk();
    let writer = shard.connect();
    shard.space.hold(true);
    let (mut is_first, mut number) = (true, 0);
    let shown = scan(&mut shard, client, 4, |shard| {
        shard.space.hold(false);
        while is_first && oldest(shard) <= copies_in {
            write(shard, writer, number % 2, number);
            number += 1;
        }
        is_first = false;
        shard.space.hold(true);
    });
    assert!(oldest(&shard) > copies_in, "compaction was there");
    assert_each_once(shown);
}

/// Records that were copied from segments which are still there.
fn copies(shard: &Shard<TestDriver>) -> u64 {
    shard.core.partition.copies.len()
}

fn oldest(shard: &Shard<TestDriver>) -> u32 {
    shard.core.partition.log.first_segment()
}

fn tail(shard: &Shard<TestDriver>) -> u32 {
    shard.core.partition.log.chain().segment
}
