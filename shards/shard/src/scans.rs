//! Scans: every record of a stream in lsn order, a page at a time, and the ones that wait for news.
//!
//! A page reads the log forward in large chunks, batch by batch, up to what was durable when it began. Recent batches
//! come from memory. A scan that finds nothing and may wait is parked until its stream grows.

use index::Entry;
use wal::BLOCK_BYTES;
use wal::Location;
use wal::extension::Relocated;
use wal::record::{Kind, RecordError, RecordView};
use wal::scan::{BatchInfo, Stop};
use wire::Code;

use crate::core::Core;
use crate::hop::Answer;
use crate::owner::page_is_full;
use crate::partition::{Partition, refuse};
use crate::reads::{Read, Scan, Then};

impl<S> Core<S> {
    /// Start (or start again) a scan from its `next_lsn`.
    pub(crate) fn begin_scan(&mut self, mut scan: Box<Scan>) {
        scan.upto_lsn = self.partition.log.durable_lsn();
        scan.skip_released(&self.partition);
        let Some(id) = self.partition.streams.lookup(&scan.stream_name) else {
            // Whoever defines it later does so behind what is durable now. To say less would be asked again for ever.
            scan.next_lsn = scan.next_lsn.max(scan.upto_lsn + 1);
            return self.end_scan(scan);
        };
        scan.stream = id;
        scan.ended = self.partition.ended(id);
        let policy = self.partition.durable_policy(id);
        scan.depth = policy.and_then(|policy| policy.history_depth);
        let last = self.partition.streams.get(id).map_or(0, |s| s.last_lsn);
        if scan.next_lsn > scan.upto_lsn || scan.next_lsn > last {
            // Nothing of this stream can be there; do not read the log to find that out.
            scan.next_lsn = scan.next_lsn.max(scan.upto_lsn + 1);
            return self.end_scan(scan);
        }
        match self.place_of(scan.next_lsn) {
            Some(at) => {
                scan.at = at;
                self.go_on(scan);
            }
            None => {
                let message = format!(
                    "lsn {} of log {} is not in any segment",
                    scan.next_lsn,
                    self.log_number()
                );
                self.answer(
                    scan.origin,
                    0,
                    Answer::Refused(refuse(Code::Internal, message)),
                );
            }
        }
    }

    fn place_of(&self, lsn: u64) -> Option<Location> {
        if let Some(at) = self.scan_hints.get(lsn)
            && !self.partition.log.is_released(at.segment)
        {
            return Some(at);
        }
        if let Some(at) = self.partition.log.batch_in_memory(lsn) {
            return Some(at);
        }
        let segment = self.partition.log.segment_of_lsn(lsn)?;
        Some(Location {
            segment: segment.segment,
            offset: BLOCK_BYTES as u32,
        })
    }

    /// The start of the next segment, if `next_lsn` lies there. Behind the last batch of a segment may lie one that was cut
    /// off by a recovery, whole and with lsns that were given out again since: it must not even be looked at.
    fn next_segment(&self, scan: &Scan) -> Option<Location> {
        let next = self.partition.log.segment(scan.at.segment + 1)?;
        (next.first_lsn != 0 && next.first_lsn <= scan.next_lsn).then_some(Location {
            segment: next.segment,
            offset: BLOCK_BYTES as u32,
        })
    }

    /// Take batches from memory while they are there, else read a chunk.
    fn go_on(&mut self, mut scan: Box<Scan>) {
        loop {
            if self.partition.log.is_released(scan.at.segment) {
                // The segment was released while a chunk of it was read.
                scan.skip_released(&self.partition);
                scan.at = Location {
                    segment: self.partition.log.first_segment(),
                    offset: BLOCK_BYTES as u32,
                };
            }
            if scan.next_lsn > scan.upto_lsn || page_is_full(&scan.set, scan.limit) {
                return self.end_scan(scan);
            }
            if let Some(next) = self.next_segment(&scan) {
                scan.at = next;
                continue;
            }
            let Some(segment) = self.partition.log.segment(scan.at.segment).copied() else {
                let message = format!(
                    "segment {} of log {} is gone",
                    scan.at.segment,
                    self.log_number()
                );
                return self.answer(
                    scan.origin,
                    0,
                    Answer::Refused(refuse(Code::Internal, message)),
                );
            };
            let segment_bytes = self.partition.log.segment_bytes();
            if u64::from(scan.at.offset) + BLOCK_BYTES as u64 > segment_bytes {
                scan.at = Location {
                    segment: scan.at.segment + 1,
                    offset: BLOCK_BYTES as u32,
                };
                continue;
            }
            let header = self.partition.log.header_of(&segment);
            if let Some(bytes) = self.partition.log.in_memory(scan.at) {
                // If this is not a batch's start in memory, the device knows.
                if let Ok(info) = wal::scan::batch_at(
                    &self.partition.log.identity,
                    &header,
                    scan.at.offset,
                    bytes,
                ) && scan.take(&self.partition, &info, bytes).is_ok()
                {
                    continue;
                }
            }
            let link = wal::Link {
                lsn: 0,
                location: scan.at,
            };
            let bytes = self.reads.chunk_bytes() - BLOCK_BYTES;
            self.reads.start(Read::new(
                segment.file,
                link,
                0,
                bytes,
                segment_bytes,
                Then::Scan(scan),
            ));
            return;
        }
    }

    /// A chunk of the log, starting at a place where a batch may start.
    pub(crate) fn scan_chunk(&mut self, mut scan: Box<Scan>, at: Location, bytes: &[u8]) {
        if self.partition.log.is_released(at.segment) {
            return self.go_on(scan);
        }
        let Some(segment) = self.partition.log.segment(at.segment).copied() else {
            let message = format!(
                "segment {} of log {} is gone",
                at.segment,
                self.log_number()
            );
            return self.answer(
                scan.origin,
                0,
                Answer::Refused(refuse(Code::Internal, message)),
            );
        };
        let header = self.partition.log.header_of(&segment);
        let mut used = 0;
        while used < bytes.len()
            && scan.next_lsn <= scan.upto_lsn
            && !page_is_full(&scan.set, scan.limit)
            && self.next_segment(&scan).is_none()
        {
            let rest = &bytes[used..];
            let found =
                wal::scan::batch_at(&self.partition.log.identity, &header, scan.at.offset, rest);
            // The chunk ends in the middle of a batch: the next chunk starts at it.
            if used > 0
                && found
                    .as_ref()
                    .is_ok_and(|info| info.bytes as usize > rest.len())
            {
                break;
            }
            let taken = found.and_then(|info| {
                scan.take(&self.partition, &info, rest)
                    .map_err(|(lsn, error)| Stop::Invalid(format!("lsn {lsn}: {error}")))?;
                Ok(info)
            });
            match taken {
                Ok(info) => used += info.bytes as usize,
                // `next_lsn` is durable and not in the next segment: where no batch is, one is lost.
                Err(stop) => {
                    self.partition.damage += 1;
                    let message = format!(
                        "log {} segment {} at offset {} is damaged ({stop:?}): run `pinion verify` on the data directory",
                        self.log_number(),
                        at.segment,
                        scan.at.offset
                    );
                    tracing::error!("{message}");
                    return self.answer(
                        scan.origin,
                        0,
                        Answer::Refused(refuse(Code::Internal, message)),
                    );
                }
            }
        }
        self.go_on(scan);
    }

    fn end_scan(&mut self, mut scan: Box<Scan>) {
        scan.walked.settle(scan.next_lsn);
        if scan.set.is_empty() && scan.wait_until_ns > self.now.monotonic_ns && !self.draining {
            self.waiting.push(scan);
            return;
        }
        let more = scan.next_lsn <= scan.upto_lsn;
        // Segments count from 1: a scan that never looked at the log knows no place.
        if scan.at.segment > 0 {
            self.scan_hints.put(scan.next_lsn, scan.at);
        }
        let answer = Answer::Records {
            set: scan.set,
            next_lsn: scan.next_lsn,
            walked: scan.walked,
            more,
        };
        self.answer(scan.origin, scan.gate, answer);
    }

    /// Parked scans whose stream may have grown, or whose time is up, go on.
    pub(crate) fn wake_scans(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        let durable = self.partition.log.durable_lsn();
        for scan in std::mem::take(&mut self.waiting) {
            let last = self
                .partition
                .streams
                .lookup(&scan.stream_name)
                .and_then(|id| self.partition.streams.get(id))
                .map_or(0, |s| s.last_lsn);
            let news = last >= scan.next_lsn && durable >= scan.next_lsn;
            if news || scan.wait_until_ns <= self.now.monotonic_ns {
                self.begin_scan(scan);
            } else {
                self.waiting.push(scan);
            }
        }
    }
}

impl Scan {
    /// The log begins behind the scan now: what lay between is gone, or was copied to where the scan will come.
    fn skip_released(&mut self, partition: &Partition) {
        let first = partition.log.first_lsn();
        if self.next_lsn < first {
            // Copies may lie behind what was durable when the page began; they were durable before the release.
            self.upto_lsn = self.upto_lsn.max(partition.log.durable_lsn());
            self.walked.skip(self.next_lsn, first, self.upto_lsn);
            self.next_lsn = first;
        }
    }

    /// A copy of a record that the scan has met where it was before.
    fn was_met(&self, record: &RecordView<'_>) -> bool {
        Relocated::of(record.extensions)
            .is_some_and(|r| self.walked.covers(r.from) || self.walked.covers(r.first))
    }

    /// Whether the record is among the newest versions of its key that the policy shows.
    fn is_kept(&mut self, partition: &Partition, record: &RecordView<'_>) -> bool {
        let Some(depth) = self.depth else { return true };
        let newest = partition
            .index
            .get(partition.digests.digest(self.stream, record.key));
        let hides = |newest: &Entry| newest.version.saturating_sub(record.version) >= depth;
        let Some(newest) = newest.filter(hides) else {
            return true;
        };
        // A crash may take back what hides it, with the cursor behind it: the page waits. What comes never hides nothing.
        let gate = partition.gate(newest.lsn);
        if gate > 0 && partition.log.failed().is_some() {
            return true;
        }
        self.gate = self.gate.max(gate);
        false
    }

    /// Take what one batch has for this page and step behind it (or stay on it when the page is full inside).
    fn take(
        &mut self,
        partition: &Partition,
        info: &BatchInfo,
        batch: &[u8],
    ) -> Result<(), (u64, RecordError)> {
        if info.first_lsn > self.next_lsn {
            return Err((
                self.next_lsn,
                RecordError::Malformed("its batch is not where the log goes on"),
            ));
        }
        for (_, record) in wal::scan::records(&partition.log.codec, info, batch) {
            let record = record.map_err(|error| (self.next_lsn, error))?;
            if record.lsn < self.next_lsn {
                continue;
            }
            if record.lsn > self.upto_lsn || page_is_full(&self.set, self.limit) {
                return Ok(());
            }
            self.next_lsn = record.lsn + 1;
            let shown = matches!(record.kind, Kind::Put | Kind::Tombstone);
            if shown
                && record.stream == self.stream
                && !self.ended.has(&record)
                && !self.was_met(&record)
                && self.is_kept(partition, &record)
            {
                // What a crash brought back is on its way out again: the copy is shown.
                let passes = partition.was_copied_before(&record);
                if passes {
                    (self.walked).pass_over(record.lsn, self.upto_lsn, self.passes);
                } else {
                    self.set.push(&record);
                }
                self.passes = passes;
            }
        }
        self.at = Location {
            segment: info.segment,
            offset: info.offset + info.bytes,
        };
        Ok(())
    }
}
