//! Compaction over the test driver: what is freed, what must stay, and what a scan sees of it.

use std::collections::BTreeMap;

use crate::test_driver::{TestDriver, get, post, put_policy, shard};
use crate::turn::Shard;

pub(crate) const BODY: usize = 100 << 10;
pub(crate) const TEXT: &str = "Content-Type: text/plain\r\n";

/// A body that says which one it is.
pub(crate) fn body(key: usize, number: usize) -> Vec<u8> {
    let mut body = format!("{key}/{number};").into_bytes();
    body.resize(BODY, b'.');
    body
}

/// A shard with a stream `s` of this policy, and a client.
pub(crate) fn begin(policy: &str) -> (Shard<TestDriver>, u64) {
    let mut shard = shard(Vec::new(), 1, 8);
    let client = shard.connect();
    let answer = shard.ask(client, put_policy("s", policy));
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    (shard, client)
}

pub(crate) fn write(shard: &mut Shard<TestDriver>, client: u64, key: usize, number: usize) {
    let mut answer = shard.ask(client, post(&format!("k{key}"), TEXT, &body(key, number)));
    for _ in 0..50 {
        if !answer.is_empty() {
            break;
        }
        shard.turns(20);
        answer = shard.heard(client);
    }
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
}

pub(crate) fn read(shard: &mut Shard<TestDriver>, client: u64, path: &str) -> (String, String) {
    let mut answer = shard.ask(client, get(path));
    for _ in 0..50 {
        if !answer.is_empty() {
            break;
        }
        shard.turns(20);
        answer = shard.heard(client);
    }
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    (head.to_owned(), body.to_owned())
}

/// Every record that a scan shows, as (key, body number, version, position), page by page; `between` is done between pages.
pub(crate) fn scan(
    shard: &mut Shard<TestDriver>,
    client: u64,
    limit: usize,
    mut between: impl FnMut(&mut Shard<TestDriver>),
) -> Vec<(String, String, u64, String)> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/streams/s/scan?limit={limit}{cursor}");
        let (head, body) = read(shard, client, &path);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}\n{body}");
        for line in body.lines() {
            all.push(seen(line));
        }
        match head.lines().find_map(|l| l.split_once("ursor: ")) {
            Some((_, next)) if !body.is_empty() => cursor = format!("&cursor={next}"),
            _ => return all,
        }
        between(shard);
    }
}

fn seen(line: &str) -> (String, String, u64, String) {
    let json: serde_json::Value = serde_json::from_str(line).expect("JSON");
    let text = |field: &str| json[field].as_str().unwrap_or_default().to_owned();
    // "key/number;", or nothing for a tombstone.
    let value = text("value")
        .split(';')
        .next()
        .unwrap_or_default()
        .to_owned();
    (
        text("key"),
        value,
        json["version"].as_u64().expect("a version"),
        text("position"),
    )
}

fn history(
    shard: &mut Shard<TestDriver>,
    client: u64,
    key: usize,
) -> Vec<(String, String, u64, String)> {
    let path = format!("/v1/streams/s/records/k{key}/history?limit=1000");
    let (head, body) = read(shard, client, &path);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    body.lines().map(seen).collect()
}

pub(crate) fn segment_files(shard: &Shard<TestDriver>) -> usize {
    shard.driver.files.len() - 2
}

/// The files as a crash leaves them; a shard that recovered from them.
pub(crate) fn restart(old: Shard<TestDriver>, epoch: u32) -> (Shard<TestDriver>, u64) {
    let mut new = shard(old.driver.files, epoch, 8);
    let client = new.connect();
    (new, client)
}

#[test]
fn a_small_working_set_takes_bounded_space_and_reads_back_after_a_restart() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    let mut newest = BTreeMap::new();
    for number in 0..1200 {
        // Keys 0 to 7 are written again and again; 8 to 27 once.
        let key = if number < 20 { 8 + number } else { number % 8 };
        write(&mut shard, client, key, number);
        newest.insert(key, number);
    }
    shard.turns(200);
    // 1200 records of 100 KiB are 120 MiB; what can be read is 28 of them, and twice that is two segments.
    assert!(
        segment_files(&shard) <= 10,
        "{} files",
        segment_files(&shard)
    );
    assert!(shard.space.released > 20 && shard.core.partition.log.recycled > 20);
    assert!(shard.space.relocated_records > 0);
    for epoch in 2..4 {
        for (key, number) in &newest {
            let (head, got) = read(&mut shard, client, &format!("/v1/streams/s/records/k{key}"));
            assert!(head.starts_with("HTTP/1.1 200"), "k{key}: {head}");
            assert_eq!(got.as_bytes(), body(*key, *number), "k{key}");
        }
        let shown = scan(&mut shard, client, 5, |_| ());
        assert_eq!(shown.len(), newest.len(), "every key once");
        let (again, _) = restart(shard, epoch);
        shard = again;
        let client_again = shard.connect();
        assert_eq!(scan(&mut shard, client_again, 7, |_| ()), shown);
    }
}

/// What clients were told of a key: (version, number; None: deleted, position), newest last.
type Told = BTreeMap<usize, Vec<(u64, Option<usize>, String)>>;

fn position_of(answer: &str) -> String {
    let (_, rest) = answer.split_once("\"position\":\"").expect("a position");
    rest.split('"').next().unwrap_or_default().to_owned()
}

fn value_of(key: usize, number: usize) -> String {
    format!("{key}/{number}")
}

/// What a policy of this depth shows, newest first.
fn shown_of(
    told: &[(u64, Option<usize>, String)],
    key: usize,
    depth: usize,
) -> Vec<(String, String, u64, String)> {
    let newest_first = told.iter().rev().take(depth);
    newest_first
        .map(|(version, number, position)| {
            let value = number.map_or(String::new(), |n| value_of(key, n));
            (format!("k{key}"), value, *version, position.clone())
        })
        .collect()
}

/// Everything that can be read is what was told; nothing else is.
fn verify(shard: &mut Shard<TestDriver>, client: u64, told: &Told, depth: usize, page: usize) {
    let mut expected = Vec::new();
    for (key, versions) in told {
        let shown = shown_of(versions, *key, depth);
        let newest = shown.first().expect("a key has versions");
        let (head, got) = read(shard, client, &format!("/v1/streams/s/records/k{key}"));
        match versions.last().expect("a key has versions").1 {
            Some(number) => {
                assert!(head.starts_with("HTTP/1.1 200"), "k{key}: {head} {got}");
                assert!(
                    got.as_bytes() == body(*key, number),
                    "k{key} is {}",
                    &got[..16]
                );
                assert!(head.contains(&newest.3), "{head} names {}", newest.3);
            }
            None => assert!(
                head.starts_with("HTTP/1.1 404"),
                "k{key} is deleted: {head}"
            ),
        }
        let told_of_it = history(shard, client, *key);
        // The tombstone itself may go once nothing older is there.
        if !(depth == 1 && newest.1.is_empty()) {
            assert_eq!(told_of_it, shown, "history of k{key}");
        }
        expected.extend(shown);
    }
    let values = |all: Vec<(String, String, u64, String)>| {
        let mut all: Vec<_> = all
            .into_iter()
            .filter(|one| depth > 1 || !one.1.is_empty())
            .collect();
        all.sort();
        all
    };
    assert_eq!(
        values(scan(shard, client, page, |_| ())),
        values(expected),
        "the scan"
    );
}

/// Writes and deletes by a seed; every so often the machine stops as it is and another reads what lies on its disk.
fn long_run(depth: usize, policy: &str, seed: u64) {
    let (mut shard, mut client) = begin(policy);
    let (mut told, mut state, mut epoch) = (Told::new(), seed, 1);
    let mut random = |below: usize| {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 33) as usize % below
    };
    for number in 0..900 {
        // Some keys are written often, some seldom, some once.
        let key = match random(20) {
            0 => 20 + number,
            1..4 => 4 + random(12),
            _ => random(4),
        };
        let known = told
            .get(&key)
            .and_then(|v| v.last())
            .is_some_and(|v| v.1.is_some());
        let version = told.get(&key).and_then(|v| v.last()).map_or(1, |v| v.0 + 1);
        if known && random(10) == 0 {
            let request =
                format!("DELETE /v1/streams/s/records/k{key} HTTP/1.1\r\nHost: x\r\n\r\n");
            let mut answer = shard.ask(client, request);
            while answer.is_empty() {
                shard.turns(20);
                answer = shard.heard(client);
            }
            assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
            let position = answer
                .lines()
                .find_map(|l| l.split_once("osition: "))
                .map_or(String::new(), |p| p.1.to_owned());
            told.entry(key).or_default().push((version, None, position));
        } else {
            let mut answer = shard.ask(client, post(&format!("k{key}"), TEXT, &body(key, number)));
            while answer.is_empty() {
                shard.turns(20);
                answer = shard.heard(client);
            }
            assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
            assert!(
                answer.contains(&format!("\"version\":{version}")),
                "k{key}: {answer}"
            );
            told.entry(key)
                .or_default()
                .push((version, Some(number), position_of(&answer)));
        }
        if number % 61 == 60 {
            verify(&mut shard, client, &told, depth, 1 + random(50));
            shard.turns(random(12));
            epoch += 1;
            (shard, client) = restart(shard, epoch);
            verify(&mut shard, client, &told, depth, 1 + random(50));
        }
    }
    shard.turns(500);
    verify(&mut shard, client, &told, depth, 9);
    let alive: usize = told.values().map(|v| v.len().min(depth)).sum();
    let most = 2 * alive * (BODY + 100) / crate::test_driver::SEGMENT_BYTES as usize + 9;
    assert!(
        segment_files(&shard) <= most,
        "{} files, {most} at most",
        segment_files(&shard)
    );
}

#[test]
fn of_one_version_a_key_nothing_is_lost_and_nothing_comes_back() {
    long_run(1, r#"{"history_depth":1}"#, 1);
}

#[test]
fn of_three_versions_a_key_histories_stay_whole_and_in_order() {
    long_run(3, r#"{"history_depth":3}"#, 2);
}

#[test]
fn a_log_whose_every_version_is_kept_is_left_alone() {
    let (mut shard, client) = begin("{}");
    for number in 0..200 {
        write(&mut shard, client, number % 3, number);
    }
    shard.turns(300);
    assert_eq!(
        (shard.space.released, shard.space.relocated_records),
        (0, 0)
    );
}

/// (version, position) of a history, two versions at a time: where a page ended the next one begins, wherever the record is by then.
fn paged(shard: &mut Shard<TestDriver>, client: u64) -> Vec<(usize, String)> {
    let mut all: Vec<(usize, String)> = Vec::new();
    loop {
        let before = all.last().map_or(0, |(version, _)| *version);
        let path = format!("/v1/streams/all/records/k/history?limit=2&before={before}");
        let (head, body) = read(shard, client, &path);
        assert!(head.starts_with("HTTP/1.1 200"), "{head}");
        if body.is_empty() {
            return all;
        }
        all.extend(body.lines().map(seen).map(|one| (one.2 as usize, one.3)));
    }
}

#[test]
fn histories_that_are_kept_move_with_those_that_are_not() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    let mut kept = Vec::new();
    for number in 0..600 {
        write(&mut shard, client, number % 4, number);
        if number % 100 == 0 {
            let answer = shard.ask(client, format!("POST /v1/streams/all/records/k HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\n{number:03}"));
            assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
            kept.push((number / 100 + 1, position_of(&answer)));
            paged(&mut shard, client);
        }
    }
    shard.turns(300);
    kept.reverse();
    let look = |shard: &mut Shard<TestDriver>, client| {
        let (_, body) = read(shard, client, "/v1/streams/all/records/k/history?limit=100");
        let all: Vec<_> = body.lines().map(seen).collect();
        all.into_iter()
            .map(|one| (one.2 as usize, one.3))
            .collect::<Vec<_>>()
    };
    assert!(shard.space.released > 5 && shard.core.partition.log.first_segment() > 5);
    assert_eq!(look(&mut shard, client), kept);
    assert_eq!(paged(&mut shard, client), kept);
    let (mut again, client) = restart(shard, 2);
    assert_eq!(look(&mut again, client), kept);
    assert_eq!(paged(&mut again, client), kept);
    let (_, body) = read(&mut again, client, "/v1/streams/all/scan");
    assert_eq!(
        body.lines().count(),
        kept.len(),
        "a scan shows every version once"
    );
}

#[test]
fn what_is_older_than_its_stream_shows_leaves_the_disk_and_the_index() {
    let (mut shard, client) = begin(r#"{"max_age_seconds":100}"#);
    for number in 0..600 {
        write(&mut shard, client, number, number);
        shard.driver.pass_seconds(1);
    }
    shard.turns(300);
    assert!(
        shard.space.relocated_records <= 100,
        "what goes soon is hardly copied"
    );
    assert!(
        segment_files(&shard) <= 9,
        "{} files",
        segment_files(&shard)
    );
    assert!(
        shard.core.partition.index.len() < 300,
        "{} keys",
        shard.core.partition.index.len()
    );
    let (head, _) = read(&mut shard, client, "/v1/streams/s/records/k3");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
    let (head, _) = read(&mut shard, client, "/v1/streams/s/records/k599");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    write(&mut shard, client, 3, 700);
    let (mut again, client) = restart(shard, 2);
    let (head, _) = read(&mut again, client, "/v1/streams/s/records/k3");
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("\"1\""),
        "{head}"
    );
}

#[test]
fn a_repeat_gets_its_first_answer_after_its_record_has_moved() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    let once = post(
        "once",
        "Content-Type: text/plain\r\nIdempotency-Key: one\r\n",
        &body(1, 1),
    );
    let first = shard.ask(client, &once);
    assert!(first.starts_with("HTTP/1.1 201"), "{first}");
    for number in 0..300 {
        write(&mut shard, client, number % 3, number);
    }
    shard.turns(300);
    assert!(shard.core.partition.log.first_segment() > 2 && shard.space.relocated_records > 0);
    let (_, answer) = first.split_once("\r\n\r\n").expect("a body");
    let again = shard.ask(client, &once);
    assert!(again.ends_with(answer), "{again}");
    let (mut shard, client) = restart(shard, 2);
    let again = shard.ask(client, &once);
    assert!(again.ends_with(answer), "{again}");
    let (head, _) = read(&mut shard, client, "/v1/streams/s/records/once");
    assert!(
        head.contains(&position_of(&first)),
        "the position stays: {head}"
    );
}

#[test]
fn a_policy_that_shows_less_than_before_gives_the_space_of_the_rest_back() {
    let (mut shard, client) = begin("{}");
    for number in 0..400 {
        write(&mut shard, client, number % 8, number);
    }
    shard.turns(300);
    assert_eq!(shard.space.released, 0, "every version is shown");
    let answer = shard.ask(client, put_policy("s", r#"{"history_depth":1}"#));
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    shard.turns(1_000);
    // Of forty megabytes eight records are left.
    assert!(shard.space.released >= 8, "{}", shard.space.released);
    assert_eq!(scan(&mut shard, client, 100, |_| ()).len(), 8);
    let relocated = shard.space.relocated_records;
    assert!(
        relocated <= 60,
        "{relocated} copies: it goes round for ever"
    );
}

/// Whichever checkpoint is left leads to a log that is whole: no file is used again before one that lets go of it is valid.
/// (That both must have let go shows only where a file is filled again between two checkpoints: `shards/sim/tests/space.rs`.)
#[test]
fn with_the_newest_checkpoint_lost_the_older_one_still_finds_every_record() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    let mut newest = BTreeMap::new();
    let mut lost = 0;
    for number in 0..700 {
        let key = if number < 20 { 8 + number } else { number % 8 };
        write(&mut shard, client, key, number);
        newest.insert(key, number);
        if number < 100 || number % 5 != 0 || shard.core.partition.log.recycled == 0 {
            continue;
        }
        let mut files = shard.driver.files.clone();
        let sequence = |file: &Vec<u8>| {
            file.get(56..64)
                .map_or([0; 8], |b| b.try_into().expect("8"))
        };
        let of = [0, 1].map(|file| u64::from_le_bytes(sequence(&files[file])));
        let file = usize::from(of[1] > of[0]);
        // While one is written over, the other is the only one.
        if of[1 - file] == 0 || shard.checkpointer.is_writing() {
            continue;
        }
        files[file][2000] ^= 1;
        lost += 1;
        let mut other = crate::test_driver::shard(files, 2, 8);
        let reader = other.connect();
        for (key, number) in &newest {
            let (head, got) = read(&mut other, reader, &format!("/v1/streams/s/records/k{key}"));
            assert!(
                head.starts_with("HTTP/1.1 200"),
                "k{key} at {number}: {head}"
            );
            assert!(got.as_bytes() == body(*key, *number), "k{key}");
        }
    }
    assert!(lost > 50, "{lost}");
}

/// A shard of which `k100` was written 600 s ago and copied forward since; it ends at 1000 s.
pub(crate) fn begin_with_an_old_copy() -> (Shard<TestDriver>, u64) {
    let (mut shard, client) = begin(r#"{"history_depth":1,"max_age_seconds":1000}"#);
    write(&mut shard, client, 100, 1);
    for number in 0..300 {
        write(&mut shard, client, number % 2, number);
        shard.driver.pass_seconds(2);
    }
    assert!(shard.core.partition.log.first_segment() > 2 && shard.space.relocated_records > 0);
    (shard, client)
}

#[test]
fn a_copy_keeps_its_time_and_ends_with_it() {
    let (mut shard, client) = begin_with_an_old_copy();
    let (head, _) = read(&mut shard, client, "/v1/streams/s/records/k100");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    shard.driver.pass_seconds(500);
    write(&mut shard, client, 0, 1);
    let (head, _) = read(&mut shard, client, "/v1/streams/s/records/k100");
    assert!(head.starts_with("HTTP/1.1 404"), "{head}");
}
