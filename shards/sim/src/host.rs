//! One simulated machine with its store: open it, run its shards, let it die, open it again.
//!
//! Owns the superblock's part of the story: a new epoch at each opening, the durable lsns at a clean close. It does not
//! know requests.

use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use rand::Rng;
use shard::assemble::{Parts, assemble};
use shard::core::{Bounds, Shared};
use shard::driver::{FileId, LogFiles};
use shard::mailbox;
use shard::plan::{Plan, PlanInput};
use shard::recover::{RecoverConfig, Recovered, SparePolicy};
use shard::turn::{Pace, Shard};
use uring::BufferPool;
use wal::LogIdentity;
use wire::{ShardRoute, Topology, slot};

use crate::disk::{CrashMode, Disk, PAGE_BYTES, Role};
use crate::driver::SimDriver;
use crate::machine::Machine;

const STORE: [u8; 16] = *b"simulated store.";
const DIGEST_KEY: [u8; 16] = *b"simulated digest";
const MAIL_CAPACITY: usize = 64;

/// What a store is made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// Shards, each with a log.
    pub shards: usize,
    /// Size of a segment file.
    pub segment_bytes: u64,
    /// Longest payload; batch buffers are 64 KiB larger.
    pub payload_bytes_max: u32,
    /// Log bytes behind a checkpoint that ask for the next.
    pub checkpoint_log_bytes: u64,
    /// Hundredths of what can still be read that the log may take.
    pub space_amplification_percent: u64,
    /// Segments kept ready.
    pub segments_ahead: usize,
    /// When spare segment files give their space back.
    pub spare_policy: SparePolicy,
    /// Small batches are written so far apart under load.
    pub commit_window: Duration,
}

/// What the superblock remembers.
#[derive(Clone, Debug)]
struct Superblock {
    epoch: u32,
    closed_durable_lsns: Vec<u64>,
}

/// A store at rest, to start many lives from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    config: StoreConfig,
    superblock: Superblock,
    disk: Disk,
}

/// How a life began.
#[derive(Debug)]
pub enum Opened {
    /// Every shard takes writes; what each recovered.
    Ready(Vec<Recovered>),
    /// The machine crashed before that.
    Crashed,
    /// A shard stopped, with its reason.
    Stopped(String),
}

/// See the module's header.
pub struct Host {
    /// The machine; borrow it only between turns.
    pub machine: Rc<RefCell<Machine>>,
    /// How the store was made.
    pub config: StoreConfig,
    superblock: Superblock,
    plan: Plan,
    shards: Vec<Shard<SimDriver>>,
}

impl Snapshot {
    /// The same store, opened otherwise from now on.
    pub fn with(mut self, change: impl FnOnce(&mut StoreConfig)) -> Snapshot {
        change(&mut self.config);
        self
    }
}

impl Host {
    /// A machine with an empty disk.
    pub fn new(seed: u64, config: StoreConfig) -> Host {
        let plan = Plan::new(&PlanInput {
            memory_bytes: Some((512 << 20) * config.shards as u64),
            shards: config.shards,
            connections_max: 64,
            payload_bytes_max: config.payload_bytes_max,
            segment_bytes: config.segment_bytes,
            // So small that records are read from the device often.
            cache_bytes: Some(256 << 10),
        });
        Host {
            machine: Rc::new(RefCell::new(Machine::new(seed, config.shards))),
            config,
            superblock: Superblock {
                epoch: 0,
                closed_durable_lsns: vec![0; config.shards],
            },
            plan: plan.expect("half a gigabyte is enough for a small shard"),
            shards: Vec::new(),
        }
    }

    /// The store as it lies on the disk, between two lives.
    pub fn snapshot(&self) -> Snapshot {
        assert!(self.shards.is_empty(), "only a store at rest can be copied");
        Snapshot {
            config: self.config,
            superblock: self.superblock.clone(),
            disk: self.machine.borrow().disk.clone(),
        }
    }

    /// Another machine with a copy of that store.
    pub fn from_snapshot(seed: u64, snapshot: &Snapshot) -> Host {
        let mut host = Host::new(seed, snapshot.config);
        host.superblock = snapshot.superblock.clone();
        host.machine.borrow_mut().disk = snapshot.disk.clone();
        host
    }

    fn identity(&self, shard: usize) -> LogIdentity {
        let mut log = *b"simulated log 00";
        log[15] += shard as u8;
        LogIdentity {
            store: STORE,
            log,
            number: shard as u32,
            timeline: 1,
        }
    }

    fn shared(&self) -> Shared {
        let shards = self.config.shards;
        let routes = (0..shards)
            .map(|shard| {
                let range = slot::range_of_shard(shard as u16, shards as u16);
                ShardRoute {
                    shard: shard as u16,
                    log: shard as u32,
                    slot_first: *range.start(),
                    slot_last: *range.end(),
                    address: "sim".into(),
                    native_port: 1 + shard as u16,
                }
            })
            .collect();
        Shared {
            store: "sim".into(),
            topology: Topology {
                store: "sim".into(),
                map_epoch: 1,
                shards: routes,
            },
            logs: (0..shards as u32).collect(),
            timeline: 1,
            token: None,
            listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
            bounds: Bounds::new(self.config.payload_bytes_max, self.config.segment_bytes, 64),
            load: (0..shards).map(|_| AtomicU32::new(0)).collect(),
            ready: (0..shards).map(|_| AtomicU32::new(0)).collect(),
            settled: (0..shards).map(|_| AtomicBool::new(false)).collect(),
        }
    }

    /// Open the store and recover every shard.
    pub fn open(&mut self) -> Opened {
        assert!(self.shards.is_empty(), "one life at a time");
        self.superblock.epoch += 1;
        let shared = Arc::new(self.shared());
        let mut reports = Vec::new();
        let mut starting = Vec::new();
        for (number, mailbox) in mailbox::mesh(self.config.shards, MAIL_CAPACITY)
            .into_iter()
            .enumerate()
        {
            let mut open = Vec::new();
            let mut files = LogFiles::default();
            {
                let mut m = self.machine.borrow_mut();
                for (slot, file, bytes) in m.disk.segments(number) {
                    files
                        .segments
                        .push((slot, FileId(open.len() as u32), bytes));
                    open.push(file);
                }
                for (which, id) in files.checkpoints.iter_mut().enumerate() {
                    *id = Some(FileId(open.len() as u32));
                    open.push(m.disk.open(number, Role::Checkpoint(which)));
                }
                m.disk.sync_directory(number);
            }
            let recover = RecoverConfig {
                identity: self.identity(number),
                epoch: self.superblock.epoch,
                segment_bytes: self.config.segment_bytes,
                segments_ahead: self.config.segments_ahead,
                spare_policy: self.config.spare_policy,
                commit_window: self.config.commit_window,
                large_in_flight_max: shard::profile::LARGE_WRITES_IN_FLIGHT,
                closed_durable_lsn: self.superblock.closed_durable_lsns[number],
            };
            let parts = Parts {
                scrub_bytes_per_second: 0,
                shard: number,
                plan: self.plan.clone(),
                pool: BufferPool::new(self.plan.batch_buffers, self.plan.batch_bytes)
                    .expect("memory for batch buffers"),
                shared: Arc::clone(&shared),
                recover: recover.clone(),
                digest_key: DIGEST_KEY,
                checkpoints: files.checkpoints,
                checkpoint_log_bytes: self.config.checkpoint_log_bytes,
                space_amplification_percent: self.config.space_amplification_percent,
                mailbox,
                driver: SimDriver::new(Rc::clone(&self.machine), number, open),
                pace: Pace {
                    spin: Duration::ZERO,
                    ..Pace::default()
                },
            };
            starting.push((assemble(parts).expect("memory for a shard"), files, recover));
        }
        for (mut shard, files, recover) in starting {
            match shard.recover(&files, &recover) {
                Ok(report) => {
                    shard.start();
                    reports.push(report);
                    self.shards.push(shard);
                }
                Err(_) if self.machine.borrow().crashed => {
                    self.shards.clear();
                    return Opened::Crashed;
                }
                Err(error) => {
                    self.shards.clear();
                    return Opened::Stopped(error.to_string());
                }
            }
        }
        Opened::Ready(reports)
    }

    /// A turn of one shard, which one by the seed. False: the machine has crashed.
    pub fn turn(&mut self) -> bool {
        let which = match self.shards.len() {
            1 => 0,
            n => self.machine.borrow_mut().rng.random_range(0..n),
        };
        self.shards[which].turn();
        !self.machine.borrow().crashed
    }

    /// Segments with batches, beyond the first of each shard.
    pub fn rolls(&self) -> u64 {
        let m = self.machine.borrow();
        (0..self.config.shards)
            .map(|shard| {
                let used = m.disk.segments(shard).into_iter().filter(|(_, file, _)| {
                    let mut block = [0; PAGE_BYTES];
                    m.disk.read(*file, PAGE_BYTES, &mut block);
                    block[0] != 0
                });
                (used.count() as u64).saturating_sub(1)
            })
            .sum()
    }

    /// Segments released, and files recycled, in this life.
    pub fn released(&self) -> (u64, u64) {
        let counts = self.shards.iter().map(Shard::space_counts);
        counts.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    }

    /// The durable lsn of each shard.
    pub fn durable_lsns(&self) -> Vec<u64> {
        self.shards.iter().map(Shard::durable_lsn).collect()
    }

    /// Drain and close cleanly. False: the machine crashed on the way.
    pub fn close(&mut self) -> Result<bool, String> {
        let mut done = vec![false; self.shards.len()];
        for shard in &mut self.shards {
            shard.drain();
        }
        for _ in 0..20_000 {
            for (shard, done) in self.shards.iter_mut().zip(&mut done) {
                if !*done {
                    *done = !shard.turn();
                }
            }
            if self.machine.borrow().crashed {
                return Ok(false);
            }
            if done.iter().all(|d| *d) {
                for (kept, durable) in self
                    .superblock
                    .closed_durable_lsns
                    .iter_mut()
                    .zip(self.shards.iter().map(Shard::durable_lsn))
                {
                    *kept = durable.max(*kept);
                }
                return Ok(true);
            }
        }
        Err("a drain did not come to an end".into())
    }

    /// The process ends, the disk keeps what `mode` leaves. Read the clients' inboxes before `reborn`.
    pub fn crash(&mut self, mode: CrashMode) {
        self.machine.borrow_mut().crashed = true;
        self.shards.clear();
        self.machine.borrow_mut().restart(mode);
    }
}
