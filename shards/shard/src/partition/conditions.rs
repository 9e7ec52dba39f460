//! Conditions of a unit's records, and the records that have to be read before one can be decided.
//!
//! A condition sees what a get sees. The index knows no record's age, and of a copy not the place that it is of: where a
//! stream's policy ends records by age or by bytes, only the record itself says whether it has ended. One that is in memory is
//! looked at; one that is not is asked for, and the unit is tried again with what came.
//!
//! # Invariants
//! - `known` belongs to the request at hand alone. Who retries it brings along what was read for it; what is left when it has
//!   been decided is forgotten.
//! - Nothing is laid down while a record is asked for.
//!
//! It does not know the device, or who waits.

use ahash::{AHashMap, AHashSet};
use index::Entry;
use wire::{Code, Condition};

use super::{Found, Later, NotAppended, Partition, Unit, refuse, refuse_for};
use crate::records::position_of;
use crate::worth::Ended;

/// Records that are read for one request at a time: as many as there are small read buffers.
const WANTED_AT_ONCE: usize = 256;
/// Records that all waiting requests of a shard may have read or asked for.
const PROBES_MAX: usize = 65_536;

/// What was read for a condition.
#[derive(Clone, Debug)]
pub enum Probed {
    /// Its log time, and the lsn of the record or of what it is a copy of.
    Record { timestamp_us: u64, position: u64 },
    /// Why it cannot be known.
    Unreadable(String),
}

/// What conditions know of records that are not in memory.
#[derive(Debug, Default)]
pub struct Probes {
    /// Read for the request at hand, by the lsn that the index names.
    pub known: AHashMap<u64, Probed>,
    /// To be read before it is tried again.
    pub wanted: Vec<Entry>,
    /// Read or asked for, for requests that wait.
    pub held: usize,
}

/// What a condition sees of an index entry.
enum Sight {
    Live,
    Ended,
    Unread,
    Unreadable(String),
}

impl Partition {
    pub(super) fn check_conditions(&mut self, unit: &Unit<'_>) -> Result<(), NotAppended> {
        self.probes.wanted.clear();
        let stream = self.streams.lookup(unit.stream);
        let ended = stream.map_or(Ended::default(), |id| self.ended(id));
        let mut seen = AHashSet::new();
        for (i, record) in unit.records.clone().enumerate() {
            let digest = self.scratch[i];
            let first = unit.count == 1 || seen.insert(digest.0);
            let unconditional = record.condition == Condition::None;
            if unconditional && !(unit.tombstone_needs_live && record.tombstone) {
                continue;
            }
            if !first && !unconditional {
                let message =
                    "a condition on a key that the same request writes before: send the two apart";
                return Err(NotAppended::Refused(refuse(Code::Malformed, message)));
            }
            let newest = self.index.get(digest);
            let mut live = newest.filter(|e| self.is_live(e));
            if let Some(entry) = live {
                match self.sight(ended, entry) {
                    Sight::Live => {}
                    Sight::Ended => live = None,
                    Sight::Unread if self.probes.wanted.len() < WANTED_AT_ONCE => {
                        self.probes.wanted.push(entry);
                        continue;
                    }
                    Sight::Unread => break,
                    Sight::Unreadable(why) => {
                        return Err(NotAppended::Refused(refuse(Code::Internal, why)));
                    }
                }
            }
            let newest = newest.map_or(0, |e| e.lsn);
            if let Some(refusal) = refusal_of(record.condition, live) {
                return Err(NotAppended::RefusedBehind(refusal, newest));
            }
        }
        if self.probes.wanted.is_empty() {
            return Ok(());
        }
        if self.probes.held + self.probes.known.len() + self.probes.wanted.len() > PROBES_MAX {
            let message = format!(
                "conditions on more than {PROBES_MAX} records that have to be read from the device first are under way: send fewer at a time"
            );
            return Err(NotAppended::Refused(refuse_for(
                Code::Overloaded,
                100,
                message,
            )));
        }
        Err(NotAppended::Later(Later::Read))
    }

    /// Whether the record of a live index entry is there for a get.
    fn sight(&mut self, ended: Ended, entry: Entry) -> Sight {
        if ended.is_none() {
            return Sight::Live;
        }
        let has = match self.find_entry(entry) {
            Found::Memory { record, .. } => Some(ended.has(&record)),
            _ => None,
        };
        let has = match (has, self.probes.known.get(&entry.lsn)) {
            (Some(has), _) => has,
            (
                None,
                Some(Probed::Record {
                    timestamp_us,
                    position,
                }),
            ) => ended.has_at(*timestamp_us, *position),
            (None, Some(Probed::Unreadable(why))) => return Sight::Unreadable(why.clone()),
            (None, None) => return Sight::Unread,
        };
        if has { Sight::Ended } else { Sight::Live }
    }
}

impl Probed {
    pub fn of(record: &wal::record::RecordView<'_>) -> Probed {
        Probed::Record {
            timestamp_us: record.timestamp_us,
            position: position_of(record),
        }
    }
}

/// Why a condition does not hold for a key whose live record is `live`.
fn refusal_of(condition: Condition, live: Option<Entry>) -> Option<wire::Refusal> {
    let (code, message) = match (condition, live) {
        // A delete that wants something to delete.
        (Condition::None, None) => (
            Code::NotFound,
            "no such record: nothing to delete".to_owned(),
        ),
        (Condition::New, Some(e)) => (
            Code::ConditionFailed,
            format!("the key exists at version {}", e.version),
        ),
        (Condition::Version(wanted), Some(e)) if e.version != wanted => (
            Code::ConditionFailed,
            format!("the key is at version {}, not {wanted}", e.version),
        ),
        (Condition::Version(wanted), None) => (
            Code::ConditionFailed,
            format!("the key has no live record, so it is not at version {wanted}"),
        ),
        _ => return None,
    };
    Some(refuse(code, message))
}
