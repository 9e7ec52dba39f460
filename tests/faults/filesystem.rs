//! Filesystems that fail under the running server: shut down, full, failing device, read-only. Nothing acked is lost, nothing
//! is acked behind a failure, the error says what it is, other shards and reads go on.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use client::{Code, Condition, ContentType, Error, Record};

use crate::book::{Book, close, read_notes, verify};
use crate::ground::{Ground, Journal, Kind, path_text, system};
use crate::http::Connection;
use crate::number_from;
use crate::oracle::{self, Random};
use crate::server::{Server, directory, eventually, pinion, run};

pub const SHARDS: u16 = 2;

/// Keys that belong to a shard.
fn keys(shard: u16) -> impl Iterator<Item = String> {
    (0..).map(|i| format!("k{i}")).filter(move |k| {
        shard == wire::slot::shard_of_slot(wire::slot::slot_of(k.as_bytes()), SHARDS)
    })
}

fn key(shard: u16) -> String {
    keys(shard).next().expect("endless")
}

fn path_of(key: &str) -> String {
    format!("/v1/streams/s/records/{key}")
}

/// What was acked, by key: the number of versions and the newest payload.
#[derive(Default)]
struct Acked(BTreeMap<String, (u64, Vec<u8>)>);

impl Acked {
    /// One append; Some(status) if it was not acked, None if the connection ended without an answer.
    fn append(&mut self, http: &mut Connection, key: &str, payload: Vec<u8>) -> Option<u16> {
        let answer = http.post(&path_of(key), &payload);
        if answer.status == 201 {
            let version = answer.json()["version"].as_u64().expect("a version");
            self.0.insert(key.to_owned(), (version, payload));
            return None;
        }
        Some(answer.status)
    }

    #[track_caller]
    fn assert_readable(&self, server: &Server, when: &str) {
        let mut http = server.http();
        for (key, (version, payload)) in &self.0 {
            let answer = http.get(&path_of(key));
            assert_eq!(answer.status, 200, "{when}: {key}: {}", answer.text());
            assert_eq!(answer.body, *payload, "{when}: {key}");
            assert_eq!(
                answer.header("etag"),
                Some(&*format!("\"{version}\"")),
                "{when}: {key}"
            );
        }
    }
}

fn native_append(server: &Server, key: &str) -> Result<u32, Error> {
    let record = Record {
        key: key.as_bytes(),
        payload: &[b'n'; 1000],
        content_type: ContentType::OCTET_STREAM,
        tombstone: false,
        condition: Condition::None,
    };
    let mut client = server.client();
    client
        .append("s", &[record])
        .map(|ack| ack.versions.first().copied().unwrap_or(0))
}

/// Appends to a shard until it answers with something else than an ack, on a connection that it may close in between. To a
/// key of its own: its newest version is not known to be durable, and no read may show it.
#[track_caller]
fn until_refused(server: &Server, shard: u16) -> crate::http::Response {
    let path = path_of(&keys(shard).nth(99).expect("endless"));
    eventually("a refusal", || {
        let mut http = server.http();
        http.start("POST", &path, &[], b"x");
        let answer = http.answer_or_end()?;
        (answer.status != 201).then_some(answer)
    })
}

fn durable_lsn(server: &Server, shard: u16) -> f64 {
    server.metric("pinion_durable_lsn", usize::from(shard))
}

#[test]
fn an_ext4_that_is_shut_down_under_load_loses_no_ack() {
    shut_down_under_load(Kind::Ext4);
}

#[test]
fn an_xfs_that_is_shut_down_under_load_loses_no_ack() {
    shut_down_under_load(Kind::Xfs);
}

fn shut_down_under_load(kind: Kind) {
    // More than the load of all rounds writes on a fast disk: what is full refuses for another reason.
    const MIB: u64 = 4096;
    let data = directory();
    let test = format!("shutdown of {kind:?}");
    let Some(ground) = Ground::of_kind(kind, &test, data.path(), MIB) else {
        return;
    };
    let notes = directory();
    let mut random = Random(number_from(
        "PINION_TEST_SEED",
        u64::from(std::process::id()) << 20 | 1,
    ));
    println!("PINION_TEST_SEED={}", random.0);
    let rounds = number_from("PINION_SHUTDOWNS", 5);
    let mut book = Book::new();
    for round in 0..rounds {
        let server = Server::start(data.path(), SHARDS.into());
        if let Err(why) = verify(&server, &book, SHARDS.into(), 1) {
            panic!("before round {round}: {why}");
        }
        let oracle = oracle::start(
            notes.path(),
            server.native,
            server.http,
            round,
            random.next() | 1,
        );
        std::thread::sleep(Duration::from_millis(100 + random.below(300)));
        ground.shut_down(match round % 2 {
            0 => Journal::Lost,
            _ => Journal::Written,
        });
        assert_nothing_is_acked_any_more(&server);
        if round == 0 {
            // Asked to end it ends, and says that not all was well.
            let mut server = server;
            assert_eq!(server.terminate().code(), Some(1), "{}", server.stderr());
        } else {
            server.kill();
        }
        oracle::ended(oracle);
        read_notes(&mut book, notes.path(), round);
        ground.remount();
    }
    let server = Server::start(data.path(), SHARDS.into());
    let done = format!("{rounds} shutdowns of {kind:?}");
    close(
        server,
        data.path(),
        &book,
        SHARDS.into(),
        50 * rounds,
        &done,
    );
}

/// The log cannot be written: every shard refuses, says why, and acks nothing of the load that goes on.
#[track_caller]
pub fn assert_nothing_is_acked_any_more(server: &Server) {
    let durable: Vec<f64> = (0..SHARDS)
        .map(|shard| {
            let refused = until_refused(server, shard);
            refused.problem(503, "unavailable");
            assert!(refused.header("retry-after").is_some());
            match native_append(server, &key(shard)) {
                Err(Error::Refused(refusal)) => assert_eq!(refusal.code, Code::Unavailable),
                other => panic!("{other:?}"),
            }
            durable_lsn(server, shard)
        })
        .collect();
    // The load goes on, and nothing of it is acked.
    std::thread::sleep(Duration::from_millis(200));
    for (shard, durable) in (0..SHARDS).zip(durable) {
        assert_eq!(
            durable_lsn(server, shard),
            durable,
            "an ack behind a failure"
        );
        // The first write that fails stops a shard. One that had just used up its segments has none under way, and is
        // held by the next segment that cannot be made.
        let state = server.metric("pinion_shard_state", shard.into());
        assert!(
            state == 3.0 || state == 5.0,
            "shard {shard} is in state {state}"
        );
    }
    server.http().get("/readyz").problem(503, "unavailable");
    assert_eq!(server.http().get("/healthz").status, 200);
}

/// Fills both shards until each says that the disk is full.
#[track_caller]
fn fill_up(server: &Server, acked: &mut Acked, random: &mut Random) -> u64 {
    let mut http = server.http();
    let mut bytes = 0;
    for shard in 0..SHARDS {
        let mut keys = keys(shard).take(20).collect::<Vec<_>>().into_iter().cycle();
        let status = loop {
            let payload: Vec<u8> = (0..200_000).map(|_| random.next() as u8).collect();
            bytes += payload.len() as u64;
            if let Some(status) = acked.append(&mut http, &keys.next().expect("endless"), payload) {
                break status;
            }
            assert!(bytes < 1 << 30, "the disk does not fill up");
        };
        assert_eq!(status, 507, "shard {shard}:\n{}", server.stderr());
    }
    bytes
}

/// A server on a full disk ends and begins again; everything reads back.
#[track_caller]
fn restarted_full(server: Server, data: &Path, clean: bool, acked: &Acked) -> Server {
    if clean {
        server.stop();
    } else {
        server.kill();
    }
    let server = Server::start(data, SHARDS.into());
    acked.assert_readable(&server, "full, after a restart");
    server
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_space() {
    let data = directory();
    let Some(_ground) = Ground::on_disk("full disk", data.path(), 64) else {
        return;
    };
    let mut random = Random(7);
    let (mut acked, ballast) = (Acked::default(), data.path().join("ballast"));
    let server = Server::start(data.path(), SHARDS.into());
    std::fs::write(&ballast, vec![1; 24 << 20]).expect("room");
    let bytes = fill_up(&server, &mut acked, &mut random);
    println!("full after {} MiB", bytes >> 20);

    let assert_full = |server: &Server, acked: &Acked, when: &str| {
        let mut http = server.http();
        for shard in 0..SHARDS {
            let refused = http.post(&path_of(&key(shard)), vec![0; 200_000]);
            let detail = refused.problem(507, "disk_full");
            assert!(detail.contains("disk is full"), "{detail}");
            assert!(refused.header("retry-after").is_some());
            assert_eq!(
                server.metric("pinion_shard_state", shard.into()),
                2.0,
                "{when}"
            );
        }
        http.get("/readyz").problem(507, "disk_full");
        assert_eq!(http.get("/healthz").status, 200);
        acked.assert_readable(server, when);
        assert_eq!(http.get("/v1/streams/s/scan?limit=3").lines().len(), 3);
    };
    assert_full(&server, &acked, "full");
    // The native twin, once not even a small record fits what is left of the segment.
    eventually("the native refusal", || {
        match native_append(&server, &key(0)) {
            Ok(_) => None,
            Err(Error::Refused(refusal)) => {
                assert_eq!(refusal.code, Code::DiskFull, "{}", refusal.message);
                assert!(refusal.retry_after_ms.is_some());
                Some(())
            }
            Err(other) => panic!("{other}"),
        }
    });
    // What native appends took is no longer what was noted.
    acked.0.remove(&key(0));

    // It is still a state after a restart, clean or not.
    let mut server = server;
    for clean in [false, true] {
        server = restarted_full(server, data.path(), clean, &acked);
        fill_up(&server, &mut acked, &mut random);
        assert_full(&server, &acked, "full again");
    }

    std::fs::remove_file(&ballast).expect("it is there");
    let mut http = server.http();
    for shard in 0..SHARDS {
        let key = key(shard);
        let since = Instant::now();
        eventually("writes to resume", || {
            acked
                .append(&mut http, &key, vec![b'r'; 200_000])
                .is_none()
                .then_some(())
        });
        println!(
            "shard {shard} took writes again after {:?}",
            since.elapsed()
        );
    }
    eventually("readiness", || {
        (http.get("/readyz").status == 200).then_some(())
    });
    acked.assert_readable(&server, "space is back");
    server.kill();
    let server = Server::start(data.path(), SHARDS.into());
    acked.assert_readable(&server, "restarted with space");
    server.stop();
    run(&mut pinion(&["verify", path_text(data.path())]), 0);
}

/// The log alone fills the disk, with versions that nobody can ask for any more: nobody has to come and make room.
#[test]
fn a_disk_that_the_log_has_filled_takes_writes_again_by_itself() {
    let data = directory();
    let Some(_ground) = Ground::on_disk("filled by the log", data.path(), 64) else {
        return;
    };
    let mut acked = Acked::default();
    // Without compaction it fills up for certain.
    let server = Server::start_with(data.path(), SHARDS.into(), &["--space-amplification", "0"]);
    let policy = server.http().call(
        "PUT",
        "/v1/streams/s",
        &["Content-Type: application/json"],
        r#"{"history_depth":1}"#,
    );
    assert_eq!(policy.status / 100, 2, "{}", policy.text());
    for shard in 0..SHARDS {
        // One key at the very front of each log, which must not be given up with what lies around it.
        let cold = keys(shard).nth(30).expect("endless");
        assert_eq!(
            acked.append(&mut server.http(), &cold, vec![b'c'; 100_000]),
            None
        );
    }
    // The shards in turns, so that each has its half; three keys of each over and over.
    let mut http = server.http();
    let mut full = [false; SHARDS as usize];
    for number in 0.. {
        let shard = number % SHARDS;
        let key = keys(shard)
            .nth(usize::from(number / SHARDS) % 3)
            .expect("endless");
        let status = acked.append(&mut http, &key, vec![number as u8; 200_000]);
        full[usize::from(shard)] = status.is_some();
        if full == [true; SHARDS as usize] {
            break;
        }
        assert!(number < 2_000, "the disk does not fill up");
    }
    let mut server = server;
    for clean in [false, true] {
        server = restarted_full(server, data.path(), clean, &acked);
        let (mut http, since) = (server.http(), Instant::now());
        let mut refused = 0;
        for number in 0..200 {
            let shard = number % SHARDS;
            let key = keys(shard).nth(usize::from(number) % 3).expect("endless");
            eventually("writes to resume", || {
                let status = acked.append(&mut http, &key, vec![number as u8; 200_000]);
                assert!(matches!(status, None | Some(507)), "{status:?}");
                refused += u32::from(status.is_some());
                status.is_none().then_some(())
            });
        }
        println!(
            "40 MB over a full disk of 64 in {:?}, {refused} refusals",
            since.elapsed()
        );
        acked.assert_readable(&server, "after compaction");
    }
    let wrote = |server: &Server| -> f64 {
        (0..SHARDS)
            .map(|shard| server.metric("pinion_segments_recycled_total", shard.into()))
            .sum()
    };
    assert!(wrote(&server) > 0.0, "files were used again");
    server.stop();
    run(&mut pinion(&["verify", path_text(data.path())]), 0);
}

/// A new store whose shard 0 has its log on a ground of its own. None: there is no ground to be had.
fn store_with_a_log_apart(
    data: &Path,
    make: impl FnOnce(&Path) -> Option<Ground>,
) -> Option<Ground> {
    Server::start(data, SHARDS.into()).stop();
    let log = data.join("log-00000000");
    std::fs::remove_dir_all(&log).expect("a log without records");
    make(&log)
}

/// Shard 0 has failed; shard 1 goes on, and so do reads of both.
#[track_caller]
fn assert_one_of_two_failed(server: &Server, acked: &mut Acked, detail_says: &str) {
    let refused = until_refused(server, 0);
    let detail = refused.problem(503, "unavailable");
    assert!(detail.contains(detail_says), "{detail}");
    let durable = durable_lsn(server, 0);
    let mut http = server.http();
    for i in 0..20 {
        let key = keys(1).nth(i % 5).expect("endless");
        assert_eq!(
            acked.append(&mut http, &key, vec![b'1'; 1000]),
            None,
            "shard 1 goes on"
        );
        http.post(&path_of(&key_of_failed(i)), "x")
            .problem(503, "unavailable");
    }
    assert_eq!(durable_lsn(server, 0), durable, "an ack behind a failure");
    acked.assert_readable(server, "one shard has failed");
    assert_eq!(server.metric("pinion_shard_state", 0), 3.0);
    assert_eq!(server.metric("pinion_shard_state", 1), 1.0);
    // Whichever shard is asked.
    for _ in 0..4 {
        server.http().get("/readyz").problem(503, "unavailable");
    }
}

/// Keys of shard 0 that nothing was acked for.
fn key_of_failed(i: usize) -> String {
    keys(0).nth(100 + i).expect("endless")
}

#[test]
fn a_device_that_fails_writes_stops_its_shard_alone_until_a_restart() {
    const TEST: &str = "EIO from the device";
    let data = directory();
    let Some(ground) =
        store_with_a_log_apart(data.path(), |log| Ground::in_memory(TEST, log, 64, 48))
    else {
        return;
    };
    let server = Server::start(data.path(), SHARDS.into());
    let mut acked = Acked::default();
    let mut http = server.http();
    for shard in 0..SHARDS {
        for key in keys(shard).take(20) {
            assert_eq!(acked.append(&mut http, &key, vec![b'a'; 5000]), None);
        }
    }
    // The next segment is prepared by now, or will fail for good.
    ground.break_new_blocks();
    assert_one_of_two_failed(&server, &mut acked, "failed");
    // The device is well again: a write that failed is still not known to be anywhere, so nothing is acked.
    ground.mend();
    std::thread::sleep(Duration::from_millis(700));
    assert_one_of_two_failed(&server, &mut acked, "failed");
    let mut server = server;
    assert_eq!(server.terminate().code(), Some(1), "{}", server.stderr());
    drop(server);
    ground.remount();

    let server = Server::start(data.path(), SHARDS.into());
    acked.assert_readable(&server, "restarted");
    let mut http = server.http();
    for shard in 0..SHARDS {
        assert_eq!(acked.append(&mut http, &key(shard), vec![b'b'; 5000]), None);
    }
    acked.assert_readable(&server, "written to again");
    server.stop();
    run(&mut pinion(&["verify", path_text(data.path())]), 0);
}

#[test]
fn a_filesystem_that_turns_read_only_stops_its_shard_alone() {
    const TEST: &str = "remount read-only";
    let data = directory();
    let Some(ground) = store_with_a_log_apart(data.path(), |log| Ground::on_disk(TEST, log, 64))
    else {
        return;
    };
    let log = data.path().join("log-00000000");
    let server = Server::start(data.path(), SHARDS.into());
    let mut acked = Acked::default();
    let mut http = server.http();
    for shard in 0..SHARDS {
        for key in keys(shard).take(20) {
            assert_eq!(acked.append(&mut http, &key, vec![b'a'; 5000]), None);
        }
    }
    // While files are open for writing the kernel refuses, and nobody notices.
    let busy = system(&["mount", "-o", "remount,ro", path_text(&log)]);
    assert!(
        busy.is_err_and(|why| why.contains("busy")),
        "files are open for writing"
    );
    assert_eq!(acked.append(&mut http, &key(0), vec![b'b'; 5000]), None);
    // What ext4 does by itself after an error in its own structures.
    system(&["mount", "-o", "remount,abort", path_text(&log)])
        .unwrap_or_else(|why| panic!("{why}"));
    assert_one_of_two_failed(&server, &mut acked, "failed");
    let mut server = server;
    assert_eq!(server.terminate().code(), Some(1), "{}", server.stderr());
    drop(server);

    // Read-only from the start: refused, with the path and what to do.
    ground.remount();
    system(&["mount", "-o", "remount,ro", path_text(&log)]).unwrap_or_else(|why| panic!("{why}"));
    let (_, stderr) = run(
        &mut crate::server::serve_under(&[], data.path(), &["--memory", "1GiB"]),
        1,
    );
    assert!(
        stderr.contains("log-00000000") && stderr.to_lowercase().contains("read-only"),
        "{stderr}"
    );
    system(&["mount", "-o", "remount,rw", path_text(&log)]).unwrap_or_else(|why| panic!("{why}"));
    let server = Server::start(data.path(), SHARDS.into());
    acked.assert_readable(&server, "writable again");
    assert_eq!(
        acked.append(&mut server.http(), &key(0), vec![b'c'; 5000]),
        None
    );
    server.stop();
    run(&mut pinion(&["verify", path_text(data.path())]), 0);
}
