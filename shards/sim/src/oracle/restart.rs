//! What a restart shows, against everything that was said before it.

use std::collections::{BTreeMap, HashMap};

use wire::{Code, Condition, Durability};

use super::{Broken, Oracle, name_of, owner, show};
use crate::client::{Outcome, Seen, content_type};
use crate::promise::Promise;

impl Oracle {
    /// Every record that the store shows after a restart (or at rest), by log and lsn, against everything that was said.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn check(
        &mut self,
        dump: Vec<BTreeMap<u64, Seen>>,
        durable_lsns: &[u64],
    ) -> Result<(), Broken> {
        self.move_fronts(&dump)?;
        for (log, records) in dump.iter().enumerate() {
            self.check_log(log, records, durable_lsns[log])?;
        }
        for ((log, lsn), shown) in &self.shown {
            if (self.retention).has_ended(*log as usize, shown.stream, *lsn) {
                continue;
            }
            match dump[*log as usize].get(lsn) {
                Some(now) if now == shown => {}
                now => {
                    return Err(Promise::NoPhantom
                        .broken(format!("a read showed {shown:?}; now {now:?} is there")));
                }
            }
        }
        self.check_appends(&dump)?;
        self.check_histories(&dump)?;
        self.versions.clear();
        for seen in dump.iter().flat_map(BTreeMap::values) {
            let newest = self
                .versions
                .entry((seen.stream, seen.key.clone()))
                .or_default();
            *newest = (*newest).max(seen.version);
        }
        self.truth = dump;
        Ok(())
    }

    fn check_log(
        &self,
        log: usize,
        records: &BTreeMap<u64, Seen>,
        durable: u64,
    ) -> Result<(), Broken> {
        if durable < self.claimed[log] {
            return Err(Promise::Durable.broken(format!(
                "log {log} claimed that lsn {} is durable and now ends at {durable}",
                self.claimed[log]
            )));
        }
        if let Some((last, _)) = records.last_key_value()
            && *last > durable
        {
            return Err(Promise::NoPhantom.broken(format!(
                "log {log} shows lsn {last} and says that {durable} is durable"
            )));
        }
        let next = self.check_density(log, records)?;
        let may_lack = self.retention.lsns_without_records();
        if may_lack.is_some_and(|more| next + more <= durable) {
            return Err(Promise::Prefix.broken(format!(
                "log {log} ends at lsn {durable} and shows no record from {next} on"
            )));
        }
        Ok(())
    }

    /// No lsn is missing; the one behind the last.
    fn check_density(&self, log: usize, records: &BTreeMap<u64, Seen>) -> Result<u64, Broken> {
        // Each stream takes one lsn for its definition, before its first record; others are said by `retention`.
        let mut streams = Vec::new();
        let mut may_lack = self.retention.lsns_without_records();
        let ended_below = self.retention.last_front(log);
        let (mut next, mut time) = (1, 0);
        for (lsn, seen) in records {
            let missing = lsn - next.max(ended_below.min(*lsn));
            let new = !streams.contains(&seen.stream);
            if new {
                streams.push(seen.stream);
            }
            let more = missing.saturating_sub(u64::from(new));
            if may_lack.is_some_and(|may| more > may) {
                return Err(Promise::Prefix.broken(format!(
                    "log {log} has no records from lsn {next} to {}",
                    lsn - 1
                )));
            }
            may_lack = may_lack.map(|may| may - more);
            if seen.timestamp_us < time {
                return Err(
                    Promise::Prefix.broken(format!("log time of log {log} goes back at lsn {lsn}"))
                );
            }
            (next, time) = (lsn + 1, seen.timestamp_us);
        }
        Ok(next)
    }

    /// Where the records of an append are: by shard, the lsn of its first record there.
    pub(super) fn place(
        &self,
        dump: &[BTreeMap<u64, Seen>],
    ) -> Result<HashMap<(usize, usize), u64>, Broken> {
        let mut places = HashMap::new();
        for (log, records) in dump.iter().enumerate() {
            for seen in records.values() {
                let (number, ordinal) = name_of(seen).ok_or_else(|| {
                    Promise::Corruption.broken(format!("nobody ever sent {seen:?}"))
                })?;
                let append = self.appends.get(number).ok_or_else(|| {
                    Promise::Corruption.broken(format!("nobody ever sent {seen:?}"))
                })?;
                if self.gone.contains(&number) {
                    return Err(Promise::Prefix.broken(format!(
                        "append {number} was not there after a restart and came back"
                    )));
                }
                let sent = append.records.get(ordinal).ok_or_else(|| {
                    Promise::Corruption.broken(format!("nobody ever sent {seen:?}"))
                })?;
                let as_sent = sent.tombstone == seen.tombstone
                    && seen.content_type == content_type(number, ordinal, sent);
                if !as_sent
                    || sent.key != seen.key
                    || sent.payload != seen.payload
                    || append.stream != seen.stream
                    || owner(self.shards, &seen.key) != log
                {
                    return Err(Promise::Corruption
                        .broken(format!("sent as {sent:?} and stored as {seen:?}")));
                }
                let before = append.records[..ordinal]
                    .iter()
                    .filter(|r| owner(self.shards, &r.key) == log)
                    .count() as u64;
                let first = seen
                    .lsn
                    .checked_sub(before)
                    .ok_or_else(|| format!("append {number} starts before the log"))?;
                if *places.entry((number, log)).or_insert(first) != first {
                    return Err(Promise::SafeRetries.broken(format!(
                        "append {number} is in log {log} twice, or out of order: {seen:?}"
                    )));
                }
            }
        }
        Ok(places)
    }

    /// The same when the device has lied: the end of a log may be missing, nothing else. Gives the records that were acked
    /// durably and are not there.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn check_after_a_lie(&self, dump: &[BTreeMap<u64, Seen>]) -> Result<u64, Broken> {
        let places = self.place(dump)?;
        let mut lost = 0;
        for (log, records) in dump.iter().enumerate() {
            let end = self.check_density(log, records)?;
            let shown = self.shown.range((log as u32, 0)..(log as u32, end));
            for ((_, lsn), before) in shown {
                if records.get(lsn) != Some(before) {
                    return Err(Promise::Corruption.broken(format!(
                        "a read showed {before:?}; now {:?} is there",
                        records.get(lsn)
                    )));
                }
            }
            for number in 0..self.appends.len() {
                let place = places.get(&(number, log)).copied();
                let cut = self.appends[number].acked_in(log, end);
                match (place, cut) {
                    (None, Some(records)) => lost += records,
                    _ => self.check_part(number, log, place, records)?,
                }
            }
        }
        self.check_histories(dump)?;
        Ok(lost)
    }

    fn check_appends(&mut self, dump: &[BTreeMap<u64, Seen>]) -> Result<(), Broken> {
        let places = self.place(dump)?;
        for (log, records) in dump.iter().enumerate() {
            self.check_order(log, &places)?;
            for number in 0..self.appends.len() {
                let place = places.get(&(number, log)).copied();
                self.check_part(number, log, place, records)?;
            }
        }
        for number in 0..self.appends.len() {
            let gone = |log: usize| !places.contains_key(&(number, log));
            if (0..self.shards).all(gone) {
                self.gone.insert(number);
            }
            // What was acked as buffered and is lost will not be acked again.
            if let Outcome::Acked {
                durability: Durability::Buffered,
                parts,
                ..
            } = &self.appends[number].outcome
                && parts.iter().any(|p| gone(p.0 as usize))
            {
                self.appends[number].outcome = Outcome::Unknown;
            }
        }
        Ok(())
    }

    /// What a connection sent to a log is there in that order, and without a gap.
    fn check_order(&self, log: usize, places: &HashMap<(usize, usize), u64>) -> Result<(), Broken> {
        // By lane: the last append that is not there, and where the last one is that is.
        let mut lost: HashMap<usize, usize> = HashMap::new();
        let mut last: HashMap<(usize, u32, u64), u64> = HashMap::new();
        for (number, append) in self.appends.iter().enumerate() {
            if !append
                .records
                .iter()
                .any(|r| owner(self.shards, &r.key) == log)
            {
                continue;
            }
            match places.get(&(number, log)) {
                // A repeated request keeps its place, or is new: only those sent once are in order.
                Some(first) if append.attempts == 1 => {
                    if let Some(gap) = lost.get(&append.lane)
                        && (self.appends[*gap].life, self.appends[*gap].connection)
                            == (append.life, append.connection)
                    {
                        return Err(Promise::Prefix.broken(format!(
                            "append {number} is in log {log}, append {gap} that was sent before it is not"
                        )));
                    }
                    if last
                        .insert((append.lane, append.life, append.connection), *first)
                        .is_some_and(|before| before >= *first)
                    {
                        return Err(Promise::Prefix.broken(format!(
                            "append {number} of lane {} is in log {log} before what was sent earlier",
                            append.lane
                        )));
                    }
                }
                Some(_) => {}
                None if self.is_ended(number, log) => {}
                None => {
                    let conditional = append
                        .records
                        .iter()
                        .any(|r| r.condition != Condition::None);
                    // Where no segment can be made what is small, or a tombstone, still gets room when more is refused, and that
                    // refusal may have been on its way.
                    let refused = append.unheard
                        || (append.outcome == Outcome::Unknown
                            && self.failing_lives.contains(&append.life));
                    if !conditional
                        && !refused
                        && append.producer.is_none()
                        && !matches!(append.outcome, Outcome::Refused(_))
                    {
                        lost.insert(append.lane, number);
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a limit has ended an append that is not there. If it was never acked, it may have, where anything was ended.
    fn is_ended(&self, number: usize, log: usize) -> bool {
        let append = &self.appends[number];
        match &append.outcome {
            Outcome::Acked { parts, .. } => parts
                .iter()
                .find(|part| part.0 as usize == log)
                .is_some_and(|part| self.retention.has_ended(log, append.stream, part.1)),
            _ => self.retention.has_ended_any(log, append.stream),
        }
    }

    /// One append's records in one log are all there or none, and as the answer had it.
    fn check_part(
        &self,
        number: usize,
        log: usize,
        place: Option<u64>,
        records: &BTreeMap<u64, Seen>,
    ) -> Result<(), Broken> {
        let append = &self.appends[number];
        let own: Vec<usize> = (0..append.records.len())
            .filter(|i| owner(self.shards, &append.records[*i].key) == log)
            .collect();
        if own.is_empty() {
            return Ok(());
        }
        if let Some(first) = place {
            for (lsn, ordinal) in (first..).zip(&own) {
                let sent = &append.records[*ordinal];
                match records.get(&lsn) {
                    None if self.retention.has_ended(log, append.stream, lsn) => {}
                    Some(seen)
                        if (&seen.key, &seen.payload, seen.tombstone)
                            == (&sent.key, &sent.payload, sent.tombstone) => {}
                    other => {
                        return Err(Promise::Prefix.broken(format!(
                            "append {number} is in log {log} in part: lsn {lsn} holds {other:?}"
                        )));
                    }
                }
            }
        }
        let (durability, parts, versions) = match &append.outcome {
            Outcome::Acked {
                durability,
                parts,
                versions,
            } => (*durability, parts, versions),
            // What is refused because a write has failed may be on the device all the same; the refusal says so.
            Outcome::Refused(code)
                if append.attempts == 1 && *code != Code::Unavailable && place.is_some() =>
            {
                return Err(Promise::Answers.broken(format!(
                    "append {number} was refused with {code:?} and is in log {log}"
                )));
            }
            Outcome::Refused(_) | Outcome::Unknown => return Ok(()),
        };
        let Some((_, acked, _)) = parts.iter().find(|p| p.0 as usize == log) else {
            return Err(
                Promise::Answers.broken(format!("append {number} was acked without log {log}"))
            );
        };
        let ends = |lsn: u64| self.retention.has_ended(log, append.stream, lsn);
        match place {
            None if ends(acked + own.len() as u64 - 1) => Ok(()),
            None if durability == Durability::Durable => Err(Promise::Durable.broken(format!(
                "append {number} was acked durably at lsn {acked} of log {log} and is lost"
            ))),
            None => Ok(()),
            Some(first) if first != *acked => Err(Promise::Durable.broken(format!(
                "append {number} was acked at lsn {acked} of log {log} and is at {first}"
            ))),
            Some(first) => match (first..)
                .zip(&own)
                .filter(|(lsn, _)| !ends(*lsn))
                .find(|(lsn, ordinal)| records[lsn].version != versions[**ordinal])
            {
                Some((lsn, ordinal)) => Err(Promise::Versions.broken(format!(
                    "append {number} was acked with version {} and has {:?}",
                    versions[*ordinal], records[&lsn]
                ))),
                None => Ok(()),
            },
        }
    }

    /// Versions of each key are dense, and conditions held when they were judged.
    fn check_histories(&self, dump: &[BTreeMap<u64, Seen>]) -> Result<(), Broken> {
        let mut newest: HashMap<(usize, Vec<u8>), (u32, bool)> = HashMap::new();
        for (log, seen) in (dump.iter().enumerate())
            .flat_map(|(log, records)| records.values().map(move |seen| (log, seen)))
        {
            let key = (seen.stream, seen.key.clone());
            if !newest.contains_key(&key) && self.retention.has_ended_any(log, seen.stream) {
                // What came before it is not there any more.
                newest.insert(key, (seen.version, seen.tombstone));
                continue;
            }
            let entry = newest.entry(key).or_insert((0, true));
            if seen.version != entry.0 + 1 {
                return Err(Promise::Versions.broken(format!(
                    "{} goes from version {} to {}",
                    show(&seen.key),
                    entry.0,
                    seen.version
                )));
            }
            let condition = name_of(seen).map(|(n, o)| self.appends[n].records[o].condition);
            let held = match condition {
                Some(Condition::New) => entry.1,
                Some(Condition::Version(v)) => !entry.1 && entry.0 == v,
                _ => true,
            };
            if !held {
                return Err(Promise::Versions.broken(format!(
                    "{condition:?} did not hold for {seen:?}: the key was at {entry:?}"
                )));
            }
            *entry = (seen.version, seen.tombstone);
        }
        Ok(())
    }
}
