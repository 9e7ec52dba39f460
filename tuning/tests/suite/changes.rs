//! Applying and putting back, on machines whose settings were shuffled: what must hold whatever is found.

use proptest::prelude::*;
use tuning::apply::apply;
use tuning::check::{Group, Report};
use tuning::recorded::Recorded;
use tuning::revert::{Conflict, revert};
use tuning::settings::{Base, Profile};
use tuning::system::System;
use tuning::verify::{Outcome, verify};

use crate::support::{Fault, Faulty, MACHINES, STATE, content, machine, request};

/// A recorded machine with some of its settings changed to other numbers.
fn shuffled(which: usize, changes: &[(usize, u32)]) -> (Recorded, &'static str) {
    let (machine, data) = machine(MACHINES[which].0);
    let numbers: Vec<String> = machine
        .files()
        .into_iter()
        .filter(|(path, text)| {
            let setting = path.starts_with("/proc/sys/") || path.contains("/queue/");
            setting && !path.contains("boot_id") && text.trim().parse::<u64>().is_ok()
        })
        .map(|(path, _)| path)
        .collect();
    for (at, value) in changes {
        let path = &numbers[at % numbers.len()];
        machine
            .set(path, &value.to_string())
            .expect("a setting that is there");
    }
    (machine, data)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn revert_undoes_apply_exactly_and_apply_twice_is_apply_once(
        which in 0..MACHINES.len(),
        latency: bool,
        changes in prop::collection::vec((0_usize..1000, 0_u32..200_000), 0..12),
    ) {
        let (machine, data) = shuffled(which, &changes);
        let before = content(&machine);
        let base = if latency { Base::Latency } else { Base::Throughput };
        let profile = Profile::built_in(base);
        let request = request(&machine, data, &profile);
        let applied = apply(request).expect("nothing fails here");
        prop_assert!(applied.left_out.is_empty(), "{:?}", applied.left_out);
        let once = content(&machine);
        prop_assert_eq!(Report::of(&machine, data, &profile, true).pending, 0);
        let verified = verify(request).expect("nothing fails here");
        let drifted = verified.settings(Outcome::Drifted).count();
        prop_assert!(drifted == 0 && verified.files.is_empty() && !verified.unfinished);
        let again = apply(request).expect("nothing fails here");
        prop_assert!(again.changed.is_empty(), "{:?}", again.changed);
        prop_assert_eq!(&content(&machine), &once);
        revert(&machine, STATE, Conflict::Refuse).expect("nothing fails here");
        prop_assert_eq!(&content(&machine), &before);
        let idle = revert(&machine, STATE, Conflict::Refuse).expect("nothing fails here");
        prop_assert!(idle.restored.is_empty());
        prop_assert_eq!(&content(&machine), &before);
    }

    #[test]
    fn another_profile_on_top_is_undone_with_the_first(
        which in 0..MACHINES.len(),
        changes in prop::collection::vec((0_usize..1000, 0_u32..200_000), 0..12),
    ) {
        let (machine, data) = shuffled(which, &changes);
        let before = content(&machine);
        for base in [Base::Throughput, Base::Latency, Base::Throughput] {
            let profile = Profile::built_in(base);
            apply(request(&machine, data, &profile)).expect("nothing fails here");
        }
        revert(&machine, STATE, Conflict::Refuse).expect("nothing fails here");
        prop_assert_eq!(content(&machine), before);
    }
}

const SWAPPINESS: &str = "/proc/sys/vm/swappiness";
const SCHEDULER: &str = "/sys/block/vda/queue/scheduler";
const REQUESTS: &str = "/sys/block/vda/queue/nr_requests";

fn applied() -> (Recorded, std::collections::BTreeMap<String, String>) {
    let (machine, data) = machine("vm-2core-virtio");
    let before = content(&machine);
    let profile = Profile::built_in(Base::Throughput);
    apply(request(&machine, data, &profile)).expect("nothing fails here");
    (machine, before)
}

#[test]
fn what_somebody_changed_since_is_named_and_left() {
    let (machine, before) = applied();
    machine.set(SWAPPINESS, "33").expect("there");
    machine.set(SCHEDULER, "bfq").expect("there");
    let reverted = revert(&machine, STATE, Conflict::Refuse).expect("it can be read");
    let named: Vec<String> = reverted.left().collect();
    assert_eq!(
        named,
        [
            "vm.swappiness is 33, we had left 10",
            "block.scheduler:vda is bfq, we had left none",
        ]
    );
    let now = content(&machine);
    assert_eq!(
        (&*now[SWAPPINESS], &*now[SCHEDULER]),
        ("33", "none mq-deadline kyber [bfq]")
    );
    assert_eq!(
        now[REQUESTS], "256",
        "the queue length belongs to the scheduler that is there now"
    );
    assert_eq!(
        now["/proc/sys/net/ipv4/tcp_migrate_req"], "0",
        "the rest is put back"
    );
    // The old values are kept: asked for, they come back.
    let reverted = revert(&machine, STATE, Conflict::Overwrite).expect("it can be written");
    assert_eq!(reverted.left().count(), 0);
    assert_eq!(content(&machine), before);
}

#[test]
fn what_somebody_changed_since_can_be_left_for_good() {
    let (machine, _) = applied();
    machine.set(SWAPPINESS, "33").expect("there");
    revert(&machine, STATE, Conflict::Keep).expect("it can be read");
    let reverted = revert(&machine, STATE, Conflict::Overwrite).expect("it can be read");
    assert!(reverted.restored.is_empty());
    assert_eq!(content(&machine)[SWAPPINESS], "33");
}

#[test]
fn verify_names_what_has_drifted() {
    let (machine, _) = applied();
    let profile = Profile::built_in(Base::Throughput);
    let request = request(&machine, "/var/lib/pinion", &profile);
    assert!(verify(request).expect("it can be read").holds());
    machine.set(SWAPPINESS, "33").expect("there");
    let verified = verify(request).expect("it can be read");
    assert!(!verified.holds());
    let amiss: Vec<String> = verified.amiss().map(ToString::to_string).collect();
    assert_eq!(amiss, ["vm.swappiness: 10 was left there, now it is 33"]);
}

/// A table of two interrupts on two cores.
fn interrupts(machine: &Recorded, of_29: [u64; 2], of_30: [u64; 2]) {
    let table = format!(
        "            CPU0       CPU4\n 29: {} {} PCI-MSI ens5-Tx-Rx-1\n 30: {} {} PCI-MSI ens5-Tx-Rx-2\nNMI: 7 8 Non-maskable\n",
        of_29[0], of_29[1], of_30[0], of_30[1]
    );
    machine
        .replace("/proc/interrupts", &table)
        .expect("in memory");
}

#[test]
fn verify_tells_what_was_only_read_again_from_what_shows_its_effect() {
    let (machine, data) = machine("ec2-16core-ena");
    let profile = Profile::built_in(Base::Throughput);
    let request = request(&machine, data, &profile);
    interrupts(&machine, [100, 9], [50, 70]);
    apply(request).expect("nothing fails here");
    let sent_to = |irq: u32| {
        machine
            .read(&format!("/proc/irq/{irq}/smp_affinity_list"))
            .expect("there")
    };
    for irq in [29, 30] {
        let effective = format!("/proc/irq/{irq}/effective_affinity_list");
        machine
            .replace(&effective, &sent_to(irq))
            .expect("in memory");
    }
    let of = |irq: u32| {
        let verified = verify(request).expect("it can be read");
        let settings = verified.settings.into_iter();
        let mut of_irq = settings.filter(|s| s.id.contains(&format!("ens5/{irq} ")));
        of_irq.next().expect("its affinity was changed")
    };
    let verified = verify(request).expect("it can be read");
    assert!(verified.holds());
    let read_again: Vec<_> = verified.settings(Outcome::ReadAgain).collect();
    assert!(read_again.iter().any(|s| s.id == "vm.swappiness"));
    assert!(read_again.iter().all(|s| s.shown.is_none()));
    assert!(
        of(30)
            .shown
            .expect("its effect")
            .contains("none has come since")
    );

    // Counts go on from those of the run: what came before is nobody's stray.
    let core: usize = sent_to(30).trim().parse().expect("one core");
    let column = usize::from(core == 4);
    assert!(core == 0 || core == 4, "the table above has no core {core}");
    let mut counts = [50, 70];
    counts[column] += 2000;
    counts[1 - column] += 3;
    interrupts(&machine, [100, 9], counts);
    let looked = of(30);
    assert_eq!(looked.outcome, Outcome::EffectSeen);
    assert!(
        looked
            .shown
            .as_ref()
            .is_some_and(|s| s.starts_with("2003 interrupts since")),
        "{looked:?}"
    );

    counts[1 - column] += 400;
    interrupts(&machine, [100, 9], counts);
    let looked = of(30);
    assert_eq!(looked.outcome, Outcome::WithoutEffect);
    assert_eq!(
        looked.shown.as_deref(),
        Some("403 of 2403 interrupts since went to other cores")
    );
    assert_eq!(of(29).outcome, Outcome::EffectSeen);
    assert!(!verify(request).expect("it can be read").holds());
}

#[test]
fn verify_sees_an_interrupt_that_does_not_go_where_it_was_sent() {
    let (machine, data) = machine("ec2-16core-ena");
    let profile = Profile::built_in(Base::Throughput);
    let request = request(&machine, data, &profile);
    apply(request).expect("nothing fails here");
    machine
        .replace("/proc/irq/30/effective_affinity_list", "7\n")
        .expect("in memory");
    let verified = verify(request).expect("it can be read");
    let amiss: Vec<String> = verified.amiss().map(ToString::to_string).collect();
    assert_eq!(amiss.len(), 1);
    assert!(
        amiss[0].starts_with("nic.irq_affinity:ens5/30 (ens5-Tx-Rx-2): ")
            && amiss[0].ends_with(", the interrupt still goes to core 7"),
        "{amiss:?}"
    );
}

#[test]
fn after_a_boot_there_is_nothing_to_put_back() {
    let (machine, _) = applied();
    machine
        .set("/proc/sys/kernel/random/boot_id", "another")
        .expect("there");
    machine.set(SWAPPINESS, "60").expect("there");
    let reverted = revert(&machine, STATE, Conflict::Refuse).expect("it can be read");
    assert!(reverted.rebooted && reverted.restored.is_empty());
    assert_eq!(
        content(&machine)[SCHEDULER],
        "[none] mq-deadline kyber bfq",
        "nothing was written"
    );
}

#[test]
fn another_network_namespace_keeps_its_hands_off_the_journal() {
    let (machine, _) = applied();
    machine
        .make_link("/proc/self/ns/net", "net:[4026539999]")
        .expect("in memory");
    let error = revert(&machine, STATE, Conflict::Refuse).expect_err("it is not ours");
    assert!(
        error.to_string().contains("another network namespace"),
        "{error}"
    );
}

#[test]
fn a_journal_that_does_not_read_is_not_taken_for_an_empty_one() {
    let (machine, _) = applied();
    machine
        .replace("/var/lib/pinion/tuning/journal.json", "{\"version\":1")
        .expect("in memory");
    let profile = Profile::built_in(Base::Latency);
    let before = content(&machine);
    let error = revert(&machine, STATE, Conflict::Overwrite).expect_err("it is cut off");
    assert!(error.to_string().contains("nothing was done"), "{error}");
    apply(request(&machine, "/var/lib/pinion", &profile)).expect_err("it is cut off");
    assert_eq!(content(&machine), before);
}

#[test]
fn without_the_capability_nothing_is_begun() {
    let text = include_str!("../../fixtures/vm-2core-virtio.txt")
        .replace("CapEff:\t000001fffeffffff", "CapEff:\t0");
    let machine = Recorded::parse(&text).expect("a machine");
    let before = content(&machine);
    let profile = Profile::built_in(Base::Throughput);
    let error = apply(request(&machine, "/", &profile)).expect_err("an ordinary user");
    assert!(error.to_string().contains("run it as root"), "{error}");
    assert_eq!(content(&machine), before);
}

#[test]
fn a_setting_that_cannot_be_read_at_the_end_is_put_back_all_the_same() {
    const FIRST: &str = "/proc/sys/vm/swappiness";
    let (machine, data) = machine("ec2-16core-ena");
    let before = content(&machine);
    let profile = Profile::built_in(Base::Throughput);
    let whole = machine.clone();
    let counting = Faulty::new(&whole, Fault::Panic, usize::MAX);
    apply(request(&counting, data, &profile)).expect("nothing fails here");
    // The last write is that of the journal; the one before it is the last setting's.
    let last_setting = counting.writes.get() - 2;
    let faulty = Faulty::new(&machine, Fault::Unreadable(FIRST), last_setting);
    apply(request(&faulty, data, &profile)).expect("all of it is in force");
    assert_ne!(content(&machine), before);
    revert(&machine, STATE, Conflict::Refuse).expect("its old value is known");
    assert_eq!(content(&machine), before);
}

#[test]
fn what_a_driver_accepts_and_does_not_do_is_left_out_and_the_rest_is_done() {
    let (machine, data) = machine("vm-2core-virtio");
    let before = content(&machine);
    let profile = Profile::built_in(Base::Throughput);
    let deaf = Faulty::new(&machine, Fault::Ignored("adaptive-rx"), 0);
    let applied = apply(request(&deaf, data, &profile)).expect("the rest is done");
    let (id, why) = &applied.left_out[0];
    assert_eq!(
        (&**id, &**why),
        ("nic.adaptive_rx:eth0", "it took on and stays at off")
    );
    assert!(applied.changed.len() > 4, "{:?}", applied.changed);
    // Nobody is told for ever that it could be changed, and nobody tries again.
    let looked = verify(request(&machine, data, &profile)).expect("a journal");
    assert_eq!(looked.pending, 0);
    let report = request(&machine, data, &profile).report();
    let finding = report.group(Group::Unsupported);
    let reasons: Vec<_> = finding.filter_map(|f| f.reason.as_deref()).collect();
    assert!(
        reasons.contains(&"tried in this boot: it took on and stays at off"),
        "{reasons:?}"
    );
    let none = Faulty::new(&machine, Fault::Panic, 0);
    let again = apply(request(&none, data, &profile)).expect("nothing to do");
    assert_eq!((again.changed.len(), again.left_out.len()), (0, 0));
    revert(&machine, STATE, Conflict::Refuse).expect("nothing fails here");
    assert_eq!(content(&machine), before);
    // Whoever has put everything back may try again.
    let pending = request(&machine, data, &profile).report().pending;
    assert_eq!(pending, applied.changed.len() + 1);
}
