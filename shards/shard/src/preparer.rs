//! The thread that makes segment files: creates them, writes zeroes over their blocks, makes their header durable. It cuts those to
//! nothing that nobody wants any more.
//!
//! A durable write into blocks that were written before is about twice as fast on ext4 as one into merely allocated
//! blocks, which is why this is done ahead and aside. Where the device has no room for that, blocks stay allocated and
//! unwritten; they read as zeroes all the same (see `fill_pace`). One thread per shard, idle nearly always.

use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uring::Waker;
use wal::BLOCK_BYTES;

use crate::driver::{FileId, SegmentSource};
use crate::fill_pace::{DeviceRate, Fill, FillPace, FillSeen};
use crate::store::{checkpoint_paths, segment_path};

/// How long a descriptor is waited for, and how often it is asked for.
const DESCRIPTOR_PATIENCE: Duration = Duration::from_secs(2);
const DESCRIPTOR_RETRY: Duration = Duration::from_millis(2);

/// One segment file to be made or taken over.
pub struct SegmentJob {
    /// Number in the file's name.
    pub slot: u32,
    /// Whether the file is there already, and its blocks.
    pub source: SegmentSource,
    /// Length of the file.
    pub segment_bytes: u64,
    /// First block.
    pub header: Vec<u8>,
    /// Room that each checkpoint file must have before a new segment may take any.
    pub checkpoint_bytes: u64,
    /// Comes back with the result.
    pub token: u64,
    /// Where the result goes.
    pub done: mpsc::Sender<Prepared>,
    /// Wakes the shard that waits for it.
    pub waker: Waker,
}

/// What came of a job.
pub struct Prepared {
    /// Of the job.
    pub token: u64,
    /// Of the job.
    pub recycled: Option<FileId>,
    /// The file, or why not.
    pub result: io::Result<OwnedFd>,
}

/// What the thread is asked for.
enum Job {
    Make(Box<SegmentJob>),
    /// Cut the file of this slot to nothing.
    Empty(u32),
}

/// Handle of the thread; it ends when this is dropped.
pub struct Preparer {
    jobs: Option<mpsc::Sender<Job>>,
    pace: FillPace,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// Start the thread for the log in `directory`. Call it from a thread that is not pinned: the child inherits the mask.
    pub fn spawn(directory: PathBuf, shard: usize) -> io::Result<Preparer> {
        let (jobs, inbox) = mpsc::channel::<Job>();
        let pace = FillPace::default();
        let held_to = pace.clone();
        let thread = std::thread::Builder::new()
            .name(format!("prepare-{shard}"))
            .spawn(move || {
                for job in inbox {
                    let job = match job {
                        Job::Make(job) => job,
                        Job::Empty(slot) => {
                            empty(&segment_path(&directory, slot));
                            continue;
                        }
                    };
                    let result = prepare(&directory, &job, &held_to);
                    let prepared = Prepared {
                        token: job.token,
                        recycled: job.source.file(),
                        result,
                    };
                    // The shard may be gone; then nobody waits.
                    let _ = job.done.send(prepared);
                    job.waker.wake();
                }
            })?;
        Ok(Preparer {
            jobs: Some(jobs),
            pace,
            thread: Some(thread),
        })
    }

    /// Fill so from now on, also in the middle of a job. Returns what was seen so far.
    pub fn pace(&self, fill: Fill) -> FillSeen {
        self.pace.set(fill);
        self.pace.seen()
    }

    /// Hand a job to the thread.
    pub fn start(&self, job: SegmentJob) {
        self.send(Job::Make(Box::new(job)));
    }

    /// Have the file of this slot cut to nothing, behind what was asked for before.
    pub fn empty(&self, slot: u32) {
        self.send(Job::Empty(slot));
    }

    fn send(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            jobs.send(job)
                .expect("the preparer lives as long as its handle");
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.jobs = None;
        self.pace.set(Fill::Unlimited);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Gives the space of a file back. Where that fails the space stays taken, and the file is filled anew all the same.
fn empty(path: &Path) {
    let cut = (std::fs::OpenOptions::new().write(true).open(path)).and_then(|file| file.set_len(0));
    if let Err(error) = cut {
        tracing::warn!("{}: its space is not given back: {error}", path.display());
    }
}

fn prepare(directory: &Path, job: &SegmentJob, pace: &FillPace) -> io::Result<OwnedFd> {
    // A log that fills the disk must still be able to write the checkpoints that let go of its oldest segments.
    if !job.source.has_space() {
        for path in checkpoint_paths(directory) {
            with_patience(|| uring::file::reserve(&path, job.checkpoint_bytes))?;
        }
    }
    let path = segment_path(directory, job.slot);
    let made = make(&path, job, pace);
    // A half-made file holds space that reads and other shards can use.
    match job.source {
        SegmentSource::New if made.is_err() => drop(std::fs::remove_file(&path)),
        SegmentSource::Emptied(_) if made.is_err() => empty(&path),
        _ => {}
    }
    made
}

/// One step of making a segment file. The simulator takes the same steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Zeroes over these bytes of the file; of a new one some may be left reserved, which reads the same.
    Zero(Range<u64>),
    /// The header into block 0.
    Header,
    /// Make the file's bytes and length durable.
    SyncFile,
    /// Make the file's name durable.
    SyncDirectory,
}

/// The steps in their order. The header comes after everything else is durable: a file with a readable header is whole,
/// and one without, whose first batch is gone, was never used in this life. For that a recycled file loses its
/// first batch before its header, which a crash may tear.
pub fn steps(recycled: bool, segment_bytes: u64) -> [Step; 5] {
    let block = BLOCK_BYTES as u64;
    let zero = if recycled {
        block..2 * block
    } else {
        0..segment_bytes
    };
    [
        Step::Zero(zero),
        Step::SyncFile,
        Step::Header,
        Step::SyncFile,
        Step::SyncDirectory,
    ]
}

/// A burst of connections may hold every descriptor for a moment; those beyond the reserve are closed at once, so one
/// comes free.
fn with_patience<T>(mut open: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let since = Instant::now();
    loop {
        match open() {
            Err(error)
                if uring::file::is_out_of_descriptors(&error)
                    && since.elapsed() < DESCRIPTOR_PATIENCE =>
            {
                std::thread::sleep(DESCRIPTOR_RETRY);
            }
            result => return result,
        }
    }
}

/// Zeroes to the end, or as far as the pace allows.
fn fill(file: &OwnedFd, bytes: u64, pace: &FillPace) -> io::Result<()> {
    let mut fill = uring::file::ZeroFill::begin(file, bytes)?;
    let mut device = DeviceRate::new(pace);
    loop {
        if pace.order() == Fill::Leave && fill.is_reserved() {
            pace.left_one();
            return Ok(());
        }
        let started = Instant::now();
        let Some(bytes) = fill.slice()? else {
            return Ok(());
        };
        device.slice(bytes, started.elapsed());
        pace.rest(bytes, started);
    }
}

fn make(path: &Path, job: &SegmentJob, pace: &FillPace) -> io::Result<OwnedFd> {
    let create = job.source == SegmentSource::New;
    let file = with_patience(|| uring::file::open_direct(path, create))?;
    for step in steps(job.source.has_space(), job.segment_bytes) {
        match step {
            Step::Zero(range) if range.start == 0 => fill(&file, range.end, pace)?,
            Step::Zero(range) => {
                let zeroes = uring::Buffer::new((range.end - range.start) as usize)?;
                uring::file::pwrite_all(&file, range.start, &zeroes)?;
            }
            Step::Header => {
                let mut header = uring::Buffer::new(job.header.len())?;
                header[..job.header.len()].copy_from_slice(&job.header);
                uring::file::pwrite_all(&file, 0, &header[..job.header.len()])?;
            }
            Step::SyncFile => uring::file::fdatasync(&file)?,
            Step::SyncDirectory => {
                if let Some(directory) = path.parent() {
                    with_patience(|| uring::file::sync_directory(directory))?;
                }
            }
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    const SEGMENT_BYTES: u64 = 8 << 20;

    /// A preparer on a directory of its own, and the ring that it wakes.
    struct Bench {
        preparer: Preparer,
        ring: uring::Ring,
        directory: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Bench {
            let directory = tempfile::tempdir_in("/var/tmp").expect("a directory");
            let ring = uring::Ring::new(&uring::RingConfig {
                entries: 4,
                recv_buffers: 2,
                recv_buffer_bytes: 64,
                operations_max: 4,
            });
            Bench {
                preparer: Preparer::spawn(directory.path().to_owned(), 0).expect("a thread"),
                ring: ring.expect("a ring"),
                directory,
            }
        }

        fn make(&mut self, slot: u32, source: SegmentSource) -> OwnedFd {
            let (done, result) = mpsc::channel();
            self.preparer.start(SegmentJob {
                slot,
                source,
                segment_bytes: SEGMENT_BYTES,
                header: vec![7; BLOCK_BYTES],
                checkpoint_bytes: 1 << 20,
                token: 1,
                done,
                waker: self.ring.waker().expect("a waker"),
            });
            let prepared = result.recv().expect("an answer");
            prepared.result.expect("a segment")
        }

        fn path(&self, slot: u32) -> PathBuf {
            segment_path(self.directory.path(), slot)
        }
    }

    /// The bytes of a segment, the space that it has, and what was seen; its file held something else before.
    fn made_with(fill: Fill) -> (Vec<u8>, u64, FillSeen) {
        let mut bench = Bench::new();
        let path = bench.path(3);
        std::fs::write(&path, vec![9; SEGMENT_BYTES as usize]).expect("room");
        bench.preparer.pace(fill);
        drop(bench.make(3, SegmentSource::New));
        let blocks = std::fs::metadata(&path).expect("it is there").blocks();
        let bytes = std::fs::read(&path).expect("it is there");
        let seen = bench.preparer.pace(Fill::Unlimited);
        (bytes, blocks * 512, seen)
    }

    #[test]
    fn a_file_that_was_emptied_takes_no_space_and_is_whole_again_when_it_is_made_anew() {
        let mut bench = Bench::new();
        let path = bench.path(3);
        let handle = bench.make(3, SegmentSource::New);
        std::fs::write(&path, vec![9; SEGMENT_BYTES as usize]).expect("room");
        bench.preparer.empty(3);
        // What it is asked for later is done later.
        drop(bench.make(4, SegmentSource::New));
        let cut = std::fs::metadata(&path).expect("it is there");
        assert_eq!((cut.len(), cut.blocks()), (0, 0));
        drop(bench.make(3, SegmentSource::Emptied(FileId(3))));
        let bytes = std::fs::read(&path).expect("it is there");
        assert_eq!(bytes.len() as u64, SEGMENT_BYTES);
        assert!(bytes[..BLOCK_BYTES].iter().all(|b| *b == 7));
        assert!(bytes[BLOCK_BYTES..].iter().all(|b| *b == 0));
        let mut through_the_handle = uring::Buffer::new(BLOCK_BYTES).expect("memory");
        uring::file::pread_exact(&handle, 0, &mut through_the_handle).expect("the same file");
        assert_eq!(through_the_handle[0], 7);
    }

    #[test]
    fn a_segment_that_is_not_filled_reads_the_same_and_has_its_space() {
        let (filled, filled_bytes, seen) = made_with(Fill::Unlimited);
        assert_eq!(seen.segments_left, 0);
        let (left, left_bytes, seen) = made_with(Fill::Leave);
        assert_eq!(seen.segments_left, 1);
        assert!(
            left == filled,
            "a header and zeroes, of an earlier life nothing"
        );
        assert_eq!(left.len() as u64, SEGMENT_BYTES);
        assert!(filled_bytes >= SEGMENT_BYTES);
        assert!(
            left_bytes >= SEGMENT_BYTES,
            "the log must not run out of space in the middle of a segment"
        );
    }
}
