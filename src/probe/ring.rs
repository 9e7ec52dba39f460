//! Writes and reads of one size, so many in flight, on a raw ring: what the log does to the device, and nothing else.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use uring::{Buffer, Completion, Ring, RingConfig, Wait, WriteDurability, file};

use super::{Method, SPAN_BYTES, Series};

const DEPTH_MAX: usize = 64;

/// A ring and the scratch files that it works on. They have no name any more: nothing is left behind however this ends.
pub struct Bench {
    ring: Ring,
    /// Every byte of it has been written.
    written: Rc<OwnedFd>,
    /// The same file, opened with O_DSYNC.
    written_dsync: Rc<OwnedFd>,
    /// Space that is reserved and was never written.
    unwritten: Rc<OwnedFd>,
}

/// What one series does over and over.
#[derive(Clone, Copy, Debug)]
enum Step {
    Write(Method),
    /// Into space that was never written: the filesystem has to remember each.
    WriteUnwritten,
    Read,
}

impl Bench {
    /// Makes the files in `data`; takes as long as writing [`SPAN_BYTES`].
    pub fn new(data: &Path) -> anyhow::Result<Bench> {
        let ring = Ring::new(&RingConfig {
            entries: DEPTH_MAX as u32,
            recv_buffers: 1,
            recv_buffer_bytes: 4096,
            operations_max: 2 * DEPTH_MAX as u32,
        })?;
        let path = |name: &str| data.join(format!(".probe-{name}-{}", std::process::id()));
        let written = path("written");
        let scratch = file::open_direct(&written, true)?;
        let dsync = file::open_direct_dsync(&written, false);
        std::fs::remove_file(&written)?;
        let unwritten = path("unwritten");
        let reserved = file::open_direct(&unwritten, true)?;
        std::fs::remove_file(&unwritten)?;
        file::zero_fill(&scratch, SPAN_BYTES).context("filling the scratch file")?;
        file::preallocate(&reserved, SPAN_BYTES).context("reserving the scratch file")?;
        Ok(Bench {
            ring,
            written: Rc::new(scratch),
            written_dsync: Rc::new(dsync?),
            unwritten: Rc::new(reserved),
        })
    }

    /// Durable writes into written extents.
    pub fn writes(
        &mut self,
        method: Method,
        bytes: usize,
        depth: usize,
        time: Duration,
    ) -> io::Result<Series> {
        self.series(Step::Write(method), bytes, depth, time)
    }

    /// Durable writes (RWF_DSYNC) into space that is only reserved; ends early when it is used up.
    pub fn unwritten_writes(
        &mut self,
        bytes: usize,
        depth: usize,
        time: Duration,
    ) -> io::Result<Series> {
        self.series(Step::WriteUnwritten, bytes, depth, time)
    }

    /// Reads of written extents, spread over the file.
    pub fn reads(&mut self, bytes: usize, depth: usize, time: Duration) -> io::Result<Series> {
        self.series(Step::Read, bytes, depth, time)
    }

    fn series(
        &mut self,
        step: Step,
        bytes: usize,
        depth: usize,
        time: Duration,
    ) -> io::Result<Series> {
        assert!((1..=DEPTH_MAX).contains(&depth), "a depth of {depth}");
        let places = SPAN_BYTES / bytes as u64;
        let mut buffers = Vec::new();
        for salt in 0..depth as u64 {
            let mut buffer = Buffer::new(bytes)?;
            fill(&mut buffer, salt);
            buffers.push(Some(Rc::new(buffer)));
        }
        let mut begun = vec![Instant::now(); depth];
        let mut latencies = Vec::new();
        let mut next = 0;
        let started = Instant::now();
        let mut out = Vec::new();
        // A slot writes or reads, syncs if its method asks for that, and goes on with the next place.
        for (slot, begun) in begun.iter_mut().enumerate() {
            *begun = Instant::now();
            self.start(step, bytes, place(step, next, places), slot, &mut buffers)?;
            next += 1;
        }
        let mut running = depth;
        while running > 0 {
            self.ring
                .turn(Wait::Sleep(Duration::from_secs(10)), &mut out)?;
            for completion in out.drain(..) {
                let slot = match self.one_done(step, completion, bytes, &mut buffers)? {
                    ControlFlow::Continue(()) => continue,
                    ControlFlow::Break(slot) => slot,
                };
                latencies.push(begun[slot].elapsed());
                let used_up = matches!(step, Step::WriteUnwritten) && next >= places;
                if started.elapsed() >= time || used_up {
                    running -= 1;
                    continue;
                }
                begun[slot] = Instant::now();
                self.start(step, bytes, place(step, next, places), slot, &mut buffers)?;
                next += 1;
            }
        }
        Ok(Series::new(latencies, bytes, started.elapsed()))
    }

    fn start(
        &mut self,
        step: Step,
        bytes: usize,
        place: u64,
        slot: usize,
        buffers: &mut [Option<Rc<Buffer>>],
    ) -> io::Result<()> {
        let offset = place * bytes as u64;
        let (file, durability) = match step {
            Step::Write(Method::Dsync) => (&self.written, WriteDurability::Dsync),
            Step::Write(Method::OpenDsync) => (&self.written_dsync, WriteDurability::None),
            Step::Write(Method::Fdatasync) => (&self.written, WriteDurability::None),
            Step::WriteUnwritten => (&self.unwritten, WriteDurability::Dsync),
            Step::Read => {
                let buffer = buffers[slot].take().expect("the slot is at rest");
                let buffer = Rc::into_inner(buffer).expect("the operation has let go of it");
                return self.ring.read(
                    Rc::clone(&self.written),
                    offset,
                    buffer,
                    bytes,
                    slot as u64,
                );
            }
        };
        let buffer = buffers[slot].as_ref().expect("writes keep their buffers");
        let (file, buffer) = (Rc::clone(file), Rc::clone(buffer));
        self.ring
            .write(file, offset, buffer, 0..bytes, durability, slot as u64)
    }

    /// Break: the slot's work is done.
    fn one_done(
        &mut self,
        step: Step,
        completion: Completion,
        bytes: usize,
        buffers: &mut [Option<Rc<Buffer>>],
    ) -> io::Result<ControlFlow<usize>> {
        let whole = |result: io::Result<usize>| match result? {
            count if count == bytes => Ok(()),
            count => Err(io::Error::other(format!("{count} of {bytes} bytes"))),
        };
        match completion {
            Completion::Written { token, result } => {
                whole(result)?;
                if matches!(step, Step::Write(Method::Fdatasync)) {
                    self.ring.fdatasync(Rc::clone(&self.written), token)?;
                    return Ok(ControlFlow::Continue(()));
                }
                Ok(ControlFlow::Break(token as usize))
            }
            Completion::Synced { token, result } => {
                result?;
                Ok(ControlFlow::Break(token as usize))
            }
            Completion::Read {
                token,
                buffer,
                result,
            } => {
                whole(result)?;
                buffers[token as usize] = Some(Rc::new(buffer));
                Ok(ControlFlow::Break(token as usize))
            }
            _ => Ok(ControlFlow::Continue(())),
        }
    }
}

/// Writes go forward, as a log does; reads jump, as lookups do.
fn place(step: Step, next: u64, places: u64) -> u64 {
    match step {
        Step::Write(_) | Step::WriteUnwritten => next % places,
        Step::Read => next.wrapping_mul(0x9e37_79b9_7f4a_7c15) % places,
    }
}

/// Not zeroes: a device that compresses or deduplicates would flatter itself.
fn fill(buffer: &mut Buffer, salt: u64) {
    for (word, chunk) in buffer.chunks_exact_mut(8).enumerate() {
        let mixed = (word as u64 ^ salt << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        chunk.copy_from_slice(&mixed.to_le_bytes());
    }
}

/// Kernel threads that work for this process's rings (io-wq): there are some once an operation could not be done without
/// waiting and was handed to one.
pub fn worker_threads() -> usize {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else {
        return 0;
    };
    tasks
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok())
        .filter(|name| name.starts_with("iou-wrk"))
        .count()
}
