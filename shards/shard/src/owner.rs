//! What the owner of a slot does when it is asked: by a connection of its own, or by another shard.
//!
//! `serve` either answers (now, or behind a gate), starts a device read that will, parks a scan that waits for news, or
//! says that an append has to wait for room. It does not know who the client is or how it speaks.

use wal::record::{Kind, RecordView};
use wal::{Link, Location};
use wire::cursor::Walked;
use wire::native::{AppendIter, AppendPart};
use wire::{Code, Refusal};

use crate::core::Core;
use crate::hop::{Answer, Answered, Ask, Item, Origin, StreamInfo};
use crate::partition::{Found, Later, NotAppended, Probed, Unit, append_gate, refuse};
use crate::reads::{Brought, Read, Scan, Then};
use crate::records::RecordSet;
use crate::worth::Ended;

/// A page or a history holds at most this much before it is cut.
pub(crate) const ANSWER_BYTES_MAX: usize = 1024 * 1024;

impl<S> Core<S> {
    /// Do what is asked. `Err` only for appends and stream definitions; nothing was done then.
    pub(crate) fn serve(&mut self, origin: Origin, ask: &Ask<&[u8]>) -> Result<(), Later> {
        if !matches!(ask, Ask::Streams | Ask::Metrics)
            && let Some(refusal) = self.not_ready()
        {
            if let Ask::KeyUse { .. } = ask {
                self.answer(origin, 0, Answer::KeyFree);
                return Ok(());
            }
            self.answer(origin, 0, Answer::Refused(refusal));
            return Ok(());
        }
        match ask {
            Ask::Append {
                stream,
                records,
                count,
                durability,
                once,
                want_versions,
                tombstone_needs_live,
                repeat_only,
            } => {
                let unit = Unit {
                    stream,
                    records: AppendIter::new(records, *count),
                    count: *count,
                    once: *once,
                    tombstone_needs_live: *tombstone_needs_live,
                    repeat_only: *repeat_only,
                    digest: None,
                };
                let mut versions = std::mem::take(&mut self.versions);
                let result = self.partition.append(&unit, &mut versions);
                let sent = if *want_versions {
                    versions.clone()
                } else {
                    Vec::new()
                };
                self.versions = versions;
                match result {
                    Ok(done) => {
                        let gate = self.partition.gate(append_gate(*durability, done.last_lsn));
                        let durable_lsn = self.partition.log.durable_lsn().max(gate);
                        let part = AppendPart {
                            log: self.log_number(),
                            records: done.records,
                            first_lsn: done.first_lsn,
                            durable_lsn,
                        };
                        self.count_append(&done, records.len());
                        self.answer(
                            origin,
                            gate,
                            Answer::Appended {
                                part,
                                versions: sent,
                            },
                        );
                    }
                    Err(NotAppended::Later(later)) => return Err(later),
                    Err(NotAppended::Refused(refusal)) => {
                        self.answer(origin, 0, Answer::Refused(refusal))
                    }
                    Err(NotAppended::RefusedBehind(refusal, lsn)) => {
                        let gate = self.partition.gate(lsn);
                        self.answer(origin, gate, Answer::Refused(refusal));
                    }
                }
            }
            Ask::Get { stream, key } => self.serve_get(origin, stream, key),
            Ask::History {
                stream,
                key,
                before,
                limit,
            } => self.serve_history(origin, stream, key, *before, *limit as usize),
            Ask::Scan {
                stream,
                from_lsn,
                walked,
                limit,
                wait_until_ns,
            } => {
                let scan = Scan {
                    origin,
                    stream_name: stream.to_vec(),
                    stream: 0,
                    next_lsn: (*from_lsn).max(1),
                    walked: walked.clone(),
                    passes: false,
                    upto_lsn: 0,
                    limit: *limit as usize,
                    ended: Ended::default(),
                    depth: None,
                    gate: 0,
                    wait_until_ns: *wait_until_ns,
                    set: RecordSet::new(self.log_number()),
                    at: Location::default(),
                };
                self.begin_scan(Box::new(scan));
            }
            Ask::PutStream { stream, policy } => match self.partition.put_stream(stream, policy) {
                Ok(lsn) => {
                    let gate = self.partition.gate(lsn);
                    self.answer(origin, gate, Answer::StreamPut);
                }
                Err(NotAppended::Later(later)) => return Err(later),
                Err(NotAppended::Refused(refusal) | NotAppended::RefusedBehind(refusal, _)) => {
                    self.answer(origin, 0, Answer::Refused(refusal))
                }
            },
            Ask::KeyUse {
                digest,
                fingerprint,
            } => {
                let answer = match self.partition.key_is_free(*digest, *fingerprint) {
                    Ok(()) => Answer::KeyFree,
                    Err(refusal) => Answer::Refused(refusal),
                };
                self.answer(origin, 0, answer);
            }
            Ask::Streams => {
                let durable_lsn = self.partition.log.durable_lsn();
                let infos = self
                    .partition
                    .streams
                    .iter()
                    .map(|(_, s)| StreamInfo {
                        name: s.name.to_vec(),
                        policy: s.durable_policy(durable_lsn).clone(),
                        records: s.records,
                        payload_bytes: s.payload_bytes,
                        keys: s.keys,
                    })
                    .collect();
                self.answer(origin, 0, Answer::Streams(infos));
            }
            Ask::Metrics => {
                let snapshot = Box::new(self.snapshot());
                self.answer(origin, 0, Answer::Metrics(snapshot));
            }
        }
        Ok(())
    }

    /// Give an answer to whoever asked; it is released when `gate` is durable (0: now).
    pub(crate) fn answer(&mut self, origin: Origin, gate: u64, answer: Answer) {
        // A read of the device may end after the commit that it was to wait for: no other may come.
        let gate = self.partition.gate(gate);
        let (gate, answer) = match self.partition.log.failed() {
            Some(_) if gate > 0 => (0, Answer::Refused(self.never_durable())),
            _ => (gate, answer),
        };
        let answered = Answered {
            answer,
            log: self.log_number(),
            epoch: self.epoch,
            durable_lsn: self.partition.log.durable_lsn().max(gate),
        };
        if origin.shard == self.id {
            self.answers.push_back((origin.ticket, gate, answered));
        } else if gate == 0 {
            self.outbound[origin.shard].items.push(Item::Answer {
                ticket: origin.ticket,
                answered,
            });
        } else {
            self.held.push(gate, origin, answered);
        }
    }

    pub(crate) fn not_found(&self) -> Refusal {
        refuse(Code::NotFound, "no such record")
    }

    fn serve_get(&mut self, origin: Origin, stream: &[u8], key: &[u8]) {
        let Some(id) = self.partition.streams.lookup(stream) else {
            return self.answer(origin, 0, Answer::Refused(self.not_found()));
        };
        let (ended, log) = (self.partition.ended(id), self.log_number());
        match self.partition.find(id, key, None) {
            Found::Nowhere => self.answer(origin, 0, Answer::Refused(self.not_found())),
            Found::Memory { record, entry } => {
                let hidden =
                    entry.tombstone || ended.has(&record) || !is_record_of(&record, id, key);
                let lsn = entry.lsn;
                let answer = if hidden {
                    Answer::Refused(self.not_found())
                } else {
                    let mut set = RecordSet::new(log);
                    set.push(&record);
                    Answer::Records {
                        set,
                        next_lsn: 0,
                        walked: Walked::default(),
                        more: false,
                    }
                };
                // A tombstone is as little to be shown before it is durable as a value.
                let gate = self.partition.gate(lsn);
                self.answer(origin, gate, answer);
            }
            Found::Device { entry } => {
                if entry.tombstone {
                    let gate = self.partition.gate(entry.lsn);
                    return self.answer(origin, gate, Answer::Refused(self.not_found()));
                }
                let gate = self.partition.gate(entry.lsn);
                let link = Link {
                    lsn: entry.lsn,
                    location: entry.location,
                };
                let then = Then::Get {
                    origin,
                    key: key.to_vec(),
                    stream: id,
                    gate,
                };
                self.read_record(link, entry.bytes as usize, then);
            }
        }
    }

    /// Start a device read of the record that `link` names.
    pub(crate) fn read_record(&mut self, link: Link, bytes: usize, then: Then) {
        self.read_record_and_before(link, 0, bytes, then);
    }

    /// The same with at least `before` bytes that lie before it in its segment.
    pub(crate) fn read_record_and_before(
        &mut self,
        link: Link,
        before: usize,
        bytes: usize,
        then: Then,
    ) {
        match self.partition.log.segment(link.location.segment) {
            Some(segment) => {
                // The index knows a size class, which may be larger than the largest record there is.
                let bytes = bytes.clamp(64, self.reads.record_bytes_max());
                let read = Read::new(
                    segment.file,
                    link,
                    before,
                    bytes,
                    self.partition.log.segment_bytes(),
                    then,
                );
                self.reads.start(read);
            }
            None => {
                let message = format!(
                    "record {}:{} lies in segment {}, which is gone",
                    self.log_number(),
                    link.lsn,
                    link.location.segment
                );
                self.not_read(&then, link.lsn, message);
            }
        }
    }

    /// A device read came back.
    pub(crate) fn read_done(
        &mut self,
        index: usize,
        buffer: &uring::Buffer,
        result: std::io::Result<usize>,
    ) {
        let Some(read) = self.reads.finished(index) else {
            return;
        };
        self.metrics
            .device_read(self.now.monotonic_ns.saturating_sub(read.started_ns));
        let got = match result {
            Ok(got) => got,
            Err(error) => return self.read_failed(read, &format!("read failed: {error}")),
        };
        let brought = read.brought(buffer, got);
        let bytes = brought.from(read.at).unwrap_or_default();
        if let Then::Scan(scan) = read.then {
            return self.scan_chunk(scan, read.at, bytes);
        }
        let asked = read.len - (u64::from(read.at.offset) - read.start) as usize;
        match self.partition.log.codec.decode(read.lsn, bytes) {
            Ok(record) => {
                self.partition
                    .cache
                    .insert(record.lsn, &bytes[..record.bytes]);
                self.read_record_done(read, &record, &brought);
            }
            // The length is not verified yet: a damaged one must not ask for more than a buffer holds, nor for the same again.
            Err(wal::record::RecordError::Short { needed, .. })
                if needed > asked && needed <= self.reads.record_bytes_max() =>
            {
                let link = Link {
                    lsn: read.lsn,
                    location: read.at,
                };
                // Of the same file: its segment may have been released meanwhile, and the file is not used again before
                // the next turn.
                let bytes = needed.clamp(64, self.reads.record_bytes_max());
                let segment_bytes = self.partition.log.segment_bytes();
                let longer = Read::new(read.file, link, 0, bytes, segment_bytes, read.then);
                self.reads.start(longer);
            }
            Err(error) => self.read_failed(read, &error.to_string()),
        }
    }

    fn read_record_done(&mut self, read: Read, record: &RecordView<'_>, brought: &Brought<'_>) {
        match read.then {
            Then::Get {
                origin,
                key,
                stream,
                gate,
            } => {
                let answer = if is_record_of(record, stream, &key)
                    && record.kind == Kind::Put
                    && !self.partition.ended(stream).has(record)
                {
                    let mut set = RecordSet::new(self.log_number());
                    set.push(record);
                    Answer::Records {
                        set,
                        next_lsn: 0,
                        walked: Walked::default(),
                        more: false,
                    }
                } else {
                    Answer::Refused(self.not_found())
                };
                self.answer(origin, gate, answer);
            }
            Then::History(history) => self.history_read(history, read.at, record, brought),
            Then::Probe(id) => self.probed(id, read.lsn, Probed::of(record)),
            Then::Scan(_) => unreachable!("scans take chunks"),
        }
    }

    fn read_failed(&mut self, read: Read, why: &str) {
        self.partition.damage += 1;
        let message = format!(
            "log {} lsn {} in segment {} at offset {} is damaged or unreadable ({why}): run `pinion verify` on the data directory",
            self.log_number(),
            read.lsn,
            read.at.segment,
            read.at.offset
        );
        tracing::error!("{message}");
        self.not_read(&read.then, read.lsn, message);
    }

    /// Tell whoever waits for a record that it cannot be had.
    fn not_read(&mut self, then: &Then, lsn: u64, message: String) {
        let origin = match then {
            Then::Probe(id) => return self.probed(*id, lsn, Probed::Unreadable(message)),
            Then::Get { origin, .. } => *origin,
            Then::History(history) => history.origin(),
            Then::Scan(scan) => scan.origin,
        };
        self.answer(origin, 0, Answer::Refused(refuse(Code::Internal, message)));
    }
}

/// The digest is 128 keyed bits; the record itself settles what it is about.
pub(crate) fn is_record_of(record: &RecordView<'_>, stream: u32, key: &[u8]) -> bool {
    record.stream == stream && record.key == key
}

/// True when a page is full.
pub(crate) fn page_is_full(set: &RecordSet, limit: usize) -> bool {
    set.len() >= limit || set.bytes() >= ANSWER_BYTES_MAX
}
