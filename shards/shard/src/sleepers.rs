//! The protocol that lets a shard sleep without missing a message.
//!
//! Owns one `sleeping` flag per shard. It does not know the queues (it is told how to look for mail), nor how a sleeper is
//! woken: the caller posts into the sleeper's ring, and such a post is kept until the sleeper looks, so it may arrive before it
//! sleeps.
//!
//! # Why no wake-up is lost
//!
//! ```text
//! sender                                    sleeper
//! S1  push(message)        (Release)        R1  sleeping = true
//! S2  fence(SeqCst)                         R2  fence(SeqCst)
//! S3  if sleeping.swap(false) { wake }      R3  if any queue has mail { sleeping = false; do not sleep }
//! ```
//!
//! The two fences stand in one total order. If S2 comes before R2, everything before S2 is visible to what follows R2, so
//! R3 sees the message of S1 and the shard does not sleep. If R2 comes before S2, S3 sees the flag of R1, so the sender wakes.
//! There is no third case. The same holds for several senders, each against the sleeper on its own.
//!
//! The swap in S3 lets exactly one sender wake a sleep: whoever takes the flag. A sender may take it between R1 and R3;
//! then R3 finds mail (its push came before), the shard stays awake, and one needless post waits in its ring. That costs a
//! turn without work, never a message.
//!
//! `tests/sleepers_loom.rs` compiles this very file against loom's atomics and walks every interleaving.

use std::sync::Arc;

use super::atomics::{AtomicBool, Ordering, fence};

/// One flag to a cache line (two, because of the adjacent-line prefetcher), or every sleeper would slow its neighbours.
#[repr(align(128))]
#[derive(Debug)]
struct Flag(AtomicBool);

/// The flags of all shards; every shard holds a clone.
#[derive(Clone, Debug)]
pub struct Sleepers(Arc<[Flag]>);

impl Sleepers {
    /// All awake.
    pub fn new(shards: usize) -> Sleepers {
        Sleepers((0..shards).map(|_| Flag(AtomicBool::new(false))).collect())
    }

    /// S2: behind every push that is to be announced, before the first [`Sleepers::take`].
    #[inline]
    pub fn announce(&self) {
        fence(Ordering::SeqCst);
    }

    /// S3: whether `shard` sleeps and the caller is the one to wake it. The plain load first keeps the line shared while the
    /// other shard is awake, which is nearly always.
    #[inline]
    pub fn take(&self, shard: usize) -> bool {
        let flag = &self.0[shard].0;
        flag.load(Ordering::Relaxed) && flag.swap(false, Ordering::AcqRel)
    }

    /// About to sleep: from here on, senders wake this shard. False when `has_mail` finds some (then it counts as awake).
    #[must_use]
    pub fn prepare(&self, shard: usize, has_mail: impl FnOnce() -> bool) -> bool {
        let flag = &self.0[shard].0;
        flag.store(true, Ordering::Relaxed); // R1
        fence(Ordering::SeqCst); // R2
        if has_mail() {
            flag.store(false, Ordering::Relaxed);
            return false; // R3
        }
        true
    }

    /// Back from sleep, for whatever reason.
    pub fn awake(&self, shard: usize) {
        self.0[shard].0.store(false, Ordering::Relaxed);
    }
}
