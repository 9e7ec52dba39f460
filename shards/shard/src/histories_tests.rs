//! Long histories: how much of one is read for a page of it, and that a shortcut shows what the long way shows.

use crate::conditions_tests::record_reads;
use crate::space_tests::{begin, restart};
use crate::test_driver::TestDriver;
use crate::turn::Shard;

/// Versions of one key, each with its number as value, and a record of another key of `apart` bytes behind each.
fn versions(shard: &mut Shard<TestDriver>, client: u64, count: usize, apart: usize) {
    let other = "x".repeat(apart);
    for first in (1..=count).step_by(20) {
        let lines: String = (first..=count.min(first + 19))
            .map(|number| {
                format!(
                    "{{\"key\":\"k\",\"value\":{number}}}\n{{\"key\":\"other\",\"value\":\"{other}\"}}\n"
                )
            })
            .collect();
        let said = shard.ask(
            client,
            format!(
                "POST /v1/streams/s/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{lines}",
                lines.len()
            ),
        );
        assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    }
}

/// Versions of a page, and how many records were read from the device for it.
fn page(
    shard: &mut Shard<TestDriver>,
    client: u64,
    before: u64,
    limit: usize,
) -> (Vec<u64>, usize) {
    let reads = record_reads(shard);
    let path = format!("/v1/streams/s/records/k/history?before={before}&limit={limit}");
    shard.say(client, crate::test_driver::get(&path));
    let mut said = String::new();
    for _ in 0..1000 {
        shard.turns(20);
        said = shard.heard(client);
        if !said.is_empty() {
            break;
        }
    }
    let (head, body) = said.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let versions = body
        .lines()
        .map(|line| {
            let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
            assert_eq!(json["value"], json["version"]);
            json["version"].as_u64().expect("a version")
        })
        .collect();
    (versions, record_reads(shard) - reads)
}

/// No read brings two versions that lie so far apart.
const FAR: usize = 10 << 10;

#[test]
fn versions_that_lie_close_together_are_read_several_at_once() {
    for (apart, reads_max) in [(0, 25), (1000, 150), (4100, 450)] {
        let (mut shard, client) = begin("{}");
        versions(&mut shard, client, 400, apart);
        let (mut shard, client) = restart(shard, 2);
        let (found, reads) = page(&mut shard, client, 0, 1000);
        assert!(found.into_iter().eq((1..=400).rev()));
        assert!(reads <= reads_max, "{reads} reads at {apart} bytes");
    }
}

#[test]
fn a_page_of_a_history_begins_where_the_one_before_it_ended() {
    let (mut shard, client) = begin("{}");
    versions(&mut shard, client, 900, FAR);
    let (mut shard, client) = restart(shard, 2);
    let mut before = 0;
    let mut seen = Vec::new();
    loop {
        let (page, reads) = page(&mut shard, client, before, 100);
        assert!(reads <= 101, "{reads} reads for a page before {before}");
        let Some(last) = page.last() else { break };
        before = *last;
        seen.extend(page);
    }
    assert!(seen.into_iter().eq((1..=900).rev()));
}

#[test]
fn old_versions_of_a_long_history_are_near_a_waypoint() {
    let (mut shard, client) = begin("{}");
    versions(&mut shard, client, 3000, FAR);
    // On the way down from version 2048, which was noted as it was appended.
    let (found, reads) = page(&mut shard, client, 2040, 5);
    assert_eq!(found, [2039, 2038, 2037, 2036, 2035]);
    assert!(reads <= 14, "{reads} reads");
    // Of a log that was opened only now the first walk is long; what it comes by is noted.
    let (mut shard, client) = restart(shard, 2);
    let (found, reads) = page(&mut shard, client, 3, 5);
    assert_eq!(found, [2, 1]);
    assert_eq!(reads, 3000);
    let (found, reads) = page(&mut shard, client, 1020, 2);
    assert_eq!(found, [1019, 1018]);
    assert!(reads <= 7, "{reads} reads");
    // One that leads nowhere shortens nothing, and hides nothing.
    let digest = shard.core.partition.digests.digest(1, b"k");
    let nowhere = wal::Link {
        lsn: 7,
        location: wal::Location {
            segment: 0,
            offset: 0,
        },
    };
    shard.core.partition.waypoints.put(digest, 2990, nowhere);
    let (found, _) = page(&mut shard, client, 2980, 2);
    assert_eq!(found, [2979, 2978]);
    shard.core.partition.waypoints.put(digest, 1022, nowhere);
    let (found, reads) = page(&mut shard, client, 1022, 2);
    assert_eq!(found, [1021, 1020]);
    assert!(reads <= 7, "{reads} reads");
}
