//! What the oracle wrote down, and whether a server has what it must: every durable ack is there, nothing is there that was
//! not sent, no payload is wrong, no version is missing, a client's batch to one shard is all there or not at all, and what is
//! missing is missing from the end.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;

use crate::ground::path_text;
use crate::oracle::{self, STREAM, WORKERS};
use crate::server::{Server, pinion, run};

/// One send that the oracle wrote down.
pub struct Sent {
    pub durable: bool,
    pub keys: Vec<(String, u64)>,
    pub acked: Option<Vec<u32>>,
    pub refused: bool,
}

/// (round, worker, sequence) of every send.
pub type Book = BTreeMap<(u64, u64, u64), Sent>;

pub fn read_notes(book: &mut Book, directory: &Path, round: u64) {
    for worker in 0..=WORKERS {
        let text =
            std::fs::read_to_string(oracle::file_of(directory, round, worker)).unwrap_or_default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let number = |at: usize| words[at].parse::<u64>().expect("a number");
            let name = (number(1), number(2), number(3));
            match words[0] {
                "S" => {
                    let keys = words[6..]
                        .chunks(2)
                        .map(|pair| (pair[0].to_owned(), pair[1].parse().expect("a hash")))
                        .collect();
                    let sent = Sent {
                        durable: words[4] == "1",
                        keys,
                        acked: None,
                        refused: false,
                    };
                    assert!(book.insert(name, sent).is_none(), "sent twice: {line}");
                }
                "A" => {
                    book.get_mut(&name).expect("sent before").acked =
                        Some((5..words.len()).map(|at| number(at) as u32).collect())
                }
                "R" => book.get_mut(&name).expect("sent before").refused = true,
                other => panic!("a note of kind {other}"),
            }
        }
    }
}

/// A record that the server has.
struct Found {
    key: String,
    version: u32,
    log: u32,
}

type Name = (u64, u64, u64, usize);

/// The name that the oracle gave the record, from its payload.
fn name_of(payload: &[u8]) -> Option<Name> {
    let text = std::str::from_utf8(payload.split(|b| *b == b' ').next()?).ok()?;
    let mut parts = text.split('.');
    let mut part = |letter: char| parts.next()?.strip_prefix(letter)?.parse::<u64>().ok();
    Some((part('r')?, part('w')?, part('s')?, part('i')? as usize))
}

#[derive(Default)]
pub struct Counts {
    pub sent: usize,
    pub acked: usize,
    pub found: usize,
    pub buffered_lost: usize,
    pub unacked_found: usize,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} records sent, {} acked, {} there ({} without an ack), {} acked as buffered and lost",
            self.sent, self.acked, self.found, self.unacked_found, self.buffered_lost
        )
    }
}

/// The end of a test: everything is there, there was enough of it to say something, and offline nothing is damaged. What was done
/// is printed with the counts.
#[track_caller]
pub fn close(server: Server, data: &Path, book: &Book, shards: usize, least: u64, done: &str) {
    let counts =
        verify(&server, book, shards, 8).unwrap_or_else(|why| panic!("at the end, {done}: {why}"));
    println!("{done}: {counts}");
    assert!(
        counts.acked as u64 > least,
        "the load was too small to say anything: {} acks",
        counts.acked
    );
    server.stop();
    run(&mut pinion(&["verify", path_text(data)]), 0);
}

/// What a test that breaks a promise must come to: of the one round that `notes` has a durable ack is missed.
#[track_caller]
pub fn miss_an_ack(server: Server, notes: &Path, shards: usize) {
    let mut book = Book::new();
    read_notes(&mut book, notes, 0);
    let why = match verify(&server, &book, shards, 1) {
        Ok(counts) => panic!("{} acked, nobody missed anything", counts.acked),
        Err(why) => why,
    };
    assert!(why.contains("acked durably and is lost"), "{why}");
    server.stop();
}

/// Reads everything back and holds it against the book. Of `histories` keys the history is walked, a read of the device for
/// every version; the scan has said already that no version is missing.
pub fn verify(
    server: &Server,
    book: &Book,
    shards: usize,
    histories: usize,
) -> Result<Counts, String> {
    let mut client = server.client();
    let mut found: HashMap<Name, Found> = HashMap::new();
    let mut versions: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    let mut newest: HashMap<String, Vec<u8>> = HashMap::new();
    for record in client.scan(STREAM, 1000) {
        let record = record.map_err(|e| format!("the scan failed: {e}"))?;
        let key = String::from_utf8_lossy(&record.key).into_owned();
        let place = format!(
            "{}:{} (key {key}, version {})",
            record.log, record.lsn, record.version
        );
        let name = name_of(&record.payload).ok_or_else(|| format!("{place} was never sent"))?;
        let sent = book
            .get(&(name.0, name.1, name.2))
            .and_then(|sent| sent.keys.get(name.3));
        let (sent_key, sent_hash) =
            sent.ok_or_else(|| format!("{place}, named {name:?}, was never sent"))?;
        if *sent_key != key || *sent_hash != oracle::hash(&record.payload) {
            return Err(format!("{place}, named {name:?}, is not what was sent"));
        }
        versions
            .entry(key.clone())
            .or_default()
            .push(record.version);
        newest.insert(key.clone(), record.payload);
        if found
            .insert(
                name,
                Found {
                    key,
                    version: record.version,
                    log: record.log,
                },
            )
            .is_some()
        {
            return Err(format!("{place}, named {name:?}, is there twice"));
        }
    }
    let walked: Vec<&String> = versions
        .keys()
        .step_by((versions.len() / histories).max(1))
        .collect();
    for (key, versions) in &versions {
        // A shard's records come in lsn order, so a key's versions come in order.
        if !versions.iter().copied().eq(1..=versions.len() as u32) {
            return Err(format!("versions of {key} in scan order: {versions:?}"));
        }
        let mut history = Vec::new();
        // A page ends by its bytes before it ends by its records.
        while walked.contains(&key) && history.last() != Some(&1) {
            let before = history.last().copied().unwrap_or(0);
            let page = client
                .history(STREAM, key.as_bytes(), before, 10_000)
                .map_err(|e| format!("history of {key} before {before}: {e}"))?;
            if page.is_empty() {
                break;
            }
            history.extend(page.iter().map(|r| r.version));
        }
        if walked.contains(&key) && !history.iter().rev().eq(versions) {
            return Err(format!("the history of {key}: {history:?}"));
        }
        let get = client
            .get(STREAM, key.as_bytes())
            .map_err(|e| format!("get of {key}: {e}"))?;
        if get.map(|r| (r.version, r.payload)) != Some((versions.len() as u32, newest[key].clone()))
        {
            return Err(format!("get of {key} is not its newest version"));
        }
    }

    let mut counts = Counts {
        found: found.len(),
        ..Counts::default()
    };
    let mut gap: HashMap<(u64, u64, u16), u64> = HashMap::new();
    for (&(round, worker, sequence), sent) in book {
        counts.sent += sent.keys.len();
        let here = |i: usize| found.get(&(round, worker, sequence, i));
        let what = format!("send {sequence} of worker {worker} in round {round}");
        if let Some(versions) = &sent.acked {
            counts.acked += sent.keys.len();
            if versions.len() != sent.keys.len() {
                return Err(format!(
                    "{what}: {} versions were acked for {} records",
                    versions.len(),
                    sent.keys.len()
                ));
            }
            for (i, version) in versions.iter().enumerate() {
                match here(i) {
                    Some(record) if record.version == *version && record.key == sent.keys[i].0 => {}
                    Some(record) => {
                        return Err(format!(
                            "{what}: acked as version {version}, is version {}",
                            record.version
                        ));
                    }
                    None if sent.durable => {
                        return Err(format!("{what}: record {i} was acked durably and is lost"));
                    }
                    None => counts.buffered_lost += 1,
                }
            }
        } else {
            counts.unacked_found += (0..sent.keys.len()).filter(|i| here(*i).is_some()).count();
        }
        // Per shard: whole or not at all, and missing only from the end of what this worker sent in this round.
        let mut parts: BTreeMap<u16, (usize, usize)> = BTreeMap::new();
        for (i, (key, _)) in sent.keys.iter().enumerate() {
            let shard =
                wire::slot::shard_of_slot(wire::slot::slot_of(key.as_bytes()), shards as u16);
            let (there, all) = parts.entry(shard).or_default();
            *there += usize::from(here(i).is_some_and(|f| f.log == u32::from(shard)));
            *all += 1;
        }
        for (shard, (there, all)) in parts {
            if there != 0 && there != all {
                return Err(format!(
                    "{what}: {there} of {all} records are in shard {shard}"
                ));
            }
            if sent.refused {
                continue;
            }
            match gap.get(&(round, worker, shard)) {
                Some(missing) if there > 0 => {
                    return Err(format!(
                        "{what} is in shard {shard}, send {missing} before it is not"
                    ));
                }
                None if there == 0 => {
                    gap.insert((round, worker, shard), sequence);
                }
                _ => {}
            }
        }
    }
    Ok(counts)
}
