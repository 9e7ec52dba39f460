//! Reads from the device: of any size, over damage, and no further than the log goes.

use super::RECORD;
use crate::test_driver::{get, post, shard};

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

/// An id behind the first of several events would make a reconnect leave out the others.
#[test]
fn of_events_that_come_together_only_the_last_has_an_id() {
    let mut shard = shard(Vec::new(), 1, 8);
    let (writer, reader) = (shard.connect(), shard.connect());
    for key in 0..600 {
        let answer = shard.ask(writer, post(&format!("k{key}"), "", b"x"));
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
    let tail = |from: &str| {
        format!(
            "GET /v1/streams/s/tail?limit=10000 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{from}\r\n"
        )
    };
    let told = shard.ask(reader, tail("")) + &shard.ask(reader, "");
    let events: Vec<&str> = (told.split("\n\n").map(str::trim))
        .filter(|event| event.contains("data: "))
        .collect();
    assert_eq!(events.len(), 600);
    let with_id: Vec<usize> = (0..600).filter(|at| events[*at].contains("id: ")).collect();
    assert_eq!(with_id, [255, 511, 599]);
    // The connection breaks behind the first three hundred: none is left out, and some come again.
    let id = events[255]
        .lines()
        .find_map(|line| line.strip_prefix("id: "));
    let again = shard.connect();
    let from = format!("Last-Event-ID: {}\r\n", id.expect("just looked"));
    let told = shard.ask(again, tail(&from)) + &shard.ask(again, "");
    assert_eq!(told.matches("data: ").count(), 600 - 256);
    assert!(told.contains(r#""key":"k256""#));
}
