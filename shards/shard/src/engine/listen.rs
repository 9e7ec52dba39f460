//! The ports: shared ones on every shard (SO_REUSEPORT), and one of each shard's own.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use super::{EngineConfig, OpenError};
use crate::driver::Door;

/// Shard i's own native port is the shared port plus this plus i.
pub const SHARD_PORT_OFFSET: u16 = 10_001;
/// How long a port that is taken is tried again.
const PORT_PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Ports {
    pub native: u16,
    pub http: u16,
    pub shard: Vec<u16>,
}

/// A port that every shard listens on.
#[derive(Clone, Copy)]
struct Shared {
    /// Where the shard runs.
    core: Option<usize>,
}

pub(super) type Listeners = Vec<Vec<(Door, OwnedFd)>>;

pub(super) fn listen(
    config: &EngineConfig,
    pins: &[Option<core_affinity::CoreId>],
) -> Result<(Listeners, Ports), OpenError> {
    let shards = pins.len();
    let open = |port: u16, shared_by: Option<Shared>, flag: &'static str| {
        let address = SocketAddr::new(config.listen, port);
        let core = shared_by.and_then(|shared| shared.core);
        let options = uring::socket::ListenOptions {
            reuse_port: shared_by.is_some(),
            backlog: 0,
            congestion: config.congestion.clone(),
            user_timeout: config.host.tcp_user_timeout,
            keepalive: config.host.tcp_keepalive,
            incoming_cpu: core.filter(|_| config.host.incoming_cpu),
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
            while let Err(error) = open(port, None, flag) {
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
    for (shard, pin) in pins.iter().enumerate() {
        let shared = Some(Shared {
            core: pin.map(|core| core.id),
        });
        let (native, bound) = open(ports.native, shared, "--port")?;
        ports.native = bound.port();
        let (http, bound) = open(ports.http, shared, "--http-port")?;
        ports.http = bound.port();
        let mut listeners = vec![(Door::Native, native), (Door::Http, http)];
        if config.shard_ports {
            let own = match config.native_port {
                0 => 0,
                port => port
                    .checked_add(SHARD_PORT_OFFSET + shard as u16)
                    .unwrap_or(0),
            };
            let (socket, bound) = open(own, None, "--port")?;
            ports.shard.push(bound.port());
            listeners.push((Door::NativeShard, socket));
        }
        all.push(listeners);
    }
    Ok((all, ports))
}

pub(super) fn out_of_descriptors(shards: usize) -> OpenError {
    OpenError::Descriptors {
        limit: uring::limits::nofile().soft,
        shards,
    }
}
