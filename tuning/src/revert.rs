//! Putting back what was there before: exactly, as often as it is asked for, and never over what somebody changed since.

use std::collections::BTreeSet;

use crate::apply::{Change, restore};
use crate::error::Error;
use crate::journal::{self, Entry, Found, Journal, Phase};
use crate::system::System;

/// What to do with a setting that is neither as we left it nor as it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// Leave it, name it, and keep its old value.
    Refuse,
    /// Put the old value back all the same.
    Overwrite,
    /// Leave it, and forget that we ever changed it.
    Keep,
}

/// What a revert did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reverted {
    /// What was put back.
    pub restored: Vec<Change>,
    /// What is not there any more (a card was taken out, a queue is gone).
    pub gone: Vec<String>,
    /// What somebody changed since: the setting, what we had left there, what is there now.
    pub changed_since: Vec<(String, String, String)>,
    /// What could not be written, with the system's words.
    pub failed: Vec<(String, String)>,
    /// The machine has booted since: everything had ended by itself.
    pub rebooted: bool,
}

impl Reverted {
    /// What is not as it was, in words.
    pub fn left(&self) -> impl Iterator<Item = String> {
        let changed = self
            .changed_since
            .iter()
            .map(|(id, ours, now)| format!("{id} is {now}, we had left {ours}"));
        let failed = self.failed.iter().map(|(id, what)| format!("{id}: {what}"));
        changed.chain(failed)
    }
}

/// Puts back what earlier runs of this boot changed.
pub fn revert(system: &dyn System, state: &str, conflict: Conflict) -> Result<Reverted, Error> {
    if let Found::Nothing = Journal::find(system, state)? {
        return Ok(Reverted::default());
    }
    let _lock = journal::lock(system, state)?;
    match Journal::find(system, state)? {
        Found::Nothing => Ok(Reverted::default()),
        Found::EarlierBoot => {
            Journal::remove(system, state)?;
            Ok(Reverted {
                rebooted: true,
                ..Reverted::default()
            })
        }
        Found::Journal(journal) => put_back(system, state, journal, conflict),
    }
}

/// What a revert would put back: the setting, its value now, its value before. Writes nothing.
pub fn preview(system: &dyn System, state: &str) -> Result<Vec<Change>, Error> {
    let Found::Journal(journal) = Journal::find(system, state)? else {
        return Ok(Vec::new());
    };
    let change = |entry: Entry| {
        let from = entry.target.read(system).ok()?;
        (from != entry.before).then_some(Change {
            id: entry.id,
            from,
            to: entry.before,
        })
    };
    Ok(journal.entries.into_iter().filter_map(change).collect())
}

/// What there is to do about one entry.
enum Verdict {
    Nothing,
    Gone,
    Restore(String),
    Conflict(String),
    Failed(String),
}

fn judge(system: &dyn System, entry: &Entry, conflict: Conflict) -> Verdict {
    let now = match entry.target.read(system) {
        Ok(now) => now,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Verdict::Gone,
        Err(error) => return Verdict::Failed(error.to_string()),
    };
    if now == entry.before {
        return Verdict::Nothing;
    }
    // Without `after` the run died before it read back. What the kernel changes along with another is nobody's word.
    let ours = entry.wrote.is_none()
        || match &entry.after {
            Some(after) => now == *after,
            None => entry.wrote.as_ref() == Some(&now),
        };
    if ours || conflict == Conflict::Overwrite {
        Verdict::Restore(now)
    } else {
        Verdict::Conflict(now)
    }
}

/// Puts back what a journal names. The lock is held.
pub(crate) fn put_back(
    system: &dyn System,
    state: &str,
    mut journal: Journal,
    conflict: Conflict,
) -> Result<Reverted, Error> {
    let mut reverted = Reverted::default();
    // From here on a run that finds this journal goes on putting back.
    if journal.phase != Phase::Reverting {
        journal.phase = Phase::Reverting;
        journal.save(system, state)?;
    }
    let mut left: Vec<Entry> = Vec::new();
    let mut conflicting: BTreeSet<String> = BTreeSet::new();
    for entry in &journal.entries {
        // A queue length belongs to its scheduler: it stays with a scheduler that is not ours any more.
        if entry.wrote.is_none() && conflicting.contains(&entry.id) {
            if conflict == Conflict::Refuse {
                left.push(entry.clone());
            }
            continue;
        }
        match judge(system, entry, conflict) {
            Verdict::Nothing => {}
            Verdict::Gone => reverted.gone.push(entry.id.clone()),
            Verdict::Restore(now) => match restore(system, &entry.target, &entry.before) {
                Ok(()) => reverted.restored.push(Change {
                    id: entry.id.clone(),
                    from: now,
                    to: entry.before.clone(),
                }),
                Err(error) => {
                    reverted.failed.push((entry.id.clone(), error.to_string()));
                    left.push(entry.clone());
                }
            },
            Verdict::Conflict(now) => {
                conflicting.insert(entry.id.clone());
                if conflict == Conflict::Refuse {
                    let ours = entry.after.as_ref().or(entry.wrote.as_ref());
                    let ours = ours.cloned().unwrap_or_default();
                    reverted.changed_since.push((entry.id.clone(), ours, now));
                    left.push(entry.clone());
                }
            }
            Verdict::Failed(what) => {
                reverted.failed.push((entry.id.clone(), what));
                left.push(entry.clone());
            }
        }
    }
    if left.is_empty() {
        Journal::remove(system, state)?;
    } else {
        journal.entries = left;
        journal.phase = Phase::Applied;
        journal.save(system, state)?;
    }
    Ok(reverted)
}
