//! Whole runs: small workloads with a crash behind every disk operation, and long random ones.
//!
//! A run is a function of its seed and its configuration. It does not know what a promise is: the oracle does.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use wire::{Code, Condition, Durability, slot};

use crate::alive;
use crate::client::{Outcome, Sent};
use crate::disk::CrashMode;
pub use crate::host::StoreConfig;
use crate::host::{Host, Snapshot};
use crate::machine::{Fault, FaultKind, Mutant};
use crate::oracle::{Broken, payload};
use crate::trial::{Fate, Trial};

/// A run that broke a promise.
#[derive(Debug)]
pub struct Failure {
    /// The promise.
    pub why: Broken,
    /// What was done to the machine, where it was kept.
    pub trace: Vec<String>,
}

/// What a run went through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Lives of the machine.
    pub lives: u64,
    /// Of them, ended by a crash.
    pub crashes: u64,
    /// Crashes while a shard recovered.
    pub crashes_in_recovery: u64,
    /// Broken disk operations.
    pub faults: u64,
    /// Recoveries that began with a checkpoint.
    pub checkpoints: u64,
    /// Segments that were live at the end, beyond the first of each shard.
    pub rolls: u64,
    /// Appends that were sent.
    pub appends: u64,
    /// Records at the end.
    pub records: u64,
}

/// A store small enough that everything happens often.
pub const SMALL: StoreConfig = StoreConfig {
    shards: 1,
    segment_bytes: 256 * 1024,
    payload_bytes_max: 4096,
    checkpoint_log_bytes: 1 << 40,
    segments_ahead: 1,
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

fn put(key: Vec<u8>, number: usize, ordinal: usize, bytes: usize) -> Sent {
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
            return Err("a second recovery shows another store".into());
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
                return Err(format!(
                    "behind a failed write an append got {:?}",
                    trial.oracle.appends[refused].outcome
                ));
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

/// What a random run may do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Lives of the machine at most.
    pub lives: u64,
    /// Requests of a life at most.
    pub requests: u64,
    /// Break disk operations.
    pub faults: bool,
    /// Let the driver lie.
    pub mutant: Mutant,
    /// Keep a trace.
    pub trace: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            lives: 6,
            requests: 60,
            faults: true,
            mutant: Mutant::None,
            trace: false,
        }
    }
}

struct Run {
    trial: Trial,
    rng: StdRng,
    options: Options,
    streams: usize,
    keys: usize,
    report: Report,
}

/// A random run: everything follows from the seed.
///
/// # Errors
/// The promise that is broken, with the trace if it was kept.
pub fn random(seed: u64, options: Options) -> Result<Report, Failure> {
    let (result, trace) = traced(seed, options);
    result.map_err(|why| Failure { why, trace })
}

/// The same; what was done to the machine is given in any case, if `options.trace` asks for it.
pub fn traced(seed: u64, options: Options) -> (Result<Report, Broken>, Vec<String>) {
    let mut rng = StdRng::seed_from_u64(seed ^ 0x9e37_79b9_7f4a_7c15);
    let config = StoreConfig {
        shards: if rng.random_bool(0.3) { 2 } else { 1 },
        segment_bytes: [128, 192, 256, 512][rng.random_range(0..4)] * 1024,
        payload_bytes_max: 4096,
        checkpoint_log_bytes: if rng.random_bool(0.5) {
            rng.random_range(8..256) * 1024
        } else {
            1 << 40
        },
        segments_ahead: rng.random_range(1..=2),
        commit_window: Duration::from_micros([0, 300][rng.random_range(0..2)]),
    };
    let lanes = rng.random_range(1..=4);
    let streams = rng.random_range(1..=2);
    let trial = Trial::new(Host::new(seed, config), lanes, streams);
    if options.trace {
        trial.host.machine.borrow_mut().keep_trace();
    }
    trial
        .host
        .machine
        .borrow_mut()
        .note(|| format!("{config:?}, {lanes} lanes, {streams} streams"));
    let keys = rng.random_range(1..=12);
    let mut run = Run {
        trial,
        rng,
        options,
        streams,
        keys,
        report: Report::default(),
    };
    run.trial.lie(options.mutant);
    let result = run.lives();
    let trace = std::mem::take(&mut run.trial.host.machine.borrow_mut().trace);
    run.report.checkpoints = run.trial.checkpoints;
    run.report.rolls = run.trial.host.rolls();
    run.report.appends = run.trial.oracle.appends.len() as u64;
    run.report.records = run.trial.oracle.records() as u64;
    (result.map(|()| run.report), trace)
}

impl Run {
    fn lives(&mut self) -> Result<(), Broken> {
        for _ in 0..self.rng.random_range(2..=self.options.lives) {
            self.report.lives += 1;
            if self.life()? == Fate::Crashed {
                self.report.crashes += 1;
                let mode = CrashMode::ALL[self.rng.random_range(0..CrashMode::ALL.len())];
                self.trial.crash(mode)?;
            }
        }
        self.trial.open()?;
        self.trial.verify(10_000)?;
        Ok(())
    }

    fn life(&mut self) -> Result<Fate<()>, Broken> {
        let early = self.rng.random_bool(0.25);
        if early {
            self.trial.host.machine.borrow_mut().crash_at = Some(self.rng.random_range(1..40));
        }
        if self.trial.open()? == Fate::Crashed {
            self.report.crashes_in_recovery += 1;
            return Ok(Fate::Crashed);
        }
        let page = self.rng.random_range(1..60);
        alive!(self.trial.verify(page)?);
        if self.rng.random_bool(0.2) {
            // Recovering twice changes nothing.
            let before = alive!(self.trial.dump(1000)?);
            self.trial.crash(CrashMode::DropAll)?;
            alive!(self.trial.open()?);
            if alive!(self.trial.dump(1000)?) != before {
                return Err("a second recovery shows another store".into());
            }
        }
        alive!(self.trial.repeat()?);
        {
            let mut m = self.trial.host.machine.borrow_mut();
            let at = m.ticks + self.rng.random_range(1..500);
            m.crash_at = self.rng.random_bool(0.7).then_some(at);
            if self.options.faults && self.rng.random_bool(0.3) {
                let kind = [FaultKind::Error, FaultKind::Full, FaultKind::Short]
                    [self.rng.random_range(0..3)];
                m.fault = Some(Fault {
                    operation: m.operations + self.rng.random_range(1..60),
                    kind,
                });
            }
        }
        for _ in 0..self.rng.random_range(1..=self.options.requests) {
            self.request();
            for _ in 0..self.rng.random_range(0..4) {
                alive!(self.trial.turn()?);
            }
        }
        let hit = self.trial.host.machine.borrow().fault_hit;
        self.report.faults += u64::from(hit.is_some());
        if matches!(hit, Some((_, true))) {
            // Nothing more is acked there; what waits, waits for a restart.
            for _ in 0..300 {
                alive!(self.trial.turn()?);
            }
            return Ok(Fate::Crashed);
        }
        match self.rng.random_range(0..3) {
            0 => Ok(Fate::Crashed),
            1 => {
                alive!(self.trial.settle()?);
                Ok(Fate::Crashed)
            }
            _ => {
                alive!(self.trial.settle()?);
                self.trial.close()
            }
        }
    }

    fn key(&mut self, shard: usize) -> Vec<u8> {
        key_of(
            self.trial.host.config.shards,
            shard,
            self.rng.random_range(0..self.keys),
        )
    }

    fn request(&mut self) {
        let shards = self.trial.host.config.shards;
        let lane = self.rng.random_range(
            0..self
                .trial
                .lanes
                .as_ref()
                .map_or(1, crate::client::Lanes::count),
        );
        let stream = self.rng.random_range(0..self.streams);
        let shard = self.rng.random_range(0..shards);
        let key = self.key(shard);
        let at_least = self.trial.oracle.at_least(stream, &key);
        let number = self.trial.oracle.appends.len();
        let durability = if self.rng.random_bool(0.25) {
            Durability::Buffered
        } else {
            Durability::Durable
        };
        let bytes = if self.rng.random_bool(0.2) {
            self.rng.random_range(1000..4096)
        } else {
            self.rng.random_range(0..200)
        };
        match self.rng.random_range(0..20) {
            0..5 => {
                self.trial.append(
                    lane,
                    stream,
                    durability,
                    None,
                    vec![put(key, number, 0, bytes)],
                );
            }
            5..9 => {
                // Over both shards, where there are two.
                let count = if self.rng.random_bool(0.15) {
                    24
                } else {
                    self.rng.random_range(2..8)
                };
                let mut records = Vec::new();
                for ordinal in 0..count {
                    let shard = self.rng.random_range(0..shards);
                    records.push(put(
                        self.key(shard),
                        number,
                        ordinal,
                        if count == 24 { 4000 } else { bytes },
                    ));
                }
                self.trial.append(lane, stream, durability, None, records);
            }
            9..11 => {
                let sent = Sent {
                    key,
                    payload: Vec::new(),
                    tombstone: true,
                    condition: Condition::None,
                };
                self.trial
                    .append(lane, stream, durability, None, vec![sent]);
            }
            11..13 => {
                let condition = if self.rng.random_bool(0.5) || at_least == 0 {
                    Condition::New
                } else {
                    Condition::Version(at_least)
                };
                let sent = Sent {
                    condition,
                    ..put(key, number, 0, bytes)
                };
                self.trial
                    .append(lane, stream, durability, None, vec![sent]);
            }
            13..16 => {
                let count = self.rng.random_range(1..6);
                let records = (0..count)
                    .map(|ordinal| put(self.key(shard), number, ordinal, bytes))
                    .collect();
                self.trial
                    .append(lane, stream, durability, Some(shard), records);
            }
            16..18 => {
                self.trial
                    .ask(|lanes, m| lanes.get(m, lane, stream, &key, at_least));
            }
            18 => {
                self.trial
                    .ask(|lanes, m| lanes.history(m, lane, stream, &key, 0, at_least));
            }
            _ => {
                let limit = self.rng.random_range(1..50);
                self.trial
                    .ask(|lanes, m| lanes.scan(m, lane, stream, &[], limit));
            }
        }
    }
}
