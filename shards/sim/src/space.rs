//! Runs beside compaction: a store that is mostly dead is opened, freed, written to and crashed.
//!
//! What is judged here is what a policy of so many versions a key promises: the newest versions of every key are read back, by
//! get, history and scan, each once and under the position that its ack named; nothing else is; and a producer that repeats
//! itself gets its first answer. It knows the order of the appends because it waits for each.

use std::collections::BTreeMap;
use std::time::Duration;

use shard::recover::SparePolicy;
use wire::{Condition, Durability};

use crate::alive;
use crate::client::{Append, FROM_NEWEST, Outcome, Said, Seen, Sent, content_type};
use crate::disk::{CrashMode, Role};
use crate::host::{Host, Snapshot};
use crate::oracle::{Broken, payload};
use crate::scenario::{SMALL, StoreConfig, key_of};
use crate::trial::{Fate, Trial};

/// Keys that are written all the time, and keys that are not.
const HOT: usize = 4;
const COLD: usize = 5;

/// A store that is mostly dead, and the clients that filled it.
pub struct Full {
    store: Snapshot,
    trial: Trial,
    depth: usize,
}

/// What one run came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outlook {
    /// It got to its end before the crash.
    pub ended: bool,
    /// Segments released, and files recycled, before that.
    pub released: (u64, u64),
}

fn record(number: usize, ordinal: usize, key: usize, bytes: usize) -> Sent {
    Sent {
        key: key_of(1, 0, key),
        payload: payload(number, ordinal, bytes),
        tombstone: false,
        condition: Condition::None,
    }
}

fn send(trial: &mut Trial, producer: bool, records: Vec<Sent>) -> Result<Fate<()>, Broken> {
    trial.append(0, 0, Durability::Durable, producer.then_some(0), records);
    trial.settle()
}

/// One request of the mix, by its place in it.
fn request(trial: &mut Trial, step: usize) -> Result<Fate<()>, Broken> {
    let number = trial.oracle.appends.len();
    match step % 8 {
        3 => send(trial, true, vec![record(number, 0, HOT + step % COLD, 300)]),
        5 => {
            let key = if step % 16 == 5 { 0 } else { HOT + COLD };
            let sent = Sent {
                payload: Vec::new(),
                tombstone: true,
                ..record(number, 0, key, 0)
            };
            send(trial, false, vec![sent])
        }
        6 => send(trial, false, vec![record(number, 0, HOT + COLD, 50)]),
        _ => {
            let records = (0..20).map(|i| record(number, i, (i + step) % HOT, 4096));
            send(trial, false, records.collect())
        }
    }
}

/// Fill a store of one stream whose policy keeps `depth` versions a key; nothing is freed while that is done.
///
/// # Errors
/// A promise that was broken already.
pub fn full(depth: usize, requests: usize) -> Result<Full, Broken> {
    let config = StoreConfig {
        space_amplification_percent: 0,
        spare_policy: SparePolicy {
            patience: Duration::ZERO,
            patience_over: Duration::ZERO,
            kept: 0,
        },
        ..SMALL
    };
    let mut trial = Trial::new(Host::new(depth as u64, config), 1, 1);
    let mut fill = || -> Result<Fate<()>, Broken> {
        alive!(trial.open()?);
        alive!(trial.policy(0, &format!("{{\"history_depth\":{depth}}}"))?);
        for key in 0..COLD {
            let number = trial.oracle.appends.len();
            let records = (0..3).map(|i| record(number, i, HOT + key, 700));
            alive!(send(&mut trial, key == 0, records.collect())?);
        }
        for step in 0..requests {
            alive!(request(&mut trial, step)?);
        }
        trial.crash(CrashMode::DropAll)?;
        Ok(Fate::Alive(()))
    };
    if fill()? == Fate::Crashed {
        return Err("crashed without being asked".into());
    }
    let store = trial.host.snapshot();
    Ok(Full {
        store,
        trial,
        depth,
    })
}

/// Open the store with compaction at work, write beside it, crash behind the `k`-th disk tick, restart, judge; repeat what
/// producers have to repeat, judge; restart once more, judge.
///
/// # Errors
/// The promise that is broken.
pub fn crash_behind(full: &Full, k: u64, mode: CrashMode, steps: usize) -> Result<Outlook, Broken> {
    let store = full.store.clone().with(|config| {
        config.space_amplification_percent = 200;
        config.checkpoint_log_bytes = 200 * 1024;
    });
    let mut trial = full.trial.again(Host::from_snapshot(k * 17 + 3, &store));
    let mut outlook = Outlook::default();
    trial.open()?;
    {
        let mut m = trial.host.machine.borrow_mut();
        m.crash_at = Some(m.ticks + k);
    }
    outlook.ended = beside(&mut trial, steps, &mut outlook.released)? == Fate::Alive(());
    trial.crash(mode)?;
    for life in 0..3 {
        trial.open()?;
        let compacting = life > 0;
        for _ in 0..if compacting { 60 } else { 0 } {
            trial.turn()?;
        }
        // In few pages: compaction goes through this small log more than once beside a slow scan.
        judge(&mut trial, full.depth, 100 + 20 * life)?;
        if life == 0 {
            trial.repeat()?;
            judge(&mut trial, full.depth, 1000)?;
        }
        trial.crash(CrashMode::DropAll)?;
    }
    Ok(outlook)
}

fn beside(trial: &mut Trial, steps: usize, released: &mut (u64, u64)) -> Result<Fate<()>, Broken> {
    for step in 0..steps {
        for _ in 0..25 {
            alive!(trial.turn()?);
        }
        *released = trial.host.released();
        alive!(request(trial, step)?);
    }
    Ok(Fate::Alive(()))
}

/// Turns in which a segment must have been released.
const RELEASE_TURNS_MAX: usize = 50_000;
/// Where a checkpoint's header has its sequence, and a byte that its checksum covers.
const CHECKPOINT_SEQUENCE: std::ops::Range<usize> = 56..64;
const CHECKPOINT_COVERED: usize = 2000;

/// Release a segment of the store, say so in one checkpoint, fill segments, lose that checkpoint, restart from the one before
/// it, judge. Gives how many segments were begun after the only checkpoint that let go.
///
/// # Errors
/// The promise that is broken; or the store came another way than this.
pub fn newest_checkpoint_lost(full: &Full, steps: usize) -> Result<u64, Broken> {
    let mut trial = full.trial.again(Host::from_snapshot(11, &full.store));
    let mut filled = 0;
    if between_two_checkpoints(&mut trial, steps, &mut filled)? == Fate::Crashed {
        return Err("crashed without being asked".into());
    }
    judge(&mut trial, full.depth, 1000)?;
    Ok(filled)
}

fn between_two_checkpoints(
    trial: &mut Trial,
    steps: usize,
    filled: &mut u64,
) -> Result<Fate<()>, Broken> {
    // The older checkpoint: nothing is released. Each clean close writes one, nothing else does.
    alive!(trial.open()?);
    alive!(trial.close()?);
    let (older, _, image) = newest_checkpoint(trial).ok_or("no checkpoint was written")?;
    // The newer one: a segment is.
    trial.host.config.space_amplification_percent = 200;
    alive!(trial.open()?);
    for _ in 0..RELEASE_TURNS_MAX {
        if trial.host.released().0 > 0 {
            break;
        }
        alive!(trial.turn()?);
    }
    if trial.host.released().0 == 0 {
        return Err("no segment was released".into());
    }
    alive!(trial.close()?);
    // From here on nothing is released and no checkpoint is due.
    trial.host.config.space_amplification_percent = 0;
    alive!(trial.open()?);
    let before = trial.host.rolls();
    for step in 0..steps {
        alive!(request(trial, step)?);
    }
    *filled = trial.host.rolls().saturating_sub(before);
    trial.crash(CrashMode::KeepAll)?;
    let (newer, file, _) = newest_checkpoint(trial).ok_or("no checkpoint is left")?;
    let is_there = |which| checkpoint(trial, which).is_some_and(|found| found.2 == image);
    if newer != older + 1 || !(0..2).any(is_there) {
        return Err(format!(
            "checkpoint {newer} is the newest one: {older} and the one after it were to be there"
        ));
    }
    (trial.host.machine.borrow_mut().disk.image_mut(file)).change(CHECKPOINT_COVERED, |b| *b ^= 1);
    trial.open()
}

/// Sequence, file and bytes of a checkpoint file, if one was written there.
fn checkpoint(trial: &Trial, which: usize) -> Option<(u64, usize, Vec<u8>)> {
    let mut m = trial.host.machine.borrow_mut();
    let file = m.disk.find(0, Role::Checkpoint(which))?;
    let bytes = m.disk.image_mut(file).bytes().to_vec();
    let sequence = bytes.get(CHECKPOINT_SEQUENCE)?.try_into().ok()?;
    Some((u64::from_le_bytes(sequence), file, bytes)).filter(|found| found.0 > 0)
}

fn newest_checkpoint(trial: &Trial) -> Option<(u64, usize, Vec<u8>)> {
    (0..2)
        .filter_map(|which| checkpoint(trial, which))
        .max_by_key(|found| found.0)
}

/// A version of a key: who wrote it, and the lsn that its ack named.
#[derive(Clone, Debug)]
struct Version {
    sent: Sent,
    lsn: Option<u64>,
}

/// Everything that can be read, against everything that was acked.
fn judge(trial: &mut Trial, depth: usize, page: u32) -> Result<(), Broken> {
    let Fate::Alive(dump) = trial.dump(page)? else {
        return Err("crashed without being asked".into());
    };
    let shown: Vec<Seen> = dump.into_iter().flat_map(BTreeMap::into_values).collect();
    let mut keys: BTreeMap<Vec<u8>, Vec<Version>> = BTreeMap::new();
    let count = trial.oracle.appends.len();
    for (number, append) in trial.oracle.appends.iter().enumerate() {
        let first = match &append.outcome {
            Outcome::Acked { parts, .. } => parts.first().map(|part| part.1),
            // The last one was under way in the crash: whether it is there, it shows itself.
            _ if number + 1 == count && is_shown(number, append, &shown) => None,
            _ => continue,
        };
        for (ordinal, sent) in append.records.iter().enumerate() {
            keys.entry(sent.key.clone()).or_default().push(Version {
                sent: sent.clone(),
                lsn: first.map(|first| first + ordinal as u64),
            });
        }
    }
    let expected_at = |versions: &[Version]| -> Vec<(u32, Version)> {
        let numbered = (1u32..).zip(versions.iter().cloned());
        numbered
            .skip(versions.len().saturating_sub(depth))
            .collect()
    };
    let mut total = 0;
    for (key, versions) in &keys {
        let name = String::from_utf8_lossy(key).into_owned();
        let expected = expected_at(versions);
        let of_key: Vec<&Seen> = shown.iter().filter(|seen| seen.key == *key).collect();
        total += of_key.len();
        compare(&format!("scan of {name}"), &of_key, &expected, depth)?;
        let newest = expected.last().map(|(_, version)| version.sent.clone());
        let id = trial.ask(|lanes, m| lanes.history(m, 0, 0, key, FROM_NEWEST, 0));
        let history = match trial.answer(id)? {
            Fate::Alive(Said::Records { records, .. }) => records,
            other => return Err(format!("history of {name} was answered {other:?}")),
        };
        if history
            .windows(2)
            .any(|pair| pair[0].version <= pair[1].version)
        {
            return Err(format!(
                "history of {name} is not newest first: {history:?}"
            ));
        }
        let listed: Vec<&Seen> = history.iter().collect();
        compare(&format!("history of {name}"), &listed, &expected, depth)?;
        let id = trial.ask(|lanes, m| lanes.get(m, 0, 0, key, 0));
        match (trial.answer(id)?, newest) {
            (Fate::Alive(Said::Records { records, .. }), Some(sent))
                if !sent.tombstone && records[0].payload == sent.payload => {}
            (
                Fate::Alive(Said::Refused {
                    code: wire::Code::NotFound,
                    ..
                }),
                Some(sent),
            ) if sent.tombstone => {}
            (said, sent) => return Err(format!("{name} is {sent:?} and was read as {said:?}")),
        }
    }
    if total != shown.len() {
        return Err(format!(
            "a scan shows {} records of keys that have none",
            shown.len() - total
        ));
    }
    Ok(())
}

fn is_shown(number: usize, append: &Append, shown: &[Seen]) -> bool {
    append.records.iter().enumerate().any(|(ordinal, sent)| {
        let named = content_type(number, ordinal, sent);
        shown.iter().any(|seen| {
            seen.key == sent.key && seen.payload == sent.payload && seen.content_type == named
        })
    })
}

fn compare(
    what: &str,
    shown: &[&Seen],
    expected: &[(u32, Version)],
    depth: usize,
) -> Result<(), Broken> {
    // With one version a key the tombstone itself goes, once nothing older is there.
    let counts = |tombstone: bool| depth > 1 || !tombstone;
    let mut found: Vec<&&Seen> = shown.iter().filter(|seen| counts(seen.tombstone)).collect();
    found.sort_by_key(|seen| seen.version);
    let wanted: Vec<_> = expected
        .iter()
        .filter(|(_, version)| counts(version.sent.tombstone))
        .collect();
    let same = found.len() == wanted.len()
        && found.iter().zip(&wanted).all(|(seen, (number, version))| {
            seen.version == *number
                && seen.tombstone == version.sent.tombstone
                && seen.payload == version.sent.payload
                && version.lsn.is_none_or(|lsn| lsn == seen.lsn)
        });
    if same {
        Ok(())
    } else {
        Err(format!(
            "{what}: {found:?} is there, {wanted:?} was written"
        ))
    }
}
