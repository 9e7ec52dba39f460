//! Changing what is to be changed: snapshot first, then one setting after the other, all of them or none.
//!
//! A card that is reset gets other queues and interrupts, so that comes first and the machine is looked at again behind it.
//! What a device does not have after all is left out; any other failure puts everything back.

use std::collections::BTreeSet;
use std::io;

use crate::check::{Finding, Group, Report};
use crate::effect;
use crate::error::Error;
use crate::journal::{self, Found, Journal, LeftOut, Phase};
use crate::revert::{self, Conflict};
use crate::settings::Profile;
use crate::system::System;
use crate::target::Target;

/// What is to be done, and where.
#[derive(Clone, Copy)]
pub struct Request<'a> {
    /// The machine.
    pub system: &'a dyn System,
    /// The engine's data directory.
    pub data: &'a str,
    /// What is wanted.
    pub profile: &'a Profile,
    /// Also what resets the card of the default route.
    pub force: bool,
    /// Where the journal is.
    pub state: &'a str,
}

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The setting.
    pub id: String,
    /// Its old value.
    pub from: String,
    /// Its new value.
    pub to: String,
}

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// What was changed.
    pub changed: Vec<Change>,
    /// What the device would not take, with its words.
    pub left_out: Vec<(String, String)>,
    /// Whether an earlier run had been cut short and was finished.
    pub resumed: bool,
}

/// What was in force when this run began, in the order of changing.
type Undo = Vec<(String, Target, String)>;

/// Changes everything that `check` says would be changed.
pub fn apply(request: Request<'_>) -> Result<Applied, Error> {
    let Request { system, state, .. } = request;
    let report = request.report();
    let found = Journal::find(system, state)?;
    let at_rest = match &found {
        Found::Nothing => true,
        Found::EarlierBoot => false,
        Found::Journal(journal) => journal.phase == Phase::Applied,
    };
    if report.pending == 0 && at_rest {
        return Ok(Applied::default());
    }
    permitted(&report)?;
    let _lock = journal::lock(system, state)?;
    let mut resumed = false;
    let earlier = match Journal::find(system, state)? {
        Found::Nothing => None,
        Found::EarlierBoot => {
            Journal::remove(system, state)?;
            None
        }
        Found::Journal(journal) if journal.phase == Phase::Reverting => {
            resumed = true;
            finish_revert(system, state, journal)?;
            None
        }
        Found::Journal(journal) => {
            resumed = journal.phase == Phase::Applying;
            Some(journal)
        }
    };
    let mut run = Run {
        request,
        journal: earlier
            .clone()
            .unwrap_or_else(|| Journal::new(&report.inventory, &report.profile)),
        undo: Vec::new(),
        applied: Applied {
            resumed,
            ..Applied::default()
        },
    };
    match run.passes().and_then(|()| run.finish()) {
        Ok(()) => Ok(run.applied),
        Err(stop) => Err(run.roll_back(stop, earlier.as_ref())),
    }
}

impl Request<'_> {
    /// What `check` says, but for what was tried in this boot and came to nothing.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = Report::of(self.system, self.data, self.profile, self.force);
        // Looking fails on nobody's journal: who writes says what is wrong with it.
        if let Ok(Found::Journal(journal)) = Journal::find(self.system, self.state) {
            report.leave_out(&journal.left_out);
        }
        report
    }
}

/// Asks before the first change whether all of them are allowed.
fn permitted(report: &Report) -> Result<(), Error> {
    let environment = &report.inventory.environment;
    let lacking = |finding: &&Finding| match finding.capability {
        "CAP_NET_ADMIN" => !environment.network_administrator,
        _ => !environment.system_administrator,
    };
    match report.group(Group::Change).find(lacking) {
        None => Ok(()),
        Some(finding) => Err(Error::NotPermitted {
            id: finding.id.clone(),
            capability: finding.capability,
        }),
    }
}

fn finish_revert(system: &dyn System, state: &str, journal: Journal) -> Result<(), Error> {
    let reverted = revert::put_back(system, state, journal, Conflict::Refuse)?;
    let left: Vec<String> = reverted.left().collect();
    if left.is_empty() {
        return Ok(());
    }
    Err(Error::RevertUnfinished {
        left: left.join(", "),
    })
}

/// Why a run stopped.
enum Stop {
    /// A setting did not take.
    Setting { finding: Box<Finding>, what: String },
    /// The journal could not be written.
    Journal(Error),
}

/// What became of one change.
enum Outcome {
    Changed(Change),
    LeftOut(String),
}

struct Run<'a> {
    request: Request<'a>,
    journal: Journal,
    undo: Undo,
    applied: Applied,
}

impl Run<'_> {
    /// Changes what there is to change, looking again until there is nothing that was not tried.
    fn passes(&mut self) -> Result<(), Stop> {
        let mut tried: BTreeSet<String> = BTreeSet::new();
        loop {
            let report = self.request.report();
            let mut changes: Vec<Finding> = report
                .group(Group::Change)
                .filter(|finding| !tried.contains(&finding.id))
                .cloned()
                .collect();
            if changes.iter().any(|finding| finding.resets) {
                changes.retain(|finding| finding.resets);
            }
            if changes.is_empty() {
                return Ok(());
            }
            self.snapshot(&changes, &report.profile)?;
            for finding in changes {
                tried.insert(finding.id.clone());
                match self.change(&finding) {
                    Ok(Outcome::Changed(change)) => self.applied.changed.push(change),
                    Ok(Outcome::LeftOut(reason)) => {
                        self.journal.note_left_out(LeftOut {
                            id: finding.id.clone(),
                            value: finding.value,
                            reason: reason.clone(),
                        });
                        self.applied.left_out.push((finding.id, reason));
                    }
                    Err(what) => {
                        let finding = Box::new(finding);
                        return Err(Stop::Setting { finding, what });
                    }
                }
            }
        }
    }

    /// Puts what is in force now on stable storage.
    fn snapshot(&mut self, changes: &[Finding], profile: &str) -> Result<(), Stop> {
        let system = self.request.system;
        for finding in changes {
            let (Some(target), Some(current)) = (&finding.target, &finding.current) else {
                continue;
            };
            self.remember(&finding.id, target, current, finding.value.clone());
            for target in &finding.drags {
                if let Ok(current) = target.read(system) {
                    self.remember(&finding.id, target, &current, None);
                }
            }
        }
        profile.clone_into(&mut self.journal.profile);
        self.journal.phase = Phase::Applying;
        self.journal
            .save(system, self.request.state)
            .map_err(Stop::Journal)
    }

    fn remember(&mut self, id: &str, target: &Target, current: &str, wrote: Option<String>) {
        self.journal.note(id, target, current, wrote);
        if !self.undo.iter().any(|(_, known, _)| known == target) {
            self.undo
                .push((id.to_owned(), target.clone(), current.to_owned()));
        }
    }

    /// Changes one setting and reads it back.
    fn change(&self, finding: &Finding) -> Result<Outcome, String> {
        let system = self.request.system;
        let (Some(target), Some(value), Some(from)) =
            (&finding.target, &finding.value, &finding.current)
        else {
            return Ok(Outcome::LeftOut("nothing can be written".to_owned()));
        };
        let written = target.write(system, value);
        let now = target.read(system);
        if let Err(error) = &written {
            let untouched = now.as_ref().map_or(true, |now| now == from);
            if untouched && target.is_refusal_of_the_device(error) {
                return Ok(Outcome::LeftOut(error.to_string()));
            }
            return Err(error.to_string());
        }
        let to = now.map_err(|error| format!("it cannot be read back: {error}"))?;
        if !finding.want.is_met_by(&to) {
            if to == *from && target.is_of_a_driver() {
                let stays = format!("it took {value} and stays at {to}");
                return Ok(Outcome::LeftOut(stays));
            }
            return Err(format!("{value} was written, and it reads back as {to}"));
        }
        Ok(Outcome::Changed(Change {
            id: finding.id.clone(),
            from: from.clone(),
            to,
        }))
    }

    /// All is in force: the journal says so, and names only what differs from before.
    fn finish(&mut self) -> Result<(), Stop> {
        let Request { system, state, .. } = self.request;
        self.journal.phase = Phase::Applied;
        // What went away has nothing to put back. What cannot be read just now was changed all the same: its old value stays
        // known, or nobody could bring it back.
        self.journal.entries.retain_mut(|entry| {
            let now = entry.target.read(system);
            let stays = match &now {
                Ok(after) => *after != entry.before,
                Err(error) => error.kind() != io::ErrorKind::NotFound,
            };
            entry.after = now.ok();
            stays
        });
        if self.journal.entries.is_empty() && self.journal.left_out.is_empty() {
            return Journal::remove(system, state).map_err(Stop::Journal);
        }
        let targets = self.journal.entries.iter().map(|entry| &entry.target);
        self.journal.interrupts = effect::taken_at(system, targets);
        self.journal.save(system, state).map_err(Stop::Journal)
    }

    /// Puts everything back that this run has touched, and the journal as it was.
    fn roll_back(&mut self, stop: Stop, earlier: Option<&Journal>) -> Error {
        let Request { system, state, .. } = self.request;
        let mut left = Vec::new();
        for (id, target, before) in &self.undo {
            match restore(system, target, before) {
                // A queue that came with more channels went with them.
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    left.push(format!("{id} ({error})"));
                }
                _ => {}
            }
        }
        if left.is_empty() {
            // If this fails the journal still names every old value, all of which are in force: a revert finds nothing to do.
            let _ = match earlier {
                Some(journal) => journal.save(system, state),
                None => Journal::remove(system, state),
            };
        }
        match stop {
            Stop::Journal(error) if left.is_empty() => error,
            Stop::Journal(error) => Error::RollbackFailed {
                id: "the journal".to_owned(),
                what: error.to_string(),
                left: left.join(", "),
                path: journal::journal_path(state),
            },
            Stop::Setting { finding, what } if left.is_empty() => Error::RolledBack {
                command: finding
                    .target
                    .as_ref()
                    .zip(finding.value.as_ref())
                    .map_or_else(String::new, |(target, value)| target.command(value)),
                id: finding.id,
                key: finding.key,
                what,
            },
            Stop::Setting { finding, what } => Error::RollbackFailed {
                id: finding.id,
                what,
                left: left.join(", "),
                path: journal::journal_path(state),
            },
        }
    }
}

/// Puts an old value back unless it is there.
pub(crate) fn restore(system: &dyn System, target: &Target, before: &str) -> io::Result<()> {
    if target.read(system)? == before {
        return Ok(());
    }
    target.write(system, before)?;
    let now = target.read(system)?;
    if now != before {
        return Err(io::Error::other(format!(
            "{before} was written, and it reads back as {now}"
        )));
    }
    Ok(())
}
