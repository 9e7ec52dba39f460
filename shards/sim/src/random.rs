//! Long random runs: everything that happens in one follows from its seed.
//!
//! Draws the store, the clients, the requests, the crashes and the faults. It does not know what a promise is: the
//! oracle does.

mod limits;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shard::recover::SparePolicy;
use wire::{Condition, Durability};

use crate::alive;
use crate::client::{FROM_NEWEST, Sent};
use crate::disk::CrashMode;
use crate::host::{Host, StoreConfig};
use crate::machine::{Errno, Fault, FaultKind, Mutant};
use crate::oracle::Broken;
use crate::promise::Promise;
use crate::scenario::{Failure, key_of, put};
use crate::trial::{Fate, Trial};

use limits::Limits;

/// What a run went through.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Lives of the machine.
    pub lives: u64,
    /// Of them, ended by a crash.
    pub crashes: u64,
    /// Crashes while a shard recovered: the first behind a life, the second in a row, the third and later.
    pub crashes_in_recovery: [u64; 3],
    /// What was done to the machine, by name.
    pub injected: BTreeMap<&'static str, u64>,
    /// What became of silent faults.
    pub silent: Silent,
    /// Recoveries that began with a checkpoint.
    pub checkpoints: u64,
    /// Segments that were live at the end, beyond the first of each shard.
    pub rolls: u64,
    /// Appends that were sent.
    pub appends: u64,
    /// Records at the end.
    pub records: u64,
    /// Runs in which a stream had a limit in bytes.
    pub limited: u64,
    /// Acked records that such limits ended.
    pub ended: u64,
}

/// What became of the silent faults of some runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Silent {
    /// They struck.
    pub struck: u64,
    /// A shard stopped at the restart and said where.
    pub stopped: u64,
    /// A read was refused.
    pub refused: u64,
    /// The end of a log was missing, which nothing on the media could tell.
    pub tail_lost: u64,
    /// Nothing was missing.
    pub harmless: u64,
}

impl Report {
    /// The sum of two.
    pub fn add(&mut self, other: &Report) {
        self.lives += other.lives;
        self.crashes += other.crashes;
        for (depth, count) in other.crashes_in_recovery.iter().enumerate() {
            self.crashes_in_recovery[depth] += count;
        }
        for (name, count) in &other.injected {
            *self.injected.entry(name).or_default() += count;
        }
        self.silent.struck += other.silent.struck;
        self.silent.stopped += other.silent.stopped;
        self.silent.refused += other.silent.refused;
        self.silent.tail_lost += other.silent.tail_lost;
        self.silent.harmless += other.silent.harmless;
        self.checkpoints += other.checkpoints;
        self.rolls += other.rolls;
        self.appends += other.appends;
        self.records += other.records;
        self.limited += other.limited;
        self.ended += other.ended;
    }

    /// Disk operations that were broken, loudly or silently.
    pub fn faults(&self) -> u64 {
        let kinds = FaultKind::LOUD.iter().chain(&FaultKind::SILENT);
        kinds
            .filter_map(|kind| self.injected.get(kind.name()))
            .sum()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second, third] = self.crashes_in_recovery;
        let Silent {
            struck,
            stopped,
            refused,
            tail_lost,
            harmless,
        } = self.silent;
        let injected: Vec<_> = self
            .injected
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        writeln!(
            f,
            "{} lives, {} crashes, {} of them in a recovery ({second} in the second, {third} in the third or a later one in a row), \
             {} recoveries from a checkpoint, {} segment rolls, {} appends, {} records at the end; \
             {} runs with limits in bytes, which ended {} records",
            self.lives,
            self.crashes,
            first + second + third,
            self.checkpoints,
            self.rolls,
            self.appends,
            self.records,
            self.limited,
            self.ended
        )?;
        writeln!(f, "injected: {}", injected.join(", "))?;
        write!(
            f,
            "silent faults: {struck} struck; {stopped} stopped the shard, {refused} were refused by a read, {tail_lost} took an end that nothing \
             spoke of, {harmless} did nothing"
        )
    }
}

/// What a random run may do.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Lives of the machine at most.
    pub lives: u64,
    /// Requests of a life at most.
    pub requests: u64,
    /// Break disk operations, cut connections, slow the device down, lie.
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
    limits: Limits,
    /// Crashes in recoveries in a row.
    depth: usize,
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
    let mut config = StoreConfig {
        shards: if rng.random_bool(0.3) { 2 } else { 1 },
        segment_bytes: [128, 192, 256, 512][rng.random_range(0..4)] * 1024,
        payload_bytes_max: 4096,
        checkpoint_log_bytes: if rng.random_bool(0.5) {
            rng.random_range(8..256) * 1024
        } else {
            1 << 40
        },
        space_amplification_percent: 200,
        segments_ahead: rng.random_range(1..=2),
        spare_policy: SparePolicy::NEVER,
        commit_window: Duration::from_micros([0, 300][rng.random_range(0..2)]),
    };
    let lanes = rng.random_range(1..=4);
    let streams = rng.random_range(1..=2);
    let limits = Limits::draw(seed, streams);
    config.spare_policy = limits.spare_policy;
    // Small batches are mostly padding: compaction has work without limits too.
    if !limits.compacts {
        config.space_amplification_percent = 0;
    }
    let mut trial = Trial::new(Host::new(seed, config), lanes, streams);
    if limits.compacts {
        trial.oracle.copies_records();
    }
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
        limits,
        depth: 0,
    };
    run.trial.lie(options.mutant);
    let result = run.lives();
    {
        let mut m = run.trial.host.machine.borrow_mut();
        run.report.injected = std::mem::take(&mut m.injected);
    }
    let trace = std::mem::take(&mut run.trial.host.machine.borrow_mut().trace);
    run.report.checkpoints = run.trial.checkpoints;
    run.report.rolls = run.trial.host.rolls();
    run.report.appends = run.trial.oracle.appends.len() as u64;
    run.report.records = run.trial.oracle.records() as u64;
    run.report.limited = u64::from(run.limits.are_drawn());
    run.report.ended = run.trial.oracle.ended_records();
    (result.map(|()| run.report), trace)
}

impl Run {
    fn lives(&mut self) -> Result<(), Broken> {
        for _ in 0..self.rng.random_range(2..=self.options.lives) {
            self.report.lives += 1;
            if self.life()? == Fate::Crashed {
                self.crash()?;
            }
        }
        self.trial.open()?;
        self.trial.verify(10_000)?;
        // What a lie may take is the end of a log: with a limit the front would move with it.
        if self.options.faults && self.rng.random_bool(0.3) && !self.limits.are_drawn() {
            self.report.lives += 1;
            self.lying_life()?;
        }
        Ok(())
    }

    fn crash(&mut self) -> Result<(), Broken> {
        self.report.crashes += 1;
        let mode = CrashMode::ALL[self.rng.random_range(0..CrashMode::ALL.len())];
        self.trial.host.machine.borrow_mut().inject(mode.name());
        self.trial.crash(mode)
    }

    /// Open the store, perhaps with a crash or a failing read on the way. Behind a crash another one is likely, so that
    /// crashes nest.
    fn start(&mut self) -> Result<Fate<()>, Broken> {
        let early = self
            .rng
            .random_bool(if self.depth == 0 { 0.25 } else { 0.6 });
        let unreadable = self.options.faults && self.rng.random_bool(0.03);
        {
            let mut m = self.trial.host.machine.borrow_mut();
            m.crash_at = early.then(|| self.rng.random_range(1..40));
            m.fault = unreadable.then(|| Fault {
                operation: self.rng.random_range(1..12),
                kind: FaultKind::Unreadable,
            });
        }
        let opened = self.trial.open()?;
        let mut m = self.trial.host.machine.borrow_mut();
        m.fault = None;
        if opened == Fate::Crashed && !m.read_failed {
            self.report.crashes_in_recovery[self.depth.min(2)] += 1;
            self.depth += 1;
        } else {
            self.depth = 0;
        }
        Ok(opened)
    }

    fn life(&mut self) -> Result<Fate<()>, Broken> {
        alive!(self.start()?);
        if self.trial.host.machine.borrow().read_failed {
            // A checkpoint that could not be read: the log was.
            self.trial.host.machine.borrow_mut().read_failed = false;
        }
        let mut page = self.rng.random_range(1..60);
        if self.limits.are_drawn() {
            // Compaction goes through a small log more than once beside a slow scan, which then shows a record twice.
            page += 1000;
        }
        alive!(self.trial.verify(page)?);
        if self.rng.random_bool(0.2) {
            // Recovering twice changes nothing.
            let before = alive!(self.trial.dump(1000)?);
            self.trial.crash(CrashMode::DropAll)?;
            alive!(self.trial.open()?);
            if alive!(self.trial.dump(1000)?) != before {
                return Err(Promise::Recovery.broken("a second recovery shows another store"));
            }
        }
        alive!(self.trial.repeat()?);
        alive!(self.limits.set(&mut self.trial)?);
        {
            let mut m = self.trial.host.machine.borrow_mut();
            let at = m.ticks + self.rng.random_range(1..500);
            m.crash_at = self.rng.random_bool(0.7).then_some(at);
            if self.options.faults && self.rng.random_bool(0.3) {
                let kind = FaultKind::LOUD[self.rng.random_range(0..FaultKind::LOUD.len())];
                let so_far = if kind == FaultKind::Unreadable {
                    m.reads
                } else {
                    m.operations
                };
                let kind = match kind {
                    FaultKind::Error(_) => FaultKind::Error(Errno::ALL[so_far as usize % 4]),
                    kind => kind,
                };
                m.fault = Some(Fault {
                    operation: so_far + self.rng.random_range(1..60),
                    kind,
                });
            }
            if self.options.faults && self.rng.random_bool(0.1) {
                m.slowness = self.rng.random_range(5..100);
                m.inject("slow device");
            }
        }
        alive!(self.requests()?);
        let hit = self.trial.host.machine.borrow().fault_hit;
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

    fn requests(&mut self) -> Result<Fate<()>, Broken> {
        for _ in 0..self.rng.random_range(1..=self.options.requests) {
            if self.options.faults && self.rng.random_bool(0.02) {
                let lanes = self
                    .trial
                    .lanes
                    .as_ref()
                    .map_or(1, crate::client::Lanes::count);
                self.trial.cut(self.rng.random_range(0..lanes));
            }
            self.request();
            for _ in 0..self.rng.random_range(0..4) {
                alive!(self.trial.turn()?);
            }
        }
        Ok(Fate::Alive(()))
    }

    /// The last life of a run: the device says that all went well, and it did not. What comes of it must be a refusal, a shard
    /// that does not start and says where, or an end that is missing; never something wrong.
    fn lying_life(&mut self) -> Result<(), Broken> {
        {
            let mut m = self.trial.host.machine.borrow_mut();
            let kind = FaultKind::SILENT[self.rng.random_range(0..FaultKind::SILENT.len())];
            m.fault = Some(Fault {
                operation: m.operations + self.rng.random_range(1..12),
                kind,
            });
        }
        match self.lied_to() {
            Ok(Some(0)) => self.report.silent.harmless += 1,
            Ok(Some(_)) => self.report.silent.tail_lost += 1,
            Ok(None) => return Ok(()),
            // Whatever was asked, the answer was a refusal that names the damage.
            Err(_) if self.refused() => self.report.silent.refused += 1,
            Err(why) => return Err(why),
        }
        if self.trial.stopped {
            self.report.silent.harmless -= 1;
            self.report.silent.stopped += 1;
        }
        self.report.silent.struck += 1;
        Ok(())
    }

    /// Records that a lie took; None: it was never told.
    fn lied_to(&mut self) -> Result<Option<u64>, Broken> {
        self.requests()?;
        if self.trial.host.machine.borrow().lie.is_none() {
            return Ok(None);
        }
        self.trial.settle()?;
        self.trial.read_behind_a_lie()?;
        for _ in 0..self.rng.random_range(0..30) {
            self.trial.turn()?;
        }
        self.crash()?;
        if self.trial.open()? == Fate::Crashed {
            return Ok(Some(0));
        }
        match self.trial.verify_after_a_lie()? {
            Fate::Alive(lost) => Ok(Some(lost)),
            Fate::Crashed => Ok(Some(0)),
        }
    }

    /// A read was refused for damage, and nothing worse was heard.
    fn refused(&self) -> bool {
        self.trial.refused_for_damage
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
                    .ask(|lanes, m| lanes.history(m, lane, stream, &key, FROM_NEWEST, at_least));
            }
            _ => {
                let limit = self.rng.random_range(1..50);
                self.trial
                    .ask(|lanes, m| lanes.scan(m, lane, stream, &[], limit));
            }
        }
    }
}
