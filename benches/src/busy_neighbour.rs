//! What does a busy neighbour do to a durable write, and does the machine itself stand still?
//!
//! Durable 4 KiB writes at a bounded rate from the first core, while a thread on the second one sleeps, spins as any program
//! does, or spins after it has asked for a long slice (`uring::scheduling`). Where the disk's interrupt goes to the second
//! core and the device has no FUA, the kernel's workers there decide the latency. The neighbour also looks at the clock: a gap
//! of milliseconds between two of its looks, while nothing else runs on its core, is a machine that was stopped from outside.
//! `standstill` is the longest such gap of every tenth of a second.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::RngCore;
use uring::{Buffer, WriteDurability, file};

use crate::{Bench, Checksum, generator, machine};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 256;
/// Of the first three cases: below what hosts were seen to meter.
const CALM_RATE: u64 = 2_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Neighbour {
    Sleeps,
    Spins,
    GivesWay,
}

const NEIGHBOURS: [(&str, Neighbour); 3] = [
    ("a sleeping neighbour", Neighbour::Sleeps),
    ("a neighbour that spins", Neighbour::Spins),
    ("a neighbour that spins and gives way", Neighbour::GivesWay),
];

/// Durable writes a second, as many as there can be last.
const RATES: [(&str, u64); 4] = [
    ("500 durable writes a second", 500),
    ("2,000 durable writes a second", 2_000),
    ("4,000 durable writes a second", 4_000),
    ("durable writes one after the other", u64::MAX),
];

pub(crate) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let folder = tempfile::tempdir_in(&bench.dir)?;
    let disk = Disk::new(&folder.path().join("blocks"))?;
    let writes = bench.parameter(8, 1_000);
    for (who, neighbour) in NEIGHBOURS {
        bench.case_each(format!("durable write beside {who}"), writes, |each| {
            let (sum, _) = beside(neighbour, || disk.write(writes, CALM_RATE, each));
            sum
        });
    }
    let stretches = bench.parameter(2, 20);
    let stretch = Duration::from_millis(bench.parameter(10, 100));
    for (what, rate) in RATES {
        bench.case_each(format!("standstill beside {what}"), stretches, |longest| {
            for _ in 0..stretches {
                let (_, gap) = beside(Neighbour::GivesWay, || disk.write_for(stretch, rate));
                longest.push(gap.as_nanos() as u64);
            }
            stretches
        });
    }
    Ok(())
}

/// Run `work` on the first core while the neighbour does what it does. What `work` said, and the neighbour's longest gap
/// between two looks at the clock.
fn beside(neighbour: Neighbour, work: impl FnOnce() -> u64) -> (u64, Duration) {
    let over = AtomicBool::new(false);
    let (cores, _) = machine::two_cores();
    let look = || {
        core_affinity::set_for_current(cores[1]);
        if neighbour == Neighbour::GivesWay {
            // Where the scheduler takes no slice the row says what that costs.
            let _ = uring::scheduling::give_way_to_workers();
        }
        let (mut last, mut longest) = (Instant::now(), Duration::ZERO);
        while !over.load(Ordering::Relaxed) {
            let now = Instant::now();
            longest = longest.max(now - last);
            last = now;
        }
        longest
    };
    std::thread::scope(|scope| {
        let neighbour = (neighbour != Neighbour::Sleeps).then(|| scope.spawn(look));
        core_affinity::set_for_current(cores[0]);
        let result = work();
        over.store(true, Ordering::Relaxed);
        let longest = neighbour.map(|thread| thread.join().expect("it only looks at the clock"));
        (result, longest.unwrap_or_default())
    })
}

struct Disk {
    file: OwnedFd,
    bytes: Buffer,
}

impl Disk {
    fn new(path: &std::path::Path) -> anyhow::Result<Disk> {
        let file = file::open_direct(path, true)?;
        file::zero_fill(&file, BLOCKS * BLOCK as u64)?;
        let mut bytes = Buffer::new(BLOCK)?;
        generator(7).fill_bytes(&mut bytes);
        Ok(Disk { file, bytes })
    }

    /// One durable write, one block behind the other.
    fn write_one(&self, round: u64) -> Duration {
        let start = Instant::now();
        let offset = round % BLOCKS * BLOCK as u64;
        file::pwrite_all_with(&self.file, offset, &self.bytes, WriteDurability::Dsync)
            .expect("the device takes writes");
        start.elapsed()
    }

    fn write(&self, writes: u64, rate: u64, each: &mut Vec<u64>) -> u64 {
        let mut checksum = Checksum::default();
        for round in 0..writes {
            let took = self.write_one(round);
            each.push(took.as_nanos() as u64);
            checksum.add(round);
            rest(took, rate);
        }
        checksum.finish()
    }

    fn write_for(&self, time: Duration, rate: u64) -> u64 {
        let start = Instant::now();
        let mut writes = 0;
        while start.elapsed() < time {
            rest(self.write_one(writes), rate);
            writes += 1;
        }
        writes
    }
}

/// What is left of a write's share of a second, slept.
fn rest(took: Duration, rate: u64) {
    std::thread::sleep(Duration::from_nanos(1_000_000_000 / rate).saturating_sub(took));
}
