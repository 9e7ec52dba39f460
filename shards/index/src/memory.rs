//! The memory that a table lives in.
//!
//! One contiguous region, reserved at its largest size and committed by touching, so that the table grows in
//! place and never copies itself to a larger one. It does not know what lies in a bucket.

/// Storage unit: 512 bytes on eight cache lines, plain bytes, empty when zeroed.
#[derive(Clone, Copy, bytemuck::Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub struct Bucket {
    /// Native-endian words; only the bucket module reads them.
    pub words: [u64; 64],
}

/// Cache lines of a bucket.
pub const LINES: usize = 8;

/// Memory for the table: zeroed buckets, committed when touched. The number of buckets never changes.
pub trait TableMemory {
    /// All buckets, touched or not.
    fn buckets(&self) -> &[Bucket];

    /// All buckets, to write.
    fn buckets_mut(&mut self) -> &mut [Bucket];

    /// Ask for the first cache line of a bucket (the fingerprints). A hint: doing nothing is right too.
    #[inline]
    fn prefetch(&self, bucket: usize) {
        let _ = bucket;
    }

    /// Ask for one of the [`LINES`] cache lines of a bucket. A hint like [`TableMemory::prefetch`].
    #[inline]
    fn prefetch_line(&self, bucket: usize, line: usize) {
        let _ = (bucket, line);
    }
}

impl TableMemory for Vec<Bucket> {
    fn buckets(&self) -> &[Bucket] {
        self
    }

    fn buckets_mut(&mut self) -> &mut [Bucket] {
        self
    }
}
