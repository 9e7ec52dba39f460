//! How the kernel's scheduler treats a thread that never sleeps under load.
//!
//! A shard is busy for as long as there is work, and the kernel finishes durable writes in workers that may be bound to the
//! shard's core. The fair scheduler (EEVDF) lets the running thread finish its slice before a woken worker of equal slice
//! gets the core: with a 4 ms tick every such write then takes 4 ms. A thread that asks for a *longer* slice is
//! preempted at once by whoever has a shorter one (feature PREEMPT_SHORT, Linux 6.12; slices by `sched_setattr(2)`), which
//! is what a shard wants: it gives way for the few microseconds that its own write needs.

use std::io;
use std::time::Duration;

/// Ask for time slices of this length (0.1 to 100 ms) for the calling thread; policy and nice value stay.
///
/// # Errors
/// What `sched_setattr` says. Kernels before 6.12 ignore the length.
pub fn set_slice(slice: Duration) -> io::Result<()> {
    // SAFETY: getpriority reads; it takes no pointers.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: u64::try_from(slice.as_nanos()).unwrap_or(u64::MAX),
        sched_deadline: 0,
        sched_period: 0,
    };
    // SAFETY: attr is a live sched_attr whose size field says how long it is; pid 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_may_ask_for_a_longer_slice() {
        std::thread::spawn(|| set_slice(Duration::from_millis(100)).expect("needs no privilege"))
            .join()
            .unwrap();
    }
}
