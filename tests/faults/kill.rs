//! SIGKILL of the real binary under load, on directories of different shards and segment sizes. What the oracle wrote down is
//! held against what the restarted server has (`book`).
//!
//! `PINION_KILLS=200` for a longer run, `PINION_TEST_SEED=…` for the same choices again.

use std::time::Duration;

use crate::book::{Book, close, read_notes, verify};
use crate::number_from;
use crate::oracle::{self, Random};
use crate::server::{Server, directory};

/// Kills of one directory before it is left for a new one.
const KILLS_EACH: u64 = 10;

#[test]
fn acked_records_survive_kills() {
    let kills = number_from("PINION_KILLS", 20);
    let seed = number_from("PINION_TEST_SEED", u64::from(std::process::id()) << 20 | 1);
    println!("PINION_TEST_SEED={seed}");
    let mut random = Random(seed);
    for life in 0..kills.div_ceil(KILLS_EACH) {
        let shards = 1 + life as usize % 2;
        let segment = ["4MiB", "4MiB", "8MiB", "5MiB"][life as usize % 4];
        let (data, notes) = (directory(), directory());
        let start = |more: &[&str]| {
            let count = shards.to_string();
            let mut flags = vec!["--shards", &count, "--segment-bytes", segment];
            flags.extend(["--segments-ahead", "1", "--memory", "1GiB"]);
            flags.extend(more);
            let mut server = Server::spawn(data.path(), &flags);
            server.wait_until_ready();
            server
        };
        let what = format!("{shards} shards, segments of {segment}");
        let mut book = Book::new();
        let rounds = KILLS_EACH.min(kills - life * KILLS_EACH);
        for round in 0..rounds {
            // Checkpoints in the middle of it all, in half of the rounds.
            let checkpoints: &[&str] = match random.below(2) {
                0 => &["--checkpoint-log-bytes", "1MiB"],
                _ => &[],
            };
            let server = start(checkpoints);
            if let Err(why) = verify(&server, &book, shards, 1) {
                panic!("before round {round}, {what}: {why}");
            }
            let oracle = oracle::start(
                notes.path(),
                server.native,
                server.http,
                round,
                random.next() | 1,
            );
            // How long the load runs is what is random here, nothing waits for it.
            std::thread::sleep(Duration::from_millis(50 + random.below(200)));
            server.kill();
            oracle::ended(oracle);
            read_notes(&mut book, notes.path(), round);
        }
        let server = start(&[]);
        let done = format!("{what}, {rounds} kills");
        close(server, data.path(), &book, shards, 100 * rounds, &done);
    }
}
