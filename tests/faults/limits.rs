//! Less than wanted: lockable memory, descriptors, io_uring itself. It serves with less, or says in one line what to type.

use std::path::Path;

use crate::ground::system;
use crate::server::{Server, directory, run, serve_under};
use crate::skipped;

const FLAGS: [&str; 8] = [
    "--shards",
    "2",
    "--segment-bytes",
    "4MiB",
    "--segments-ahead",
    "1",
    "--memory",
    "1GiB",
];

/// Becomes the command behind it without the right to call io_uring_setup, as in a container with Docker's profile.
const NO_RING: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
# load the number of the call; io_uring_setup (425): EPERM; everything else: allowed
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, 425), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[1], sys.argv[1:])
"#;

/// Holds that it refuses to start and says all of `wanted`.
#[track_caller]
fn refused_under(around: &[&str], data: &Path, wanted: &[&str]) {
    let (_, stderr) = run(&mut serve_under(around, data, &FLAGS), 1);
    for text in wanted {
        assert!(stderr.contains(text), "{text:?} is not in: {stderr}");
    }
}

#[test]
fn without_io_uring_it_says_what_forbids_it() {
    let data = directory();
    refused_under(
        &["python3", "-c", NO_RING],
        data.path(),
        &["io_uring_setup", "--security-opt seccomp=unconfined"],
    );
}

#[test]
fn io_uring_switched_off_names_the_sysctl() {
    const TEST: &str = "io_uring switched off";
    const SWITCH: &str = "/proc/sys/kernel/io_uring_disabled";
    let data = directory();
    // The real switch is the machine's: here only this process sees it off, and the call is refused as it would be.
    let off = data.path().with_extension("off");
    std::fs::write(&off, "2\n").expect("a file beside the directory");
    let mount = format!("mount --bind {} {SWITCH} && exec \"$@\"", off.display());
    let apart = ["unshare", "--mount", "sh", "-c", &mount, "sh"];
    let probe: Vec<&str> = apart.iter().copied().chain(["true"]).collect();
    if let Err(why) = system(&probe) {
        return skipped(TEST, &format!("needs root ({why})"));
    }
    let around: Vec<&str> = apart
        .iter()
        .copied()
        .chain(["python3", "-c", NO_RING])
        .collect();
    refused_under(
        &around,
        data.path(),
        &[
            "kernel.io_uring_disabled = 2",
            "sysctl -w kernel.io_uring_disabled=0",
        ],
    );
}

/// Runs a command as nobody with so much lockable memory: root may lock as much as it likes. None: that is not possible here.
fn as_nobody(test: &str, data: &Path, memlock: &'static str) -> Option<[&'static str; 7]> {
    let around = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "--inh-caps=-all",
        "prlimit",
        memlock,
    ];
    let owner = data.parent().expect("a directory around it");
    let opened = system(&["chown", "-R", "65534:65534", owner.to_str().expect("UTF-8")]);
    let binary = [env!("CARGO_BIN_EXE_pinion"), "--version"];
    let probe: Vec<&str> = around.iter().copied().chain(binary).collect();
    match opened.and_then(|_| system(&probe)) {
        Ok(_) => Some(around),
        Err(why) => {
            skipped(test, &format!("needs root ({why})"));
            None
        }
    }
}

#[test]
fn with_the_usual_lockable_memory_it_serves_and_says_what_that_costs() {
    let data = directory();
    let Some(around) = as_nobody("8 MiB to lock", data.path(), "--memlock=8388608:8388608") else {
        return;
    };
    let mut server = Server::spawn_under(&around, data.path(), &FLAGS);
    server.wait_until_ready();
    let mut http = server.http();
    for i in 0..50 {
        let path = format!("/v1/streams/s/records/k{i}");
        assert_eq!(http.post(&path, vec![b'x'; 10_000]).status, 201);
        assert_eq!(http.get(&path).body.len(), 10_000);
    }
    assert!(server.stderr().contains("ulimit -l"), "{}", server.stderr());
    server.stop();
}

#[test]
fn with_hardly_any_lockable_memory_it_says_how_much_is_needed() {
    let data = directory();
    let Some(around) = as_nobody("64 KiB to lock", data.path(), "--memlock=65536:65536") else {
        return;
    };
    refused_under(
        &around,
        data.path(),
        &["not enough lockable memory: found 65536 bytes", "ulimit -l"],
    );
}

#[test]
fn with_too_few_descriptors_to_start_it_says_how_many() {
    // Where they run out depends on the limit: at once, in the store, at the listeners, in a ring.
    for limit in (12..=64).step_by(4) {
        let data = directory();
        let limit = format!("--nofile={limit}:{limit}");
        let flags = FLAGS.map(|flag| match flag {
            "2" => "8",
            "1GiB" => "4GiB",
            flag => flag,
        });
        let (_, stderr) = run(
            &mut serve_under(&["prlimit", &limit], data.path(), &flags),
            1,
        );
        assert!(stderr.contains("`ulimit -n"), "with {limit}: {stderr}");
    }
}
