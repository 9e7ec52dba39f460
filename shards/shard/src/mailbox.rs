//! Crossing shards: one single-producer single-consumer queue per ordered pair of shards, and the protocol that lets a
//! shard sleep without missing a message.
//!
//! Owns the queues; [`Sleepers`] is the protocol. It does not know what a message means, nor how a sleeper is woken.
//!
//! The protocol's fence is paid once per turn and destination, not once per message: [`Mailbox::wakes`] does it for every shard
//! that was sent to since the last call. **A turn that sends must end with it.**
//!
//! # Invariants
//! - Messages from one shard to another arrive in the order they were sent.
//! - A queue never grows: a full one gives the message back, and the sender says so to whoever asked.

use crate::sleepers::Sleepers;

/// One shard's end of all queues to and from the others. Moves into the shard's thread.
#[derive(Debug)]
pub struct Mailbox<T> {
    me: usize,
    /// by destination; `None` at `me`
    outgoing: Vec<Option<rtrb::Producer<T>>>,
    /// by origin; `None` at `me`
    incoming: Vec<Option<rtrb::Consumer<T>>>,
    /// by destination: sent to since `wakes` last looked
    unannounced: Vec<bool>,
    any_unannounced: bool,
    sleepers: Sleepers,
}

/// The mailboxes of `shards` shards, in shard order; each ordered pair gets a queue of `capacity` messages, allocated here.
///
/// # Panics
/// When `shards` or `capacity` is 0.
pub fn mesh<T: Send>(shards: usize, capacity: usize) -> Vec<Mailbox<T>> {
    assert!(shards > 0, "a mesh needs a shard");
    assert!(
        capacity > 0,
        "a queue of no messages would refuse every message"
    );
    let sleepers = Sleepers::new(shards);
    let mut boxes: Vec<Mailbox<T>> = (0..shards)
        .map(|me| Mailbox {
            me,
            outgoing: (0..shards).map(|_| None).collect(),
            incoming: (0..shards).map(|_| None).collect(),
            unannounced: vec![false; shards],
            any_unannounced: false,
            sleepers: sleepers.clone(),
        })
        .collect();
    for from in 0..shards {
        for to in (0..shards).filter(|&to| to != from) {
            let (producer, consumer) = rtrb::RingBuffer::new(capacity);
            boxes[from].outgoing[to] = Some(producer);
            boxes[to].incoming[from] = Some(consumer);
        }
    }
    boxes
}

impl<T> Mailbox<T> {
    /// The shard that owns this mailbox.
    pub fn shard(&self) -> usize {
        self.me
    }

    /// Shards in the mesh, this one included.
    pub fn shards(&self) -> usize {
        self.outgoing.len()
    }

    /// Queue a message for another shard. It is announced by the next [`wakes`](Mailbox::wakes).
    ///
    /// # Errors
    /// The message, when the queue is full.
    ///
    /// # Panics
    /// When `to` is this shard: what stays here needs no queue.
    #[inline]
    pub fn send(&mut self, to: usize, message: T) -> Result<(), T> {
        let Some(queue) = &mut self.outgoing[to] else {
            panic!("shard {to} sends a message to itself");
        };
        queue
            .push(message)
            .map_err(|rtrb::PushError::Full(message)| message)?;
        self.unannounced[to] = true;
        self.any_unannounced = true;
        Ok(())
    }

    /// Messages that can still be sent to `to` before its queue is full (this shard itself: none).
    pub fn room(&self, to: usize) -> usize {
        self.outgoing[to].as_ref().map_or(0, rtrb::Producer::slots)
    }

    /// Messages on their way to `to` that it has not taken yet.
    pub fn depth(&self, to: usize) -> usize {
        self.outgoing[to]
            .as_ref()
            .map_or(0, |queue| queue.buffer().capacity() - queue.slots())
    }

    /// Messages on their way to all other shards.
    pub fn depth_total(&self) -> usize {
        (0..self.shards()).map(|to| self.depth(to)).sum()
    }

    /// Take every message that is there now, origin by origin, each origin's in the order sent. What arrives meanwhile waits for the
    /// next turn, so that a busy neighbour cannot hold this shard here. Returns how many were taken.
    #[inline]
    pub fn drain(&mut self, mut take: impl FnMut(usize, T)) -> usize {
        let mut taken = 0;
        for (from, queue) in self.incoming.iter_mut().enumerate() {
            let Some(queue) = queue else { continue };
            let waiting = queue.slots();
            if waiting == 0 {
                continue;
            }
            let chunk = queue
                .read_chunk(waiting)
                .expect("slots() messages are there: only this end takes them");
            for message in chunk {
                take(from, message);
            }
            taken += waiting;
        }
        taken
    }

    /// Take one message from `from`: for callers that cannot lend themselves to the closure of [`drain`](Mailbox::drain).
    #[inline]
    pub fn receive(&mut self, from: usize) -> Option<T> {
        self.incoming[from].as_mut()?.pop().ok()
    }

    /// Messages waiting here, from all shards.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.incoming
            .iter()
            .flatten()
            .map(rtrb::Consumer::slots)
            .sum()
    }

    /// Whether `to` sleeps and this caller is the one to wake it: true at most once per sleep. Call after the last send to `to`.
    #[inline]
    pub fn needs_wake(&mut self, to: usize) -> bool {
        self.unannounced[to] = false;
        self.sleepers.announce();
        self.sleepers.take(to)
    }

    /// Calls `wake` for every shard that was sent to since the last call, sleeps, and is this caller's to wake. Once a turn, after all sends.
    #[inline]
    pub fn wakes(&mut self, mut wake: impl FnMut(usize)) {
        if !self.any_unannounced {
            return;
        }
        self.any_unannounced = false;
        self.sleepers.announce();
        for to in 0..self.unannounced.len() {
            if std::mem::take(&mut self.unannounced[to]) && self.sleepers.take(to) {
                wake(to);
            }
        }
    }

    /// About to sleep: from here on, senders wake this shard. False when there is mail already (then it counts as awake and must drain).
    #[must_use]
    pub fn prepare_sleep(&mut self) -> bool {
        debug_assert!(
            !self.unannounced.contains(&true),
            "going to sleep with messages that nobody was told of"
        );
        self.sleepers.prepare(self.me, || self.waiting() > 0)
    }

    /// Back from sleep, for whatever reason. Drain afterwards: a sender that sees the shard awake does not wake it.
    pub fn awake(&mut self) {
        self.sleepers.awake(self.me);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};
    use std::time::{Duration, Instant};

    #[test]
    fn a_full_queue_gives_the_message_back() {
        let mut boxes = mesh::<u32>(2, 2);
        let (left, right) = boxes.split_at_mut(1);
        assert_eq!(left[0].room(1), 2);
        assert_eq!(left[0].send(1, 10), Ok(()));
        assert_eq!(left[0].send(1, 11), Ok(()));
        assert_eq!(left[0].send(1, 12), Err(12));
        assert_eq!(
            (left[0].depth(1), left[0].depth_total(), left[0].room(1)),
            (2, 2, 0)
        );
        assert_eq!(right[0].waiting(), 2);
        assert_eq!(right[0].receive(0), Some(10));
        assert_eq!(left[0].send(1, 12), Ok(()));
        let mut got = Vec::new();
        assert_eq!(right[0].drain(|from, message| got.push((from, message))), 2);
        assert_eq!(got, [(0, 11), (0, 12)]);
        assert_eq!(left[0].depth(1), 0);
    }

    #[test]
    #[should_panic(expected = "to itself")]
    fn a_message_to_itself_is_a_mistake() {
        let _ = mesh::<u32>(1, 1)[0].send(0, 1);
    }

    #[test]
    fn a_sleep_is_woken_exactly_once() {
        let mut boxes = mesh::<u32>(3, 8);
        assert!(boxes[2].prepare_sleep());
        boxes[0].send(2, 1).unwrap();
        boxes[1].send(2, 2).unwrap();
        assert!(boxes[0].needs_wake(2));
        assert!(!boxes[1].needs_wake(2));
        assert!(!boxes[0].needs_wake(2));
        boxes[2].awake();
        assert!(!boxes[2].prepare_sleep(), "there is mail");
        assert_eq!(boxes[2].drain(|_, _| ()), 2);
        assert!(boxes[2].prepare_sleep());
        let mut woken = Vec::new();
        boxes[0].send(2, 3).unwrap();
        boxes[0].send(1, 4).unwrap();
        boxes[0].wakes(|to| woken.push(to));
        assert_eq!(woken, [2], "shard 1 is awake");
        boxes[0].wakes(|_| panic!("nothing was sent since"));
    }

    #[test]
    fn nobody_is_woken_while_awake() {
        let mut boxes = mesh::<u32>(2, 8);
        assert!(boxes[1].prepare_sleep());
        boxes[1].awake();
        boxes[0].send(1, 1).unwrap();
        assert!(!boxes[0].needs_wake(1));
    }

    proptest! {
        #[test]
        fn queues_behave_as_bounded_fifos(operations in prop::collection::vec((0u8..4, 0usize..3, 0usize..3), 1..300)) {
            let capacity = 4;
            let mut boxes = mesh::<u32>(3, capacity);
            let mut model: Vec<Vec<VecDeque<u32>>> = vec![vec![VecDeque::new(); 3]; 3];
            for (number, (operation, from, to)) in operations.into_iter().enumerate() {
                if from == to { continue; }
                let message = number as u32;
                match operation {
                    0 | 1 => {
                        let wanted = if model[from][to].len() < capacity { model[from][to].push_back(message); Ok(()) } else { Err(message) };
                        prop_assert_eq!(boxes[from].send(to, message), wanted);
                    }
                    2 => prop_assert_eq!(boxes[to].receive(from), model[from][to].pop_front()),
                    _ => {
                        let mut got = Vec::new();
                        boxes[to].drain(|origin, message| got.push((origin, message)));
                        let wanted: Vec<_> = (0..3).flat_map(|origin| model[origin][to].drain(..).map(move |m| (origin, m)).collect::<Vec<_>>()).collect();
                        prop_assert_eq!(got, wanted);
                    }
                }
                prop_assert_eq!(boxes[from].depth(to), model[from][to].len());
            }
        }
    }

    /// Shards that sleep whenever they can, woken only through the protocol: a lost wake-up shows as a sleep that never ends.
    #[test]
    fn no_wake_up_is_lost_under_stress() {
        const SHARDS: usize = 3;
        const MESSAGES: u64 = 60_000;
        let (wake_senders, wake_receivers): (Vec<_>, Vec<_>) =
            (0..SHARDS).map(|_| mpsc::channel::<()>()).unzip();
        let deadline = Instant::now() + Duration::from_secs(60);
        let threads: Vec<_> = mesh::<u64>(SHARDS, 16)
            .into_iter()
            .zip(wake_receivers)
            .map(|(mut mailbox, woken)| {
                let wake_senders = wake_senders.clone();
                std::thread::spawn(move || {
                    let me = mailbox.shard();
                    let mut sent = [0u64; SHARDS];
                    let mut received = [0u64; SHARDS];
                    let mut sleeps = 0u64;
                    sent[me] = MESSAGES;
                    received[me] = MESSAGES;
                    while sent.iter().chain(&received).any(|&count| count < MESSAGES) {
                        mailbox.drain(|from, message| {
                            assert_eq!(message, received[from], "out of order from {from}");
                            received[from] += 1;
                        });
                        // one message a destination and turn: the more often queues run empty, the more often there is a sleep to lose
                        for to in (0..SHARDS).filter(|&to| to != me) {
                            if sent[to] < MESSAGES
                                && received.iter().all(|&count| count + 8 > sent[to])
                                && mailbox.send(to, sent[to]).is_ok()
                            {
                                sent[to] += 1;
                            }
                        }
                        mailbox.wakes(|to| {
                            wake_senders[to]
                                .send(())
                                .expect("the receiver outlives the test")
                        });
                        // asleep only while somebody else still has to send: then a wake-up must come
                        let expects_mail = received.iter().any(|&count| count < MESSAGES);
                        if expects_mail && mailbox.waiting() == 0 && mailbox.prepare_sleep() {
                            sleeps += 1;
                            let can_send = (0..SHARDS).any(|to| {
                                to != me
                                    && sent[to] < MESSAGES
                                    && received.iter().all(|&count| count + 8 > sent[to])
                            });
                            if !can_send {
                                woken
                                    .recv_timeout(
                                        deadline.saturating_duration_since(Instant::now()),
                                    )
                                    .expect("a wake-up was lost");
                            }
                            mailbox.awake();
                        }
                    }
                    // stay reachable: peers may still announce to this shard
                    (mailbox, woken, sleeps)
                })
            })
            .collect();
        let ends: Vec<_> = threads
            .into_iter()
            .map(|thread| thread.join().expect("a shard panicked"))
            .collect();
        assert!(
            ends.iter().map(|(_, _, sleeps)| sleeps).sum::<u64>() > 0,
            "the test never slept, so it proved nothing"
        );
    }

    /// The race itself, over and over: one sends and asks, the other goes to sleep, both at the same moment. Never may the
    /// sleeper sleep and the sender see it awake. (With either fence taken out, x86 usually gets it wrong within these rounds.)
    #[test]
    fn of_sender_and_sleeper_one_always_sees_the_other() {
        use std::sync::atomic::AtomicU64;
        const ROUNDS: u64 = 200_000;
        // on a busy machine the two seldom run at once, and a round takes a time slice
        let deadline = Instant::now() + Duration::from_secs(3);
        let mut boxes = mesh::<u64>(2, 4).into_iter();
        let (mut sender, mut sleeper) = (boxes.next().unwrap(), boxes.next().unwrap());
        // each publishes the round it is ready for; a round starts when both are
        let ready: Arc<[AtomicU64; 2]> = Arc::default();
        let meet = |ready: &[AtomicU64; 2], me: usize, round: u64| {
            ready[me].store(round, Ordering::SeqCst);
            let mut spins = 0u32;
            while ready[1 - me].load(Ordering::SeqCst) < round {
                spins += 1;
                if spins.is_multiple_of(1 << 12) {
                    std::thread::yield_now()
                } else {
                    std::hint::spin_loop()
                }
            }
        };
        let (woke_sender, woke) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let their_over = over.clone();
        let their_ready = ready.clone();
        let thread = std::thread::spawn(move || {
            for round in 1..=ROUNDS {
                meet(&their_ready, 0, 2 * round - 1);
                if their_over.load(Ordering::SeqCst) {
                    return;
                }
                sender.send(1, round).unwrap();
                woke_sender.send(sender.needs_wake(1)).unwrap();
                meet(&their_ready, 0, 2 * round);
            }
        });
        for round in 1..=ROUNDS {
            let late = Instant::now() > deadline;
            over.store(late, Ordering::SeqCst);
            meet(&ready, 1, 2 * round - 1);
            if late {
                break;
            }
            let asleep = sleeper.prepare_sleep();
            meet(&ready, 1, 2 * round);
            let was_woken = woke.recv().unwrap();
            assert!(
                !asleep || was_woken,
                "round {round}: asleep with mail, and nobody wakes it"
            );
            sleeper.awake();
            assert_eq!(sleeper.drain(|_, message| assert_eq!(message, round)), 1);
        }
        thread.join().unwrap();
    }
}
