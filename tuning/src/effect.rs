//! What shows that a value in force does what it is for. Most settings show nothing of the kind: reading them again is all
//! that can be done, and `verify` says so.
//!
//! Interrupts are counted by the kernel for each core, so where they went since they were sent elsewhere can be told; the
//! counts of that moment are kept in the journal.

use std::collections::BTreeMap;

use crate::ethtool::Setting;
use crate::inventory::{cpu_list, cpu_ranges, names, text};
use crate::system::System;
use crate::target::Target;

/// Interrupts that each core has taken, by interrupt number.
pub type Interrupts = BTreeMap<String, BTreeMap<usize, u64>>;

/// Of interrupts sent elsewhere the kernel moves some with the next one that arrives: so many strays are no finding.
const STRAYS_MAX: u64 = 16;

/// What was seen of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It does what it is for: what shows it.
    Seen(String),
    /// It does not: what shows that.
    Missing(String),
}

/// Looks at what `now`, in force at `target`, does. None: nothing shows it. `then`: interrupts taken when it was set.
pub fn effect(
    system: &dyn System,
    target: &Target,
    now: &str,
    then: &Interrupts,
) -> Option<Effect> {
    match target {
        Target::File { path, .. } => {
            let number = interrupt_of(path)?;
            interrupt(system, number, &cpu_list(now), then.get(number))
        }
        Target::Ethtool { nic, setting } if *setting == Setting::Channels => {
            let queues = names(system, &format!("/sys/class/net/{nic}/queues"));
            let receive = queues.iter().filter(|name| name.starts_with("rx-")).count();
            let wanted: usize = now.parse().ok()?;
            let shown = format!("the card shows {receive} receive queues");
            Some(match receive < wanted {
                true => Effect::Missing(shown),
                false => Effect::Seen(shown),
            })
        }
        Target::Ethtool { .. } => None,
    }
}

/// The number in `/proc/irq/30/smp_affinity_list`.
fn interrupt_of(path: &str) -> Option<&str> {
    path.strip_prefix("/proc/irq/")?
        .strip_suffix("/smp_affinity_list")
}

fn interrupt(
    system: &dyn System,
    number: &str,
    allowed: &[usize],
    then: Option<&BTreeMap<usize, u64>>,
) -> Option<Effect> {
    let effective = text(
        system,
        &format!("/proc/irq/{number}/effective_affinity_list"),
    )?;
    if cpu_list(&effective)
        .iter()
        .any(|core| !allowed.contains(core))
    {
        let shown = format!("the interrupt still goes to core {effective}");
        return Some(Effect::Missing(shown));
    }
    let since = then.and_then(|then| {
        let now = taken(system).remove(number)?;
        let since = |core: &usize, now: &u64| now.saturating_sub(*then.get(core).unwrap_or(&0));
        Some(
            now.iter()
                .map(|(core, count)| (*core, since(core, count)))
                .filter(|(_, count)| *count > 0)
                .collect::<Vec<_>>(),
        )
    });
    let Some(since) = since.filter(|since| !since.is_empty()) else {
        let shown = format!("the interrupt goes to core {effective}; none has come since");
        return Some(Effect::Seen(shown));
    };
    let all: u64 = since.iter().map(|(_, count)| count).sum();
    let strays: u64 = since
        .iter()
        .filter(|(core, _)| !allowed.contains(core))
        .map(|(_, count)| count)
        .sum();
    if strays > STRAYS_MAX && strays > all / 100 {
        let shown = format!("{strays} of {all} interrupts since went to other cores");
        return Some(Effect::Missing(shown));
    }
    let cores: Vec<usize> = since.iter().map(|(core, _)| *core).collect();
    let shown = format!("{all} interrupts since, to core {}", cpu_ranges(&cores));
    Some(Effect::Seen(shown))
}

/// What the interrupts at `targets` have been taken by so far.
pub fn taken_at<'a>(system: &dyn System, targets: impl Iterator<Item = &'a Target>) -> Interrupts {
    let wanted: Vec<&str> = targets
        .filter_map(|target| match target {
            Target::File { path, .. } => interrupt_of(path),
            Target::Ethtool { .. } => None,
        })
        .collect();
    if wanted.is_empty() {
        return Interrupts::new();
    }
    let mut all = taken(system);
    all.retain(|number, _| wanted.contains(&number.as_str()));
    all
}

/// `/proc/interrupts`: a heading with a column for each online core, then a line for each interrupt.
fn taken(system: &dyn System) -> Interrupts {
    let table = text(system, "/proc/interrupts").unwrap_or_default();
    let mut lines = table.lines();
    let cores: Vec<usize> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .filter_map(|name| name.strip_prefix("CPU")?.parse().ok())
        .collect();
    lines
        .filter_map(|line| {
            let (number, counts) = line.trim_start().split_once(':')?;
            let counts = counts.split_whitespace().map_while(|n| n.parse().ok());
            Some((
                number.to_owned(),
                cores.iter().copied().zip(counts).collect(),
            ))
        })
        .collect()
}
