//! What the server asks of the host and tells it: wishes that may be refused, and a service manager that wants to know.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::server::{SMALL, Server, directory, eventually, pinion, run};

/// Everything that can be asked for.
const WISHES: [&str; 13] = [
    "--lock-memory",
    "--huge-pages",
    "--incoming-cpu",
    "--cpu-dma-latency-us",
    "1000",
    "--napi-busy-poll-us",
    "50",
    "--io-workers",
    "2",
    "--io-worker-cores",
    "0",
    "--tcp-user-timeout-seconds",
    "9",
];

#[test]
fn every_wish_is_granted_or_named_and_the_server_serves() {
    let data = directory();
    let server = Server::start_with(data.path(), 2, &WISHES);
    let banner = server.banner();
    assert!(banner.contains("connections end after 9 s"), "{banner}");
    let granted_or_named = [
        ("memory is locked", "--lock-memory"),
        ("on reserved huge pages", "--huge-pages"),
        ("accept what arrives on their core", "--incoming-cpu"),
        ("CPUs wake up within 1000 us", "--cpu-dma-latency-us"),
        ("network card polled for 50 us", "--napi-busy-poll-us"),
        ("at most 2 kernel threads a ring", "--io-workers"),
        ("they run on cores [0]", "--io-worker-cores"),
    ];
    for (granted, flag) in granted_or_named {
        let refused = format!("{flag} is not in force");
        assert_ne!(
            banner.contains(granted),
            banner.contains(&refused),
            "{flag} in: {banner}"
        );
        assert_eq!(
            banner.contains(&refused),
            server.stderr().contains(&refused)
        );
    }
    let mut http = server.http();
    assert_eq!(http.post("/v1/streams/s/records/k", "x").status, 201);
    if banner.contains("memory is locked") {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.process()))
            .expect("our child");
        let locked = status.lines().find(|line| line.starts_with("VmLck:"));
        let kib: u64 = locked
            .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
            .expect("a number");
        assert!(kib > 1024, "{kib} KiB locked");
    }
    server.stop();
}

#[test]
fn a_probe_measures_the_device_and_the_next_start_goes_by_it() {
    let data = directory();
    let path = data.path().to_str().expect("UTF-8");
    let plot = data.path().with_extension("svg");
    let plot_path = plot.to_str().expect("UTF-8");
    let probe = ["tune", "probe", "--data", path, "--plot", plot_path];
    let (out, _) = run(pinion(&probe).args(["--seconds", "2", "--json"]), 0);
    let found: serde_json::Value = serde_json::from_str(&out).expect("one JSON object");
    let measured = &found["measured"];
    let writes = measured["writes"].as_array().expect("a list");
    assert_eq!(writes.len(), 3 * 5 * 5);
    assert_eq!(measured["reads_4k"].as_array().map(Vec::len), Some(6));
    for cell in writes {
        assert!(cell["operations"].as_u64() > Some(0), "{cell}");
        assert!(cell["p50_us"].as_f64() > Some(0.0), "{cell}");
    }
    let picture = std::fs::read_to_string(&plot).expect("a plot");
    assert!(picture.contains("<svg") && picture.contains("RWF_DSYNC"));
    let left: Vec<_> = std::fs::read_dir(data.path())
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name())
        .collect();
    assert_eq!(left, ["device.toml"], "scratch files are left behind");
    let depth = found["profile"]["large_writes_in_flight"]
        .as_u64()
        .expect("a number");
    let goes_by = |depth: u64| {
        let server = Server::start(data.path(), 1);
        let wanted = format!(", {depth} large writes in flight");
        assert!(server.banner().contains(&wanted), "{}", server.banner());
        server.stop();
    };
    goes_by(depth);
    // It is the file that decides.
    let file = data.path().join("device.toml");
    let text = std::fs::read_to_string(&file).expect("the profile");
    let line = |depth| format!("large_writes_in_flight = {depth}");
    std::fs::write(&file, text.replace(&line(depth), &line(5))).expect("ours");
    goes_by(5);
    let (_, complaint) = run(pinion(&probe).args(["--seconds", "1"]), 2);
    assert!(complaint.contains("type 2 to 10"), "{complaint}");
}

#[test]
fn a_service_manager_hears_of_readiness_and_of_the_drain() {
    let data = directory();
    let around = tempfile::tempdir().expect("a temporary directory");
    let path = around.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    manager
        .set_read_timeout(Some(Duration::from_millis(10)))
        .expect("a timeout");
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let heard = |wanted: &str| {
        eventually(wanted, || {
            let mut message = [0; 1024];
            let bytes = manager.recv(&mut message).ok()?;
            let text = String::from_utf8_lossy(&message[..bytes]).into_owned();
            text.lines().any(|line| line == wanted).then_some(text)
        })
    };
    let mut server = Server::spawn_under(&["env", &variable], data.path(), &SMALL);
    heard("STATUS=recovering");
    let ready = heard("READY=1");
    assert!(ready.contains("STATUS=pinion is serving"), "{ready}");
    server.wait_until_ready();
    assert_eq!(server.http().get("/readyz").status, 200);
    server.signal("TERM");
    heard("STOPPING=1");
    assert!(server.wait().success());
}
