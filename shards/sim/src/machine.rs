//! What the shards of one simulated machine share: clock, disk, sockets, faults, and the counter of disk operations.
//!
//! Every disk operation ticks twice, when it starts and when it ends. A crash is put behind one tick: from then on nothing
//! that the process does has any effect. It does not know shards or requests.

use std::collections::{BTreeMap, VecDeque};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shard::driver::{ConnId, Door};

use crate::disk::{CrashMode, Disk};

/// An error of the device, put on one disk operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which started operation (counted from the life's begin; reads have a count of their own). A silent one waits for
    /// the next write.
    pub operation: u64,
    /// What it answers.
    pub kind: FaultKind,
}

/// With which number an operation fails. The kernel has more for it than the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errno {
    /// EIO.
    Io,
    /// EAGAIN.
    Again,
    /// EINTR.
    Interrupted,
    /// ECANCELED.
    Canceled,
}

impl Errno {
    /// All of them.
    pub const ALL: [Errno; 4] = [Errno::Io, Errno::Again, Errno::Interrupted, Errno::Canceled];

    /// As Linux numbers it.
    pub fn number(self) -> i32 {
        match self {
            Errno::Io => 5,
            Errno::Again => 11,
            Errno::Interrupted => 4,
            Errno::Canceled => 125,
        }
    }
}

/// What a broken operation answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// An error; what was written is anybody's guess.
    Error(Errno),
    /// No space.
    Full,
    /// Fewer bytes than asked for (writes; others give EIO).
    Short,
    /// EIO on a read.
    Unreadable,
    /// From here on the device confirms writes and flushes that only its cache has.
    LyingFlush,
    /// The write is confirmed and lost: the sectors that were there stay.
    Lost,
    /// The write is confirmed and has landed somewhere else.
    Misdirected,
    /// The write is done, and a bit rots somewhere.
    Rot,
}

impl FaultKind {
    /// What a device says when it fails.
    pub const LOUD: [FaultKind; 4] = [
        FaultKind::Error(Errno::Io),
        FaultKind::Full,
        FaultKind::Short,
        FaultKind::Unreadable,
    ];
    /// What it does not say.
    pub const SILENT: [FaultKind; 4] = [
        FaultKind::LyingFlush,
        FaultKind::Lost,
        FaultKind::Misdirected,
        FaultKind::Rot,
    ];

    /// Whether the device says that all went well.
    pub fn is_silent(self) -> bool {
        FaultKind::SILENT.contains(&self)
    }

    /// As a run prints it.
    pub fn name(self) -> &'static str {
        match self {
            FaultKind::Error(Errno::Io) => "EIO",
            FaultKind::Error(Errno::Again) => "EAGAIN",
            FaultKind::Error(Errno::Interrupted) => "EINTR",
            FaultKind::Error(Errno::Canceled) => "ECANCELED",
            FaultKind::Full => "ENOSPC",
            FaultKind::Short => "short write",
            FaultKind::Unreadable => "EIO on a read",
            FaultKind::LyingFlush => "lying flush",
            FaultKind::Lost => "lost write",
            FaultKind::Misdirected => "misdirected write",
            FaultKind::Rot => "rotten bit",
        }
    }
}

/// What a fault may strike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperationKind {
    /// A write of the log.
    LogWrite,
    /// A write of a checkpoint.
    Write,
    /// A sync, or a step of a preparation.
    Other,
}

/// A lie that the driver tells, to see whether the oracle notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mutant {
    /// Honest.
    #[default]
    None,
    /// A durable write completes before it is durable.
    AckBeforeFlush,
    /// A sync completes and does nothing.
    SkipSync,
    /// A short write is reported as whole.
    IgnoreShort,
    /// The sync of a directory does nothing.
    SkipDirectorySync,
    /// A write that failed is tried again and reported as done; its first try may be what is on the media.
    RetryFailed,
}

impl Mutant {
    /// All liars.
    pub const ALL: [Mutant; 5] = [
        Mutant::AckBeforeFlush,
        Mutant::SkipSync,
        Mutant::IgnoreShort,
        Mutant::SkipDirectorySync,
        Mutant::RetryFailed,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Mutant::None => "none",
            Mutant::AckBeforeFlush => "ack-before-flush",
            Mutant::SkipSync => "skip-flush",
            Mutant::IgnoreShort => "ignore-short-write",
            Mutant::SkipDirectorySync => "skip-directory-flush",
            Mutant::RetryFailed => "retry-failed-flush",
        }
    }

    /// The one of that name.
    ///
    /// # Errors
    /// There is none; the names that there are.
    pub fn by_name(name: &str) -> Result<Mutant, String> {
        Mutant::ALL
            .into_iter()
            .find(|mutant| mutant.name() == name)
            .ok_or_else(|| format!("one of {}", Mutant::ALL.map(Mutant::name).join(", ")))
    }
}

/// A connection between a client and a shard.
#[derive(Clone, Debug, Default)]
pub struct Wire {
    /// Shard and id on its side, once adopted.
    pub served: Option<(usize, ConnId)>,
    /// Sent by the client, not yet received.
    pub to_server: VecDeque<u8>,
    /// Received by the client.
    pub inbox: Vec<u8>,
    /// The shard does not receive now.
    pub paused: bool,
    /// The client is gone: what it had sent may arrive, nothing reaches it.
    pub cut: bool,
    /// The shard has been told so.
    pub hung_up: bool,
    /// Closed by the shard.
    pub closed: bool,
}

/// See the module's header.
pub struct Machine {
    /// Everything random.
    pub rng: StdRng,
    /// Nanoseconds since the machine started.
    pub now_ns: u64,
    /// What the wall clock adds to it, in microseconds; it may jump between lives.
    pub wall_base_us: u64,
    /// The files.
    pub disk: Disk,
    /// The connections of this life.
    pub wires: Vec<Wire>,
    /// Arrived and not yet accepted, by shard.
    pub arriving: Vec<VecDeque<(Door, u64)>>,
    /// Disk ticks of this life.
    pub ticks: u64,
    /// Crash behind this tick.
    pub crash_at: Option<u64>,
    /// The process is dead: nothing has an effect any more.
    pub crashed: bool,
    /// Writes, syncs and preparation steps started in this life.
    pub operations: u64,
    /// At most one broken operation a life.
    pub fault: Option<Fault>,
    /// Shard on which the fault struck, and whether it struck a write of the log.
    pub fault_hit: Option<(usize, bool)>,
    /// Reads started in this life.
    pub reads: u64,
    /// A read has failed in this life.
    pub read_failed: bool,
    /// A silent fault has struck in this run: nothing undoes that.
    pub lie: Option<FaultKind>,
    /// The device's cache is all that is written to.
    lying_flush: bool,
    /// Times an ordinary latency.
    pub slowness: u64,
    /// What was done to the machine in all its lives, counted by name.
    pub injected: BTreeMap<&'static str, u64>,
    /// A lie of the driver.
    pub mutant: Mutant,
    /// Replies under way when the process died: the client may still get them.
    pub last_words: Vec<(u64, Vec<u8>)>,
    /// What was done to this machine, for people.
    pub trace: Vec<String>,
    tracing: bool,
}

impl Machine {
    /// A new machine with an empty disk.
    pub fn new(seed: u64, shards: usize) -> Machine {
        Machine {
            rng: StdRng::seed_from_u64(seed),
            now_ns: 1_000_000_000,
            wall_base_us: 1_700_000_000_000_000,
            disk: Disk::default(),
            wires: Vec::new(),
            arriving: vec![VecDeque::new(); shards],
            ticks: 0,
            crash_at: None,
            crashed: false,
            operations: 0,
            fault: None,
            fault_hit: None,
            reads: 0,
            read_failed: false,
            lie: None,
            lying_flush: false,
            slowness: 1,
            injected: BTreeMap::new(),
            mutant: Mutant::None,
            last_words: Vec::new(),
            trace: Vec::new(),
            tracing: false,
        }
    }

    /// Keep notes of what happens.
    pub fn keep_trace(&mut self) {
        self.tracing = true;
    }

    /// Note something.
    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if self.tracing {
            let line = format!("{:>12} ns tick {:>4}  {}", self.now_ns, self.ticks, what());
            self.trace.push(line);
        }
    }

    /// A disk operation starts or ends.
    pub fn tick(&mut self, what: impl FnOnce() -> String) {
        self.ticks += 1;
        self.note(what);
        if self.crash_at == Some(self.ticks) {
            self.crashed = true;
            self.note(|| "crash".into());
        }
    }

    /// Count something that was done to the machine.
    pub fn inject(&mut self, what: &'static str) {
        *self.injected.entry(what).or_default() += 1;
    }

    /// A broken operation, if this one is to be.
    pub fn next_fault(&mut self, shard: usize, kind: OperationKind) -> Option<FaultKind> {
        self.operations += 1;
        let fault = self
            .fault
            .filter(|f| f.kind != FaultKind::Unreadable && f.operation <= self.operations)?;
        let is_write = kind != OperationKind::Other;
        if fault.kind.is_silent() && !is_write {
            return None;
        }
        self.fault = None;
        self.fault_hit = Some((
            shard,
            kind == OperationKind::LogWrite && !fault.kind.is_silent(),
        ));
        self.struck(shard, fault.kind);
        Some(fault.kind)
    }

    /// Whether this read is to fail.
    pub fn next_read_fails(&mut self, shard: usize) -> bool {
        self.reads += 1;
        let fault = self
            .fault
            .filter(|f| f.kind == FaultKind::Unreadable && f.operation <= self.reads);
        if fault.is_some() {
            self.fault = None;
            self.read_failed = true;
            self.struck(shard, FaultKind::Unreadable);
        }
        fault.is_some()
    }

    fn struck(&mut self, shard: usize, kind: FaultKind) {
        self.note(|| format!("fault {kind:?} on shard {shard}"));
        self.inject(kind.name());
        if kind.is_silent() {
            self.lie = Some(kind);
            self.lying_flush |= kind == FaultKind::LyingFlush;
        }
    }

    /// Whether what is confirmed as durable is.
    pub fn flush_is_honest(&self) -> bool {
        !self.lying_flush
    }

    /// How long a disk operation takes.
    pub fn latency_ns(&mut self) -> u64 {
        let ns = match self.rng.random_range(0..10) {
            0 => self.rng.random_range(500_000..5_000_000),
            _ => self.rng.random_range(10_000..400_000),
        };
        ns * self.slowness
    }

    /// The process is dead; leave what a crash leaves, and get ready for the next life.
    pub fn restart(&mut self, mode: CrashMode) {
        self.crashed = true;
        let said = self.disk.crash(&mut self.rng, mode);
        self.note(|| format!("{mode:?}"));
        for line in said {
            self.note(|| line);
        }
        for (socket, bytes) in std::mem::take(&mut self.last_words) {
            if self.rng.random_bool(0.5) {
                self.wires[socket as usize].inbox.extend_from_slice(&bytes);
            }
        }
    }

    /// A new life begins: no connections, no faults. Call it after the client has read its inboxes.
    pub fn reborn(&mut self) {
        self.wires.clear();
        for queue in &mut self.arriving {
            queue.clear();
        }
        (self.ticks, self.operations) = (0, 0);
        (self.crash_at, self.fault, self.fault_hit) = (None, None, None);
        (self.reads, self.read_failed, self.slowness) = (0, false, 1);
        self.lying_flush = false;
        self.crashed = false;
        self.now_ns += 1_000_000;
        // The wall clock may be set back or forth while nobody looks.
        let jump = self.rng.random_range(0..7_200_000_000u64);
        self.wall_base_us = self.wall_base_us + jump - 3_600_000_000;
    }

    /// Open a connection to a shard.
    pub fn connect(&mut self, shard: usize, door: Door) -> u64 {
        let socket = self.wires.len() as u64;
        self.wires.push(Wire::default());
        self.arriving[shard].push_back((door, socket));
        socket
    }
}
