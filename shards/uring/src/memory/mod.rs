//! Memory from the kernel rather than the allocator: page-aligned, zeroed, on huge pages where that pays.
//!
//! Invariant: a mapping is unmapped exactly once, by the last owner of it; nobody keeps a reference into
//! it past that. It does not know what the bytes are for.

mod buffer;
mod region;

pub use buffer::{Buffer, BufferPool};
pub use region::Region;

use std::io;
use std::ptr::NonNull;

/// The smallest unit handed out; also the alignment O_DIRECT asks for on every device we know.
pub(crate) const PAGE: usize = 4096;
/// From this size on a mapping is aligned to, and asks for, transparent huge pages.
pub(crate) const HUGE_PAGE: usize = 2 << 20;

/// One anonymous private mapping, zeroed by the kernel.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    bytes: usize,
}

impl Mapping {
    /// Map `bytes` (rounded up to pages; to huge pages from 2 MiB on). Pages are committed as they are touched.
    pub(crate) fn new(bytes: usize) -> io::Result<Mapping> {
        if bytes == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a mapping of zero bytes",
            ));
        }
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "mapping size overflows");
        if bytes < HUGE_PAGE {
            let bytes = bytes.next_multiple_of(PAGE);
            return Ok(Mapping {
                start: map(bytes)?,
                bytes,
            });
        }
        let bytes = bytes
            .checked_next_multiple_of(HUGE_PAGE)
            .ok_or_else(too_large)?;
        let reserved = bytes.checked_add(HUGE_PAGE).ok_or_else(too_large)?;
        let whole = map(reserved)?;
        // Trim to a 2 MiB boundary: a huge page can only back an aligned range, and kernels before 6.7 do not
        // align large anonymous mappings on their own.
        let before = whole.align_offset(HUGE_PAGE);
        let after = reserved - before - bytes;
        // SAFETY: `before` is at most HUGE_PAGE, so the address stays within the `reserved` bytes just mapped.
        let start = unsafe { whole.add(before) };
        if before > 0 {
            // SAFETY: the range [whole, start) was mapped above and nothing refers to it.
            unsafe { libc::munmap(whole.as_ptr().cast(), before) };
        }
        if after > 0 {
            // SAFETY: the range after start + bytes was mapped above and nothing refers to it.
            unsafe { libc::munmap(start.add(bytes).as_ptr().cast(), after) };
        }
        // Advice only: where huge pages are switched off the memory works all the same.
        // SAFETY: the range is our own mapping.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
        Ok(Mapping { start, bytes })
    }

    /// The same on 2 MiB pages from the pool that the host keeps for this (`vm.nr_hugepages`): they are there from the start and
    /// are never split. Fails where the pool has not so many left, rather than at the first touch.
    pub(crate) fn on_reserved_huge_pages(bytes: usize) -> io::Result<Mapping> {
        let bytes = bytes
            .checked_next_multiple_of(HUGE_PAGE)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "mapping size overflows"))?;
        let start = map_with(bytes, libc::MAP_HUGETLB | libc::MAP_HUGE_2MB)?;
        Ok(Mapping { start, bytes })
    }

    pub(crate) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Leave the memory mapped for the rest of the process: someone outside may still write to it.
    pub(crate) fn leak(&mut self) {
        self.bytes = 0;
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        // SAFETY: start and bytes describe exactly one live mapping which this value owns.
        let result = unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
        assert_eq!(
            result,
            0,
            "munmap of an own mapping: {}",
            io::Error::last_os_error()
        );
    }
}

// MAP_NORESERVE: the large tables are sized for the worst case and mostly stay untouched.
fn map(bytes: usize) -> io::Result<NonNull<u8>> {
    map_with(bytes, libc::MAP_NORESERVE)
}

fn map_with(bytes: usize, flags: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: a fresh anonymous mapping at an address the kernel chooses; no existing memory is affected.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            bytes,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        let error = io::Error::last_os_error();
        let hint = if flags & libc::MAP_HUGETLB == 0 {
            "is vm.overcommit_memory 2, or `ulimit -v` set?".to_owned()
        } else {
            let pages = bytes / HUGE_PAGE;
            format!(
                "are {pages} huge pages free? grep HugePages_Free /proc/meminfo; `sysctl -w vm.nr_hugepages=N` reserves them"
            )
        };
        return Err(io::Error::new(
            error.kind(),
            format!("mapping {bytes} bytes: {error} ({hint})"),
        ));
    }
    Ok(NonNull::new(start.cast()).expect("mmap never returns null for a chosen address"))
}

/// Ask the cache for the line that holds `item`. A hint: no memory is read as far as the program can tell.
#[inline(always)]
pub fn prefetch<T>(item: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch of any address neither faults nor changes memory.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(item).cast());
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: PRFM of any address neither faults nor changes memory; it touches no register but its input.
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{0}]", in(reg) item, options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = item;
}
