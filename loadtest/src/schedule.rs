//! The open loop: when each request is due, whatever the server does.
//!
//! Request `k` of connection `c` is due at `(c / connections + k) × interval`. A request that cannot be sent when it is due stays
//! due, and its latency counts from then (Gil Tene, "How NOT to measure latency": otherwise a stall hides the requests that
//! it held back). The schedule is arithmetic, so a backlog of any length takes no memory.

/// A constant rate, spread over connections.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    /// Nanoseconds between two requests, whichever connections they are on.
    step_ns: f64,
    connections: u64,
    start_ns: u64,
}

impl Schedule {
    /// `requests_per_second` over `connections`, from `start_ns` on.
    pub fn new(requests_per_second: f64, connections: usize, start_ns: u64) -> Schedule {
        Schedule {
            step_ns: 1e9 / requests_per_second,
            connections: connections as u64,
            start_ns,
        }
    }

    /// When request `number` (from 0) of `connection` is due.
    #[inline]
    pub fn due_ns(&self, connection: usize, number: u64) -> u64 {
        self.step_due_ns(number * self.connections + connection as u64)
    }

    /// When request `number` of the whole is due; connections take turns.
    #[inline]
    pub fn step_due_ns(&self, number: u64) -> u64 {
        self.start_ns + (number as f64 * self.step_ns) as u64
    }

    /// Requests of the whole that are due before `now_ns`.
    pub fn steps_before(&self, now_ns: u64) -> u64 {
        (now_ns.saturating_sub(self.start_ns) as f64 / self.step_ns).ceil() as u64
    }

    /// Requests of `connection` that are due before `now_ns`.
    pub fn due_before(&self, connection: usize, now_ns: u64) -> u64 {
        let steps = self.steps_before(now_ns);
        steps
            .saturating_sub(connection as u64)
            .div_ceil(self.connections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_turns_at_a_constant_rate() {
        let schedule = Schedule::new(1_000.0, 4, 5_000);
        assert_eq!(schedule.due_ns(0, 0), 5_000);
        assert_eq!(schedule.due_ns(1, 0), 1_005_000);
        assert_eq!(schedule.due_ns(0, 1), 4_005_000);
        assert_eq!(schedule.due_ns(3, 250), 1_003_005_000);
        for number in 0..1_000u64 {
            let (connection, turn) = ((number % 4) as usize, number / 4);
            assert_eq!(
                schedule.step_due_ns(number),
                schedule.due_ns(connection, turn)
            );
        }
        // At 2.5 ms after the start requests 0, 1 and 2 are due, one each on connections 0, 1 and 2.
        assert_eq!(schedule.steps_before(2_505_000), 3);
        assert_eq!(
            [0, 1, 2, 3].map(|connection| schedule.due_before(connection, 2_505_000)),
            [1, 1, 1, 0]
        );
    }
}
