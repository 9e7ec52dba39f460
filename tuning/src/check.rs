//! The verdict on every setting of a machine: ok, to be changed, not to be had here, or refused, each with its reason.
//!
//! What a container or a network namespace does not own, what is mounted read-only and what would cut the network is refused
//! here, once, for every command that follows.

use serde::Serialize;

use crate::inventory::Inventory;
use crate::items::{self, Item, Want};
use crate::journal::LeftOut;
use crate::settings::{Place, Profile, Scope};
use crate::system::System;
use crate::target::Target;

/// The verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// It will be changed.
    Change,
    /// It is as wanted, or nothing is wanted.
    Ok,
    /// This machine does not have it.
    Unsupported,
    /// It differs, and is not for us to change.
    Refused,
}

/// A setting with its verdict.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// `vm.swappiness`, `block.scheduler:vda`.
    pub id: String,
    /// The verdict.
    pub group: Group,
    /// What is in force.
    pub current: Option<String>,
    /// What is wanted, for people.
    pub wanted: String,
    /// What would be written; None where nothing can be.
    pub value: Option<String>,
    /// Why the verdict is what it is, where that is not plain from the values.
    pub reason: Option<String>,
    /// Why it is wanted.
    pub why: &'static str,
    /// What it costs or can break.
    pub risk: &'static str,
    /// How far it reaches.
    pub scope: Scope,
    /// What a process must be allowed to do to change it.
    pub capability: &'static str,
    /// Where it is written.
    pub target: Option<Target>,
    /// The setting's name in the table.
    #[serde(skip)]
    pub key: &'static str,
    /// Whether changing it resets the card.
    #[serde(skip)]
    pub resets: bool,
    /// How the wanted value is to be read.
    #[serde(skip)]
    pub want: Want,
    /// Settings that the kernel changes along with it.
    #[serde(skip)]
    pub drags: Vec<Target>,
}

/// A machine and the verdicts.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The profile's name.
    pub profile: String,
    /// Whether anything would be changed.
    pub pending: usize,
    /// Every setting.
    pub findings: Vec<Finding>,
    /// What else whoever starts the server should know.
    pub notes: Vec<String>,
    /// The machine.
    pub inventory: Inventory,
}

impl Report {
    /// Looks at a machine and judges it. `force` allows what resets the card of the default route.
    pub fn of(system: &dyn System, data: &str, profile: &Profile, force: bool) -> Report {
        let inventory = Inventory::gather(system, data);
        let findings: Vec<Finding> = items::items(system, &inventory, profile, force)
            .into_iter()
            .map(|item| judge(&inventory, item, force))
            .collect();
        Report {
            profile: profile.name.clone(),
            pending: findings
                .iter()
                .filter(|finding| finding.group == Group::Change)
                .count(),
            notes: notes(&inventory, profile, force),
            findings,
            inventory,
        }
    }

    /// What was tried and came to nothing is no change that could be made.
    pub(crate) fn leave_out(&mut self, tried: &[LeftOut]) {
        for finding in &mut self.findings {
            let in_vain = |tried: &&LeftOut| tried.id == finding.id && tried.value == finding.value;
            if finding.group == Group::Change
                && let Some(tried) = tried.iter().find(in_vain)
            {
                finding.group = Group::Unsupported;
                finding.reason = Some(format!("tried in this boot: {}", tried.reason));
                self.pending -= 1;
            }
        }
    }

    /// The verdicts of one group.
    pub fn group(&self, group: Group) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(move |finding| finding.group == group)
    }
}

fn notes(inventory: &Inventory, profile: &Profile, force: bool) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(reason) = inventory.environment.not_the_host() {
        notes.push(format!("{reason}: tune the host itself for the rest"));
    }
    let cores = items::cores_left_for_shards(inventory, profile, force);
    if let Some(cores) = cores {
        notes.push(format!(
            "interrupts keep to cores of their own: start serve with --cores {cores}"
        ));
    }
    notes
}

fn judge(inventory: &Inventory, item: Item, force: bool) -> Finding {
    let (group, reason) = verdict(inventory, &item, force);
    let id = match &item.instance {
        Some(instance) => format!("{}:{instance}", item.row.key),
        None => item.row.key.to_owned(),
    };
    let value = item
        .current
        .as_deref()
        .filter(|_| item.target.is_some())
        .and_then(|current| item.want.value(current));
    Finding {
        id,
        group,
        wanted: item.want.text(),
        value,
        current: item.current,
        reason,
        why: item.row.why,
        risk: item.row.risk,
        scope: item.row.scope,
        capability: item.row.capability(),
        target: item.target,
        key: item.row.key,
        resets: item.cuts_the_network,
        want: item.want,
        drags: item.drags,
    }
}

fn verdict(inventory: &Inventory, item: &Item, force: bool) -> (Group, Option<String>) {
    let Some(current) = &item.current else {
        let reason = match &item.want {
            Want::Unsupported(reason) => reason.clone(),
            _ if item.row.place == Place::Sysctl && !inventory.environment.initial_network => {
                "this kernel does not show it in this network namespace".to_owned()
            }
            _ => "this kernel or device does not have it".to_owned(),
        };
        return (Group::Unsupported, Some(reason));
    };
    match &item.want {
        Want::Leave(reason) => return (Group::Ok, Some(reason.clone())),
        Want::Unsupported(reason) => return (Group::Unsupported, Some(reason.clone())),
        want if want.is_met_by(current) => return (Group::Ok, None),
        Want::Expected(_, advice) | Want::ExpectedAtLeast(_, advice) => {
            return (Group::Refused, Some((*advice).to_owned()));
        }
        _ => {}
    }
    match not_ours(inventory, item, force) {
        Some(reason) => (Group::Refused, Some(reason)),
        None => (Group::Change, None),
    }
}

/// Why a setting that differs is not for this process to change.
fn not_ours(inventory: &Inventory, item: &Item, force: bool) -> Option<String> {
    let environment = &inventory.environment;
    if item.row.scope == Scope::NetworkNamespace {
        if environment.container.is_some() && environment.initial_network {
            return Some("this container shares the network of its host".to_owned());
        }
    } else if let Some(reason) = environment.not_the_host() {
        return Some(reason);
    }
    match &item.target {
        Some(Target::File { path, .. }) if path.starts_with("/proc/sys") => environment
            .proc_sys_read_only
            .then(|| "/proc/sys is mounted read-only".to_owned()),
        Some(Target::File { path, .. })
            if path.starts_with("/sys") && environment.sysfs_read_only =>
        {
            Some("/sys is mounted read-only".to_owned())
        }
        _ if item.cuts_the_network && !force => Some(
            "it resets the card that the default route uses; --force does it all the same"
                .to_owned(),
        ),
        _ => None,
    }
}
