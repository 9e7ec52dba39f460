//! What the engine asks of the host that needs no root: memory that stays, cores that stay awake, kernel threads kept out of
//! the way.
//!
//! Everything here is a wish: where the host cannot grant it, the engine serves without, says so in the log, and the banner
//! names what is in force. Knows nothing of shards' work.

use std::fs::File;
use std::io::{self, Write as _};
use std::time::Duration;

use uring::{BufferPool, Ring};

/// As long as this file is open, the kernel keeps CPUs out of idle states that take longer to leave (kernel documentation:
/// power/pm_qos_interface).
const CPU_DMA_LATENCY: &str = "/dev/cpu_dma_latency";

/// The wishes. `Default` asks for nothing.
#[derive(Clone, Debug)]
pub struct HostConfig {
    /// A shard's shared listeners take connections whose packets arrive on its core; only useful where queues are pinned.
    pub incoming_cpu: bool,
    /// Poll the network card for so long before a shard sleeps; 0: never.
    pub napi_busy_poll_us: u32,
    /// Kernel threads of each ring at most; None: the kernel's own limit.
    pub io_workers: Option<u32>,
    /// Cores for them; empty: wherever the kernel likes.
    pub io_worker_cores: Vec<usize>,
    /// Batch buffers on huge pages that the host has reserved.
    pub huge_pages: bool,
    /// No page of the process is swapped out.
    pub lock_memory: bool,
    /// Longest time that a CPU may take to wake up; None: whatever the host does.
    pub cpu_dma_latency_us: Option<u32>,
    /// Sent bytes that stay unacknowledged for so long end the connection.
    pub tcp_user_timeout: Duration,
    /// Silence before the first keepalive probe.
    pub tcp_keepalive: Duration,
}

impl Default for HostConfig {
    fn default() -> HostConfig {
        HostConfig {
            incoming_cpu: false,
            napi_busy_poll_us: 0,
            io_workers: None,
            io_worker_cores: Vec::new(),
            huge_pages: false,
            lock_memory: false,
            cpu_dma_latency_us: None,
            tcp_user_timeout: uring::socket::USER_TIMEOUT,
            tcp_keepalive: uring::socket::KEEPALIVE,
        }
    }
}

/// What was granted to the process, and what it holds for that.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// One line each, for the banner.
    pub lines: Vec<String>,
    _cpu_dma_latency: Option<File>,
}

impl HostConfig {
    /// Ask for what concerns the whole process. Before the shards map their memory.
    pub(super) fn hold(&self) -> Held {
        let mut held = Held::default();
        held.lines.push(format!(
            "connections end after {} s without an acknowledgement, are probed after {} s of silence",
            self.tcp_user_timeout.as_secs(),
            self.tcp_keepalive.as_secs()
        ));
        if self.lock_memory {
            grant(
                &mut held.lines,
                "--lock-memory",
                "memory is locked",
                uring::limits::lock_memory(),
                "`ulimit -l unlimited` (systemd: LimitMEMLOCK=infinity)",
            );
        }
        if let Some(us) = self.cpu_dma_latency_us {
            let opened = hold_latency(us);
            held._cpu_dma_latency = grant(
                &mut held.lines,
                "--cpu-dma-latency-us",
                &format!("CPUs wake up within {us} us"),
                opened,
                &format!("needs {CPU_DMA_LATENCY} and the right to write it"),
            );
        }
        if self.incoming_cpu {
            held.lines
                .push("shards accept what arrives on their core".to_owned());
        }
        held
    }

    /// Ask for what concerns one ring.
    pub(super) fn on(&self, ring: &Ring) -> Vec<String> {
        let mut lines = Vec::new();
        if self.napi_busy_poll_us > 0 {
            let us = self.napi_busy_poll_us;
            grant(
                &mut lines,
                "--napi-busy-poll-us",
                &format!("network card polled for {us} us"),
                ring.busy_poll(us),
                "needs Linux 6.9 with CONFIG_NET_RX_BUSY_POLL",
            );
        }
        if let Some(most) = self.io_workers {
            grant(
                &mut lines,
                "--io-workers",
                &format!("at most {most} kernel threads a ring"),
                ring.limit_workers(most),
                "needs Linux 5.15",
            );
        }
        if !self.io_worker_cores.is_empty() {
            grant(
                &mut lines,
                "--io-worker-cores",
                &format!("they run on cores {:?}", self.io_worker_cores),
                ring.pin_workers(&self.io_worker_cores),
                "name cores that this process may use: taskset -pc $$",
            );
        }
        lines
    }

    /// The batch buffers of a shard.
    pub(super) fn batch_buffers(
        &self,
        count: usize,
        bytes_each: usize,
        lines: &mut Vec<String>,
    ) -> io::Result<BufferPool> {
        if self.huge_pages {
            let pool = grant(
                lines,
                "--huge-pages",
                "batch buffers on reserved huge pages",
                BufferPool::on_reserved_huge_pages(count, bytes_each),
                "going on with transparent ones",
            );
            if let Some(pool) = pool {
                return Ok(pool);
            }
        }
        BufferPool::new(count, bytes_each)
    }
}

fn hold_latency(us: u32) -> io::Result<File> {
    let mut file = File::options().write(true).open(CPU_DMA_LATENCY)?;
    // A binary number of 32 bits is taken as microseconds.
    file.write_all(&us.to_ne_bytes())?;
    Ok(file)
}

/// Granted: a line for the banner. Not: a warning, and it is done without.
fn grant<T>(
    lines: &mut Vec<String>,
    flag: &str,
    granted: &str,
    result: io::Result<T>,
    fix: &str,
) -> Option<T> {
    match result {
        Ok(value) => {
            lines.push(granted.to_owned());
            Some(value)
        }
        Err(error) => {
            tracing::warn!("{flag} is not in force: {error}; {fix}");
            lines.push(format!("{flag} is not in force: {error}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_that_is_not_granted_is_named_and_costs_nothing_else() {
        let wishes = HostConfig {
            io_workers: Some(2),
            io_worker_cores: vec![100_000],
            ..HostConfig::default()
        };
        let ring = Ring::new(&uring::RingConfig {
            entries: 4,
            recv_buffers: 1,
            recv_buffer_bytes: 4096,
            operations_max: 4,
        })
        .unwrap();
        let lines = wishes.on(&ring);
        assert_eq!(lines[0], "at most 2 kernel threads a ring");
        assert!(
            lines[1].starts_with("--io-worker-cores is not in force"),
            "{lines:?}"
        );
    }

    #[test]
    fn buffers_are_there_with_or_without_reserved_pages() {
        let wishes = HostConfig {
            huge_pages: true,
            ..HostConfig::default()
        };
        let mut lines = Vec::new();
        let pool = wishes.batch_buffers(2, 1 << 20, &mut lines).unwrap();
        assert_eq!((pool.available(), lines.len()), (2, 1));
    }
}
