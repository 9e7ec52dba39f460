//! What a real server writes, read back by the tools that work without one; and what they say once a byte of it is wrong.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

const RECORDS: usize = 5000;

fn pinion(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinion"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PINION_") {
            command.env_remove(name);
        }
    }
    command
}

#[track_caller]
fn check(command: &mut Command, code: i32) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the binary starts");
    let (stdout, stderr) = (
        String::from_utf8_lossy(&stdout).into_owned(),
        String::from_utf8_lossy(&stderr).into_owned(),
    );
    assert_eq!(
        status.code(),
        Some(code),
        "{command:?}\nstdout: {stdout}\nstderr: {stderr}"
    );
    (stdout, stderr)
}

/// A running server on ports of its own.
struct Server {
    child: Child,
    native: String,
}

impl Server {
    /// Returns once the line that scripts wait for is there.
    fn start(data: &Path) -> Server {
        let data = data.to_str().expect("a UTF-8 path");
        let mut child = pinion(&[
            "serve",
            "--data",
            data,
            "--port",
            "0",
            "--http-port",
            "0",
            "--shards",
            "1",
        ])
        .args([
            "--segment-bytes",
            "4MiB",
            "--memory",
            "1GiB",
            "--log",
            "warn",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
        let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
        let ready = lines
            .map_while(Result::ok)
            .find(|line| line.starts_with("pinion is serving"));
        let ready = ready.expect("the server says that it serves");
        let native = ready
            .split_whitespace()
            .nth(4)
            .expect("the native address is the fifth word")
            .to_owned();
        Server { child, native }
    }

    fn drain(mut self) {
        let id = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &id])
                .status()
                .expect("kill is there")
                .success()
        );
        assert_eq!(self.child.wait().expect("it ends").code(), Some(0));
    }
}

impl Drop for Server {
    /// A test that failed leaves no server behind; after a drain there is nothing left to kill.
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The segment file that holds batches, and where its first one starts to be records.
fn written_segment(data: &Path) -> PathBuf {
    data.join("log-00000000/segment-00000000.seg")
}

#[test]
fn offline_tools_read_what_a_server_wrote_and_find_one_flipped_bit() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().join("data");
    let path = data.to_str().expect("a UTF-8 path");
    let input = directory.path().join("input.ndjson");
    let lines: String = (0..RECORDS)
        .map(|n| format!("{{\"id\":\"key{}\",\"n\":{n}}}\n", n % 100))
        .collect();
    std::fs::write(&input, lines).expect("an input file");
    let input = input.to_str().expect("a UTF-8 path");

    let server = Server::start(&data);
    let to = server.native.clone();
    for tool in ["verify", "inspect"] {
        let (_, stderr) = check(&mut pinion(&[tool, path]), 1);
        assert!(stderr.contains("in use by a server"), "{stderr}");
    }
    let (_, stderr) = check(
        &mut pinion(&["serve", "--data", path, "--port", "0", "--http-port", "0"]),
        1,
    );
    assert!(
        stderr.contains("another process is using this data directory"),
        "{stderr}"
    );
    let (stdout, _) = check(
        &mut pinion(&["load", input, "--stream", "s", "--key", "id", "--to", &to]),
        0,
    );
    assert!(
        stdout.starts_with(&format!("loaded {RECORDS} records ")),
        "{stdout}"
    );
    let (stdout, _) = check(&mut pinion(&["get", "s", "key7", "--to", &to]), 0);
    assert_eq!(
        stdout,
        format!("{{\"id\":\"key7\",\"n\":{}}}", RECORDS - 93)
    );
    let (stdout, _) = check(&mut pinion(&["scan", "s", "--to", &to]), 0);
    assert_eq!(stdout.lines().count(), RECORDS);
    let (stdout, _) = check(&mut pinion(&["history", "s", "key7", "--to", &to]), 0);
    assert_eq!(stdout.lines().count(), RECORDS / 100);
    server.drain();

    let (stdout, _) = check(&mut pinion(&["verify", path]), 0);
    assert!(stdout.ends_with("no damage\n"), "{stdout}");
    let (stdout, _) = check(&mut pinion(&["inspect", "--json", path]), 0);
    let report: serde_json::Value = serde_json::from_str(&stdout).expect("one JSON object");
    let log = &report["logs"][0];
    assert_eq!(log["verdict"]["state"], "whole");
    assert_eq!(log["streams"][0]["name"], "s");
    assert_eq!(log["streams"][0]["records"], RECORDS);
    assert_eq!(log["durable_lsn_at_close"], log["last_lsn"]);

    let segment = written_segment(&data);
    let mut bytes = std::fs::read(&segment).expect("a segment");
    bytes[4096 + 1000] ^= 1;
    std::fs::write(&segment, bytes).expect("a segment");
    let (_, stderr) = check(&mut pinion(&["verify", path]), 1);
    for wanted in [
        "damage: log-00000000/segment-00000000.seg at offset 4096, lsn ",
        "was durable",
    ] {
        assert!(stderr.contains(wanted), "{stderr}");
    }
    let (stdout, _) = check(&mut pinion(&["inspect", path]), 0);
    assert!(
        stdout.contains("DAMAGE: log-00000000/segment-00000000.seg"),
        "{stdout}"
    );
}

#[test]
fn a_bad_line_stops_a_load_and_what_was_before_it_is_stored() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(&directory.path().join("data"));
    let to = server.native.as_str();
    let input = directory.path().join("input.csv");
    std::fs::write(&input, "id,name\n1,\"a, b\"\n2\n3,c\n").expect("an input file");
    let input = input.to_str().expect("a UTF-8 path");
    let (stdout, stderr) = check(
        &mut pinion(&["load", input, "--stream", "s", "--key", "id", "--to", to]),
        1,
    );
    assert!(stdout.starts_with("loaded 1 record "), "{stdout}");
    assert!(
        stderr.contains("input.csv line 3: the row has 1 fields, the header has 2"),
        "{stderr}"
    );
    let (stdout, _) = check(&mut pinion(&["get", "s", "1", "--to", to]), 0);
    assert_eq!(stdout, r#"{"id":"1","name":"a, b"}"#);
    check(&mut pinion(&["get", "s", "3", "--to", to]), 1);

    let (stdout, _) = check(
        &mut pinion(&[
            "load",
            input,
            "--stream",
            "t",
            "--key",
            "id",
            "--skip-bad",
            "--to",
            to,
        ]),
        0,
    );
    assert!(
        stdout.contains("skipped 1 line, the first: line 3: "),
        "{stdout}"
    );
    check(&mut pinion(&["get", "t", "3", "--to", to]), 0);

    // A payload that the server would refuse, with the whole frame, is a bad line; also as the last one.
    let large = directory.path().join("large.ndjson");
    let line = |id: u32, bytes: usize| format!("{{\"id\":{id},\"v\":\"{}\"}}\n", "x".repeat(bytes));
    std::fs::write(
        &large,
        [line(1, 9), line(2, 1 << 20), line(3, 9), line(4, 1 << 20)].concat(),
    )
    .expect("room");
    let large = large.to_str().expect("UTF-8");
    let load = |more: &[&str], code| {
        let load = ["load", large, "--stream", "u", "--key", "id", "--to", to];
        check(pinion(&load).args(more), code)
    };
    let (_, stderr) = load(&["--payload-bytes-max", "1MiB"], 1);
    assert!(
        stderr.contains("large.ndjson line 2: payload has"),
        "{stderr}"
    );
    let (stdout, _) = load(&["--skip-bad", "--payload-bytes-max", "1MiB"], 0);
    assert!(
        stdout.contains("loaded 2 records")
            && stdout.contains("skipped 2 lines, the first: line 2: "),
        "{stdout}"
    );
    let (_, stderr) = load(&[], 1);
    assert!(
        stderr.contains("too_large") && stderr.contains("with --payload-bytes-max"),
        "{stderr}"
    );
    server.drain();
}

#[test]
fn single_commands_say_what_the_server_said() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let server = Server::start(&directory.path().join("data"));
    let to = server.native.as_str();
    let append = |arguments: &[&str], code| {
        check(
            pinion(&["append", "s", "k"]).args(arguments).args([
                "--content-type",
                "text/plain",
                "--to",
                to,
            ]),
            code,
        )
    };
    let (stdout, _) = append(&["one", "--if-new"], 0);
    assert!(
        stdout.contains("\"version\":1") && stdout.contains("\"durability\":\"durable\""),
        "{stdout}"
    );
    append(&["two", "--if-version", "1"], 0);
    let (_, stderr) = append(&["three", "--if-version", "1"], 1);
    assert!(stderr.contains("condition_failed"), "{stderr}");
    let (stdout, stderr) = check(&mut pinion(&["scan", "s", "--limit", "1", "--to", to]), 0);
    assert!(
        stdout.lines().count() == 1 && stdout.contains("\"value\":\"one\""),
        "{stdout}"
    );
    let cursor = stderr
        .trim()
        .strip_prefix("cursor: ")
        .expect("the cursor is on standard error");
    let (stdout, _) = check(
        &mut pinion(&["tail", "s", "--cursor", cursor, "--limit", "1", "--to", to]),
        0,
    );
    assert!(
        stdout.lines().count() == 1 && stdout.contains("\"value\":\"two\""),
        "{stdout}"
    );
    check(
        &mut pinion(&["append", "s", "k", "--tombstone", "--to", to]),
        0,
    );
    let (_, stderr) = check(&mut pinion(&["get", "s", "k", "--to", to]), 1);
    assert!(stderr.contains("has no key k"), "{stderr}");
    let (_, stderr) = check(
        &mut pinion(&["append", "not a name", "k", "v", "--to", to]),
        2,
    );
    assert!(stderr.contains("stream name"), "{stderr}");
    server.drain();
}

#[test]
fn a_repair_cuts_behind_the_last_good_batch_only_when_asked_and_keeps_the_rest_aside() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let data = directory.path().join("data");
    let path = data.to_str().expect("a UTF-8 path");
    let input = directory.path().join("input.ndjson");
    let lines: String = (0..RECORDS)
        .map(|n| format!("{{\"id\":\"key{n}\",\"n\":{n}}}\n"))
        .collect();
    std::fs::write(&input, lines).expect("an input file");
    let input = input.to_str().expect("a UTF-8 path");
    let server = Server::start(&data);
    check(
        &mut pinion(&[
            "load",
            input,
            "--stream",
            "s",
            "--key",
            "id",
            "--batch",
            "50",
            "--window",
            "1",
            "--to",
            &server.native,
        ]),
        0,
    );
    server.drain();
    let (stdout, _) = check(&mut pinion(&["repair", path]), 0);
    assert!(stdout.contains("nothing to repair"), "{stdout}");

    let segment = written_segment(&data);
    let mut bytes = std::fs::read(&segment).expect("a segment");
    let used = bytes.iter().rposition(|byte| *byte != 0).expect("records");
    bytes[used * 2 / 3] ^= 1;
    std::fs::write(&segment, &bytes).expect("a segment");
    let (stdout, stderr) = check(&mut pinion(&["repair", path]), 1);
    assert!(stdout.contains("the cut keeps everything up to lsn "));
    assert!(stderr.contains("nothing was changed"), "{stderr}");
    assert_eq!(std::fs::read(&segment).expect("a segment"), bytes);

    let (stdout, _) = check(&mut pinion(&["repair", "--cut", path]), 0);
    assert!(stdout.contains("no damage is left"), "{stdout}");
    check(&mut pinion(&["verify", path]), 0);
    let left_out = std::fs::read_dir(&data)
        .expect("the data directory")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("left-out-"))
        .expect("what was left out is kept")
        .join("log-00000000");
    let report = std::fs::read_to_string(left_out.join("report.json")).expect("a report");
    let report: serde_json::Value = serde_json::from_str(&report).expect("one JSON object");
    let salvaged = std::fs::read_to_string(left_out.join("records.ndjson")).expect("records");
    let salvaged = salvaged.lines().count();
    assert_eq!(report["records_that_still_verify"], salvaged);

    let server = Server::start(&data);
    let (stdout, _) = check(&mut pinion(&["scan", "s", "--to", &server.native]), 0);
    let kept = stdout.lines().count();
    // One lsn is the stream's definition.
    assert_eq!(report["cut"]["last_lsn_kept"], kept + 1);
    // Lost is the damaged record, and what followed it in its batch.
    assert!((RECORDS - 50..RECORDS).contains(&(kept + salvaged)));
    let after = ["append", "s", "new", "1", "--to", &server.native];
    check(&mut pinion(&after), 0);
    server.drain();
    check(&mut pinion(&["verify", path]), 0);
}
