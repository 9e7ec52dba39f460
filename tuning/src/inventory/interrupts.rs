//! Interrupts as `/proc/interrupts` lists them: numbers, names, and the cores that they go to.

use serde::Serialize;

use super::{cpu_list, text};
use crate::system::System;

/// An interrupt of a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Interrupt {
    /// The kernel's number.
    pub number: u32,
    /// What the driver calls it.
    pub name: String,
    /// The queue it belongs to.
    pub queue: usize,
    /// Cores it may be delivered to.
    pub affinity: Vec<usize>,
}

impl Interrupt {
    /// Those of queues in `/proc/interrupts` whose number and name `ours` takes.
    pub(super) fn of_queues(
        system: &dyn System,
        table: &str,
        ours: impl Fn(u32, &str) -> bool,
    ) -> Vec<Interrupt> {
        let line = |line: &str| {
            let (number, rest) = line.split_once(':')?;
            let number: u32 = number.trim().parse().ok()?;
            let name = rest.split_whitespace().last()?;
            let queue = queue_of(name).filter(|_| ours(number, name))?;
            let affinity = text(system, &format!("/proc/irq/{number}/smp_affinity_list"));
            Some(Interrupt {
                number,
                name: name.to_owned(),
                queue,
                affinity: cpu_list(&affinity.unwrap_or_default()),
            })
        };
        table.lines().filter_map(line).collect()
    }
}

/// The number at the end of `eth0-TxRx-3`, `virtio2-input.0`, `mlx5_comp7@pci:0000:3b:00.0`.
fn queue_of(name: &str) -> Option<usize> {
    let name = name.split('@').next()?;
    let digits = name.len() - name.trim_end_matches(|c: char| c.is_ascii_digit()).len();
    name[name.len() - digits..].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_is_the_number_at_the_end() {
        for (name, queue) in [
            ("eth0-TxRx-3", Some(3)),
            ("virtio2-input.0", Some(0)),
            ("nvme0q12", Some(12)),
            ("mlx5_comp17@pci:0000:3b:00.0", Some(17)),
            ("eth0-Tx-Rx-7", Some(7)),
            ("mlx5_async0@pci:0000:3b:00.0", Some(0)),
            ("virtio2-config", None),
        ] {
            assert_eq!(queue_of(name), queue, "{name}");
        }
    }
}
