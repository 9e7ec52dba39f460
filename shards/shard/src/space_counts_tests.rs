//! What compaction goes by: bytes in the log, counted once, padding and idle files included.

use crate::checkpoint_tests::checkpoint;
use crate::space_counts::SpaceCounts;
use crate::space_tests::{begin, read, restart, scan, segment_files, write};
use crate::test_driver::{TestDriver, post};
use crate::turn::Shard;

fn counts(shard: &Shard<TestDriver>) -> (u64, u64) {
    let space = &shard.core.partition.space;
    (space.record_bytes, space.dead_bytes)
}

#[test]
fn a_restart_counts_every_record_once_also_in_the_middle_of_a_walk() {
    let (mut shard, mut client) = begin(r#"{"history_depth":1}"#);
    let mut in_a_walk = 0;
    for number in 0..400 {
        let key = if number < 100 { 8 + number } else { number % 8 };
        write(&mut shard, client, key, number);
        let walks = shard.space.replay_from().is_some();
        if !walks && number % 50 != 49 {
            continue;
        }
        checkpoint(&mut shard);
        let (before, dead_before) = counts(&shard);
        let first = shard.core.partition.log.first_segment();
        (shard, client) = restart(shard, 2 + number as u32);
        let (after, dead_after) = counts(&shard);
        if shard.core.partition.log.first_segment() < first {
            // It was released behind the checkpoint, and is there again.
            continue;
        }
        in_a_walk += u32::from(walks);
        assert_eq!(after, before, "{number}: record bytes, in a walk: {walks}");
        // An estimate: what died while a checkpoint was written may be missing.
        assert!(
            dead_after <= before && dead_after + (2 << 20) > dead_before,
            "{number}"
        );
    }
    assert!(
        in_a_walk > 0,
        "no checkpoint was begun in a walk that went on"
    );
}

/// Three thousand records, each alone in its block.
fn lone_records(policy: &str) -> (Shard<TestDriver>, u64) {
    let (mut shard, client) = begin(policy);
    for number in 0..3_000 {
        let answer = shard.ask(client, post(&format!("k{number}"), "", b"lone"));
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
    shard.turns(500);
    (shard, client)
}

#[test]
fn a_log_of_lone_records_does_not_stay_mostly_padding() {
    let (mut shard, client) = lone_records(r#"{"history_depth":1}"#);
    // Of 3,000 blocks of 4 KiB 250 KB are records, and none of them may go.
    let files = segment_files(&shard);
    assert!(shard.space.released >= 2, "{files} files");
    assert_eq!(scan(&mut shard, client, 500, |_| ()).len(), 3_000);
    let (mut shard, client) = restart(shard, 2);
    assert_eq!(scan(&mut shard, client, 500, |_| ()).len(), 3_000);
    let (_, metrics) = read(&mut shard, client, "/metrics");
    assert!(metrics.contains("pinion_log_padding_bytes{shard=\"0\"} "));
}

#[test]
fn padding_beside_histories_is_left_alone() {
    let (shard, _) = lone_records("{}");
    // A copy of an older version would take a place in the index for the rest of its life.
    assert_eq!(shard.space.released, 0);
    assert_eq!(shard.core.partition.index.len(), 3_000);
}

#[test]
fn files_that_hold_nothing_count_but_do_not_make_copying_dearer_than_it_is_worth() {
    let alive = 1_000_000;
    let holding = |dead, padding| {
        let mut counts = SpaceCounts::default();
        counts.record_bytes = alive + dead;
        counts.dead_bytes = dead;
        counts.padding_bytes = padding;
        counts
    };
    let is_too_much = |dead, padding, idle| holding(dead, padding).is_too_much(Some(idle), 200);
    assert!(!is_too_much(990_000, 0, 0));
    assert!(is_too_much(1_010_000, 0, 0));
    assert!(is_too_much(500_000, 510_000, 0), "padding is no use either");
    assert!(is_too_much(500_000, 0, 510_000), "nor are files that wait");
    assert!(
        !is_too_much(390_000, 0, 9_000_000),
        "but this would not help"
    );
    assert!(is_too_much(410_000, 0, 9_000_000));
    assert!(
        holding(300_000, 0).is_too_much(Some(0), 120),
        "asked for so"
    );
    let beside_histories = holding(900_000, 900_000);
    assert!(!beside_histories.is_too_much(None, 200));
}

/// A log of segments of 64 KiB with keys of one stream, packed from its front as the engine does, by its own counts.
struct Model {
    counts: SpaceCounts,
    /// Of each segment that is there: key and length of its records.
    segments: std::collections::VecDeque<Vec<(usize, u32)>>,
    first: u32,
    open_bytes: u64,
    /// Of each key: segment, place in it, length.
    newest: Vec<(u32, usize, u32)>,
    released: usize,
}

impl Model {
    /// Keys with a record of these lengths.
    fn new(lengths: &[u32]) -> Model {
        let mut model = Model {
            counts: SpaceCounts::default(),
            segments: std::iter::once(Vec::new()).collect(),
            first: 1,
            open_bytes: 0,
            newest: Vec::new(),
            released: 0,
        };
        for (key, length) in lengths.iter().enumerate() {
            let place = model.lay_down(key, *length);
            model.newest.push(place);
        }
        model
    }

    fn lay_down(&mut self, key: usize, length: u32) -> (u32, usize, u32) {
        if self.open_bytes + u64::from(length) > 64 << 10 {
            self.segments.push_back(Vec::new());
            self.open_bytes = 0;
        }
        self.open_bytes += u64::from(length);
        let segment = self.first + self.segments.len() as u32 - 1;
        let open = self.segments.back_mut().expect("the open one");
        open.push((key, length));
        self.counts.laid_down(segment, length.into());
        (segment, open.len() - 1, length)
    }

    fn overwrite(&mut self, key: usize, length: u32) {
        let (segment, _, before) = self.newest[key];
        let class = index::SIZE_CLASSES[index::class_of(before) as usize];
        self.newest[key] = self.lay_down(key, length);
        self.counts.died(segment, class);
        while self.counts.is_too_much(None, 200) && self.segments.len() > 1 {
            self.walk();
        }
    }

    /// The oldest segment is walked: copies are 32 bytes longer than what they are of.
    fn walk(&mut self) {
        let (mut walked, mut copied) = (0, 0);
        for place in 0..self.segments[0].len() {
            let (key, length) = self.segments[0][place];
            walked += u64::from(length);
            if self.newest[key] == (self.first, place, length) {
                copied += u64::from(length);
                let copy = length + if length % 100 == 0 { 32 } else { 0 };
                self.newest[key] = self.lay_down(key, copy);
            }
        }
        self.segments.pop_front();
        self.counts.released(self.first, walked, copied, 0);
        self.first += 1;
        self.released += 1;
    }

    /// What the counts take to be alive, over what is.
    fn error(&self) -> f64 {
        let alive: u64 = self
            .newest
            .iter()
            .map(|(.., length)| u64::from(*length))
            .sum();
        (self.counts.record_bytes - self.counts.dead_bytes) as f64 / alive as f64
    }
}

#[test]
fn what_is_alive_is_known_however_often_it_is_copied_and_overwritten() {
    // Cold keys in front, which every round copies; hot ones whose copies are longer than what overwrites them; two lengths.
    for (lengths, cold) in [([300, 300], 0), ([300, 300], 2_000), ([300, 1700], 1_000)] {
        let length = |n: usize| lengths[n % 2];
        let first: Vec<u32> = (0..4_000).map(length).collect();
        let mut model = Model::new(&first);
        for n in 0..400_000_usize {
            let key = cold + (n * 7_919) % (4_000 - cold);
            model.overwrite(key, length(n / 3));
            if n % 1_000 == 999 {
                let error = model.error();
                assert!(
                    (0.85..1.2).contains(&error),
                    "{lengths:?}, {cold} cold: {error:.2} times what is alive after {n}"
                );
            }
        }
        assert!(model.released > 500, "{} released", model.released);
        let log = model.counts.record_bytes as f64;
        let alive: u32 = model.newest.iter().map(|(.., length)| length).sum();
        assert!(log / f64::from(alive) < 2.3, "{}", log / f64::from(alive));
    }
}
