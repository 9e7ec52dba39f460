//! Records found again: the newest of a key, or the one that a history link names, from memory where it is there.
//!
//! It reads no device: what is not in memory is named by its index entry. The caller compares stream and key.

use index::{Digest, Entry};
use wal::record::RecordView;

use super::{Found, Partition};

impl Partition {
    /// Digest of a key of a known stream; asks for the index line that it will be looked up in.
    #[inline]
    pub fn look_ahead(&self, stream: &[u8], key: &[u8]) -> Option<Digest> {
        let digest = self.digests.digest(self.streams.lookup(stream)?, key);
        self.index.prefetch(digest);
        Some(digest)
    }

    /// A batch is durable: keep its records readable without the device when it is small (see `Log::small_batch`).
    pub fn keep_small_batch(&mut self, batch: u64) {
        let Some((first_lsn, mut bytes)) = self.log.small_batch(batch) else {
            return;
        };
        let mut lsn = first_lsn;
        while let Some(length) = wal::record::RecordCodec::peek_bytes(bytes)
            && let Some((record, rest)) = bytes.split_at_checked(length)
        {
            self.cache.insert(lsn, record);
            (lsn, bytes) = (lsn + 1, rest);
        }
    }

    /// Ask for the bytes of a key's newest record, where they are in memory. The index line should be on its way already.
    #[inline]
    pub fn prefetch_record(&self, digest: Digest) {
        /// Lines asked for; what follows comes by the hardware's own prefetch of the stream.
        const LINES: usize = 6;
        let Some(entry) = self.index.get(digest) else {
            return;
        };
        if let Some(bytes) = self.log.in_memory(entry.location) {
            for line in bytes[..bytes.len().min(entry.bytes as usize)]
                .chunks(64)
                .take(LINES)
            {
                uring::prefetch(&line[0]);
            }
        }
    }

    /// The newest record of a key, from memory where it is there. Bytes in memory were checksummed when they were laid
    /// down or read; the caller compares stream and key, so a wrong index entry is never served.
    pub fn find(&mut self, stream: u32, key: &[u8], digest: Option<Digest>) -> Found<'_> {
        let digest = digest.unwrap_or_else(|| self.digests.digest(stream, key));
        match self.index.get(digest) {
            Some(entry) if entry.tombstone || self.is_live(&entry) => self.find_entry(entry),
            _ => Found::Nowhere,
        }
    }

    /// The newest record of a key as a get shows it, where it is in memory, and the lsn that must be durable first (0: it is).
    /// None says nothing: it may be on the device, or be none to be shown.
    #[inline]
    pub fn find_shown(
        &mut self,
        stream: &[u8],
        key: &[u8],
        digest: Option<Digest>,
    ) -> Option<(RecordView<'_>, u64)> {
        let stream = self.streams.lookup(stream)?;
        let (ended, durable_lsn) = (self.ended(stream), self.log.durable_lsn());
        match self.find(stream, key, digest) {
            Found::Memory { record, entry }
                if !entry.tombstone
                    && record.stream == stream
                    && record.key == key
                    && !ended.has(&record) =>
            {
                let gate = if entry.lsn > durable_lsn {
                    entry.lsn
                } else {
                    0
                };
                Some((record, gate))
            }
            _ => None,
        }
    }

    /// The record of an index entry or of a history link.
    pub fn find_entry(&mut self, entry: Entry) -> Found<'_> {
        if self.log.is_released(entry.location.segment) {
            return Found::Device { entry };
        }
        if let Some(bytes) = self.log.in_memory(entry.location) {
            if let Ok(record) = self.log.codec.read_kept(entry.lsn, bytes) {
                return Found::Memory { record, entry };
            }
            return Found::Device { entry };
        }
        if let Some(bytes) = self.cache.get(entry.lsn)
            && let Ok(record) = self.log.codec.read_kept(entry.lsn, bytes)
        {
            return Found::Memory { record, entry };
        }
        Found::Device { entry }
    }
}
