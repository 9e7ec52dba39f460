//! Reads that need the device: one record, a history (`histories`), a scan in lsn order.
//!
//! A read is a small machine: it takes what memory has, and when it needs bytes of the log it asks for one aligned read
//! and waits. Buffers are bounded; reads beyond them queue. Bytes from the device are checksummed before anything is made
//! of them. It does not know connections or protocols: it ends with an answer for an origin.

use std::collections::VecDeque;

use slab::Slab;
use uring::{Buffer, BufferPool};
use wal::{BLOCK_BYTES, Link, Location};
use wire::cursor::Walked;

use crate::core::ProbeId;
use crate::driver::{Driver, FileId};
use crate::histories::History;
use crate::hop::Origin;
use crate::records::RecordSet;
use crate::token::Token;
use crate::worth::Ended;

/// Most reads are one small record: two blocks hold what straddles a block border.
pub(crate) const SMALL_READ_BYTES: usize = 16 * 1024;
const SMALL_READS: usize = 256;
/// Large records, and the chunks of scans.
const LARGE_READS: usize = 8;
/// Reads that the device has at a time.
pub(crate) const READS_AT_ONCE: usize = SMALL_READS + LARGE_READS;

/// A scan page on its way.
pub struct Scan {
    pub origin: Origin,
    pub stream_name: Vec<u8>,
    pub stream: u32,
    pub next_lsn: u64,
    /// What was walked before that.
    pub walked: Walked,
    /// The page has passed over a record, and shown none since.
    pub passes: bool,
    /// Nothing behind this lsn was durable when the page began.
    pub upto_lsn: u64,
    pub limit: usize,
    /// Records that are not shown (policy).
    pub ended: Ended,
    /// Versions of a key that are shown (policy).
    pub depth: Option<u32>,
    /// The newest record that hides one of this page: it must be durable when the page is shown (0: all are).
    pub gate: u64,
    pub wait_until_ns: u64,
    pub set: RecordSet,
    /// Where the batch with `next_lsn` is, or an earlier one of the same segment.
    pub at: Location,
}

/// What goes on when the bytes are there.
pub enum Then {
    Get {
        origin: Origin,
        key: Vec<u8>,
        stream: u32,
        gate: u64,
    },
    History(Box<History>),
    Scan(Box<Scan>),
    /// A condition is about the record.
    Probe(ProbeId),
}

/// One device read.
pub struct Read {
    pub file: FileId,
    /// Where the wanted bytes start.
    pub at: Location,
    /// The record wanted (scans: 0, they read batches).
    pub lsn: u64,
    /// Block-aligned start and length of the read.
    pub start: u64,
    pub len: usize,
    /// When the driver got it.
    pub started_ns: u64,
    pub then: Then,
}

impl Read {
    /// A read of at least `bytes` from `at` on, within a segment of `segment_bytes`, and of at least `before` bytes that lie before
    /// it, if there are as many.
    pub fn new(
        file: FileId,
        at: Link,
        before: usize,
        bytes: usize,
        segment_bytes: u64,
        then: Then,
    ) -> Read {
        let from = u64::from(at.location.offset).saturating_sub(before as u64);
        let start = from / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let end = (u64::from(at.location.offset) + bytes as u64)
            .next_multiple_of(BLOCK_BYTES as u64)
            .min(segment_bytes);
        Read {
            file,
            at: at.location,
            lsn: at.lsn,
            start,
            len: end.saturating_sub(start) as usize,
            started_ns: 0,
            then,
        }
    }
    /// What it brought, once it is finished: the first `got` bytes of `buffer`.
    pub fn brought<'a>(&self, buffer: &'a Buffer, got: usize) -> Brought<'a> {
        Brought {
            segment: self.at.segment,
            start: self.start,
            bytes: &buffer[..got.min(self.len)],
        }
    }
}

/// A piece of a segment.
#[derive(Clone, Copy)]
pub struct Brought<'a> {
    segment: u32,
    start: u64,
    bytes: &'a [u8],
}

impl<'a> Brought<'a> {
    /// From a place on; None: it lies outside.
    pub fn from(&self, place: Location) -> Option<&'a [u8]> {
        let offset = u64::from(place.offset).checked_sub(self.start)?;
        (place.segment == self.segment)
            .then(|| self.bytes.get(offset as usize..))
            .flatten()
    }
}

/// All reads of a shard, running and queued.
pub struct Reads {
    slab: Slab<Read>,
    queue: VecDeque<usize>,
    small: BufferPool,
    large: BufferPool,
}

impl Reads {
    /// `chunk_bytes`: the largest single read, at least a whole batch.
    pub fn new(chunk_bytes: usize) -> std::io::Result<Reads> {
        Ok(Reads {
            slab: Slab::new(),
            queue: VecDeque::new(),
            small: BufferPool::new(SMALL_READS, SMALL_READ_BYTES)?,
            large: BufferPool::new(LARGE_READS, chunk_bytes)?,
        })
    }
    /// Bytes of the buffers that `new` allocates.
    pub fn plan_bytes(chunk_bytes: usize) -> u64 {
        (SMALL_READS * SMALL_READ_BYTES + LARGE_READS * chunk_bytes) as u64
    }
    /// Bytes of all read buffers.
    pub fn buffer_bytes(&self) -> u64 {
        Reads::plan_bytes(self.chunk_bytes())
    }
    pub fn chunk_bytes(&self) -> usize {
        self.large.bytes_each()
    }
    /// The longest record that one read brings whole: it may start and end inside a block.
    pub fn record_bytes_max(&self) -> usize {
        self.chunk_bytes() - 2 * BLOCK_BYTES
    }
    pub fn start(&mut self, read: Read) {
        let index = self.slab.insert(read);
        self.queue.push_back(index);
    }
    /// Hand queued reads to the driver while there are buffers.
    pub fn pump<D: Driver>(&mut self, driver: &mut D, now_ns: u64) {
        for _ in 0..self.queue.len() {
            let Some(index) = self.queue.pop_front() else {
                return;
            };
            let read = &mut self.slab[index];
            let pool = if read.len <= SMALL_READ_BYTES {
                &self.small
            } else {
                &self.large
            };
            match pool.take() {
                Some(buffer) => {
                    read.started_ns = now_ns;
                    driver.read(read.file, read.start, buffer, read.len, Token::read(index));
                }
                None => self.queue.push_back(index),
            }
        }
    }
    pub fn finished(&mut self, index: usize) -> Option<Read> {
        self.slab.try_remove(index)
    }
    /// A read of this file is running or queued: its bytes must stay what they are.
    pub fn holds(&self, file: FileId) -> bool {
        self.slab.iter().any(|(_, read)| read.file == file)
    }
    /// Reads running or queued.
    pub fn depth(&self) -> usize {
        self.slab.len()
    }
}

/// Where recent scan pages ended, so that the next page starts without a search.
#[derive(Default)]
pub struct ScanHints {
    places: ahash::AHashMap<u64, Location>,
    order: VecDeque<u64>,
}

const SCAN_HINTS: usize = 1024;

impl ScanHints {
    pub fn get(&self, lsn: u64) -> Option<Location> {
        self.places.get(&lsn).copied()
    }
    pub fn put(&mut self, lsn: u64, at: Location) {
        if self.places.insert(lsn, at).is_none() {
            self.order.push_back(lsn);
            if self.order.len() > SCAN_HINTS
                && let Some(old) = self.order.pop_front()
            {
                self.places.remove(&old);
            }
        }
    }
}
