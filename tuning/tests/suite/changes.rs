//! Applying and putting back, on machines whose settings were shuffled: what must hold whatever is found.

use proptest::prelude::*;
use tuning::apply::apply;
use tuning::check::Report;
use tuning::recorded::Recorded;
use tuning::revert::{Conflict, revert};
use tuning::settings::{Base, Profile};
use tuning::system::System;
use tuning::verify::verify;

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
        prop_assert!(verified.drifted.is_empty() && verified.files.is_empty() && !verified.unfinished);
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
    let drift = ("vm.swappiness".to_owned(), "10".to_owned(), "33".to_owned());
    assert_eq!(verified.drifted, [drift]);
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
    assert_eq!(
        verified.without_effect,
        ["nic.irq_affinity:ens5/30 (ens5-Tx-Rx-2): the interrupt still goes to core 7"]
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
