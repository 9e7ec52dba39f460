//! Buffer pools registered with a ring: their pages are pinned once instead of per operation.
//!
//! Invariant: a pool registered here outlives the ring's use of it (the list is dropped after the ring). A pool takes
//! one table entry per GiB (the kernel's bound on an entry), each with a whole number of buffers.

use std::io;

use io_uring::IoUring;

use crate::{Buffer, BufferPool};

/// Table entries, for all pools together; made sparse at first and filled as pools come.
const TABLE_ENTRIES: u16 = 256;
/// The most bytes the kernel takes in one entry.
const ENTRY_BYTES_MAX: usize = 1 << 30;

struct Registered {
    pool: BufferPool,
    first_entry: u16,
    buffers_per_entry: usize,
}

#[derive(Default)]
pub(crate) struct RegisteredPools {
    pools: Vec<Registered>,
    entries_used: u16,
    sparse: bool,
}

impl RegisteredPools {
    /// Err(ENOMEM): the memlock limit. Nothing is registered then.
    pub(crate) fn add(&mut self, pool: &BufferPool, uring: &IoUring) -> io::Result<()> {
        if self
            .pools
            .iter()
            .any(|registered| registered.pool.same(pool))
        {
            return Ok(());
        }
        let invalid = |what: &'static str| io::Error::new(io::ErrorKind::InvalidInput, what);
        let bytes_each = pool.bytes_each();
        let buffers_per_entry = ENTRY_BYTES_MAX / bytes_each;
        if buffers_per_entry == 0 {
            return Err(invalid("a registered buffer is at most 1 GiB"));
        }
        let count = pool.count();
        let entries: Vec<libc::iovec> = (0..count)
            .step_by(buffers_per_entry)
            .map(|first| libc::iovec {
                // SAFETY: first < count, so the address is inside the pool's mapping.
                iov_base: unsafe { pool.start().add(first * bytes_each) }
                    .as_ptr()
                    .cast(),
                iov_len: buffers_per_entry.min(count - first) * bytes_each,
            })
            .collect();
        let first_entry = self.entries_used;
        let after = usize::from(first_entry) + entries.len();
        let after = u16::try_from(after)
            .ok()
            .filter(|&after| after <= TABLE_ENTRIES);
        let after = after.ok_or_else(|| invalid("more than 256 GiB of registered buffers"))?;
        let submitter = uring.submitter();
        if !self.sparse {
            submitter.register_buffers_sparse(u32::from(TABLE_ENTRIES))?;
            self.sparse = true;
        }
        // SAFETY: the ranges lie in the pool's mapping, which the clone kept below holds until the ring is closed.
        unsafe { submitter.register_buffers_update(u32::from(first_entry), &entries, None) }?;
        self.entries_used = after;
        self.pools.push(Registered {
            pool: pool.clone(),
            first_entry,
            buffers_per_entry,
        });
        Ok(())
    }

    /// The table entry a buffer lies in.
    pub(crate) fn entry_of(&self, buffer: &Buffer) -> Option<u16> {
        let (pool, index) = buffer.place()?;
        let registered = self
            .pools
            .iter()
            .find(|registered| registered.pool.same(pool))?;
        // `add` checked that all entries of the pool fit the table, so the cast loses nothing.
        Some(registered.first_entry + (index as usize / registered.buffers_per_entry) as u16)
    }
}
