//! The table against a model, with its invariants walked after every step that matters.

use crate::bucket::{self, SLOTS};
use crate::digest::TableKey;
use crate::table::home_among;
use crate::{Bucket, Digest, Entry, Index, IndexError, TableMemory};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;

fn memory(buckets: usize) -> Vec<Bucket> {
    vec![bytemuck::Zeroable::zeroed(); buckets]
}

fn entry(lsn: u64) -> Entry {
    Entry {
        lsn,
        version: u32::try_from(lsn % 1000).unwrap(),
        tombstone: lsn.is_multiple_of(7),
        location: wal::Location {
            segment: u32::try_from(lsn / 100).unwrap(),
            offset: u32::try_from(lsn % 100_000).unwrap() * 8,
        },
        bytes: 512,
    }
}

/// A digest with the 96 bits of a good hash.
fn random_digest(rng: &mut SmallRng) -> Digest {
    Digest::canonical(rng.random())
}

/// The invariants in the header of `table`.
fn check(index: &Index<Vec<Bucket>>) {
    let buckets = index.memory.buckets();
    let mut keys = 0;
    let mut moved = 0;
    // First bucket such that all from it to the one before `at` are full.
    let mut full_since = 0;
    for (at, bucket) in buckets.iter().enumerate() {
        let count = bucket::count(bucket);
        assert!(
            (0..count).all(|slot| bucket::key(bucket, slot).fingerprint != 0),
            "a hole in bucket {at}"
        );
        assert_eq!(bucket::is_full(bucket), count == SLOTS);
        assert!(
            count == 0 || at < index.touched,
            "bucket {at} is used but not counted"
        );
        let found: Vec<TableKey> = (0..count).map(|slot| bucket::key(bucket, slot)).collect();
        for key in &found {
            let home = index.home(key.high);
            assert!(
                home <= at && full_since <= home,
                "bucket {at}: {key:?} of {home} is out of reach"
            );
            moved += u64::from(key.high > index.old_until);
        }
        keys += count as u64;
        if count < SLOTS {
            full_since = at + 1;
        }
    }
    assert_eq!(keys, index.len());
    if index.is_growing() {
        assert_eq!(moved, index.moved);
    }
    assert!(index.moving.is_empty());
}

fn check_against(index: &Index<Vec<Bucket>>, model: &BTreeMap<Digest, Entry>) {
    check(index);
    assert_eq!(index.len(), model.len() as u64);
    for (digest, entry) in model {
        assert_eq!(index.get(*digest), Some(*entry));
    }
}

/// Where digests fall: even, or crowded in ways a keyed hash never shows.
#[derive(Clone, Copy, Debug)]
enum Shape {
    Even,
    /// All on one of a few homes.
    Few(u8),
    /// One `high` for all; only fingerprints differ.
    One(u64),
    /// Crowded at the upper end, where overflow leaves the homes.
    Top,
    Bottom,
    /// Within a ninth of the range, somewhere.
    Ninth(u8),
}

impl Shape {
    fn digest(self, rng: &mut SmallRng) -> Digest {
        let even: u64 = rng.random();
        let high = match self {
            Shape::Even => even,
            Shape::Few(n) => {
                (even % (u64::from(n) + 1)).wrapping_mul(u64::MAX / (u64::from(n) + 1))
            }
            Shape::One(high) => high,
            Shape::Top => !(even >> rng.random_range(0..64)),
            Shape::Bottom => even >> rng.random_range(0..64),
            Shape::Ninth(n) => (u64::MAX / 9) * u64::from(n % 9) + even / 9,
        };
        Digest::canonical(u128::from(high) << 64 | u128::from(rng.random::<u64>()))
    }
}

fn shapes() -> impl Strategy<Value = Shape> {
    prop_oneof![
        Just(Shape::Even),
        (0..9u8).prop_map(Shape::Few),
        prop_oneof![Just(0), Just(u64::MAX), any::<u64>()].prop_map(Shape::One),
        Just(Shape::Top),
        Just(Shape::Bottom),
        any::<u8>().prop_map(Shape::Ninth),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any mix of shapes, any memory: every put is either in the table or refused and changed nothing; the invariants hold after every
    /// single insertion, which is every step of every move.
    #[test]
    fn table_equals_model(
        buckets in 1..90usize,
        sized_for in prop_oneof![Just(0u64), 0..2000u64],
        phases in prop::collection::vec((shapes(), 1..400usize), 1..5),
        seed: u64,
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut index = Index::with_keys(memory(buckets), sized_for);
        let mut model = BTreeMap::new();
        for (lsn, shape) in (1u64..).zip(phases.iter().flat_map(|(shape, n)| std::iter::repeat_n(*shape, *n))) {
            let known = model.len();
            let digest = if known > 0 && rng.random_ratio(1, 4) {
                *model.keys().nth(rng.random_range(0..known)).unwrap()
            } else {
                shape.digest(&mut rng)
            };
            let before = model.get(&digest).copied();
            prop_assert_eq!(index.get(digest), before);
            if rng.random_ratio(1, 5) {
                prop_assert_eq!(index.remove(digest), before);
                model.remove(&digest);
                check(&index);
                continue;
            }
            match index.put(digest, entry(lsn)) {
                Ok(replaced) => {
                    prop_assert_eq!(replaced, before);
                    model.insert(digest, entry(lsn));
                }
                Err(IndexError::Full { keys }) => {
                    prop_assert_eq!(before, None, "a key that is there can always be replaced");
                    prop_assert_eq!(keys, known as u64);
                }
            }
            check(&index);
        }
        check_against(&index, &model);
    }

    /// Slices taken while keys are added and replaced: what was there before the first slice comes exactly once, in order, and nothing comes that is not there.
    #[test]
    fn export_sees_every_key_once_while_the_table_changes(
        shape in shapes(),
        slice in 1..200usize,
        puts_between in 0..120usize,
        start in 0..3000usize,
        seed: u64,
    ) {
        let mut rng = SmallRng::seed_from_u64(seed);
        // Room for any shape: as many buckets of overflow as of homes.
        let mut index = Index::new(memory(2000));
        let mut model = BTreeMap::new();
        for lsn in 1..=start as u64 {
            let digest = shape.digest(&mut rng);
            index.put(digest, entry(lsn)).unwrap();
            model.insert(digest, entry(lsn));
        }
        let first = model.clone();
        let mut exported = Vec::new();
        let mut cursor = Some(Digest(0));
        let mut lsn = start as u64;
        while let Some(from) = cursor {
            let had = exported.len();
            cursor = index.export(from, slice, &mut exported);
            prop_assert!(cursor.is_none() || exported.len() >= had + slice);
            prop_assert!(exported.len() <= had + slice);
            for (digest, given) in &exported[had..] {
                prop_assert_eq!(model.get(digest), Some(given));
            }
            for _ in 0..puts_between.min(9000 - model.len().min(9000)) {
                lsn += 1;
                let digest = shape.digest(&mut rng);
                index.put(digest, entry(lsn)).unwrap();
                model.insert(digest, entry(lsn));
            }
        }
        prop_assert!(exported.is_sorted_by(|a, b| a.0 < b.0));
        let given: BTreeMap<_, _> = exported.into_iter().collect();
        prop_assert!(first.keys().all(|digest| given.contains_key(digest)));
        check_against(&index, &model);
    }
}

/// Every state that growth passes through from one bucket to hundreds, each checked whole.
#[test]
fn every_step_of_growth_keeps_every_key() {
    let mut rng = SmallRng::seed_from_u64(1);
    let mut index = Index::new(memory(400));
    let mut model = BTreeMap::new();
    let (mut growths, mut growing) = (0, false);
    for lsn in 1..=4500 {
        let digest = random_digest(&mut rng);
        index.put(digest, entry(lsn)).unwrap();
        model.insert(digest, entry(lsn));
        growths += u32::from(index.is_growing() && !growing);
        growing = index.is_growing();
        if growing || lsn % 50 == 0 {
            check_against(&index, &model);
        }
    }
    assert!(growths > 20, "{growths} growths were seen half done");
}

/// A half-moved table, stopped at every point of one growth, takes keys on both sides of the border.
#[test]
fn insertions_around_the_border_of_a_move() {
    let mut rng = SmallRng::seed_from_u64(2);
    let mut index = Index::new(memory(2000));
    while !(index.is_growing() && index.new_buckets > 300) {
        index.put(random_digest(&mut rng), entry(1)).unwrap();
    }
    let mut model = BTreeMap::new();
    let mut borders = 0;
    while index.is_growing() {
        let border = index.old_until;
        let near = border.saturating_add_signed(rng.random_range(-1 << 57..1 << 57));
        let digest = Digest::canonical(u128::from(near) << 64 | u128::from(rng.random::<u64>()));
        index.put(digest, entry(2)).unwrap();
        model.insert(digest, entry(2));
        check(&index);
        borders += u32::from(border != index.old_until);
    }
    assert!(borders > 10);
    for (digest, entry) in &model {
        assert_eq!(index.get(*digest), Some(*entry));
    }
}

#[test]
fn memory_stays_within_forty_bytes_a_key() {
    let keys = 3_000_000;
    let mut rng = SmallRng::seed_from_u64(3);
    let mut index = Index::new(memory(keys / 12 + 100));
    let (mut least, mut most) = (f64::MAX, 0f64);
    while index.len() < keys as u64 {
        index.put(random_digest(&mut rng), entry(1)).unwrap();
        if index.len() >= 100_000 {
            #[allow(clippy::cast_precision_loss)]
            let bytes = index.bytes() as f64 / index.len() as f64;
            least = least.min(bytes);
            most = most.max(bytes);
            assert!(bytes <= 40.0, "{bytes} bytes a key at {} keys", index.len());
        }
    }
    println!("{least:.2} to {most:.2} bytes a key");
    check(&index);
}

/// The number that the module's header promises: no insertion moves more than a few hundred buckets.
#[test]
fn one_insertion_moves_a_bounded_part() {
    let mut rng = SmallRng::seed_from_u64(4);
    let mut index = Index::new(memory(40_000));
    let mut most = 0;
    while index.len() < 400_000 {
        let (old, new, until, moved) = (
            index.old_buckets,
            index.new_buckets,
            index.old_until,
            index.moved,
        );
        index.put(random_digest(&mut rng), entry(1)).unwrap();
        if old != new && index.is_growing() {
            assert_eq!(
                new, index.new_buckets,
                "one growth ends before the next begins"
            );
            let buckets = home_among(old, until) - home_among(old, index.old_until);
            most = most.max(buckets);
            assert!(index.moved >= moved);
        }
    }
    println!("{most} buckets at most");
    assert!((4..400).contains(&most), "{most} buckets in one insertion");
}

#[test]
fn full_memory_refuses_new_keys_and_keeps_the_others() {
    for buckets in [1, 2, 3, 7, 40, 200, 1000] {
        let mut rng = SmallRng::seed_from_u64(5);
        let mut index = Index::new(memory(buckets));
        let mut model = BTreeMap::new();
        let refused = loop {
            let digest = random_digest(&mut rng);
            match index.put(digest, entry(9)) {
                Ok(_) => model.insert(digest, entry(9)),
                Err(error) => break (digest, error),
            };
        };
        let keys = model.len() as u64;
        assert_eq!(refused.1, IndexError::Full { keys });
        // A handful of buckets is too few for the odds to hold; from 40 up every promised key fits.
        assert!(
            buckets < 40 || keys == index.capacity_keys(),
            "{keys} keys in {buckets} buckets"
        );
        check_against(&index, &model);
        assert_eq!(index.get(refused.0), None);
        for digest in model.keys().copied().collect::<Vec<_>>() {
            assert_eq!(index.put(digest, entry(11)).unwrap(), Some(entry(9)));
            model.insert(digest, entry(11));
        }
        assert!(index.put(refused.0, entry(12)).is_err());
        check_against(&index, &model);
    }
}

#[test]
fn a_table_sized_in_advance_moves_nothing_on_import() {
    let mut rng = SmallRng::seed_from_u64(6);
    let digests: std::collections::BTreeSet<Digest> =
        (0..100_000).map(|_| random_digest(&mut rng)).collect();
    let mut index = Index::with_keys(memory(12_000), digests.len() as u64);
    let bytes = index.bytes();
    for digest in &digests {
        index.put(*digest, entry(3)).unwrap();
        assert!(!index.is_growing());
    }
    assert!(index.bytes() < bytes + 20_000);
    assert!(index.bytes() <= 38 * index.len());
    check(&index);
    assert!(
        digests
            .iter()
            .all(|digest| index.get(*digest) == Some(entry(3)))
    );
}

/// Prefetching asks only for lines that exist, or one bucket past the end.
#[test]
fn prefetch_asks_for_the_home_and_the_slot() {
    struct Watched(Vec<Bucket>, std::cell::RefCell<Vec<(usize, usize)>>);
    impl TableMemory for Watched {
        fn buckets(&self) -> &[Bucket] {
            &self.0
        }
        fn buckets_mut(&mut self) -> &mut [Bucket] {
            &mut self.0
        }
        fn prefetch(&self, bucket: usize) {
            self.prefetch_line(bucket, 0);
        }
        fn prefetch_line(&self, bucket: usize, line: usize) {
            self.1.borrow_mut().push((bucket, line));
        }
    }
    let mut index = Index::new(Watched(memory(10), std::cell::RefCell::default()));
    let digest = Digest::canonical(u128::MAX / 3);
    index.put(digest, entry(1)).unwrap();
    index.put(Digest::canonical(5), entry(1)).unwrap();
    index.prefetch_many(&[digest, Digest::canonical(5), Digest::canonical(1 << 40)]);
    // Slot 0 begins behind the fingerprints; slot 1 of 28 bytes is on the same line; the third digest is not there, and slot
    // 2, which it would get, lies on two.
    assert_eq!(
        *index.memory.1.borrow(),
        [(0, 0), (0, 0), (0, 0), (0, 1), (0, 1), (0, 1), (0, 2)]
    );
}
