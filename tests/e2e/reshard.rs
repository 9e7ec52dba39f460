//! `pinion reshard`: what clients see of a store before the number of its shards is changed, and after.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::Command;

use client::{Condition, ContentType, Record};
use wire::Durability;
use wire::native::{self, AppendBuilder, Producer, Reply};

use crate::http::{Connection, scan};
use crate::server::{Directory, Server, directory, pinion, run};

/// A store whose segments roll early. Without a number of shards: what the directory has.
const FLAGS: [&str; 10] = [
    "--segment-bytes",
    "1MiB",
    "--segments-ahead",
    "1",
    "--payload-bytes-max",
    "256KiB",
    "--checkpoint-log-bytes",
    "2MiB",
    "--memory",
    "2GiB",
];
const STOP: &str = "PINION_TEST_RESHARD_STOP_BEHIND_STEP";

pub fn start(data: &Path, more: &[&str]) -> Server {
    let flags: Vec<&str> = FLAGS.iter().chain(more).copied().collect();
    let mut server = Server::spawn(data, &flags);
    server.wait_until_ready();
    server
}

pub fn reshard(data: &Path, shards: u32) -> Command {
    let mut command = pinion(&["reshard"]);
    command.arg(data).args(["--shards", &shards.to_string()]);
    command
}

fn copy_of(data: &Path) -> Directory {
    let copy = directory();
    let status = Command::new("cp")
        .arg("-a")
        .arg(data.join("."))
        .arg(copy.path())
        .status();
    assert!(status.expect("cp is there").success());
    copy
}

/// Numbers from a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % end
    }
}

/// A request that its client may send again.
#[derive(Clone, Debug)]
enum Repeat {
    Http {
        target: String,
        headers: Vec<String>,
        body: Vec<u8>,
        answer: (u16, String),
    },
    /// Of a producer: the records' keys and values, and the versions that they got.
    Native {
        id: u128,
        sequence: u64,
        records: Vec<(String, String)>,
        versions: Vec<u32>,
    },
}

/// A frame with a producer's sequence, sent as it is; the versions, or why not.
fn frame(
    server: &Server,
    id: u128,
    sequence: u64,
    records: &[(String, String)],
) -> Result<Vec<u32>, wire::Refusal> {
    let mut socket = std::net::TcpStream::connect(server.native).expect("the server listens");
    let mut out = Vec::new();
    native::hello(&mut out, 1, b"");
    let producer = Some(Producer { id, sequence });
    let mut builder =
        AppendBuilder::begin(&mut out, 2, b"orders", Durability::Durable, true, producer);
    for (key, value) in records {
        builder.record(&Record {
            key: key.as_bytes(),
            payload: value.as_bytes(),
            content_type: ContentType::TEXT_PLAIN,
            tombstone: false,
            condition: Condition::None,
        });
    }
    builder.finish();
    socket.write_all(&out).expect("the server reads");
    let mut input = Vec::new();
    loop {
        let mut rest = input.as_slice();
        while let Some((id, _, reply, bytes)) =
            native::parse_reply(rest).expect("the server speaks the protocol")
        {
            match reply {
                Reply::Append { versions, .. } if id == 2 => return Ok(versions),
                Reply::Error { refusal, .. } if id == 2 => return Err(refusal),
                _ => rest = &rest[bytes..],
            }
        }
        let mut buffer = [0; 4096];
        let got = socket.read(&mut buffer).expect("the server answers");
        assert!(got > 0, "the server closed");
        input.extend_from_slice(&buffer[..got]);
    }
}

impl Repeat {
    fn http(http: &mut Connection, target: &str, headers: &[&str], body: &[u8]) -> Repeat {
        let mut repeat = Repeat::Http {
            target: target.to_owned(),
            headers: headers.iter().map(|&header| header.to_owned()).collect(),
            body: body.to_owned(),
            answer: (0, String::new()),
        };
        let given = repeat.ask(http);
        assert!(matches!(given.0, 200 | 201), "{given:?}");
        if let Repeat::Http { answer, .. } = &mut repeat {
            *answer = given;
        }
        repeat
    }

    /// Status, and what does not speak of positions.
    fn ask(&self, http: &mut Connection) -> (u16, String) {
        let Repeat::Http {
            target,
            headers,
            body,
            ..
        } = self
        else {
            panic!("not HTTP");
        };
        let headers: Vec<&str> = headers.iter().map(String::as_str).collect();
        let answer = http.call("POST", target, &headers, body);
        let json = answer.json();
        let shown = format!("{} {}", json["version"], json["appended"]);
        (answer.status, shown)
    }

    #[track_caller]
    fn assert_repeats(&self, server: &Server) {
        match self {
            Repeat::Http { answer, .. } => {
                assert_eq!(&self.ask(&mut server.http()), answer, "{self:?}");
            }
            Repeat::Native {
                id,
                sequence,
                records,
                versions,
            } => {
                let again = frame(server, *id, *sequence, records);
                let again = again.unwrap_or_else(|refusal| panic!("{refusal:?}: {self:?}"));
                assert_eq!(&again, versions, "{self:?}");
            }
        }
    }
}

const STREAMS: [&str; 3] = ["orders", "limited", "aged"];

/// Random writes of every kind. `round` keeps what must be new apart from what was written before.
fn write(server: &Server, random: &mut Random, round: u64, count: u64) -> Vec<Repeat> {
    let mut repeats = Vec::new();
    let mut http = server.http();
    for (stream, policy) in [
        ("limited", r#"{"history_depth": 2}"#),
        (
            "aged",
            r#"{"max_age_seconds": 86400, "dedup_window_seconds": 7200}"#,
        ),
    ] {
        let put = http.call("PUT", &format!("/v1/streams/{stream}"), &[], policy);
        assert_eq!(put.status, 200);
    }
    let mut sequences: BTreeMap<(u128, u64), u64> = BTreeMap::new();
    for n in 0..count {
        let stream = STREAMS[random.below(3) as usize];
        let key = match random.below(4) {
            0 => format!("user%7B{}%7D", random.below(5)),
            _ => format!("key-{}", random.below(30)),
        };
        let target = format!("/v1/streams/{stream}/records/{key}");
        let once = format!("Idempotency-Key: {round}-{n}");
        match random.below(8) {
            0 => {
                http.call("DELETE", &target, &[], "");
            }
            1 => repeats.push(Repeat::http(&mut http, &target, &[&once], b"once")),
            2 => {
                let lines: String = (0..1 + random.below(12))
                    .map(|i| format!("{{\"key\":\"m{}\",\"value\":{i}}}\n", random.below(40)))
                    .collect();
                let headers = [once.as_str(), "Content-Type: application/x-ndjson"];
                let target = format!("/v1/streams/{stream}/records");
                repeats.push(Repeat::http(&mut http, &target, &headers, lines.as_bytes()));
            }
            3 => {
                let body = vec![b'a' + (n % 26) as u8; 1 + random.below(60_000) as usize];
                assert_eq!(http.post(&target, body).status, 201);
            }
            4 => {
                let json = ["Content-Type: application/json"];
                http.call("POST", &target, &json, format!("{{\"n\":{n}}}"));
            }
            5 => {
                let other = ["Content-Type: image/x-test"];
                http.call("POST", &target, &other, [0, n as u8, 255]);
            }
            // Producers: their frames keep to a shard, and each shard has its own sequence.
            _ => {
                let topology = http.get("/v1/topology").json();
                let id = u128::from(100 * round + random.below(2));
                let first = random.below(40);
                let shard_of = |key: &str| {
                    let slot = wire::slot::slot_of(key.as_bytes());
                    let shards = topology["shards"].as_array().expect("a list").len();
                    wire::slot::shard_of_slot(slot, shards as u16)
                };
                let shard = shard_of(&format!("p{first}"));
                let records: Vec<(String, String)> = (first..first + 1 + random.below(20))
                    .map(|i| (format!("p{i}"), format!("{n}")))
                    .filter(|(key, _)| shard_of(key) == shard)
                    .collect();
                let next = sequences.entry((id, shard.into())).or_insert(1);
                let versions = frame(server, id, *next, &records).expect("appended");
                repeats.push(Repeat::Native {
                    id,
                    sequence: *next,
                    records,
                    versions,
                });
                *next += 1;
            }
        }
    }
    repeats
}

fn without_position(mut line: serde_json::Value) -> String {
    line.as_object_mut().expect("an object").remove("position");
    line.to_string()
}

/// All that can be asked of a store but positions: by question.
fn answers(server: &Server) -> BTreeMap<String, Vec<String>> {
    let mut all = BTreeMap::new();
    let mut http = server.http();
    for stream in STREAMS {
        let about = http.get(&format!("/v1/streams/{stream}")).json();
        all.insert(format!("{stream} stream"), vec![about.to_string()]);
        let lines = scan(&mut http, stream, 100);
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in lines {
            let key = line["key"].as_str().expect("a key").to_owned();
            by_key.entry(key).or_default().push(without_position(line));
        }
        for (key, records) in by_key {
            let path = key.replace('{', "%7B").replace('}', "%7D");
            let path = format!("/v1/streams/{stream}/records/{path}");
            let newest = http.get(&path);
            let fields = ["etag", "content-type", "last-modified"];
            let mut shown = vec![newest.status.to_string(), newest.text()];
            if newest.status == 404 {
                shown.pop();
            } else {
                shown.extend(fields.map(|f| newest.header(f).unwrap_or_default().to_owned()));
            }
            let history = http.get(&format!("{path}/history")).lines();
            let history = history.into_iter().map(without_position).collect();
            all.insert(format!("{stream} {key} newest"), shown);
            all.insert(format!("{stream} {key} history"), history);
            all.insert(format!("{stream} {key} scanned"), records);
        }
    }
    all
}

#[track_caller]
fn assert_same(before: &BTreeMap<String, Vec<String>>, server: &Server, when: &str) {
    let after = answers(server);
    for (question, answer) in before {
        assert_eq!(after.get(question), Some(answer), "{when}: {question}");
    }
    assert_eq!(before.len(), after.len(), "{when}");
}

#[test]
fn every_answer_is_the_same_for_another_number_of_shards() {
    let seed = std::env::var("PINION_TEST_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    println!("PINION_TEST_SEED={seed}");
    let mut random = Random(seed);
    let data = directory();
    let server = start(data.path(), &["--shards", "1"]);
    let mut repeats = write(&server, &mut random, 1, 300);
    let mut before = answers(&server);
    let order = scan(&mut server.http(), "orders", 100);
    server.kill();
    for (round, shards) in [(2, 4), (3, 3), (4, 1)] {
        run(&mut reshard(data.path(), shards), 0);
        run(pinion(&["verify"]).arg(data.path()), 0);
        let server = start(data.path(), &["--shards", &shards.to_string()]);
        assert_same(&before, &server, &format!("seed {seed}: {shards} shards"));
        for repeat in &repeats {
            repeat.assert_repeats(&server);
        }
        assert_same(&before, &server, "nothing was stored by repeats");
        // What was left is in checkpoints too.
        server.stop();
        let server = start(data.path(), &[]);
        for repeat in &repeats {
            repeat.assert_repeats(&server);
        }
        let epoch = server.http().get("/v1/topology").json()["map_epoch"].clone();
        assert_eq!(epoch, round, "it began with 1");
        repeats.extend(write(&server, &mut random, round, 100));
        before = answers(&server);
        if round % 2 == 0 {
            server.kill();
        } else {
            server.stop();
        }
    }
    // Back in one log: what came from one log stands as it stood there.
    let server = start(data.path(), &[]);
    let now = scan(&mut server.http(), "orders", 100);
    let then: Vec<String> = order.into_iter().map(without_position).collect();
    let now: Vec<String> = now.into_iter().map(without_position).collect();
    let by_key = |lines: &[String]| {
        let mut keys: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in lines {
            let json: serde_json::Value = serde_json::from_str(line).expect("a line");
            keys.entry(json["key"].to_string())
                .or_default()
                .push(line.clone());
        }
        keys
    };
    for (key, lines) in by_key(&then) {
        assert!(by_key(&now)[&key].starts_with(&lines), "{key}");
    }
    server.stop();
}

#[test]
fn conditions_see_the_same_versions_and_producers_go_on_above() {
    let data = directory();
    let server = start(data.path(), &["--shards", "2"]);
    let mut http = server.http();
    for _ in 0..3 {
        http.post("/v1/streams/orders/records/k", "x");
    }
    let one = vec![("p".to_owned(), "1".to_owned())];
    for sequence in 1..=3 {
        assert_eq!(frame(&server, 5, sequence, &one), Ok(vec![sequence as u32]));
    }
    server.stop();
    run(&mut reshard(data.path(), 3), 0);
    let server = start(data.path(), &[]);
    let mut http = server.http();
    let conditional = |http: &mut Connection, version: u32| {
        let condition = format!("If-Match: \"{version}\"");
        http.call("POST", "/v1/streams/orders/records/k", &[&condition], "y")
    };
    conditional(&mut http, 2).problem(412, "condition_failed");
    assert_eq!(conditional(&mut http, 3).json()["version"], 4);
    let other = vec![("p".to_owned(), "other".to_owned())];
    let refused = |sequence, records| frame(&server, 5, sequence, records).expect_err("refused");
    assert_eq!(refused(3, &other).code, wire::Code::IdempotencyMismatch);
    let shard = |key: &str| wire::slot::slot_of(key.as_bytes()) / (16384 / 3 + 1);
    let away = (0..)
        .map(|i| format!("q{i}"))
        .find(|key| shard(key) != shard("p"));
    let away = away.expect("there are many keys");
    let far = vec![("p".to_owned(), "1".to_owned()), (away, "1".to_owned())];
    assert_eq!(refused(9, &far).code, wire::Code::Malformed, "two shards");
    assert_eq!(frame(&server, 5, 4, &other), Ok(vec![4]));
    assert_eq!(refused(6, &other).code, wire::Code::SequenceOutOfOrder);
    assert_eq!(frame(&server, 5, 5, &one), Ok(vec![5]));
    server.stop();
}

#[test]
fn a_cursor_from_before_is_refused_by_name() {
    let data = directory();
    let server = start(data.path(), &["--shards", "1"]);
    let mut http = server.http();
    for key in 0..20 {
        http.post(&format!("/v1/streams/orders/records/k{key}"), "x");
    }
    let page = http.get("/v1/streams/orders/scan?limit=5");
    let cursor = page.header("x-pinion-cursor").expect("a cursor").to_owned();
    server.stop();
    for shards in [2, 1] {
        run(&mut reshard(data.path(), shards), 0);
        let server = start(data.path(), &[]);
        for ask in ["scan?limit=5", "tail?wait_ms=0"] {
            let target = format!("/v1/streams/orders/{ask}&cursor={cursor}");
            let answer = server.http().get(&target);
            let detail = answer.problem(answer.status, "cursor_unknown");
            assert!(detail.contains("without a cursor"), "{detail}");
        }
        server.stop();
    }
}

/// A small store of two shards with something of everything, and what it answers.
fn small() -> (Directory, BTreeMap<String, Vec<String>>, Vec<Repeat>) {
    let data = directory();
    let server = start(data.path(), &["--shards", "2"]);
    let repeats = write(&server, &mut Random(7), 1, 60);
    let before = answers(&server);
    server.kill();
    (data, before, repeats)
}

#[track_caller]
fn assert_whole(
    data: &Path,
    (before, repeats): (&BTreeMap<String, Vec<String>>, &[Repeat]),
    when: &str,
) {
    run(pinion(&["verify"]).arg(data), 0);
    let server = start(data, &[]);
    assert_same(before, &server, when);
    for repeat in repeats {
        repeat.assert_repeats(&server);
    }
    assert_same(before, &server, when);
    server.stop();
    assert!(!data.join("reshard.json").exists(), "{when}");
    let logs = std::fs::read_dir(data).expect("there").filter(|entry| {
        let name = entry.as_ref().expect("an entry").file_name();
        name.to_string_lossy().starts_with("log-")
    });
    assert!(matches!(logs.count(), 2 | 3), "{when}: no log is left over");
}

#[test]
fn a_kill_behind_any_durable_step_leaves_one_store_or_the_other() {
    let (data, before, repeats) = small();
    let mut steps = 0;
    loop {
        let step = steps + 1;
        let copy = copy_of(data.path());
        let mut command = reshard(copy.path(), 3);
        let output = command
            .env(STOP, step.to_string())
            .output()
            .expect("it starts");
        if output.status.success() {
            break;
        }
        assert_eq!(output.status.code(), None, "step {step}: it was killed");
        steps = step;
        let when = format!("killed behind step {step}");
        run(pinion(&["inspect"]).arg(copy.path()), 0);
        if step % 2 == 0 {
            assert_whole(copy.path(), (&before, &repeats), &when);
        }
        run(&mut reshard(copy.path(), 3), 0);
        assert_whole(copy.path(), (&before, &repeats), &when);
        let (said, _) = run(&mut reshard(copy.path(), 3), 0);
        assert!(said.contains("nothing to do"), "{when}: {said}");
    }
    assert!(steps >= 12, "{steps} steps");
}

#[test]
fn a_kill_at_any_time_leaves_one_store_or_the_other() {
    let (data, before, repeats) = small();
    for milliseconds in [3, 20, 60, 120, 250] {
        let copy = copy_of(data.path());
        let mut child = reshard(copy.path(), 3).spawn().expect("it starts");
        std::thread::sleep(std::time::Duration::from_millis(milliseconds));
        let _ = child.kill();
        let _ = child.wait();
        let when = format!("killed after {milliseconds} ms");
        assert_whole(copy.path(), (&before, &repeats), &when);
        run(&mut reshard(copy.path(), 3), 0);
        assert_whole(copy.path(), (&before, &repeats), &when);
    }
}

#[test]
fn a_server_says_what_it_found_of_an_unfinished_change() {
    let (data, ..) = small();
    for (step, said) in [("4", "was not finished"), ("9", "old logs")] {
        let copy = copy_of(data.path());
        let _ = reshard(copy.path(), 3).env(STOP, step).output();
        if step == "9" {
            // Far enough to be the new store, whatever its steps are.
            let _ = reshard(copy.path(), 3).env(STOP, "13").output();
        }
        let had = copy.path().join("reshard.json").exists();
        let server = start(copy.path(), &["--log", "warn"]);
        if had {
            let log = server.stderr();
            assert!(
                log.contains("was not finished") || log.contains(said),
                "{log}"
            );
        }
        server.stop();
    }
}

#[test]
fn what_cannot_be_done_is_refused_and_changes_nothing() {
    let (data, before, repeats) = small();
    let (said, _) = run(&mut reshard(data.path(), 2), 0);
    assert!(said.contains("2 shards already: nothing to do"), "{said}");
    for shards in [0, 76] {
        run(&mut reshard(data.path(), shards), 2);
    }
    run(&mut reshard(&data.path().join("nowhere"), 2), 1);

    let server = start(data.path(), &[]);
    let (_, complaint) = run(&mut reshard(data.path(), 3), 1);
    assert!(complaint.contains("in use by a server"), "{complaint}");
    server.stop();

    let mut serve = crate::server::serve_under(&[], data.path(), &["--shards", "3"]);
    let (_, complaint) = run(&mut serve, 1);
    let command = format!("pinion reshard {} --shards 3", data.path().display());
    assert!(complaint.contains(&command), "{complaint}");

    let damaged = copy_of(data.path());
    let segment = damaged.path().join("log-00000000/segment-00000000.seg");
    let mut bytes = std::fs::read(&segment).expect("a segment");
    bytes[3 * 4096 + 300] ^= 1;
    std::fs::write(&segment, bytes).expect("written");
    let (_, complaint) = run(&mut reshard(damaged.path(), 3), 1);
    for part in [
        "segment-00000000.seg at offset 12288, lsn ",
        "nothing was changed",
        "pinion verify",
        "pinion repair",
    ] {
        assert!(complaint.contains(part), "{part}: {complaint}");
    }
    assert!(!damaged.path().join("reshard.json").exists());
    assert!(!damaged.path().join("log-00000002").exists());
    assert_whole(data.path(), (&before, &repeats), "after all of that");
}

#[test]
fn what_compaction_moved_or_ended_comes_along() {
    let data = directory();
    let server = start(data.path(), &["--shards", "1"]);
    let mut http = server.http();
    for (stream, policy) in [
        ("orders", r#"{"history_depth": 1}"#),
        ("limited", r#"{"history_depth": 3}"#),
        ("aged", "{}"),
    ] {
        http.call("PUT", &format!("/v1/streams/{stream}"), &[], policy);
    }
    let mut repeats = Vec::new();
    for key in 0..10 {
        let path = format!("/v1/streams/orders/records/ended-{key}");
        for _ in 0..=key {
            http.post(&path, "x");
        }
        assert_eq!(http.call("DELETE", &path, &[], "").status, 204);
        for version in 0..4 {
            http.post(
                &format!("/v1/streams/limited/records/old-{key}"),
                format!("{version}"),
            );
        }
        let path = format!("/v1/streams/aged/records/once-{key}");
        let once = format!("Idempotency-Key: {key}");
        repeats.push(Repeat::http(&mut http, &path, &[&once], b"once"));
        let path = format!("/v1/streams/orders/records/overwritten-{key}");
        repeats.push(Repeat::http(&mut http, &path, &[&once], b"gone"));
        http.post(&path, "newer");
    }
    for round in 0.. {
        for key in 0..8 {
            let path = format!("/v1/streams/orders/records/filler-{key}");
            http.post(&path, vec![b'a' + (round % 26) as u8; 100_000]);
        }
        if server.metric("pinion_segments_recycled_total", 0) > 6.0 {
            break;
        }
        assert!(round < 1000, "nothing is compacted");
    }
    let before = answers(&server);
    server.stop();
    for shards in [3, 2, 1] {
        run(&mut reshard(data.path(), shards), 0);
        let server = start(data.path(), &[]);
        assert_same(&before, &server, &format!("{shards} shards"));
        for repeat in &repeats {
            repeat.assert_repeats(&server);
        }
        assert_same(&before, &server, "nothing was stored by repeats");
        server.stop();
        // Two lives on: from the checkpoint.
        let copy = copy_of(data.path());
        let server = start(copy.path(), &[]);
        for key in 0..10 {
            let path = format!("/v1/streams/orders/records/ended-{key}");
            server.http().get(&path).problem(404, "not_found");
            let next = server.http().post(&path, "again").json();
            assert_eq!(next["version"], key + 3, "{shards} shards: ended-{key}");
        }
        server.stop();
    }
}
