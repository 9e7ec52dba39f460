//! The thread that makes segment files: creates them, writes zeroes over every block, makes their header durable.
//!
//! A durable write into blocks that were written before is about twice as fast on ext4 as one into merely allocated
//! blocks, which is why this is done ahead and aside. One thread per shard, idle nearly always.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::JoinHandle;

use uring::Waker;

use crate::driver::FileId;
use crate::store::segment_path;

/// One segment file to be made or taken over.
pub struct SegmentJob {
    pub slot: u32,
    pub recycle: Option<FileId>,
    pub segment_bytes: u64,
    pub header: Vec<u8>,
    pub token: u64,
    pub done: mpsc::Sender<Prepared>,
    pub waker: Waker,
}

/// What came of a job.
pub struct Prepared {
    pub token: u64,
    pub recycled: Option<FileId>,
    pub result: io::Result<OwnedFd>,
}

/// Handle of the thread; it ends when this is dropped.
pub struct Preparer {
    jobs: Option<mpsc::Sender<SegmentJob>>,
    thread: Option<JoinHandle<()>>,
}

impl Preparer {
    /// Start the thread for the log in `directory`. Call it from a thread that is not pinned: the child inherits the mask.
    pub fn spawn(directory: PathBuf, shard: usize) -> io::Result<Preparer> {
        let (jobs, inbox) = mpsc::channel::<SegmentJob>();
        let thread = std::thread::Builder::new().name(format!("prepare-{shard}")).spawn(move || {
            for job in inbox {
                let result = prepare(&directory, &job);
                let prepared = Prepared { token: job.token, recycled: job.recycle, result };
                // The shard may be gone; then nobody waits.
                let _ = job.done.send(prepared);
                job.waker.wake();
            }
        })?;
        Ok(Preparer { jobs: Some(jobs), thread: Some(thread) })
    }

    pub fn start(&self, job: SegmentJob) {
        if let Some(jobs) = &self.jobs {
            jobs.send(job).expect("the preparer lives as long as its handle");
        }
    }
}

impl Drop for Preparer {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn prepare(directory: &Path, job: &SegmentJob) -> io::Result<OwnedFd> {
    let path = segment_path(directory, job.slot);
    let made = make(&path, job);
    if made.is_err() && job.recycle.is_none() {
        // A half-made file holds space that reads and other shards can use.
        let _ = std::fs::remove_file(&path);
    }
    made
}

fn make(path: &Path, job: &SegmentJob) -> io::Result<OwnedFd> {
    let file = uring::file::open_direct(path, job.recycle.is_none())?;
    if job.recycle.is_none() {
        uring::file::zero_fill(&file, job.segment_bytes)?;
    }
    let mut header = uring::Buffer::new(job.header.len())?;
    header[..job.header.len()].copy_from_slice(&job.header);
    uring::file::pwrite_all(&file, 0, &header[..job.header.len()])?;
    uring::file::fdatasync(&file)?;
    if let Some(directory) = path.parent() {
        uring::file::sync_directory(directory)?;
    }
    Ok(file)
}
