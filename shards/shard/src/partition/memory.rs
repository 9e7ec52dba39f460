//! Where the index table and the read cache lie: regions of huge pages.

use index::TableMemory;
use uring::Region;

/// Huge-page memory for the index table.
pub struct IndexMemory(pub Region<index::Bucket>);

impl TableMemory for IndexMemory {
    fn buckets(&self) -> &[index::Bucket] {
        &self.0
    }
    fn buckets_mut(&mut self) -> &mut [index::Bucket] {
        &mut self.0
    }
    #[inline]
    fn prefetch(&self, bucket: usize) {
        uring::prefetch(&self.0[bucket]);
    }
    #[inline]
    fn prefetch_line(&self, bucket: usize, line: usize) {
        uring::prefetch(&self.0[bucket].words[line * 8]);
    }
}

/// Huge-page memory for the read cache.
pub struct CacheMemory(pub Region<u8>);

impl AsRef<[u8]> for CacheMemory {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}
impl AsMut<[u8]> for CacheMemory {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }
}
