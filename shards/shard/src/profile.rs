//! What the device under the data directory does: measured once, kept in `device.toml`, read at every start.
//!
//! On some drives FUA is 2.5 times slower than a flush, on others it is free: the sync method is chosen by measurement,
//! never assumed.

use std::io;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use uring::latency::{SyncMethod, measure_sync_latency};

const FILE: &str = "device.toml";
const SAMPLE_BYTES: usize = 4096;
const SAMPLES: usize = 200;

/// Latencies of durable writes in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncLatency {
    pub p50_us: f64,
    pub p99_us: f64,
}

/// The stored profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// `dsync` (RWF_DSYNC write) or `fdatasync` (write, then fdatasync).
    pub sync_method: String,
    pub dsync: SyncLatency,
    pub fdatasync: SyncLatency,
    pub device: String,
    pub filesystem: String,
    pub volatile_cache: Option<bool>,
    pub fua: Option<bool>,
}

impl Profile {
    /// The stored profile of `data`, or a fresh measurement which is then stored.
    pub fn of(data: &Path) -> io::Result<Profile> {
        let path = data.join(FILE);
        match std::fs::read_to_string(&path) {
            Ok(text) => match toml::from_str(&text) {
                Ok(profile) => return Ok(profile),
                Err(error) => {
                    tracing::warn!("{}: {error}; measuring the device again", path.display())
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let profile = Profile::measure(data)?;
        let text = toml::to_string(&profile).map_err(io::Error::other)?;
        std::fs::write(&path, text)?;
        Ok(profile)
    }

    /// Time durable 4 KiB writes both ways, in turns, so that a busy moment hits both.
    fn measure(data: &Path) -> io::Result<Profile> {
        let (mut dsync, mut fdatasync) = (Vec::new(), Vec::new());
        for _ in 0..4 {
            dsync.extend(measure_sync_latency(
                data,
                SAMPLE_BYTES,
                SAMPLES / 4,
                SyncMethod::Dsync,
            )?);
            fdatasync.extend(measure_sync_latency(
                data,
                SAMPLE_BYTES,
                SAMPLES / 4,
                SyncMethod::Fdatasync,
            )?);
        }
        let (dsync, fdatasync) = (percentiles(dsync), percentiles(fdatasync));
        // The flush is a second operation behind the write: it must be clearly faster to be worth that.
        let method = if fdatasync.p50_us < 0.8 * dsync.p50_us {
            "fdatasync"
        } else {
            "dsync"
        };
        let device = uring::device::device_of(data).ok();
        Ok(Profile {
            sync_method: method.into(),
            dsync,
            fdatasync,
            device: device
                .as_ref()
                .map_or_else(|| "unknown".into(), |d| d.name.clone()),
            filesystem: uring::device::filesystem_of(data).unwrap_or_else(|_| "unknown".into()),
            volatile_cache: device.as_ref().and_then(|d| d.volatile_cache),
            fua: device.as_ref().and_then(|d| d.fua),
        })
    }

    pub fn method(&self) -> SyncMethod {
        if self.sync_method == "fdatasync" {
            SyncMethod::Fdatasync
        } else {
            SyncMethod::Dsync
        }
    }

    /// Latency of the chosen method.
    pub fn latency(&self) -> &SyncLatency {
        match self.method() {
            SyncMethod::Dsync => &self.dsync,
            SyncMethod::Fdatasync => &self.fdatasync,
        }
    }

    /// How the method is called in the banner.
    pub fn method_name(&self) -> &'static str {
        match self.method() {
            SyncMethod::Dsync => "O_DIRECT write with RWF_DSYNC",
            SyncMethod::Fdatasync => "O_DIRECT write, then fdatasync",
        }
    }

    /// What an ack survives on this device, as far as the device tells the truth.
    pub fn durability_class(&self) -> String {
        let what = match (self.volatile_cache, self.fua) {
            (Some(false), _) => "power loss: the device reports no volatile write cache",
            (Some(true), Some(true)) => {
                "power loss if the device honours FUA: volatile write cache, every ack is a FUA write"
            }
            (Some(true), _) => {
                "power loss if the device honours flushes: volatile write cache, every ack waits for a flush"
            }
            (None, _) => {
                "process and system crash; the device does not say whether its write cache is volatile"
            }
        };
        format!("{what} ({} on {})", self.filesystem, self.device)
    }
}

fn percentiles(mut samples: Vec<Duration>) -> SyncLatency {
    samples.sort_unstable();
    let at = |q: f64| {
        samples
            .get(((samples.len() as f64 * q) as usize).min(samples.len().saturating_sub(1)))
            .map_or(0.0, |d| d.as_secs_f64() * 1e6)
    };
    SyncLatency {
        p50_us: at(0.5),
        p99_us: at(0.99),
    }
}
