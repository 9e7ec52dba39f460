//! The power goes with one operation of the filesystem, whichever it is: from the first file of a new store over its first
//! writes to the drain. What is there afterwards starts, holds what was acked, and takes writes.
//!
//! Whether that one is done is drawn. `PINION_POWER_STEPS=3000` for each of them twice; by default some are drawn.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::SeedableRng;
use rand::rngs::StdRng;
use sim::image::CrashMode;

use crate::forgetful::Forgetful;
use crate::http::request;
use crate::number_from;
use crate::oracle::{Random, response};
use crate::server::{PATIENCE, SMALL, Server, directory, serve_under};

const APPENDS: usize = 12;

/// What was acked, by key.
type Acked = BTreeMap<String, String>;

fn path_of(key: &str) -> String {
    format!("/v1/streams/s/records/{key}")
}

/// Some appends, one after the other, until one is not acked.
fn append(address: SocketAddr, acked: &mut Acked) -> Option<()> {
    let mut socket = TcpStream::connect(address).ok()?;
    for i in 0..APPENDS {
        let (key, value) = (format!("k{i}"), "x".repeat(1 + 900 * i));
        let bytes = request("POST", &path_of(&key), &[], value.as_bytes());
        socket.write_all(&bytes).ok()?;
        let said = response(&mut socket)?;
        if !said.starts_with("HTTP/1.1 201 ") {
            return None;
        }
        acked.insert(key, value);
    }
    Some(())
}

/// A server from its start over some appends to its drain, whatever becomes of it. Without power it is killed.
fn life(data: &Path, disk: &Forgetful, acked: &mut Acked) {
    let said = std::fs::File::create(data.with_extension("cut")).expect("writable");
    let mut flags = vec!["--shards", "2"];
    flags.extend(SMALL);
    let mut child = serve_under(&[], data, &flags)
        .stdout(Stdio::piped())
        .stderr(said)
        .spawn()
        .expect("the binary starts");
    let process = child.id().to_string();
    let signal = |name: &str| {
        let sent = Command::new("kill").args([name, &process]).status();
        sent.expect("kill is there");
    };
    let stdout = BufReader::new(child.stdout.take().expect("piped"));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for line in stdout.lines().map_while(Result::ok) {
                if let Some((_, http)) = line.split_once(" and http ") {
                    let address = http.split(' ').next().and_then(|text| text.parse().ok());
                    append(address.expect("an address"), acked);
                    signal("-TERM");
                }
            }
        });
        let started = Instant::now();
        let mut dark: Option<Instant> = None;
        while child.try_wait().expect("our child").is_none() {
            assert!(started.elapsed() < PATIENCE, "neither over nor dark");
            // For a moment it may say that it refuses.
            if disk.is_off()
                && dark.get_or_insert_with(Instant::now).elapsed() > Duration::from_millis(30)
            {
                child.kill().expect("our child");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    });
}

#[test]
fn a_power_cut_at_any_operation_leaves_a_store_that_starts_and_holds_what_was_acked() {
    const TEST: &str = "a power cut at any operation";
    let seed = number_from("PINION_TEST_SEED", u64::from(std::process::id()) << 20 | 1);
    println!("PINION_TEST_SEED={seed}");
    let (mut random, mut rng) = (Random(seed), StdRng::seed_from_u64(seed));
    let data = directory();
    let Some(disk) = Forgetful::mount(TEST, data.path()) else {
        return;
    };
    let mut acked = Acked::new();
    life(data.path(), &disk, &mut acked);
    assert_eq!(acked.len(), APPENDS, "nothing was cut");
    let all = disk.operations();
    drop(disk);

    let steps = number_from("PINION_POWER_STEPS", 24);
    let mut cut = 0;
    for step in 0..steps.min(2 * all) {
        // Evenly over all of them, a different one each time.
        let at = (step * all / steps.min(2 * all) + random.below(all.div_ceil(steps))) % all;
        let done = random.below(2) == 0;
        let mode = CrashMode::ALL[random.below(CrashMode::ALL.len() as u64) as usize];
        let data = directory();
        let Some(disk) = Forgetful::mount(TEST, data.path()) else {
            return;
        };
        disk.power_off_behind(at, done);
        let mut acked = Acked::new();
        life(data.path(), &disk, &mut acked);
        cut += u64::from(disk.is_off());
        let said = disk.power_on(&mut rng, mode);
        println!(
            "power off at {at} of {all}, done {done}, {mode:?}: {} acked, {said:?}",
            acked.len()
        );
        let server = Server::start(data.path(), 2);
        let mut http = server.http();
        for (key, value) in &acked {
            let got = http.get(&path_of(key));
            assert_eq!((got.status, got.text()), (200, value.clone()), "{key}");
        }
        assert_eq!(http.post(&path_of("after"), "x").status, 201);
        server.stop();
    }
    println!("{cut} of {steps} cuts, of {all} operations");
    assert!(
        cut * 10 >= steps.min(2 * all) * 8,
        "most of them are reached"
    );
}
