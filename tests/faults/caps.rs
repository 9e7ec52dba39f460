//! Control groups around the real binary: a memory limit that its plan is made for, and a fifth of a core.
//!
//! Both versions of control groups; what needs root says so where it has none.

use std::path::{Path, PathBuf};
use std::time::Duration;

use client::{Condition, ContentType, Record};

use crate::book::{Book, read_notes, verify};
use crate::http::request;
use crate::oracle;
use crate::server::{SMALL, Server, directory};
use crate::skipped;

/// What a group may use.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    MemoryBytes(u64),
    CpuPercent(u64),
    /// Written to the device of this number.
    BytesPerSecond(u64, Device),
}

impl Limit {
    /// The controller; file and value of it in the first and in the second version of control groups.
    fn files(self) -> (&'static str, (&'static str, String), (&'static str, String)) {
        match self {
            Limit::MemoryBytes(bytes) => (
                "memory",
                ("memory.limit_in_bytes", bytes.to_string()),
                ("memory.max", bytes.to_string()),
            ),
            Limit::CpuPercent(percent) => (
                "cpu",
                ("cpu.cfs_quota_us", (percent * 1000).to_string()),
                ("cpu.max", format!("{} 100000", percent * 1000)),
            ),
            Limit::BytesPerSecond(bytes, (major, minor)) => (
                if Path::new("/sys/fs/cgroup/blkio/cgroup.procs").exists() {
                    "blkio"
                } else {
                    "io"
                },
                (
                    "blkio.throttle.write_bps_device",
                    format!("{major}:{minor} {bytes}"),
                ),
                ("io.max", format!("{major}:{minor} wbps={bytes}")),
            ),
        }
    }
}

/// Major and minor number.
pub type Device = (u32, u32);

/// A control group of our own, gone when dropped.
pub struct Group(PathBuf);

impl Group {
    /// None: it cannot be had here, which is said.
    pub fn with(test: &str, limit: Limit) -> Option<Group> {
        let (controller, one, two) = limit.files();
        let root = Path::new("/sys/fs/cgroup");
        let name = format!("pinion-test-{}-{controller}", std::process::id());
        let is_one = root.join(controller).join("cgroup.procs").exists();
        let (path, (file, value)) = if is_one {
            (root.join(controller).join(name), one)
        } else {
            // Switched on already, most often; where it may not be, the limit is not there to be written.
            let _ = std::fs::write(
                root.join("cgroup.subtree_control"),
                format!("+{controller}"),
            );
            (root.join(name), two)
        };
        let made = std::fs::create_dir(&path).map(|()| Group(path.clone()));
        let limited = made.and_then(|group| {
            std::fs::write(path.join(file), value)?;
            Ok(group)
        });
        match limited {
            Ok(group) => Some(group),
            Err(why) => {
                skipped(test, &format!("needs root and control groups ({why})"));
                None
            }
        }
    }

    /// Another limit of the same kind.
    pub fn change(&self, limit: Limit) {
        let (_, one, two) = limit.files();
        let (file, value) = match self.0.join(one.0).exists() {
            true => one,
            false => two,
        };
        std::fs::write(self.0.join(file), value).expect("it was written before");
    }

    pub fn start(&self, data: &Path, flags: &[&str]) -> Server {
        const JOIN: &str = "echo $$ > \"$0/cgroup.procs\" && exec \"$@\"";
        let path = self.0.to_str().expect("UTF-8");
        let mut server = Server::spawn_under(&["sh", "-c", JOIN, path], data, flags);
        server.wait_until_ready();
        server
    }

    /// Processes that the kernel ended for want of memory.
    fn killed(&self) -> u64 {
        ["memory.oom_control", "memory.events"]
            .iter()
            .filter_map(|file| std::fs::read_to_string(self.0.join(file)).ok())
            .flat_map(|text| {
                let counts = text
                    .lines()
                    .filter_map(|line| line.strip_prefix("oom_kill "));
                counts
                    .map(|n| n.parse::<u64>().expect("a number"))
                    .collect::<Vec<_>>()
            })
            .sum()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The kernel lets go of a process a moment after it has ended.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.0).is_ok() || !self.0.exists() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("left behind: {}", self.0.display());
    }
}

#[test]
fn a_memory_limit_is_planned_for_and_kept() {
    const LIMIT: u64 = 1 << 30;
    let Some(group) = Group::with("a memory limit", Limit::MemoryBytes(LIMIT)) else {
        return;
    };
    let data = directory();
    let flags = ["--shards", "1", "--segment-bytes", "16MiB"];
    let server = group.start(data.path(), &flags);
    assert!(
        server.stderr().contains("control groups leave 1 GiB"),
        "{}",
        server.stderr()
    );
    let banner = server.banner();
    let mut lines = banner.lines().map(str::trim);
    let total = lines.find(|line| line.starts_with("total"));
    assert!(
        total.is_some_and(|line| line.ends_with(" 768 MiB")),
        "{banner}"
    );
    // As many keys and bytes as fill the index, the cache and every buffer for a while.
    let mut client = server.client();
    let payload = vec![b'm'; 2000];
    for round in 0..600 {
        let keys: Vec<String> = (0..100).map(|i| format!("{round}-{i}")).collect();
        let records: Vec<Record<'_>> = (keys.iter())
            .map(|key| Record {
                key: key.as_bytes(),
                payload: &payload,
                content_type: ContentType::OCTET_STREAM,
                tombstone: false,
                condition: Condition::None,
            })
            .collect();
        client.append("s", &records).expect("there is room");
        let key = format!("{}-{}", round / 2, round % 100);
        let got = client.get("s", key.as_bytes()).expect("served");
        assert_eq!(got.expect("there").payload, payload);
    }
    // And clients that never read what they ask for.
    let mut deaf: Vec<_> = (0..40).map(|_| server.http()).collect();
    for connection in &mut deaf {
        for _ in 0..20 {
            connection.start("GET", "/v1/streams/s/scan?limit=500", &[], b"");
        }
    }
    for _ in 0..500 {
        let got = client.get("s", b"599-99").expect("served");
        assert_eq!(got.expect("there").payload, payload);
    }
    let resident = server.resident_bytes();
    assert!(resident < LIMIT, "{resident} bytes resident");
    assert_eq!(group.killed(), 0);
    assert_eq!(server.http().get("/readyz").status, 200);
    drop(deaf);
    server.stop();
}

#[test]
fn with_a_fifth_of_a_core_it_is_slow_and_nothing_else() {
    let Some(group) = Group::with("a fifth of a core", Limit::CpuPercent(20)) else {
        return;
    };
    let (data, notes) = (directory(), directory());
    let flags: Vec<&str> = (["--shards", "2", "--request-timeout-seconds", "2"].into_iter())
        .chain(SMALL)
        .collect();
    let server = group.start(data.path(), &flags);
    let (mut half, mut idle) = (server.http(), server.http());
    let whole = request("POST", "/v1/streams/s/records/half", &[], b"in two pieces");
    half.send(&whole[..whole.len() - 5]);
    let oracle = oracle::start(notes.path(), server.native, server.http, 0, 20);
    std::thread::sleep(Duration::from_millis(1500));
    half.send(&whole[whole.len() - 5..]);
    assert_eq!(half.response().status, 201, "it was in time");
    assert_eq!(idle.get("/healthz").status, 200);
    server.kill();
    oracle::ended(oracle);
    let mut book = Book::new();
    read_notes(&mut book, notes.path(), 0);
    let server = Server::start(data.path(), 2);
    let counts = verify(&server, &book, 2, 4).unwrap_or_else(|why| panic!("{why}"));
    println!("{} acked, {} there", counts.acked, counts.found);
    assert!(counts.acked > 20);
    server.stop();
}
