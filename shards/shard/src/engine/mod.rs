//! All shards of a process: open the store, start a pinned thread per shard, drain them.
//!
//! Owns the threads and what they share. It knows files, ports and cores; it does not know requests.

mod config;
mod host;
mod listen;
mod pin;
mod thread;

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use uring::{Features, Waker};
use wire::{ShardRoute, Topology};

pub use crate::metrics::note_tuning_drift;
pub use config::{
    Banner, EngineConfig, OpenError, SEGMENT_BYTES, SPACE_AMPLIFICATION_PERCENT, ShardBanner,
};
pub use host::HostConfig;
pub use listen::SHARD_PORT_OFFSET;
use listen::{Ports, listen, out_of_descriptors};
use thread::{Seed, run};

use crate::core::{Bounds, Shared};
use crate::mailbox;
use crate::placement::Placement;
use crate::plan::{Plan, PlanInput};
use crate::preparer::Preparer;
use crate::profile::Profile;
use crate::recover::{RecoverConfig, SparePolicy};
use crate::ring_driver::Addresses;
use crate::store::Store;

const MAIL_CAPACITY: usize = 1024;

struct Running {
    thread: JoinHandle<Result<u64, String>>,
    waker: Waker,
}

/// A running engine.
pub struct Engine {
    shards: Vec<Running>,
    stop: Arc<AtomicBool>,
    shared: Arc<Shared>,
    store: Store,
    banner: Banner,
    /// Let go of when the engine ends.
    _held: host::Held,
}

impl Engine {
    /// Open the data directory, start every shard and listen. Returns once the ports are open; recovery goes on in the
    /// shards (`/readyz` tells when it is done).
    pub fn open(config: EngineConfig) -> Result<Engine, OpenError> {
        let _ = uring::limits::raise_nofile();
        let placement = Placement::of_this_process();
        let wanted = config
            .shards
            .or(config.cores.as_ref().map(Vec::len))
            .unwrap_or(placement.shards(config.shards_max));
        let segment_bytes = config.segment_bytes.unwrap_or(SEGMENT_BYTES);
        let explicit = config.shards.is_some() || config.cores.is_some();
        let store = Store::open(
            &config.data,
            wanted as u32,
            segment_bytes,
            explicit,
            config.segment_bytes.is_some(),
        )?;
        let shards = store.superblock.shards as usize;
        let pins = pins(&config, &placement.order, shards)?;
        let profile = Profile::of(&config.data).map_err(|source| {
            if uring::file::is_out_of_descriptors(&source) {
                return out_of_descriptors(shards);
            }
            OpenError::Profile {
                path: config.data.clone(),
                source,
            }
        })?;
        let plan = Plan::new(&PlanInput {
            memory_bytes: config.memory_bytes,
            shards,
            connections_max: config.connections_max,
            payload_bytes_max: config.payload_bytes_max,
            segment_bytes: store.superblock.segment_bytes,
            cache_bytes: config.cache_bytes,
        })?;
        let (listeners, ports) = listen(&config, &pins)?;
        let shared = Arc::new(shared(&config, &store, &ports));
        let stop = Arc::new(AtomicBool::new(false));
        let addresses: Addresses = (0..shards).map(|_| OnceLock::new()).collect();
        let mailboxes = mailbox::mesh(shards, MAIL_CAPACITY);
        let mut running = Vec::new();
        let held = config.host.hold();
        let (mut features, mut granted) = (Features::default(), Vec::new());
        for (shard, (listeners, mailbox)) in listeners.into_iter().zip(mailboxes).enumerate() {
            let log = store.open_log(shard)?;
            let preparer = Preparer::spawn(log.directory.clone(), shard)
                .map_err(|e| OpenError::Shard(format!("segment thread: {e}")))?;
            let seed = Seed {
                shard,
                core: pins[shard],
                config: config.clone(),
                plan: plan.clone(),
                shared: Arc::clone(&shared),
                log,
                recover: recover_config(&store, shard, &config, &profile),
                digest_key: store.superblock.digest_key,
                listeners,
                mailbox,
                preparer,
                profile: profile.clone(),
                addresses: Arc::clone(&addresses),
                stop: Arc::clone(&stop),
            };
            let (tell, told) = mpsc::channel();
            let thread = std::thread::Builder::new()
                .name(format!("shard-{shard}"))
                .spawn(move || run(seed, &tell))
                .map_err(|e| {
                    OpenError::Shard(format!("cannot start the thread of shard {shard}: {e}"))
                })?;
            match told.recv() {
                Ok(Ok(started)) => {
                    features = started.features;
                    granted = started.host;
                    running.push(Running {
                        thread,
                        waker: started.waker,
                    });
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => {
                    return Err(OpenError::Shard(format!(
                        "shard {shard} ended before it started"
                    )));
                }
            }
        }
        let banner = Banner {
            shards: (0..shards)
                .map(|shard| ShardBanner {
                    shard,
                    core: pins[shard].map_or(shard, |c| c.id),
                    log: shared.logs[shard],
                    native_port: ports.shard.get(shard).copied(),
                })
                .collect(),
            memory: plan.lines().to_vec(),
            listen: config.listen,
            native_port: ports.native,
            http_port: ports.http,
            sync_method: profile.method_name().into(),
            sync_p50_us: profile.latency().p50_us,
            sync_p99_us: profile.latency().p99_us,
            commit_window: commit_window(&config, &profile),
            large_writes_in_flight: profile.large_writes_in_flight(),
            durability_class: profile.durability_class(),
            features,
            host: held.lines.iter().cloned().chain(granted).collect(),
            data: config.data.clone(),
            store: store.store_uuid(),
        };
        Ok(Engine {
            shards: running,
            stop,
            shared,
            store,
            banner,
            _held: held,
        })
    }

    /// What to tell the operator.
    pub fn banner(&self) -> &Banner {
        &self.banner
    }

    /// True once every shard has ended its recovery, one way or the other.
    pub fn is_settled(&self) -> bool {
        self.shared
            .ready
            .iter()
            .all(|r| r.load(Ordering::Acquire) != crate::core::RECOVERING)
    }

    /// Shards that stopped instead of becoming ready; the log says why.
    pub fn stopped_shards(&self) -> Vec<usize> {
        let stopped = |shard: &usize| {
            self.shared.ready[*shard].load(Ordering::Acquire) == crate::core::STOPPED
        };
        (0..self.shared.ready.len()).filter(stopped).collect()
    }

    /// Stop accepting, commit, write a last checkpoint, end. The error names shards that could not.
    pub fn drain(self) -> Result<(), String> {
        self.stop.store(true, Ordering::Release);
        for shard in &self.shards {
            shard.waker.wake();
        }
        let mut durable = Vec::new();
        let mut failed = Vec::new();
        for (number, shard) in self.shards.into_iter().enumerate() {
            match shard.thread.join() {
                Ok(Ok(lsn)) => durable.push(lsn),
                Ok(Err(why)) => {
                    durable.push(0);
                    failed.push(format!("shard {number}: {why}"));
                }
                Err(_) => {
                    // One figure per shard, whatever became of it: they are told apart by their place.
                    durable.push(0);
                    failed.push(format!("shard {number} panicked"));
                }
            }
        }
        self.store.close(&durable).map_err(|e| e.to_string())?;
        if failed.is_empty() {
            Ok(())
        } else {
            Err(failed.join("; "))
        }
    }
}

fn pins(
    config: &EngineConfig,
    order: &[usize],
    shards: usize,
) -> Result<Vec<Option<core_affinity::CoreId>>, OpenError> {
    match &config.cores {
        Some(list) if list.len() == shards => Ok(list
            .iter()
            .map(|id| Some(core_affinity::CoreId { id: *id }))
            .collect()),
        Some(list) => Err(OpenError::Cores {
            cores: list.len(),
            shards,
        }),
        // More shards than cores share them in turns; unpinned shards would only wander.
        None => Ok((0..shards)
            .map(|s| {
                let id = *order.get(s.checked_rem(order.len())?)?;
                Some(core_affinity::CoreId { id })
            })
            .collect()),
    }
}

/// What was asked for, else what follows from the measured latency.
fn commit_window(config: &EngineConfig, profile: &Profile) -> Duration {
    match config.commit_window_us {
        Some(us) => Duration::from_micros(us.into()),
        None => profile.commit_window(),
    }
}

fn recover_config(
    store: &Store,
    shard: usize,
    config: &EngineConfig,
    profile: &Profile,
) -> RecoverConfig {
    let log = &store.superblock.logs[shard];
    RecoverConfig {
        identity: store.identity(shard),
        epoch: log.epoch,
        segment_bytes: store.superblock.segment_bytes,
        segments_ahead: config.segments_ahead.unwrap_or(2) as usize,
        spare_policy: SparePolicy::default(),
        closed_durable_lsn: log.durable_lsn,
        commit_window: commit_window(config, profile),
        large_in_flight_max: profile.large_writes_in_flight(),
    }
}

fn shared(config: &EngineConfig, store: &Store, ports: &Ports) -> Shared {
    let superblock = &store.superblock;
    let routes = superblock
        .logs
        .iter()
        .enumerate()
        .map(|(shard, log)| ShardRoute {
            shard: shard as u16,
            log: log.number,
            slot_first: log.slot_first,
            slot_last: log.slot_last,
            address: config.listen.to_string(),
            native_port: ports.shard.get(shard).copied().unwrap_or(ports.native),
        })
        .collect();
    Shared {
        store: store.store_uuid(),
        topology: Topology {
            store: store.store_uuid(),
            map_epoch: superblock.map_epoch,
            shards: routes,
        },
        logs: superblock.logs.iter().map(|l| l.number).collect(),
        timeline: superblock.logs[0].timeline,
        token: config.token.clone(),
        listen: config.listen,
        bounds: Bounds {
            request_timeout_ns: u64::try_from(config.request_timeout.as_nanos())
                .unwrap_or(u64::MAX),
            ..Bounds::new(
                config.payload_bytes_max,
                superblock.segment_bytes,
                config.connections_max,
            )
        },
        load: (0..superblock.logs.len())
            .map(|_| AtomicU32::new(0))
            .collect(),
        ready: (0..superblock.logs.len())
            .map(|_| AtomicU32::new(0))
            .collect(),
        settled: (0..superblock.logs.len())
            .map(|_| AtomicBool::new(false))
            .collect(),
    }
}
