//! Files for the next boot, made from those in `sysctl/`, and taken away again.
//!
//! A file is written only if it is not there or is what we wrote before; a manifest in the state directory holds what that was,
//! and is on stable storage before the first file. What the kernel's own loaders can set goes into their files; the rest is
//! done by a unit that runs `pinion tune apply` at boot, with everything that makes `apply` careful.

mod files;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::apply::Request;
use crate::check::{Finding, Group, Report};
use crate::error::Error;
use crate::journal::{self, Found, Journal};
use crate::system::System;

pub use files::{RULES, SERVICE, Unit, sysctl_template};

/// One file that is ours.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owned {
    path: String,
    /// What we wrote; of a link, where it points.
    text: String,
    /// What we had written before, should a run die between manifest and file.
    previous: Option<String>,
    /// What somebody else had written before us, which comes back.
    original: Option<String>,
    link: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    /// Settings that are in the files: they read as fine because of them, and have to stay in.
    ids: BTreeSet<String>,
    files: Vec<Owned>,
    /// Directories that were made for them.
    #[serde(default)]
    directories: BTreeSet<String>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Persisted {
    /// Files that are there now.
    pub written: Vec<String>,
    /// Files that were taken away, or are again as somebody else had them.
    pub removed: Vec<String>,
    /// Settings that no file keeps on this machine, because systemd does not run here: whatever starts it has to run
    /// `pinion tune apply`.
    pub left_out: Vec<String>,
    /// What to type so that they take effect before the next boot.
    pub next: Vec<&'static str>,
}

fn manifest_path(state: &str) -> String {
    format!("{state}/persisted.json")
}

impl Manifest {
    fn load(system: &dyn System, state: &str) -> Result<Manifest, Error> {
        let path = manifest_path(state);
        match system.read(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| Error::Corrupt {
                path,
                what: error.to_string(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Manifest::default()),
            Err(error) => Err(Error::state(&path, error)),
        }
    }

    fn save(&self, system: &dyn System, state: &str) -> Result<(), Error> {
        let path = manifest_path(state);
        let text = serde_json::to_string_pretty(self).expect("a manifest is JSON");
        system
            .replace(&path, &format!("{text}\n"))
            .map_err(|source| Error::state(&path, source))
    }

    fn owned(&self, path: &str) -> Option<&Owned> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Takes away the directories that were made, as far as nothing of others is in them.
    fn take_directories(&self, system: &dyn System) -> Result<(), Error> {
        // The deepest first: a path sorts before what lies below it.
        for directory in self.directories.iter().rev() {
            system
                .remove_directory(directory)
                .map_err(|source| Error::state(directory, source))?;
        }
        Ok(())
    }

    /// Notes the directories that are to be made for the files.
    fn note_directories(&mut self, system: &dyn System) {
        for file in &self.files {
            let mut directory = file.path.as_str();
            while let Some((above, _)) = directory.rsplit_once('/')
                && !above.is_empty()
                && system.list(above).is_err()
            {
                self.directories.insert(above.to_owned());
                directory = above;
            }
        }
    }
}

/// What is at a path now; None if nothing is.
fn present(system: &dyn System, path: &str, link: bool) -> Result<Option<String>, Error> {
    let found = if link {
        system.link(path)
    } else {
        system.read(path)
    };
    match found {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::state(path, error)),
    }
}

impl Owned {
    fn is_ours(&self, text: &str) -> bool {
        self.text == text || self.previous.as_deref() == Some(text)
    }

    fn write(&self, system: &dyn System) -> Result<(), Error> {
        let result = if self.link {
            system.make_link(&self.path, &self.text)
        } else {
            system.replace(&self.path, &self.text)
        };
        result.map_err(|source| Error::state(&self.path, source))
    }

    /// Takes it away, or brings back what was there before us.
    fn take_away(&self, system: &dyn System) -> Result<(), Error> {
        let result = match &self.original {
            Some(text) => system.replace(&self.path, text),
            None => system.remove(&self.path),
        };
        result.map_err(|source| Error::state(&self.path, source))
    }

    /// Whether it may be taken away: it is ours, or there is nothing to take.
    fn may_go(&self, system: &dyn System, force: bool) -> Result<(), Error> {
        match present(system, &self.path, self.link)? {
            Some(text)
                if !force && !self.is_ours(&text) && self.original.as_ref() != Some(&text) =>
            {
                Err(Error::NotOurs {
                    path: self.path.clone(),
                    what: "was changed since it was installed".to_owned(),
                    advice: "Move your changes to a file of your own, or type --force",
                })
            }
            _ => Ok(()),
        }
    }
}

/// The settings that the files have to hold: what differs now, what `apply` changed, and what earlier files hold already.
fn wanted<'a>(
    report: &'a Report,
    journal: Option<&Journal>,
    manifest: &Manifest,
) -> Vec<&'a Finding> {
    let ours = |finding: &&Finding| {
        let held = journal.is_some_and(|journal| journal.has(&finding.id))
            || manifest.ids.contains(&finding.id);
        match finding.group {
            Group::Change => true,
            Group::Ok => held && finding.value.is_some(),
            _ => false,
        }
    };
    report.findings.iter().filter(ours).collect()
}

/// Installs the files.
pub fn persist(request: Request<'_>, unit: Unit<'_>) -> Result<Persisted, Error> {
    let Request { system, state, .. } = request;
    let report = request.report();
    if let Some(reason) = report.inventory.environment.not_the_host() {
        return Err(Error::NotHere(format!(
            "{reason}: type pinion tune persist on the host itself"
        )));
    }
    let _lock = journal::lock(system, state)?;
    let journal = match Journal::find(system, state)? {
        Found::Journal(journal) => Some(journal),
        Found::Nothing | Found::EarlierBoot => None,
    };
    let before = Manifest::load(system, state)?;
    let findings = wanted(&report, journal.as_ref(), &before);
    let rendered = files::render(request, &report, &findings, unit)?;
    let mut after = Manifest {
        ids: findings
            .iter()
            .map(|finding| finding.id.clone())
            .filter(|id| !rendered.left_out.contains(id))
            .collect(),
        files: Vec::new(),
        directories: before.directories.clone(),
    };
    for file in rendered.files {
        let known = before.owned(&file.path);
        let there = present(system, &file.path, file.link)?;
        let ours = match (&there, known) {
            (None, _) => true,
            (Some(text), Some(known)) => known.is_ours(text) || *text == file.text,
            (Some(text), None) => *text == file.text,
        };
        if !ours && !file.shared {
            return Err(Error::NotOurs {
                path: file.path,
                what: match known {
                    Some(_) => "was changed since it was installed".to_owned(),
                    None => "is there and was not written by pinion".to_owned(),
                },
                advice: "Move it to another name, then type this again",
            });
        }
        let original = match (known, file.shared) {
            (_, false) => None,
            (Some(known), true) if ours => known.original.clone(),
            (_, true) => there.clone(),
        };
        after.files.push(Owned {
            previous: known.filter(|_| ours).and(there),
            path: file.path,
            text: file.text,
            original,
            link: file.link,
        });
    }
    let stale: Vec<&Owned> = before
        .files
        .iter()
        .filter(|old| after.owned(&old.path).is_none())
        .collect();
    for old in &stale {
        old.may_go(system, request.force)?;
    }
    if after.files.is_empty() && before.files.is_empty() {
        return Ok(Persisted::default());
    }
    after.note_directories(system);
    // The manifest first: whatever a run that dies has written, the next one knows to be ours.
    let mut both = after.clone();
    both.files.extend(stale.iter().map(|old| (*old).clone()));
    both.save(system, state)?;
    for file in &after.files {
        file.write(system)?;
    }
    for old in &stale {
        old.take_away(system)?;
    }
    if after.files.is_empty() {
        after.take_directories(system)?;
        after.directories.clear();
    }
    for file in &mut after.files {
        file.previous = None;
    }
    after.save(system, state)?;
    let written: Vec<String> = after.files.iter().map(|file| file.path.clone()).collect();
    Ok(Persisted {
        next: files::next_steps(&written),
        written,
        removed: stale.iter().map(|old| old.path.clone()).collect(),
        left_out: rendered.left_out,
    })
}

/// Takes every installed file away. Asks all of them before the first goes.
pub fn remove(system: &dyn System, state: &str, force: bool) -> Result<Persisted, Error> {
    if Manifest::load(system, state)?.files.is_empty() {
        return Ok(Persisted::default());
    }
    let _lock = journal::lock(system, state)?;
    let manifest = Manifest::load(system, state)?;
    for file in &manifest.files {
        file.may_go(system, force)?;
    }
    for file in &manifest.files {
        file.take_away(system)?;
    }
    manifest.take_directories(system)?;
    let path = manifest_path(state);
    system
        .remove(&path)
        .map_err(|source| Error::state(&path, source))?;
    let removed: Vec<String> = manifest.files.into_iter().map(|file| file.path).collect();
    Ok(Persisted {
        next: files::next_steps(&removed),
        removed,
        ..Persisted::default()
    })
}

/// What `persist` would do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Preview {
    /// Path and text of each file.
    pub files: Vec<(String, String)>,
    /// As in [`Persisted`].
    pub left_out: Vec<String>,
}

/// What `persist` would write, and what it would leave out.
pub fn preview(request: Request<'_>, unit: Unit<'_>) -> Result<Preview, Error> {
    let Request { system, state, .. } = request;
    let report = request.report();
    let journal = match Journal::find(system, state)? {
        Found::Journal(journal) => Some(journal),
        Found::Nothing | Found::EarlierBoot => None,
    };
    let manifest = Manifest::load(system, state)?;
    let findings = wanted(&report, journal.as_ref(), &manifest);
    let rendered = files::render(request, &report, &findings, unit)?;
    Ok(Preview {
        files: rendered
            .files
            .into_iter()
            .map(|file| (file.path, file.text))
            .collect(),
        left_out: rendered.left_out,
    })
}

/// Installed files that are not as they were written, in words.
pub(crate) fn differing(system: &dyn System, state: &str) -> Result<Vec<String>, Error> {
    let mut differing = Vec::new();
    for file in Manifest::load(system, state)?.files {
        match present(system, &file.path, file.link)? {
            None => differing.push(format!("{} is gone", file.path)),
            Some(text) if text != file.text => {
                differing.push(format!("{} was changed since it was installed", file.path));
            }
            Some(_) => {}
        }
    }
    Ok(differing)
}
