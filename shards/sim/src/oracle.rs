//! What must hold, whatever the machine does: the promises, as code.
//!
//! Owns everything that clients were ever told, over all lives. After each restart it is given every record that the store
//! shows and compares. It does not know how a crash was made.

use std::collections::{BTreeMap, HashMap, HashSet};

use wire::{Code, Condition, Durability, slot};

mod restart;
mod retention;

use crate::client::{About, Append, Heard, Outcome, Said, Seen};
use crate::promise::Promise;

/// A promise that was broken, in words.
pub type Broken = String;

/// See the module's header.
#[derive(Clone, Default)]
pub struct Oracle {
    /// Every append that was ever sent.
    pub appends: Vec<Append>,
    shards: usize,
    /// Every record that a read ever showed.
    shown: BTreeMap<(u32, u64), Seen>,
    /// Largest durable lsn that was ever claimed, by log.
    claimed: Vec<u64>,
    /// Latest epoch seen, by log.
    epochs: Vec<u32>,
    /// Largest version acked durably (or shown), by stream and key.
    versions: HashMap<(usize, Vec<u8>), u32>,
    /// Keys that a tombstone was sent for.
    ended: HashMap<(usize, Vec<u8>), u32>,
    /// Appends that a restart did not show: they must not come back, unless they are sent again.
    gone: HashSet<usize>,
    /// Which append was acked at a place, durably.
    acked_at: HashMap<(u32, u64), usize>,
    /// The device has failed a read or lied in this life: a read may be refused for damage.
    pub media_failed: bool,
    /// Lives in which a disk operation failed.
    pub failing_lives: HashSet<u32>,
    /// What the last restart showed, by log and lsn.
    truth: Vec<BTreeMap<u64, Seen>>,
    /// Limits in bytes, and what they have ended.
    retention: retention::Retention,
}

fn owner(shards: usize, key: &[u8]) -> usize {
    usize::from(slot::shard_of_slot(slot::slot_of(key), shards as u16))
}

impl Oracle {
    /// For a store of so many shards.
    pub fn new(shards: usize) -> Oracle {
        Oracle {
            shards,
            claimed: vec![0; shards],
            epochs: vec![0; shards],
            truth: vec![BTreeMap::new(); shards],
            ..Oracle::default()
        }
    }

    /// Remember an append that is about to be sent.
    pub fn sent(&mut self, append: Append) -> usize {
        for record in append.records.iter().filter(|r| r.tombstone) {
            *self
                .ended
                .entry((append.stream, record.key.clone()))
                .or_default() += 1;
        }
        self.appends.push(append);
        self.appends.len() - 1
    }

    /// The version that a read of this key must show at least.
    pub fn at_least(&self, stream: usize, key: &[u8]) -> u32 {
        self.versions
            .get(&(stream, key.to_vec()))
            .copied()
            .unwrap_or(0)
    }

    /// Keys that have a record which was acked durably or read.
    pub fn acked_keys(&self) -> Vec<(usize, Vec<u8>)> {
        let mut keys: Vec<_> = self.versions.keys().cloned().collect();
        keys.sort_unstable();
        keys
    }

    /// Records that the last restart showed.
    pub fn records(&self) -> usize {
        self.truth.iter().map(BTreeMap::len).sum()
    }

    fn saw(&mut self, seen: &Seen) -> Result<(), Broken> {
        let key = (seen.stream, seen.key.clone());
        let version = self.versions.entry(key).or_default();
        *version = (*version).max(seen.version);
        // Whatever a device gives back: what is served is what was sent, and at an acked place what was acked there.
        if let Some(acked) = self.acked_at.get(&(seen.log, seen.lsn))
            && name_of(seen).is_none_or(|(number, _)| number != *acked)
        {
            return Err(Promise::Corruption
                .broken(format!("append {acked} was acked where {seen:?} is served")));
        }
        match self.shown.get(&(seen.log, seen.lsn)) {
            Some(before) if before != seen => Err(Promise::NoPhantom.broken(format!(
                "a record changed: {before:?} was shown first, {seen:?} now"
            ))),
            Some(_) => Ok(()),
            None => {
                self.shown.insert((seen.log, seen.lsn), seen.clone());
                Ok(())
            }
        }
    }

    /// A reply came.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn heard(&mut self, heard: &Heard) -> Result<(), Broken> {
        let (log, durable, epoch) = heard.mark;
        let claimed = self
            .claimed
            .get_mut(log as usize)
            .ok_or("a reply from a log that is not there")?;
        *claimed = (*claimed).max(durable);
        if epoch < self.epochs[log as usize] {
            return Err(Promise::Prefix.broken(format!("log {log} went back to epoch {epoch}")));
        }
        self.epochs[log as usize] = epoch;
        match (&heard.about, &heard.said) {
            (About::Append(number), Said::Appended(outcome)) => self.acked(*number, outcome)?,
            (About::Append(number), Said::Refused { code, .. }) => self.refused(*number, *code)?,
            (
                About::Get {
                    stream,
                    key,
                    at_least,
                }
                | About::History {
                    stream,
                    key,
                    at_least,
                },
                Said::Records { records, .. },
            ) => {
                for pair in records.windows(2) {
                    if pair[0].version != pair[1].version + 1 {
                        return Err(Promise::Versions.broken(format!(
                            "history of {} leaps from version {} to {}",
                            show(key),
                            pair[0].version,
                            pair[1].version
                        )));
                    }
                }
                let newest = records.first().map_or(0, |r| r.version);
                if newest < *at_least && !self.may_have_ended(*stream, key, *at_least) {
                    return Err(Promise::Durable.broken(format!(
                        "{} was read at version {newest}, version {at_least} had been acked or read before",
                        show(key)
                    )));
                }
                if records.iter().any(|r| r.key != *key) {
                    return Err(Promise::Corruption
                        .broken(format!("{} was asked and another key answered", show(key))));
                }
                for record in records {
                    self.saw(record)?;
                }
            }
            (
                About::Get {
                    stream,
                    key,
                    at_least,
                }
                | About::History {
                    stream,
                    key,
                    at_least,
                },
                Said::Refused { code, message },
            ) => {
                let may_be_gone = *at_least == 0
                    || (matches!(heard.about, About::Get { .. })
                        && self.ended.contains_key(&(*stream, key.clone())));
                if *code == Code::NotFound
                    && !may_be_gone
                    && !self.may_have_ended(*stream, key, *at_least)
                {
                    return Err(Promise::Durable.broken(format!(
                        "{} was not found, version {at_least} had been acked or read before",
                        show(key)
                    )));
                }
                if *code == Code::Internal && !self.media_failed {
                    return Err(Promise::Corruption
                        .broken(format!("read of {} failed: {message}", show(key))));
                }
            }
            (About::Scan { .. }, Said::Records { records, .. }) => {
                for record in records {
                    self.saw(record)?;
                }
            }
            (About::Scan { .. }, Said::Refused { code, message }) => {
                if *code == Code::Internal && !self.media_failed {
                    return Err(Promise::Corruption.broken(format!("a scan failed: {message}")));
                }
            }
            (about, said) => {
                return Err(Promise::Answers.broken(format!("{about:?} was answered {said:?}")));
            }
        }
        Ok(())
    }

    fn acked(&mut self, number: usize, outcome: &Outcome) -> Result<(), Broken> {
        let append = &mut self.appends[number];
        let Outcome::Acked {
            durability,
            parts,
            versions,
        } = outcome
        else {
            return Err("an ack that is none".into());
        };
        let count: u32 = parts.iter().map(|p| p.2).sum();
        if count as usize != append.records.len() || versions.len() != append.records.len() {
            return Err(Promise::Answers.broken(format!(
                "append {number} of {} records was acked with {count} and {} versions",
                append.records.len(),
                versions.len()
            )));
        }
        if append.durability != *durability {
            return Err(Promise::Answers.broken(format!(
                "append {number} asked for {:?} and got {durability:?}",
                append.durability
            )));
        }
        if let Outcome::Acked {
            parts: p,
            versions: v,
            durability: d,
        } = &append.outcome
            && *d == Durability::Durable
            && (p != parts || v != versions)
        {
            return Err(Promise::SafeRetries.broken(format!(
                "the repeat of append {number} got another answer: {:?}, then {outcome:?}",
                append.outcome
            )));
        }
        if let Outcome::Refused(code) = append.outcome
            && append.attempts == 1
        {
            return Err(Promise::Answers.broken(format!(
                "append {number} was acked after it had been refused with {code:?}"
            )));
        }
        append.outcome = outcome.clone();
        if *durability == Durability::Durable {
            for (log, first, records) in parts {
                for lsn in *first..first + u64::from(*records) {
                    self.acked_at.insert((*log, lsn), number);
                }
            }
            let stream = append.stream;
            for (record, version) in append.records.iter().zip(versions) {
                let newest = self
                    .versions
                    .entry((stream, record.key.clone()))
                    .or_default();
                *newest = (*newest).max(*version);
            }
        }
        Ok(())
    }

    fn refused(&mut self, number: usize, code: Code) -> Result<(), Broken> {
        let shards = self.shards;
        let append = &mut self.appends[number];
        let is_conditional = append
            .records
            .iter()
            .any(|r| r.condition != Condition::None);
        // The record that a condition asks about may have to be read.
        let code = match code {
            Code::Internal if is_conditional && self.media_failed => Code::Unavailable,
            code => code,
        };
        match (&append.outcome, code) {
            // Said of a repeat while the shard cannot answer: the first answer stands.
            (_, Code::Unavailable | Code::DiskFull | Code::Overloaded) if append.attempts > 1 => {
                Ok(())
            }
            (
                Outcome::Acked {
                    durability: Durability::Durable,
                    ..
                },
                code,
            ) => Err(Promise::SafeRetries.broken(format!(
                "append {number} was acked, its repeat refused with {code:?}"
            ))),
            (_, Code::ConditionFailed) if is_conditional => {
                append.outcome = Outcome::Refused(code);
                Ok(())
            }
            // Behind a refused request of the same producer.
            (_, Code::SequenceOutOfOrder) if append.producer.is_some() => Ok(()),
            // Each shard refuses for itself: another may have taken its part.
            (_, Code::Unavailable | Code::DiskFull | Code::Overloaded)
                if append
                    .records
                    .iter()
                    .any(|r| owner(shards, &r.key) != owner(shards, &append.records[0].key)) =>
            {
                append.outcome = Outcome::Refused(Code::Unavailable);
                Ok(())
            }
            (_, Code::Unavailable | Code::DiskFull | Code::Overloaded) => {
                append.outcome = Outcome::Refused(code);
                Ok(())
            }
            (_, code) => Err(Promise::Answers.broken(format!(
                "append {number} was refused with {code:?}: {append:?}"
            ))),
        }
    }

    /// An append is sent once more.
    pub fn sent_again(&mut self, number: usize, life: u32) {
        let append = &mut self.appends[number];
        append.attempts += 1;
        append.life = life;
        self.gone.remove(&number);
    }

    /// Appends of producers that have to be sent again after a restart, in order; and some that need not be.
    pub fn to_repeat(&self) -> Vec<usize> {
        let places = self.place(&self.truth).unwrap_or_default();
        // What was acked and is not there has been ended: its producer was answered long ago.
        let absent = |n: &usize| {
            let acked = matches!(&self.appends[*n].outcome, Outcome::Acked { durability, .. } if *durability == Durability::Durable);
            !acked && (0..self.shards).all(|log| !places.contains_key(&(*n, log)))
        };
        let mut repeats = Vec::new();
        let mut numbers: Vec<usize> = (0..self.appends.len())
            .filter(|n| self.appends[*n].producer.is_some())
            .collect();
        let total = numbers.len();
        for (at, number) in numbers.drain(..).enumerate() {
            if absent(&number) || at + 8 >= total {
                repeats.push(number);
            }
        }
        repeats
    }

    /// Newest record of each key, as the last restart showed it; and each key's history, newest first.
    pub fn histories(&self) -> BTreeMap<(usize, Vec<u8>), Vec<Seen>> {
        let mut histories: BTreeMap<(usize, Vec<u8>), Vec<Seen>> = BTreeMap::new();
        for seen in self.truth.iter().flat_map(BTreeMap::values) {
            histories
                .entry((seen.stream, seen.key.clone()))
                .or_default()
                .insert(0, seen.clone());
        }
        histories
    }
}

/// Payload that names request and ordinal.
pub fn payload(number: usize, ordinal: usize, bytes: usize) -> Vec<u8> {
    let mut payload = format!("{number}:{ordinal}:").into_bytes();
    let filler = b'a' + (number % 26) as u8;
    payload.resize(payload.len().max(bytes), filler);
    payload
}

fn name_of(seen: &Seen) -> Option<(usize, usize)> {
    let text = std::str::from_utf8(if seen.tombstone {
        &seen.content_type
    } else {
        &seen.payload
    })
    .ok()?;
    let mut parts = text.split(':');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn show(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}
