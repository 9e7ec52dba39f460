//! The three times a shard asks for.

use std::time::{SystemTime, UNIX_EPOCH};

/// Nanoseconds of CLOCK_MONOTONIC; only differences mean something. About 20 ns through the vDSO.
pub fn monotonic_ns() -> u64 {
    read(libc::CLOCK_MONOTONIC)
}

/// Microseconds since 1970; 0 if the machine's clock stands before it.
pub fn wall_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

/// CPU time this thread has used, user and system together: a shard's busy seconds. A system call (about 100 ns).
pub fn thread_cpu_time_ns() -> u64 {
    read(libc::CLOCK_THREAD_CPUTIME_ID)
}

fn read(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is a valid place for the kernel to write one timespec.
    let result = unsafe { libc::clock_gettime(clock, &mut time) };
    assert_eq!(
        result, 0,
        "clock_gettime({clock}) is always available on Linux"
    );
    // Both fields are non-negative for these clocks.
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_advance_and_cpu_time_only_while_running() {
        let (wall, monotonic, cpu) = (wall_us(), monotonic_ns(), thread_cpu_time_ns());
        std::thread::sleep(std::time::Duration::from_millis(30));
        assert!(wall > 1_600_000_000_000_000);
        assert!(monotonic_ns() - monotonic >= 30_000_000);
        assert!(thread_cpu_time_ns() - cpu < 20_000_000);
    }
}
