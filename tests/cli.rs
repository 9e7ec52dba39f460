//! The command line from outside: exit codes, refusals that say what to type, and where a setting comes from.
//! Nothing here needs a running server.

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The binary with an environment that holds none of our variables.
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs and holds the exit code; returns (standard output, standard error).
#[track_caller]
fn check(command: &mut Command, code: i32) -> (String, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = command.output().expect("the binary starts");
    let (stdout, stderr) = (text(&stdout), text(&stderr));
    assert_eq!(
        status.code(),
        Some(code),
        "{command:?}\nstdout: {stdout}\nstderr: {stderr}"
    );
    (stdout, stderr)
}

#[track_caller]
fn refused(arguments: &[&str], wanted: &str) {
    let (stdout, stderr) = check(&mut pinion(arguments), 2);
    assert!(stderr.contains(wanted), "{arguments:?} said: {stderr}");
    assert!(
        stdout.is_empty(),
        "{arguments:?} wrote to standard output: {stdout}"
    );
}

/// The settings that `serve` would run with.
#[track_caller]
fn settings(command: &mut Command) -> toml::Table {
    let (stdout, _) = check(command.arg("--print-config"), 0);
    stdout
        .parse()
        .unwrap_or_else(|error| panic!("{error} in: {stdout}"))
}

fn write(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).expect("a file in a temporary directory");
    path.to_str().expect("a UTF-8 path").to_owned()
}

#[test]
fn bad_usage_exits_with_2() {
    refused(&[], "Usage: pinion <COMMAND>");
    refused(&["tue"], "unrecognized subcommand 'tue'");
    refused(&["tune"], "Usage: pinion tune <COMMAND>");
    refused(&["serve", "--no-such-flag"], "--no-such-flag");
    refused(
        &["serve", "--port", "70000"],
        "is not a port: type a number",
    );
    refused(
        &["serve", "--port", "tcp://10.0.0.1:7600"],
        "enableServiceLinks: false",
    );
    refused(&["serve", "--segment-bytes", "lots"], "is not a size");
    refused(&["serve", "--cores", "5-2"], "type 2-5");
    refused(&["serve", "--shards", "0"], "type 1 to");
    refused(&["serve", "--log", "pinion=["], "type a level");
    refused(&["load", "x"], "--stream");
    refused(
        &["append", "s", "k", "v", "--if-new", "--if-version", "3"],
        "cannot be used with",
    );
    refused(
        &["append", "s", "k", "v", "--tombstone"],
        "cannot be used with",
    );
    refused(&["get", "s"], "<KEY>");
    refused(&["history", "s", "k", "--limit", "0"], "0 is not in 1..");
    refused(&["inspect"], "<DIR>");
}

#[test]
fn help_and_version_are_done() {
    let (stdout, _) = check(&mut pinion(&["--help"]), 0);
    for command in [
        "serve", "load", "append", "get", "history", "scan", "tail", "inspect", "verify", "repair",
        "reshard",
    ] {
        assert!(
            stdout.contains(&format!("\n  {command} ")),
            "{command} is not in: {stdout}"
        );
    }
    let (stdout, _) = check(&mut pinion(&["--version"]), 0);
    assert_eq!(stdout, format!("pinion {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn an_address_beyond_loopback_needs_a_token_or_the_word() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    refused(&["serve", "--listen", "0.0.0.0"], "add --token-file FILE");
    let empty = write(directory.path(), "empty", "\n");
    refused(
        &["serve", "--listen", "0.0.0.0", "--token-file", &empty],
        "is empty",
    );
    let token = write(directory.path(), "token", "secret\n");
    let listen = settings(&mut pinion(&[
        "serve",
        "--listen",
        "0.0.0.0",
        "--token-file",
        &token,
    ]));
    assert_eq!(listen["listen"].as_str(), Some("0.0.0.0"));
    settings(&mut pinion(&["serve", "--listen", "0.0.0.0", "--insecure"]));
}

#[test]
fn flags_go_before_environment_before_file_before_defaults() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = write(
        directory.path(),
        "pinion.toml",
        "port = 1\nhttp-port = 1\nshards = 1\nsegment-bytes = \"8MiB\"\nshard-ports = false\n",
    );
    let mut command = pinion(&["serve", "--config", &file, "--port", "3"]);
    command.env("PINION_PORT", "2").env("PINION_HTTP_PORT", "2");
    let found = settings(&mut command);
    assert_eq!(found["port"].as_integer(), Some(3), "the flag");
    assert_eq!(found["http-port"].as_integer(), Some(2), "the environment");
    assert_eq!(found["segment-bytes"].as_str(), Some("8MiB"), "the file");
    assert_eq!(found["shard-ports"].as_bool(), Some(false), "the file");
    assert_eq!(
        found["connections-max"].as_integer(),
        Some(4096),
        "the default"
    );
    assert_eq!(found["data"].as_str(), Some("./data"), "the default");
}

#[test]
fn a_default_that_is_typed_beats_the_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let file = write(directory.path(), "pinion.toml", "port = 1\n");
    let found = settings(&mut pinion(&["serve", "--config", &file, "--port", "7600"]));
    assert_eq!(found["port"].as_integer(), Some(7600));
}

#[test]
fn the_printed_settings_are_a_config_file() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let first = settings(&mut pinion(&[
        "serve",
        "--cores",
        "0",
        "--memory",
        "1000000000",
        "--spin-us",
        "0",
    ]));
    let file = write(directory.path(), "pinion.toml", &first.to_string());
    assert_eq!(settings(&mut pinion(&["serve", "--config", &file])), first);
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for (text, wanted) in [
        (
            "port = 1\n\nports = 2\n",
            ["line 3", "unknown field `ports`"],
        ),
        ("port = 1\nhttp-port = \"x\"\n", ["line 2", "invalid type"]),
        ("port = \n", ["line 1", "TOML parse error"]),
        ("cores = \"0,0\"\n", ["line 1", "named twice"]),
        (
            "port = 1\nconfig = \"other.toml\"\n",
            ["line 2", "unknown field `config`"],
        ),
    ] {
        let file = write(directory.path(), "pinion.toml", text);
        for wanted in wanted {
            refused(&["serve", "--config", &file], wanted);
        }
    }
    refused(
        &["serve", "--config", "/does/not/exist.toml"],
        "/does/not/exist.toml",
    );
}

#[test]
fn a_reader_that_goes_away_is_not_a_failure() {
    let mut child = pinion(&["serve", "--print-config"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("start");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("end");
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn a_server_that_is_not_there_is_a_failure_that_names_its_address() {
    // A port that was free a moment ago, and that nobody listens on now.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address").to_string();
    drop(listener);
    let directory = tempfile::tempdir().expect("a temporary directory");
    let lines = write(directory.path(), "lines.ndjson", "{\"k\":\"a\"}\n");
    for arguments in [
        &["get", "s", "k"][..],
        &["append", "s", "k", "v"],
        &["history", "s", "k"],
        &["scan", "s"],
        &["tail", "s"],
        &["load", &lines, "--stream", "s", "--key", "k"],
    ] {
        let (_, stderr) = check(pinion(arguments).args(["--to", &address]), 1);
        assert!(stderr.contains(&address), "{arguments:?} said: {stderr}");
    }
}

#[test]
fn a_directory_that_is_none_of_ours_fails() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("a UTF-8 path");
    for tool in ["inspect", "verify"] {
        let (_, stderr) = check(&mut pinion(&[tool, "/does/not/exist"]), 1);
        assert!(stderr.contains("/does/not/exist"), "{stderr}");
        let (_, stderr) = check(&mut pinion(&[tool, path]), 1);
        assert!(stderr.contains("superblock"), "{stderr}");
    }
}
