//! Buffers for device I/O and the fixed pool they come from.
//!
//! Invariants: a pooled buffer is out at most once; its memory lives until the last buffer *and* the last
//! handle of the pool are gone, so a buffer may outlive the pool it came from. Not Send: a pool belongs to
//! one shard and counts without atomics.

use std::cell::RefCell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::rc::Rc;

use super::{Mapping, PAGE};

/// Page-aligned memory of fixed capacity; from a [`BufferPool`] (returned to it on drop) or its own mapping.
///
/// The length is a multiple of 4096 and never changes.
pub struct Buffer {
    start: NonNull<u8>,
    bytes: usize,
    home: Home,
}

/// Who frees the memory of a buffer.
enum Home {
    /// Held only to be unmapped with the buffer.
    Own(#[expect(dead_code, reason = "kept for its Drop")] Mapping),
    Pool {
        pool: BufferPool,
        index: u32,
    },
}

impl Buffer {
    /// Own anonymous mapping, zeroed; huge pages are asked for from 2 MiB on. `bytes` is rounded up to 4096.
    pub fn new(bytes: usize) -> io::Result<Buffer> {
        let mapping = Mapping::new(bytes)?;
        let start = mapping.start();
        let bytes = bytes.next_multiple_of(PAGE);
        Ok(Buffer {
            start,
            bytes,
            home: Home::Own(mapping),
        })
    }

    /// Which buffer of which pool this is; None for a buffer with its own mapping.
    pub(crate) fn place(&self) -> Option<(&BufferPool, u32)> {
        match &self.home {
            Home::Own(_) => None,
            Home::Pool { pool, index } => Some((pool, *index)),
        }
    }
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: start..start+bytes is mapped for the life of `home`, was zeroed by the kernel (so initialised),
        // and nobody else has this range: a pool hands each index out once. The kernel writes into it only while
        // the ring owns the Buffer by value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as for deref; &mut self makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        self
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let pooled = self.place().map(|(_, index)| index);
        f.debug_struct("Buffer")
            .field("bytes", &self.bytes)
            .field("pooled", &pooled)
            .finish()
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Home::Pool { pool, index } = &self.home {
            pool.shared.free.borrow_mut().push(*index);
        }
    }
}

/// `count` equal buffers carved out of one huge-page mapping. Not Send; cheap to clone (Rc inside).
#[derive(Clone)]
pub struct BufferPool {
    shared: Rc<Shared>,
}

struct Shared {
    mapping: Mapping,
    bytes_each: usize,
    count: usize,
    /// Indices not handed out; a stack, so that the buffer used last (warm in cache) goes out first.
    free: RefCell<Vec<u32>>,
}

impl BufferPool {
    /// Map `count` buffers of `bytes_each` (rounded up to 4096).
    pub fn new(count: usize, bytes_each: usize) -> io::Result<BufferPool> {
        BufferPool::in_mapping(count, bytes_each, Mapping::new)
    }

    /// The same on huge pages that the host has reserved (`vm.nr_hugepages`).
    ///
    /// # Errors
    /// OutOfMemory where not so many are left.
    pub fn on_reserved_huge_pages(count: usize, bytes_each: usize) -> io::Result<BufferPool> {
        BufferPool::in_mapping(count, bytes_each, Mapping::on_reserved_huge_pages)
    }

    fn in_mapping(
        count: usize,
        bytes_each: usize,
        map: impl FnOnce(usize) -> io::Result<Mapping>,
    ) -> io::Result<BufferPool> {
        let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
        let last = u32::try_from(count).map_err(|_| invalid("more than 2^32 buffers in a pool"))?;
        let bytes_each = bytes_each
            .checked_next_multiple_of(PAGE)
            .ok_or_else(|| invalid("buffer size overflows"))?;
        let total = count
            .checked_mul(bytes_each)
            .ok_or_else(|| invalid("pool size overflows"))?;
        let mapping = map(total)?;
        let free = RefCell::new((0..last).rev().collect());
        Ok(BufferPool {
            shared: Rc::new(Shared {
                mapping,
                bytes_each,
                count,
                free,
            }),
        })
    }

    /// None when all are out. Contents are whatever was there.
    pub fn take(&self) -> Option<Buffer> {
        let index = self.shared.free.borrow_mut().pop()?;
        let offset = index as usize * self.shared.bytes_each;
        assert!(
            offset + self.shared.bytes_each <= self.shared.mapping.bytes(),
            "buffer {index} outside its pool"
        );
        // SAFETY: just asserted to lie inside the mapping.
        let start = unsafe { self.shared.mapping.start().add(offset) };
        Some(Buffer {
            start,
            bytes: self.shared.bytes_each,
            home: Home::Pool {
                pool: self.clone(),
                index,
            },
        })
    }

    /// How many can be taken now.
    pub fn available(&self) -> usize {
        self.shared.free.borrow().len()
    }

    /// Length of each buffer.
    pub fn bytes_each(&self) -> usize {
        self.shared.bytes_each
    }

    /// How many there are, in and out.
    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Whether both handles name the same pool.
    pub(crate) fn same(&self, other: &BufferPool) -> bool {
        Rc::ptr_eq(&self.shared, &other.shared)
    }

    /// The whole memory, for registration with a ring.
    pub(crate) fn start(&self) -> NonNull<u8> {
        self.shared.mapping.start()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_runs_out_and_a_drop_refills_it() {
        let pool = BufferPool::new(3, 5000).unwrap();
        assert_eq!(pool.bytes_each(), 8192);
        let mut out: Vec<Buffer> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert!(pool.take().is_none());
        assert_eq!(pool.available(), 0);
        for (i, buffer) in out.iter_mut().enumerate() {
            assert_eq!(buffer.as_ptr().addr() % PAGE, 0);
            buffer.fill(i as u8 + 1);
        }
        for (i, buffer) in out.iter().enumerate() {
            assert!(buffer.iter().all(|&b| b == i as u8 + 1), "buffers overlap");
        }
        out.pop();
        assert_eq!(pool.available(), 1);
        assert!(pool.take().is_some());
    }

    #[test]
    fn reserved_huge_pages_are_used_or_the_error_says_how_to_get_them() {
        match BufferPool::on_reserved_huge_pages(3, 1 << 20) {
            Ok(pool) => pool.take().unwrap().fill(7),
            Err(error) => assert!(error.to_string().contains("vm.nr_hugepages"), "{error}"),
        }
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = BufferPool::new(1, 4096).unwrap();
        let mut buffer = pool.take().unwrap();
        drop(pool);
        buffer.fill(7);
        assert_eq!(buffer[4095], 7);
    }

    #[test]
    fn own_buffers_are_zeroed_and_rounded_up() {
        let buffer = Buffer::new(4097).unwrap();
        assert_eq!(buffer.len(), 8192);
        assert!(buffer.iter().all(|&b| b == 0));
        assert!(Buffer::new(0).is_err());
        assert_eq!(
            Buffer::new(3 << 20).unwrap().as_ptr().addr() % super::super::HUGE_PAGE,
            0
        );
    }
}
