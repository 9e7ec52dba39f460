//! From the files in `sysctl/` to those of one machine: lines that it does not need become comments that say so.

use std::fmt::Write as _;

use crate::apply::Request;
use crate::check::{Finding, Report};
use crate::error::Error;
use crate::inventory::IRQBALANCE_PATHS;
use crate::settings::{Base, Place, Row};
use crate::target::Target;

/// Rules for disks, `@disk@` for the name of one.
pub const RULES: &str = include_str!("../../../sysctl/90-pinion.rules");
/// The unit that applies the rest at boot.
pub const SERVICE: &str = include_str!("../../../sysctl/pinion-tune.service");

/// The server as a service, and the slice that it runs in.
const SERVER: [(&str, &str); 2] = [
    (
        "/etc/systemd/system/pinion.service",
        include_str!("../../../sysctl/systemd/pinion.service"),
    ),
    (
        "/etc/systemd/system/pinion.slice",
        include_str!("../../../sysctl/systemd/pinion.slice"),
    ),
];

/// Kernel settings of a profile, as `sysctl/` shows them.
#[must_use]
pub fn sysctl_template(base: Base) -> &'static str {
    match base {
        Base::Throughput => include_str!("../../../sysctl/90-pinion-throughput.conf"),
        Base::Latency => include_str!("../../../sysctl/90-pinion-latency.conf"),
    }
}

const SYSCTL_PATH: &str = "/etc/sysctl.d/90-pinion.conf";
const RULES_PATH: &str = "/etc/udev/rules.d/90-pinion.rules";
const SERVICE_PATH: &str = "/etc/systemd/system/pinion-tune.service";
const SERVICE_LINK: &str = "/etc/systemd/system/multi-user.target.wants/pinion-tune.service";

/// What the units need to know.
#[derive(Clone, Copy, Debug)]
pub struct Unit<'a> {
    /// Path of this binary.
    pub program: &'a str,
    /// Whether the server's own unit and slice are installed too.
    pub server: bool,
}

/// A file of this machine.
pub(super) struct File {
    pub path: String,
    pub text: String,
    pub link: bool,
    /// Somebody else's, to which we add: it is kept and comes back.
    pub shared: bool,
}

/// What is installed on this machine, and what no file can keep here.
pub(super) struct Rendered {
    pub files: Vec<File>,
    /// Settings that only a unit could make at boot, where no systemd runs.
    pub left_out: Vec<String>,
}

fn owned(path: &str, text: String) -> File {
    File {
        path: path.to_owned(),
        text,
        link: false,
        shared: false,
    }
}

fn place(finding: &Finding) -> Option<Place> {
    Row::named(finding.key).map(|row| row.place)
}

/// Every file that holds these settings, as far as this machine has something that reads it at boot.
pub(super) fn render(
    request: Request<'_>,
    report: &Report,
    findings: &[&Finding],
    unit: Unit<'_>,
) -> Result<Rendered, Error> {
    let systemd = report.inventory.environment.systemd;
    let program = unit.program;
    // Once installed it stays until everything goes: a later run without the flag is about the settings alone.
    let installed = super::Manifest::load(request.system, request.state)?;
    let server = unit.server || installed.owned(SERVER[0].0).is_some();
    let (sysctl, others): (Vec<&Finding>, Vec<&Finding>) = findings
        .iter()
        .partition(|finding| place(finding) == Some(Place::Sysctl));
    let (disk, rest): (Vec<&Finding>, Vec<&Finding>) = others
        .iter()
        .partition(|finding| matches!(place(finding), Some(Place::Disk(_))));
    let mut files = Vec::new();
    if !sysctl.is_empty() {
        files.push(owned(
            SYSCTL_PATH,
            sysctl_file(request.profile.base, report, &sysctl),
        ));
    }
    if !disk.is_empty() {
        files.push(owned(RULES_PATH, rules_file(report, &disk)));
    }
    let mut left_out = Vec::new();
    if !systemd {
        left_out.extend(rest.iter().map(|finding| finding.id.clone()));
    } else if !rest.is_empty() {
        files.push(owned(SERVICE_PATH, service_file(request, program)));
        files.push(File {
            link: true,
            ..owned(SERVICE_LINK, SERVICE_PATH.to_owned())
        });
    }
    if server {
        if !systemd {
            return Err(Error::NotHere(
                "systemd does not run here: leave --systemd out".to_owned(),
            ));
        }
        files.extend(SERVER.map(|(path, text)| {
            // The unit names the place of an installed binary; this one may lie elsewhere.
            let ours = format!("ExecStart={} ", argument(program));
            owned(
                path,
                text.replace("ExecStart=/usr/local/bin/pinion ", &ours),
            )
        }));
    }
    if systemd {
        files.extend(irqbalance_file(request, report, &rest)?);
    }
    if files.is_empty()
        && let Some(first) = left_out.first()
    {
        return Err(Error::NotHere(format!(
            "systemd does not run here, and {first} is kept by no file of the kernel's: have whatever starts this machine run pinion tune apply --yes"
        )));
    }
    Ok(Rendered { files, left_out })
}

/// `key = value` of a line that is not a comment.
pub(crate) fn assignment(line: &str) -> Option<(&str, &str)> {
    if line.trim_start().starts_with('#') {
        return None;
    }
    let (key, value) = line.split_once('=')?;
    Some((key.trim(), value.trim()))
}

fn sysctl_file(base: Base, report: &Report, findings: &[&Finding]) -> String {
    let mut out = String::new();
    let mut left: Vec<&&Finding> = findings.iter().collect();
    for line in sysctl_template(base).lines() {
        let Some((key, _)) = assignment(line) else {
            let _ = writeln!(out, "{line}"); // a String takes everything
            continue;
        };
        let value = left
            .iter()
            .position(|finding| finding.key == key)
            .and_then(|at| left.swap_remove(at).value.as_ref());
        let _ = match value {
            Some(value) => writeln!(out, "{key} = {value}"),
            None => writeln!(out, "# {key}: {}", not_needed(report, key)),
        };
    }
    left.sort_by_key(|finding| &finding.id);
    for finding in left {
        let value = finding.value.as_deref().unwrap_or_default();
        let _ = writeln!(out, "\n# {}\n{} = {value}", finding.why, finding.key);
    }
    out
}

fn not_needed(report: &Report, key: &str) -> String {
    let found = report.findings.iter().find(|finding| finding.key == key);
    let Some(found) = found else {
        return "left as it is".to_owned();
    };
    match (&found.reason, &found.current) {
        (Some(reason), _) => format!("left as it is: {reason}"),
        (None, Some(current)) => format!("left as it is: {current} is enough"),
        (None, None) => "left as it is".to_owned(),
    }
}

fn rules_file(report: &Report, findings: &[&Finding]) -> String {
    let mut out = String::new();
    let disks = &report.inventory.data.disks;
    for line in RULES.lines() {
        if line.starts_with('#') || !line.contains("@disk@") {
            let _ = writeln!(out, "{line}");
            continue;
        }
        for disk in disks {
            let value = findings.iter().find_map(|finding| {
                let Some(Target::File { path, .. }) = &finding.target else {
                    return None;
                };
                let file = path.strip_prefix(&format!("/sys/block/{}/", disk.name))?;
                line.contains(&format!("{{{file}}}"))
                    .then_some(finding.value.as_deref()?)
            });
            if let (Some(value), Some((start, _))) = (value, line.rsplit_once('=')) {
                let start = start.replace("@disk@", &disk.name);
                let _ = writeln!(out, "{start}=\"{value}\"");
            }
        }
    }
    out
}

/// An argument as systemd reads it back.
fn argument(text: &str) -> String {
    let escaped = text
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('%', "%%")
        .replace('$', "$$");
    if escaped.is_empty() || escaped.contains([' ', '\t', ';', '\'', '"']) {
        format!("\"{escaped}\"")
    } else {
        escaped
    }
}

fn service_file(request: Request<'_>, program: &str) -> String {
    let mut arguments = vec![
        "--profile",
        &request.profile.name,
        "--data",
        request.data,
        "--state",
        request.state,
    ];
    if request.force {
        arguments.push("--force");
    }
    let arguments: Vec<String> = arguments.into_iter().map(argument).collect();
    SERVICE
        .replace("@pinion@", &argument(program))
        .replace("@arguments@", &arguments.join(" "))
}

/// irqbalance's own settings with our interrupts banned from it, where it runs and would move them.
fn irqbalance_file(
    request: Request<'_>,
    report: &Report,
    findings: &[&Finding],
) -> Result<Option<File>, Error> {
    let numbers: Vec<&str> = findings
        .iter()
        .filter_map(|finding| match &finding.target {
            Some(Target::File { path, .. }) => path
                .strip_prefix("/proc/irq/")
                .and_then(|rest| rest.split('/').next()),
            _ => None,
        })
        .collect();
    if numbers.is_empty() || !report.inventory.irqbalance {
        return Ok(None);
    }
    let there = |path: &&&str| request.system.read(path).is_ok();
    let Some(path) = IRQBALANCE_PATHS.iter().find(there) else {
        return Ok(None);
    };
    let current = super::present(request.system, path, false)?.unwrap_or_default();
    let manifest = super::Manifest::load(request.system, request.state)?;
    // Ours from an earlier time is made anew from what was there before it.
    let base = manifest
        .owned(path)
        .filter(|owned| owned.is_ours(&current))
        .and_then(|owned| owned.original.clone())
        .unwrap_or(current);
    let before = base
        .lines()
        .filter_map(assignment)
        .rfind(|(key, _)| *key == "IRQBALANCE_ARGS")
        .map_or("", |(_, value)| value.trim_matches('"'));
    let mut arguments = before.to_owned();
    for number in numbers {
        let _ = write!(arguments, " --banirq={number}");
    }
    let text = format!(
        "{}\n# pinion tune persist: these interrupts belong to cores of their own\nIRQBALANCE_ARGS=\"{}\"\n",
        base.trim_end(),
        arguments.trim()
    );
    Ok(Some(File {
        shared: true,
        ..owned(path, text)
    }))
}

/// What makes files that came or went take effect now.
pub(super) fn next_steps(paths: &[String]) -> Vec<&'static str> {
    let has = |path: &str| paths.iter().any(|known| known == path);
    let mut steps = Vec::new();
    if has(SYSCTL_PATH) {
        steps.push("sysctl --system");
    }
    if has(RULES_PATH) {
        steps.push("udevadm control --reload && udevadm trigger --subsystem-match=block");
    }
    if has(SERVICE_PATH) || SERVER.iter().any(|(path, _)| has(path)) {
        steps.push("systemctl daemon-reload");
    }
    if IRQBALANCE_PATHS.iter().any(|path| has(path)) {
        steps.push("systemctl restart irqbalance");
    }
    steps
}
