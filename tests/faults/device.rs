//! A block device that goes away beneath a real ext4: its journal, metadata and data all fail with EIO at once. When it is there
//! again it has lost what no flush had asked for, in any order (`forgetful`), and ext4 replays its journal before the log is
//! recovered: what is acked has to survive both.
//!
//! `PINION_DEVICE_CUTS=100` for a longer run, `PINION_TEST_SEED=…` for the same choices again.

use rand::SeedableRng;
use rand::rngs::StdRng;
use sim::image::CrashMode;

use crate::book::{Book, close, miss_an_ack, read_notes, verify};
use crate::filesystem::{SHARDS, assert_nothing_is_acked_any_more};
use crate::forgetful::Forgetful;
use crate::ground::{Ground, path_text, system};
use crate::number_from;
use crate::oracle::{self, Random};
use crate::power::change_sync_method;
use crate::server::{Server, directory};

const TEST: &str = "a device that goes away beneath ext4";
/// More than the load of some rounds: the store frees nothing.
const MIB: u64 = 768;
/// What becomes of unflushed writes, in turns. Each is there or not: ext4 counts on sectors that are written whole, and does not
/// mount with a superblock of garbage.
const FATES: [CrashMode; 3] = [CrashMode::DropAll, CrashMode::Mixed, CrashMode::KeepAll];

/// The device is there again, and mounted. How many unflushed writes found a fate.
#[track_caller]
fn back_again(ground: &mut Ground, disk: &Forgetful, rng: &mut StdRng, mode: CrashMode) -> usize {
    ground.detach().unwrap_or_else(|why| panic!("{why}"));
    let fates = disk.power_on(rng, mode).len();
    ground.attach().unwrap_or_else(|why| panic!("{why}"));
    fates
}

#[test]
fn acked_records_survive_a_device_that_goes_away_beneath_ext4() {
    let (beneath, data, notes) = (directory(), directory(), directory());
    let Some(disk) = Forgetful::mount(TEST, beneath.path()) else {
        return;
    };
    let Some(mut ground) = Ground::over(TEST, data.path(), MIB, beneath.path()) else {
        return;
    };
    let seed = number_from("PINION_TEST_SEED", u64::from(std::process::id()) << 20 | 1);
    println!("PINION_TEST_SEED={seed}");
    let (mut random, mut rng) = (Random(seed), StdRng::seed_from_u64(seed));
    let rounds = number_from("PINION_DEVICE_CUTS", 4);
    let (mut book, mut fates) = (Book::new(), 0);
    for round in 0..rounds {
        let server = Server::start(data.path(), SHARDS.into());
        if let Err(why) = verify(&server, &book, SHARDS.into(), 1) {
            panic!("before round {round}: {why}");
        }
        let oracle = oracle::load(&server, notes.path(), round, &mut random);
        disk.power_off();
        if round % 2 == 0 {
            assert_nothing_is_acked_any_more(&server);
        }
        server.kill();
        oracle::ended(oracle);
        read_notes(&mut book, notes.path(), round);
        let mode = FATES[round as usize % FATES.len()];
        fates += back_again(&mut ground, &disk, &mut rng, mode);
        change_sync_method(data.path());
    }
    let server = Server::start(data.path(), SHARDS.into());
    let done = format!(
        "{rounds} times without its device, {fates} unflushed writes found a fate, {:?}",
        disk.syncs()
    );
    close(
        server,
        data.path(),
        &book,
        SHARDS.into(),
        20 * rounds,
        &done,
    );
}

#[test]
fn a_device_beneath_ext4_that_forgets_what_was_flushed_is_noticed() {
    let (beneath, data, notes) = (directory(), directory(), directory());
    let Some(disk) = Forgetful::mount(TEST, beneath.path()) else {
        return;
    };
    let Some(mut ground) = Ground::over(TEST, data.path(), MIB, beneath.path()) else {
        return;
    };
    let server = Server::start(data.path(), SHARDS.into());
    // What the start wrote is on the medium; of what is written from now on nothing will be.
    system(&["sync", "-f", path_text(data.path())]).expect("a device");
    disk.lie();
    let oracle = oracle::load(&server, notes.path(), 0, &mut Random(1));
    disk.power_off();
    server.kill();
    oracle::ended(oracle);
    let mut rng = StdRng::seed_from_u64(1);
    back_again(&mut ground, &disk, &mut rng, CrashMode::DropAll);
    let server = Server::start(data.path(), SHARDS.into());
    miss_an_ack(server, notes.path(), SHARDS.into());
}
