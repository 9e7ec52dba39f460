//! The appends of one producer to one log: their sequences, and what is to be done when some of them are refused.
//!
//! Sequences of a producer in a log are dense, and a refused append does not use its sequence up. With several appends in flight,
//! one refusal therefore makes the server refuse those behind it as out of order. The lane waits until everything in flight is
//! answered, then either sends the refused ones again as they were (the server was only busy), or gives up the first, moves the others
//! up by one, and sends those.
//!
//! It performs no I/O and reads no clock. Without a producer id it only keeps what is in flight.

use std::collections::VecDeque;
use std::time::Instant;

use wire::native::{self, Append, AppendBuilder, Limits, Parsed, Producer, Request};
use wire::{Code, Refusal};

use crate::error::code_is_retryable;

/// An append to one log that has no answer yet.
#[derive(Debug)]
pub(crate) struct Pending {
    /// Request id on the connection.
    pub id: u64,
    /// Which append of the caller it is a part of.
    pub ticket: u64,
    /// Where its records stand in the caller's append; empty: it is the whole.
    pub positions: Vec<u32>,
    /// 0 without a producer id.
    pub sequence: u64,
    /// For sending it again; empty without a producer id.
    pub frame: Vec<u8>,
    /// When it was first sent.
    pub since: Instant,
    /// What it was refused with; None: in flight.
    pub refused: Option<Refusal>,
}

/// Appends to one log.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Number of the log.
    pub log: u32,
    /// The connection that they go over.
    pub link: usize,
    /// Sequence of the next append.
    pub next_sequence: u64,
    /// In order of sequences.
    pub pending: VecDeque<Pending>,
    /// An append was given up without an answer: what follows it cannot be numbered.
    pub stuck: bool,
    /// Where the log may count from instead, if it refuses the first sequence as out of order: see `Client::adopt`.
    pub otherwise: Option<u64>,
}

/// What becomes of a lane whose appends are all answered, some of them with refusals.
#[derive(Debug)]
pub(crate) enum Settlement {
    /// Send everything that is pending again, as it is, in `wait_ms`.
    Again { wait_ms: u32 },
    /// The first one is given up; everything that is still pending is renumbered and to be sent.
    GaveUp(Pending, Refusal),
}

impl Lane {
    pub fn new(log: u32, link: usize, next_sequence: u64) -> Lane {
        Lane {
            log,
            link,
            next_sequence,
            pending: VecDeque::new(),
            stuck: false,
            otherwise: None,
        }
    }

    /// Takes the append with this id out: it is done.
    pub fn take(&mut self, id: u64) -> Option<Pending> {
        let index = self.pending.iter().position(|pending| pending.id == id)?;
        self.otherwise = None;
        self.pending.remove(index)
    }

    /// Notes a refusal. True: nothing is in flight any more, the lane is to be settled.
    pub fn refuse(&mut self, id: u64, refusal: Refusal) -> bool {
        if let Some(pending) = self.pending.iter_mut().find(|pending| pending.id == id) {
            pending.refused = Some(refusal);
        }
        self.needs_settling()
    }

    /// Some are refused and none is in flight.
    pub fn needs_settling(&self) -> bool {
        !self.pending.is_empty() && self.pending.iter().all(|pending| pending.refused.is_some())
    }

    /// Decides. `may_retry`: the first append's time is not over yet.
    pub fn settle(&mut self, may_retry: bool) -> Option<Settlement> {
        let first = self.pending.front()?;
        let refusal = first.refused.clone()?;
        if refusal.code == Code::SequenceOutOfOrder
            && let Some(sequence) = self.otherwise.take()
        {
            self.number_from(sequence);
            return Some(Settlement::Again { wait_ms: 0 });
        }
        if may_retry && code_is_retryable(refusal.code) {
            for pending in &mut self.pending {
                pending.refused = None;
            }
            return Some(Settlement::Again {
                wait_ms: refusal.retry_after_ms.unwrap_or(10).max(1),
            });
        }
        let given_up = self.pending.pop_front()?;
        // A sequence that the log does not expect is not free for others either.
        let out_of_step = matches!(
            refusal.code,
            Code::SequenceOutOfOrder | Code::IdempotencyMismatch
        );
        if out_of_step {
            self.stuck = true;
        } else {
            self.number_from(given_up.sequence);
        }
        Some(Settlement::GaveUp(given_up, refusal))
    }

    /// What is pending is to be sent, from this sequence on.
    fn number_from(&mut self, sequence: u64) {
        self.next_sequence = sequence;
        for pending in &mut self.pending {
            pending.refused = None;
            if pending.sequence != self.next_sequence {
                pending.sequence = self.next_sequence;
                pending.frame = renumbered(&pending.frame, pending.sequence);
            }
            self.next_sequence += 1;
        }
    }
}

/// The append in a frame that was encoded here, and its request id.
pub(crate) fn decoded(frame: &[u8]) -> (u64, Append<'_>) {
    let limits = Limits {
        frame_bytes_max: u32::MAX,
        payload_bytes_max: u32::MAX,
    };
    let Parsed::Request {
        id,
        request: Request::Append(append),
        ..
    } = native::parse(frame, &limits)
    else {
        unreachable!("the frame was encoded here");
    };
    (id, append)
}

/// The same append with another sequence.
fn renumbered(frame: &[u8], sequence: u64) -> Vec<u8> {
    let (_, append) = decoded(frame);
    let producer = append.producer.map(|producer| Producer {
        sequence,
        ..producer
    });
    encoded_again(frame, producer, |_| true)
}

/// The same append with some of its records, by their ordinals; ascending.
pub(crate) fn with_records(frame: &[u8], ordinals: &[u32]) -> Vec<u8> {
    let (_, append) = decoded(frame);
    encoded_again(frame, append.producer, |ordinal| {
        ordinals.binary_search(&ordinal).is_ok()
    })
}

fn encoded_again(
    frame: &[u8],
    producer: Option<Producer>,
    wanted: impl Fn(u32) -> bool,
) -> Vec<u8> {
    let (id, append) = decoded(frame);
    let mut out = Vec::with_capacity(frame.len());
    let (stream, durability) = (append.stream, append.durability);
    let mut builder = AppendBuilder::begin(
        &mut out,
        id,
        stream,
        durability,
        append.want_versions,
        producer,
    );
    for (ordinal, record) in (0..).zip(append.iter()) {
        if wanted(ordinal) {
            builder.record(&record);
        }
    }
    builder.finish();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{AppendRecord, Condition, ContentType, Durability};

    fn lane(sequences: std::ops::Range<u64>) -> Lane {
        let mut lane = Lane::new(3, 0, sequences.end);
        for sequence in sequences {
            let mut frame = Vec::new();
            let producer = Some(Producer { id: 9, sequence });
            let mut builder = AppendBuilder::begin(
                &mut frame,
                sequence,
                b"s",
                Durability::Durable,
                true,
                producer,
            );
            let key = format!("k{sequence}");
            builder.record(&AppendRecord {
                key: key.as_bytes(),
                payload: b"payload",
                content_type: ContentType::JSON,
                tombstone: false,
                condition: Condition::Version(4),
            });
            builder.finish();
            let pending = Pending {
                id: sequence,
                ticket: sequence,
                positions: Vec::new(),
                sequence,
                frame,
                since: Instant::now(),
                refused: None,
            };
            lane.pending.push_back(pending);
        }
        lane
    }

    fn refusal(code: Code) -> Refusal {
        Refusal {
            code,
            message: String::new(),
            retry_after_ms: Some(7),
        }
    }

    fn sent(lane: &Lane) -> Vec<(u64, String)> {
        let limits = Limits {
            frame_bytes_max: u32::MAX,
            payload_bytes_max: u32::MAX,
        };
        lane.pending
            .iter()
            .map(|pending| match native::parse(&pending.frame, &limits) {
                Parsed::Request {
                    request: Request::Append(append),
                    ..
                } => {
                    let key = append.iter().next().unwrap().key.to_vec();
                    (
                        append.producer.unwrap().sequence,
                        String::from_utf8(key).unwrap(),
                    )
                }
                other => panic!("{other:?}"),
            })
            .collect()
    }

    #[test]
    fn a_busy_server_gets_the_same_appends_again_in_order() {
        let mut lane = lane(5..8);
        assert!(!lane.refuse(5, refusal(Code::Overloaded)));
        assert!(!lane.refuse(6, refusal(Code::SequenceOutOfOrder)));
        assert!(lane.refuse(7, refusal(Code::SequenceOutOfOrder)));
        assert!(matches!(
            lane.settle(true),
            Some(Settlement::Again { wait_ms: 7 })
        ));
        assert_eq!(
            sent(&lane),
            [(5, "k5".into()), (6, "k6".into()), (7, "k7".into())]
        );
        assert_eq!(lane.next_sequence, 8);
        assert!(!lane.needs_settling());
    }

    #[test]
    fn those_behind_a_refused_append_move_up() {
        let mut lane = lane(5..9);
        assert!(lane.take(5).is_some(), "5 was acknowledged");
        assert!(!lane.refuse(7, refusal(Code::SequenceOutOfOrder)));
        assert!(!lane.refuse(8, refusal(Code::SequenceOutOfOrder)));
        assert!(
            lane.refuse(6, refusal(Code::ConditionFailed)),
            "answers come in any order"
        );
        match lane.settle(true) {
            Some(Settlement::GaveUp(pending, refusal)) => {
                assert_eq!((pending.id, refusal.code), (6, Code::ConditionFailed))
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(sent(&lane), [(6, "k7".into()), (7, "k8".into())]);
        assert_eq!((lane.next_sequence, lane.stuck), (8, false));
    }

    #[test]
    fn a_lane_whose_first_append_is_out_of_order_is_stuck() {
        let mut lane = lane(5..6);
        assert!(lane.refuse(5, refusal(Code::SequenceOutOfOrder)));
        assert!(matches!(lane.settle(true), Some(Settlement::GaveUp(..))));
        assert!(lane.stuck);
    }

    #[test]
    fn a_log_that_counts_otherwise_is_asked_once_more_from_there() {
        let mut lane = lane(9..11);
        lane.otherwise = Some(6);
        assert!(!lane.refuse(9, refusal(Code::SequenceOutOfOrder)));
        assert!(lane.refuse(10, refusal(Code::SequenceOutOfOrder)));
        assert!(matches!(
            lane.settle(true),
            Some(Settlement::Again { wait_ms: 0 })
        ));
        assert_eq!(sent(&lane), [(6, "k9".into()), (7, "k10".into())]);
        assert_eq!((lane.next_sequence, lane.otherwise), (8, None));
    }

    #[test]
    fn a_part_of_a_frame_has_the_records_that_were_asked_for_in_order() {
        let mut frame = Vec::new();
        let producer = Some(Producer { id: 9, sequence: 3 });
        let mut builder =
            AppendBuilder::begin(&mut frame, 1, b"s", Durability::Durable, true, producer);
        for key in [b"a", b"b", b"c", b"d"] {
            builder.record(&AppendRecord {
                key,
                payload: b"payload",
                content_type: ContentType::JSON,
                tombstone: false,
                condition: Condition::None,
            });
        }
        builder.finish();
        let part = with_records(&frame, &[1, 3]);
        let (_, append) = decoded(&part);
        let keys: Vec<&[u8]> = append.iter().map(|record| record.key).collect();
        assert_eq!(keys, [b"b", b"d"]);
        assert_eq!((append.records, append.producer), (2, producer));
    }
}
