//! The settings of `serve`, declared once: clap reads flags, environment and defaults from here, serde the file.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use clap::{Args, FromArgMatches};
use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Cores};

/// Everything that `serve` can be told, as typed. Names in the file are the flags without the dashes in front.
#[derive(Args, Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ServeFlags {
    /// Data directory; made if it is not there
    #[arg(
        long,
        env = "PINION_DATA",
        value_name = "DIR",
        default_value = "./data"
    )]
    pub data: PathBuf,
    /// Shards; without it one per physical core that the process may use (no more than its control groups give time for), or what the directory was made with
    #[arg(long, env = "PINION_SHARDS", value_name = "N")]
    pub shards: Option<usize>,
    /// Cores for the shards, a list or ranges such as 0,2-5
    #[arg(long, env = "PINION_CORES", value_name = "LIST")]
    pub cores: Option<Cores>,
    /// Address to listen on; anything but loopback needs --token-file or --insecure
    #[arg(long, env = "PINION_LISTEN", value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Native protocol port; 0 takes any free one
    #[arg(long, env = "PINION_PORT", value_name = "PORT", default_value_t = 7600, value_parser = port)]
    pub port: u16,
    /// HTTP port; 0 takes any free one
    #[arg(long, env = "PINION_HTTP_PORT", value_name = "PORT", default_value_t = 7500, value_parser = port)]
    pub http_port: u16,
    /// Whether each shard also listens on a native port of its own (native port + 10001 + shard)
    #[arg(long, env = "PINION_SHARD_PORTS", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
          value_parser = clap::builder::BoolishValueParser::new())]
    pub shard_ports: bool,
    /// File that holds the token which clients must show
    #[arg(long, env = "PINION_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve an address that is not loopback without a token: anyone who reaches it may read and write
    #[arg(long, env = "PINION_INSECURE", value_parser = clap::builder::BoolishValueParser::new())]
    pub insecure: bool,
    /// Bytes of a log segment; fixed when the data directory is made (then 64MiB without this)
    #[arg(long, env = "PINION_SEGMENT_BYTES", value_name = "SIZE")]
    pub segment_bytes: Option<Bytes>,
    /// Cap on the memory plan of all shards together; without it three quarters of the machine's memory, or of what control groups leave of it
    #[arg(long, env = "PINION_MEMORY", value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Read cache of each shard; without it a share of the memory plan
    #[arg(long, env = "PINION_CACHE", value_name = "SIZE")]
    pub cache: Option<Bytes>,
    /// Largest payload of a record
    #[arg(
        long,
        env = "PINION_PAYLOAD_BYTES_MAX",
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    pub payload_bytes_max: Bytes,
    /// Connections of each shard at most
    #[arg(
        long,
        env = "PINION_CONNECTIONS_MAX",
        value_name = "N",
        default_value_t = 4096
    )]
    pub connections_max: u32,
    /// Seconds after which a request that was begun must be whole, and one more for every 64 KiB of it
    #[arg(
        long,
        env = "PINION_REQUEST_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub request_timeout_seconds: u32,
    /// Microseconds that an idle shard polls at most before it sleeps; 0 never polls, without it 200
    #[arg(long, env = "PINION_SPIN_US", value_name = "MICROSECONDS")]
    pub spin_us: Option<u32>,
    /// Microseconds between small log writes under load; 0 writes at once, without it three times the measured sync latency
    #[arg(long, env = "PINION_COMMIT_WINDOW_US", value_name = "MICROSECONDS")]
    pub commit_window_us: Option<u32>,
    /// TCP congestion control of client connections; without it the system's
    #[arg(long, env = "PINION_CONGESTION", value_name = "NAME")]
    pub congestion: Option<String>,
    /// Seconds that sent bytes may stay unacknowledged before the connection is given up (TCP_USER_TIMEOUT)
    #[arg(
        long,
        env = "PINION_TCP_USER_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        default_value_t = 30
    )]
    pub tcp_user_timeout_seconds: u32,
    /// Seconds of silence after which a client is probed (TCP_KEEPIDLE)
    #[arg(
        long,
        env = "PINION_TCP_KEEPALIVE_SECONDS",
        value_name = "SECONDS",
        default_value_t = 60
    )]
    pub tcp_keepalive_seconds: u32,
    /// Shards take the connections whose packets arrive on their core; for network cards whose interrupts are pinned
    #[arg(long, env = "PINION_INCOMING_CPU", value_parser = clap::builder::BoolishValueParser::new())]
    pub incoming_cpu: bool,
    /// Microseconds that the network card is polled before a shard sleeps, instead of waiting for its interrupt; 0 never
    #[arg(
        long,
        env = "PINION_NAPI_BUSY_POLL_US",
        value_name = "MICROSECONDS",
        default_value_t = 0
    )]
    pub napi_busy_poll_us: u32,
    /// Kernel threads (io-wq) of each shard's ring at most; without it the kernel's limit
    #[arg(long, env = "PINION_IO_WORKERS", value_name = "N")]
    pub io_workers: Option<u32>,
    /// Cores for those threads, a list or ranges; without it all
    #[arg(long, env = "PINION_IO_WORKER_CORES", value_name = "LIST")]
    pub io_worker_cores: Option<Cores>,
    /// Batch buffers on huge pages that the host has reserved (vm.nr_hugepages)
    #[arg(long, env = "PINION_HUGE_PAGES", value_parser = clap::builder::BoolishValueParser::new())]
    pub huge_pages: bool,
    /// Lock all memory of the process, so that nothing of it is swapped out
    #[arg(long, env = "PINION_LOCK_MEMORY", value_parser = clap::builder::BoolishValueParser::new())]
    pub lock_memory: bool,
    /// Keep CPUs out of idle states that take longer than this to leave, while serving (/dev/cpu_dma_latency); takes power
    #[arg(long, env = "PINION_CPU_DMA_LATENCY_US", value_name = "MICROSECONDS")]
    pub cpu_dma_latency_us: Option<u32>,
    /// Where `pinion tune apply` keeps what it changed: whether that is still in force is looked at every minute
    #[arg(
        long,
        env = "PINION_TUNING_STATE",
        value_name = "DIR",
        default_value = "/var/lib/pinion/tuning"
    )]
    pub tuning_state: PathBuf,
    /// Prepared segments that wait behind the open one
    #[arg(long, env = "PINION_SEGMENTS_AHEAD", value_name = "N")]
    pub segments_ahead: Option<u32>,
    /// Bytes of log after which a shard writes a new checkpoint of its index
    #[arg(long, env = "PINION_CHECKPOINT_LOG_BYTES", value_name = "SIZE")]
    pub checkpoint_log_bytes: Option<Bytes>,
    /// Sealed segments are verified again at this rate per second and shard; 0 never does
    #[arg(
        long,
        env = "PINION_SCRUB_BYTES_PER_SECOND",
        value_name = "SIZE",
        default_value = "8MiB"
    )]
    pub scrub_bytes_per_second: Bytes,
    /// Log on disk over what of it can still be read, about, from which compaction holds it down; 0 frees nothing, without it 2
    #[arg(long, env = "PINION_SPACE_AMPLIFICATION", value_name = "TIMES")]
    pub space_amplification: Option<f64>,
    /// What is logged on standard error: a level, or tracing's target=level list
    #[arg(
        long,
        env = "PINION_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,
    /// TOML file with the same settings; flags and environment go before it
    #[arg(long, env = "PINION_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the settings that would be in force, as TOML, and end
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

impl Default for ServeFlags {
    /// What clap makes of an empty command line. Only fills the fields that a file does not name while the file is checked.
    fn default() -> ServeFlags {
        let command = ServeFlags::augment_args(clap::Command::new("serve"));
        let matches = command.get_matches_from(["serve"]);
        ServeFlags::from_arg_matches(&matches).expect("clap accepts its own defaults")
    }
}

impl ServeFlags {
    /// How many shards are asked for, by number or by cores; None leaves it to the machine or to the directory.
    pub fn shard_count(&self) -> Option<usize> {
        self.shards
            .or(self.cores.as_ref().map(|cores| cores.0.len()))
    }
}

/// A port, with the one trap that its environment variable has.
fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| {
        if text.starts_with("tcp://") {
            "this is the link variable that Kubernetes sets for a service named pinion: \
             set enableServiceLinks: false in the pod, or type --port"
                .to_owned()
        } else {
            format!("{text:?} is not a port: type a number from 0 to 65535")
        }
    })
}
