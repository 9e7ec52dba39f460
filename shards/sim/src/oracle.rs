//! What must hold, whatever the machine does: the promises, as code.
//!
//! Owns everything that clients were ever told, over all lives. After each restart it is given every record that the store
//! shows and compares. It does not know how a crash was made.

use std::collections::{BTreeMap, HashMap, HashSet};

use wire::{Code, Condition, Durability, slot};

use crate::client::{About, Append, Heard, Outcome, Said, Seen, content_type};

/// A promise that was broken, in words.
pub type Broken = String;

/// See the module's header.
#[derive(Default)]
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
    /// What the last restart showed, by log and lsn.
    truth: Vec<BTreeMap<u64, Seen>>,
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
        match self.shown.get(&(seen.log, seen.lsn)) {
            Some(before) if before != seen => Err(format!(
                "a record changed: {before:?} was shown first, {seen:?} now"
            )),
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
            return Err(format!("log {log} went back to epoch {epoch}"));
        }
        self.epochs[log as usize] = epoch;
        match (&heard.about, &heard.said) {
            (About::Append(number), Said::Appended(outcome)) => self.acked(*number, outcome)?,
            (About::Append(number), Said::Refused { code, .. }) => self.refused(*number, *code)?,
            (
                About::Get { key, at_least, .. } | About::History { key, at_least, .. },
                Said::Records { records, .. },
            ) => {
                for pair in records.windows(2) {
                    if pair[0].version != pair[1].version + 1 {
                        return Err(format!(
                            "history of {} leaps from version {} to {}",
                            show(key),
                            pair[0].version,
                            pair[1].version
                        ));
                    }
                }
                let newest = records.first().map_or(0, |r| r.version);
                if newest < *at_least {
                    return Err(format!(
                        "{} was read at version {newest}, version {at_least} had been acked or read before",
                        show(key)
                    ));
                }
                if records.iter().any(|r| r.key != *key) {
                    return Err(format!("{} was asked and another key answered", show(key)));
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
                if *code == Code::NotFound && !may_be_gone {
                    return Err(format!(
                        "{} was not found, version {at_least} had been acked or read before",
                        show(key)
                    ));
                }
                if *code == Code::Internal {
                    return Err(format!("read of {} failed: {message}", show(key)));
                }
            }
            (About::Scan { .. }, Said::Records { records, .. }) => {
                for record in records {
                    self.saw(record)?;
                }
            }
            (About::Scan { .. }, Said::Refused { code, message }) => {
                if *code == Code::Internal {
                    return Err(format!("a scan failed: {message}"));
                }
            }
            (about, said) => return Err(format!("{about:?} was answered {said:?}")),
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
            return Err(format!(
                "append {number} of {} records was acked with {count} and {} versions",
                append.records.len(),
                versions.len()
            ));
        }
        if append.durability != *durability {
            return Err(format!(
                "append {number} asked for {:?} and got {durability:?}",
                append.durability
            ));
        }
        if let Outcome::Acked {
            parts: p,
            versions: v,
            durability: d,
        } = &append.outcome
            && *d == Durability::Durable
            && (p != parts || v != versions)
        {
            return Err(format!(
                "the repeat of append {number} got another answer: {:?}, then {outcome:?}",
                append.outcome
            ));
        }
        if let Outcome::Refused(code) = append.outcome
            && append.attempts == 1
        {
            return Err(format!(
                "append {number} was acked after it had been refused with {code:?}"
            ));
        }
        append.outcome = outcome.clone();
        if *durability == Durability::Durable {
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
            ) => Err(format!(
                "append {number} was acked, its repeat refused with {code:?}"
            )),
            (_, Code::ConditionFailed)
                if append
                    .records
                    .iter()
                    .any(|r| r.condition != Condition::None) =>
            {
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
            (_, code) => Err(format!(
                "append {number} was refused with {code:?}: {append:?}"
            )),
        }
    }

    /// Every record that the store shows after a restart (or at rest), by log and lsn, against everything that was said.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn check(
        &mut self,
        dump: Vec<BTreeMap<u64, Seen>>,
        durable_lsns: &[u64],
    ) -> Result<(), Broken> {
        for (log, records) in dump.iter().enumerate() {
            self.check_log(log, records, durable_lsns[log])?;
        }
        for ((log, lsn), shown) in &self.shown {
            match dump[*log as usize].get(lsn) {
                Some(now) if now == shown => {}
                now => return Err(format!("a read showed {shown:?}; now {now:?} is there")),
            }
        }
        self.check_appends(&dump)?;
        check_histories(&self.appends, &dump)?;
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
            return Err(format!(
                "log {log} claimed that lsn {} is durable and now ends at {durable}",
                self.claimed[log]
            ));
        }
        if let Some((last, _)) = records.last_key_value()
            && *last > durable
        {
            return Err(format!(
                "log {log} shows lsn {last} and says that {durable} is durable"
            ));
        }
        // Each stream takes one lsn for its definition, before its first record.
        let mut streams = Vec::new();
        let (mut next, mut time) = (1, 0);
        for (lsn, seen) in records {
            let missing = lsn - next;
            let new = !streams.contains(&seen.stream);
            if new {
                streams.push(seen.stream);
            }
            if missing > u64::from(new) {
                return Err(format!(
                    "log {log} has no records from lsn {next} to {}",
                    lsn - 1
                ));
            }
            if seen.timestamp_us < time {
                return Err(format!("log time of log {log} goes back at lsn {lsn}"));
            }
            (next, time) = (lsn + 1, seen.timestamp_us);
        }
        if next <= durable {
            return Err(format!(
                "log {log} ends at lsn {durable} and shows no record from {next} on"
            ));
        }
        Ok(())
    }

    /// Where the records of an append are: by shard, the lsn of its first record there.
    fn place(&self, dump: &[BTreeMap<u64, Seen>]) -> Result<HashMap<(usize, usize), u64>, Broken> {
        let mut places = HashMap::new();
        for (log, records) in dump.iter().enumerate() {
            for seen in records.values() {
                let (number, ordinal) =
                    name_of(seen).ok_or_else(|| format!("nobody ever sent {seen:?}"))?;
                let append = self
                    .appends
                    .get(number)
                    .ok_or_else(|| format!("nobody ever sent {seen:?}"))?;
                if self.gone.contains(&number) {
                    return Err(format!(
                        "append {number} was not there after a restart and came back"
                    ));
                }
                let sent = append
                    .records
                    .get(ordinal)
                    .ok_or_else(|| format!("nobody ever sent {seen:?}"))?;
                let as_sent = sent.tombstone == seen.tombstone
                    && seen.content_type == content_type(number, ordinal, sent);
                if !as_sent
                    || sent.key != seen.key
                    || sent.payload != seen.payload
                    || append.stream != seen.stream
                    || owner(self.shards, &seen.key) != log
                {
                    return Err(format!("sent as {sent:?} and stored as {seen:?}"));
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
                    return Err(format!(
                        "append {number} is in log {log} twice, or out of order: {seen:?}"
                    ));
                }
            }
        }
        Ok(places)
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
        let mut last: HashMap<usize, u64> = HashMap::new();
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
                        && self.appends[*gap].life == append.life
                    {
                        return Err(format!(
                            "append {number} is in log {log}, append {gap} that was sent before it is not"
                        ));
                    }
                    if last
                        .insert(append.lane, *first)
                        .is_some_and(|before| before >= *first)
                    {
                        return Err(format!(
                            "append {number} of lane {} is in log {log} before what was sent earlier",
                            append.lane
                        ));
                    }
                }
                Some(_) => {}
                None => {
                    let conditional = append
                        .records
                        .iter()
                        .any(|r| r.condition != Condition::None);
                    if !conditional
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
                    Some(seen)
                        if (&seen.key, &seen.payload, seen.tombstone)
                            == (&sent.key, &sent.payload, sent.tombstone) => {}
                    other => {
                        return Err(format!(
                            "append {number} is in log {log} in part: lsn {lsn} holds {other:?}"
                        ));
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
                return Err(format!(
                    "append {number} was refused with {code:?} and is in log {log}"
                ));
            }
            Outcome::Refused(_) | Outcome::Unknown => return Ok(()),
        };
        let Some((_, acked, _)) = parts.iter().find(|p| p.0 as usize == log) else {
            return Err(format!("append {number} was acked without log {log}"));
        };
        match place {
            None if durability == Durability::Durable => Err(format!(
                "append {number} was acked durably at lsn {acked} of log {log} and is lost"
            )),
            None => Ok(()),
            Some(first) if first != *acked => Err(format!(
                "append {number} was acked at lsn {acked} of log {log} and is at {first}"
            )),
            Some(first) => match (first..)
                .zip(&own)
                .find(|(lsn, ordinal)| records[lsn].version != versions[**ordinal])
            {
                Some((lsn, ordinal)) => Err(format!(
                    "append {number} was acked with version {} and has {:?}",
                    versions[*ordinal], records[&lsn]
                )),
                None => Ok(()),
            },
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
        let absent = |n: &usize| (0..self.shards).all(|log| !places.contains_key(&(*n, log)));
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

/// Versions of each key are dense, and conditions held when they were judged.
fn check_histories(appends: &[Append], dump: &[BTreeMap<u64, Seen>]) -> Result<(), Broken> {
    let mut newest: HashMap<(usize, Vec<u8>), (u32, bool)> = HashMap::new();
    for seen in dump.iter().flat_map(BTreeMap::values) {
        let entry = newest
            .entry((seen.stream, seen.key.clone()))
            .or_insert((0, true));
        if seen.version != entry.0 + 1 {
            return Err(format!(
                "{} goes from version {} to {}",
                show(&seen.key),
                entry.0,
                seen.version
            ));
        }
        let condition = name_of(seen).map(|(n, o)| appends[n].records[o].condition);
        let held = match condition {
            Some(Condition::New) => entry.1,
            Some(Condition::Version(v)) => !entry.1 && entry.0 == v,
            _ => true,
        };
        if !held {
            return Err(format!(
                "{condition:?} did not hold for {seen:?}: the key was at {entry:?}"
            ));
        }
        *entry = (seen.version, seen.tombstone);
    }
    Ok(())
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
