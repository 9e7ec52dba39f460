//! Network cards: driver, queues, interrupts, rings, coalescing and offloads.
//!
//! What a driver is known to do stands in one table; a card whose driver is not in it is looked at and left as it is.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{Environment, Interrupt, names, number, text};
use crate::ethtool::{self, Setting};
use crate::system::System;

/// What is known of a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Driver {
    /// As sysfs names it.
    pub name: &'static str,
    /// Queues beyond which its hashing does not spread packets.
    pub queues_max: u64,
    /// Words in the names of interrupts that belong to a queue.
    #[serde(skip)]
    queue_words: &'static [&'static str],
}

const DRIVERS: [Driver; 9] = [
    driver("virtio_net", 256, &["input", "output"]),
    driver("ena", 32, &["Tx-Rx"]),
    driver("gve", 64, &["ntfy-block", "ntfy-blk"]),
    driver("ixgbe", 16, &["TxRx"]),
    driver("ixgbevf", 4, &["TxRx"]),
    driver("i40e", 64, &["TxRx"]),
    driver("iavf", 16, &["TxRx"]),
    driver("ice", 256, &["TxRx"]),
    driver("mlx5_core", 256, &["mlx5_comp"]),
];

const fn driver(
    name: &'static str,
    queues_max: u64,
    queue_words: &'static [&'static str],
) -> Driver {
    Driver {
        name,
        queues_max,
        queue_words,
    }
}

/// A network card.
#[derive(Clone, Debug, Serialize)]
pub struct Nic {
    /// Interface name.
    pub name: String,
    /// Driver, as sysfs names it; None for virtual interfaces.
    pub driver: Option<String>,
    /// What is known of that driver.
    pub known: Option<Driver>,
    /// `up`, `down`, `unknown`.
    pub state: String,
    /// Megabits per second, where the card says.
    pub speed_mbit: Option<i64>,
    /// Node that it is attached to.
    pub node: Option<usize>,
    /// Whether a default route leaves through it.
    pub default_route: bool,
    /// Receive queues.
    pub receive_queues: usize,
    /// Send queues.
    pub send_queues: usize,
    /// Queues in force and possible, as ethtool counts them.
    pub channels: Option<(u64, u64)>,
    /// Receive descriptors in force and possible.
    pub ring_rx: Option<(u64, u64)>,
    /// Whether interrupt delay adapts itself.
    pub adaptive_rx: Option<String>,
    /// Microseconds before a receive interrupt.
    pub rx_usecs: Option<u64>,
    /// Offloads that matter here, `on` or `off`.
    pub offloads: BTreeMap<String, String>,
    /// Packets that the card dropped for want of a descriptor, since it came up.
    pub missed: u64,
    /// Interrupts of its queues.
    pub interrupts: Vec<Interrupt>,
}

/// The cards that this process may see, and whether ethtool was there to be asked.
pub(super) fn gather(system: &dyn System, environment: &Environment) -> (Vec<Nic>, bool) {
    let mut ethtool_there = false;
    if !environment.sysfs_of_this_network {
        return (Vec::new(), ethtool_there);
    }
    let interrupts = text(system, "/proc/interrupts").unwrap_or_default();
    let routes = Routes {
        v4: text(system, "/proc/net/route").unwrap_or_default(),
        v6: text(system, "/proc/net/ipv6_route").unwrap_or_default(),
    };
    let nics = names(system, "/sys/class/net")
        .into_iter()
        .filter(|name| name != "lo" && name != "bonding_masters")
        .map(|name| {
            let (nic, asked) = Nic::gather(system, name, &interrupts, &routes);
            ethtool_there |= asked;
            nic
        })
        .collect();
    (nics, ethtool_there)
}

/// Both routing tables, as the kernel prints them.
struct Routes {
    v4: String,
    v6: String,
}

impl Routes {
    /// Whether a default route leaves through this interface, or through one that is built on it (bond, bridge, VLAN).
    fn default_through(&self, system: &dyn System, name: &str, depth: usize) -> bool {
        let v6 = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words.len() > 9
                && words[9] == name
                && words[1] == "00"
                && words[0].bytes().all(|byte| byte == b'0')
        };
        if self.v4.lines().any(|line| is_default_route(line, name)) || self.v6.lines().any(v6) {
            return true;
        }
        let above = names(system, &format!("/sys/class/net/{name}"));
        depth < 8
            && above
                .iter()
                .filter_map(|entry| entry.strip_prefix("upper_"))
                .any(|upper| self.default_through(system, upper, depth + 1))
    }
}

/// Whether a line of /proc/net/route is a default route through this interface.
fn is_default_route(line: &str, name: &str) -> bool {
    let words: Vec<&str> = line.split_whitespace().collect();
    words.len() > 7 && words[0] == name && words[1] == "00000000" && words[7] == "00000000"
}

impl Nic {
    fn gather(system: &dyn System, name: String, interrupts: &str, routes: &Routes) -> (Nic, bool) {
        let path = |file: &str| format!("/sys/class/net/{name}/{file}");
        let driver = system
            .link(&path("device/driver"))
            .ok()
            .and_then(|link| link.rsplit('/').next().map(str::to_owned));
        let known = DRIVERS
            .into_iter()
            .find(|known| Some(known.name) == driver.as_deref());
        let queues = names(system, &path("queues"));
        let count = |kind: &str| queues.iter().filter(|name| name.starts_with(kind)).count();
        // Virtual interfaces have no card behind them that ethtool could ask.
        let ask = |query: &str| driver.as_ref().map(|_| system.ethtool(query, &name));
        let (rings, channels, coalesce, features) = (ask("-g"), ask("-l"), ask("-c"), ask("-k"));
        let asked = matches!(&features, Some(Ok(_)));
        let output = |answer: Option<std::io::Result<String>>| answer.and_then(Result::ok);
        let pair = |text: &Option<String>, setting: Setting| {
            let field = setting.words().field;
            let text = text.as_deref()?;
            Some((
                ethtool::current(text, field)?.parse().ok()?,
                ethtool::maximum(text, field)?,
            ))
        };
        let (rings, channels, coalesce) = (output(rings), output(channels), output(coalesce));
        let in_force = |setting: Setting| {
            coalesce
                .as_deref()
                .and_then(|text| ethtool::current(text, setting.words().field))
        };
        let missed = ["rx_missed_errors", "rx_fifo_errors"]
            .iter()
            .filter_map(|file| number::<u64>(system, &path(&format!("statistics/{file}"))))
            .sum();
        let nic = Nic {
            state: text(system, &path("operstate")).unwrap_or_default(),
            speed_mbit: number(system, &path("speed")).filter(|speed| *speed > 0),
            node: number(system, &path("device/numa_node")),
            default_route: routes.default_through(system, &name, 0),
            receive_queues: count("rx-"),
            send_queues: count("tx-"),
            channels: pair(&channels, Setting::Channels),
            ring_rx: pair(&rings, Setting::RingRx),
            adaptive_rx: in_force(Setting::AdaptiveRx),
            rx_usecs: in_force(Setting::RxUsecs).and_then(|text| text.parse().ok()),
            offloads: output(features).map_or_else(BTreeMap::new, |text| offloads(&text)),
            missed,
            interrupts: known.map_or_else(Vec::new, |known| {
                queue_interrupts(system, &name, known, interrupts)
            }),
            driver,
            known,
            name,
        };
        (nic, asked)
    }
}

/// The offloads that matter to TCP, as `ethtool -k` names them.
pub(crate) const OFFLOADS: [&str; 3] = [
    "generic-receive-offload",
    "generic-segmentation-offload",
    "tcp-segmentation-offload",
];

fn offloads(text: &str) -> BTreeMap<String, String> {
    let value = |name: &&str| Some(((*name).to_owned(), ethtool::current(text, name)?));
    OFFLOADS.iter().filter_map(value).collect()
}

/// Interrupts of this card's queues: those that the device owns, or where that is not said, those that carry its name.
fn queue_interrupts(system: &dyn System, nic: &str, known: Driver, table: &str) -> Vec<Interrupt> {
    let device = format!("/sys/class/net/{nic}/device");
    let owned: Vec<u32> = ["msi_irqs", "../msi_irqs"]
        .iter()
        .map(|directory| names(system, &format!("{device}/{directory}")))
        .find(|names| !names.is_empty())
        .unwrap_or_default()
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    // A virtio card's interrupts carry the name of its virtio device.
    let alias = system
        .link(&device)
        .ok()
        .and_then(|link| link.rsplit('/').next().map(str::to_owned))
        .unwrap_or_default();
    Interrupt::of_queues(system, table, |number, name| {
        let ours = owned.contains(&number)
            || owned.is_empty() && (name.contains(nic) || name.starts_with(&format!("{alias}-")));
        ours && known.queue_words.iter().any(|word| name.contains(word))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_route_has_neither_destination_nor_mask() {
        let line = "eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0";
        assert!(is_default_route(line, "eth0") && !is_default_route(line, "eth1"));
        let line = "eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0";
        assert!(!is_default_route(line, "eth0"));
    }
}
