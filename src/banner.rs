//! The start-up banner: the plan as aligned text. Renders; decides and measures nothing.

use std::fmt::Write as _;
use std::net::SocketAddr;

use shard::engine::{Banner, ShardBanner};
use uring::Features;

use crate::text::{counted, human};

const LABEL_WIDTH: usize = 12;

/// Everything that the operator is told at start, but for the line that says that it serves.
pub fn render(banner: &Banner) -> String {
    let mut out = format!("pinion {}\n", env!("CARGO_PKG_VERSION"));
    let mut rows = |label: &str, lines: &[String]| {
        for (at, line) in lines.iter().enumerate() {
            let label = if at == 0 { label } else { "" };
            let _ = writeln!(out, "  {label:<LABEL_WIDTH$}{line}");
        }
    };
    rows(
        "data",
        &[format!("{}, store {}", banner.data.display(), banner.store)],
    );
    rows(
        "shards",
        &banner.shards.iter().map(shard_line).collect::<Vec<_>>(),
    );
    rows("memory", &memory_lines(banner));
    rows(
        "native",
        &[format!("{}{}", native(banner), own_ports(&banner.shards))],
    );
    rows("http", &[http(banner).to_string()]);
    rows(
        "sync",
        &[format!(
            "{}, measured {:.0} us (p99 {:.0} us) per durable 4 KiB write; commit window {} us, {} large writes in flight",
            banner.sync_method,
            banner.sync_p50_us,
            banner.sync_p99_us,
            banner.commit_window.as_micros(),
            banner.large_writes_in_flight
        )],
    );
    rows("durability", std::slice::from_ref(&banner.durability_class));
    rows(
        "ring",
        &[format!(
            "Linux {}: {}",
            banner.features.kernel,
            in_use(&banner.features).join(", ")
        )],
    );
    rows("missing", &banner.features.missing);
    rows("host", &banner.host);
    out
}

/// The line that scripts wait for: every shard takes writes, but for the `stopped` ones.
pub fn ready_line(banner: &Banner, stopped: &[usize]) -> String {
    let without = match stopped {
        [] => String::new(),
        list => {
            let numbers: Vec<String> = list.iter().map(usize::to_string).collect();
            format!(", without {} (stopped, see the log)", numbers.join(", "))
        }
    };
    format!(
        "pinion is serving native {} and http {} on {}{without}\n",
        native(banner),
        http(banner),
        counted(banner.shards.len() as u64, "shard"),
    )
}

fn native(banner: &Banner) -> SocketAddr {
    SocketAddr::new(banner.listen, banner.native_port)
}

fn http(banner: &Banner) -> SocketAddr {
    SocketAddr::new(banner.listen, banner.http_port)
}

/// The plan of one shard, its sum, and the sum over all.
fn memory_lines(banner: &Banner) -> Vec<String> {
    let each: u64 = banner.memory.iter().map(|(_, bytes)| bytes).sum();
    let names = banner.memory.iter().map(|(what, _)| what.len());
    let width = names.max().unwrap_or(0).max("per shard".len());
    let row = |what: &str, bytes: u64| format!("{what:<width$}  {:>10}", human(bytes));
    let mut lines: Vec<String> = banner
        .memory
        .iter()
        .map(|(what, bytes)| row(what, *bytes))
        .collect();
    lines.push(row("per shard", each));
    lines.push(row("total", each * banner.shards.len() as u64));
    lines
}

fn own_ports(shards: &[ShardBanner]) -> String {
    let ports: Vec<u16> = shards
        .iter()
        .filter_map(|shard| shard.native_port)
        .collect();
    match ports[..] {
        [] => String::new(),
        [port] => format!(", shard 0 on {port}"),
        [first, ..] if ports.is_sorted_by(|a, b| a.checked_add(1) == Some(*b)) => {
            format!(", shard i on {first} + i")
        }
        // Ports that the kernel chose are in no order; the shard lines name them.
        _ => ", every shard on a port of its own".to_owned(),
    }
}

fn shard_line(shard: &ShardBanner) -> String {
    let port = shard
        .native_port
        .map_or_else(String::new, |port| format!(", port {port}"));
    format!(
        "{} on core {}, log {}{port}",
        shard.shard, shard.core, shard.log
    )
}

fn in_use(features: &Features) -> Vec<&'static str> {
    [
        (features.single_issuer, "single issuer"),
        (features.defer_taskrun, "defer taskrun"),
        (features.coop_taskrun, "coop taskrun"),
        (features.no_iowait, "no iowait"),
        (features.multishot_accept, "multishot accept"),
        (features.multishot_recv, "multishot recv"),
        (features.provided_ring, "provided buffer ring"),
        (features.msg_ring, "msg ring"),
        (features.registered_buffers, "registered buffers"),
    ]
    .into_iter()
    .filter_map(|(there, name)| there.then_some(name))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banner() -> Banner {
        let shard = |shard: usize| ShardBanner {
            shard,
            core: shard * 2,
            log: shard as u32,
            native_port: Some(17601 + shard as u16),
        };
        Banner {
            shards: (0..2).map(shard).collect(),
            memory: vec![
                ("index".into(), 512 << 20),
                ("batch buffers".into(), 9_437_184),
                ("connections".into(), 1_234_567),
            ],
            listen: [127, 0, 0, 1].into(),
            native_port: 7600,
            http_port: 7500,
            sync_method: "O_DSYNC write".into(),
            sync_p50_us: 147.2,
            sync_p99_us: 309.8,
            commit_window: std::time::Duration::from_micros(441),
            large_writes_in_flight: 8,
            durability_class: "volatile write cache, flushed by every ack".into(),
            features: Features {
                kernel: "6.1".into(),
                single_issuer: true,
                defer_taskrun: true,
                missing: vec!["NO_IOWAIT (Linux 6.15)".into()],
                ..Features::default()
            },
            host: vec!["memory is locked".into(), "CPUs wake up within 2 us".into()],
            data: "./data".into(),
            store: "0d7f".into(),
        }
    }

    #[test]
    fn the_banner_is_aligned() {
        let wanted = format!(
            "pinion {}
  data        ./data, store 0d7f
  shards      0 on core 0, log 0, port 17601
              1 on core 2, log 1, port 17602
  memory      index             512 MiB
              batch buffers       9 MiB
              connections       1.2 MiB
              per shard       522.2 MiB
              total             1.0 GiB
  native      127.0.0.1:7600, shard i on 17601 + i
  http        127.0.0.1:7500
  sync        O_DSYNC write, measured 147 us (p99 310 us) per durable 4 KiB write; commit window 441 us, 8 large writes in flight
  durability  volatile write cache, flushed by every ack
  ring        Linux 6.1: single issuer, defer taskrun
  missing     NO_IOWAIT (Linux 6.15)
  host        memory is locked
              CPUs wake up within 2 us
",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(render(&banner()), wanted);
        assert_eq!(
            ready_line(&banner(), &[]),
            "pinion is serving native 127.0.0.1:7600 and http 127.0.0.1:7500 on 2 shards\n"
        );
        assert!(
            ready_line(&banner(), &[1])
                .ends_with("on 2 shards, without 1 (stopped, see the log)\n")
        );
    }

    #[test]
    fn nothing_missing_is_not_a_line() {
        let mut banner = banner();
        banner.features.missing.clear();
        assert!(!render(&banner).contains("missing"));
    }

    #[test]
    fn ports_of_shards_are_named_as_shortly_as_they_allow() {
        let shards = |ports: &[u16]| -> Vec<ShardBanner> {
            let shard = |(shard, port): (usize, &u16)| ShardBanner {
                shard,
                core: 0,
                log: 0,
                native_port: Some(*port),
            };
            ports.iter().enumerate().map(shard).collect()
        };
        assert_eq!(own_ports(&shards(&[])), "");
        assert_eq!(own_ports(&shards(&[5])), ", shard 0 on 5");
        assert_eq!(own_ports(&shards(&[5, 6, 7])), ", shard i on 5 + i");
        assert_eq!(
            own_ports(&shards(&[5, 9, 7])),
            ", every shard on a port of its own"
        );
    }
}
