//! What is wanted of a machine: one declarative table, and the types that its rows are made of.
//!
//! A row says what a setting is, which value each profile wants and by which rule, why, and what can go wrong. It knows no
//! machine: `items` lays the table over an inventory. `sysctl/README.md` shows the same rows to people, and a test holds the
//! two together.

mod profile;
mod table;

pub use profile::{Base, Profile, ProfileError};
pub use table::TABLE;

use serde::Serialize;

/// One setting.
#[derive(Debug)]
pub struct Row {
    /// Its name here; a sysctl's own where it is one.
    pub key: &'static str,
    /// Where it is found on a machine.
    pub place: Place,
    /// How the wanted value is to be read.
    pub rule: Rule,
    /// What the profile `throughput` wants; None leaves it as it is.
    pub throughput: Option<&'static str>,
    /// What the profile `latency` wants; None leaves it as it is.
    pub latency: Option<&'static str>,
    /// What a profile file may ask for.
    pub allowed: Allowed,
    /// Machines on which it is wanted at all.
    pub only: Only,
    /// How far it reaches.
    pub scope: Scope,
    /// Why it is wanted.
    pub why: &'static str,
    /// What it costs or can break.
    pub risk: &'static str,
}

/// Where a setting is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Below /proc/sys, at the path that the key names.
    Sysctl,
    /// One file.
    Path(&'static str),
    /// This file in the queue directory of every disk under the data.
    Disk(&'static str),
    /// This file of every group of cores that share a frequency.
    Frequency(&'static str),
    /// A part of every network card.
    Nic(NicPart),
    /// Something that is only read.
    Reading(Reading),
}

/// A part of a network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NicPart {
    /// Which driver it has: decides whether the others are touched.
    Driver,
    /// Pairs of queues.
    Channels,
    /// Receive descriptors.
    RingRx,
    /// Adaptive interrupt delay.
    AdaptiveRx,
    /// Fixed interrupt delay.
    RxUsecs,
    /// Cores that take a queue's interrupt.
    IrqAffinity,
    /// Cores whose packets leave by a queue.
    Xps,
    /// Cores that a receive queue's packets are handed to.
    Rps,
    /// Flows that a receive queue remembers.
    RpsFlows,
    /// Work that the card or the kernel does for many packets at once.
    Offloads,
}

/// What is read and never written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// Open files that this process may have.
    OpenFiles,
    /// Bytes that this process may lock.
    LockedBytes,
    /// Whether the filesystem flushes the device's cache.
    Barrier,
    /// Whether every deletion is sent to the device at once.
    Discard,
    /// Whether free blocks are sent to the device by a timer instead.
    FstrimTimer,
    /// Cores that the scheduler leaves alone from boot on.
    IsolatedCores,
    /// Whether irqbalance moves interrupts behind our back.
    IrqBalance,
}

/// How a wanted value is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// This value.
    Exactly,
    /// A capacity: this or more. Raised, never lowered.
    AtLeast,
    /// This or less. Lowered, never raised.
    AtMost,
    /// The last of several numbers is a capacity; the others stay.
    LastAtLeast,
    /// Follows from cores, nodes and queues.
    FromTopology,
    /// Only looked at; what to do where it differs.
    Expected(&'static str),
    /// Only looked at, and more is fine too.
    ExpectedAtLeast(&'static str),
}

/// What a profile file may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// A whole number in this range.
    Number(u64, u64),
    /// One of these words.
    Word(&'static [&'static str]),
    /// Nothing: it can be skipped, not set.
    Nothing,
}

/// Machines on which a row is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Only {
    /// All.
    Always,
    /// With more than one node.
    Numa,
    /// With more physical cores than this.
    CoresAbove(usize),
    /// With at least so many GiB of memory.
    MemoryGib(u64),
    /// Whose receive path had to stop with packets left, often.
    Squeezed,
    /// Whose clock is read through a device while a fast one is offered.
    SlowClock,
    /// Cards that have dropped packets for want of a descriptor.
    Missed,
    /// NVMe disks.
    Nvme,
    /// NVMe disks and those of a hypervisor.
    DeepQueue,
}

/// How far a setting reaches, and how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The whole machine, until it boots.
    Host,
    /// One network namespace, until it ends.
    NetworkNamespace,
    /// The whole machine, from the next boot on.
    Boot,
    /// One socket: the server's own business.
    Socket,
    /// One process and its children.
    Process,
}

impl Row {
    /// What the built-in profile wants.
    #[must_use]
    pub fn value(&self, base: Base) -> Option<&'static str> {
        match base {
            Base::Throughput => self.throughput,
            Base::Latency => self.latency,
        }
    }

    /// What a process must be allowed to do to change it.
    #[must_use]
    pub fn capability(&self) -> &'static str {
        match (self.place, self.rule) {
            (_, Rule::Expected(_) | Rule::ExpectedAtLeast(_)) => "none: it is only read",
            (Place::Sysctl, _) if self.scope == Scope::NetworkNamespace => "CAP_NET_ADMIN",
            (
                Place::Nic(
                    NicPart::Channels | NicPart::RingRx | NicPart::AdaptiveRx | NicPart::RxUsecs,
                ),
                _,
            ) => "CAP_NET_ADMIN",
            _ => "CAP_SYS_ADMIN",
        }
    }

    /// The row with this key.
    #[must_use]
    pub fn named(key: &str) -> Option<&'static Row> {
        TABLE.iter().find(|row| row.key == key)
    }
}

#[cfg(test)]
mod tests;
