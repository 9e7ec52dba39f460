//! What the old logs leave to one new log: answers that retries may ask it for, versions of keys without a record, counts.

use ahash::AHashMap;

use super::{Source, Target};
use crate::dedup::{Answer, Item, Slots, Versions};

/// Everything for new log `at`. What is over by `log_time_us` is left out.
pub(super) fn left_to(
    sources: &[Source],
    ids: &[Vec<u32>],
    target: &Target,
    at: usize,
    log_time_us: u64,
) -> Vec<Item> {
    let mut items = producers(sources, log_time_us);
    let known: ahash::AHashSet<u128> = items.iter().filter_map(producer_id).collect();
    if at == 0 {
        items.extend(counted(sources, ids));
    }
    let mut keys = Keys::default();
    let mut origin = 0;
    for (source, ids) in sources.iter().zip(ids) {
        let Some(slots) = common(source.slots, target.slots) else {
            continue;
        };
        // Whoever repeats a request asks the log that has its first record now; any, if that is gone.
        let answer_here = |answer: &Answer| match source.place_of(answer.first_lsn) {
            Some((place, lsn)) if place == at => Some(at_lsn(answer, lsn)),
            Some(_) => None,
            None => Some(at_lsn(answer, 0)),
        };
        for (id, .., answers) in source.producers.all() {
            if !known.contains(&id) {
                continue;
            }
            for (sequence, fingerprint, answer) in answers {
                items.extend(answer_here(answer).map(|answer| Item::Request {
                    id,
                    sequence,
                    fingerprint,
                    answer,
                }));
            }
        }
        for (digest, fingerprint, expires_us, answer) in source.keys.all() {
            let here = answer_here(answer);
            // Of several records, those behind the first may be in other logs.
            if expires_us > log_time_us && (here.is_some() || answer.records > 1) {
                let answer = here.unwrap_or_else(|| at_lsn(answer, 0));
                keys.add(digest, fingerprint, expires_us, answer, &[slots]);
            }
        }
        origin = carried(
            source,
            ids,
            target.slots,
            origin,
            &mut items,
            &mut keys,
            &|a| answer_here(a),
        );
        let ended = || source.ended.iter().chain(&source.over_limit);
        if ended().next().is_some() {
            items.extend((1..).zip(ids).map(|(digested, stream)| Item::Alias {
                origin,
                stream: *stream,
                digested,
            }));
            items.extend(ended().map(|(digest, version)| Item::Version {
                origin,
                digest: *digest,
                version: *version,
            }));
            origin += 1;
        }
    }
    items.extend(keys.all.into_iter().filter(|key| match key {
        Item::Key { expires_us, .. } => *expires_us > log_time_us,
        _ => true,
    }));
    items.retain(|item| match item {
        Item::Request { id, .. } => known.contains(id),
        _ => true,
    });
    items
}

/// What streams count beyond the records that go on, all old logs together: a note counts once a stream, by its lsn.
fn counted(sources: &[Source], ids: &[Vec<u32>]) -> impl Iterator<Item = Item> {
    let mut sums = std::collections::BTreeMap::<u32, (u64, u64)>::new();
    for (source, ids) in sources.iter().zip(ids) {
        for (id, stream) in (1..).zip(ids) {
            let (records, payload_bytes) = source.gone(id);
            let sum = sums.entry(*stream).or_default();
            *sum = (sum.0 + records, sum.1 + payload_bytes);
        }
    }
    let sums = sums.into_iter().filter(|(_, sum)| *sum != (0, 0));
    sums.map(|(stream, (records, payload_bytes))| Item::Counted {
        stream,
        records,
        payload_bytes,
    })
}

/// What the log itself was left. Gives the next free origin.
fn carried(
    source: &Source,
    ids: &[u32],
    target: Slots,
    origin: u16,
    items: &mut Vec<Item>,
    keys: &mut Keys,
    answer_here: &dyn Fn(&Answer) -> Option<Answer>,
) -> u16 {
    let mut next = origin;
    for item in source.carried.items() {
        match item {
            // Those of all logs are there already.
            Item::Producer { .. } | Item::Counted { .. } => {}
            Item::Request {
                id,
                sequence,
                fingerprint,
                answer,
            } => items.extend(answer_here(answer).map(|answer| Item::Request {
                id: *id,
                sequence: *sequence,
                fingerprint: *fingerprint,
                answer,
            })),
            Item::Key {
                digest,
                fingerprint,
                expires_us,
                answer,
                slots,
            } => {
                let slots: Vec<Slots> = slots
                    .iter()
                    .filter_map(|slots| common(*slots, target))
                    .collect();
                let here = answer_here(answer);
                if !slots.is_empty() && (here.is_some() || answer.records > 1) {
                    let answer = here.unwrap_or_else(|| at_lsn(answer, 0));
                    keys.add(*digest, *fingerprint, *expires_us, answer, &slots);
                }
            }
            Item::Alias {
                origin: of,
                stream,
                digested,
            } => {
                next = next.max(origin + of + 1);
                items.push(Item::Alias {
                    origin: origin + of,
                    stream: ids[*stream as usize - 1],
                    digested: *digested,
                });
            }
            Item::Version {
                origin: of,
                digest,
                version,
            } => items.push(Item::Version {
                origin: origin + of,
                digest: *digest,
                version: *version,
            }),
        }
    }
    next
}

/// Every producer of every log, with the largest sequence that it used in any: what it does next lies above.
fn producers(sources: &[Source], log_time_us: u64) -> Vec<Item> {
    let mut all: AHashMap<u128, (u64, u64)> = AHashMap::new();
    let mut note = |id: u128, floor: u64, expires_us: u64| {
        let known = all.entry(id).or_default();
        *known = (known.0.max(floor), known.1.max(expires_us));
    };
    for source in sources {
        for (id, last_sequence, time_us, _) in source.producers.all() {
            let expires_us = time_us.saturating_add(source.producers.window_us());
            note(id, last_sequence, expires_us);
        }
        for item in source.carried.items() {
            if let Item::Producer {
                id,
                floor,
                expires_us,
            } = item
            {
                note(*id, *floor, *expires_us);
            }
        }
    }
    let mut items: Vec<Item> = all
        .into_iter()
        .filter(|(_, (_, expires_us))| *expires_us > log_time_us)
        .map(|(id, (floor, expires_us))| Item::Producer {
            id,
            floor,
            expires_us,
        })
        .collect();
    items.sort_unstable_by_key(producer_id);
    items
}

fn producer_id(item: &Item) -> Option<u128> {
    match item {
        Item::Producer { id, .. } => Some(*id),
        _ => None,
    }
}

/// Keys of several logs: one request's parts are one answer here.
#[derive(Default)]
struct Keys {
    all: Vec<Item>,
    by_request: AHashMap<(u128, u64), usize>,
}

impl Keys {
    fn add(
        &mut self,
        digest: u128,
        fingerprint: u64,
        expires_us: u64,
        answer: Answer,
        slots: &[Slots],
    ) {
        let at = *self
            .by_request
            .entry((digest, fingerprint))
            .or_insert(self.all.len());
        let Some(Item::Key {
            expires_us: known_us,
            answer: known,
            slots: known_slots,
            ..
        }) = self.all.get_mut(at)
        else {
            return self.all.push(Item::Key {
                digest,
                fingerprint,
                expires_us,
                answer,
                slots: slots.into(),
            });
        };
        *known_us = (*known_us).max(expires_us);
        // Several logs may have been left the same answer. Versions of two parts: which records those are nobody could tell.
        if (known.records, &known.versions) != (answer.records, &answer.versions) {
            known.versions = Versions::NONE;
            known.records = known.records.saturating_add(answer.records);
        }
        if known.first_lsn == 0 || (answer.first_lsn > 0 && answer.first_lsn < known.first_lsn) {
            known.first_lsn = answer.first_lsn;
        }
        for slots in slots {
            if !known_slots.contains(slots) {
                known_slots.push(*slots);
            }
        }
        known_slots.sort_unstable();
        // Ranges that touch are one.
        let mut joined: Vec<Slots> = Vec::with_capacity(known_slots.len());
        for (first, last) in known_slots.drain(..) {
            match joined.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        *known_slots = joined;
    }
}

fn at_lsn(answer: &Answer, first_lsn: u64) -> Answer {
    Answer {
        first_lsn,
        ..answer.clone()
    }
}

fn common(a: Slots, b: Slots) -> Option<Slots> {
    let slots = (a.0.max(b.0), a.1.min(b.1));
    (slots.0 <= slots.1).then_some(slots)
}
