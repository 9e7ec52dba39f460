//! What a durable write costs on this disk: measured at first start to choose how to sync.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Buffer, WriteDurability, file};

/// Two ways to a durable write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncMethod {
    /// One write with RWF_DSYNC (FUA where the device has it).
    Dsync,
    /// A write, then fdatasync.
    Fdatasync,
}

/// Writes go round in a file of this many times their size, as the log's go forward through a segment.
const SPAN: u64 = 16;

/// Time `count` durable writes of `bytes_each` (a multiple of 4096), one after the other, in a scratch file in `dir`.
///
/// The file is zero-filled first, so that the writes change data blocks only, and removed afterwards. The result is in
/// the order of writing.
pub fn measure_sync_latency(
    dir: &Path,
    bytes_each: usize,
    count: usize,
    method: SyncMethod,
) -> io::Result<Vec<Duration>> {
    let path = dir.join(format!(".sync-latency-{}-{method:?}", std::process::id()));
    let scratch = file::open_direct(&path, true)?;
    // Removed at once: nothing is left behind however this ends.
    std::fs::remove_file(&path)?;
    file::zero_fill(&scratch, SPAN * bytes_each as u64)?;
    let mut buffer = Buffer::new(bytes_each)?;
    let mut times = Vec::with_capacity(count);
    for round in 0..count as u64 {
        // Not zeroes: a device that deduplicates would flatter itself.
        for (word, chunk) in buffer.chunks_exact_mut(8).enumerate() {
            let mixed = (word as u64 ^ round << 32).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            chunk.copy_from_slice(&mixed.to_le_bytes());
        }
        let offset = round % SPAN * bytes_each as u64;
        let data = &buffer[..bytes_each];
        let start = Instant::now();
        match method {
            SyncMethod::Dsync => {
                file::pwrite_all_with(&scratch, offset, data, WriteDurability::Dsync)?
            }
            SyncMethod::Fdatasync => {
                file::pwrite_all(&scratch, offset, data)?;
                file::fdatasync(&scratch)?;
            }
        }
        times.push(start.elapsed());
    }
    Ok(times)
}
