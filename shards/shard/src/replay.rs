//! What a record of the log does to a partition when it is read back: the mirror of `Partition::append`.
//!
//! Records arrive in lsn order. Replaying one that a checkpoint already holds changes nothing: versions, times and answers
//! are stored, not computed again. Index updates are applied in groups, so that their cache misses overlap.

use index::{Digest, Entry};
use wal::extension::Relocated;
use wal::record::{Kind, RecordView};
use wal::{Location, extension};
use wire::Policy;

use crate::dedup::{Answer, IdempotencyExtension, IdempotencyKeys, ProducerExtension, Producers};
use crate::partition::Partition;

const GROUP: usize = 128;

struct Update {
    digest: Digest,
    entry: Entry,
    stream: u32,
    payload_bytes: u64,
    /// Its length in the log; an index entry knows about.
    bytes: u64,
    /// A copy that compaction made: nothing new.
    relocated: bool,
}

enum Once {
    Producer(ProducerExtension),
    Key(IdempotencyExtension),
}

/// A request whose records are being read back.
struct Gathering {
    once: Once,
    first_lsn: u64,
    left: u32,
    versions: Vec<u32>,
    log_time_us: u64,
}

/// Requests whose records are being read back, into the windows of answers.
#[derive(Default)]
pub(crate) struct Requests {
    gathering: Option<Gathering>,
}

/// Replays records into a partition.
#[derive(Default)]
pub struct Replay {
    updates: Vec<Update>,
    requests: Requests,
    pub records: u64,
    pub bytes: u64,
}

/// A log that cannot be replayed although its checksums hold.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("lsn {lsn}: {why}")]
    Record { lsn: u64, why: String },
    #[error(transparent)]
    Index(#[from] index::IndexError),
}

impl Replay {
    /// Take one record.
    pub fn record(
        &mut self,
        partition: &mut Partition,
        location: Location,
        record: &RecordView<'_>,
    ) -> Result<(), ReplayError> {
        self.records += 1;
        self.bytes += record.bytes as u64;
        let relocated = Relocated::of(record.extensions);
        if !partition.space.has_counted(record.lsn) {
            partition.note_laid_down(
                record.stream,
                record.bytes as u64,
                location.segment,
                record.timestamp_us,
            );
        }
        match record.kind {
            Kind::StreamDefinition => {
                // Records from before it are counted under the policy from before it.
                self.apply(partition)?;
                let policy: Policy =
                    serde_json::from_slice(record.payload).map_err(|e| ReplayError::Record {
                        lsn: record.lsn,
                        why: format!("stream policy: {e}"),
                    })?;
                let before = partition.shown(record.stream);
                partition
                    .streams
                    .replay(record.stream, record.key, policy, record.lsn)
                    .map_err(|e| ReplayError::Record {
                        lsn: record.lsn,
                        why: e.to_string(),
                    })?;
                partition.note_policy(record.stream, before);
                return Ok(());
            }
            Kind::Note => {
                if extension::find(record.extensions, extension::CARRIED).is_some() {
                    // What it counts is counted up to its lsn: the records before it come first.
                    self.apply(partition)?;
                    partition.carry(record.payload, record.lsn).map_err(|e| {
                        ReplayError::Record {
                            lsn: record.lsn,
                            why: e.to_string(),
                        }
                    })?;
                    return Ok(());
                }
            }
            Kind::Put | Kind::Tombstone => {
                let digest = match relocated {
                    Some(Relocated { link: 1.., .. }) => partition
                        .digests
                        .forward(relocated.map_or(0, |relocated| relocated.link)),
                    _ => partition.digests.digest(record.stream, record.key),
                };
                partition.index.prefetch(digest);
                let entry = Entry {
                    lsn: record.lsn,
                    version: record.version,
                    tombstone: record.kind == Kind::Tombstone,
                    location,
                    bytes: record.bytes as u32,
                };
                self.updates.push(Update {
                    digest,
                    entry,
                    stream: record.stream,
                    payload_bytes: record.payload.len() as u64,
                    bytes: record.bytes as u64,
                    relocated: relocated.is_some(),
                });
            }
        }
        if let Some(relocated) = relocated {
            partition.copies.replay(&relocated);
            // No request's record: its answer was remembered when it was written first.
            return Ok(());
        }
        self.requests
            .record(record, &mut partition.producers, &mut partition.keys);
        if self.updates.len() >= GROUP {
            self.apply(partition)?;
        }
        Ok(())
    }

    /// Apply what is still collected.
    pub fn finish(&mut self, partition: &mut Partition) -> Result<(), ReplayError> {
        self.apply(partition)
    }

    fn apply(&mut self, partition: &mut Partition) -> Result<(), ReplayError> {
        for update in &self.updates {
            partition.index.prefetch_slot(update.digest);
        }
        for update in self.updates.drain(..) {
            let found = partition.index.locate(update.digest);
            let before = found.map(|(_, entry)| entry);
            let counted = partition
                .streams
                .get(update.stream)
                .is_some_and(|s| s.last_lsn >= update.entry.lsn);
            match found {
                Some((place, entry)) if entry.lsn < update.entry.lsn => {
                    partition.index.replace(place, update.entry);
                }
                Some(_) => {}
                None => partition.index.insert_new(update.digest, update.entry)?,
            }
            if update.relocated {
                partition
                    .streams
                    .count(update.stream, 0, 0, 0, update.entry.lsn);
            } else if !counted {
                partition.note_replaced(update.stream, before, &update.entry);
                let bytes = update.bytes;
                (partition.streams).hold(update.stream, update.entry.lsn, bytes, u64::MAX);
                partition.note_ended();
                let was_live = before.is_some_and(|e| !e.tombstone);
                let keys = i64::from(!update.entry.tombstone && !was_live)
                    - i64::from(update.entry.tombstone && was_live);
                partition.streams.count(
                    update.stream,
                    1,
                    update.payload_bytes,
                    keys,
                    update.entry.lsn,
                );
            }
        }
        Ok(())
    }
}

impl Requests {
    /// Take a put or a tombstone that lies where it was written first.
    pub(crate) fn record(
        &mut self,
        record: &RecordView<'_>,
        producers: &mut Producers,
        keys: &mut IdempotencyKeys,
    ) {
        if !record.extensions.is_empty() {
            self.once(record);
        }
        if let Some(gathering) = &mut self.gathering {
            gathering.versions.push(record.version);
            gathering.left -= 1;
            if gathering.left == 0 {
                self.end_request(producers, keys);
            }
        }
    }

    fn once(&mut self, record: &RecordView<'_>) {
        for (kind, bytes) in extension::iter(record.extensions) {
            let (once, left) = match kind {
                extension::PRODUCER => match ProducerExtension::decode(bytes) {
                    Some(p) => (Once::Producer(p), p.records),
                    None => continue,
                },
                extension::IDEMPOTENCY => match IdempotencyExtension::decode(bytes) {
                    Some(k) => (Once::Key(k), k.records),
                    None => continue,
                },
                _ => continue,
            };
            self.gathering = Some(Gathering {
                once,
                first_lsn: record.lsn,
                left: left.max(1),
                versions: Vec::with_capacity(left as usize),
                log_time_us: record.timestamp_us,
            });
        }
    }

    fn end_request(&mut self, producers: &mut Producers, keys: &mut IdempotencyKeys) {
        let Some(g) = self.gathering.take() else {
            return;
        };
        let records = g.versions.len() as u32;
        let answer = Answer {
            first_lsn: g.first_lsn,
            records,
            versions: g.versions.as_slice().into(),
        };
        match g.once {
            Once::Producer(p) => {
                producers.record(p.id, p.sequence, p.fingerprint, answer, g.log_time_us)
            }
            Once::Key(k) => keys.record(
                k.digest,
                k.fingerprint,
                answer,
                g.log_time_us,
                k.window_seconds,
            ),
        }
    }
}
