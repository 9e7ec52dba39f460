//! Every question at smoke size, and that asking twice gives the same result.

use benches::{Bench, QUESTIONS, Row, Size};

fn rows(name: &str) -> Vec<Row> {
    let question = QUESTIONS
        .iter()
        .find(|question| question.0 == name)
        .expect("a question of that name");
    let mut bench = Bench::new(Size::Smoke, std::env::temp_dir());
    bench.ask(*question).unwrap();
    bench.rows().to_vec()
}

/// What was computed does not depend on when, or how fast.
fn is_answered(name: &str, cases: usize) {
    let first = rows(name);
    assert_eq!(first.len(), cases, "{first:?}");
    for (one, other) in first.iter().zip(rows(name)) {
        assert_eq!((&one.case, &one.hash), (&other.case, &other.hash));
        assert!(one.runs >= 3 && one.ns_per_item > 0.0, "{one:?}");
    }
}

#[test]
fn log_append() {
    is_answered("log-append", 6);
}

#[test]
fn recovery() {
    is_answered("recovery", 7);
}

#[test]
fn frame_parse() {
    is_answered("frame-parse", 5);
}

#[test]
fn index_lookup() {
    is_answered("index-lookup", 11);
    let rows = rows("index-lookup");
    let bytes: Vec<f64> = rows.iter().filter_map(|row| row.bytes_per_item).collect();
    assert_eq!(bytes.len(), 2, "one for each number of keys");
    assert!(
        bytes.iter().all(|bytes| (32.0..64.0).contains(bytes)),
        "{bytes:?}"
    );
}

#[test]
fn ring_round_trip() {
    is_answered("ring-round-trip", 10);
}

#[test]
fn mailbox_hop() {
    is_answered("mailbox-hop", 4);
}

#[test]
fn busy_neighbour() {
    is_answered("busy-neighbour", 7);
}
