//! Small workloads, enumerated: a crash or an error at every disk operation.
//!
//! A run is a function of its seed and its configuration. It does not know what a promise is: the oracle does.

use std::time::Duration;

use shard::recover::SparePolicy;
use wire::{Code, Condition, Durability, slot};

use crate::alive;
use crate::client::{Outcome, Sent};
use crate::disk::CrashMode;
pub use crate::host::StoreConfig;
use crate::host::{Host, Snapshot};
use crate::machine::{Fault, FaultKind, Mutant};
use crate::oracle::{Broken, Oracle, payload};
use crate::promise::Promise;
use crate::trial::{Fate, Trial};

/// A run that broke a promise.
#[derive(Debug)]
pub struct Failure {
    /// The promise.
    pub why: Broken,
    /// What was done to the machine, where it was kept.
    pub trace: Vec<String>,
}

/// A store small enough that everything happens often.
pub const SMALL: StoreConfig = StoreConfig {
    shards: 1,
    segment_bytes: 256 * 1024,
    payload_bytes_max: 4096,
    checkpoint_log_bytes: 1 << 40,
    space_amplification_percent: 200,
    segments_ahead: 1,
    spare_policy: SparePolicy::NEVER,
    commit_window: Duration::ZERO,
};

/// One request of a small workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// One record.
    Put,
    /// A unit of three records.
    Unit,
    /// A unit that takes several batches.
    Large,
    /// One record, acked before it is durable.
    Buffered,
    /// Ends the key.
    Tombstone,
    /// A record of a producer.
    Producer,
    /// Only if the key is new.
    Conditional,
}

impl Request {
    /// All of them.
    pub const ALL: [Request; 7] = [
        Request::Put,
        Request::Unit,
        Request::Large,
        Request::Buffered,
        Request::Tombstone,
        Request::Producer,
        Request::Conditional,
    ];
}

/// A key that belongs to `shard` of `shards`.
pub fn key_of(shards: usize, shard: usize, number: usize) -> Vec<u8> {
    (0..)
        .map(|salt| format!("key-{number}-{salt}").into_bytes())
        .find(|key| {
            shards == 1
                || usize::from(slot::shard_of_slot(slot::slot_of(key), shards as u16)) == shard
        })
        .expect("every shard has keys")
}

pub(crate) fn put(key: Vec<u8>, number: usize, ordinal: usize, bytes: usize) -> Sent {
    Sent {
        key,
        payload: payload(number, ordinal, bytes),
        tombstone: false,
        condition: Condition::None,
    }
}

/// Send one request on the first lane.
pub fn send(trial: &mut Trial, request: Request) {
    let number = trial.oracle.appends.len();
    let key = key_of(1, 0, 1);
    let one = |bytes| vec![put(key.clone(), number, 0, bytes)];
    match request {
        Request::Put => trial.append(0, 0, Durability::Durable, None, one(20)),
        Request::Unit => {
            let records = (0..3)
                .map(|i| put(key_of(1, 0, i), number, i, 1500))
                .collect();
            trial.append(0, 0, Durability::Durable, None, records)
        }
        Request::Large => {
            let records = (0..20)
                .map(|i| put(key_of(1, 0, i % 4), number, i, 4096))
                .collect();
            trial.append(0, 0, Durability::Durable, None, records)
        }
        Request::Buffered => trial.append(0, 0, Durability::Buffered, None, one(30)),
        Request::Tombstone => {
            let sent = Sent {
                key,
                payload: Vec::new(),
                tombstone: true,
                condition: Condition::None,
            };
            trial.append(0, 0, Durability::Durable, None, vec![sent])
        }
        Request::Producer => trial.append(0, 0, Durability::Durable, Some(0), one(25)),
        Request::Conditional => {
            let sent = Sent {
                condition: Condition::New,
                ..put(key, number, 0, 40)
            };
            trial.append(0, 0, Durability::Durable, None, vec![sent])
        }
    };
}

/// A store at rest with its segments prepared and nothing in it.
///
/// # Errors
/// A promise that was broken already.
pub fn fresh(config: StoreConfig) -> Result<Snapshot, Broken> {
    let mut trial = Trial::new(Host::new(1, config), 1, 1);
    let Fate::Alive(()) = trial.open()? else {
        return Err("crashed without being asked".into());
    };
    for _ in 0..200 {
        trial.turn()?;
    }
    trial.close()?;
    Ok(trial.host.snapshot())
}

/// Run `requests` on a copy of `store`, crash behind the `k`-th disk tick, restart, judge; then crash and restart once
/// more, where nothing may have changed. True if the workload got to its end before the crash.
///
/// # Errors
/// The promise that is broken.
pub fn crash_behind(
    store: &Snapshot,
    requests: &[Request],
    pipelined: bool,
    k: u64,
    mode: CrashMode,
    mutant: Mutant,
) -> Result<bool, Failure> {
    let mut trial = Trial::new(
        Host::from_snapshot(k * 31 + requests.len() as u64, store),
        1,
        1,
    );
    trial.lie(mutant);
    let mut run = || -> Result<bool, Broken> {
        trial.open()?;
        {
            let mut m = trial.host.machine.borrow_mut();
            m.crash_at = Some(m.ticks + k);
        }
        let ended = small_workload(&mut trial, requests, pipelined)? == Fate::Alive(());
        trial.crash(mode)?;
        let first = judge(&mut trial)?;
        let second = judge(&mut trial)?;
        if first != second {
            return Err(Promise::Recovery.broken("a second recovery shows another store"));
        }
        Ok(ended)
    };
    let result = run();
    result.map_err(|why| Failure {
        why,
        trace: std::mem::take(&mut trial.host.machine.borrow_mut().trace),
    })
}

/// A store at rest that holds `requests`, all acked, and the clients that remember them. Closed cleanly, or killed
/// after the idle mark was written.
///
/// # Errors
/// A promise that was broken already.
pub fn filled(
    config: StoreConfig,
    requests: &[Request],
    close: bool,
) -> Result<(Snapshot, Trial), Broken> {
    let mut trial = Trial::new(Host::from_snapshot(2, &fresh(config)?), 1, 1);
    trial.open()?;
    small_workload(&mut trial, requests, false)?;
    if close {
        trial.close()?;
    } else {
        trial.crash(CrashMode::DropAll)?;
    }
    Ok((trial.host.snapshot(), trial))
}

/// Run `requests` on a copy of `store` with one operation of the disk failing; reads must go on; restart, judge. Tells
/// whether it was a log write that failed; None: the workload has fewer operations.
///
/// # Errors
/// The promise that is broken.
pub fn fail_operation(
    store: &Snapshot,
    requests: &[Request],
    operation: u64,
    kind: FaultKind,
) -> Result<Option<bool>, Failure> {
    let mut trial = Trial::new(Host::from_snapshot(operation, store), 1, 1);
    trial.host.machine.borrow_mut().keep_trace();
    let mut run = || -> Result<Option<bool>, Broken> {
        trial.open()?;
        {
            let mut m = trial.host.machine.borrow_mut();
            m.fault = Some(Fault {
                operation: m.operations + operation,
                kind,
            });
        }
        // One acked record to read while nothing can be written.
        send(&mut trial, Request::Unit);
        trial.settle()?;
        for request in requests {
            send(&mut trial, *request);
            trial.settle()?;
        }
        for _ in 0..200 {
            trial.turn()?;
        }
        let Some((_, log_write)) = trial.host.machine.borrow().fault_hit else {
            return Ok(None);
        };
        if log_write {
            // Another connection: those that waited for the log were closed.
            trial.reconnect();
            send(&mut trial, Request::Put);
            let refused = trial.oracle.appends.len() - 1;
            trial.settle()?;
            if !matches!(
                trial.oracle.appends[refused].outcome,
                Outcome::Refused(Code::Unavailable)
            ) {
                return Err(Promise::FailStop.broken(format!(
                    "behind a failed write an append got {:?}",
                    trial.oracle.appends[refused].outcome
                )));
            }
            trial.reads_go_on()?;
        }
        trial.crash(CrashMode::Torn)?;
        judge(&mut trial)?;
        judge(&mut trial)?;
        Ok(Some(log_write))
    };
    let result = run();
    result.map_err(|why| Failure {
        why,
        trace: std::mem::take(&mut trial.host.machine.borrow_mut().trace),
    })
}

/// Start a store (`None`: an empty disk) once for each of `ticks`, crash behind that disk tick; then start for good, use it
/// and judge. True if a start got through its ticks and 40 turns without reaching the crash.
///
/// # Errors
/// The promise that is broken.
pub fn crash_at_start(
    store: Option<&Snapshot>,
    config: StoreConfig,
    seed: u64,
    ticks: &[u64],
    mode: CrashMode,
) -> Result<bool, Broken> {
    let host = store.map_or_else(
        || Host::new(seed, config),
        |store| Host::from_snapshot(seed, store),
    );
    let mut trial = Trial::new(host, 1, 1);
    let mut through = false;
    for tick in ticks {
        trial.host.machine.borrow_mut().crash_at = Some(*tick);
        let mut alive = trial.open()? == Fate::Alive(());
        for _ in 0..40 {
            alive = alive && !matches!(trial.turn()?, Fate::Crashed);
        }
        through |= alive;
        trial.crash(mode)?;
    }
    trial.open()?;
    for request in [
        Request::Large,
        Request::Put,
        Request::Large,
        Request::Large,
        Request::Large,
        Request::Large,
    ] {
        send(&mut trial, request);
        trial.settle()?;
    }
    // What the store held before is not these clients': only what they did is judged.
    if store.is_none() {
        trial.verify(10)?;
    }
    trial.crash(mode)?;
    trial.open()?;
    Ok(through)
}

/// Crash behind each of `ticks` in recoveries that follow each other, then recover for good, twice: the same must be there, and
/// everything that `oracle` was told. Gives how many of the crashes came before their recovery had ended.
///
/// # Errors
/// The promise that is broken.
pub fn crash_in_recoveries(
    store: &Snapshot,
    oracle: &Oracle,
    seed: u64,
    ticks: &[u64],
    mode: CrashMode,
) -> Result<usize, Broken> {
    let mut trial = Trial::new(Host::from_snapshot(seed, store), 1, 1);
    trial.oracle = oracle.clone();
    let mut deep = 0;
    for tick in ticks {
        trial.host.machine.borrow_mut().crash_at = Some(*tick);
        let mut alive = trial.open()? == Fate::Alive(());
        deep += usize::from(!alive);
        // A crash that was put behind more than a recovery does comes while the next segment is made.
        for _ in 0..20 {
            alive = alive && !matches!(trial.turn()?, Fate::Crashed);
        }
        trial.crash(mode)?;
    }
    if judge(&mut trial)? != judge(&mut trial)? {
        return Err(Promise::Recovery.broken("a second recovery shows another store"));
    }
    Ok(deep)
}

fn judge(trial: &mut Trial) -> Result<Vec<Vec<crate::client::Seen>>, Broken> {
    trial.open()?;
    trial.verify(7)?;
    let Fate::Alive(dump) = trial.dump(1000)? else {
        return Err("crashed without being asked".into());
    };
    trial.crash(CrashMode::DropAll)?;
    Ok(dump
        .into_iter()
        .map(|log| log.into_values().collect())
        .collect())
}

fn small_workload(
    trial: &mut Trial,
    requests: &[Request],
    pipelined: bool,
) -> Result<Fate<()>, Broken> {
    for request in requests {
        send(trial, *request);
        if !pipelined {
            alive!(trial.settle()?);
        }
    }
    alive!(trial.settle()?);
    // The idle mark is written too.
    for _ in 0..12 {
        alive!(trial.turn()?);
    }
    Ok(Fate::Alive(()))
}
