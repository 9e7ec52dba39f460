//! Restarts: what recovery reads of a log, and what it knows before it does.

use std::time::Duration;

use crate::test_driver::{post, recovered, recovery_of, shard};

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
