//! What is alive is known, however often it is copied and overwritten: the counts against a small model of a log.

use std::collections::VecDeque;

use super::{Found, SpaceCounts, died_about};

#[derive(Clone, Copy, PartialEq)]
struct Record {
    key: usize,
    version: u32,
    /// Of the copy, and of what it is of.
    lsn: u64,
    first_lsn: u64,
    bytes: u32,
}

/// A log of segments of 64 KiB with keys of one stream, packed from its front as the engine does, by its own counts.
struct Model {
    counts: SpaceCounts,
    depth: u32,
    /// Of each segment that is there: its records.
    segments: VecDeque<Vec<Record>>,
    first: u32,
    open_bytes: u64,
    next_lsn: u64,
    /// Of each key: the segments and records of the versions that are shown, oldest first.
    shown: Vec<VecDeque<(u32, Record)>>,
    released: usize,
}

impl Model {
    /// Keys with a record of these lengths.
    fn new(depth: u32, lengths: &[u32]) -> Model {
        let mut model = Model {
            counts: SpaceCounts::default(),
            depth,
            segments: std::iter::once(Vec::new()).collect(),
            first: 1,
            open_bytes: 0,
            next_lsn: 1,
            shown: vec![VecDeque::new(); lengths.len()],
            released: 0,
        };
        for (key, bytes) in lengths.iter().enumerate() {
            model.write(key, *bytes);
        }
        model
    }

    fn open(&self) -> u32 {
        self.first + self.segments.len() as u32 - 1
    }

    /// `record` with the next lsn: the segment that it lies in, and as it lies there.
    fn lay_down(&mut self, record: Record) -> (u32, Record) {
        if self.open_bytes + u64::from(record.bytes) > 64 << 10 {
            self.segments.push_back(Vec::new());
            self.open_bytes = 0;
        }
        self.open_bytes += u64::from(record.bytes);
        let lsn = self.next_lsn;
        self.next_lsn += 1;
        let record = Record { lsn, ..record };
        self.segments.back_mut().expect("the open one").push(record);
        let segment = self.open();
        self.counts.laid_down(segment, record.bytes.into());
        (segment, record)
    }

    fn write(&mut self, key: usize, bytes: u32) {
        let before = self.shown[key].back().copied();
        let version = before.map_or(1, |(_, newest)| newest.version + 1);
        let laid = self.lay_down(Record {
            key,
            version,
            lsn: 0,
            first_lsn: self.next_lsn,
            bytes,
        });
        self.shown[key].push_back(laid);
        if let Some((segment, newest)) = before.filter(|_| version > self.depth) {
            self.shown[key].pop_front();
            let class = index::SIZE_CLASSES[index::class_of(newest.bytes) as usize];
            match self.depth {
                1 => self.counts.died(segment, class),
                _ => self.counts.died_somewhere(class),
            }
        }
    }

    fn overwrite(&mut self, key: usize, bytes: u32) {
        self.write(key, bytes);
        while self.is_space_wanted() {
            self.walk();
        }
    }

    fn is_space_wanted(&self) -> bool {
        (self.counts.is_too_much(None, 200) || self.counts.looks) && self.segments.len() > 1
    }

    /// The stream's policy shows fewer versions from here on.
    fn show_fewer(&mut self, depth: u32) {
        self.depth = depth;
        for versions in &mut self.shown {
            versions.drain(..versions.len().saturating_sub(depth as usize));
        }
        self.counts.looks = true;
    }

    /// The oldest segment is walked: some copies are 32 bytes longer than what they are of.
    fn walk(&mut self) {
        let mut found = Found::default();
        for record in self.segments[0].clone() {
            found.walked += u64::from(record.bytes);
            let shown = &self.shown[record.key];
            if let Some(at) = shown.iter().position(|(_, one)| *one == record) {
                found.copied += u64::from(record.bytes);
                let longer = if record.bytes.is_multiple_of(100) {
                    32
                } else {
                    0
                };
                let copy = Record {
                    bytes: record.bytes + longer,
                    ..record
                };
                self.shown[record.key][at] = self.lay_down(copy);
            } else if self.depth > 1 {
                let (_, newest) = shown.back().expect("written once");
                let newest = (newest.lsn, newest.version);
                let died_lsn = died_about((record.first_lsn, record.version), newest, self.depth);
                if self.counts.was_dead(died_lsn) {
                    found.was_dead += u64::from(record.bytes);
                }
            }
        }
        self.segments.pop_front();
        let end = (self.open(), self.next_lsn);
        self.counts.released(self.first, found, end);
        self.first += 1;
        self.released += 1;
    }

    fn alive_bytes(&self) -> u64 {
        let all = self.shown.iter().flatten();
        all.map(|(_, record)| u64::from(record.bytes)).sum()
    }

    /// What the counts take to be alive, over what is.
    fn error(&self) -> f64 {
        self.counts.alive_bytes() as f64 / self.alive_bytes() as f64
    }
}

/// Cold keys in front, which every round copies; hot ones whose copies are longer than what overwrites them; two lengths.
const SHAPES: [([u32; 2], usize); 3] = [([300, 300], 0), ([300, 300], 2_000), ([300, 1700], 1_000)];

#[test]
fn what_is_alive_is_known_however_often_it_is_copied_and_overwritten() {
    for depth in [1, 2, 8] {
        for (lengths, cold) in SHAPES {
            let keys = 4_000 / depth as usize;
            let cold = cold / depth as usize;
            let length = |n: usize| lengths[n % 2];
            let first: Vec<u32> = (0..keys).map(length).collect();
            let mut model = Model::new(depth, &first);
            let mut random = 1_u64;
            for n in 0..1_000_000_usize {
                // A linear congruential generator: Knuth's constants for MMIX.
                random = (random.wrapping_mul(6_364_136_223_846_793_005))
                    .wrapping_add(1_442_695_040_888_963_407);
                let key = cold + (random >> 33) as usize % (keys - cold);
                model.overwrite(key, length(n / 3));
                if n % 1_000 == 999 {
                    let error = model.error();
                    assert!(
                        (0.8..1.2).contains(&error),
                        "depth {depth}, {lengths:?}, {cold} cold: {error:.2} times what is alive after {n}"
                    );
                }
            }
            assert!(model.released > 500, "{} released", model.released);
            let log = model.counts.record_bytes as f64 / model.alive_bytes() as f64;
            assert!(log < 2.3, "{log}");
        }
    }
}

#[test]
fn what_was_thought_wrong_of_before_a_restart_is_set_right_in_two_rounds() {
    for wrong_percent in [0, 50, 150] {
        let mut model = Model::new(8, &[300; 500]);
        for n in 0..40_000 {
            model.overwrite(n * 7_919 % 500, 300);
        }
        // Of what a checkpoint remembered.
        let counts = &mut model.counts;
        let dead_bytes = counts.dead_bytes * wrong_percent / 100;
        *counts = SpaceCounts {
            record_bytes: counts.record_bytes,
            dead_bytes: dead_bytes.min(counts.record_bytes),
            ..SpaceCounts::default()
        };
        for n in 0..40_000 {
            model.overwrite(n * 7_919 % 500, 300);
        }
        let error = model.error();
        assert!((0.8..1.2).contains(&error), "{wrong_percent} %: {error:.2}");
    }
}

/// More is found dead than was thought to be; none of that is put back when the round ends.
#[test]
fn what_a_smaller_policy_ended_is_not_dead_twice() {
    let mut model = Model::new(10, &[300; 500]);
    for n in 0..60_000 {
        model.overwrite(n * 7_919 % 500, 300);
    }
    model.show_fewer(2);
    for n in 0..20_000 {
        model.write(n * 7_919 % 500, 300);
        if n % 20 == 0 && model.is_space_wanted() {
            model.walk();
        }
        // Nobody knows at once how much it ended; but most that is alive is not taken for dead.
        let error = model.error();
        assert!(error > 0.75, "{error:.2} times what is alive after {n}");
    }
    let error = model.error();
    assert!((0.8..1.2).contains(&error), "{error:.2}");
}

/// Of a restart is known how much will age, not where it lies: it leaves with the segments from before.
#[test]
fn what_was_to_age_behind_a_restart_and_is_gone_does_not_die_again() {
    let segment_bytes = 1_000_000;
    let mut counts = SpaceCounts {
        record_bytes: 10 * segment_bytes,
        dead_bytes: 5 * segment_bytes,
        aging: [(0, 1_000, 10 * segment_bytes)].into(),
        ..SpaceCounts::default()
    };
    // A segment is written for each that is released, half of whose records were copied.
    let found = Found {
        walked: segment_bytes,
        copied: segment_bytes / 2,
        ..Found::default()
    };
    for segment in 1..=10 {
        let open = 10 + segment;
        counts.laid_down(open, segment_bytes);
        counts.will_age(open, 5_000, segment_bytes);
        counts.died(open, 4096);
        counts.released(segment, found, (open, 100 * u64::from(open)));
        assert!(counts.aging_bytes() <= 10 * segment_bytes, "{segment}");
    }
    let alive = counts.alive_bytes();
    counts.age(2_000);
    assert_eq!(counts.alive_bytes(), alive);
    counts.age(6_000);
    assert!(counts.alive_bytes() < alive / 10);
}

/// What ends later at the latest holds up nothing that ends now.
#[test]
fn what_was_there_before_a_restart_holds_up_nothing_that_ages() {
    let mut counts = SpaceCounts {
        record_bytes: 5_000,
        aging: [(0, 9_000, 5_000)].into(),
        ..SpaceCounts::default()
    };
    counts.laid_down(7, 300);
    counts.will_age(7, 1_000, 300);
    counts.age(2_000);
    assert_eq!(counts.dead_bytes, 300);
}
