//! Installed files: only ours, only what the machine needs, taken away without trace.

use tuning::Error;
use tuning::apply::apply;
use tuning::check::{Group, Report};
use tuning::persist::{Unit, persist, preview, remove};
use tuning::recorded::Recorded;
use tuning::revert::{Conflict, revert};
use tuning::settings::{Base, Profile};
use tuning::system::System;

use crate::support::{Fault, Faulty, STATE, content, machine, request};

const CONF: &str = "/etc/sysctl.d/90-pinion.conf";
const RULES: &str = "/etc/udev/rules.d/90-pinion.rules";
const UNIT: &str = "/etc/systemd/system/pinion-tune.service";
const LINK: &str = "/etc/systemd/system/multi-user.target.wants/pinion-tune.service";
const BALANCE: &str = "/etc/default/irqbalance";
const PROGRAM: Unit<'_> = Unit {
    program: "/opt/with space/pinion",
    server: false,
};

fn lines(machine: &Recorded, path: &str) -> Vec<String> {
    let text = machine
        .read(path)
        .unwrap_or_else(|_| panic!("{path} is there"));
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn files_hold_what_the_machine_needs_and_go_without_trace() {
    let (machine, data) = machine("ec2-16core-ena");
    let before = content(&machine);
    let profile = Profile::built_in(Base::Throughput);
    let request = request(&machine, data, &profile);
    let persisted = persist(request, PROGRAM).expect("a machine with systemd");
    assert_eq!(persisted.written, [CONF, RULES, UNIT, LINK, BALANCE]);
    let conf = lines(&machine, CONF);
    assert!(conf.contains(&"net.ipv4.tcp_rmem = 4096 131072 16777216".to_owned()));
    assert!(conf.contains(&"vm.swappiness = 10".to_owned()));
    assert!(
        !conf.iter().any(|line| line.contains("somaxconn")),
        "4096 is there already: {conf:?}"
    );
    let rules = lines(&machine, RULES);
    assert!(
        rules
            .iter()
            .all(|line| line.contains("KERNEL==\"nvme1n1\"")),
        "{rules:?}"
    );
    assert!(
        rules
            .iter()
            .any(|line| line.ends_with("ATTR{queue/nomerges}=\"2\"")),
        "{rules:?}"
    );
    assert!(
        !rules.iter().any(|line| line.contains("scheduler")),
        "none is in force already: {rules:?}"
    );
    let unit = machine.read(UNIT).expect("there");
    assert!(unit.contains(
        "ExecStart=\"/opt/with space/pinion\" tune apply --yes --profile throughput --data /var/lib/pinion --state /var/lib/pinion/tuning --force\n"
    ), "{unit}");
    assert!(!unit.contains('@'), "{unit}");
    assert_eq!(machine.link(LINK).expect("enabled"), UNIT);
    let balance = machine.read(BALANCE).expect("there");
    assert!(balance.ends_with(
        "IRQBALANCE_ARGS=\"--policyscript=/etc/irq.sh --banirq=28 --banirq=29 --banirq=30 --banirq=31 --banirq=32 --banirq=33 --banirq=34 --banirq=35\"\n"
    ), "{balance}");

    let report = Report::of(&machine, data, &profile, true);
    let balance = report
        .findings
        .iter()
        .find(|found| found.id == "irqbalance");
    assert_eq!(balance.map(|found| found.group), Some(Group::Ok), "banned");

    // Applied, and persisted again: the same files, although nothing differs any more.
    let files = |machine: &Recorded| -> Vec<(String, String)> {
        machine
            .files()
            .into_iter()
            .filter(|(path, _)| path.starts_with("/etc/"))
            .collect()
    };
    let first = files(&machine);
    apply(request).expect("nothing fails here");
    persist(request, PROGRAM).expect("ours");
    assert_eq!(files(&machine), first);
    assert!(tuning::verify::verify(request).expect("readable").holds());

    revert(&machine, STATE, Conflict::Refuse).expect("nothing fails here");
    remove(&machine, STATE, false).expect("ours");
    assert_eq!(content(&machine), before);
    assert!(machine.link(LINK).is_err());
    assert_eq!(
        remove(&machine, STATE, false).expect("nothing"),
        tuning::persist::Persisted::default()
    );
}

#[test]
fn what_is_not_ours_is_neither_written_over_nor_taken_away() {
    let (machine, data) = machine("ec2-16core-ena");
    let profile = Profile::built_in(Base::Throughput);
    let request = request(&machine, data, &profile);
    machine
        .replace(CONF, "vm.swappiness = 1\n")
        .expect("in memory");
    let before = content(&machine);
    let error = persist(request, PROGRAM).expect_err("somebody else's");
    assert!(
        error.to_string().contains("was not written by pinion"),
        "{error}"
    );
    assert_eq!(content(&machine), before);

    machine.remove(CONF).expect("in memory");
    persist(request, PROGRAM).expect("nothing in the way");
    machine.replace(CONF, "# mine now\n").expect("in memory");
    let verified = tuning::verify::verify(request).expect("readable");
    assert_eq!(
        verified.files,
        [format!("{CONF} was changed since it was installed")]
    );
    let before = content(&machine);
    for result in [remove(&machine, STATE, false), persist(request, PROGRAM)] {
        assert!(matches!(result, Err(Error::NotOurs { .. })), "{result:?}");
        assert_eq!(content(&machine), before, "nothing goes when one must stay");
    }
    remove(&machine, STATE, true).expect("forced");
    assert!(machine.read(CONF).is_err());
    let balance = machine.read(BALANCE).expect("it was there before");
    assert!(!balance.contains("banirq"), "{balance}");
}

#[test]
fn an_interrupted_installation_is_finished_or_taken_away() {
    let (fresh, data) = machine("ec2-16core-ena");
    let profiles = [Base::Throughput, Base::Latency].map(Profile::built_in);
    let before = content(&fresh);
    // From nothing, and from the files of another profile.
    let installed = fresh.clone();
    persist(request(&installed, data, &profiles[0]), PROGRAM).expect("nothing in the way");
    for start in [&fresh, &installed] {
        let whole = start.clone();
        let counting = Faulty::new(&whole, Fault::Panic, usize::MAX);
        persist(request(&counting, data, &profiles[1]), PROGRAM).expect("nothing fails here");
        for at in 0..counting.writes.get() {
            for fault in [Fault::DeathBefore, Fault::DeathBehind, Fault::Errno(28)] {
                let machine = start.clone();
                let faulty = Faulty::new(&machine, fault, at);
                let _ = persist(request(&faulty, data, &profiles[1]), PROGRAM);
                let taken = machine.clone();
                remove(&taken, STATE, false)
                    .unwrap_or_else(|error| panic!("{fault:?} at {at}: {error}"));
                assert_eq!(content(&taken), before, "{fault:?} at {at}, taken away");
                persist(request(&machine, data, &profiles[1]), PROGRAM)
                    .unwrap_or_else(|error| panic!("{fault:?} at {at}: {error}"));
                assert_eq!(
                    content(&machine),
                    content(&whole),
                    "{fault:?} at {at}, finished"
                );
            }
        }
    }
}

#[test]
fn what_no_loader_keeps_is_left_out_by_name_where_systemd_does_not_run() {
    let (machine, data) = machine("vm-2core-virtio");
    let profile = Profile::built_in(Base::Throughput);
    let request = request(&machine, data, &profile);
    let report = Report::of(&machine, data, &profile, true);
    assert!(!report.inventory.environment.systemd);
    let before = content(&machine);
    let previewed = preview(request, PROGRAM).expect("the loaders' files");
    let persisted = persist(request, PROGRAM).expect("the loaders' files");
    assert_eq!(persisted.written, [CONF, RULES]);
    assert_eq!(previewed.left_out, persisted.left_out);
    assert!(
        persisted.left_out.iter().any(|id| id.contains("adaptive")),
        "{:?}",
        persisted.left_out
    );
    assert!(machine.read(UNIT).is_err() && machine.link(LINK).is_err());
    // What was left out is pending still, and not taken for installed.
    let again = persist(request, PROGRAM).expect("ours");
    assert_eq!(again.left_out, persisted.left_out);
    let unit = Unit {
        server: true,
        ..PROGRAM
    };
    let error = persist(request, unit).expect_err("nobody would start it");
    assert!(error.to_string().contains("leave --systemd out"), "{error}");
    remove(&machine, STATE, false).expect("ours");
    assert_eq!(content(&machine), before);
}

#[test]
fn a_container_installs_nothing() {
    let (machine, data) = machine("container");
    let profile = Profile::built_in(Base::Throughput);
    let before = content(&machine);
    let error = persist(request(&machine, data, &profile), PROGRAM).expect_err("not a host");
    assert!(error.to_string().contains("on the host itself"), "{error}");
    assert_eq!(content(&machine), before);
}

#[test]
fn the_servers_own_units_come_and_go_with_the_rest() {
    let (machine, data) = machine("ec2-16core-ena");
    let before = content(&machine);
    let profile = Profile::built_in(Base::Throughput);
    let request = request(&machine, data, &profile);
    let unit = Unit {
        program: "/opt/pinion",
        server: true,
    };
    let persisted = persist(request, unit).expect("a machine with systemd");
    let server = "/etc/systemd/system/pinion.service".to_owned();
    assert!(persisted.written.contains(&server));
    let text = machine.read(&server).expect("there");
    assert!(
        text.contains("\nExecStart=/opt/pinion serve --data"),
        "{text}"
    );
    assert!(machine.read("/etc/systemd/system/pinion.slice").is_ok());
    // A later run that does not ask for it leaves it where it is.
    let unasked = Unit {
        server: false,
        ..unit
    };
    persist(request, unasked).expect("ours");
    assert_eq!(machine.read(&server).expect("there"), text);
    remove(&machine, STATE, false).expect("ours");
    assert_eq!(content(&machine), before);
}
