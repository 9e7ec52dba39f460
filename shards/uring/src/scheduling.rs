//! How the kernel's scheduler treats a thread that never sleeps under load.
//!
//! Without FUA the kernel ends a durable O_DIRECT write in workers on the core that took the disk's interrupt. The fair
//! scheduler (EEVDF, feature RUN_TO_PARITY) lets a running thread finish its slice before a woken worker of equal slice gets
//! the core, whatever the nice values: a busy thread there makes every durable write wait for the 4 ms tick. Measured with
//! fio (4 KiB, RWF_DSYNC, Linux 6.18, HZ=250) beside a thread that spins on that core: 3948 us at the median; 128 us when
//! the spinning thread asks for a slice of 100 ms, because a thread with a *longer* slice is preempted at once by whoever has
//! a shorter one (feature PREEMPT_SHORT, Linux 6.12); SCHED_IDLE and nice 19 change nothing. So whoever is busy near the log
//! asks for a long slice and gives way for the few microseconds that the write needs.

use std::io;
use std::time::Duration;

/// The longest slice that `sched_setattr(2)` takes.
const LONGEST: Duration = Duration::from_millis(100);

/// Ask for the longest slice for the calling thread, so that the kernel's workers preempt it; policy and nice value stay.
/// Children and executed programs inherit it.
///
/// # Errors
/// What `sched_setattr` says. Kernels before 6.12 ignore the length.
pub fn give_way_to_workers() -> io::Result<()> {
    // SAFETY: getpriority reads; it takes no pointers.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: libc::SCHED_OTHER as u32,
        sched_flags: 0,
        sched_nice: nice,
        sched_priority: 0,
        sched_runtime: LONGEST.as_nanos() as u64,
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
        std::thread::spawn(|| give_way_to_workers().expect("needs no privilege"))
            .join()
            .unwrap();
    }
}
