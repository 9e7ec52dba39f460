//! Verdicts as text: the machine in a few lines, then every setting under its verdict.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use tuning::check::{Finding, Group, Report};
use tuning::inventory::{Disk, Groups, Inventory, Nic, cpu_ranges};
use tuning::verify::{Outcome, Verified};

use crate::text::{counted, human};

/// A whole report.
pub fn report(report: &Report) -> String {
    let mut out = machine(&report.inventory);
    let _ = writeln!(out, "profile    {}", report.profile); // a String takes everything
    for note in &report.notes {
        let _ = writeln!(out, "note       {note}");
    }
    for (group, heading) in [
        (Group::Change, "change"),
        (Group::Ok, "ok"),
        (Group::Unsupported, "unsupported"),
        (Group::Refused, "refused"),
    ] {
        let findings: Vec<&Finding> = report.group(group).collect();
        if findings.is_empty() {
            continue;
        }
        let _ = writeln!(out, "\n{heading} ({})", findings.len());
        for found in findings {
            line(&mut out, group, found);
        }
    }
    let _ = match report.pending {
        0 => writeln!(out, "\nnothing to do"),
        changes => writeln!(
            out,
            "\n{} pending: pinion tune plan shows the difference",
            counted(changes as u64, "change")
        ),
    };
    out
}

/// What would be changed, as a difference.
pub fn difference(report: &Report) -> String {
    let mut out = String::new();
    for found in report.group(Group::Change) {
        let current = found.current.as_deref().unwrap_or_default();
        let value = found.value.as_deref().unwrap_or_default();
        let _ = writeln!(out, "# {}", found.why);
        let _ = writeln!(out, "-{} = {current}\n+{} = {value}", found.id, found.id);
    }
    for found in report.group(Group::Refused) {
        let reason = found.reason.as_deref().unwrap_or_default();
        let current = found.current.as_deref().unwrap_or_default();
        let _ = writeln!(out, "# not changed: {} = {current}: {reason}", found.id);
    }
    let _ = match report.pending {
        0 => writeln!(out, "# nothing to do"),
        changes => writeln!(
            out,
            "# {}: pinion tune apply --yes makes them",
            counted(changes as u64, "change")
        ),
    };
    out
}

/// What was changed, looked at again.
pub fn verified(verified: &Verified) -> String {
    let mut out = String::new();
    match &verified.profile {
        None => out.push_str("nothing was applied since this machine was booted\n"),
        Some(profile) => {
            let seen = verified.settings(Outcome::EffectSeen).count();
            let read = verified.settings(Outcome::ReadAgain).count();
            let _ = writeln!(
                out,
                "profile {profile}: {} as they were left; of {seen} the effect is seen, {read} are only read again",
                counted((seen + read) as u64, "setting")
            );
            let _ = writeln!(
                out,
                "{} dropped by the receive path since",
                counted(verified.dropped_since, "packet")
            );
        }
    }
    for (outcome, heading) in [
        (Outcome::EffectSeen, "effect seen"),
        (Outcome::ReadAgain, "only read again"),
        (Outcome::WithoutEffect, "without effect"),
        (Outcome::Drifted, "not as it was left"),
    ] {
        let count = verified.settings(outcome).count();
        if count > 0 {
            let _ = writeln!(out, "\n{heading} ({count})");
        }
        for looked in verified.settings(outcome) {
            let shown = looked.shown.as_deref().unwrap_or_default();
            let _ = match outcome {
                Outcome::ReadAgain => writeln!(out, "  {:<36} {}", looked.id, looked.now),
                Outcome::Drifted => writeln!(out, "  {looked}"),
                _ => writeln!(out, "  {:<36} {}: {shown}", looked.id, looked.now),
            };
        }
    }
    if !verified.settings.is_empty() {
        out.push('\n');
    }
    for problem in &verified.files {
        let _ = writeln!(out, "{problem}");
    }
    if verified.unfinished {
        out.push_str("a run was cut short: pinion tune apply --yes finishes it, pinion tune revert --yes undoes it\n");
    }
    if verified.pending > 0 {
        let _ = writeln!(
            out,
            "{} pending: pinion tune plan shows the difference",
            counted(verified.pending as u64, "change")
        );
    }
    out
}

fn line(out: &mut String, group: Group, found: &Finding) {
    let current = found.current.as_deref().unwrap_or("-");
    let values = match group {
        Group::Change => format!("{current} -> {}", found.wanted),
        Group::Refused => format!("{current}, wanted {}", found.wanted),
        Group::Ok => current.to_owned(),
        Group::Unsupported => String::new(),
    };
    let reason = found.reason.as_deref().unwrap_or_default();
    let between = if values.is_empty() || reason.is_empty() {
        ""
    } else {
        "; "
    };
    let _ = writeln!(out, "  {:<36} {values}{between}{reason}", found.id);
    if group == Group::Change {
        let _ = writeln!(out, "      why:  {}", found.why);
        let _ = writeln!(out, "      risk: {}", found.risk);
        let _ = writeln!(out, "      {}, needs {}", scope(found), found.capability);
    }
}

fn scope(found: &Finding) -> &'static str {
    use tuning::settings::Scope;
    match found.scope {
        Scope::Host => "whole machine until it boots",
        Scope::NetworkNamespace => "this network namespace until it ends",
        Scope::Boot => "from the next boot on",
        Scope::Socket => "per socket",
        Scope::Process => "one process",
    }
}

fn machine(inventory: &Inventory) -> String {
    let mut out = String::new();
    let kernel = &inventory.kernel;
    let kind = match (&inventory.environment.container, kernel.virtual_machine) {
        (Some(_), _) => "container",
        (None, true) => "virtual machine",
        (None, false) => "bare metal",
    };
    let product = kernel.product.as_deref().unwrap_or("no firmware name");
    let _ = writeln!(
        out,
        "machine    Linux {}, {kind} ({product})",
        kernel.release
    );
    let cpu = &inventory.cpu;
    let _ = writeln!(
        out,
        "cores      {}, {} on {}, {}",
        cpu.model.as_deref().unwrap_or("unknown processor"),
        counted(cpu.cores.len() as u64, "core"),
        counted(cpu.nodes.len() as u64, "node"),
        if cpu.smt {
            format!("{} threads", cpu.online.len())
        } else {
            "one thread each".to_owned()
        },
    );
    if cpu.allowed.len() < cpu.online.len() {
        let _ = writeln!(
            out,
            "           of which this process may use {}",
            cpu_ranges(&cpu.allowed)
        );
    }
    if !cpu.caches.is_empty() {
        let caches = cpu.caches.iter().map(|cache| {
            format!(
                "L{} {} {} for {}",
                cache.level,
                cache.kind.to_lowercase(),
                cache.size,
                cache.shared_by
            )
        });
        let _ = writeln!(out, "caches     {}", caches.collect::<Vec<_>>().join(", "));
    }
    let idle = cpu.idle_driver.as_deref().unwrap_or("no idle driver");
    let governors: Vec<&str> = cpu
        .frequency
        .iter()
        .map(|policy| policy.governor.as_str())
        .collect();
    let governor = governors.first().unwrap_or(&"not set here");
    let _ = writeln!(out, "power      frequency governor {governor}, {idle}");
    let clock = inventory.clocksource.as_ref();
    let _ = writeln!(
        out,
        "clock      {}",
        clock.map_or("unknown".to_owned(), |clock| {
            format!("{} of {}", clock.current, clock.offered.join(", "))
        })
    );
    let _ = writeln!(
        out,
        "memory     {}, huge pages {}, swap {}",
        human(inventory.memory.total_bytes),
        inventory
            .memory
            .huge_pages
            .as_ref()
            .map_or("unknown", |choice| &choice.current),
        human(inventory.memory.swap_bytes),
    );
    let limit = |limit: Option<u64>| match limit {
        None => "unknown".to_owned(),
        Some(u64::MAX) => "unlimited".to_owned(),
        Some(number) => number.to_string(),
    };
    let _ = writeln!(
        out,
        "limits     {} open files, {} bytes locked, io_uring {}",
        limit(inventory.limits.open_files),
        limit(inventory.limits.locked_bytes),
        match kernel.io_uring_disabled {
            None | Some(0) => "allowed",
            Some(1) => "for its group only",
            Some(_) => "forbidden",
        }
    );
    if let Some(line) = groups(&inventory.groups) {
        let _ = writeln!(out, "           {line}");
    }
    for nic in inventory.nics.iter().filter(|nic| nic.driver.is_some()) {
        let _ = writeln!(out, "network    {}", card(nic));
    }
    if !inventory.ethtool && inventory.nics.iter().any(|nic| nic.driver.is_some()) {
        let _ = writeln!(
            out,
            "           rings, channels and coalescing unknown: apt-get install ethtool"
        );
    }
    let data = &inventory.data;
    let _ = writeln!(
        out,
        "data       {} on {} ({})",
        data.path,
        data.filesystem
            .as_deref()
            .unwrap_or("an unknown filesystem"),
        data.options.join(",")
    );
    for disk in &data.disks {
        let _ = writeln!(out, "disk       {}", disk_text(disk));
    }
    out
}

/// What control groups leave, if they limit anything.
fn groups(groups: &Groups) -> Option<String> {
    let limits = [
        groups
            .memory_bytes
            .map(|bytes| format!("{} of memory", human(bytes))),
        groups
            .cores
            .map(|cores| format!("the time of {cores:.1} cores")),
        groups.threads.map(|threads| format!("{threads} threads")),
    ];
    let limits: Vec<String> = limits.into_iter().flatten().collect();
    (!limits.is_empty()).then(|| format!("control groups leave {}", limits.join(", ")))
}

fn card(nic: &Nic) -> String {
    let mut text = format!(
        "{}: {}{}, {}",
        nic.name,
        nic.driver.as_deref().unwrap_or("virtual"),
        if nic.default_route {
            ", default route"
        } else {
            ""
        },
        counted(nic.receive_queues as u64, "queue"),
    );
    if let Some((_, most)) = nic.channels {
        let _ = write!(text, " of {most}");
    }
    if let Some((now, most)) = nic.ring_rx {
        let _ = write!(text, ", ring {now} of {most}");
    }
    for (name, value) in &nic.offloads {
        if value != "on" {
            let _ = write!(text, ", {name} {value}");
        }
    }
    if nic.missed > 0 {
        let _ = write!(text, ", {} packets missed", nic.missed);
    }
    text
}

fn disk_text(disk: &Disk) -> String {
    let mut text = format!(
        "{}{}: scheduler {}, cache {}, FUA {}, {} requests",
        disk.name,
        disk.model
            .as_ref()
            .map_or(String::new(), |model| format!(" ({model})")),
        disk.scheduler
            .as_ref()
            .map_or("unknown", |scheduler| &scheduler.current),
        disk.write_cache.as_deref().unwrap_or("unknown"),
        match disk.fua {
            Some(true) => "yes",
            Some(false) => "no",
            None => "unknown",
        },
        disk.requests_max
            .map_or("unknown".to_owned(), |requests| requests.to_string()),
    );
    if !disk.interrupts.is_empty() {
        let all = disk.interrupts.iter().flat_map(|one| &one.affinity);
        let cores: BTreeSet<usize> = all.copied().collect();
        let cores: Vec<usize> = cores.into_iter().collect();
        let _ = write!(
            text,
            ", {} placed by the kernel on cores {}",
            counted(disk.interrupts.len() as u64, "interrupt"),
            cpu_ranges(&cores)
        );
    }
    text
}
