//! The commands that change something, and `verify`: what they did, in words.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context as _;
use tuning::apply::Request;
use tuning::check::Report;
use tuning::persist::{Persisted, Unit};
use tuning::revert::Conflict;
use tuning::settings::Profile;
use tuning::system::Host;

use super::{
    ChangeFlags, PersistFlags, RevertFlags, StateDirectory, VerifyFlags, WantedFlags, path_text,
    pending, print, profile, text,
};
use crate::exit::{Failure, usage};
use crate::text::counted;

/// Flags as whole paths: what is written down must mean the same from any directory.
struct Asked {
    profile: Profile,
    data: String,
    state: String,
    force: bool,
    host: Host,
}

fn absolute(path: &Path) -> Result<String, Failure> {
    let absolute = std::path::absolute(path).with_context(|| path.display().to_string())?;
    path_text(&absolute).map(str::to_owned)
}

impl Asked {
    fn new(wanted: &WantedFlags, state: &StateDirectory) -> Result<Asked, Failure> {
        Ok(Asked {
            profile: profile(&wanted.profile)?,
            data: absolute(&wanted.data)?,
            state: absolute(&state.state)?,
            force: wanted.force,
            host: Host::this(),
        })
    }

    fn request(&self) -> Request<'_> {
        Request {
            system: &self.host,
            data: &self.data,
            profile: &self.profile,
            force: self.force,
            state: &self.state,
        }
    }

    fn report(&self) -> Report {
        self.request().report()
    }
}

/// Changes what is to be changed.
pub fn apply(flags: &ChangeFlags) -> Result<(), Failure> {
    let asked = Asked::new(&flags.wanted, &flags.state)?;
    if !flags.yes {
        let report = asked.report();
        print(&text::difference(&report))?;
        return pending(report.pending);
    }
    let applied = tuning::apply::apply(asked.request())?;
    let mut out = String::new();
    if applied.resumed {
        out.push_str("an earlier run had been cut short: it is finished\n");
    }
    for change in &applied.changed {
        let _ = writeln!(out, "{}: {} -> {}", change.id, change.from, change.to);
    }
    for (id, reason) in &applied.left_out {
        let _ = writeln!(
            out,
            "{id}: left as it is, the device does not take it: {reason}"
        );
    }
    let _ = match applied.changed.len() {
        0 => writeln!(out, "nothing to do"),
        changed => writeln!(
            out,
            "{} made; pinion tune verify looks at them again, pinion tune revert --yes puts them back",
            counted(changed as u64, "change")
        ),
    };
    Ok(print(&out)?)
}

/// Reads again.
pub fn verify(flags: &VerifyFlags) -> Result<(), Failure> {
    let asked = Asked::new(&flags.wanted, &flags.state)?;
    let verified = tuning::verify::verify(asked.request())?;
    if flags.json {
        let json = serde_json::to_string_pretty(&verified).context("what was found is JSON")?;
        print(&format!("{json}\n"))?;
    } else {
        print(&text::verified(&verified))?;
    }
    if !verified.holds() {
        return Err(Failure::Failed(anyhow::anyhow!(
            "not everything is as it was left: pinion tune apply --yes sets it again, pinion tune revert --yes puts back what was there before"
        )));
    }
    pending(verified.pending)
}

/// Puts back.
pub fn revert(flags: &RevertFlags) -> Result<(), Failure> {
    let conflict = match (flags.force, flags.keep) {
        (true, _) => Conflict::Overwrite,
        (_, true) => Conflict::Keep,
        _ => Conflict::Refuse,
    };
    let state = absolute(&flags.state.state)?;
    if !flags.yes {
        let changes = tuning::revert::preview(&Host::this(), &state)?;
        let mut out = String::new();
        for change in &changes {
            let _ = writeln!(out, "{}: {} -> {}", change.id, change.from, change.to);
        }
        let _ = writeln!(
            out,
            "{} to put back: pinion tune revert --yes does it",
            counted(changes.len() as u64, "setting")
        );
        print(&out)?;
        return pending(changes.len());
    }
    let reverted = tuning::revert::revert(&Host::this(), &state, conflict)?;
    let mut out = String::new();
    for change in &reverted.restored {
        let _ = writeln!(out, "{}: {} -> {}", change.id, change.from, change.to);
    }
    for id in &reverted.gone {
        let _ = writeln!(out, "{id}: is not there any more");
    }
    let left: Vec<String> = reverted.left().collect();
    if reverted.rebooted {
        out.push_str("the machine was booted since: all of it had ended by itself\n");
    } else if reverted.restored.is_empty() && left.is_empty() {
        out.push_str("nothing to put back\n");
    }
    print(&out)?;
    if left.is_empty() {
        return Ok(());
    }
    Err(Failure::Failed(anyhow::anyhow!(
        "not put back: {}. What somebody changed since is put back by --force, or left for good by --keep",
        left.join("; ")
    )))
}

/// Installs files, or takes them away.
pub fn persist(flags: &PersistFlags) -> Result<(), Failure> {
    let asked = Asked::new(&flags.wanted, &flags.state)?;
    if flags.remove {
        if !flags.yes {
            return Err(usage(
                "this takes files away: type pinion tune persist --remove --yes",
            ));
        }
        let persisted = tuning::persist::remove(&asked.host, &asked.state, asked.force)?;
        return Ok(print(&persisted_text(&persisted))?);
    }
    let program = std::env::current_exe().context("where this program is")?;
    let unit = Unit {
        program: path_text(&program)?,
        server: flags.systemd,
    };
    let mut request = asked.request();
    // A profile file must be found from any directory.
    let mut profile = asked.profile.clone();
    if profile.name != profile.base.name() {
        profile.name = absolute(Path::new(&profile.name))?;
    }
    request.profile = &profile;
    if !flags.yes {
        let preview = tuning::persist::preview(request, unit)?;
        let files = &preview.files;
        let mut out = String::new();
        for (path, text) in files {
            let _ = writeln!(out, "==> {path}\n{text}");
        }
        let _ = writeln!(
            out,
            "{}: pinion tune persist --yes writes them",
            counted(files.len() as u64, "file")
        );
        out.push_str(&left_out_text(&preview.left_out));
        print(&out)?;
        return pending(files.len() + preview.left_out.len());
    }
    let persisted = tuning::persist::persist(request, unit)?;
    print(&(persisted_text(&persisted) + &left_out_text(&persisted.left_out)))?;
    pending(persisted.left_out.len())
}

/// What no file keeps here, each by name, and what keeps it instead.
fn left_out_text(ids: &[String]) -> String {
    let mut out = String::new();
    for id in ids {
        let _ = writeln!(
            out,
            "{id}: left out, no file of the kernel's keeps it and systemd does not run here"
        );
    }
    if !ids.is_empty() {
        out.push_str("have whatever starts this machine run pinion tune apply --yes\n");
    }
    out
}

fn persisted_text(persisted: &Persisted) -> String {
    let mut out = String::new();
    for path in &persisted.written {
        let _ = writeln!(out, "{path}: installed");
    }
    for path in &persisted.removed {
        let _ = writeln!(out, "{path}: taken away");
    }
    if persisted.written.is_empty() && persisted.removed.is_empty() {
        out.push_str("nothing to do\n");
    }
    if !persisted.next.is_empty() {
        let _ = writeln!(
            out,
            "it counts from the next boot on; now: {}",
            persisted.next.join("; ")
        );
    }
    out
}
