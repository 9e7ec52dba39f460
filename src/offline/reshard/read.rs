//! The two readings of an old log: one that learns what must be known of it, one that hands out its records in order.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use anyhow::Context as _;
use glommio::ExecutorJoinHandle;
use index::checkpoint::CheckpointHeader;
use indicatif::ProgressBar;
use shard::reshard::{Copied, Source, SourceError};
use wal::extension::Relocated;
use wal::record::{Kind, RecordCodec, RecordView};
use wal::superblock::Superblock;
use wal::{Location, LogIdentity};

use super::super::dir::LogFiles;
use super::super::report::LogSurvey;
use super::super::stream::Reader;
use super::super::survey::{Sink, survey};

/// Record bytes in one chunk of copies.
const COPIES_BYTES: usize = 4 << 20;
/// Chunks that wait to be taken, per log: what bounds memory.
const CHUNKS_AHEAD: usize = 1;

/// The first reading.
pub struct Learning {
    pub source: Source,
    /// Records that lie where they were written first.
    pub originals: u64,
    pub error: Option<SourceError>,
}

impl Sink for Learning {
    fn wants_checkpoint(&self) -> bool {
        true
    }

    fn page(&mut self, header: &CheckpointHeader, number: u64, bytes: &[u8]) -> anyhow::Result<()> {
        Ok(self.source.checkpoint_page(header, number, bytes)?)
    }

    fn record(&mut self, location: Location, record: &RecordView<'_>) {
        self.originals += u64::from(is_original(record));
        if self.error.is_none() {
            self.error = self.source.record(location, record).err();
        }
    }
}

fn is_original(record: &RecordView<'_>) -> bool {
    matches!(record.kind, Kind::Put | Kind::Tombstone) && Relocated::of(record.extensions).is_none()
}

/// Where a record stands in a chunk.
struct Place {
    /// lsn of its first place.
    first: u64,
    lsn: u64,
    timestamp_us: u64,
    offset: usize,
}

/// Some records of a log, in order.
struct Chunk {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

/// The second reading.
struct Sending {
    places: Vec<Place>,
    end: usize,
    chunks: SyncSender<Chunk>,
}

impl Sink for Sending {
    fn record(&mut self, location: Location, record: &RecordView<'_>) {
        if is_original(record) {
            self.end = location.offset as usize + record.bytes;
            self.places.push(Place {
                first: record.lsn,
                lsn: record.lsn,
                timestamp_us: record.timestamp_us,
                offset: location.offset as usize,
            });
        }
    }

    fn segment(&mut self, _segment: u32, bytes: &[u8]) -> anyhow::Result<()> {
        if self.places.is_empty() {
            return Ok(());
        }
        let chunk = Chunk {
            bytes: bytes[..self.end].to_vec(),
            places: std::mem::take(&mut self.places),
        };
        self.chunks.send(chunk).ok().context(GONE)
    }
}

const GONE: &str = "nobody takes the records of this log any more";

/// The records of an old log, one after the other.
pub struct Records {
    codec: RecordCodec,
    chunks: Receiver<Chunk>,
    chunk: Chunk,
    at: usize,
    reader: Option<ExecutorJoinHandle<anyhow::Result<()>>>,
}

impl Records {
    /// Starts reading, on a thread of its own: what compaction copied first, by its first place, then what lies where it was
    /// written. Both are in the order of their first lsns.
    pub fn read(
        files: LogFiles,
        superblock: &Superblock,
        identity: LogIdentity,
        first: &LogSurvey,
        copied: &[Copied],
        progress: &ProgressBar,
    ) -> anyhow::Result<Records> {
        let (chunks, receiver) = sync_channel(CHUNKS_AHEAD);
        let (superblock, progress) = (Some(superblock.clone()), progress.clone());
        let segments: Vec<(u32, PathBuf)> = first
            .segments
            .iter()
            .filter_map(|row| Some((row.segment?, files.directory.join(&row.file))))
            .collect();
        let copied = copied.to_vec();
        let reader = super::super::executor(None, move || async move {
            send_copies(&identity, &segments, &copied, &chunks).await?;
            let mut sink = Sending {
                places: Vec::new(),
                end: 0,
                chunks,
            };
            survey(files, &superblock, &progress, &mut sink).await?;
            Ok(())
        })?;
        Ok(Records {
            codec: RecordCodec::new(&identity),
            chunks: receiver,
            chunk: Chunk {
                bytes: Vec::new(),
                places: Vec::new(),
            },
            at: 0,
            reader: Some(reader),
        })
    }

    /// Time of the next record; None behind the last one.
    pub fn next_us(&mut self) -> anyhow::Result<Option<u64>> {
        while self.at == self.chunk.places.len() {
            self.at = 0;
            // The one before is let go first.
            self.chunk = Chunk {
                bytes: Vec::new(),
                places: Vec::new(),
            };
            match self.chunks.recv() {
                Ok(chunk) => self.chunk = chunk,
                Err(_) => {
                    if let Some(reader) = self.reader.take() {
                        reader.join().map_err(super::super::stream::plain)??;
                    }
                    return Ok(None);
                }
            }
        }
        Ok(Some(self.chunk.places[self.at].timestamp_us))
    }

    /// The next record and the lsn of its first place.
    pub fn take(&mut self) -> anyhow::Result<(u64, RecordView<'_>)> {
        let place = &self.chunk.places[self.at];
        self.at += 1;
        let record = self
            .codec
            .decode(place.lsn, &self.chunk.bytes[place.offset..])
            .with_context(|| format!("lsn {}", place.lsn))?;
        Ok((place.first, record))
    }
}

/// Reads copies where they lie, many at once, and sends them in the order given.
async fn send_copies(
    identity: &LogIdentity,
    segments: &[(u32, PathBuf)],
    copied: &[Copied],
    chunks: &SyncSender<Chunk>,
) -> anyhow::Result<()> {
    if copied.is_empty() {
        return Ok(());
    }
    let codec = RecordCodec::new(identity);
    let mut readers = std::collections::BTreeMap::new();
    let mut rest = copied;
    while !rest.is_empty() {
        let mut bytes = 0;
        let count = rest
            .iter()
            .take_while(|copy| {
                bytes += copy.bytes as usize;
                bytes <= COPIES_BYTES
            })
            .count()
            .max(1);
        let (now, later) = rest.split_at(count);
        rest = later;
        for copy in now {
            let segment = copy.location.segment;
            if let std::collections::btree_map::Entry::Vacant(free) = readers.entry(segment) {
                let (_, path) = segments
                    .iter()
                    .find(|(number, _)| *number == segment)
                    .with_context(|| format!("segment {segment} was there a moment ago"))?;
                free.insert(std::rc::Rc::new(Reader::open(path).await?));
            }
        }
        let reads: Vec<_> = now
            .iter()
            .map(|copy| {
                let reader = readers[&copy.location.segment].clone();
                let copy = *copy;
                glommio::spawn_local(async move { read_record(&reader, &copy).await })
            })
            .collect();
        let mut chunk = Chunk {
            bytes: Vec::with_capacity(bytes),
            places: Vec::with_capacity(count),
        };
        for (copy, read) in now.iter().zip(reads) {
            let bytes = read.await?;
            let record = codec
                .decode(copy.lsn, &bytes)
                .with_context(|| format!("lsn {}", copy.lsn))?;
            chunk.places.push(Place {
                first: copy.first,
                lsn: copy.lsn,
                timestamp_us: record.timestamp_us,
                offset: chunk.bytes.len(),
            });
            chunk.bytes.extend_from_slice(&bytes);
        }
        chunks.send(chunk).ok().context(GONE)?;
    }
    Ok(())
}

async fn read_record(reader: &Reader, copy: &Copied) -> anyhow::Result<Vec<u8>> {
    let offset = u64::from(copy.location.offset);
    let from = offset / wal::BLOCK_BYTES as u64 * wal::BLOCK_BYTES as u64;
    let skip = (offset - from) as usize;
    let bytes = reader.read(from, skip + copy.bytes as usize).await?;
    let record = bytes.get(skip..skip + copy.bytes as usize);
    Ok(record.context("a segment ends inside a record")?.to_vec())
}
