//! Writes that end after the process that started them: a device that stalls, and a supervisor that kills and starts anew.

use std::io::Write as _;
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use crate::caps::{Group, Limit};
use crate::server::{SMALL, Server, directory, run, serve_under};

const UNLIMITED: u64 = 1 << 40;

/// What is on its way to the device when a process is killed may land at any time. A second process that had the directory by then
/// would find its own log written over.
#[test]
fn nobody_has_a_directory_while_writes_of_a_killed_process_are_on_their_way() {
    let data = directory();
    let number = std::fs::metadata(data.path()).expect("it is there").dev();
    // As glibc's makedev(3) packs them, where both are small.
    let device = ((number >> 8 & 0xfff) as u32, (number & 0xff) as u32);
    let test = "a device that stalls";
    let Some(group) = Group::with(test, Limit::BytesPerSecond(UNLIMITED, device)) else {
        return;
    };
    let mut flags = vec!["--shards", "1"];
    flags.extend(SMALL);
    let mut first = group.start(data.path(), &flags);
    // Until the segments ahead are written: a thread that waits for the device keeps the process, and with it the lock.
    std::thread::sleep(Duration::from_millis(500));
    group.change(Limit::BytesPerSecond(1024, device));
    let writers: Vec<TcpStream> = (0..8)
        .map(|key| {
            let mut writer = TcpStream::connect(first.http).expect("it listens");
            let head = format!("POST /v1/streams/s/records/k{key} HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\n");
            let body = [b'x'; 8000];
            writer.write_all(&[head.as_bytes(), &body].concat()).expect("room for it");
            writer
        })
        .collect();
    std::thread::sleep(Duration::from_millis(500));
    first.signal("KILL");
    drop(writers);
    let (_, stderr) = run(&mut serve_under(&[], data.path(), &flags[2..]), 1);
    assert!(
        stderr.contains("another process is using this data directory"),
        "{stderr}"
    );
    group.change(Limit::BytesPerSecond(UNLIMITED, device));
    first.wait();
    let second = Server::start(data.path(), 1);
    assert_eq!(second.http().get("/readyz").status, 200);
    second.stop();
}
