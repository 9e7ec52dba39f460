//! What would be done to each recorded machine, line by line.
//!
//! `UPDATE_GOLDEN=1 cargo test -p tuning machines` writes the plans anew; read the difference before it is committed.

use std::fmt::Write as _;
use std::path::Path;

use tuning::check::{Finding, Group, Report};
use tuning::settings::{Base, Profile};

use crate::support::{Fault, Faulty, MACHINES, machine, profiles, request};

fn report(name: &str, base: Base, force: bool) -> Report {
    let (machine, data) = machine(name);
    Report::of(&machine, data, &Profile::built_in(base), force)
}

fn finding<'a>(report: &'a Report, id: &str) -> &'a Finding {
    report
        .findings
        .iter()
        .find(|finding| finding.id == id)
        .unwrap_or_else(|| panic!("{id} is not among the findings"))
}

/// Changes with their values, refusals and what is unsupported with the reason, notes.
fn plan(report: &Report) -> String {
    let mut out = String::new();
    for found in report.group(Group::Change) {
        let current = found.current.as_deref().unwrap_or_default();
        let value = found.value.as_deref().unwrap_or_default();
        let _ = writeln!(out, "change {}: {current} -> {value}", found.id);
    }
    for (group, word) in [(Group::Refused, "refuse"), (Group::Unsupported, "cannot")] {
        for found in report.group(group) {
            let reason = found.reason.as_deref().unwrap_or_default();
            let current = found.current.as_deref().unwrap_or("-");
            let _ = writeln!(out, "{word} {}: {current}: {reason}", found.id);
        }
    }
    for note in &report.notes {
        let _ = writeln!(out, "note {note}");
    }
    out
}

#[test]
fn the_plan_for_every_recorded_machine_is_the_golden_one() {
    let mut wrong = Vec::new();
    for (name, ..) in MACHINES {
        for base in Base::ALL {
            let plan = plan(&report(name, base, false));
            let file = format!("fixtures/plans/{name}.{}.txt", base.name());
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
            if std::env::var_os("UPDATE_GOLDEN").is_some() {
                std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                std::fs::write(&path, &plan).expect("a golden plan is written");
            }
            if std::fs::read_to_string(&path).unwrap_or_default() != plan {
                wrong.push(format!("{file} should be:\n{plan}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn looking_writes_nothing() {
    for (name, ..) in MACHINES {
        let (machine, data) = machine(name);
        let faulty = Faulty::new(&machine, Fault::Panic, 0);
        for profile in profiles() {
            let request = request(&faulty, data, &profile);
            let report = Report::of(&faulty, data, &profile, true);
            let _ = tuning::script::script(&report);
            tuning::verify::verify(request).expect("a machine that can be read");
            // A container has no systemd for the unit: that is a refusal, and writes nothing either.
            let _ = tuning::persist::preview(
                request,
                tuning::persist::Unit {
                    program: "/usr/bin/pinion",
                    server: true,
                },
            );
        }
        assert_eq!(faulty.writes.get(), 0, "{name}");
    }
}

#[test]
fn capacities_are_raised_and_never_lowered() {
    let (machine, data) = machine("vm-2core-virtio");
    tuning::system::System::set(&machine, "/proc/sys/net/core/somaxconn", "65535").expect("there");
    for profile in profiles() {
        let report = Report::of(&machine, data, &profile, true);
        assert_eq!(finding(&report, "net.core.somaxconn").group, Group::Ok);
        assert_eq!(finding(&report, "net.ipv4.tcp_rmem").group, Group::Ok);
        assert_eq!(finding(&report, "block.nr_requests:vda").group, Group::Ok);
    }
}

#[test]
fn the_card_of_the_default_route_is_not_reset_unless_forced() {
    let careful = report("ec2-16core-ena", Base::Throughput, false);
    let found = finding(&careful, "nic.ring_rx:ens5");
    assert_eq!(found.group, Group::Refused);
    assert!(
        found
            .reason
            .as_deref()
            .is_some_and(|reason| reason.contains("--force"))
    );
    let forced = report("ec2-16core-ena", Base::Throughput, true);
    assert_eq!(finding(&forced, "nic.ring_rx:ens5").group, Group::Change);
    // The other card of this machine carries no default route.
    let metal = report("metal-2socket-mlx5", Base::Throughput, false);
    assert_eq!(
        finding(&metal, "nic.channels:enp129s0").group,
        Group::Change
    );
}

#[test]
fn no_core_is_set_aside_for_interrupts_on_four_cores_or_fewer() {
    for name in ["vm-2core-virtio", "laptop-4core"] {
        for base in Base::ALL {
            let report = report(name, base, true);
            let moved = |finding: &&Finding| {
                [
                    "irq_affinity",
                    "rps_cpus",
                    "xps_cpus",
                    "workqueue",
                    "channels",
                ]
                .iter()
                .any(|part| finding.key.contains(part))
            };
            assert!(report.group(Group::Change).find(moved).is_none(), "{name}");
            assert!(!report.notes.iter().any(|note| note.contains("--cores")));
        }
    }
    let large = report("ec2-16core-ena", Base::Throughput, false);
    assert!(large.notes.iter().any(|note| note.contains("--cores 1-15")));
}

#[test]
fn a_container_changes_nothing_that_is_its_hosts() {
    let (machine, data) = machine("container");
    for profile in profiles() {
        let report = Report::of(&machine, data, &profile, true);
        assert_eq!(
            report.pending,
            0,
            "{:?}",
            report.group(Group::Change).collect::<Vec<_>>()
        );
    }
    // With /proc/sys writable and the capability, what belongs to its own network may be changed, and nothing else.
    let text = include_str!("../../fixtures/container.txt")
        .replace(
            "903 901 0:101 /sys /proc/sys ro",
            "903 901 0:101 /sys /proc/sys rw",
        )
        .replace("902 900 0:102 / /sys ro", "902 900 0:102 / /sys rw");
    let machine = tuning::recorded::Recorded::parse(&text).expect("a machine");
    let report = Report::of(&machine, data, &Profile::built_in(Base::Throughput), true);
    let changed: Vec<&str> = report.group(Group::Change).map(|found| found.key).collect();
    assert_eq!(
        changed,
        [
            "net.ipv4.tcp_rmem",
            "net.ipv4.tcp_slow_start_after_idle",
            "net.ipv4.tcp_migrate_req"
        ]
    );
    // On the network of its host not even that.
    let shared = text.clone() + "== /proc/sys/net/core/netdev_budget\n300\n";
    let machine = tuning::recorded::Recorded::parse(&shared).expect("a machine");
    let report = Report::of(&machine, data, &Profile::built_in(Base::Throughput), true);
    assert_eq!(report.pending, 0);
}

#[test]
fn cards_of_another_network_namespace_are_not_touched() {
    let text = include_str!("../../fixtures/container.txt");
    // The same names, and another card behind one of them.
    for (from, to) in [
        (
            "== /sys/class/net/eth0/ifindex\n7\n",
            "== /sys/class/net/eth0/ifindex\n2\n",
        ),
        (
            "== /sys/class/net/lo/\n",
            "== /sys/class/net/lo/\n== /sys/class/net/ens5/\n",
        ),
    ] {
        assert!(text.contains(from));
        let machine =
            tuning::recorded::Recorded::parse(&text.replace(from, to)).expect("a machine");
        let report = Report::of(
            &machine,
            "/data",
            &Profile::built_in(Base::Throughput),
            true,
        );
        let found = finding(&report, "nic.driver");
        assert!(
            found
                .reason
                .as_deref()
                .is_some_and(|reason| reason.contains("another network namespace"))
        );
        assert!(report.inventory.nics.is_empty());
    }
}
