//! What this process may do: descriptors, lockable memory, and whether io_uring is switched off.

use std::io;

/// A soft and a hard limit; `u64::MAX` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is in force.
    pub soft: u64,
    /// How far the process itself may raise it.
    pub hard: u64,
}

/// RLIMIT_NOFILE: open descriptors.
pub fn nofile() -> Limit {
    get(libc::RLIMIT_NOFILE)
}

/// RLIMIT_MEMLOCK in bytes: what registered buffers count against, unless [`may_lock_freely`].
pub fn memlock() -> Limit {
    get(libc::RLIMIT_MEMLOCK)
}

/// Raise the soft descriptor limit to the hard one. Returns what is in force now.
pub fn raise_nofile() -> io::Result<u64> {
    let limit = nofile();
    if limit.soft < limit.hard {
        let wanted = libc::rlimit {
            rlim_cur: limit.hard,
            rlim_max: limit.hard,
        };
        // SAFETY: `wanted` is a valid rlimit that the kernel only reads.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &wanted) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(nofile().soft)
}

/// Keep all memory of the process from being swapped out, what it has now and what it maps later, each page from its first
/// use on: mappings sized for the worst case cost no more than without.
///
/// # Errors
/// OutOfMemory or PermissionDenied where RLIMIT_MEMLOCK is below what the process maps; see [`may_lock_freely`].
pub fn lock_memory() -> io::Result<()> {
    // SAFETY: takes flags only; no memory changes its contents or its place.
    match unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The name of the filesystem that `path` is on, if its files live in memory only.
pub fn filesystem_in_memory(path: &std::path::Path) -> io::Result<Option<&'static str>> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut about = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: `path` ends with a zero byte, and `about` is room for what the kernel writes.
    if unsafe { libc::statfs(path.as_ptr(), about.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so the kernel has filled it.
    let about = unsafe { about.assume_init() };
    // Magic numbers of statfs(2): the type of the field differs between platforms, its 32 bits do not.
    Ok(match about.f_type as u32 {
        0x0102_1994 => Some("tmpfs"),
        0x8584_58f6 => Some("ramfs"),
        _ => None,
    })
}

/// Bytes that a process without privileges may still write to the filesystem of `path`.
pub fn free_bytes(path: &std::path::Path) -> io::Result<u64> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let mut about = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` ends with a zero byte, and `about` is room for what the library writes.
    if unsafe { libc::statvfs(path.as_ptr(), about.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it is filled.
    let about = unsafe { about.assume_init() };
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// Whether CAP_IPC_LOCK (or root) lifts the memlock limit.
pub fn may_lock_freely() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    status_field("CapEff:")
        .and_then(|caps| u64::from_str_radix(&caps, 16).ok())
        .is_some_and(|caps| caps >> CAP_IPC_LOCK & 1 == 1)
}

/// The sysctl kernel.io_uring_disabled; None before Linux 6.6 or without /proc.
pub fn io_uring_disabled() -> Option<u32> {
    std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The running kernel's release, as `uname -r` prints it.
pub fn kernel_release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "unknown".to_owned(), |s| s.trim().to_owned())
}

/// Whether a seccomp filter is on this process, as in most containers.
pub(crate) fn seccomp_filtered() -> bool {
    status_field("Seccomp:").is_some_and(|mode| mode == "2")
}

fn status_field(name: &str) -> Option<String> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    status
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .map(|value| value.trim().to_owned())
}

fn get(resource: libc::__rlimit_resource_t) -> Limit {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is a valid place for the kernel to write one rlimit.
    let result = unsafe { libc::getrlimit(resource, &mut limit) };
    assert_eq!(
        result,
        0,
        "getrlimit of a known resource: {}",
        io::Error::last_os_error()
    );
    Limit {
        soft: limit.rlim_cur,
        hard: limit.rlim_max,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_rises_to_the_hard_one() {
        let raised = raise_nofile().unwrap();
        assert_eq!(raised, nofile().hard);
        assert!(memlock().soft <= memlock().hard);
        assert_ne!(kernel_release(), "unknown");
    }
}
