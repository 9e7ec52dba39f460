//! `pinion tune` through the real binary: recorded machines from files, this machine read-only, and for real inside a network
//! namespace with a pair of veth, where apply, verify and revert change only what ends with it. That part needs root.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn pinion(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinion"));
    command
        .arg("tune")
        .args(arguments)
        .env_remove("PINION_DATA");
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the binary starts");
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    (status.code(), text(stdout), text(stderr))
}

fn fixture(name: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join(format!("tuning/fixtures/{name}.txt"));
    path.to_str().expect("a UTF-8 path").to_owned()
}

const DATA: [&str; 2] = ["--data", "/var/lib/pinion"];

#[test]
fn check_ends_with_3_while_changes_are_pending_and_0_when_there_are_none() {
    let machine = fixture("vm-2core-virtio");
    let (code, out, _) = pinion(&[&["check", "--machine", &machine], &DATA[..]].concat());
    assert_eq!(code, Some(3), "{out}");
    for wanted in [
        "machine    Linux 6.18.44, virtual machine",
        "network    eth0: virtio_net, default route, 1 queue of 1, ring 256 of 256",
        "disk       vda: scheduler mq-deadline, cache write back, FUA no, 256 requests, 1 interrupt placed by the kernel on cores 0-1",
        "\nchange (8)\n",
        "  vm.swappiness                        60 -> at most 10\n      why:  ",
        "\nrefused (3)\n",
        "8 changes pending",
    ] {
        assert!(out.contains(wanted), "{wanted:?} is not in:\n{out}");
    }
    let machine = fixture("container");
    let (code, out, _) = pinion(&["check", "--machine", &machine, "--data", "/data"]);
    assert_eq!(code, Some(0), "{out}");
    assert!(out.contains("nothing to do"), "{out}");
}

#[test]
fn json_holds_the_inventory_and_every_finding() {
    let machine = fixture("metal-2socket-mlx5");
    let (code, out, _) = pinion(&[&["check", "--json", "--machine", &machine], &DATA[..]].concat());
    assert_eq!(code, Some(3));
    let report: serde_json::Value = serde_json::from_str(&out).expect("one JSON object");
    assert_eq!(
        report["inventory"]["cpu"]["cores"].as_array().map(Vec::len),
        Some(64)
    );
    assert_eq!(
        report["inventory"]["data"]["disks"][3]["model"],
        "Samsung SSD 990 PRO 2TB"
    );
    let queues = &report["inventory"]["data"]["disks"][3]["interrupts"];
    assert_eq!(queues.as_array().map(Vec::len), Some(3), "{queues}");
    assert_eq!(queues[2]["name"], "nvme3q2");
    let findings = report["findings"].as_array().expect("a list");
    let channels = findings
        .iter()
        .find(|found| found["id"] == "nic.channels:enp129s0");
    let channels = channels.expect("the card is looked at");
    assert_eq!(channels["group"], "change");
    assert_eq!(
        (&channels["current"], &channels["value"]),
        (&"32".into(), &"64".into())
    );
    for key in ["why", "risk", "scope", "capability", "wanted"] {
        assert!(channels[key].is_string(), "{key}");
    }
}

#[test]
fn plan_prints_a_difference_or_a_script() {
    let machine = fixture("laptop-4core");
    let (code, out, _) = pinion(&[&["plan", "--machine", &machine], &DATA[..]].concat());
    assert_eq!(code, Some(3));
    assert!(
        out.contains("-clocksource = hpet\n+clocksource = tsc\n"),
        "{out}"
    );
    let (code, out, _) =
        pinion(&[&["plan", "--script", "--machine", &machine], &DATA[..]].concat());
    assert_eq!(code, Some(3));
    assert!(out.starts_with("#!/bin/sh\n"), "{out}");
    assert!(
        out.contains("\nat_most '/proc/sys/vm/swappiness' '10'\n"),
        "{out}"
    );
}

#[test]
fn a_bad_profile_ends_with_2_and_names_the_line() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("mine.toml");
    let name = path.to_str().expect("a UTF-8 path");
    let machine = fixture("laptop-4core");
    for (text, wanted) in [
        (
            "extends = \"latency\"\n[set]\n\"vm.swapiness\" = 1\n",
            "line 3: no setting is called \"vm.swapiness\": did you mean \"vm.swappiness\"?",
        ),
        (
            "extends = \"latency\"\n[set]\n\"vm.swappiness\" = 300\n",
            "line 3: \"vm.swappiness\" is 300: it must be a number from 0 to 200",
        ),
    ] {
        std::fs::write(&path, text).expect("a file");
        let (code, out, error) = pinion(&["check", "--profile", name, "--machine", &machine]);
        assert_eq!((code, out.as_str()), (Some(2), ""));
        assert!(error.contains(wanted), "{error}");
    }
    std::fs::write(
        &path,
        "extends = \"latency\"\nskip = [\"clocksource\"]\n[set]\n\"vm.swappiness\" = 1\n",
    )
    .expect("a file");
    let (code, out, _) = pinion(&["plan", "--profile", name, "--machine", &machine]);
    assert_eq!(code, Some(3));
    assert!(
        out.contains("+vm.swappiness = 1\n") && !out.contains("+clocksource"),
        "{out}"
    );
    let (code, _, error) = pinion(&["check", "--profile", "fast"]);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("type throughput, latency, or a file"),
        "{error}"
    );
    let (code, _, error) = pinion(&["check", "--machine", name]);
    assert_eq!(code, Some(2));
    assert!(
        error.contains("mine.toml: line 1: text that belongs to no path"),
        "{error}"
    );
}

#[test]
fn this_machine_can_be_recorded_and_the_recording_says_the_same() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().to_str().expect("a UTF-8 path");
    let (code, recording, error) = pinion(&["record", "--data", data]);
    assert_eq!(code, Some(0), "{error}");
    let file = directory.path().join("machine.txt");
    std::fs::write(&file, &recording).expect("a file");
    let changes = |arguments: &[&str]| -> Vec<String> {
        let (_, out, error) = pinion(arguments);
        assert!(error.is_empty(), "{error}");
        out.lines()
            .filter(|line| line.starts_with(['-', '+']))
            .map(str::to_owned)
            .collect()
    };
    let file = file.to_str().expect("a UTF-8 path");
    assert_eq!(
        changes(&["plan", "--data", data]),
        changes(&["plan", "--data", data, "--machine", file])
    );
}

/// What is done for real, line by line; `$TUNE` is the command, `$STATE` a directory of its own. Stops at the first line that
/// does not end as it should.
const FOR_REAL: &str = r#"
set -u
mount -t sysfs sysfs /sys
ip link add v0 type veth peer name v1
ip link set lo up; ip link set v0 up; ip link set v1 up
mig=/proc/sys/net/ipv4/tcp_migrate_req
idle=/proc/sys/net/ipv4/tcp_slow_start_after_idle
conn=/proc/sys/net/core/somaxconn
echo 128 > $conn; echo 0 > $mig; echo 1 > $idle
expect() { # exit code, words that must be in the output, command
    code=$1 words=$2; shift 2
    said=$("$@" 2>&1); got=$?
    [ "$got" = "$code" ] || { echo "$*: exit $got, wanted $code: $said"; exit 1; }
    case $said in *"$words"*) ;; *) echo "$*: no '$words' in: $said"; exit 1 ;; esac
}
values() { [ "$(cat $conn) $(cat $mig) $(cat $idle)" = "$1" ] || { echo "values are $(cat $conn) $(cat $mig) $(cat $idle), wanted $1"; exit 1; }; }
tune() { command=$1; shift; "$TUNE" tune "$command" --state "$STATE" "$@"; }

expect 3 '+net.core.somaxconn = 4096' tune apply --data "$DATA"
values '128 0 1'
expect 0 'net.core.somaxconn: 128 -> 4096' tune apply --yes --data "$DATA"
values '4096 1 0'
expect 0 'nothing to do' tune apply --yes --data "$DATA"
expect 0 'as they were left' tune verify --data "$DATA"
echo 0 > $mig
expect 1 'tcp_migrate_req: 1 was left there, now it is 0' tune verify --data "$DATA"
expect 0 'tcp_migrate_req: 0 -> 1' tune apply --yes --data "$DATA"
expect 3 'net.core.somaxconn: 4096 -> 128' tune revert
echo 9000 > $conn
expect 1 'net.core.somaxconn is 9000, we had left 4096' tune revert --yes
values '9000 0 1'
expect 0 'net.core.somaxconn: 9000 -> 128' tune revert --yes --force
values '128 0 1'
expect 0 'nothing to put back' tune revert --yes
[ ! -e "$STATE/journal.json" ] || { echo 'the journal is still there'; exit 1; }
expect 1 'on the host itself' tune persist --yes --data "$DATA"
# The script that plan prints does the same.
"$TUNE" tune plan --script --data "$DATA" > "$STATE/script"
expect 0 "echo '128' > $conn" sh "$STATE/script"
values '4096 1 0'
echo all of it
"#;

#[test]
fn apply_verify_and_revert_for_real_in_a_network_namespace() {
    let possible = Command::new("unshare")
        .args([
            "--net",
            "--mount",
            "sh",
            "-c",
            "mount -t sysfs sysfs /sys && ip link add v0 type veth peer name v1",
        ])
        .output();
    match possible {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            eprintln!(
                "skipped: needs root, iproute2 and veth: {}",
                String::from_utf8_lossy(&output.stderr)
            );
            return;
        }
        Err(error) => {
            eprintln!("skipped: unshare (util-linux) does not start: {error}");
            return;
        }
    }
    let host = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let shared = [
        "/proc/sys/vm/swappiness",
        "/proc/sys/net/core/somaxconn",
        "/proc/sys/net/ipv4/tcp_migrate_req",
    ];
    let before = shared.map(host);
    let directory = tempfile::tempdir().expect("a temporary directory");
    all_of_it(
        &["--net", "--mount"],
        FOR_REAL,
        &[
            ("STATE", directory.path().join("state")),
            ("DATA", directory.path().to_owned()),
        ],
    );
    assert_eq!(shared.map(host), before, "the machine itself is as it was");
}

/// Runs a script of the shell in namespaces of its own, up to its last line.
#[track_caller]
fn all_of_it(namespaces: &[&str], script: &str, variables: &[(&str, PathBuf)]) {
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", script])
        .env("TUNE", env!("CARGO_BIN_EXE_pinion"))
        .envs(variables.iter().map(|(name, value)| (name, value)))
        .output()
        .expect("unshare starts");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.ends_with("all of it\n"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// `prove` measures, applies and reverts; then what was applied is lost, and a server says so.
const PROVE: &str = r#"
set -eu
mount -t sysfs sysfs /sys
ip link set lo up
mig=/proc/sys/net/ipv4/tcp_migrate_req
echo 0 > $mig
"$TUNE" tune prove --yes --rounds 2 --seconds 1 --data "$DATA/bench" --output "$DATA/report" --state "$STATE" \
    --loadtest "$LOADTEST" -- --connections 4 --keys 1000
[ "$(cat $mig)" = 0 ] || { echo 'prove left its settings behind'; exit 1; }
[ ! -e "$DATA/bench/data" ] || { echo 'prove left its data behind'; exit 1; }
"$TUNE" tune apply --yes --data "$DATA" --state "$STATE"
[ "$(cat $mig)" = 1 ] || { echo 'nothing was applied'; exit 1; }
echo 0 > $mig
"$TUNE" serve --data "$DATA/served" --shards 1 --memory 1GiB --port 0 --http-port 0 --tuning-state "$STATE" > "$DATA/banner" 2> "$DATA/log" &
server=$!
trap 'kill $server' EXIT
for _ in $(seq 300); do grep -q 'is serving' "$DATA/banner" && break; sleep 0.1; done
http=$(sed -n 's/.* and http \([^ ]*\) on .*/\1/p' "$DATA/banner")
for _ in $(seq 300); do
    python3 -c "import sys, urllib.request; print(urllib.request.urlopen('http://$http/metrics').read().decode())" > "$DATA/metrics"
    grep -q '^pinion_tuning_drifted_settings 1$' "$DATA/metrics" && break
    sleep 0.1
done
grep '^pinion_tuning_drifted_settings 1$' "$DATA/metrics"
grep 'tcp_migrate_req: 1 was left there, now it is 0' "$DATA/log"
"$TUNE" tune revert --yes --force --state "$STATE"
echo all of it
"#;

#[test]
fn prove_and_a_watching_server_for_real_in_a_network_namespace() {
    let possible = Command::new("unshare")
        .args(["--net", "--mount", "true"])
        .output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs root and unshare (util-linux)");
        return;
    }
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_pinion"));
    let loadtest = program.with_file_name("loadtest");
    // The whole workspace's tests have built it already.
    if !loadtest.is_file() {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--offline", "-q", "-p", "loadtest"])
            .status()
            .expect("cargo starts");
        assert!(built.success(), "the load generator does not build");
    }
    let directory =
        tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a temporary directory");
    all_of_it(
        &["--net", "--mount"],
        PROVE,
        &[
            ("LOADTEST", loadtest),
            ("STATE", directory.path().join("state")),
            ("DATA", directory.path().to_owned()),
        ],
    );
    let read = |name: &str| {
        std::fs::read_to_string(directory.path().join("report").join(name)).expect(name)
    };
    let report = read("report.md");
    for wanted in ["| records/s |", "| p99, us |", "too few rounds to tell"] {
        assert!(report.contains(wanted), "{report}");
    }
    assert!(read("latency.svg").contains("tuned"));
    assert!(read("after-1/summary.json").contains("records_per_second"));
}

/// `persist` on the host itself, over a copy of its `/etc` that only this mount namespace sees.
const PERSIST: &str = r#"
set -eu
mkdir "$WORK/etc"
cp -a /etc/. "$WORK/etc"
mount --bind "$WORK/etc" /etc
all() { (cd /etc && find . && find . -type f -exec cksum {} +) | sort; }
persist() { code=0; "$TUNE" tune persist --data "$WORK" "$@" > "$WORK/said" 2>&1 || code=$?; cat "$WORK/said"; echo "ended with $code"; }
all > "$WORK/before"
persist --state "$WORK/state"
all | cmp - "$WORK/before"
grep '^==> /etc/' "$WORK/said" > "$WORK/files" || { echo "nothing to write"; echo all of it; exit 0; }
# Settings that no file keeps are named, and then not all is well: 3. Without any it ends with 0.
expected=0
grep ': left out, ' "$WORK/said" > "$WORK/left" && expected=3
persist --yes --state "$WORK/state"
# A container is no host.
grep 'on the host itself' "$WORK/said" && { echo all of it; exit 0; }
[ "$code" = "$expected" ]
sed 's/^==> //' "$WORK/files" | while read -r file; do test -e "$file"; grep -F "$file: installed" "$WORK/said"; done
grep ': left out, ' "$WORK/said" | cmp - "$WORK/left" || [ "$expected" = 0 ]
all > "$WORK/between"
persist --yes --state "$WORK/state"
all | cmp - "$WORK/between"
persist --remove --yes --state "$WORK/state"
[ "$code" = 0 ]
all | cmp - "$WORK/before"
echo all of it
"#;

#[test]
fn persist_writes_to_a_real_etc_and_leaves_no_trace_in_it() {
    let possible = Command::new("unshare").args(["--mount", "true"]).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: needs root and unshare (util-linux)");
        return;
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    all_of_it(
        &["--mount"],
        PERSIST,
        &[("WORK", directory.path().to_owned())],
    );
}
