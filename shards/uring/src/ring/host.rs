//! What a ring asks of the host beyond its queues: polling of the network card, and the threads that the kernel keeps for it.

use std::io;

use io_uring::types::Napi;

use super::Ring;

impl Ring {
    /// Poll the receive queues that this ring's sockets come from for up to `us` microseconds before the thread sleeps, rather
    /// than wait for the card's interrupt (NAPI busy polling, `IORING_REGISTER_NAPI`; kernel documentation: networking/napi).
    /// Loopback has no such queue: nothing changes there.
    ///
    /// # Errors
    /// InvalidInput before Linux 6.9, Unsupported where the kernel was built without it.
    pub fn busy_poll(&self, us: u32) -> io::Result<()> {
        let mut napi = Napi::new()
            .set_busy_poll_timeout(us)
            .set_prefer_busy_poll(true);
        self.uring.submitter().register_napi(&mut napi)
    }

    /// At most so many kernel threads for what cannot be done without waiting (io-wq), for file and for other work alike.
    ///
    /// # Errors
    /// InvalidInput before Linux 5.15.
    pub fn limit_workers(&self, most: u32) -> io::Result<()> {
        self.uring
            .submitter()
            .register_iowq_max_workers(&mut [most, most])
    }

    /// Those threads run on `cores` only; without this on all of the machine's.
    ///
    /// # Errors
    /// InvalidInput for a core that the process may not use, and before Linux 5.14.
    pub fn pin_workers(&self, cores: &[usize]) -> io::Result<()> {
        // SAFETY: a cpu_set_t is an array of bits; all zeros is the empty set.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        for &core in cores {
            if core >= libc::CPU_SETSIZE as usize {
                return Err(io::Error::from(io::ErrorKind::InvalidInput));
            }
            // SAFETY: just checked to be a bit of the set.
            unsafe { libc::CPU_SET(core, &mut set) };
        }
        self.uring.submitter().register_iowq_aff(&set)
    }
}

#[cfg(test)]
mod tests {
    use crate::{Ring, RingConfig};

    fn ring() -> Ring {
        Ring::new(&RingConfig {
            entries: 4,
            recv_buffers: 1,
            recv_buffer_bytes: 4096,
            operations_max: 4,
        })
        .unwrap()
    }

    #[test]
    fn workers_are_limited_and_kept_to_cores_there_are() {
        let ring = ring();
        ring.limit_workers(2).unwrap();
        let first = core_of_this_thread();
        ring.pin_workers(&[first]).unwrap();
        assert!(ring.pin_workers(&[100_000]).is_err());
    }

    #[test]
    fn busy_polling_is_taken_or_refused_with_a_reason() {
        match ring().busy_poll(50) {
            Ok(()) => {}
            Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
        }
    }

    fn core_of_this_thread() -> usize {
        // SAFETY: takes nothing and only reads.
        unsafe { libc::sched_getcpu() as usize }
    }
}
