//! The systemd unit that ships (`sysctl/systemd/`): systemd takes it, and what it forbids is nothing that the server needs.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use crate::server::{SMALL, Server, directory};
use crate::skipped;

/// Becomes the command behind it with only the system calls whose numbers come first; others fail with EPERM.
const ONLY: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
numbers = [int(n) for n in sys.argv[1].split(",")]
# load the number of the call; for each: equal, then allowed; at the end EPERM
rules = [(0x20, 0, 0, 0)] + [r for n in numbers for r in ((0x15, 0, 1, n), (0x06, 0, 0, 0x7fff0000))] + [(0x06, 0, 0, 0x00050001)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.create_string_buffer(program), 0, 0) == 0, os.strerror(ctypes.get_errno())
os.execvp(sys.argv[2], sys.argv[2:])
"#;

fn unit() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sysctl/systemd/pinion.service")
}

/// What systemd-analyze prints on both outputs; None: it is not installed.
fn analyze(arguments: &[&str]) -> Option<String> {
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .output()
        .ok()?;
    let text = [output.stdout, output.stderr].concat();
    Some(String::from_utf8_lossy(&text).into_owned())
}

/// What it says of our units, but for the binary, which need not be installed here, and for two settings that are younger
/// than some systemds.
fn complaints(said: &str) -> Vec<&str> {
    let known = [
        "pinion is not executable",
        "RestartSteps",
        "RestartMaxDelaySec",
    ];
    said.lines()
        .filter(|line| line.contains("pinion") && !known.iter().any(|text| line.contains(text)))
        .collect()
}

#[test]
fn systemd_takes_the_unit_that_applies_settings_at_boot() {
    let template = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("sysctl/pinion-tune.service");
    let text = std::fs::read_to_string(template).expect("it ships");
    let text = text
        .replace("@pinion@", "\"/opt/with space/pinion\"")
        .replace("@arguments@", "--profile latency --data \"/srv/a %% b\"");
    assert!(!text.contains('@'), "{text}");
    let folder = directory();
    let path = folder.path().join("pinion-tune.service");
    std::fs::write(&path, text).expect("room");
    let Some(said) = analyze(&["verify", path.to_str().expect("UTF-8")]) else {
        return skipped(
            "systemd takes the tuning unit",
            "no systemd-analyze: apt-get install systemd",
        );
    };
    assert!(complaints(&said).is_empty(), "{said}");
}

fn setting(name: &str) -> String {
    let text = std::fs::read_to_string(unit()).expect("it ships");
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    line.unwrap_or_else(|| panic!("{name} is not set"))
        .to_owned()
}

#[test]
fn systemd_takes_the_unit() {
    let path = unit();
    let slice = path.with_extension("slice");
    let files = [path.to_str(), slice.to_str()].map(|path| path.expect("UTF-8"));
    let Some(said) = analyze(&["verify", files[0], files[1]]) else {
        return skipped(
            "systemd takes the unit",
            "no systemd-analyze: apt-get install systemd",
        );
    };
    assert!(complaints(&said).is_empty(), "{said}");
    let said = analyze(&["--offline=true", "security", files[0]]).expect("just seen");
    let exposure = said
        .lines()
        .find_map(|line| line.split_once("exposure level for pinion.service: "))
        .and_then(|(_, level)| level.split_whitespace().next()?.parse::<f64>().ok());
    assert!(exposure.is_some_and(|level| level < 2.0), "{said}");
}

/// Names of the calls in a filter's groups, all the way down.
fn calls(filter: &str) -> Option<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut open: Vec<String> = filter.split_whitespace().map(str::to_owned).collect();
    while let Some(name) = open.pop() {
        if !name.starts_with('@') {
            names.insert(name);
            continue;
        }
        let said = analyze(&["syscall-filter", &name])?;
        let members = said.lines().skip(1).map(str::trim);
        open.extend(
            members
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    Some(names)
}

#[test]
fn the_server_works_with_the_system_calls_that_the_unit_leaves_it() {
    const TEST: &str = "the unit's system call filter";
    let header = ["x86_64-linux-gnu/asm/unistd_64.h", "asm/unistd_64.h"]
        .map(|path| PathBuf::from("/usr/include").join(path));
    let Some(header) = header
        .iter()
        .find_map(|path| std::fs::read_to_string(path).ok())
    else {
        return skipped(TEST, "no unistd_64.h: apt-get install linux-libc-dev");
    };
    let Some(allowed) = calls(&setting("SystemCallFilter")) else {
        return skipped(TEST, "no systemd-analyze: apt-get install systemd");
    };
    let numbers: Vec<&str> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '))
        .filter(|(name, _)| allowed.contains(*name))
        .map(|(_, number)| number.trim())
        .collect();
    assert!(numbers.len() > 100, "only {} known calls", numbers.len());
    let numbers = numbers.join(",");
    let data = directory();
    let around = ["python3", "-c", ONLY, &numbers];
    let flags: Vec<&str> = SMALL
        .iter()
        .copied()
        .chain([
            "--lock-memory",
            "--io-workers",
            "2",
            "--io-worker-cores",
            "0",
        ])
        .collect();
    let mut server = Server::spawn_under(&around, data.path(), &flags);
    server.wait_until_ready();
    let mut http = server.http();
    for i in 0..100 {
        let path = format!("/v1/streams/s/records/k{i}");
        assert_eq!(http.post(&path, vec![b'x'; 100_000]).status, 201);
        assert_eq!(http.get(&path).body.len(), 100_000);
    }
    // Lockable memory is the test machine's; whatever else is refused would be the filter's doing.
    let banner = server.banner();
    for (wish, text) in [("kernel threads", "a ring"), ("they run on cores", "[0]")] {
        assert!(banner.contains(wish) && banner.contains(text), "{banner}");
    }
    server.stop();
}
