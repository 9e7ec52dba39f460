//! What does the ring add: a wake-up, a durable write, a read?
//!
//! One operation at a time, each timed from submission to completion, waited for by spinning (as a busy shard does) and by
//! sleeping (as an idle one does). The file is zero-filled, so that a write changes data blocks only. The result is
//! what the completions said, and the bytes that were read back.

use std::rc::Rc;
use std::time::{Duration, Instant};

use rand::RngCore;
use uring::{Buffer, Completion, Ring, RingConfig, Wait, WriteDurability, file};

use crate::{Bench, Checksum, generator};

const BLOCK: usize = 4096;
const TOKEN: u64 = 7;
/// Longer than any operation takes: a device that is slower than that is broken.
const PATIENCE: Duration = Duration::from_secs(10);

const SPINNING: Wait = Wait::Spin {
    at_most: PATIENCE,
    then_sleep: None,
};
const WAITS: [(&str, Wait); 2] = [("spinning", SPINNING), ("sleeping", Wait::Sleep(PATIENCE))];

pub(crate) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let mut ring = Ring::new(&RingConfig {
        entries: 256,
        recv_buffers: 4,
        recv_buffer_bytes: 4096,
        operations_max: 64,
    })?;
    let rounds = bench.parameter(100, 100_000);
    for (how, wait) in WAITS {
        let own = ring.address();
        bench.case_each(format!("message to itself, {how}"), rounds, |each| {
            let mut checksum = Checksum::default();
            for round in 0..rounds {
                let start = Instant::now();
                ring.wake(&own, round).expect("room for one operation");
                match one(&mut ring, wait) {
                    Completion::Woken { message } => checksum.add(message),
                    other => unreachable!("{other:?}"),
                }
                each.push(nanoseconds(start));
            }
            checksum.finish()
        });
    }
    on_disk(bench, &mut ring, false)?;
    on_disk(bench, &mut ring, true)
}

fn on_disk(bench: &mut Bench, ring: &mut Ring, registered: bool) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(&bench.dir)?;
    let path = folder.path().join("blocks");
    let file = Rc::new(file::open_direct(&path, true)?);
    let mut of_which = "";
    if registered {
        ring.register_file(&file)?;
        of_which = " of a registered file";
    }
    let blocks = bench.parameter(16, 4096);
    file::zero_fill(&file, blocks * BLOCK as u64)?;
    let mut bytes = Buffer::new(BLOCK)?;
    generator(2).fill_bytes(&mut bytes);
    let bytes = Rc::new(bytes);
    let rounds = bench.parameter(16, 4_000);
    for (how, wait) in WAITS {
        bench.case_each(
            format!("durable write of 4 KiB{of_which}, {how}"),
            rounds,
            |each| {
                let mut checksum = Checksum::default();
                for round in 0..rounds {
                    let start = Instant::now();
                    // One block behind the other, as a log goes.
                    let offset = round % blocks * BLOCK as u64;
                    ring.write(
                        file.clone(),
                        offset,
                        bytes.clone(),
                        0..BLOCK,
                        WriteDurability::Dsync,
                        TOKEN,
                    )
                    .expect("room for one operation");
                    match one(ring, wait) {
                        Completion::Written { result, .. } => checksum.add(written(result)),
                        other => unreachable!("{other:?}"),
                    }
                    each.push(nanoseconds(start));
                }
                checksum.finish()
            },
        );
    }
    for round in 0..blocks {
        file::pwrite_all(&file, round * BLOCK as u64, &bytes)?;
    }
    let mut spare = Some(Buffer::new(BLOCK)?);
    for (how, wait) in WAITS {
        bench.case_each(format!("read of 4 KiB{of_which}, {how}"), rounds, |each| {
            let mut checksum = Checksum::default();
            for round in 0..rounds {
                let buffer = spare.take().expect("the buffer comes back with every read");
                let start = Instant::now();
                // Not one behind the other: cold keys lie anywhere.
                let offset = round * 2_654_435_761 % blocks * BLOCK as u64;
                ring.read(file.clone(), offset, buffer, BLOCK, TOKEN)
                    .expect("room for one operation");
                match one(ring, wait) {
                    Completion::Read { buffer, result, .. } => {
                        each.push(nanoseconds(start));
                        checksum.add(written(result));
                        checksum.add_bytes(&buffer);
                        spare = Some(buffer);
                    }
                    other => unreachable!("{other:?}"),
                }
            }
            checksum.finish()
        });
    }
    Ok(())
}

/// The next completion.
fn one(ring: &mut Ring, wait: Wait) -> Completion {
    let mut out = Vec::with_capacity(1);
    let start = Instant::now();
    while out.is_empty() {
        ring.turn(wait, &mut out)
            .expect("a ring that was set up turns");
        assert!(start.elapsed() < 2 * PATIENCE, "no completion came");
    }
    assert_eq!(out.len(), 1, "one operation was started");
    out.remove(0)
}

fn written(result: std::io::Result<usize>) -> u64 {
    result.expect("the device takes reads and writes") as u64
}

fn nanoseconds(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
