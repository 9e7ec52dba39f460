//! The table. Settings of the usual recipes that are missing here are missing for a reason: `sysctl/README.md` gives each.
//!
//! Never in it: `nobarrier`, write-cache flips, mitigations, `tcp_mem`, a global busy poll.

use super::Allowed::{Nothing, Number, Word};
use super::Only::{self, Always};
use super::Rule::{AtLeast, AtMost, Exactly, Expected, ExpectedAtLeast, FromTopology, LastAtLeast};
use super::Scope::{Boot, Host, NetworkNamespace, Process, Socket};
use super::{Allowed, NicPart, Place, Reading, Row, Rule, Scope};

/// Every setting that is looked at, in the order in which they are changed.
#[rustfmt::skip] // one row, few lines: key, place, rule, values of both profiles, what may be asked for, machines, reach, why, risk
pub const TABLE: &[Row] = &[
    // Resetting a card comes first: what follows is lost in a reset.
    row(
        "nic.driver", Place::Nic(NicPart::Driver), Expected("driver is not in the table: the card is left as it is"),
        [Some("known"); 2], Nothing, Always, Host,
        "what a card can take depends on its driver; one that nobody has looked at is not guessed about",
        "none",
    ),
    row(
        "nic.channels", Place::Nic(NicPart::Channels), FromTopology,
        [Some("a queue per shard core, or per interrupt core"); 2], Nothing, Always, Host,
        "a queue per shard core lets a packet be handled where its connection is served; never lowered",
        "the card is reset: packets are lost for a moment, so not on the card of the default route without --force",
    ),
    row(
        "nic.ring_rx", Place::Nic(NicPart::RingRx), AtLeast, [Some("4096"); 2], Number(64, 16384), Only::Missed, Host,
        "this card has dropped packets for want of a receive descriptor; more of them ride out a longer burst",
        "the card is reset; a larger ring takes more of the cache",
    ),
    row(
        "nic.adaptive_rx", Place::Nic(NicPart::AdaptiveRx), Exactly, [Some("on"), Some("off")], Word(&["on", "off"]), Always, Host,
        "adaptive moderation saves interrupts under load; a fixed short delay keeps every packet's wait the same",
        "off: more interrupts under load. Drivers that adapt change rx-usecs themselves",
    ),
    row(
        "nic.rx_usecs", Place::Nic(NicPart::RxUsecs), AtMost, [None, Some("8")], Number(0, 1000), Always, Host,
        "a request that comes alone waits this long for its interrupt",
        "more interrupts under load",
    ),
    row(
        "nic.irq_affinity", Place::Nic(NicPart::IrqAffinity), FromTopology, [Some("queue i to its core"); 2], Nothing, Always, Host,
        "with a queue per shard core a packet stays on the core that serves it; with fewer queues interrupts keep to cores of their own",
        "irqbalance moves them back unless they are banned from it (persist writes the ban); a reset of the card loses it",
    ),
    row(
        "nic.xps_cpus", Place::Nic(NicPart::Xps), FromTopology, [Some("the queue's core, or its part of the shard cores"); 2], Nothing, Always, Host,
        "a core sends by a queue whose completions come back to it",
        "none where queues and cores match",
    ),
    row(
        "nic.rps_cpus", Place::Nic(NicPart::Rps), FromTopology, [Some("off, or every shard core"); 2], Nothing, Always, Host,
        "with fewer queues than cores the kernel spreads packets by flow; with a queue per core that would only add an interrupt",
        "an interrupt between cores for each burst of packets",
    ),
    row(
        "nic.rps_flow_cnt", Place::Nic(NicPart::RpsFlows), FromTopology, [Some("0, or 32768 over the queues"); 2], Nothing, Always, Host,
        "with RPS a flow's packets go to the core that reads it",
        "memory: 8 bytes an entry",
    ),
    row(
        "nic.offloads", Place::Nic(NicPart::Offloads), Expected("somebody turned it off; ethtool -K NIC gro on gso on tso on"),
        [Some("on"); 2], Nothing, Always, Host,
        "without them every segment of a stream costs a pass through the stack",
        "none for TCP; routers and some captures want them off",
    ),
    row(
        "irqbalance", Place::Reading(Reading::IrqBalance),
        Expected("it moves the interrupts above back; pinion tune persist --yes bans them from it, systemctl stop irqbalance ends it"),
        [Some("out of the way"); 2], Nothing, Always, Host,
        "it spreads interrupts without knowing where the shards are",
        "none",
    ),
    // What belongs to a network namespace.
    row(
        "net.core.somaxconn", Place::Sysctl, AtLeast, [Some("4096"); 2], Number(128, 65535), Always, NetworkNamespace,
        "connections that may wait for accept on each listener; every shard has listeners of its own",
        "kernel memory for connections that nobody accepts",
    ),
    row(
        "net.core.optmem_max", Place::Sysctl, AtLeast, [Some("131072"); 2], Number(4096, 16_777_216), Always, NetworkNamespace,
        "bounds what a socket may hold for ancillary data and zero-copy notices; older kernels give 20 KiB",
        "memory per socket that uses it",
    ),
    row(
        "net.ipv4.tcp_rmem", Place::Sysctl, LastAtLeast, [Some("16777216"), None], Number(1_048_576, 134_217_728), Always, NetworkNamespace,
        "the window grows on its own up to here: 16 MiB carry 100 Gbit/s over 1.3 ms",
        "memory per connection that is filled faster than it is read",
    ),
    row(
        "net.ipv4.tcp_slow_start_after_idle", Place::Sysctl, Exactly, [Some("0"); 2], Number(0, 1), Always, NetworkNamespace,
        "a reply after a pause (a scan page, a history) leaves with the window that the path had before it",
        "a burst onto a path that has become narrower meanwhile",
    ),
    row(
        "net.ipv4.tcp_migrate_req", Place::Sysctl, Exactly, [Some("1"); 2], Number(0, 1), Always, NetworkNamespace,
        "a shard that stops listening hands waiting connections to the others instead of resetting them",
        "none known; since Linux 5.14",
    ),
    row(
        "net.ipv4.tcp_window_scaling", Place::Sysctl, Expected(CHANGED), [Some("1"); 2], Nothing, Always, NetworkNamespace,
        "without it a connection carries 64 KiB per round trip", "none",
    ),
    row(
        "net.ipv4.tcp_sack", Place::Sysctl, Expected(CHANGED), [Some("1"); 2], Nothing, Always, NetworkNamespace,
        "without it one lost packet costs a round trip for each that is lost with it", "none",
    ),
    row(
        "net.ipv4.tcp_timestamps", Place::Sysctl, Expected(CHANGED), [Some("1"); 2], Nothing, Always, NetworkNamespace,
        "round trips are measured by it, and old segments told from new ones", "none",
    ),
    row(
        "net.ipv4.tcp_moderate_rcvbuf", Place::Sysctl, Expected(CHANGED), [Some("1"); 2], Nothing, Always, NetworkNamespace,
        "receive windows grow by it", "none",
    ),
    row(
        "net.ipv4.tcp_abort_on_overflow", Place::Sysctl, Expected(CHANGED), [Some("0"); 2], Nothing, Always, NetworkNamespace,
        "a full accept queue makes clients wait, not fail", "none",
    ),
    row(
        "net.ipv4.tcp_congestion_control", Place::Sysctl,
        Expected("it is set per socket, not here: pinion serve --congestion cubic"),
        [Some("cubic"); 2], Nothing, Always, Socket,
        "on a LAN and on loopback bbr collapses where sender and receiver want for CPU",
        "producers far away may want bbr on their own side",
    ),
    // What belongs to the whole machine.
    row(
        "net.core.netdev_max_backlog", Place::Sysctl, AtLeast, [Some("10000"), None], Number(1000, 1_000_000), Always, Host,
        "packets that wait for a core on loopback, on veth and behind RPS; not those of a card's own queues",
        "a longer queue is a longer wait when it fills",
    ),
    row(
        "net.core.netdev_budget", Place::Sysctl, AtLeast, [Some("600"); 2], Number(300, 10_000), Only::Squeezed, Host,
        "the receive path often stopped with packets left on this machine",
        "a core is away from its shard for longer",
    ),
    row(
        "net.core.rps_sock_flow_entries", Place::Sysctl, FromTopology, [Some("32768 with RPS"); 2], Nothing, Always, Host,
        "the table by which RPS finds the core that reads a flow",
        "memory: 4 bytes an entry",
    ),
    row(
        "net.core.busy_poll", Place::Sysctl, Expected(CHANGED), [Some("0"); 2], Nothing, Always, Host,
        "polling for every socket of the machine burns cores and does not reach io_uring", "none",
    ),
    row(
        "net.core.busy_read", Place::Sysctl, Expected(CHANGED), [Some("0"); 2], Nothing, Always, Host,
        "polling for every socket of the machine burns cores and does not reach io_uring", "none",
    ),
    row(
        "vm.swappiness", Place::Sysctl, AtMost, [Some("10"); 2], Number(0, 200), Always, Host,
        "index and buffers that were swapped out come back one page fault at a time",
        "the page cache of other programs gives way first",
    ),
    row(
        "vm.zone_reclaim_mode", Place::Sysctl, Exactly, [Some("0"); 2], Number(0, 7), Only::Numa, Host,
        "a full node takes memory from the next one rather than stopping to reclaim",
        "some memory is far",
    ),
    row(
        "vm.min_free_kbytes", Place::Sysctl, AtLeast, [Some("65536"); 2], Number(1024, 4_194_304), Only::MemoryGib(16), Host,
        "packets need memory at once, while a full page cache is still being reclaimed",
        "64 MiB that programs do not get",
    ),
    row(
        "vm.stat_interval", Place::Sysctl, AtLeast, [None, Some("10")], Number(1, 120), Only::CoresAbove(4), Host,
        "the kernel's own bookkeeping interrupts every core once per interval",
        "memory statistics are older",
    ),
    row(
        "kernel.numa_balancing", Place::Sysctl, Exactly, [Some("0"); 2], Number(0, 1), Only::Numa, Host,
        "shards are pinned and their memory is where they are; the balancer unmaps it to find that out again and again",
        "programs that are not pinned lose it",
    ),
    row(
        "kernel.timer_migration", Place::Sysctl, Exactly, [None, Some("0")], Number(0, 1), Only::CoresAbove(4), Host,
        "timers of other cores stay away from a core that is busy with a shard",
        "idle cores wake up more",
    ),
    row(
        "kernel.nmi_watchdog", Place::Sysctl, Exactly, [None, Some("0")], Number(0, 1), Always, Host,
        "it takes a performance counter and an interrupt on every core",
        "a hard lockup is not reported",
    ),
    row(
        "kernel.io_uring_disabled", Place::Sysctl,
        Expected("somebody forbade io_uring; serve cannot start: sysctl -w kernel.io_uring_disabled=0 if that is yours to decide"),
        [Some("0"); 2], Nothing, Always, Host,
        "the engine is built on io_uring", "none",
    ),
    row(
        "fs.nr_open", Place::Sysctl, AtLeast, [Some("1048576"); 2], Number(1024, 1_073_741_816), Always, Host,
        "no process can be allowed more open files than this",
        "none",
    ),
    row(
        "mm.transparent_hugepage", Place::Path("/sys/kernel/mm/transparent_hugepage/enabled"), Exactly, [Some("madvise"); 2],
        Word(&["always", "madvise", "never"]), Always, Host,
        "the engine asks for huge pages where it wants them; with always everybody gets them and stalls while they are made",
        "programs that gained by always must ask too",
    ),
    row(
        "workqueue.cpumask", Place::Path("/sys/devices/virtual/workqueue/cpumask"), FromTopology, [None, Some("the interrupt cores")],
        Nothing, Only::CoresAbove(4), Host,
        "the kernel's deferred work keeps to the cores that take interrupts",
        "that work waits if those cores are busy",
    ),
    row(
        "clocksource", Place::Path("/sys/devices/system/clocksource/clocksource0/current_clocksource"), Exactly, [Some("tsc"); 2],
        Word(&["tsc", "kvm-clock"]), Only::SlowClock, Host,
        "the clock in use is a device: reading it is a system call and a slow one",
        "none: the kernel offers tsc only where it is trusted",
    ),
    row(
        "cpu.governor", Place::Frequency("scaling_governor"), Exactly, [Some("performance"); 2],
        Word(&["performance", "schedutil", "ondemand", "conservative", "powersave"]), Always, Host,
        "a core that slept between requests answers the next one at full speed",
        "power and heat",
    ),
    row(
        "cpu.energy_preference", Place::Frequency("energy_performance_preference"), Exactly, [None, Some("performance")],
        Word(&["performance", "balance_performance", "default"]), Always, Host,
        "the processor's own frequency control leans the same way",
        "power and heat",
    ),
    // Disks under the data directory. The scheduler first: changing it sizes the queue anew.
    row(
        "block.scheduler", Place::Disk("scheduler"), Exactly, [Some("none"); 2], Word(&["none", "mq-deadline", "kyber", "bfq"]), Always, Host,
        "the engine orders its own writes, large and few; a scheduler only adds its lock and its queue",
        "other programs on this disk lose what fairness it gave",
    ),
    row(
        "block.nr_requests", Place::Disk("nr_requests"), AtLeast, [Some("64"); 2], Number(4, 4096), Only::DeepQueue, Host,
        "log writes, reads and fills of all shards fit into the queue at once",
        "none",
    ),
    row(
        "block.nomerges", Place::Disk("nomerges"), Exactly, [Some("2"); 2], Number(0, 2), Only::Nvme, Host,
        "writes are large and aligned already: looking for neighbours to merge is work for nothing",
        "programs that write small and in order send more requests",
    ),
    row(
        "block.rq_affinity", Place::Disk("rq_affinity"), Exactly, [Some("2"); 2], Number(0, 2), Always, Host,
        "a write completes on the core that started it, where its shard waits",
        "an interrupt between cores where the device's went elsewhere",
    ),
    row(
        "block.wbt_lat_usec", Place::Disk("wbt_lat_usec"), Exactly, [Some("0"); 2], Number(0, 1_000_000), Always, Host,
        "throttling of background writes holds back the filling of segments, which the engine paces itself",
        "buffered writers on this disk are not held back for readers any more",
    ),
    row(
        "block.add_random", Place::Disk("add_random"), Exactly, [Some("0"); 2], Number(0, 1), Always, Host,
        "no entropy is taken from the times of completions",
        "none: the kernel has better sources",
    ),
    row(
        "mount.barrier", Place::Reading(Reading::Barrier),
        Expected("acked records can be lost when power fails: mount -o remount,barrier=1 the filesystem, and take the option out of /etc/fstab"),
        [Some("on"); 2], Nothing, Always, Host,
        "an ack means that the device's cache was flushed", "none",
    ),
    row(
        "mount.discard", Place::Reading(Reading::Discard),
        Expected("every deletion waits for the device: mount -o remount,nodiscard, and systemctl enable --now fstrim.timer instead"),
        [Some("off"); 2], Nothing, Always, Host,
        "free blocks are told to the device once a week, not with every deletion", "none",
    ),
    row(
        "fstrim.timer", Place::Reading(Reading::FstrimTimer), Expected("systemctl enable --now fstrim.timer"),
        [Some("enabled"); 2], Nothing, Always, Host,
        "a flash disk that is never told about free blocks gets slower", "none",
    ),
    row(
        "limits.open_files", Place::Reading(Reading::OpenFiles),
        ExpectedAtLeast("it belongs to the process that starts serve: ulimit -n 65536, in a unit LimitNOFILE=1048576"),
        [Some("65536"); 2], Nothing, Always, Process,
        "connections and segments are descriptors", "none",
    ),
    row(
        "limits.locked_memory", Place::Reading(Reading::LockedBytes),
        ExpectedAtLeast("it belongs to the process that starts serve: ulimit -l unlimited, in a unit LimitMEMLOCK=infinity"),
        [Some("1073741824"); 2], Nothing, Always, Process,
        "registered buffers are locked; without them every write pins its pages anew", "none",
    ),
    row(
        "boot.isolated_cores", Place::Reading(Reading::IsolatedCores),
        Expected("it takes a reboot and keeps those cores from everything else; a recipe is in sysctl/README.md"),
        [None, Some("the shard cores")], Nothing, Only::CoresAbove(7), Boot,
        "nothing else is scheduled where shards run", "those cores are lost for other programs",
    ),
];

const CHANGED: &str = "this is not the kernel's default: whoever changed it should know why";

#[expect(
    clippy::too_many_arguments,
    reason = "a row of a table, in the order of its columns"
)]
const fn row(
    key: &'static str,
    place: Place,
    rule: Rule,
    [throughput, latency]: [Option<&'static str>; 2],
    allowed: Allowed,
    only: Only,
    scope: Scope,
    why: &'static str,
    risk: &'static str,
) -> Row {
    Row {
        key,
        place,
        rule,
        throughput,
        latency,
        allowed,
        only,
        scope,
        why,
        risk,
    }
}
