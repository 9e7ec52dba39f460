//! What does crossing cores cost?
//!
//! Two threads on two cores (on a machine with one, both share it, and the figures say little). One way: messages as fast as
//! the queue takes them. Round trip, spinning: what a request pays that hops to a busy shard and back. Round trip, sleeping:
//! the same when each shard sleeps in its ring and the other one wakes it. And what `needs_wake` costs when nobody sleeps.

use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use shard::mailbox::{Mailbox, mesh};
use uring::{Completion, Ring, RingAddress, RingConfig, Wait};

use crate::machine;
use crate::{Bench, Checksum};

/// As the engine's queues.
const CAPACITY: usize = 1024;
/// A turn's worth of messages.
const BATCH: u64 = 16;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let messages = bench.parameter(2_000, 20_000_000);
    bench.case("one way: per message", messages, 0, || one_way(messages));
    let trips = bench.parameter(50, 500_000);
    bench.case("round trip, spinning", trips, 0, || round_trips(trips));
    let trips = bench.parameter(50, 50_000);
    bench.case("round trip, sleeping in the ring", trips, 0, || {
        sleeping_round_trips(trips)
    });
    let messages = bench.parameter(1_000, 5_000_000);
    bench.case("send and needs_wake, receiver awake", messages, 0, || {
        announce(messages)
    });
    Ok(())
}

/// Waits without a system call where the other end runs beside us, and makes room for it where it does not.
fn pause(beside: bool) {
    if beside {
        std::hint::spin_loop();
    } else {
        thread::yield_now();
    }
}

/// Runs the two ends of a pair on their cores and returns what both give back.
fn pair<A: Send, B: Send>(
    left: impl FnOnce(Mailbox<u64>, bool) -> A + Send,
    right: impl FnOnce(Mailbox<u64>, bool) -> B + Send,
) -> (A, B) {
    let (cores, beside) = machine::two_cores();
    let mut boxes = mesh::<u64>(2, CAPACITY);
    let (right_box, left_box) = (boxes.pop().expect("two"), boxes.pop().expect("two"));
    thread::scope(|scope| {
        let first = scope.spawn(move || {
            core_affinity::set_for_current(cores[0]);
            left(left_box, beside)
        });
        let second = scope.spawn(move || {
            core_affinity::set_for_current(cores[1]);
            right(right_box, beside)
        });
        let joined = "an end does not panic";
        (first.join().expect(joined), second.join().expect(joined))
    })
}

fn one_way(messages: u64) -> u64 {
    let ((), hash) = pair(
        |mut mailbox, beside| {
            let mut next = 0;
            while next < messages {
                let batch = BATCH.min(messages - next).min(mailbox.room(1) as u64);
                if batch == 0 {
                    pause(beside);
                    continue;
                }
                for _ in 0..batch {
                    assert!(mailbox.send(1, next).is_ok(), "there was room");
                    next += 1;
                }
                mailbox.wakes(|_| unreachable!("nobody sleeps"));
            }
        },
        |mut mailbox, beside| {
            let mut checksum = Checksum::default();
            let mut received = 0;
            while received < messages {
                let taken = mailbox.drain(|_, message| checksum.add(message));
                received += taken as u64;
                if taken == 0 {
                    pause(beside);
                }
            }
            checksum.finish()
        },
    );
    hash
}

fn round_trips(trips: u64) -> u64 {
    let (hash, ()) = pair(
        |mut mailbox, beside| {
            let mut checksum = Checksum::default();
            for trip in 0..trips {
                send(&mut mailbox, 1, trip);
                checksum.add(receive(&mut mailbox, 1, beside));
            }
            checksum.finish()
        },
        |mut mailbox, beside| {
            for _ in 0..trips {
                let message = receive(&mut mailbox, 0, beside);
                send(&mut mailbox, 0, message + 1);
            }
        },
    );
    hash
}

fn send(mailbox: &mut Mailbox<u64>, to: usize, message: u64) {
    assert!(
        mailbox.send(to, message).is_ok(),
        "one message is on its way at a time"
    );
    mailbox.wakes(|_| unreachable!("nobody sleeps"));
}

fn receive(mailbox: &mut Mailbox<u64>, from: usize, beside: bool) -> u64 {
    loop {
        if let Some(message) = mailbox.receive(from) {
            return message;
        }
        pause(beside);
    }
}

/// One end that sleeps in its ring whenever it has no mail.
struct Sleeper {
    mailbox: Mailbox<u64>,
    ring: Ring,
    other: (usize, RingAddress),
    completions: Vec<Completion>,
}

impl Sleeper {
    /// A ring is its thread's own: the ends make theirs and tell each other where it is.
    fn new(
        mailbox: Mailbox<u64>,
        here: &mpsc::Sender<RingAddress>,
        there: &mpsc::Receiver<RingAddress>,
    ) -> Sleeper {
        let ring = Ring::new(&RingConfig {
            entries: 16,
            recv_buffers: 2,
            recv_buffer_bytes: 64,
            operations_max: 16,
        })
        .expect("the machine has io_uring");
        here.send(ring.address())
            .expect("the other end waits for it");
        let other = (
            1 - mailbox.shard(),
            there.recv().expect("the other end sends it"),
        );
        Sleeper {
            mailbox,
            ring,
            other,
            completions: Vec::new(),
        }
    }

    fn send(&mut self, message: u64) {
        let (to, address) = &self.other;
        assert!(
            self.mailbox.send(*to, message).is_ok(),
            "one message is on its way at a time"
        );
        let ring = &mut self.ring;
        self.mailbox
            .wakes(|_| ring.wake(address, 0).expect("room for one wake"));
    }

    fn receive(&mut self) -> u64 {
        let start = Instant::now();
        loop {
            // Submits the wake, if one was started, and takes the end of an earlier one.
            self.turn(Wait::No);
            if let Some(message) = self.mailbox.receive(self.other.0) {
                return message;
            }
            if self.mailbox.prepare_sleep() {
                self.turn(Wait::Sleep(PATIENCE));
                self.mailbox.awake();
            }
            assert!(start.elapsed() < PATIENCE, "a wake-up was lost");
        }
    }

    fn turn(&mut self, wait: Wait) {
        self.completions.clear();
        self.ring
            .turn(wait, &mut self.completions)
            .expect("a ring that was set up turns");
    }
}

fn sleeping_round_trips(trips: u64) -> u64 {
    let (to_right, from_left) = mpsc::channel();
    let (to_left, from_right) = mpsc::channel();
    let (hash, ()) = pair(
        move |mailbox, _| {
            let mut end = Sleeper::new(mailbox, &to_right, &from_right);
            let mut checksum = Checksum::default();
            for trip in 0..trips {
                end.send(trip);
                checksum.add(end.receive());
            }
            checksum.finish()
        },
        move |mailbox, _| {
            let mut end = Sleeper::new(mailbox, &to_left, &from_left);
            for _ in 0..trips {
                let message = end.receive();
                end.send(message + 1);
            }
            // The last wake leaves with a turn.
            end.turn(Wait::No);
        },
    );
    hash
}

/// One thread, no other core: the fence and the look at the flag.
fn announce(messages: u64) -> u64 {
    let mut boxes = mesh::<u64>(2, CAPACITY);
    let mut right = boxes.pop().expect("two");
    let mut left = boxes.pop().expect("two");
    let mut checksum = Checksum::default();
    for message in 0..messages {
        assert!(left.send(1, message).is_ok(), "the queue is emptied below");
        assert!(!left.needs_wake(1), "nobody sleeps");
        if left.room(1) == 0 {
            right.drain(|_, message| checksum.add(message));
        }
    }
    right.drain(|_, message| checksum.add(message));
    checksum.finish()
}
