//! Batches that are still in memory, for reads: the open one, those on their way, those whose buffer nobody wanted yet.

use wal::{BATCH_HEADER_BYTES, Location};

use super::Log;

/// Batches up to here leave their records in the read cache: at a low rate the batch buffers hold only the last few acks.
const KEPT_BATCH_BYTES: usize = 16 * 1024;
impl Log {
    /// First lsn and record bytes of a batch that is small and still in memory.
    pub fn small_batch(&self, batch: u64) -> Option<(u64, &[u8])> {
        let first = self.window.front()?.batch;
        let frozen = self
            .window
            .get(usize::try_from(batch.checked_sub(first)?).ok()?)?;
        let small = frozen.bytes as usize <= KEPT_BATCH_BYTES && frozen.records > 0;
        small.then(|| {
            let first_lsn = frozen.last_lsn + 1 - u64::from(frozen.records);
            (
                first_lsn,
                &frozen.buffer[BATCH_HEADER_BYTES..frozen.bytes as usize],
            )
        })
    }

    /// Where the batch with `lsn` starts, if it is sealed and still in memory.
    pub fn batch_in_memory(&self, lsn: u64) -> Option<Location> {
        let index = self.window.partition_point(|f| f.last_lsn < lsn);
        let frozen = self.window.get(index)?;
        let first_lsn = frozen.last_lsn + 1 - u64::from(frozen.records);
        (frozen.records > 0 && first_lsn <= lsn).then_some(Location {
            segment: frozen.segment,
            offset: frozen.offset,
        })
    }

    /// Bytes from `at` on of a batch that is still in memory: the open one, or a frozen one.
    #[inline]
    pub fn in_memory(&self, at: Location) -> Option<&[u8]> {
        if let Some(bytes) = self.writer.open_bytes(at) {
            return Some(bytes);
        }
        let first = self.window.front()?;
        if (at.segment, at.offset) < (first.segment, first.offset) {
            return None;
        }
        let index = self
            .window
            .partition_point(|f| (f.segment, f.offset) <= (at.segment, at.offset));
        let frozen = self.window.get(index.checked_sub(1)?)?;
        if frozen.segment != at.segment || at.offset >= frozen.offset + frozen.bytes {
            return None;
        }
        let from = (at.offset - frozen.offset) as usize;
        Some(&frozen.buffer[from..frozen.bytes as usize])
    }
}
