//! Whether what was applied is in force: every value read again, and the effect looked at where the kernel shows one.

use std::fmt;

use serde::Serialize;

use crate::apply::Request;
use crate::effect::{self, Effect};
use crate::error::Error;
use crate::inventory::SoftNet;
use crate::journal::{Entry, Found, Journal, Phase};
use crate::persist;
use crate::system::System;

/// What became of a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It reads as it was left. Nothing shows what it does.
    ReadAgain,
    /// It reads as it was left, and does what it is for.
    EffectSeen,
    /// It reads as it was left, and does not do what it is for.
    WithoutEffect,
    /// It does not read as it was left.
    Drifted,
}

/// A setting that was changed, looked at again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Looked {
    /// The setting.
    pub id: String,
    /// What was left there.
    pub left: String,
    /// What is there now, or why it cannot be read.
    pub now: String,
    /// What became of it.
    pub outcome: Outcome,
    /// What shows its effect, or that there is none.
    pub shown: Option<String>,
}

impl fmt::Display for Looked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Looked { id, left, now, .. } = self;
        match (self.outcome, &self.shown) {
            (Outcome::Drifted, _) => write!(f, "{id}: {left} was left there, now it is {now}"),
            (_, Some(shown)) => write!(f, "{id}: {now}, {shown}"),
            (_, None) => write!(f, "{id}: {now}, read again; nothing shows its effect"),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Verified {
    /// Profile that was applied in this boot; None if none was.
    pub profile: Option<String>,
    /// Settings that were changed.
    pub settings: Vec<Looked>,
    /// Installed files that are not as they were written.
    pub files: Vec<String>,
    /// A run that was cut short.
    pub unfinished: bool,
    /// Packets that the receive path has dropped since.
    pub dropped_since: u64,
    /// Changes that `check` would make now.
    pub pending: usize,
}

impl Verified {
    /// Settings with this outcome.
    pub fn settings(&self, outcome: Outcome) -> impl Iterator<Item = &Looked> {
        self.settings
            .iter()
            .filter(move |looked| looked.outcome == outcome)
    }

    /// Settings that are not in force, or not with the effect that they should have.
    pub fn amiss(&self) -> impl Iterator<Item = &Looked> {
        self.settings
            .iter()
            .filter(|looked| matches!(looked.outcome, Outcome::Drifted | Outcome::WithoutEffect))
    }

    /// Whether everything that was applied is in force.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.amiss().next().is_none() && self.files.is_empty() && !self.unfinished
    }
}

/// Reads every value again. Writes nothing.
pub fn verify(request: Request<'_>) -> Result<Verified, Error> {
    let Request { system, state, .. } = request;
    let mut verified = Verified {
        pending: request.report().pending,
        files: persist::differing(system, state)?,
        ..Verified::default()
    };
    let Found::Journal(journal) = Journal::find(system, state)? else {
        return Ok(verified);
    };
    verified.unfinished = journal.phase != Phase::Applied;
    verified.dropped_since = SoftNet::gather(system)
        .dropped
        .saturating_sub(journal.dropped_before);
    verified.settings = (journal.entries.iter())
        .filter_map(|entry| look(system, entry, &journal))
        .collect();
    verified.profile = Some(journal.profile);
    Ok(verified)
}

/// None: there is nothing to say of it.
fn look(system: &dyn System, entry: &Entry, journal: &Journal) -> Option<Looked> {
    let left = entry.after.as_ref().or(entry.wrote.as_ref())?;
    let now = entry.target.read(system);
    let (outcome, shown) = match &now {
        Ok(now) if now == left => {
            match effect::effect(system, &entry.target, now, &journal.interrupts) {
                None => (Outcome::ReadAgain, None),
                Some(Effect::Seen(shown)) => (Outcome::EffectSeen, Some(shown)),
                Some(Effect::Missing(shown)) => (Outcome::WithoutEffect, Some(shown)),
            }
        }
        // What the kernel drags along may move on its own.
        _ if entry.wrote.is_none() => return None,
        _ => (Outcome::Drifted, None),
    };
    Some(Looked {
        id: entry.id.clone(),
        left: left.clone(),
        now: now.unwrap_or_else(|error| error.to_string()),
        outcome,
        shown,
    })
}
