//! A core goes away under a shard and comes back, as hotplug does it, or a hypervisor: nothing is lost, and the shard returns.
//!
//! That is the whole machine's core, so it is done only where `PINION_CORE_OFFLINE=1` asks for it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use crate::server::{Server, directory, eventually};
use crate::skipped;

/// A core that is there again when this is dropped.
struct Core(usize);

impl Core {
    fn switch(&self) -> PathBuf {
        PathBuf::from(format!("/sys/devices/system/cpu/cpu{}/online", self.0))
    }

    fn go(&self, online: bool) -> std::io::Result<()> {
        std::fs::write(self.switch(), if online { "1" } else { "0" })
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.go(true).expect("it was there before");
    }
}

/// Where the thread of this name may run, as the kernel writes it.
fn cores_of(server: &Server, thread: &str) -> String {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.process())).expect("it lives");
    let mut found = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let cores = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))?;
        (name.trim() == thread).then(|| cores.trim().to_owned())
    });
    found.next().unwrap_or_else(|| panic!("no thread {thread}"))
}

/// Appends under keys of its own until told to end; how many were acked.
fn append(server: &Server, worker: usize, acked: &AtomicU64, done: &AtomicBool) -> u64 {
    let mut http = server.http();
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        let target = format!("/v1/streams/s/records/w{worker}-{count}");
        assert_eq!(http.post(&target, "x").status, 201);
        acked.fetch_add(1, Ordering::Relaxed);
        count += 1;
    }
    count
}

/// Workers end also when the test fails.
struct EndsAll<'a>(&'a AtomicBool);

impl Drop for EndsAll<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_core_that_goes_away_and_comes_back_costs_no_record() {
    const WHAT: &str = "a core that goes away";
    if std::env::var_os("PINION_CORE_OFFLINE").is_none() {
        return skipped(
            WHAT,
            "takes one from the whole machine: PINION_CORE_OFFLINE=1",
        );
    }
    let core = Core(1);
    if core.go(true).is_err() {
        std::mem::forget(core);
        return skipped(
            WHAT,
            "needs root and a second core that can be switched off",
        );
    }
    let data = directory();
    let mut server = Server::start(data.path(), 2);
    assert_eq!(cores_of(&server, "shard-1"), "1");
    let (acked, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let more = |what: &str| {
        let before = acked.load(Ordering::Relaxed);
        let since = Instant::now();
        eventually(what, || {
            (acked.load(Ordering::Relaxed) > before + 500).then_some(())
        });
        println!("{what}: 500 appends in {:?}", since.elapsed());
    };
    let counts = std::thread::scope(|scope| {
        let (server, acked, done) = (&server, &acked, &done);
        let end = EndsAll(done);
        let workers: Vec<_> = (0..4)
            .map(|worker| scope.spawn(move || append(server, worker, acked, done)))
            .collect();
        for time in 1..=3 {
            more("with both cores");
            core.go(false).expect("it may be switched off");
            eventually("the shard to say so", || {
                let said = server.stderr().matches("core 1 is gone").count();
                (said == time).then_some(())
            });
            more("with one");
            core.go(true).expect("it may be switched on");
            eventually("the shard to be back on its core", || {
                let said = server.stderr().matches("it is back there").count();
                (said == time && cores_of(server, "shard-1") == "1").then_some(())
            });
        }
        more("with both, pinned");
        drop(end);
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect::<Vec<_>>()
    });
    server.assert_alive();
    server.kill();
    let server = Server::start(data.path(), 2);
    let mut http = server.http();
    let found: BTreeSet<String> = crate::http::scan(&mut http, "s", 1000)
        .iter()
        .map(|record| record["key"].as_str().expect("text").to_owned())
        .collect();
    for (worker, count) in counts.iter().enumerate() {
        let lost = (0..*count).find(|n| !found.contains(&format!("w{worker}-{n}")));
        assert_eq!(lost, None, "of worker {worker}, which was acked {count}");
    }
    server.stop();
}
