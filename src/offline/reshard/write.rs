//! New logs onto the device: segments filled from front to end, each durable before its file is closed.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::{SyncSender, sync_channel};

use anyhow::Context as _;
use glommio::ExecutorJoinHandle;
use glommio::io::DmaFile;
use indicatif::ProgressBar;
use shard::reshard::Write;
use wal::segment::SegmentHeader;
use wal::{BLOCK_BYTES, LogIdentity};

use super::super::stream::plain;
use super::steps::Steps;

/// Writes in flight.
const WRITES: usize = 8;
/// Writes that wait for the device to be free: with those of a batch's size, what bounds memory.
const WRITES_AHEAD: usize = 32;
/// Zeroes behind the last batch, a write.
const FILL_BYTES: usize = 1 << 20;

/// A new log's place.
#[derive(Clone, Debug)]
pub struct Place {
    pub folder: PathBuf,
    pub identity: LogIdentity,
    pub segment_bytes: u64,
}

/// The thread that writes.
pub struct Writer {
    jobs: Option<SyncSender<(usize, Write)>>,
    thread: Option<ExecutorJoinHandle<anyhow::Result<u64>>>,
}

impl Writer {
    /// The folders must be there.
    pub fn start(
        places: Vec<Place>,
        steps: &Steps,
        progress: &ProgressBar,
    ) -> anyhow::Result<Writer> {
        let (jobs, receiver) = sync_channel::<(usize, Write)>(WRITES_AHEAD);
        let (steps, progress) = (steps.clone(), progress.clone());
        let thread = super::super::executor(None, move || async move {
            let mut logs: Vec<Log> = places.into_iter().map(Log::new).collect();
            for (at, write) in receiver {
                logs[at].write(write, &steps, &progress).await?;
            }
            let mut bytes = 0;
            for log in &mut logs {
                log.close_segment(&steps).await?;
                bytes += log.bytes;
            }
            Ok(bytes)
        })?;
        Ok(Writer {
            jobs: Some(jobs),
            thread: Some(thread),
        })
    }

    /// Takes a write. Waits while the device is behind.
    pub fn write(&mut self, log: usize, write: Write) -> anyhow::Result<()> {
        let sent = self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send((log, write)).is_ok());
        if sent {
            return Ok(());
        }
        self.finish()?;
        anyhow::bail!("the thread that writes the new logs has ended")
    }

    /// Everything is durable. Gives the bytes of the new segments.
    pub fn finish(&mut self) -> anyhow::Result<u64> {
        self.jobs = None;
        match self.thread.take() {
            Some(thread) => thread.join().map_err(plain)?,
            None => Ok(0),
        }
    }
}

/// A new log's open segment.
struct Log {
    place: Place,
    file: Option<Rc<DmaFile>>,
    path: PathBuf,
    segment: u32,
    /// Where the last batch ends.
    end: u64,
    keys: u64,
    in_flight: VecDeque<glommio::Task<anyhow::Result<()>>>,
    bytes: u64,
}

impl Log {
    fn new(place: Place) -> Log {
        Log {
            place,
            file: None,
            path: PathBuf::new(),
            segment: 0,
            end: 0,
            keys: 0,
            in_flight: VecDeque::new(),
            bytes: 0,
        }
    }

    async fn write(
        &mut self,
        write: Write,
        steps: &Steps,
        progress: &ProgressBar,
    ) -> anyhow::Result<()> {
        if self.segment != write.segment {
            self.close_segment(steps).await?;
            self.path = shard::segment_path(&self.place.folder, write.segment - 1);
            let file = DmaFile::create(&self.path).await.map_err(plain);
            let file = file.with_context(|| self.path.display().to_string())?;
            self.file = Some(Rc::new(file));
            (self.segment, self.end) = (write.segment, BLOCK_BYTES as u64);
        }
        assert_eq!(
            u64::from(write.offset),
            self.end,
            "a segment is written from front to end"
        );
        self.end += write.bytes.len() as u64;
        self.keys = write.keys;
        progress.inc(write.bytes.len() as u64);
        self.start(u64::from(write.offset), &write.bytes).await
    }

    /// Starts a write; waits for older ones while there are too many.
    async fn start(&mut self, offset: u64, bytes: &[u8]) -> anyhow::Result<()> {
        while self.in_flight.len() >= WRITES
            && let Some(oldest) = self.in_flight.pop_front()
        {
            oldest.await?;
        }
        let file = self.file.clone().context("a segment is open")?;
        let mut buffer = file.alloc_dma_buffer(bytes.len());
        buffer.as_bytes_mut().copy_from_slice(bytes);
        let (length, path) = (bytes.len(), self.path.clone());
        self.in_flight.push_back(glommio::spawn_local(async move {
            let context = || format!("writing {} at {offset}", path.display());
            let written = file.write_at(buffer, offset).await.map_err(plain);
            let written = written.with_context(context)?;
            anyhow::ensure!(
                written == length,
                "{}: {written} of {length} bytes were taken: is the disk full?",
                context()
            );
            Ok(())
        }));
        Ok(())
    }

    /// Fills the file up with zeroes, as a prepared segment is, gives it its header, and makes it durable.
    async fn close_segment(&mut self, steps: &Steps) -> anyhow::Result<()> {
        if self.file.is_none() {
            return Ok(());
        }
        let zeroes = vec![0; FILL_BYTES];
        while self.end < self.place.segment_bytes {
            let length = FILL_BYTES.min((self.place.segment_bytes - self.end) as usize);
            self.start(self.end, &zeroes[..length]).await?;
            self.end += length as u64;
        }
        let header = SegmentHeader {
            identity: self.place.identity,
            segment: self.segment,
            generation: 1,
            segment_bytes: self.place.segment_bytes,
        };
        let mut block = vec![0; BLOCK_BYTES];
        header.encode_with_keys(&mut block, self.keys);
        self.start(0, &block).await?;
        for write in self.in_flight.drain(..) {
            write.await?;
        }
        let Some(file) = self.file.take() else {
            return Ok(());
        };
        let context = || format!("making {} durable", self.path.display());
        file.fdatasync()
            .await
            .map_err(plain)
            .with_context(context)?;
        file.close_rc().await.map_err(plain).with_context(context)?;
        self.bytes += self.place.segment_bytes;
        steps.passed();
        Ok(())
    }
}
