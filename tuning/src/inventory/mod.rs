//! What a machine is: a read-only inventory, for people, for programs (JSON) and for the table of settings.
//!
//! Gathering never fails. What the machine does not say is None or empty, and the settings that need it are then reported as
//! unsupported. Nothing here decides what a value should be.

mod cpu;
mod disk;
mod environment;
mod groups;
mod interrupts;
mod nic;

pub use cpu::{Cache, Core, Cpu, FrequencyPolicy};
pub use disk::{Data, Disk};
pub use environment::{Environment, Kernel, Limits, Memory, SoftNet};
pub use groups::Groups;
pub use interrupts::Interrupt;
pub use nic::{Driver, Nic};

use serde::Serialize;

use crate::system::System;

/// Everything that is known of a machine.
#[derive(Clone, Debug, Serialize)]
pub struct Inventory {
    /// Kernel, boot and what it runs on.
    pub kernel: Kernel,
    /// Containers, namespaces, capabilities: what this process may touch.
    pub environment: Environment,
    /// Cores, nodes, caches, frequency and idle drivers.
    pub cpu: Cpu,
    /// Memory and its settings.
    pub memory: Memory,
    /// What this process may use.
    pub limits: Limits,
    /// What its control groups leave it.
    pub groups: Groups,
    /// Clock in use, and those that the kernel offers.
    pub clocksource: Option<Choice>,
    /// Network cards of this namespace, without loopback.
    pub nics: Vec<Nic>,
    /// Packets that the kernel's receive path dropped, and rounds that it had to cut short, since boot.
    pub soft_net: SoftNet,
    /// Whether ethtool is there; without it rings, channels and coalescing are unknown.
    pub ethtool: bool,
    /// Whether irqbalance runs.
    pub irqbalance: bool,
    /// Whether its configuration bans interrupts from it.
    pub irqbalance_bans: bool,
    /// Where the data directory lies.
    pub data: Data,
}

/// One of several words, as the kernel writes them: `always [madvise] never`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Choice {
    /// The one in force.
    pub current: String,
    /// All that can be chosen.
    pub offered: Vec<String>,
}

impl Choice {
    pub(crate) fn parse(text: &str) -> Option<Choice> {
        let current = text.split_whitespace().find(|word| word.starts_with('['))?;
        let bare = |word: &str| word.trim_matches(['[', ']']).to_owned();
        Some(Choice {
            current: bare(current),
            offered: text.split_whitespace().map(bare).collect(),
        })
    }
}

impl Inventory {
    /// Looks at a machine; `data` is the directory that the engine keeps its data in.
    pub fn gather(system: &dyn System, data: &str) -> Inventory {
        let environment = Environment::gather(system);
        let memory = Memory::gather(system);
        let kernel = Kernel::gather(system);
        let cpu = Cpu::gather(system);
        let (nics, ethtool) = nic::gather(system, &environment);
        let clock = "/sys/devices/system/clocksource/clocksource0";
        Inventory {
            kernel,
            cpu,
            memory,
            limits: Limits::gather(system),
            groups: Groups::gather(system),
            clocksource: text(system, &format!("{clock}/current_clocksource")).map(|current| {
                Choice {
                    current,
                    offered: words(system, &format!("{clock}/available_clocksource")),
                }
            }),
            nics,
            soft_net: SoftNet::gather(system),
            ethtool,
            irqbalance: text(system, "/run/irqbalance.pid")
                .or_else(|| text(system, "/run/irqbalance/irqbalance.pid"))
                .is_some()
                || system
                    .list("/run/irqbalance")
                    .is_ok_and(|names| names.iter().any(|name| name.ends_with(".sock"))),
            irqbalance_bans: IRQBALANCE_PATHS.iter().any(|path| {
                text(system, path).is_some_and(|text| {
                    text.lines()
                        .any(|line| !line.starts_with('#') && line.contains("--banirq"))
                })
            }),
            data: Data::gather(system, data),
            environment,
        }
    }
}

/// Where distributions keep irqbalance's own settings.
pub(crate) const IRQBALANCE_PATHS: [&str; 2] =
    ["/etc/default/irqbalance", "/etc/sysconfig/irqbalance"];

/// A file's text without the white space around it; None if it cannot be read.
pub(crate) fn text(system: &dyn System, path: &str) -> Option<String> {
    system.read(path).ok().map(|text| text.trim().to_owned())
}

pub(crate) fn number<T: std::str::FromStr>(system: &dyn System, path: &str) -> Option<T> {
    text(system, path)?.parse().ok()
}

fn words(system: &dyn System, path: &str) -> Vec<String> {
    let text = text(system, path).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Names in a directory, none if it is not there.
pub(crate) fn names(system: &dyn System, path: &str) -> Vec<String> {
    system.list(path).unwrap_or_default()
}

/// `0-3,8` as numbers.
pub(crate) fn cpu_list(text: &str) -> Vec<usize> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) {
            cpus.extend(first..=last.min(first + 65_535));
        }
    }
    cpus
}

/// Numbers as `0-3,8`.
#[must_use]
pub fn cpu_ranges(cpus: &[usize]) -> String {
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for cpu in sorted {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let text = |(first, last): &(usize, usize)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    ranges.iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cores_come_back_as_they_went() {
        for text in ["0", "0-3", "0,2-5,64-127", ""] {
            assert_eq!(cpu_ranges(&cpu_list(text)), text);
        }
        assert_eq!(cpu_ranges(&[3, 1, 2, 2]), "1-3");
        assert_eq!(cpu_list("x,1-,2"), [2]);
    }

    #[test]
    fn a_choice_is_the_word_in_brackets() {
        let choice = Choice::parse("none [mq-deadline] bfq").expect("a choice");
        assert_eq!(choice.current, "mq-deadline");
        assert_eq!(choice.offered, ["none", "mq-deadline", "bfq"]);
        assert_eq!(Choice::parse("none"), None);
    }
}
