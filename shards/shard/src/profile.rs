//! What the device under the data directory does: measured once, kept in `device.toml`, read at every start.
//!
//! On some drives FUA is 2.5 times slower than a flush, on others it is free: the sync method is chosen by measurement,
//! never assumed.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::commit_window::derived_window;
use serde::{Deserialize, Serialize};
use uring::latency::{SyncMethod, measure_sync_latency};

const SAMPLE_BYTES: usize = 4096;
const SAMPLES: usize = 200;
/// Large batches are what moves bytes; devices want several (0.35 GB/s at depth 1, 1.2 at 8 for 64 KiB). So many unless a
/// probe has measured the device.
pub const LARGE_WRITES_IN_FLIGHT: usize = 8;
/// No more than this, whatever a probe says: the batch buffers are counted for it.
pub const LARGE_WRITES_IN_FLIGHT_MAX: usize = 16;

/// Latencies of durable writes in microseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SyncLatency {
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
}

/// The stored profile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// `dsync` (RWF_DSYNC write) or `fdatasync` (write, then fdatasync).
    pub sync_method: String,
    /// One durable 4 KiB write with RWF_DSYNC.
    pub dsync: SyncLatency,
    /// One 4 KiB write, then fdatasync.
    pub fdatasync: SyncLatency,
    /// Block device under the data directory, by its kernel name.
    pub device: String,
    /// Type of the filesystem.
    pub filesystem: String,
    /// Whether the device has a write cache that a power loss empties; None: it does not say.
    pub volatile_cache: Option<bool>,
    /// Whether it takes writes past that cache; None: it does not say.
    pub fua: Option<bool>,
    /// Large writes in flight from which on the device moves no more bytes, as `pinion tune probe` found; the short
    /// measurement at first start leaves it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub large_writes_in_flight: Option<usize>,
}

impl Profile {
    /// Name of the file in the data directory.
    pub const FILE: &str = "device.toml";

    /// The stored profile of `data`, if there is one that can be read.
    pub fn stored(data: &Path) -> Option<Profile> {
        Profile::read(data).ok()
    }

    /// InvalidData: it is there and says nothing that can be used.
    fn read(data: &Path) -> io::Result<Profile> {
        let text = std::fs::read_to_string(data.join(Profile::FILE))?;
        toml::from_str(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Small log writes are started so far apart under load, unless the operator says otherwise.
    pub fn commit_window(&self) -> Duration {
        derived_window(self.latency().p50_us)
    }

    /// The stored profile of `data`, or a fresh measurement which is then stored.
    pub fn of(data: &Path) -> io::Result<Profile> {
        match Profile::read(data) {
            Ok(profile) => return Ok(profile),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::InvalidData => tracing::warn!(
                "{}: {error}; measuring the device again",
                data.join(Profile::FILE).display()
            ),
            Err(error) => return Err(error),
        }
        let profile = Profile::measure(data)?;
        profile.store(data)?;
        Ok(profile)
    }

    /// Keep it for the next start.
    pub fn store(&self, data: &Path) -> io::Result<()> {
        let text = toml::to_string(self).map_err(io::Error::other)?;
        uring::file::replace(&data.join(Profile::FILE), text.as_bytes())
    }

    /// Time durable 4 KiB writes both ways, in turns, so that a busy moment hits both.
    pub fn measure(data: &Path) -> io::Result<Profile> {
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
        Ok(Profile::from_latencies(data, dsync, fdatasync))
    }

    /// The profile that follows from both latencies: the method, and what the device says of itself.
    fn from_latencies(data: &Path, dsync: SyncLatency, fdatasync: SyncLatency) -> Profile {
        // The flush is a second operation behind the write: it must be clearly faster to be worth that.
        let method = if fdatasync.p50_us < 0.8 * dsync.p50_us {
            "fdatasync"
        } else {
            "dsync"
        };
        let device = uring::device::device_of(data).ok();
        Profile {
            sync_method: method.into(),
            dsync,
            fdatasync,
            device: device
                .as_ref()
                .map_or_else(|| "unknown".into(), |d| d.name.clone()),
            filesystem: uring::device::filesystem_of(data).unwrap_or_else(|_| "unknown".into()),
            volatile_cache: device.as_ref().and_then(|d| d.volatile_cache),
            fua: device.as_ref().and_then(|d| d.fua),
            large_writes_in_flight: None,
        }
    }

    /// How many large log writes are in flight at most.
    pub fn large_writes_in_flight(&self) -> usize {
        self.large_writes_in_flight
            .unwrap_or(LARGE_WRITES_IN_FLIGHT)
            .clamp(1, LARGE_WRITES_IN_FLIGHT_MAX)
    }

    /// The chosen method.
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

/// Median and 99th percentile of some samples.
pub fn percentiles(mut samples: Vec<Duration>) -> SyncLatency {
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
