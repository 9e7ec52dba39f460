//! Whether what was applied is in force: every value read again, and the effect looked at where the kernel shows one.

use crate::apply::Request;
use crate::check::Report;
use crate::error::Error;
use crate::ethtool::Setting;
use crate::inventory::{SoftNet, cpu_list, names, text};
use crate::journal::{Entry, Found, Journal, Phase};
use crate::persist;
use crate::system::System;
use crate::target::Target;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Profile that was applied in this boot; None if none was.
    pub profile: Option<String>,
    /// Settings that are as they were left.
    pub held: usize,
    /// Settings that are not: the setting, what was left there, what is there now.
    pub drifted: Vec<(String, String, String)>,
    /// Values that are in force without the effect they should have.
    pub without_effect: Vec<String>,
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
    /// Whether everything that was applied is in force.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.drifted.is_empty()
            && self.without_effect.is_empty()
            && self.files.is_empty()
            && !self.unfinished
    }
}

/// Reads every value again. Writes nothing.
pub fn verify(request: Request<'_>) -> Result<Verified, Error> {
    let Request {
        system,
        data,
        profile,
        force,
        state,
    } = request;
    let mut verified = Verified {
        pending: Report::of(system, data, profile, force).pending,
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
    for entry in &journal.entries {
        let Some(left) = entry.after.as_ref().or(entry.wrote.as_ref()) else {
            continue;
        };
        match entry.target.read(system) {
            Ok(now) if now == *left => {
                verified.held += 1;
                verified.without_effect.extend(effect(system, entry, &now));
            }
            // What the kernel drags along may move on its own.
            _ if entry.wrote.is_none() => {}
            Ok(now) => verified.drifted.push((entry.id.clone(), left.clone(), now)),
            Err(error) => {
                let drift = (entry.id.clone(), left.clone(), error.to_string());
                verified.drifted.push(drift);
            }
        }
    }
    verified.profile = Some(journal.profile);
    Ok(verified)
}

/// What shows that a value in force does nothing.
fn effect(system: &dyn System, entry: &Entry, now: &str) -> Option<String> {
    match &entry.target {
        Target::File { path, .. } => {
            let irq = path.strip_suffix("/smp_affinity_list")?;
            let effective = text(system, &format!("{irq}/effective_affinity_list"))?;
            let allowed = cpu_list(now);
            let outside = cpu_list(&effective)
                .iter()
                .any(|core| !allowed.contains(core));
            outside.then(|| format!("{}: the interrupt still goes to core {effective}", entry.id))
        }
        Target::Ethtool { nic, setting } if *setting == Setting::Channels => {
            let queues = names(system, &format!("/sys/class/net/{nic}/queues"));
            let receive = queues.iter().filter(|name| name.starts_with("rx-")).count();
            let wanted: usize = now.parse().ok()?;
            (receive < wanted)
                .then(|| format!("{}: the card shows {receive} receive queues", entry.id))
        }
        Target::Ethtool { .. } => None,
    }
}
