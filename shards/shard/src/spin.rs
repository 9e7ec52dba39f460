//! How long an idle shard looks for news before it sleeps.
//!
//! Waking up from a sleep costs a few microseconds on metal and tens under a hypervisor, which a short wait does not pay for;
//! a spin that nothing comes of costs its whole length. So the spin follows what the waits were like: it doubles when
//! news came within the bound, and halves when it did not. An idle server soon spins for nothing but the shortest time. The idea
//! is KVM's halt polling (kernel documentation: virt/kvm/halt-polling). Knows no clock: it is told how long a wait took.

use std::time::Duration;

/// Shortest spin, while spinning is on at all.
const SHORTEST_NS: u64 = 10_000;

/// An adaptive spin below a bound.
#[derive(Clone, Copy, Debug)]
pub struct Spin {
    bound_ns: u64,
    now_ns: u64,
}

impl Spin {
    /// At most `bound`; zero is off.
    pub fn new(bound: Duration) -> Spin {
        let bound_ns = bound.as_nanos() as u64;
        Spin {
            bound_ns,
            now_ns: bound_ns,
        }
    }

    /// How long to spin this time; 0 = not at all.
    pub fn length_ns(&self) -> u64 {
        self.now_ns
    }

    /// A wait for news, spinning and sleeping together, took so long.
    pub fn waited(&mut self, wait_ns: u64) {
        let next_ns = if wait_ns <= self.bound_ns {
            self.now_ns.saturating_mul(2)
        } else {
            self.now_ns / 2
        };
        // The upper bound last: it may be below the shortest spin, or zero.
        self.now_ns = next_ns.max(SHORTEST_NS).min(self.bound_ns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUND: Duration = Duration::from_micros(200);

    #[test]
    fn an_idle_shard_soon_spins_no_longer_than_the_shortest_time() {
        let mut spin = Spin::new(BOUND);
        assert_eq!(spin.length_ns(), 200_000);
        for _ in 0..5 {
            spin.waited(20_000_000);
        }
        assert_eq!(spin.length_ns(), SHORTEST_NS);
    }

    #[test]
    fn short_waits_bring_the_spin_back_to_its_bound_and_never_above() {
        let mut spin = Spin::new(BOUND);
        for _ in 0..10 {
            spin.waited(1_000_000);
        }
        for _ in 0..10 {
            spin.waited(150_000);
        }
        assert_eq!(spin.length_ns(), 200_000);
    }

    #[test]
    fn a_bound_of_zero_never_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        for wait_ns in [0, 1, 1_000_000] {
            spin.waited(wait_ns);
            assert_eq!(spin.length_ns(), 0);
        }
    }
}
