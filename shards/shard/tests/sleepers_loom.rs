//! Every interleaving of senders and a sleeper: no message is slept over.
//!
//! The file under test is the shipped one, compiled against loom's atomics (<https://github.com/tokio-rs/loom>). The queue is
//! modelled by what the protocol needs of it: a count that is pushed with Release and looked at with Acquire. A post into
//! a ring is modelled as a token that is kept until it is taken.

mod atomics {
    pub use loom::sync::atomic::{AtomicBool, Ordering, fence};
}

#[path = "../src/sleepers.rs"]
mod sleepers;

use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use sleepers::Sleepers;

const SLEEPER: usize = 0;

/// What the senders and the sleeper share.
struct World {
    sleepers: Sleepers,
    mail: AtomicUsize,
    posts: AtomicUsize,
}

/// `senders` send a message each while the sleeper goes to sleep once. A sleeper that sleeps with mail must have a post waiting.
fn model(senders: usize, announce: bool) {
    loom::model(move || {
        let world = Arc::new(World {
            sleepers: Sleepers::new(1 + senders),
            mail: AtomicUsize::new(0),
            posts: AtomicUsize::new(0),
        });
        let threads: Vec<_> = (0..senders)
            .map(|_| {
                let world = Arc::clone(&world);
                loom::thread::spawn(move || {
                    world.mail.fetch_add(1, Ordering::Release); // S1
                    if announce {
                        world.sleepers.announce();
                    }
                    if world.sleepers.take(SLEEPER) {
                        world.posts.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let sleeps = world
            .sleepers
            .prepare(SLEEPER, || world.mail.load(Ordering::Acquire) > 0);
        for thread in threads {
            thread.join().unwrap();
        }
        let posts = world.posts.load(Ordering::Relaxed);
        assert!(!sleeps || posts > 0, "a message was slept over");
        assert!(posts <= 1, "one sleep, {posts} posts");
        world.sleepers.awake(SLEEPER);
    });
}

#[test]
fn one_sender_never_sends_into_a_sleep_without_a_post() {
    model(1, true);
}

#[test]
fn two_senders_never_send_into_a_sleep_without_a_post() {
    model(2, true);
}

/// The canary: without the sender's fence the model must find the lost wake-up, or it shows nothing.
#[test]
#[should_panic(expected = "a message was slept over")]
fn without_the_fence_the_model_finds_the_lost_wake_up() {
    model(1, false);
}
