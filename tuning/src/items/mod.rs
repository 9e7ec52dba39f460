//! The table laid over one machine: every setting that it has, its value, and what is wanted of it.
//!
//! Reads the inventory and the settings themselves; writes nothing and judges nothing (`check` does).

mod nics;

use crate::inventory::{Disk, FrequencyPolicy, Inventory};
use crate::settings::{Only, Place, Profile, Reading, Row, Rule, TABLE};
use crate::steering::{FLOWS, Steering};
use crate::system::System;
use crate::target::{Shape, Target, mask_of};

/// A setting of this machine.
#[derive(Clone, Debug)]
pub struct Item {
    /// The row that it comes from.
    pub row: &'static Row,
    /// Which of several: `vda`, `eth0/rx-3`. None where there is one.
    pub instance: Option<String>,
    /// Where it is written; None for what is only read.
    pub target: Option<Target>,
    /// What is in force; None if this machine does not have it.
    pub current: Option<String>,
    /// What is wanted.
    pub want: Want,
    /// Whether changing it resets the card of the default route.
    pub cuts_the_network: bool,
    /// Settings that the kernel changes along with it: they are part of what has to be put back.
    pub drags: Vec<Target>,
}

/// What is wanted of a setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// This value.
    Exactly(String),
    /// This or more.
    AtLeast(u64),
    /// This or less.
    AtMost(u64),
    /// The last of several numbers this or more.
    LastAtLeast(u64),
    /// Only looked at: this, or what to do.
    Expected(String, &'static str),
    /// Only looked at: this or more, or what to do.
    ExpectedAtLeast(u64, &'static str),
    /// Nothing; why.
    Leave(String),
    /// It cannot be had here; why.
    Unsupported(String),
}

impl Want {
    /// Whether a value in force is what is wanted.
    #[must_use]
    pub fn is_met_by(&self, current: &str) -> bool {
        let number = |text: &str| text.parse::<u64>().ok();
        match self {
            Want::Exactly(value) | Want::Expected(value, _) => value == current,
            Want::AtLeast(floor) | Want::ExpectedAtLeast(floor, _) => {
                number(current).is_some_and(|n| n >= *floor)
            }
            Want::AtMost(ceiling) => number(current).is_some_and(|n| n <= *ceiling),
            Want::LastAtLeast(floor) => current
                .rsplit(' ')
                .next()
                .and_then(number)
                .is_some_and(|n| n >= *floor),
            Want::Leave(_) | Want::Unsupported(_) => true,
        }
    }

    /// What is written where `current` is in force.
    #[must_use]
    pub fn value(&self, current: &str) -> Option<String> {
        match self {
            Want::Exactly(value) => Some(value.clone()),
            Want::AtLeast(number) | Want::AtMost(number) => Some(number.to_string()),
            Want::LastAtLeast(number) => {
                let (first, _) = current.rsplit_once(' ')?;
                Some(format!("{first} {number}"))
            }
            _ => None,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Want::Exactly(value) | Want::Expected(value, _) => value.clone(),
            Want::AtLeast(n) | Want::ExpectedAtLeast(n, _) => format!("at least {n}"),
            Want::AtMost(n) => format!("at most {n}"),
            Want::LastAtLeast(n) => format!("last at least {n}"),
            Want::Leave(_) | Want::Unsupported(_) => "as it is".to_owned(),
        }
    }
}

/// Every setting of this machine, in the order in which they are changed.
pub fn items(
    system: &dyn System,
    inventory: &Inventory,
    profile: &Profile,
    force: bool,
) -> Vec<Item> {
    let over = Over {
        system,
        inventory,
        profile,
        force,
    };
    TABLE.iter().flat_map(|row| over.row(row)).collect()
}

/// What the table is laid over.
struct Over<'a> {
    system: &'a dyn System,
    inventory: &'a Inventory,
    profile: &'a Profile,
    force: bool,
}

fn leave(reason: impl Into<String>) -> Want {
    Want::Leave(reason.into())
}

impl Over<'_> {
    fn row(&self, row: &'static Row) -> Vec<Item> {
        match row.place {
            Place::Sysctl => {
                let path = format!("/proc/sys/{}", row.key.replace('.', "/"));
                vec![self.of_machine(row, Target::words(path))]
            }
            Place::Path(path) => {
                let shape = match row.key {
                    "workqueue.cpumask" => Shape::Mask,
                    _ => Shape::Choice,
                };
                vec![self.of_machine(row, Target::shaped(path, shape))]
            }
            Place::Frequency(file) => self.of_frequency(row, file),
            Place::Disk(file) => self.of_disks(row, file),
            Place::Nic(part) => self.of_nics(row, part),
            Place::Reading(reading) => vec![self.reading(row, reading)],
        }
    }

    fn item(
        &self,
        row: &'static Row,
        instance: Option<String>,
        target: Target,
        want: Want,
    ) -> Item {
        Item {
            row,
            instance,
            current: target.read(self.system).ok(),
            target: Some(target),
            want,
            cuts_the_network: false,
            drags: Vec::new(),
        }
    }

    /// What the row's own rule makes of the profile's value.
    fn want(&self, row: &Row) -> Want {
        let Some(value) = self.profile.value(row) else {
            return leave(if self.profile.skips(row) {
                format!("{} skips it", self.profile.name)
            } else {
                format!(
                    "the profile {} leaves it as it is",
                    self.profile.base.name()
                )
            });
        };
        if let Some(reason) = self.not_wanted(row.only) {
            return leave(reason);
        }
        let number = || value.parse::<u64>().unwrap_or(0);
        match row.rule {
            Rule::Exactly => Want::Exactly(value.to_owned()),
            Rule::AtLeast => Want::AtLeast(number()),
            Rule::AtMost => Want::AtMost(number()),
            Rule::LastAtLeast => Want::LastAtLeast(number()),
            Rule::Expected(advice) => Want::Expected(value.to_owned(), advice),
            Rule::ExpectedAtLeast(advice) => Want::ExpectedAtLeast(number(), advice),
            Rule::FromTopology => leave("it follows from the machine's cores and queues"),
        }
    }

    /// Why machines like this one do not want a row.
    fn not_wanted(&self, only: Only) -> Option<String> {
        let inventory = self.inventory;
        match only {
            Only::Numa if inventory.cpu.nodes.len() < 2 => Some("the machine has one node".into()),
            Only::CoresAbove(cores) if inventory.cpu.cores.len() <= cores => {
                Some(format!("not on {cores} cores or fewer"))
            }
            Only::MemoryGib(gib) if inventory.memory.total_bytes < gib << 30 => {
                Some(format!("not below {gib} GiB of memory"))
            }
            Only::Squeezed => {
                let seen = inventory.soft_net;
                let rare = seen.squeezed.saturating_mul(1000) <= seen.processed;
                // Without the numbers: a file that is written anew would hold others each time.
                rare.then(|| {
                    "no more than one packet in a thousand ended a round with others left".into()
                })
            }
            Only::SlowClock => {
                let clock = inventory.clocksource.as_ref();
                let slow = clock.is_some_and(|clock| {
                    ["hpet", "acpi_pm", "jiffies", "refined-jiffies"]
                        .contains(&clock.current.as_str())
                        && clock.offered.iter().any(|name| name == "tsc")
                });
                (!slow)
                    .then(|| "the clock in use is fast, or the kernel offers no faster one".into())
            }
            _ => None,
        }
    }

    fn of_machine(&self, row: &'static Row, target: Target) -> Item {
        let want = if row.rule == Rule::FromTopology && self.profile.value(row).is_some() {
            self.topology_wants(row)
        } else {
            self.want(row)
        };
        self.item(row, None, target, want)
    }

    /// Rows of the whole machine that follow from how its cards are steered.
    fn topology_wants(&self, row: &Row) -> Want {
        let spread = self
            .inventory
            .nics
            .iter()
            .find_map(|nic| match self.steering(nic) {
                Steering::Spread { irq_cores, .. } => Some(irq_cores),
                _ => None,
            });
        match (row.key, spread) {
            (_, None) => leave("no card here has fewer queues than cores and is steered"),
            ("workqueue.cpumask", Some(irq_cores)) => Want::Exactly(mask_of(&irq_cores)),
            (_, Some(_)) => Want::AtLeast(FLOWS),
        }
    }

    fn of_frequency(&self, row: &'static Row, file: &str) -> Vec<Item> {
        let policies = &self.inventory.cpu.frequency;
        if policies.is_empty() {
            let why = "the kernel cannot set frequencies here (in a guest the host does)";
            return vec![absent(row, None, why)];
        }
        let preference = file == "energy_performance_preference";
        if preference && policies.iter().all(|policy| policy.preference.is_none()) {
            return vec![absent(row, None, "the driver has no such preference")];
        }
        let item = |policy: &FrequencyPolicy| {
            let path = format!("/sys/devices/system/cpu/cpufreq/{}/{file}", policy.name);
            let want = match self.want(row) {
                Want::Exactly(value)
                    if file == "scaling_governor" && !policy.governors.contains(&value) =>
                {
                    Want::Unsupported(format!("the driver offers {}", policy.governors.join(", ")))
                }
                want => want,
            };
            self.item(row, Some(policy.name.clone()), Target::words(path), want)
        };
        policies.iter().map(item).collect()
    }

    fn of_disks(&self, row: &'static Row, file: &str) -> Vec<Item> {
        let disks = &self.inventory.data.disks;
        if disks.is_empty() {
            let why = format!("{} is on no block device", self.inventory.data.path);
            return vec![absent(row, None, &why)];
        }
        disks
            .iter()
            .map(|disk| self.of_disk(row, file, disk))
            .collect()
    }

    fn of_disk(&self, row: &'static Row, file: &str, disk: &Disk) -> Item {
        let path = |file: &str| format!("/sys/block/{}/queue/{file}", disk.name);
        let choice = file == "scheduler";
        let shape = if choice { Shape::Choice } else { Shape::Words };
        let want = match (row.only, self.want(row)) {
            (Only::Nvme, _) if !disk.is_nvme() => leave("only for NVMe"),
            (Only::DeepQueue, _) if !(disk.is_nvme() || disk.is_virtual()) => {
                leave("only for NVMe and disks of a hypervisor")
            }
            (_, Want::Exactly(value)) if choice => match &disk.scheduler {
                Some(scheduler) if !scheduler.offered.contains(&value) => Want::Unsupported(
                    format!("the kernel offers {} for it", scheduler.offered.join(", ")),
                ),
                _ => Want::Exactly(value),
            },
            (_, want) => want,
        };
        let mut item = self.item(
            row,
            Some(disk.name.clone()),
            Target::shaped(path(file), shape),
            want,
        );
        if choice {
            item.drags = vec![
                Target::words(path("nr_requests")),
                Target::words(path("wbt_lat_usec")),
            ];
        }
        item
    }

    fn reading(&self, row: &'static Row, reading: Reading) -> Item {
        let inventory = self.inventory;
        let has = |option: &str| inventory.data.options.iter().any(|known| known == option);
        let on_disk = !inventory.data.disks.is_empty();
        let word = |yes: bool, word: &str, otherwise: &str| {
            Some(if yes { word } else { otherwise }.to_owned())
        };
        let current = match reading {
            Reading::OpenFiles => inventory.limits.open_files.map(|n| n.to_string()),
            Reading::LockedBytes => inventory.limits.locked_bytes.map(|n| n.to_string()),
            Reading::Barrier if on_disk => word(has("nobarrier") || has("barrier=0"), "off", "on"),
            Reading::Discard if on_disk => word(has("discard"), "on", "off"),
            Reading::FstrimTimer if inventory.environment.systemd => {
                word(inventory.data.fstrim_timer, "enabled", "not enabled")
            }
            Reading::IsolatedCores => {
                let words = inventory.kernel.command_line.split_whitespace();
                word(
                    words.clone().any(|word| word.starts_with("isolcpus=")),
                    self.profile.value(row).unwrap_or("isolated"),
                    "none",
                )
            }
            Reading::IrqBalance => word(
                inventory.irqbalance && !inventory.irqbalance_bans && self.steers_any(),
                "moves interrupts",
                "out of the way",
            ),
            Reading::Barrier | Reading::Discard => {
                let why = format!("{} is on no block device", inventory.data.path);
                return absent(row, None, &why);
            }
            Reading::FstrimTimer => return absent(row, None, "systemd does not run here"),
        };
        Item {
            current,
            want: self.want(row),
            ..absent(row, None, "")
        }
    }
}

/// An item that is not written: with a reason, because this machine does not have it.
fn absent(row: &'static Row, instance: Option<String>, reason: &str) -> Item {
    Item {
        row,
        instance,
        target: None,
        current: None,
        want: Want::Unsupported(reason.to_owned()),
        cuts_the_network: false,
        drags: Vec::new(),
    }
}

/// Cores that shards should keep to, where interrupts have cores of their own.
pub fn cores_left_for_shards(
    inventory: &Inventory,
    profile: &Profile,
    force: bool,
) -> Option<String> {
    let over = Over {
        system: &crate::recorded::Recorded::default(), // steering asks the inventory alone
        inventory,
        profile,
        force,
    };
    inventory
        .nics
        .iter()
        .find_map(|nic| match over.steering(nic) {
            Steering::Spread { irq_cores, .. } => {
                let cores = inventory.cpu.cores.iter().map(|core| core.threads[0]);
                let left: Vec<usize> = cores.filter(|core| !irq_cores.contains(core)).collect();
                Some(crate::inventory::cpu_ranges(&left))
            }
            _ => None,
        })
}
