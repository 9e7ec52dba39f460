//! Units that were seen before: asked before anything is laid down, remembered behind it.

use wal::extension;
use wire::{Code, Refusal};

use super::{Appended, NotAppended, Once, Partition, Unit, refuse};
use crate::dedup::{
    Answer, CarriedKey, CarriedSequence, IdempotencyExtension, KeyCheck, ProducerCheck,
    ProducerExtension, fingerprint_without_stream,
};

/// What marks a repeat takes of its first record at most, block header and padding included.
pub(super) const ONCE_BYTES: usize = 64;

impl Partition {
    pub(super) fn dedup_window_seconds(&self, stream: u32) -> u32 {
        let policy = self
            .streams
            .get(stream)
            .and_then(|s| s.policy.dedup_window_seconds);
        u32::try_from(policy.unwrap_or(self.limits.dedup_window_seconds)).unwrap_or(u32::MAX)
    }

    /// The first answer, if this unit was seen before.
    pub(super) fn repeated(
        &mut self,
        unit: &Unit<'_>,
        log_time_us: u64,
        versions: &mut Vec<u32>,
    ) -> Result<Option<Appended>, NotAppended> {
        let mismatch = || NotAppended::Refused(used_before());
        if let Some(repeat) = self.repeated_from_before(unit, log_time_us, versions)? {
            return Ok(Some(repeat));
        }
        let answer: &Answer = match unit.once {
            Once::No => return Ok(None),
            Once::Producer {
                id,
                sequence,
                fingerprint,
            } => match self.producers.check(
                id,
                sequence,
                remembered_as(unit.stream, fingerprint, |fingerprint| {
                    self.producers.check(id, sequence, fingerprint) == ProducerCheck::Mismatch
                }),
            ) {
                ProducerCheck::New => return Ok(None),
                ProducerCheck::Repeat(answer) => answer,
                ProducerCheck::Mismatch => return Err(mismatch()),
                ProducerCheck::OutOfOrder { expected } => {
                    let message = format!(
                        "producer sequence {sequence} is out of order: the next one of this producer in this log is {expected}"
                    );
                    return Err(NotAppended::Refused(refuse(
                        Code::SequenceOutOfOrder,
                        message,
                    )));
                }
                ProducerCheck::Forgotten => {
                    let message = format!(
                        "producer sequence {sequence} is older than the window of remembered answers"
                    );
                    return Err(NotAppended::Refused(refuse(
                        Code::SequenceOutOfOrder,
                        message,
                    )));
                }
            },
            Once::Key {
                digest,
                fingerprint,
            } => match self.keys.check(digest, fingerprint, log_time_us) {
                KeyCheck::New => return Ok(None),
                KeyCheck::Repeat(answer) => answer,
                KeyCheck::Mismatch => return Err(mismatch()),
            },
        };
        versions.extend_from_slice(&answer.versions);
        Ok(Some(Appended {
            first_lsn: answer.first_lsn,
            last_lsn: answer.first_lsn + u64::from(answer.records) - 1,
            records: answer.records,
            repeated: true,
        }))
    }

    /// Refuses a key that is remembered for another request. The records of that one may all lie in this log, and those of the
    /// one at hand in others.
    pub fn key_is_free(&self, digest: u128, fingerprint: u64) -> Result<(), Refusal> {
        let log_time_us = self.log.log_time_us();
        let here = self.keys.check(digest, fingerprint, log_time_us);
        let carried = self
            .carried
            .check_key(digest, fingerprint, log_time_us, std::iter::empty());
        match here == KeyCheck::Mismatch || carried == CarriedKey::Mismatch {
            true => Err(used_before()),
            false => Ok(()),
        }
    }

    /// The first answer, if an earlier log gave it. Its lsn is that of the first record, where that still is; 0 where it is not.
    pub(super) fn repeated_from_before(
        &self,
        unit: &Unit<'_>,
        log_time_us: u64,
        versions: &mut Vec<u32>,
    ) -> Result<Option<Appended>, NotAppended> {
        if self.carried.is_empty() {
            return Ok(None);
        }
        let refused = |code, message: String| Err(NotAppended::Refused(refuse(code, message)));
        let answer = match unit.once {
            Once::No => return Ok(None),
            Once::Producer {
                id,
                sequence,
                fingerprint,
            } => match self.carried.check_sequence(
                id,
                sequence,
                remembered_as(unit.stream, fingerprint, |fingerprint| {
                    let carried = &self.carried;
                    carried.check_sequence(id, sequence, fingerprint, log_time_us)
                        == CarriedSequence::Mismatch
                }),
                log_time_us,
            ) {
                CarriedSequence::Unknown => return Ok(None),
                CarriedSequence::Repeat(answer) => answer,
                CarriedSequence::Mismatch => return Err(NotAppended::Refused(used_before())),
                CarriedSequence::Below(floor) => {
                    return refused(
                        Code::SequenceOutOfOrder,
                        format!(
                            "producer sequence {sequence} is not one of those remembered from before the shards were changed: go on above {floor}, the largest one then"
                        ),
                    );
                }
            },
            Once::Key {
                digest,
                fingerprint,
            } => {
                if self.keys.check(digest, fingerprint, log_time_us) != KeyCheck::New {
                    return Ok(None);
                }
                let slots = unit.records.clone().map(|r| wire::slot::slot_of(r.key));
                match self
                    .carried
                    .check_key(digest, fingerprint, log_time_us, slots)
                {
                    CarriedKey::Unknown => return Ok(None),
                    CarriedKey::Repeat(answer) => answer,
                    CarriedKey::Mismatch => return Err(NotAppended::Refused(used_before())),
                    CarriedKey::InPart => {
                        return refused(
                            Code::IdempotencyMismatch,
                            "a part of this request was stored before the shards were changed, and it was never acknowledged: read its keys, then send what is missing under a new idempotency key".into(),
                        );
                    }
                }
            }
        };
        if answer.versions.len() == unit.count as usize {
            versions.extend_from_slice(&answer.versions);
        }
        Ok(Some(Appended {
            first_lsn: answer.first_lsn,
            // Everything that was carried is durable.
            last_lsn: answer.first_lsn,
            records: unit.count,
            repeated: true,
        }))
    }

    pub(super) fn remember(
        &mut self,
        once: &Once,
        appended: &Appended,
        versions: &[u32],
        log_time_us: u64,
        window_seconds: u32,
    ) {
        let answer = || Answer {
            first_lsn: appended.first_lsn,
            records: appended.records,
            versions: versions.into(),
        };
        match *once {
            Once::No => {}
            Once::Producer {
                id,
                sequence,
                fingerprint,
            } => self
                .producers
                .record(id, sequence, fingerprint, answer(), log_time_us),
            Once::Key {
                digest,
                fingerprint,
            } => self
                .keys
                .record(digest, fingerprint, answer(), log_time_us, window_seconds),
        }
    }

    pub(super) fn once_bytes(&self, once: &Once) -> usize {
        match once {
            Once::No => 0,
            Once::Producer { .. } | Once::Key { .. } => ONCE_BYTES,
        }
    }
}

#[cold]
fn used_before() -> Refusal {
    refuse(
        Code::IdempotencyMismatch,
        "this idempotency key or producer sequence was used before with a different request: take a new one",
    )
}

/// The fingerprint that a producer's request is to be checked by: where it is a mismatch, as an earlier version remembered it.
fn remembered_as(stream: &[u8], fingerprint: u64, is_mismatch: impl Fn(u64) -> bool) -> u64 {
    if is_mismatch(fingerprint) {
        fingerprint_without_stream(stream, fingerprint)
    } else {
        fingerprint
    }
}

/// What a unit's first record carries, so that a replay remembers it.
pub(super) fn push_once(extensions: &mut Vec<u8>, once: &Once, records: u32, window_seconds: u32) {
    match *once {
        Once::No => {}
        Once::Producer {
            id,
            sequence,
            fingerprint,
        } => {
            let bytes = ProducerExtension {
                id,
                sequence,
                fingerprint,
                records,
            }
            .encode();
            extension::push(extensions, extension::PRODUCER, &bytes);
        }
        Once::Key {
            digest,
            fingerprint,
        } => {
            let bytes = IdempotencyExtension {
                digest,
                fingerprint,
                records,
                window_seconds,
            }
            .encode();
            extension::push(extensions, extension::IDEMPOTENCY, &bytes);
        }
    }
}
