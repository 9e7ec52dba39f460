//! Which core takes which queue's interrupts: decided from cores, nodes and queues, once for each card.
//!
//! - Four cores or fewer, or a driver that nobody has looked at: nothing is moved. There is no core to spare, and one that
//!   takes all interrupts would be the bottleneck.
//! - A queue for every physical core: queue i belongs to core i, where the packet's shard runs. RPS and RFS are off.
//! - Fewer queues: one core in sixteen takes interrupts, spread evenly over the nodes, and the kernel hands packets on to
//!   all the others (RPS, with RFS so that a flow goes where it is read).

use crate::inventory::{Cpu, Nic};

/// With this many physical cores or fewer nothing is dedicated.
pub const CORES_SHARED_MAX: usize = 4;
/// Physical cores for each that takes interrupts.
const CORES_PER_IRQ_CORE: usize = 16;
/// Flows in the kernel's table when it spreads packets.
pub const FLOWS: u64 = 32_768;

/// How the packets of one card reach the shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Steering {
    /// Nothing is moved; why.
    Leave(String),
    /// A queue for every core: core of queue i.
    QueuePerCore(Vec<usize>),
    /// Fewer queues than cores.
    Spread {
        /// Threads that take interrupts, one of each core chosen.
        irq_cores: Vec<usize>,
        /// Threads of all other cores.
        compute: Vec<usize>,
    },
}

/// Queues that a card should have.
#[must_use]
pub fn queues_wanted(cpu: &Cpu, nic: &Nic) -> Option<u64> {
    let (now, most) = nic.channels?;
    let known = nic.known?;
    let cores = cpu.cores.len();
    if cores <= CORES_SHARED_MAX {
        return None;
    }
    let possible = most.min(known.queues_max);
    let wanted = if possible >= cores as u64 {
        cores as u64
    } else {
        irq_cores(cpu).len() as u64
    };
    Some(wanted.max(now))
}

/// One core in sixteen, at least one, the first ones of every node in turn.
fn irq_cores(cpu: &Cpu) -> Vec<usize> {
    let count = (cpu.cores.len() / CORES_PER_IRQ_CORE).max(1);
    let mut chosen = Vec::new();
    let mut round = 0;
    while chosen.len() < count {
        for node in &cpu.nodes {
            let core = cpu
                .cores
                .iter()
                .filter(|core| core.node == *node)
                .nth(round);
            if let Some(core) = core.filter(|_| chosen.len() < count) {
                chosen.push(core.threads[0]);
            }
        }
        round += 1;
    }
    chosen.sort_unstable();
    chosen
}

impl Steering {
    /// Decides for a card that has `queues` of them.
    #[must_use]
    pub fn of(cpu: &Cpu, nic: &Nic, queues: u64) -> Steering {
        let Some(known) = nic.known else {
            return Steering::Leave("the driver is not in the table".to_owned());
        };
        if cpu.cores.len() <= CORES_SHARED_MAX {
            return Steering::Leave(format!(
                "on {CORES_SHARED_MAX} cores or fewer every core takes its share of interrupts"
            ));
        }
        if nic.interrupts.is_empty() {
            return Steering::Leave(format!(
                "no interrupt of a queue of {} was found",
                known.name
            ));
        }
        if queues >= cpu.cores.len() as u64 {
            return Steering::QueuePerCore(cpu.cores.iter().map(|core| core.threads[0]).collect());
        }
        let irq_cores = irq_cores(cpu);
        let compute = cpu
            .cores
            .iter()
            .filter(|core| !irq_cores.contains(&core.threads[0]))
            .flat_map(|core| core.threads.iter().copied())
            .collect();
        Steering::Spread { irq_cores, compute }
    }

    /// The core for a queue's interrupt.
    #[must_use]
    pub fn core_of(&self, queue: usize) -> Option<usize> {
        match self {
            Steering::Leave(_) => None,
            Steering::QueuePerCore(cores) => Some(cores[queue % cores.len()]),
            Steering::Spread { irq_cores, .. } => Some(irq_cores[queue % irq_cores.len()]),
        }
    }

    /// Threads that send by a queue, of `queues`: its own core, or an equal part of those that compute.
    #[must_use]
    pub fn senders(&self, queue: usize, queues: usize) -> Vec<usize> {
        match self {
            Steering::Leave(_) => Vec::new(),
            Steering::QueuePerCore(cores) => cores.get(queue).copied().into_iter().collect(),
            Steering::Spread { compute, .. } => {
                let part = compute.iter().skip(queue).step_by(queues.max(1));
                part.copied().collect()
            }
        }
    }

    /// Threads that a receive queue's packets are handed to; none where they stay.
    #[must_use]
    pub fn handed_to(&self) -> Option<&[usize]> {
        match self {
            Steering::Leave(_) => None,
            Steering::QueuePerCore(_) => Some(&[]),
            Steering::Spread { compute, .. } => Some(compute),
        }
    }
}
