//! One shard's thread: built from its seed, recovered, turned until it is drained.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use uring::{Features, Ring, RingConfig, Waker};

use super::listen::out_of_descriptors;
use super::pin::Pin;
use super::{EngineConfig, OpenError, SPACE_AMPLIFICATION_PERCENT};
use crate::assemble::{Parts, assemble};
use crate::core::Shared;
use crate::driver::{Door, FileId, LogFiles};
use crate::hop::Parcel;
use crate::mailbox::Mailbox;
use crate::plan::Plan;
use crate::preparer::Preparer;
use crate::profile::Profile;
use crate::recover::RecoverConfig;
use crate::ring_driver::{self, Addresses, RingDriver};
use crate::store::OpenLog;
use crate::turn::{Pace, Shard};

const CHECKPOINT_LOG_BYTES: u64 = 512 << 20;

/// What a thread tells of itself once it is built.
pub(super) struct Started {
    pub features: Features,
    /// What the host grants this ring.
    pub host: Vec<String>,
    pub waker: Waker,
}

/// Everything that one shard's thread takes with it.
pub(super) struct Seed {
    pub shard: usize,
    pub core: Option<core_affinity::CoreId>,
    pub config: EngineConfig,
    pub plan: Plan,
    pub shared: Arc<Shared>,
    pub log: OpenLog,
    pub recover: RecoverConfig,
    pub digest_key: [u8; 16],
    pub listeners: Vec<(Door, OwnedFd)>,
    pub mailbox: Mailbox<Box<Parcel<OwnedFd>>>,
    pub preparer: Preparer,
    pub profile: Profile,
    pub addresses: Addresses,
    pub stop: Arc<AtomicBool>,
}

/// A shard that is gone, whatever ended it, asks nothing any more: the others may end.
struct SettledAtTheEnd(usize, Arc<Shared>);

impl Drop for SettledAtTheEnd {
    fn drop(&mut self) {
        self.1.settle(self.0);
    }
}

/// A shard's thread: build, recover, turn until drained. Returns the durable lsn.
pub(super) fn run(
    seed: Seed,
    tell: &mpsc::Sender<Result<Started, OpenError>>,
) -> Result<u64, String> {
    let mut pin = Pin::to(seed.shard, seed.core);
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
        pin.look(shard.core.now.monotonic_ns);
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
    let mut host = config.host.on(&ring);
    let pool = config
        .host
        .batch_buffers(plan.batch_buffers, plan.batch_bytes, &mut host)
        .map_err(|e| no_memory("batch buffers", e))?;
    if let Err(error) = ring.register_buffers(&pool) {
        tracing::warn!(
            "shard {shard}: batch buffers are not registered with the kernel ({error}): writes cost more CPU; raise `ulimit -l`"
        );
    }
    let features = ring.features().clone();
    let mut files = LogFiles {
        no_room: log.no_room,
        ..LogFiles::default()
    };
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
    // The ring lets go of its files when the last write has ended, which may be after the process is gone: until then nobody
    // else may have the directory, or a write of before could land in what it has written since.
    open.push(log.lock);
    let driver = RingDriver::new(
        ring,
        profile.method(),
        open,
        listeners,
        preparer,
        shard,
        addresses,
    )
    .map_err(|e| match uring::file::is_out_of_descriptors(&e) {
        true => out_of_descriptors(shared.logs.len()),
        false => OpenError::Shard(format!("shard {shard}: the ring cannot listen: {e}")),
    })?;
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
    Ok((
        shard,
        files,
        Started {
            features,
            host,
            waker,
        },
    ))
}
