//! What the shards of one simulated machine share: clock, disk, sockets, faults, and the counter of disk operations.
//!
//! Every disk operation ticks twice, when it starts and when it ends. A crash is put behind one tick: from then on nothing
//! that the process does has any effect. It does not know shards or requests.

use std::collections::VecDeque;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shard::driver::{ConnId, Door};

use crate::disk::{CrashMode, Disk};

/// An error of the device, put on one disk operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Which started operation (counted from the life's begin, reads not counted).
    pub operation: u64,
    /// What it answers.
    pub kind: FaultKind,
}

/// What a broken operation answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// EIO; what was written is anybody's guess.
    Error,
    /// No space.
    Full,
    /// Fewer bytes than asked for (writes; others give EIO).
    Short,
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

    /// A broken operation, if this one is to be.
    pub fn next_fault(&mut self, shard: usize, log_write: bool) -> Option<FaultKind> {
        self.operations += 1;
        let fault = self.fault.filter(|f| f.operation == self.operations)?;
        self.fault_hit = Some((shard, log_write));
        self.note(|| format!("fault {:?} on shard {shard}", fault.kind));
        Some(fault.kind)
    }

    /// How long a disk operation takes.
    pub fn latency_ns(&mut self) -> u64 {
        match self.rng.random_range(0..10) {
            0 => self.rng.random_range(500_000..5_000_000),
            _ => self.rng.random_range(10_000..400_000),
        }
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
