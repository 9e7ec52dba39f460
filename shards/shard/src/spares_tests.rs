//! The space of segment files that nobody wants: given back after a while, taken again when the log grows.

use std::time::Duration;

use crate::space_tests::{BODY, begin, read, restart, scan, write};
use crate::test_driver::{TestDriver, post};
use crate::turn::Shard;

/// Segment files that take space.
fn with_space(shard: &Shard<TestDriver>) -> usize {
    let files = shard.driver.files[2..].iter();
    files.filter(|file| !file.is_empty()).count()
}

/// Time in which clients ask for nothing.
fn idle(shard: &mut Shard<TestDriver>, seconds: usize) {
    for _ in 0..seconds {
        shard.sleep(Duration::from_secs(1));
        shard.turns(3);
    }
}

/// A shard whose log was long, and of which little is alive.
fn behind_a_burst() -> (Shard<TestDriver>, u64) {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    shard.space.hold(true);
    for number in 0..400 {
        write(&mut shard, client, number % 8, number);
    }
    shard.space.hold(false);
    shard.turns(2_000);
    (shard, client)
}

#[test]
fn files_that_nobody_wants_give_their_space_back_and_are_filled_again_when_they_are_wanted() {
    let (mut shard, client) = behind_a_burst();
    idle(&mut shard, 10);
    let most = shard.driver.files.len() - 2;
    assert!(most >= 10, "{most} files behind the burst");
    let before = with_space(&shard);
    assert_eq!(before, 8, "what is more than a few goes soon");
    idle(&mut shard, 40);
    assert_eq!(with_space(&shard), before, "the few do not");
    idle(&mut shard, 100);
    let after = with_space(&shard);
    assert!(after <= 6, "{after} of {before} files still take space");
    let metrics = read(&mut shard, client, "/metrics").1;
    let given_back = format!(
        "pinion_segments_given_back_total{{shard=\"0\"}} {}",
        most - after
    );
    assert!(metrics.contains(&given_back), "{given_back}");

    // As a restart finds them, they hold nothing and are in nobody's way.
    let (mut shard, client) = restart(shard, 2);
    assert_eq!(scan(&mut shard, client, 100, |_| ()).len(), 8);
    shard.space.hold(true);
    for number in 0..400 {
        write(&mut shard, client, 8 + number, number);
    }
    assert_eq!(scan(&mut shard, client, 100, |_| ()).len(), 408);
}

#[test]
fn a_file_that_was_emptied_is_filled_through_its_handle_in_the_same_life() {
    let (mut shard, client) = behind_a_burst();
    idle(&mut shard, 150);
    let files = shard.driver.files.len();
    shard.space.hold(true);
    for number in 0..300 {
        write(&mut shard, client, 8 + number, number);
    }
    assert_eq!(shard.driver.files.len(), files);
    assert_eq!(scan(&mut shard, client, 100, |_| ()).len(), 308);
    let (mut shard, client) = restart(shard, 2);
    assert_eq!(scan(&mut shard, client, 100, |_| ()).len(), 308);
}

#[test]
fn what_is_wanted_now_and_then_is_kept() {
    let (mut shard, client) = behind_a_burst();
    let before = with_space(&shard);
    // Overwriting goes on: files are taken, filled, released and spare again, all the time.
    for number in 0..1_200 {
        write(&mut shard, client, number % 8, number);
        shard.sleep(Duration::from_millis(200));
    }
    let after = with_space(&shard);
    assert!((4..before).contains(&after), "{after} of {before}");
    let given_back = shard.core.partition.log.given_back;
    for number in 0..1_200 {
        write(&mut shard, client, number % 8, number);
        shard.sleep(Duration::from_millis(200));
    }
    let again = shard.core.partition.log.given_back - given_back;
    assert!(again <= 2, "{again} files were cut and filled in turns");
}

#[test]
fn on_a_full_disk_nothing_is_given_back() {
    let (mut shard, client) = begin(r#"{"history_depth":1}"#);
    shard.driver.files_max = 14;
    shard.space.hold(true);
    let body = [b'.'; BODY];
    let refused = (0..1_000).any(|number| {
        let answer = shard.ask(client, post(&format!("k{}", number % 8), "", &body));
        answer.starts_with("HTTP/1.1 507")
    });
    assert!(refused);
    shard.space.hold(false);
    shard.turns(2_000);
    assert!(shard.core.partition.log.is_tight() && shard.core.partition.log.spare_segments() > 3);
    idle(&mut shard, 150);
    assert_eq!(with_space(&shard), 12);
}
