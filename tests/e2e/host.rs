//! What the server asks of the host and tells it: wishes that may be refused, and a service manager that wants to know.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::server::{SMALL, Server, directory, eventually};

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
