//! All shards of a process: open the store, start a pinned thread per shard, drain them.
//!
//! Owns the threads and what they share. It knows files, ports and cores; it does not know requests.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use uring::{BufferPool, Features, Ring, RingConfig, RingError, Waker};
use wire::{ShardRoute, Topology};

use crate::assemble::{Parts, assemble};
use crate::commit_window::derived_window;
use crate::core::{Bounds, Shared};
use crate::driver::{Door, FileId, LogFiles};
use crate::hop::Parcel;
use crate::mailbox::{self, Mailbox};
use crate::placement::Placement;
use crate::plan::{Plan, PlanError, PlanInput};
use crate::preparer::Preparer;
use crate::profile::Profile;
use crate::recover::RecoverConfig;
use crate::ring_driver::{self, Addresses, RingDriver};
use crate::store::{OpenLog, Store, StoreError};
use crate::turn::{Pace, Shard};

/// Shard i's own native port is the shared port plus this plus i.
pub const SHARD_PORT_OFFSET: u16 = 10_001;
/// How long a port that is taken is tried again.
const PORT_PATIENCE: Duration = Duration::from_secs(2);
const MAIL_CAPACITY: usize = 1024;
const CHECKPOINT_LOG_BYTES: u64 = 512 << 20;

/// What to serve, where, with how much.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Data directory; made if it is not there.
    pub data: PathBuf,
    /// None: what the store was made with; for a new one, one per physical core.
    pub shards: Option<usize>,
    /// Cores to pin to, in shard order; None: those that the process may use, as `placement` orders them.
    pub cores: Option<Vec<usize>>,
    /// Address to listen on.
    pub listen: IpAddr,
    /// 0: any free port.
    pub native_port: u16,
    /// 0: any free port.
    pub http_port: u16,
    /// None: what the store was made with; for a new one `SEGMENT_BYTES`.
    pub segment_bytes: Option<u64>,
    /// Cap on the plan of all shards; None: three quarters of the machine's memory.
    pub memory_bytes: Option<u64>,
    /// Largest payload of one record.
    pub payload_bytes_max: u32,
    /// Per shard.
    pub connections_max: u32,
    /// A request that was begun must be whole after so long.
    pub request_timeout: Duration,
    /// What clients must show; None: nothing.
    pub token: Option<Vec<u8>>,
    /// Longest spin of an idle shard before it sleeps; 0 = off, None = the default.
    pub spin_us: Option<u32>,
    /// Small batches are written so far apart under load; 0 = at once, None = from the measured latency of the device.
    pub commit_window_us: Option<u32>,
    /// TCP congestion control of accepted connections; None: the system's.
    pub congestion: Option<String>,
    /// Read cache per shard; None: an eighth of what is left, at most 256 MiB.
    pub cache_bytes: Option<u64>,
    /// Segments kept prepared ahead of the log.
    pub segments_ahead: Option<u32>,
    /// Log bytes after which a checkpoint is begun.
    pub checkpoint_log_bytes: Option<u64>,
    /// Sealed segments are verified again at this rate, per shard; 0 = never.
    pub scrub_bytes_per_second: u64,
    /// Disk use is held to about so many hundredths of what can still be read; 0: nothing is freed; None = the default.
    pub space_amplification_percent: Option<u64>,
    /// Listen on a port per shard.
    pub shard_ports: bool,
}

/// Default of `space_amplification_percent`.
pub const SPACE_AMPLIFICATION_PERCENT: u64 = 200;

/// Default of `segment_bytes`.
pub const SEGMENT_BYTES: u64 = 64 << 20;

/// Why the engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    /// The data directory.
    Store(#[from] StoreError),
    #[error(transparent)]
    /// The memory plan.
    Plan(#[from] PlanError),
    #[error(transparent)]
    /// io_uring.
    Ring(#[from] RingError),
    /// A port is taken, or the address is not ours.
    #[error(
        "cannot listen on {address}: {source}; stop what uses it, or choose another port with {flag}"
    )]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
        /// The flag that changes it.
        flag: &'static str,
    },
    /// Not even the listeners and files of the shards have descriptors.
    #[error(
        "the {limit} file descriptors that this process may have are not enough to start {shards} shards: run `ulimit -n 65536` first (systemd: LimitNOFILE=65536)"
    )]
    Descriptors {
        /// What the process may have.
        limit: u64,
        /// Shards of the store.
        shards: usize,
    },
    /// The device could not be measured.
    #[error("measuring the device under {path}: {source}")]
    Profile {
        /// Data directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Cores and shards do not match.
    #[error("--cores names {cores} cores for {shards} shards: give one core per shard")]
    Cores {
        /// Cores named.
        cores: usize,
        /// Shards of the store.
        shards: usize,
    },
    /// A shard could not start.
    #[error("{0}")]
    Shard(String),
}

impl OpenError {
    fn is_address_in_use(&self) -> bool {
        matches!(self, OpenError::Listen { source, .. } if source.kind() == io::ErrorKind::AddrInUse)
    }
}

/// One shard in the banner.
#[derive(Clone, Debug)]
pub struct ShardBanner {
    /// Shard number.
    pub shard: usize,
    /// Core that it is pinned to.
    pub core: usize,
    /// Log that it runs.
    pub log: u32,
    /// Port of its own.
    pub native_port: Option<u16>,
}

/// What the operator is told at start.
#[derive(Clone, Debug)]
pub struct Banner {
    /// One per shard, in order.
    pub shards: Vec<ShardBanner>,
    /// Memory of one shard: holder and bytes.
    pub memory: Vec<(String, u64)>,
    /// Address that is listened on.
    pub listen: IpAddr,
    /// Native port that all shards share.
    pub native_port: u16,
    /// HTTP port that all shards share.
    pub http_port: u16,
    /// How a write is made durable on this device.
    pub sync_method: String,
    /// Median of one durable 4 KiB write, in microseconds, as measured.
    pub sync_p50_us: f64,
    /// Its 99th percentile.
    pub sync_p99_us: f64,
    /// Small batches are written so far apart under load.
    pub commit_window: Duration,
    /// What an ack survives on this device.
    pub durability_class: String,
    /// What the kernel's ring offers.
    pub features: Features,
    /// Data directory.
    pub data: PathBuf,
    /// Identity of the store.
    pub store: String,
}

struct Started {
    features: Features,
    waker: Waker,
}

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
}

/// Everything that one shard's thread takes with it.
struct Seed {
    shard: usize,
    core: Option<core_affinity::CoreId>,
    config: EngineConfig,
    plan: Plan,
    shared: Arc<Shared>,
    log: OpenLog,
    recover: RecoverConfig,
    digest_key: [u8; 16],
    listeners: Vec<(Door, OwnedFd)>,
    mailbox: Mailbox<Box<Parcel<OwnedFd>>>,
    preparer: Preparer,
    profile: Profile,
    addresses: Addresses,
    stop: Arc<AtomicBool>,
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
            .unwrap_or(placement.physical.max(1));
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
        let profile = Profile::of(&config.data).map_err(|source| OpenError::Profile {
            path: config.data.clone(),
            source,
        })?;
        let plan = Plan::new(&PlanInput {
            memory_bytes: config.memory_bytes,
            shards,
            connections_max: config.connections_max,
            payload_bytes_max: config.payload_bytes_max,
            segment_bytes: store.superblock.segment_bytes,
            cache_bytes: config.cache_bytes,
        })?;
        let (listeners, ports) = listen(&config, shards)?;
        let shared = Arc::new(shared(&config, &store, &ports));
        let stop = Arc::new(AtomicBool::new(false));
        let addresses: Addresses = (0..shards).map(|_| OnceLock::new()).collect();
        let mailboxes = mailbox::mesh(shards, MAIL_CAPACITY);
        let mut running = Vec::new();
        let mut features = Features::default();
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
            durability_class: profile.durability_class(),
            features,
            data: config.data.clone(),
            store: store.store_uuid(),
        };
        Ok(Engine {
            shards: running,
            stop,
            shared,
            store,
            banner,
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
        None => derived_window(profile.latency().p50_us),
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
        closed_durable_lsn: log.durable_lsn,
        commit_window: commit_window(config, profile),
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

struct Ports {
    native: u16,
    http: u16,
    shard: Vec<u16>,
}

type Listeners = Vec<Vec<(Door, OwnedFd)>>;

fn listen(config: &EngineConfig, shards: usize) -> Result<(Listeners, Ports), OpenError> {
    let open = |port: u16, reuse_port: bool, flag: &'static str| {
        let address = SocketAddr::new(config.listen, port);
        let options = uring::socket::ListenOptions {
            reuse_port,
            backlog: 0,
            congestion: config.congestion.clone(),
        };
        uring::socket::listen(address, &options).map_err(|source| {
            if uring::file::is_out_of_descriptors(&source) {
                return out_of_descriptors(shards);
            }
            OpenError::Listen {
                address,
                source,
                flag,
            }
        })
    };
    // A probe without SO_REUSEPORT: another server on the port must be an error, not a partner.
    for (port, flag) in [
        (config.native_port, "--port"),
        (config.http_port, "--http-port"),
    ] {
        if port != 0 {
            let since = Instant::now();
            // The kernel takes the rings of a process that was killed apart behind its end, and their listeners with them.
            while let Err(error) = open(port, false, flag) {
                if !error.is_address_in_use() || since.elapsed() >= PORT_PATIENCE {
                    return Err(error);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
    let mut ports = Ports {
        native: config.native_port,
        http: config.http_port,
        shard: Vec::new(),
    };
    let mut all = Vec::new();
    for shard in 0..shards {
        let (native, bound) = open(ports.native, true, "--port")?;
        ports.native = bound.port();
        let (http, bound) = open(ports.http, true, "--http-port")?;
        ports.http = bound.port();
        let mut listeners = vec![(Door::Native, native), (Door::Http, http)];
        if config.shard_ports {
            let own = match config.native_port {
                0 => 0,
                port => port
                    .checked_add(SHARD_PORT_OFFSET + shard as u16)
                    .unwrap_or(0),
            };
            let (socket, bound) = open(own, false, "--port")?;
            ports.shard.push(bound.port());
            listeners.push((Door::NativeShard, socket));
        }
        all.push(listeners);
    }
    Ok((all, ports))
}

/// A shard that is gone, whatever ended it, asks nothing any more: the others may end.
struct SettledAtTheEnd(usize, Arc<Shared>);

impl Drop for SettledAtTheEnd {
    fn drop(&mut self) {
        self.1.settle(self.0);
    }
}

fn out_of_descriptors(shards: usize) -> OpenError {
    OpenError::Descriptors {
        limit: uring::limits::nofile().soft,
        shards,
    }
}

/// A shard's thread: build, recover, turn until drained. Returns the durable lsn.
fn run(seed: Seed, tell: &mpsc::Sender<Result<Started, OpenError>>) -> Result<u64, String> {
    if let Some(core) = seed.core
        && !core_affinity::set_for_current(core)
    {
        tracing::warn!(
            "shard {} could not be pinned to core {}",
            seed.shard,
            core.id
        );
    }
    if let Err(error) = uring::scheduling::give_way_to_workers() {
        tracing::warn!(
            "shard {}: the scheduler does not take a slice ({error}): durable writes may wait for its tick",
            seed.shard
        );
    }
    let (shard_number, stop) = (seed.shard, Arc::clone(&seed.stop));
    let recover = seed.recover.clone();
    let _settled = SettledAtTheEnd(shard_number, Arc::clone(&seed.shared));
    let (mut shard, files) = match build(seed) {
        Ok((shard, files, started)) => {
            let _ = tell.send(Ok(started));
            (shard, files)
        }
        Err(error) => {
            let why = error.to_string();
            let _ = tell.send(Err(error));
            return Err(why);
        }
    };
    match shard.recover(&files, &recover) {
        Ok(report) => {
            tracing::info!(
                shard = shard_number,
                "recovered in {:.3} s: {} keys from a checkpoint of {} bytes, {} records from {} bytes of log{}; durable lsn {}",
                report.seconds,
                report.checkpoint_keys,
                report.checkpoint_bytes,
                report.records,
                report.log_bytes,
                if report.cut {
                    ", a torn tail was cut"
                } else {
                    ""
                },
                report.durable_lsn,
            );
            shard.core.metrics.recovered(&report);
            shard.start();
        }
        Err(error) => shard.stop_with(error.to_string()),
    }
    loop {
        if stop.load(Ordering::Relaxed) {
            shard.drain();
        }
        if !shard.turn() {
            break;
        }
    }
    match &shard.core.state {
        crate::core::State::Stopped(why) => Err(why.clone()),
        _ => match shard.core.partition.log.failed() {
            Some(why) => Err(format!("a log write had failed: {why}")),
            None => Ok(shard.durable_lsn()),
        },
    }
}

fn build(seed: Seed) -> Result<(Shard<RingDriver>, LogFiles, Started), OpenError> {
    let Seed {
        shard,
        config,
        plan,
        shared,
        log,
        recover,
        digest_key,
        listeners,
        mailbox,
        preparer,
        profile,
        addresses,
        ..
    } = seed;
    let no_memory = |what: &str, e: io::Error| {
        OpenError::Shard(format!("shard {shard}: no memory for the {what}: {e}"))
    };
    let mut ring = Ring::new(&RingConfig {
        entries: 1024,
        recv_buffers: plan.recv_buffers,
        recv_buffer_bytes: plan.recv_buffer_bytes,
        operations_max: ring_driver::operations_max(config.connections_max),
    })?;
    let pool = BufferPool::new(plan.batch_buffers, plan.batch_bytes)
        .map_err(|e| no_memory("batch buffers", e))?;
    if let Err(error) = ring.register_buffers(&pool) {
        tracing::warn!(
            "shard {shard}: batch buffers are not registered with the kernel ({error}): writes cost more CPU; raise `ulimit -l`"
        );
    }
    let features = ring.features().clone();
    let mut files = LogFiles::default();
    let mut open: Vec<OwnedFd> = Vec::new();
    for (slot, file, bytes) in log.segments {
        files
            .segments
            .push((slot, FileId(open.len() as u32), bytes));
        open.push(file);
    }
    for (id, file) in files.checkpoints.iter_mut().zip(log.checkpoints) {
        if let Some(file) = file {
            *id = Some(FileId(open.len() as u32));
            open.push(file);
        }
    }
    let driver = RingDriver::new(
        ring,
        profile.method(),
        open,
        listeners,
        preparer,
        shard,
        addresses,
    )
    .map_err(|e| OpenError::Shard(format!("shard {shard}: the ring cannot listen: {e}")))?;
    let waker = driver.waker();

    let pace = match config.spin_us {
        Some(us) => Pace {
            spin: Duration::from_micros(u64::from(us)),
            ..Pace::default()
        },
        None => Pace::default(),
    };
    let assembled = assemble(Parts {
        scrub_bytes_per_second: config.scrub_bytes_per_second,
        shard,
        plan,
        pool,
        shared,
        recover,
        digest_key,
        checkpoints: files.checkpoints,
        checkpoint_log_bytes: config.checkpoint_log_bytes.unwrap_or(CHECKPOINT_LOG_BYTES),
        space_amplification_percent: config
            .space_amplification_percent
            .unwrap_or(SPACE_AMPLIFICATION_PERCENT),
        mailbox,
        driver,
        pace,
    });
    let mut shard = assembled.map_err(|e| OpenError::Shard(e.to_string()))?;
    shard.core.outside.device_sync_seconds = profile.latency().p50_us / 1e6;
    Ok((shard, files, Started { features, waker }))
}
