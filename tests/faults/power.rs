//! Power that is cut under the real binary, on a filesystem that forgets what nobody has synced (`forgetful`). The same with
//! one that forgets what was synced, too: there the oracle must notice.
//!
//! `PINION_POWER_CUTS=200` for a longer run, `PINION_TEST_SEED=…` for the same choices again.

use std::path::Path;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use shard::profile::Profile;
use sim::image::CrashMode;

use crate::book::{Book, close, miss_an_ack, read_notes, verify};
use crate::forgetful::Forgetful;
use crate::number_from;
use crate::oracle::{self, Random};
use crate::server::{Server, directory};

const SHARDS: usize = 2;
/// What a power cut leaves of unsynced writes, in turns.
const FATES: [CrashMode; 4] = [
    CrashMode::Torn,
    CrashMode::DropAll,
    CrashMode::Mixed,
    CrashMode::KeepAll,
];

/// The other way of making a write durable from the next start on: both must keep what is acked.
pub fn change_sync_method(data: &Path) {
    let mut profile = Profile::stored(data).expect("kept since the first start");
    profile.sync_method = match &*profile.sync_method {
        "dsync" => "fdatasync".into(),
        _ => "dsync".into(),
    };
    profile
        .store(data)
        .expect("a directory that can be written");
}

/// Load on a server until the power goes, which takes the server with it.
fn load_until_the_power_goes(
    server: Server,
    disk: &Forgetful,
    notes: &Path,
    round: u64,
    random: &mut Random,
) {
    let oracle = oracle::load(&server, notes, round, random);
    disk.power_off();
    server.kill();
    oracle::ended(oracle);
}

#[test]
fn acked_records_survive_power_cuts() {
    let (data, notes) = (directory(), directory());
    let Some(disk) = Forgetful::mount("power cuts", data.path()) else {
        return;
    };
    let seed = number_from("PINION_TEST_SEED", u64::from(std::process::id()) << 20 | 1);
    println!("PINION_TEST_SEED={seed}");
    let (mut random, mut rng) = (Random(seed), StdRng::seed_from_u64(seed));
    let rounds = number_from("PINION_POWER_CUTS", 8);
    let (mut book, mut fates, mut cut_recoveries) = (Book::new(), 0, 0);
    for round in 0..rounds {
        let checkpoints: &[&str] = match random.below(2) {
            0 => &["--checkpoint-log-bytes", "1MiB"],
            _ => &[],
        };
        let server = Server::start_with(data.path(), SHARDS, checkpoints);
        if let Err(why) = verify(&server, &book, SHARDS, 1) {
            panic!("before round {round}: {why}");
        }
        load_until_the_power_goes(server, &disk, notes.path(), round, &mut random);
        read_notes(&mut book, notes.path(), round);
        let mode = FATES[round as usize % FATES.len()];
        fates += disk.power_on(&mut rng, mode).len();
        if random.below(2) == 0 {
            // And again while it recovers, or right behind that.
            let server = Server::spawn(data.path(), &["--shards", "2", "--memory", "1GiB"]);
            std::thread::sleep(Duration::from_micros(random.below(60_000)));
            disk.power_off();
            server.kill();
            fates += disk.power_on(&mut rng, mode).len();
            cut_recoveries += 1;
        }
        change_sync_method(data.path());
    }
    let server = Server::start(data.path(), SHARDS);
    let done = format!(
        "{rounds} power cuts and {cut_recoveries} in or behind a recovery, {fates} unsynced writes and names found a fate, {:?}",
        disk.syncs()
    );
    close(server, data.path(), &book, SHARDS, 20 * rounds, &done);
}

#[test]
fn a_device_that_forgets_what_was_synced_is_noticed() {
    let (data, notes) = (directory(), directory());
    let Some(disk) = Forgetful::mount("a device that lies", data.path()) else {
        return;
    };
    let mut rng = StdRng::seed_from_u64(1);
    let server = Server::start(data.path(), SHARDS);
    disk.lie();
    load_until_the_power_goes(server, &disk, notes.path(), 0, &mut Random(1));
    disk.power_on(&mut rng, CrashMode::DropAll);
    let server = Server::start(data.path(), SHARDS);
    miss_an_ack(server, notes.path(), SHARDS);
}
