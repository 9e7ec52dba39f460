//! Setting a ring up: the best set of flags the kernel takes, and a record of what it lacks.
//!
//! Required: multishot receive into a provided buffer ring, which came with Linux 6.0. Everything above that (DEFER_TASKRUN
//! in 6.1, NO_IOWAIT in 6.15) makes turns cheaper and is done without where it is missing. Decided by what the kernel
//! accepts, not by its version number: distributions carry newer io_uring code in older kernels.

use std::io;

use io_uring::{IoUring, Probe, opcode};

use crate::{RingError, limits};

/// How a ring is set up. See [`crate::Ring::new`].
#[derive(Clone, Debug)]
pub struct RingConfig {
    /// Submission queue; the completion queue is 4x.
    pub entries: u32,
    /// Power of two, provided-buffer ring.
    pub recv_buffers: u16,
    /// Size of each of them.
    pub recv_buffer_bytes: u32,
    /// Fixed pool of op contexts; beyond it submit calls return Err(WouldBlock).
    pub operations_max: u32,
}

impl RingConfig {
    pub(crate) fn check(&self) -> Result<(), RingError> {
        let refuse = |what: String| Err(RingError::Config(what));
        if self.entries == 0 || self.operations_max == 0 {
            return refuse("entries and operations_max must be at least 1".to_owned());
        }
        if self.operations_max > 1 << 24 {
            return refuse(format!(
                "operations_max is {}, must be at most 16777216",
                self.operations_max
            ));
        }
        if !self.recv_buffers.is_power_of_two() || self.recv_buffers > 1 << 15 {
            return refuse(format!(
                "recv_buffers is {}, must be a power of two up to 32768",
                self.recv_buffers
            ));
        }
        if self.recv_buffer_bytes == 0 {
            return refuse("recv_buffer_bytes must be at least 1".to_owned());
        }
        Ok(())
    }

    /// Bytes of the provided receive buffers.
    pub(crate) fn recv_bytes(&self) -> u64 {
        u64::from(self.recv_buffers) * u64::from(self.recv_buffer_bytes)
    }
}

/// What the running kernel gave us; shown in the banner.
#[derive(Clone, Debug, Default)]
pub struct Features {
    /// Release, as `uname -r` prints it.
    pub kernel: String,
    /// One thread submits: the kernel skips locks.
    pub single_issuer: bool,
    /// Completions are processed when we ask, in our own time.
    pub defer_taskrun: bool,
    /// Completions do not interrupt the thread.
    pub coop_taskrun: bool,
    /// Sleeping in the ring is not counted as waiting for the disk.
    pub no_iowait: bool,
    /// One entry, a completion per arrival.
    pub multishot_recv: bool,
    /// One entry, a completion per connection.
    pub multishot_accept: bool,
    /// The kernel picks a receive buffer when bytes arrive, not when the receive is armed.
    pub provided_ring: bool,
    /// Rings wake each other without a descriptor in between.
    pub msg_ring: bool,
    /// A pool is registered, so its writes and reads are fixed ones.
    pub registered_buffers: bool,
    /// A file is registered: its operations take no reference to it.
    pub registered_files: bool,
    /// What is not there, each with the kernel that has it.
    pub missing: Vec<String>,
}

/// Setup flags that come and go together.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlagSet {
    single_issuer: bool,
    defer_taskrun: bool,
    coop_taskrun: bool,
}

/// Best first: Linux 6.1, 6.0, 5.19 and 5.18 (older ones fail on an operation, unless they carry newer code).
pub(crate) const FLAG_SETS: [FlagSet; 4] = [
    FlagSet {
        single_issuer: true,
        defer_taskrun: true,
        coop_taskrun: true,
    },
    FlagSet {
        single_issuer: true,
        defer_taskrun: false,
        coop_taskrun: true,
    },
    FlagSet {
        single_issuer: false,
        defer_taskrun: false,
        coop_taskrun: true,
    },
    FlagSet {
        single_issuer: false,
        defer_taskrun: false,
        coop_taskrun: false,
    },
];

/// A ring with the first of `sets` that the kernel takes, and what it can do.
pub(crate) fn build(
    config: &RingConfig,
    sets: &[FlagSet],
) -> Result<(IoUring, Features), RingError> {
    config.check()?;
    let (
        ring,
        FlagSet {
            single_issuer,
            defer_taskrun,
            coop_taskrun,
        },
    ) = create(config, sets)?;
    let probe = probe(&ring)?;
    let kernel = limits::kernel_release();
    for (code, name, needs) in REQUIRED {
        if !probe.is_supported(code) {
            return Err(RingError::KernelTooOld {
                kernel,
                missing: name.to_owned(),
                needs,
            });
        }
    }
    let params = ring.params();
    if !params.is_feature_ext_arg() || !params.is_feature_nodrop() {
        return Err(RingError::KernelTooOld {
            kernel,
            missing: "timeouts of io_uring_enter".to_owned(),
            needs: "5.11",
        });
    }
    let no_iowait = params.is_feature_no_iowait();
    let msg_ring = probe.is_supported(opcode::MsgRingData::CODE);
    let missing = [
        (single_issuer, "SINGLE_ISSUER (needs Linux 6.0)"),
        (defer_taskrun, "DEFER_TASKRUN (needs Linux 6.1)"),
        (coop_taskrun, "COOP_TASKRUN (needs Linux 5.19)"),
        (no_iowait, "NO_IOWAIT (needs Linux 6.15)"),
        (msg_ring, "MSG_RING (needs Linux 5.18)"),
    ]
    .into_iter()
    .filter(|(present, _)| !present)
    .map(|(_, name)| name.to_owned())
    .collect();
    let features = Features {
        kernel,
        single_issuer,
        defer_taskrun,
        coop_taskrun,
        no_iowait,
        multishot_recv: true,
        multishot_accept: true,
        provided_ring: false,
        msg_ring,
        registered_buffers: false,
        registered_files: false,
        missing,
    };
    Ok((ring, features))
}

/// Multishot modes have no probe bit of their own; the opcode that came in the same release stands for each.
const REQUIRED: [(u8, &str, &str); 9] = [
    (opcode::AcceptMulti::CODE, "accept", "5.5"),
    (
        opcode::Socket::CODE,
        "multishot accept and provided buffer rings",
        "5.19",
    ),
    (opcode::SendZc::CODE, "multishot receive", "6.0"),
    (opcode::Send::CODE, "send", "5.6"),
    (opcode::Write::CODE, "write", "5.6"),
    (
        opcode::WriteFixed::CODE,
        "write of registered buffers",
        "5.1",
    ),
    (opcode::Read::CODE, "read", "5.6"),
    (opcode::Fsync::CODE, "fsync", "5.1"),
    (opcode::AsyncCancel::CODE, "cancel", "5.5"),
];

fn create(config: &RingConfig, sets: &[FlagSet]) -> Result<(IoUring, FlagSet), RingError> {
    let completions = config.entries.saturating_mul(4);
    for &set in sets {
        let mut builder = IoUring::builder();
        // Clamp: a queue larger than the kernel allows becomes as large as it allows.
        builder
            .dontfork()
            .setup_clamp()
            .setup_cqsize(completions)
            .setup_submit_all();
        if set.single_issuer {
            builder.setup_single_issuer();
        }
        if set.defer_taskrun {
            builder.setup_defer_taskrun();
        }
        if set.coop_taskrun {
            // The flag word tells us whether there is task work to run, so that a spin makes no system call without need.
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        match builder.build(config.entries) {
            Ok(ring) => return Ok((ring, set)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(RingError::from_setup(error, config.recv_bytes())),
        }
    }
    Err(RingError::KernelTooOld {
        kernel: limits::kernel_release(),
        missing: "SUBMIT_ALL".to_owned(),
        needs: "5.18",
    })
}

fn probe(ring: &IoUring) -> Result<Probe, RingError> {
    let mut probe = Probe::new();
    let register = |error: io::Error| RingError::Other {
        step: "asking which operations there are",
        error,
    };
    ring.submitter()
        .register_probe(&mut probe)
        .map_err(register)?;
    Ok(probe)
}
