//! Whole turns over the test driver: what must end, what must wait, what must not be shown.

use std::time::Duration;

use crate::test_driver::{get, post, recovered, recovery_of, shard, two_shards};

const RECORD: &str = "/v1/streams/s/records/k";

#[test]
fn a_refused_condition_waits_for_the_record_that_it_names() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (one, two) = (shard.connect(), shard.connect());
    shard.turns(5);
    shard.driver.hold_writes = true;
    assert_eq!(shard.ask(one, post("k", "", b"first")), "");
    assert_eq!(
        shard.ask(two, post("k", "If-None-Match: *\r\n", b"second")),
        "",
        "a crash could still take the first back"
    );
    shard.driver.let_writes_end(|_| 4096);
    shard.turns(5);
    assert!(shard.heard(one).starts_with("HTTP/1.1 201"));
    assert!(shard.heard(two).starts_with("HTTP/1.1 412"));
}

#[test]
fn behind_a_failed_write_nothing_waits_and_a_drain_ends() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (writer, reader) = (shard.connect(), shard.connect());
    assert!(
        shard
            .ask(writer, post("k", "", b"kept"))
            .starts_with("HTTP/1.1 201")
    );
    shard.driver.fail_writes = true;
    assert_eq!(shard.ask(writer, post("k", "", b"lost")), "");
    assert!(!shard.driver.clients[&writer].1, "its ack will not come");
    assert!(
        shard.ask(reader, get(RECORD)).starts_with("HTTP/1.1 503"),
        "the newest value is not durable and never will be"
    );
    assert!(
        shard
            .ask(reader, get("/v1/streams/s/scan"))
            .contains("a2VwdA=="),
        "reads of what is durable go on"
    );
    shard.drain();
    assert!((0..2_000).any(|_| !shard.turn()), "the drain ends");
}

#[test]
fn who_was_refused_is_told_ready_by_no_shard() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    shard.turns(5);
    shard.driver.fail_writes = true;
    shard.say(client, post("k", "", b"lost"));
    assert!(shard.core.is_process_ready());
    let closed = (0..20).any(|_| {
        shard.turn();
        !shard.driver.clients[&client].1
    });
    assert!(closed, "its ack will not come");
    assert!(
        !shard.core.is_process_ready(),
        "told before the client could notice, not by the next housekeeping"
    );
}

#[test]
fn a_request_that_no_set_of_buffers_holds_is_refused() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    // 1 MiB of lines is 2.6 MiB of log: it fits a segment, and so do the buffers for it.
    let body = "{\"key\":\"k\",\"value\":1}\n".repeat(1_000_000 / 22);
    let many = |body: &str| {
        format!(
            "POST /v1/streams/s/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    assert!(shard.ask(client, many(&body)).starts_with("HTTP/1.1 200"));
    let log = &shard.core.partition.log;
    for (bytes, largest) in [
        (100, 100),
        (3 << 20, 64),
        (2 << 20, 300 << 10),
        (64 << 20, 64),
    ] {
        let fits = log.unit_fits(bytes, largest);
        assert_eq!(
            fits,
            bytes <= 3 << 20,
            "{bytes} bytes, the largest {largest}"
        );
    }
}

#[test]
fn a_cold_record_of_any_size_is_read_with_the_buffers_there_are() {
    let mut first = shard(Vec::new(), 1, 8);
    let client = first.connect();
    // Of the size class of 512 KiB, which is larger than any read buffer of a shard that takes 300 KiB.
    let body = vec![b'x'; 290 << 10];
    assert!(
        first
            .ask(client, post("k", "", &body))
            .starts_with("HTTP/1.1 201")
    );
    let mut second = shard(first.driver.files, 2, 8);
    let client = second.connect();
    let answer = second.ask(client, get(RECORD));
    assert!(answer.starts_with("HTTP/1.1 200") && answer.len() > body.len());
    assert!(second.driver.longest_read > body.len());
}

#[test]
fn a_damaged_length_is_damage_and_no_end_of_the_process() {
    let mut first = shard(Vec::new(), 1, 8);
    let client = first.connect();
    assert!(
        first
            .ask(client, post("k", "", &[b'x'; 1000]))
            .starts_with("HTTP/1.1 201")
    );
    let mut second = shard(first.driver.files, 2, 8);
    let entry = second
        .core
        .partition
        .index
        .get(second.core.partition.digests.digest(1, b"k"))
        .expect("it is there");
    let file = second
        .core
        .partition
        .log
        .segment(entry.location.segment)
        .expect("live")
        .file
        .0 as usize;
    let at = entry.location.offset as usize;
    // Just beyond what a read buffer holds, whatever the record's place in its block.
    let length = second.core.reads.chunk_bytes() as u32 - 8;
    second.driver.files[file][at..at + 4].copy_from_slice(&length.to_le_bytes());
    let client = second.connect();
    assert!(second.ask(client, get(RECORD)).starts_with("HTTP/1.1 500"));
}

#[test]
fn a_scan_does_not_look_behind_the_end_of_a_segment() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    // Fill the first segment until the second has begun.
    let body = vec![b'x'; 290 << 10];
    while shard.core.partition.log.chain().segment == 1 {
        assert!(
            shard
                .ask(client, post("k", "", &body))
                .starts_with("HTTP/1.1 201")
        );
    }
    let last = shard
        .core
        .partition
        .log
        .segments()
        .nth(1)
        .expect("begun")
        .first_lsn
        - 1;
    // Behind the last batch of the first: a batch that a recovery cut off, with an lsn that was given out again.
    let file = shard
        .core
        .partition
        .log
        .segments()
        .next()
        .expect("the first")
        .file
        .0 as usize;
    let blocks = shard.driver.files[file]
        .chunks(4096)
        .rposition(|block| block.iter().any(|b| *b != 0))
        .expect("written")
        + 1;
    let end = blocks * 4096;
    let at = wal::chain::ChainPoint {
        next_lsn: last + 1,
        offset: end as u32,
        ..wal::chain::ChainPoint::genesis(1)
    };
    let ready = wal::writer::ReadySegment {
        segment: 1,
        generation: 1,
        bytes: crate::test_driver::SEGMENT_BYTES as u32,
        file: 0,
    };
    let mut writer =
        wal::writer::Writer::<Vec<u8>>::new(crate::test_driver::identity(), 1, at, ready);
    writer.open(vec![0; 4096], 0).expect("room");
    writer.append(&wal::record::NewRecord {
        kind: wal::record::Kind::Put,
        content_type: 2,
        stream: 1,
        version: 9,
        timestamp_us: u64::MAX / 2,
        previous: wal::Link::default(),
        key: b"k",
        payload: b"never acked",
        extensions: &[],
    });
    let sealed = writer.seal(true, 0, 0).expect("a record");
    shard.driver.files[file][end..end + 4096].copy_from_slice(&sealed.buffer);
    let (mut scanned, mut cursor) = (String::new(), String::new());
    for _ in 0..40 {
        let page = shard.ask(
            client,
            get(&format!("/v1/streams/s/scan?limit=1000{cursor}")),
        );
        let Some(next) = page.lines().find_map(|l| {
            l.to_ascii_lowercase()
                .starts_with("x-pinion-cursor:")
                .then(|| l[16..].trim().to_owned())
        }) else {
            break;
        };
        scanned += &page;
        cursor = format!("&cursor={next}");
    }
    assert!(!scanned.contains("never acked"));
    assert_eq!(
        scanned.matches("\"key\"").count() as u64,
        shard
            .core
            .partition
            .streams
            .get(1)
            .expect("defined")
            .records
    );
}

#[test]
fn connections_far_beyond_the_bound_are_dropped_before_they_cost_anything() {
    let mut shard = shard(Vec::new(), 1, 4);
    let before = shard.driver.clients.len();
    for _ in 0..1_000 {
        shard.event(crate::driver::Event::Accepted {
            door: crate::driver::Door::Http,
            socket: (),
        });
    }
    assert!(shard.driver.clients.len() - before <= 4 + 64);
    shard.turns(5);
    assert_eq!(shard.core.conns.len(), 4);
    assert_eq!(
        shard.core.shared.load[0].load(std::sync::atomic::Ordering::Relaxed),
        4
    );
    let refused: Vec<u64> = (5..=8).collect();
    for client in refused {
        assert!(shard.heard(client).starts_with("HTTP/1.1 429"));
    }
}

#[test]
fn what_waits_for_a_bound_is_answered_as_soon_as_it_may() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    shard.turns(3);
    // More gets of an unknown key than a connection may have under way: the rest is taken up as answers leave.
    let requests = get(RECORD).repeat(2_000);
    shard.say(client, requests);
    let (mut heard, started) = (0, shard.core.now.monotonic_ns);
    while heard < 2_000 {
        shard.turn();
        heard += shard.heard(client).matches("HTTP/1.1 404").count();
        assert!(
            shard.core.now.monotonic_ns - started < 50_000_000,
            "{heard} answers, and it sleeps"
        );
    }
}

#[test]
fn a_drain_answers_what_was_taken() {
    let mut first = shard(Vec::new(), 1, 8);
    let client = first.connect();
    assert!(
        first
            .ask(client, post("k", "", b"cold"))
            .starts_with("HTTP/1.1 201")
    );
    let mut second = shard(first.driver.files, 2, 8);
    let client = second.connect();
    second.turns(5);
    second.say(client, get(RECORD));
    second.turn();
    assert_eq!(second.heard(client), "", "the device is asked");
    second.drain();
    while second.turn() {}
    assert!(second.heard(client).starts_with("HTTP/1.1 200"));
}

#[test]
fn a_scan_that_finds_no_batch_where_one_must_be_says_so() {
    let mut first = shard(Vec::new(), 1, 8);
    let client = first.connect();
    for key in ["a", "b", "c"] {
        assert!(
            first
                .ask(client, post(key, "", b"x"))
                .starts_with("HTTP/1.1 201")
        );
    }
    let mut second = shard(first.driver.files, 2, 8);
    let entry = second
        .core
        .partition
        .index
        .get(second.core.partition.digests.digest(1, b"b"))
        .expect("it is there");
    let file = second
        .core
        .partition
        .log
        .segment(entry.location.segment)
        .expect("live")
        .file
        .0 as usize;
    let block = entry.location.offset as usize / 4096 * 4096;
    second.driver.files[file][block..block + 4096].fill(0);
    let client = second.connect();
    assert!(
        second
            .ask(client, get("/v1/streams/s/scan"))
            .starts_with("HTTP/1.1 500"),
        "not a page that leaves b out"
    );
}

#[test]
fn under_load_small_batches_are_a_commit_window_apart_and_lone_ones_are_not() {
    const WINDOW: Duration = Duration::from_millis(5);
    let (mut shard, _) = recovered(Vec::new(), 1, 16, WINDOW);
    let clients: Vec<u64> = (0..8).map(|_| shard.connect()).collect();
    shard.turns(5);
    // Clients that ask again as soon as all of them are answered; the times between the writes of their batches.
    let mut between = |clients: &[u64]| -> Vec<u64> {
        shard.driver.write_times_ns.clear();
        for _ in 0..8 {
            for client in clients {
                shard.say(*client, post("k", "", b"x"));
            }
            while !clients
                .iter()
                .all(|c| !shard.driver.clients[c].0.is_empty())
            {
                shard.turn();
            }
            for client in clients {
                assert!(shard.heard(*client).starts_with("HTTP/1.1 201"));
            }
        }
        let times = &shard.driver.write_times_ns;
        times.windows(2).map(|t| t[1] - t[0]).collect()
    };
    let window_ns = WINDOW.as_nanos() as u64;
    let lone = between(&clients[..1]);
    assert!(lone.iter().all(|ns| *ns < window_ns), "{lone:?}");
    let loaded = between(&clients);
    assert!(loaded.len() >= 7, "{loaded:?}");
    assert!(
        loaded.iter().skip(2).all(|ns| *ns >= window_ns),
        "{loaded:?}"
    );
}

#[test]
fn a_restart_knows_how_many_keys_to_make_room_for() {
    let mut first = shard(Vec::new(), 1, 8);
    let client = first.connect();
    for key in 0..200 {
        let post = post(&format!("k{key}"), "", b"small");
        assert!(first.ask(client, post).starts_with("HTTP/1.1 201"));
    }
    let body = vec![b'x'; 290 << 10];
    while first.core.partition.log.chain().segment < 3 {
        let answer = first.ask(client, post("large", "", &body));
        assert!(answer.starts_with("HTTP/1.1 201"));
    }
    first.turns(20);
    let (second, report) = recovered(first.driver.files, 2, 8, Duration::ZERO);
    assert!(report.keys_expected >= 200, "{report:?}");
    assert_eq!(second.core.partition.index.len(), 201);
}

#[test]
fn a_unit_of_many_buffers_has_its_turn_on_a_saturated_disk() {
    let mut shard = shard(Vec::new(), 1, 64);
    let big = shard.connect();
    let small: Vec<u64> = (0..40).map(|_| shard.connect()).collect();
    shard.turns(5);
    shard.driver.hold_writes = true;
    // Each fills a batch; each is asked again as soon as it is answered. One write ends in a turn.
    let post = post("k", "", &[b'x'; 290 << 10]);
    let mut answers = vec![0; small.len()];
    let turn = |shard: &mut crate::turn::Shard<_>, answers: &mut [u32]| {
        for (client, answers) in small.iter().zip(&mut *answers) {
            if *answers == 0 || shard.heard(*client).starts_with("HTTP/1.1 201") {
                *answers += 1;
                shard.say(*client, &post);
            }
        }
        shard.driver.let_one_write_end();
        shard.turn();
    };
    for _ in 0..60 {
        turn(&mut shard, &mut answers);
    }
    assert!(
        shard.core.partition.log.in_flight() == 8,
        "the disk is saturated"
    );
    let lines = "{\"key\":\"k\",\"value\":1}\n".repeat(1_000_000 / 22);
    shard.say(big, format!(
        "POST /v1/streams/s/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{lines}",
        lines.len()
    ));
    // Those that stand in line before it, and the buffers that it needs.
    let turns = (0..120).position(|_| {
        turn(&mut shard, &mut answers);
        shard.heard(big).starts_with("HTTP/1.1 200")
    });
    assert!(turns.is_some(), "it starves");
    let before = answers.clone();
    for _ in 0..120 {
        turn(&mut shard, &mut answers);
    }
    assert!(
        answers.iter().zip(&before).all(|(now, then)| now > then),
        "and so does no other: {before:?}, {answers:?}"
    );
}

#[test]
fn a_drained_shard_answers_the_others_until_they_are_drained_too() {
    for first in [0, 1] {
        let mut shards = two_shards(8);
        let second = 1 - first;
        let key = (0..)
            .map(|i| format!("k{i}"))
            .find(|k| {
                let slot = wire::slot::slot_of(k.as_bytes());
                usize::from(wire::slot::shard_of_slot(slot, 2)) == first
            })
            .expect("half of all keys");
        let client = shards[second].connect();
        shards[second].turns(3);
        shards[first].drain();
        for _ in 0..50 {
            assert!(shards[first].turn(), "the other may still ask");
        }
        // The other has not heard of the drain, or has the request in its mail already.
        shards[second].say(client, post(&key, "", b"hops"));
        shards[second].turn();
        shards[second].drain();
        let mut on = [true; 2];
        for _ in 0..1_000 {
            for (shard, on) in shards.iter_mut().zip(&mut on) {
                *on = *on && shard.turn();
            }
        }
        assert_eq!(on, [false; 2], "the drain ends");
        assert!(shards[second].heard(client).starts_with("HTTP/1.1 201"));
        assert_eq!(
            shards[first].durable_lsn(),
            2,
            "the stream's policy and the record"
        );
    }
}

#[test]
fn a_later_segment_is_read_up_to_the_first_proof_and_in_parts() {
    const PART_BYTES: usize = 256 << 10;
    let mut first = shard(Vec::new(), 1, 8);
    let client = first.connect();
    let body = vec![b'x'; 290 << 10];
    while first.core.partition.log.chain().segment < 4 {
        let answer = first.ask(client, post("k", "", &body));
        assert!(answer.starts_with("HTTP/1.1 201"));
    }
    let place = |first: &crate::turn::Shard<crate::test_driver::TestDriver>, segment| {
        let segment = first.core.partition.log.segment(segment);
        segment.expect("live").file
    };
    let [one, two, three, four] = [1, 2, 3, 4].map(|segment| place(&first, segment));
    let mut files = first.driver.files;
    // What the chain needs from the middle of the first segment on, and all batches of the second.
    files[one.0 as usize][1 << 20..].fill(0);
    files[two.0 as usize][4096..].fill(0);
    let (report, reads) = recovery_of(files.clone());
    let why = report
        .expect_err("the third segment says what was durable")
        .to_string();
    assert!(why.contains("below its durable mark"), "{why}");
    let of = |reads: &crate::test_driver::ReadsMade, file| -> Vec<usize> {
        let of_file = reads.iter().filter(|(f, ..)| *f == file);
        of_file.map(|(.., len)| *len).collect()
    };
    assert_eq!(of(&reads, three), [8192, PART_BYTES], "header, first part");
    assert_eq!(of(&reads, four), [8192]);
    // Without a proof all of both is looked at, a part at a time.
    for file in [three, four] {
        files[file.0 as usize][4096..].fill(0);
    }
    let (report, reads) = recovery_of(files);
    assert!(report.is_ok(), "never proven durable: cut");
    for file in [three, four] {
        let lengths = of(&reads, file);
        assert_eq!(lengths.iter().sum::<usize>(), 8192 + (4 << 20));
        assert!(lengths.iter().all(|len| *len <= PART_BYTES));
    }
}

/// A request of which all but the last bytes have come.
fn begun(key: &str) -> Vec<u8> {
    let mut bytes = post(key, "", b"half a body");
    bytes.truncate(bytes.len() - 4);
    bytes
}

#[test]
fn a_request_that_is_begun_and_not_ended_is_refused_and_closed() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (slow, idle, fast) = (shard.connect(), shard.connect(), shard.connect());
    shard.say(slow, begun("k"));
    // A byte at a time does not start the clock anew.
    for byte in b"hal" {
        shard.turns_for(Duration::from_secs(3));
        assert_eq!(shard.heard(slow), "");
        shard.say(slow, [*byte]);
    }
    shard.turns_for(Duration::from_millis(1_100));
    assert!(shard.heard(slow).starts_with("HTTP/1.1 408"));
    assert!(!shard.driver.clients[&slow].1, "it is closed");
    assert!(
        shard.driver.clients[&idle].1,
        "one that asks nothing is not"
    );
    assert!(shard.ask(fast, get("/healthz")).starts_with("HTTP/1.1 200"));
    assert_eq!(shard.core.metrics.counters.late_requests, 1);
}

#[test]
fn a_large_request_is_given_time_by_its_bytes() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    let whole = post("k", "", &[b'x'; 290 << 10]);
    // 29 KiB every second and a half: slow, and fast enough.
    let mut pieces = whole.chunks(whole.len() / 10 + 1);
    for piece in pieces.by_ref() {
        shard.say(client, piece);
        shard.turns_for(Duration::from_millis(1_400));
    }
    assert!(shard.heard(client).starts_with("HTTP/1.1 201"));
}

#[test]
fn a_process_that_was_stopped_does_not_blame_its_clients() {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    let request = post("k", "", b"half a body");
    shard.say(client, begun("k"));
    shard.turns(5);
    shard.sleep(Duration::from_secs(3600));
    shard.turns(5);
    assert_eq!(shard.heard(client), "", "its bytes may be on their way");
    assert!(
        shard
            .ask(client, &request[request.len() - 4..])
            .starts_with("HTTP/1.1 201")
    );
    // The time after the stop counts.
    shard.say(client, begun("k"));
    shard.sleep(Duration::from_secs(3600));
    shard.turns_for(Duration::from_secs(12));
    assert!(shard.heard(client).starts_with("HTTP/1.1 408"));
}

#[test]
fn a_clock_that_jumps_moves_no_timestamp_back_and_ends_no_wait_early() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (writer, waiter) = (shard.connect(), shard.connect());
    let put = |shard: &mut crate::turn::Shard<_>, value: &str| {
        assert!(
            shard
                .ask(writer, post("k", "", value.as_bytes()))
                .starts_with("HTTP/1.1 201")
        );
    };
    put(&mut shard, "first");
    let tail = shard.ask(waiter, get("/v1/streams/s/tail?wait_ms=5000"));
    let cursor = tail
        .lines()
        .find_map(|l| l.strip_prefix("X-Pinion-Cursor: "))
        .expect("a page")
        .to_owned();
    let hour = 3_600_000_000;
    shard.say(
        waiter,
        get(&format!("/v1/streams/s/tail?wait_ms=5000&cursor={cursor}")),
    );
    for off in [hour, -hour, 0] {
        shard.driver.clock_off_us = off;
        shard.turns_for(Duration::from_secs(1));
        assert_eq!(shard.heard(waiter), "", "the wait is real time");
    }
    for (off, value) in [(hour, "ahead"), (-hour, "back"), (0, "right")] {
        shard.driver.clock_off_us = off;
        put(&mut shard, value);
    }
    let history = shard.ask(writer, get("/v1/streams/s/records/k/history?limit=10"));
    let times: Vec<u64> = history
        .split("\"timestamp\":")
        .skip(1)
        .map(|t| {
            let digits: String = t.chars().take_while(char::is_ascii_digit).collect();
            digits.parse().expect("a number")
        })
        .collect();
    assert_eq!(times.len(), 4, "{history}");
    assert!(
        times.windows(2).all(|t| t[0] >= t[1]),
        "newest first, and never older than the one before: {times:?}"
    );
    // A restart under a clock that is behind goes on where the log was.
    let (mut second, _) = recovered(shard.driver.files, 2, 8, Duration::ZERO);
    let client = second.connect();
    second.driver.clock_off_us = -24 * hour;
    assert!(
        second
            .ask(client, post("k", "", b"late"))
            .starts_with("HTTP/1.1 201")
    );
    let newest = second.ask(client, get("/v1/streams/s/records/k/history?limit=1"));
    assert!(
        newest.contains(&format!("\"timestamp\":{}", times[0])),
        "{newest}"
    );
}

#[test]
fn a_segment_that_cannot_be_made_is_named_for_what_it_is() {
    for (kind, status) in [
        (std::io::ErrorKind::StorageFull, "507"),
        (std::io::ErrorKind::QuotaExceeded, "507"),
        (std::io::ErrorKind::ReadOnlyFilesystem, "503"),
        (std::io::ErrorKind::Other, "503"),
    ] {
        let mut shard = shard(Vec::new(), 1, 8);
        let client = shard.connect();
        shard.turns(5);
        shard.driver.fail_segments = Some(kind);
        let body = vec![b'x'; 290 << 10];
        let answer = (0..200)
            .map(|_| shard.ask(client, post("k", "", &body)))
            .find(|answer| !answer.starts_with("HTTP/1.1 201"))
            .expect("the segments that there are fill up");
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{kind}: {answer}"
        );
        assert!(answer.contains("Retry-After"), "{answer}");
        assert!(shard.ask(client, get(RECORD)).starts_with("HTTP/1.1 200"));
        assert!(
            shard
                .ask(client, get("/readyz"))
                .starts_with(&format!("HTTP/1.1 {status}"))
        );
        shard.driver.fail_segments = None;
        shard.turns_for(Duration::from_secs(1));
        assert!(
            shard
                .ask(client, post("k", "", b"again"))
                .starts_with("HTTP/1.1 201"),
            "{kind}: writes resume by themselves"
        );
    }
}
