//! Why a ring could not be set up, each with what to type.

use std::io;

use crate::limits;

/// Why a ring could not be set up, each with what to type.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    /// The administrator switched io_uring off.
    #[error(
        "io_uring is disabled on this machine (kernel.io_uring_disabled = {value}): run `sysctl -w kernel.io_uring_disabled=0`"
    )]
    Disabled {
        /// 1 = only for members of kernel.io_uring_group, 2 = for all.
        value: u32,
    },
    /// A seccomp filter refuses the system call.
    #[error(
        "io_uring_setup is refused ({errno}) though the kernel allows it: a container's seccomp profile does that; \
         run with `docker run --security-opt seccomp=unconfined`, or allow io_uring_setup, io_uring_enter and io_uring_register in the profile"
    )]
    Blocked {
        /// What the kernel said.
        errno: io::Error,
    },
    /// RLIMIT_MEMLOCK is too small.
    #[error(
        "not enough lockable memory: found {found} bytes, needed {needed}: run `ulimit -l unlimited` first \
         (systemd: LimitMEMLOCK=infinity, docker: --ulimit memlock=-1)"
    )]
    MemoryLocked {
        /// The soft limit.
        found: u64,
        /// What the ring would pin.
        needed: u64,
    },
    /// RLIMIT_NOFILE is used up.
    #[error(
        "no file descriptor left for a ring (limit {limit}): run `ulimit -n 65536` first (systemd: LimitNOFILE=65536)"
    )]
    Descriptors {
        /// The soft limit.
        limit: u64,
    },
    /// The kernel lacks something there is no way around.
    #[error(
        "Linux {kernel} lacks {missing}, which came with {needs}: boot a kernel of 6.1 or later"
    )]
    KernelTooOld {
        /// The running release.
        kernel: String,
        /// What is missing.
        missing: String,
        /// The first release that has it.
        needs: &'static str,
    },
    /// A configuration no kernel would take.
    #[error("ring configuration: {0}")]
    Config(String),
    /// Anything else.
    #[error("setting up io_uring ({step}): {error}")]
    Other {
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
}

impl RingError {
    /// What an errno of io_uring_setup means here; `needed` is what the ring pins.
    pub(crate) fn from_setup(error: io::Error, needed: u64) -> RingError {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => match limits::io_uring_disabled() {
                Some(value) if value > 0 => RingError::Disabled { value },
                _ => RingError::Blocked { errno: error },
            },
            Some(libc::ENOSYS) if limits::seccomp_filtered() => RingError::Blocked { errno: error },
            Some(libc::ENOSYS) => RingError::KernelTooOld {
                kernel: limits::kernel_release(),
                missing: "io_uring".to_owned(),
                needs: "5.1 (CONFIG_IO_URING)",
            },
            Some(libc::ENOMEM) => RingError::MemoryLocked {
                found: limits::memlock().soft,
                needed,
            },
            Some(libc::EMFILE | libc::ENFILE) => RingError::Descriptors {
                limit: limits::nofile().soft,
            },
            _ => RingError::Other {
                step: "io_uring_setup",
                error,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_type() {
        let cases = [
            (libc::EMFILE, "ulimit -n"),
            (libc::ENOMEM, "ulimit -l"),
            (
                libc::EPERM,
                if limits::io_uring_disabled().unwrap_or(0) > 0 {
                    "sysctl -w"
                } else {
                    "--security-opt"
                },
            ),
            (
                libc::ENOSYS,
                if limits::seccomp_filtered() {
                    "--security-opt"
                } else {
                    "boot a kernel"
                },
            ),
        ];
        for (errno, command) in cases {
            let text =
                RingError::from_setup(io::Error::from_raw_os_error(errno), 1 << 20).to_string();
            assert!(text.contains(command), "{errno}: {text}");
        }
    }
}
