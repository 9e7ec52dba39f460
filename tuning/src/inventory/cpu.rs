//! Cores as the scheduler sees them: which threads share one, which memory is near, how they slow down and sleep.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{cpu_list, names, number, text, words};
use crate::system::System;

const CPUS: &str = "/sys/devices/system/cpu";

/// The processors of a machine.
#[derive(Clone, Debug, Serialize)]
pub struct Cpu {
    /// What the processor calls itself.
    pub model: Option<String>,
    /// Threads that are online.
    pub online: Vec<usize>,
    /// Threads that this process may run on.
    pub allowed: Vec<usize>,
    /// Physical cores with their threads, node by node: the order in which `serve` places shards.
    pub cores: Vec<Core>,
    /// NUMA nodes that have cores.
    pub nodes: Vec<usize>,
    /// Whether some core runs two threads.
    pub smt: bool,
    /// Caches of the first core.
    pub caches: Vec<Cache>,
    /// Groups of cores that change their frequency together; none where nothing can be set.
    pub frequency: Vec<FrequencyPolicy>,
    /// Driver that puts idle cores to sleep.
    pub idle_driver: Option<String>,
    /// Sleep states of the first core with the microseconds that leaving them takes.
    pub idle_states: Vec<(String, u64)>,
}

/// One physical core.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Core {
    /// NUMA node it is on.
    pub node: usize,
    /// Its threads, lowest first.
    pub threads: Vec<usize>,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Cache {
    /// 1 to 3 or 4.
    pub level: u32,
    /// Data, Instruction or Unified.
    pub kind: String,
    /// As the kernel writes it: `32K`.
    pub size: String,
    /// Threads that share it.
    pub shared_by: String,
}

/// Cores that change their frequency together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FrequencyPolicy {
    /// Name of its directory: `policy0`.
    pub name: String,
    /// Governor in force.
    pub governor: String,
    /// Governors that can be chosen.
    pub governors: Vec<String>,
    /// Energy preference in force, where the driver has one.
    pub preference: Option<String>,
}

impl Cpu {
    pub(super) fn gather(system: &dyn System) -> Cpu {
        let online = cpu_list(&text(system, &format!("{CPUS}/online")).unwrap_or_default());
        let node_of = nodes(system);
        let cores = cores(system, &online, &node_of);
        let mut nodes: Vec<usize> = cores.iter().map(|core| core.node).collect();
        nodes.dedup();
        let information = text(system, "/proc/cpuinfo").unwrap_or_default();
        let status = text(system, "/proc/self/status").unwrap_or_default();
        let allowed = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .map_or_else(|| online.clone(), cpu_list);
        Cpu {
            model: information
                .lines()
                .find_map(|line| line.strip_prefix("model name"))
                .map(|rest| rest.trim_start_matches([' ', '\t', ':']).to_owned()),
            smt: cores.iter().any(|core| core.threads.len() > 1),
            caches: caches(system),
            frequency: frequency(system),
            idle_driver: text(system, &format!("{CPUS}/cpuidle/current_driver")),
            idle_states: idle_states(system),
            online,
            allowed,
            cores,
            nodes,
        }
    }

    /// Physical cores that this process may use.
    #[must_use]
    pub fn usable(&self) -> Vec<&Core> {
        let usable = |core: &&Core| core.threads.iter().any(|cpu| self.allowed.contains(cpu));
        self.cores.iter().filter(usable).collect()
    }
}

/// Node of every thread.
fn nodes(system: &dyn System) -> BTreeMap<usize, usize> {
    let directory = "/sys/devices/system/node";
    let mut node_of = BTreeMap::new();
    for name in names(system, directory) {
        let Some(node) = name.strip_prefix("node").and_then(|n| n.parse().ok()) else {
            continue;
        };
        let list = text(system, &format!("{directory}/{name}/cpulist")).unwrap_or_default();
        node_of.extend(cpu_list(&list).into_iter().map(|cpu| (cpu, node)));
    }
    node_of
}

fn cores(system: &dyn System, online: &[usize], node_of: &BTreeMap<usize, usize>) -> Vec<Core> {
    let mut cores: Vec<Core> = Vec::new();
    for cpu in online {
        let path = format!("{CPUS}/cpu{cpu}/topology/thread_siblings_list");
        let mut threads = text(system, &path).map_or_else(|| vec![*cpu], |list| cpu_list(&list));
        threads.retain(|thread| online.contains(thread));
        if threads.first().is_none_or(|first| first == cpu) {
            cores.push(Core {
                node: node_of.get(cpu).copied().unwrap_or(0),
                threads,
            });
        }
    }
    cores.sort_by_key(|core| core.node);
    cores
}

fn caches(system: &dyn System) -> Vec<Cache> {
    let directory = format!("{CPUS}/cpu0/cache");
    let read = |name: String| {
        let path = |file: &str| format!("{directory}/{name}/{file}");
        Some(Cache {
            level: number(system, &path("level"))?,
            kind: text(system, &path("type"))?,
            size: text(system, &path("size"))?,
            shared_by: text(system, &path("shared_cpu_list")).unwrap_or_default(),
        })
    };
    let indices = names(system, &directory)
        .into_iter()
        .filter(|name| name.starts_with("index"));
    indices.filter_map(read).collect()
}

fn frequency(system: &dyn System) -> Vec<FrequencyPolicy> {
    let directory = format!("{CPUS}/cpufreq");
    let read = |name: String| {
        let path = |file: &str| format!("{directory}/{name}/{file}");
        Some(FrequencyPolicy {
            governor: text(system, &path("scaling_governor"))?,
            governors: words(system, &path("scaling_available_governors")),
            preference: text(system, &path("energy_performance_preference")),
            name,
        })
    };
    let mut policies: Vec<(u32, FrequencyPolicy)> = names(system, &directory)
        .into_iter()
        .filter_map(|name| Some((name.strip_prefix("policy")?.parse().ok()?, read(name)?)))
        .collect();
    policies.sort_by_key(|(number, _)| *number);
    policies.into_iter().map(|(_, policy)| policy).collect()
}

fn idle_states(system: &dyn System) -> Vec<(String, u64)> {
    let directory = format!("{CPUS}/cpu0/cpuidle");
    let read = |name: String| {
        let path = |file: &str| format!("{directory}/{name}/{file}");
        Some((
            text(system, &path("name"))?,
            number(system, &path("latency"))?,
        ))
    };
    let states = names(system, &directory);
    states.into_iter().filter_map(read).collect()
}
