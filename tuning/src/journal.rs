//! What was changed and what was there before, on stable storage before the first change.
//!
//! One JSON file, replaced whole. Its phase says how far a run came: one that died while applying or reverting left it behind,
//! and the next run goes on from it. It is stamped with the boot, because runtime settings end with that, and with the network
//! namespace, because the same names mean other settings in another one.

use serde::{Deserialize, Serialize};

use crate::effect::Interrupts;
use crate::error::Error;
use crate::inventory::Inventory;
use crate::system::{Lock, System};
use crate::target::Target;

const VERSION: u32 = 1;

/// How far a run came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Settings are being changed, or were when the run died.
    Applying,
    /// All that is named here is in force.
    Applied,
    /// Settings are being put back, or were when the run died.
    Reverting,
}

/// One setting that was, or is about to be, changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The setting; for one that the kernel changes along with another, that other one.
    pub id: String,
    /// Where it is.
    pub target: Target,
    /// What was there before the first run.
    pub before: String,
    /// What was written; None for what the kernel changes by itself.
    pub wrote: Option<String>,
    /// What was there after the last run; None until it has ended.
    pub after: Option<String>,
}

/// A setting that a device would not take, or took and did not do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The setting.
    pub id: String,
    /// What it was given; None if nothing could be written.
    pub value: Option<String>,
    /// What came of it.
    pub reason: String,
}

/// The file's content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Journal {
    version: u32,
    /// Boot in which it was written.
    pub boot_id: String,
    /// Network namespace in which it was written.
    pub network_namespace: String,
    /// Profile of the last run.
    pub profile: String,
    /// How far it came.
    pub phase: Phase,
    /// Packets that the receive path had dropped when the first run began.
    pub dropped_before: u64,
    /// What the cores had taken of the interrupts that were sent elsewhere, at the end of the last run.
    #[serde(default)]
    pub interrupts: Interrupts,
    /// In the order in which they are changed, and put back.
    pub entries: Vec<Entry>,
    /// What was tried in vain: nobody is told again that it could be changed.
    #[serde(default)]
    pub left_out: Vec<LeftOut>,
}

/// Where a state directory keeps its journal.
pub(crate) fn journal_path(state: &str) -> String {
    format!("{state}/journal.json")
}

/// Keeps other runs out.
pub(crate) fn lock(system: &dyn System, state: &str) -> Result<Lock, Error> {
    let path = format!("{state}/lock");
    system.lock(&path).map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => Error::Busy { path },
        _ => Error::state(&path, source),
    })
}

/// What a state directory says about this boot.
#[derive(Debug)]
pub(crate) enum Found {
    /// Nothing was changed.
    Nothing,
    /// The machine has booted since: what the journal names has ended by itself.
    EarlierBoot,
    /// What was changed in this boot.
    Journal(Journal),
}

impl Journal {
    pub(crate) fn new(inventory: &Inventory, profile: &str) -> Journal {
        Journal {
            version: VERSION,
            boot_id: inventory.kernel.boot_id.clone(),
            network_namespace: inventory.environment.network_namespace.clone(),
            profile: profile.to_owned(),
            phase: Phase::Applying,
            dropped_before: inventory.soft_net.dropped,
            interrupts: Interrupts::new(),
            entries: Vec::new(),
            left_out: Vec::new(),
        }
    }

    /// Reads what an earlier run left.
    pub(crate) fn find(system: &dyn System, state: &str) -> Result<Found, Error> {
        let path = journal_path(state);
        let text = match system.read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Found::Nothing);
            }
            Err(error) => return Err(Error::state(&path, error)),
        };
        let corrupt = |what: String| Error::Corrupt {
            path: path.clone(),
            what,
        };
        let journal: Journal =
            serde_json::from_str(&text).map_err(|error| corrupt(error.to_string()))?;
        if journal.version != VERSION {
            return Err(corrupt(format!(
                "version {} where {VERSION} was expected",
                journal.version
            )));
        }
        let boot = crate::inventory::text(system, "/proc/sys/kernel/random/boot_id");
        if boot.as_deref() != Some(&journal.boot_id) {
            return Ok(Found::EarlierBoot);
        }
        let here = system.link("/proc/self/ns/net").unwrap_or_default();
        if here != journal.network_namespace {
            return Err(Error::OtherNamespace {
                path,
                there: journal.network_namespace,
                here,
            });
        }
        Ok(Found::Journal(journal))
    }

    pub(crate) fn save(&self, system: &dyn System, state: &str) -> Result<(), Error> {
        let path = journal_path(state);
        let text = serde_json::to_string_pretty(self).expect("a journal is JSON");
        system
            .replace(&path, &format!("{text}\n"))
            .map_err(|source| Error::state(&path, source))
    }

    pub(crate) fn remove(system: &dyn System, state: &str) -> Result<(), Error> {
        let path = journal_path(state);
        system
            .remove(&path)
            .map_err(|source| Error::state(&path, source))
    }

    /// Notes a setting before it is changed. What was there before the first run stays what is put back.
    pub(crate) fn note(&mut self, id: &str, target: &Target, before: &str, wrote: Option<String>) {
        if let Some(entry) = self
            .entries
            .iter_mut()
            .find(|entry| entry.target == *target)
        {
            if wrote.is_some() {
                id.clone_into(&mut entry.id);
                entry.wrote = wrote;
                entry.after = None;
            }
            return;
        }
        self.entries.push(Entry {
            id: id.to_owned(),
            target: target.clone(),
            before: before.to_owned(),
            wrote,
            after: None,
        });
    }

    /// Notes what came of a setting that was tried.
    pub(crate) fn note_left_out(&mut self, tried: LeftOut) {
        self.left_out.retain(|known| known.id != tried.id);
        self.left_out.push(tried);
    }

    /// Whether a setting was changed by us.
    pub(crate) fn has(&self, id: &str) -> bool {
        self.entries
            .iter()
            .any(|entry| entry.id == id && entry.wrote.is_some())
    }
}
