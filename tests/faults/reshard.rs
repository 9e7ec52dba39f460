//! `pinion reshard` on a disk that is full, or that fails while the new logs are written: the store stays as it was.

use std::path::Path;

use crate::ground::{Ground, path_text};
use crate::server::{Server, directory, pinion, run};

const KEYS: usize = 1500;

fn fill(data: &Path) {
    let server = Server::start(data, 1);
    let mut http = server.http();
    for key in 0..KEYS {
        let put = http.post(&format!("/v1/streams/s/records/k{key}"), body(key));
        assert_eq!(put.status, 201);
    }
    server.stop();
}

fn body(key: usize) -> Vec<u8> {
    format!("{key} ").bytes().cycle().take(5000).collect()
}

#[track_caller]
fn assert_as_it_was(data: &Path, shards: usize) {
    assert!(!data.join("reshard.json").exists());
    for number in 1..9 {
        let folder = data.join(format!("log-{number:08}"));
        assert!(shards > 1 || !folder.exists(), "{}", folder.display());
    }
    run(&mut pinion(&["verify", path_text(data)]), 0);
    let server = Server::start(data, shards);
    let mut http = server.http();
    for key in 0..KEYS {
        let got = http.get(&format!("/v1/streams/s/records/k{key}"));
        assert!(got.status == 200 && got.body == body(key), "k{key}");
    }
    server.stop();
}

#[test]
fn want_of_room_is_told_beforehand() {
    let data = directory();
    let Some(_ground) = Ground::on_disk("reshard without room", data.path(), 40) else {
        return;
    };
    fill(data.path());
    let reshard = ["reshard", path_text(data.path()), "--shards", "2"];
    let (_, stderr) = run(&mut pinion(&reshard), 1);
    for part in ["free", "nothing was changed", "make room"] {
        assert!(stderr.contains(part), "{part}: {stderr}");
    }
    assert_as_it_was(data.path(), 1);
}

#[test]
fn a_device_that_fails_meanwhile_leaves_the_store_as_it_was() {
    let data = directory();
    let Some(ground) = Ground::in_memory("EIO under reshard", data.path(), 120, 100) else {
        return;
    };
    fill(data.path());
    ground.break_new_blocks();
    let reshard = ["reshard", path_text(data.path()), "--shards", "2"];
    let (_, stderr) = run(&mut pinion(&reshard), 1);
    assert!(!stderr.is_empty());
    ground.mend();
    ground.remount();
    // What the failing device did not let it remove, the next one does.
    run(&mut pinion(&reshard), 0);
    assert_as_it_was(data.path(), 2);
}
