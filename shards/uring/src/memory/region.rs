//! Large arrays in reserved address space: the index tables.
//!
//! Invariant: `count` items fit the mapping, and every bit pattern (all zeroes to begin with) is a `T`.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use super::Mapping;

/// A large array in reserved address space: zeroed, committed as it is touched, on huge pages where allowed.
pub struct Region<T: bytemuck::Zeroable + bytemuck::Pod> {
    mapping: Mapping,
    count: usize,
    items: PhantomData<T>,
}

impl<T: bytemuck::Zeroable + bytemuck::Pod> Region<T> {
    /// Reserve room for `count` items (virtual; MAP_NORESERVE). Resident memory grows with what is touched.
    pub fn reserve(count: usize) -> io::Result<Region<T>> {
        assert!(
            align_of::<T>() <= super::PAGE,
            "items of a region are at most page-aligned"
        );
        let bytes = count
            .checked_mul(size_of::<T>())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "region size overflows"))?;
        let mapping = Mapping::new(bytes)?;
        assert!(bytes <= mapping.bytes());
        Ok(Region {
            mapping,
            count,
            items: PhantomData,
        })
    }
}

impl<T: bytemuck::Zeroable + bytemuck::Pod> Deref for Region<T> {
    type Target = [T];
    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: the mapping holds at least count * size_of::<T>() bytes (asserted in reserve), is aligned to a page
        // and thus to T, zeroed by the kernel, and T is Pod. It lives as long as self.
        unsafe { std::slice::from_raw_parts(self.mapping.start().as_ptr().cast(), self.count) }
    }
}

impl<T: bytemuck::Zeroable + bytemuck::Pod> DerefMut for Region<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for deref; &mut self makes this the only access.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.start().as_ptr().cast(), self.count) }
    }
}

// SAFETY: the region is the only owner of its mapping, as a Vec is of its allocation; T is Pod, and the bounds say
// the rest. Recovery fills a region on one thread and hands it to the shard's.
unsafe impl<T: bytemuck::Pod + Send> Send for Region<T> {}
// SAFETY: shared access only reads.
unsafe impl<T: bytemuck::Pod + Sync> Sync for Region<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_zeroed_and_larger_than_memory_costs_nothing() {
        let mut region = Region::<[u64; 4]>::reserve(1 << 31).unwrap();
        assert_eq!(region.len(), 1 << 31);
        assert_eq!(region.as_ptr().addr() % super::super::HUGE_PAGE, 0);
        let last = region.len() - 1;
        assert_eq!(region[0], [0; 4]);
        assert_eq!(region[last], [0; 4]);
        region[last] = [1, 2, 3, 4];
        super::super::prefetch(&region[last]);
        assert_eq!(region[last], [1, 2, 3, 4]);
    }

    #[test]
    fn a_region_moves_between_threads() {
        let mut region = Region::<u32>::reserve(10).unwrap();
        region[9] = 5;
        let sum = std::thread::spawn(move || region.iter().sum::<u32>())
            .join()
            .unwrap();
        assert_eq!(sum, 5);
    }
}
