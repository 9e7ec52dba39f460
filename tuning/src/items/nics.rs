//! The rows of network cards: what ethtool knows, and where queues and interrupts belong.

use super::{Item, Over, Want, absent, leave};
use crate::ethtool::Setting;
use crate::inventory::Nic;
use crate::settings::{NicPart, Row};
use crate::steering::{FLOWS, Steering, queues_wanted};
use crate::target::{Shape, Target, mask_of};

impl Over<'_> {
    pub(super) fn steers_any(&self) -> bool {
        let nics = &self.inventory.nics;
        nics.iter()
            .any(|nic| !matches!(self.steering(nic), Steering::Leave(_)))
    }

    /// How a card will be steered. Where one card has a queue for every core, the others are left: they are not what the engine's
    /// packets come by, and cores set aside for them would be taken from it.
    pub(super) fn steering(&self, nic: &Nic) -> Steering {
        let steering = self.steering_alone(nic);
        let others = self.inventory.nics.iter();
        if matches!(steering, Steering::Spread { .. })
            && others
                .map(|other| self.steering_alone(other))
                .any(|other| matches!(other, Steering::QueuePerCore(_)))
        {
            return Steering::Leave("another card has a queue for every core".to_owned());
        }
        steering
    }

    /// With the queues that it has or may get now.
    fn steering_alone(&self, nic: &Nic) -> Steering {
        if nic.state == "down" {
            return Steering::Leave("the card is down".to_owned());
        }
        let now = nic
            .channels
            .map_or(nic.receive_queues as u64, |(now, _)| now);
        let may_reset = self.force || !nic.default_route;
        let queues = queues_wanted(&self.inventory.cpu, nic).filter(|_| may_reset);
        Steering::of(&self.inventory.cpu, nic, queues.unwrap_or(now))
    }

    pub(super) fn of_nics(&self, row: &'static Row, part: NicPart) -> Vec<Item> {
        if !self.inventory.environment.sysfs_of_this_network {
            let why = "/sys shows the cards of another network namespace";
            return vec![absent(row, None, why)];
        }
        // Bridges, veth and the like are no cards: nothing behind them has queues, rings or interrupts of its own.
        let cards = self
            .inventory
            .nics
            .iter()
            .filter(|nic| nic.driver.is_some());
        let items: Vec<Item> = cards.flat_map(|nic| self.of_nic(row, part, nic)).collect();
        if items.is_empty() && part == NicPart::Driver {
            return vec![absent(
                row,
                None,
                "there is no network card in this network namespace",
            )];
        }
        items
    }

    fn of_nic(&self, row: &'static Row, part: NicPart, nic: &Nic) -> Vec<Item> {
        if part == NicPart::Driver {
            let mut item = absent(row, Some(nic.name.clone()), "");
            item.current = nic.driver.clone();
            item.want = match nic.known {
                Some(known) => Want::Exactly(known.name.to_owned()),
                None => self.want(row),
            };
            return vec![item];
        }
        if nic.known.is_none() {
            return Vec::new(); // said once, by the driver's row
        }
        if nic.state == "down" {
            return vec![absent(row, Some(nic.name.clone()), "the card is down")];
        }
        match part {
            NicPart::Driver => Vec::new(),
            NicPart::Channels | NicPart::RingRx | NicPart::AdaptiveRx | NicPart::RxUsecs => {
                vec![self.by_ethtool(row, part, nic)]
            }
            NicPart::Offloads => self.offloads(row, nic),
            NicPart::IrqAffinity => self.interrupts(row, nic),
            NicPart::Xps | NicPart::Rps | NicPart::RpsFlows => self.queues(row, part, nic),
        }
    }

    fn by_ethtool(&self, row: &'static Row, part: NicPart, nic: &Nic) -> Item {
        let (setting, resets) = match part {
            NicPart::Channels => (Setting::Channels, true),
            NicPart::RingRx => (Setting::RingRx, true),
            NicPart::AdaptiveRx => (Setting::AdaptiveRx, false),
            _ => (Setting::RxUsecs, false),
        };
        let want = match (part, self.want(row)) {
            (NicPart::Channels, _) if self.profile.value(row).is_some() => {
                match queues_wanted(&self.inventory.cpu, nic) {
                    Some(queues) => Want::AtLeast(queues),
                    None => leave("on few cores a card keeps the queues that it has"),
                }
            }
            (NicPart::RingRx, Want::AtLeast(_)) if nic.missed == 0 => {
                leave("the card has dropped nothing for want of a descriptor")
            }
            (NicPart::RingRx, Want::AtLeast(ring)) => {
                Want::AtLeast(nic.ring_rx.map_or(ring, |(_, most)| ring.min(most)))
            }
            (NicPart::RxUsecs, Want::AtMost(_))
                if nic.adaptive_rx.as_deref() == Some("on")
                    && self.profile.value(adaptive()) == Some("on") =>
            {
                leave("the card adapts it")
            }
            (_, want) => want,
        };
        let instance = Some(nic.name.clone());
        if !self.inventory.ethtool {
            return absent(
                row,
                instance,
                "unknown without ethtool: apt-get install ethtool",
            );
        }
        let nic_name = nic.name.clone();
        let target = Target::Ethtool {
            nic: nic_name.clone(),
            setting,
        };
        let mut item = self.item(row, instance, target, want);
        item.cuts_the_network = resets && nic.default_route;
        if setting == Setting::AdaptiveRx {
            item.drags = vec![Target::Ethtool {
                nic: nic_name,
                setting: Setting::RxUsecs,
            }];
        }
        item
    }

    fn offloads(&self, row: &'static Row, nic: &Nic) -> Vec<Item> {
        let item = |(name, value): (&String, &String)| Item {
            current: Some(value.clone()),
            want: self.want(row),
            ..absent(row, Some(format!("{}/{name}", nic.name)), "")
        };
        nic.offloads.iter().map(item).collect()
    }

    /// Why the queues of a card stay where they are, as the one item that says so.
    fn stays(&self, row: &'static Row, nic: &Nic, steering: &Steering) -> Option<Item> {
        let want = match (self.profile.value(row), steering) {
            (None, _) => self.want(row),
            (_, Steering::Leave(reason)) => leave(reason.clone()),
            _ => return None,
        };
        Some(Item {
            current: Some("as it is".to_owned()),
            want,
            ..absent(row, Some(nic.name.clone()), "")
        })
    }

    fn interrupts(&self, row: &'static Row, nic: &Nic) -> Vec<Item> {
        let steering = self.steering(nic);
        if let Some(item) = self.stays(row, nic, &steering) {
            return vec![item];
        }
        let items = nic.interrupts.iter().filter_map(|interrupt| {
            let core = steering.core_of(interrupt.queue)?;
            let path = format!("/proc/irq/{}/smp_affinity_list", interrupt.number);
            let instance = format!("{}/{} ({})", nic.name, interrupt.number, interrupt.name);
            let target = Target::shaped(path, Shape::Cores);
            let want = Want::Exactly(core.to_string());
            Some(self.item(row, Some(instance), target, want))
        });
        items.collect()
    }

    fn queues(&self, row: &'static Row, part: NicPart, nic: &Nic) -> Vec<Item> {
        let steering = self.steering(nic);
        if let Some(item) = self.stays(row, nic, &steering) {
            return vec![item];
        }
        let handed_to = steering.handed_to().unwrap_or_default();
        let (kind, count) = match part {
            NicPart::Xps => ("tx", nic.send_queues),
            _ => ("rx", nic.receive_queues),
        };
        let flows = if handed_to.is_empty() {
            0
        } else {
            FLOWS / (count.max(1) as u64)
        };
        let item = |queue: usize| {
            let (file, shape, value) = match part {
                NicPart::Xps => {
                    let cores = steering.senders(queue, count);
                    ("xps_cpus", Shape::Mask, mask_of(&cores))
                }
                NicPart::Rps => ("rps_cpus", Shape::Mask, mask_of(handed_to)),
                _ => ("rps_flow_cnt", Shape::Words, flows.to_string()),
            };
            let path = format!("/sys/class/net/{}/queues/{kind}-{queue}/{file}", nic.name);
            let instance = format!("{}/{kind}-{queue}", nic.name);
            let target = Target::shaped(path, shape);
            Some(self.item(row, Some(instance), target, Want::Exactly(value)))
        };
        (0..count).filter_map(item).collect()
    }
}

fn adaptive() -> &'static Row {
    Row::named("nic.adaptive_rx").expect("the table has it")
}
