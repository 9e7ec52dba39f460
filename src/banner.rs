//! The start-up banner: the plan as aligned text. Renders; decides and measures nothing.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::text::{counted, human};

/// What the engine says about itself once it is open.
#[derive(Clone, Debug)]
pub struct Banner {
    /// One per shard, in order.
    pub shards: Vec<ShardLine>,
    /// Memory of one shard: what holds it and how many bytes.
    pub memory: Vec<(String, u64)>,
    /// Address that is listened on.
    pub listen: IpAddr,
    /// Native port that all shards share.
    pub native_port: u16,
    /// HTTP port that all shards share.
    pub http_port: u16,
    /// How a write is made durable, as chosen for this device.
    pub sync_method: String,
    /// Measured latency of one durable 4 KiB write in microseconds: median and 99th percentile.
    pub sync_latency_us: (u64, u64),
    /// What an ack survives on this device.
    pub durability_class: String,
    /// Ring features that are in use.
    pub ring_features: Vec<String>,
    /// Ring features that this kernel does not have, each with what would give it.
    pub ring_missing: Vec<String>,
    /// Data directory.
    pub data: PathBuf,
    /// Identity of the store.
    pub store: String,
}

/// A shard in the banner.
#[derive(Clone, Debug)]
pub struct ShardLine {
    /// Shard number.
    pub shard: usize,
    /// Core that it is pinned to.
    pub core: usize,
    /// Log that it runs.
    pub log: u32,
    /// Port of its own, if it has one.
    pub native_port: Option<u16>,
}

const LABEL_WIDTH: usize = 12;

impl Banner {
    /// The whole banner, its last line being the one that scripts wait for.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let mut rows = |label: &str, lines: Vec<String>| {
            for (at, line) in lines.iter().enumerate() {
                let label = if at == 0 { label } else { "" };
                let _ = writeln!(out, "  {label:<LABEL_WIDTH$}{line}");
            }
        };
        rows(
            "data",
            vec![format!("{}  store {}", self.data.display(), self.store)],
        );
        rows("shards", self.shards.iter().map(shard_line).collect());
        rows("memory", self.memory_lines());
        rows(
            "native",
            vec![format!(
                "{}{}",
                std::net::SocketAddr::new(self.listen, self.native_port),
                self.own_ports()
            )],
        );
        rows(
            "http",
            vec![std::net::SocketAddr::new(self.listen, self.http_port).to_string()],
        );
        let (p50, p99) = self.sync_latency_us;
        rows(
            "sync",
            vec![format!(
                "{}, measured {p50} us (p99 {p99} us) per durable 4 KiB write",
                self.sync_method
            )],
        );
        rows("durability", vec![self.durability_class.clone()]);
        rows("ring", vec![self.ring_features.join(", ")]);
        rows("missing", self.ring_missing.clone());
        format!(
            "pinion {}\n{out}{}\n",
            env!("CARGO_PKG_VERSION"),
            self.ready_line()
        )
    }

    fn ready_line(&self) -> String {
        format!(
            "pinion is serving native {} and http {} on {}",
            std::net::SocketAddr::new(self.listen, self.native_port),
            std::net::SocketAddr::new(self.listen, self.http_port),
            counted(self.shards.len() as u64, "shard"),
        )
    }

    /// The plan of one shard, its sum, and the sum over all.
    fn memory_lines(&self) -> Vec<String> {
        let total: u64 = self.memory.iter().map(|(_, bytes)| bytes).sum();
        let width = self
            .memory
            .iter()
            .map(|(what, _)| what.len())
            .max()
            .unwrap_or(0)
            .max("per shard".len());
        let row = |what: &str, bytes: u64| format!("{what:<width$}  {:>12}", human(bytes));
        let mut lines: Vec<String> = self
            .memory
            .iter()
            .map(|(what, bytes)| row(what, *bytes))
            .collect();
        lines.push(row("per shard", total));
        lines.push(row("total", total * self.shards.len() as u64));
        lines
    }

    fn own_ports(&self) -> String {
        let ports: Vec<u16> = self
            .shards
            .iter()
            .filter_map(|line| line.native_port)
            .collect();
        match (ports.first(), ports.last()) {
            (Some(first), Some(last)) if first == last => format!(", shard 0 on {first}"),
            (Some(first), Some(last)) if usize::from(last - first) + 1 == ports.len() => {
                format!(", shard i on {first} + i")
            }
            // Ports that the kernel chose are in no order; the shard lines name them.
            (Some(_), Some(_)) => ", every shard on its own port".to_owned(),
            _ => String::new(),
        }
    }
}

fn shard_line(line: &ShardLine) -> String {
    let port = line
        .native_port
        .map_or_else(String::new, |port| format!(", port {port}"));
    format!(
        "{} on core {}, log {}{port}",
        line.shard, line.core, line.log
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn banner() -> Banner {
        Banner {
            shards: (0..2)
                .map(|shard| ShardLine {
                    shard,
                    core: shard * 2,
                    log: shard as u32,
                    native_port: Some(17601 + shard as u16),
                })
                .collect(),
            memory: vec![
                ("index".into(), 512 << 20),
                ("batch buffers".into(), 9_437_184),
                ("connections".into(), 1_234_567),
            ],
            listen: IpAddr::from([127, 0, 0, 1]),
            native_port: 7600,
            http_port: 7500,
            sync_method: "O_DSYNC write".into(),
            sync_latency_us: (147, 310),
            durability_class: "volatile write cache, flushed by every ack".into(),
            ring_features: vec!["single issuer".into(), "defer taskrun".into()],
            ring_missing: vec!["no_iowait: kernel 6.15".into()],
            data: "./data".into(),
            store: "0d7f".into(),
        }
    }

    #[test]
    fn the_banner_is_aligned_and_its_last_line_is_what_scripts_wait_for() {
        let wanted = format!(
            "pinion {}
  data        ./data  store 0d7f
  shards      0 on core 0, log 0, port 17601
              1 on core 2, log 1, port 17602
  memory      index               512 MiB
              batch buffers         9 MiB
              connections         1.2 MiB
              per shard         522.2 MiB
              total               1.0 GiB
  native      127.0.0.1:7600, shard i on 17601 + i
  http        127.0.0.1:7500
  sync        O_DSYNC write, measured 147 us (p99 310 us) per durable 4 KiB write
  durability  volatile write cache, flushed by every ack
  ring        single issuer, defer taskrun
  missing     no_iowait: kernel 6.15
pinion is serving native 127.0.0.1:7600 and http 127.0.0.1:7500 on 2 shards
",
            env!("CARGO_PKG_VERSION")
        );
        assert_eq!(banner().render(), wanted);
    }

    #[test]
    fn nothing_missing_is_not_a_line() {
        let text = Banner {
            ring_missing: Vec::new(),
            ..banner()
        }
        .render();
        assert!(!text.contains("missing"), "{text}");
    }
}
