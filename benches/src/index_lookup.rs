//! What does a lookup cost, alone and in a batch, and how much memory does a key take?
//!
//! The shipped table on the shipped memory (huge pages where the machine allows them). Keys are drawn uniformly. `batched` asks for the cache
//! lines of 64 keys before it touches the first, as the shard does with the records of a receive.

use index::{Digest, DigestKey, Entry, Index};
use rand::Rng;
use shard::IndexMemory;
use uring::Region;
use wal::Location;

use crate::log_append::{KEY_BYTES, key};
use crate::{Bench, Checksum, Size, generator};

const BATCH: usize = 64;

pub(crate) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let digests = DigestKey::new(*b"key of a digest.");
    let count = bench.parameter(1_000, 5_000_000);
    bench.case(
        format!("digest of a {KEY_BYTES}-byte key"),
        count,
        0,
        || {
            let mut checksum = Checksum::default();
            for number in 0..count {
                let digest = digests.digest(1, &key(number)).0;
                checksum.add((digest >> 64) as u64 ^ digest as u64);
            }
            checksum.finish()
        },
    );
    let sizes: &[u64] = match bench.size() {
        Size::Smoke => &[1_000, 20_000],
        Size::Real => &[1_000, 1_000_000, 10_000_000],
    };
    for keys in sizes {
        with_keys(bench, &digests, *keys)?;
    }
    Ok(())
}

fn with_keys(bench: &mut Bench, digests: &DigestKey, keys: u64) -> anyhow::Result<()> {
    let all: Vec<Digest> = (0..keys)
        .map(|number| digests.digest(1, &key(number)))
        .collect();
    let buckets = usize::try_from(keys)? / 8 + 64;
    let insert_all = |index: &mut Index<IndexMemory>| {
        for (number, digest) in all.iter().enumerate() {
            index
                .put(*digest, entry(number as u64))
                .expect("room for every key");
        }
        assert_eq!(index.len(), keys);
        index.bytes()
    };
    let empty = || Region::reserve(buckets).map(|region| Index::new(IndexMemory(region)));
    bench.case_prepared(
        format!("{keys} keys: insert into a growing table"),
        keys,
        0,
        || empty().expect("address space for an index"),
        |mut index| (insert_all(&mut index), Some(index)),
    );
    let mut index = empty()?;
    bench.note_bytes_per_item(insert_all(&mut index) as f64 / keys as f64);

    let draws: Vec<Digest> = {
        let mut random = generator(keys);
        let count = bench.parameter(2_048, 4 << 20);
        (0..count)
            .map(|_| all[random.random_range(0..all.len())])
            .collect()
    };
    let items = draws.len() as u64;
    bench.case(format!("{keys} keys: get"), items, 0, || {
        let mut checksum = Checksum::default();
        for digest in &draws {
            checksum.add(found(&index, *digest));
        }
        checksum.finish()
    });
    bench.case(format!("{keys} keys: get, batched"), items, 0, || {
        let mut checksum = Checksum::default();
        for batch in draws.chunks(BATCH) {
            index.prefetch_many(batch);
            for digest in batch {
                checksum.add(found(&index, *digest));
            }
        }
        checksum.finish()
    });
    // What an append does: read the newest record, put the next one in its place.
    bench.case_prepared(
        format!("{keys} keys: get and put"),
        items,
        0,
        || (),
        |()| {
            let mut checksum = Checksum::default();
            for (number, digest) in draws.iter().enumerate() {
                checksum.add(replace(&mut index, *digest, number));
            }
            (finish_puts(&index, checksum), None::<()>)
        },
    );
    bench.case_prepared(
        format!("{keys} keys: get and put, batched"),
        items,
        0,
        || (),
        |()| {
            let mut checksum = Checksum::default();
            for (number, batch) in draws.chunks(BATCH).enumerate() {
                index.prefetch_many(batch);
                for (nth, digest) in batch.iter().enumerate() {
                    checksum.add(replace(&mut index, *digest, number * BATCH + nth));
                }
            }
            (finish_puts(&index, checksum), None::<()>)
        },
    );
    Ok(())
}

fn entry(lsn: u64) -> Entry {
    Entry {
        lsn,
        version: 1,
        tombstone: false,
        location: Location {
            segment: 1,
            offset: (lsn % (1 << 26)) as u32 * 8,
        },
        bytes: 320,
    }
}

#[inline]
fn found(index: &Index<IndexMemory>, digest: Digest) -> u64 {
    index.get(digest).expect("every drawn key was inserted").lsn
}

/// Returns what is the same in every run, whatever the run before left behind.
#[inline]
fn replace(index: &mut Index<IndexMemory>, digest: Digest, number: usize) -> u64 {
    let before = index.get(digest).expect("every drawn key was inserted");
    index
        .put(digest, entry(number as u64))
        .expect("the key is there already");
    u64::from(before.version)
}

fn finish_puts(index: &Index<IndexMemory>, mut checksum: Checksum) -> u64 {
    checksum.add(index.len());
    checksum.add(index.bytes());
    checksum.finish()
}
