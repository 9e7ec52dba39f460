//! The newest checkpoint that verifies, loaded page by page.

use index::IndexError;
use index::checkpoint::{self, CheckpointHeader, Page, Section};
use uring::Buffer;

use super::{RecoverConfig, RecoverError, Recovered};
use crate::driver::{Driver, FileId, LogFiles};
use crate::turn::Shard;

/// Pages of a checkpoint read at once.
const CHECKPOINT_READ_PAGES: usize = 16;

impl<D: Driver> Shard<D> {
    /// The newest checkpoint that verifies, loaded into the partition, and the largest lsn that was durable when any of them was
    /// written: a header says so whatever has become of the pages behind it. Without one the whole log is replayed.
    pub(super) fn load_checkpoint(
        &mut self,
        files: &LogFiles,
        config: &RecoverConfig,
        report: &mut Recovered,
    ) -> Result<(Option<CheckpointHeader>, u64), RecoverError> {
        let mut found = Vec::new();
        for file in files.checkpoints.iter().flatten() {
            let Ok(block) =
                self.read_all(*file, 0, checkpoint::HEADER_BYTES, "a checkpoint header")
            else {
                continue;
            };
            if let Ok(header) = CheckpointHeader::decode(&block[..checkpoint::HEADER_BYTES])
                && header.identity == config.identity
            {
                found.push((header, *file));
            }
        }
        found.sort_by_key(|(header, _)| std::cmp::Reverse(header.sequence));
        let max_lsn = found.iter().map(|(header, _)| header.max_lsn).max();
        let max_lsn = max_lsn.unwrap_or(0);
        if let Some((newest, _)) = found.first() {
            self.checkpointer.seen(newest.sequence);
        }
        for (header, file) in found {
            match self.load_pages(&header, file) {
                Ok(bytes) => {
                    report.checkpoint_bytes = bytes;
                    report.checkpoint_keys = header.keys;
                    self.checkpointer.loaded(&header, file, files);
                    return Ok((Some(header), max_lsn));
                }
                // The next one would not fit either.
                Err(error @ RecoverError::IndexFull { .. }) => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        log = config.identity.number,
                        "checkpoint {} is not usable ({error}): falling back to an older one or to the log",
                        header.sequence
                    );
                    self.core.partition.forget_everything();
                }
            }
        }
        Ok((None, max_lsn))
    }

    fn load_pages(&mut self, header: &CheckpointHeader, file: FileId) -> Result<u64, RecoverError> {
        let pages = header.pages;
        let keys = header.keys.max(self.core.partition.index.sized_for());
        self.core.partition.index.reset(keys);
        let mut page = 0;
        let read = |page: u64| {
            ((pages - page) as usize).min(CHECKPOINT_READ_PAGES) * checkpoint::PAGE_BYTES
        };
        let offset =
            |page: u64| checkpoint::HEADER_BYTES as u64 + page * checkpoint::PAGE_BYTES as u64;
        let mut ahead = None;
        while page < pages {
            let len = read(page);
            let sequence = match ahead.take() {
                Some(sequence) => sequence,
                None => {
                    let buffer = Buffer::new(len).map_err(|error| RecoverError::Io {
                        what: "a checkpoint".into(),
                        error,
                    })?;
                    self.start_read(file, offset(page), buffer, len)
                }
            };
            let buffer = self.await_read(sequence, len, "a checkpoint")?;
            let after = page + (len / checkpoint::PAGE_BYTES) as u64;
            if after < pages {
                let len = read(after);
                let buffer = Buffer::new(len).map_err(|error| RecoverError::Io {
                    what: "a checkpoint".into(),
                    error,
                })?;
                ahead = Some(self.start_read(file, offset(after), buffer, len));
                self.poll_and_keep()?;
            }
            for bytes in buffer[..len].chunks_exact(checkpoint::PAGE_BYTES) {
                self.load_page(header, page, bytes)?;
                page += 1;
            }
        }
        Ok(offset(pages))
    }

    fn load_page(
        &mut self,
        header: &CheckpointHeader,
        page: u64,
        bytes: &[u8],
    ) -> Result<(), RecoverError> {
        let damage = |why: String| RecoverError::Damage(format!("page {page}: {why}"));
        let partition = &mut self.core.partition;
        match checkpoint::decode_page(header, page, bytes).map_err(|e| damage(e.to_string()))? {
            Page::Entries(entries) => {
                for (digest, entry) in entries {
                    let put = partition.index.put(digest, entry);
                    put.map_err(|IndexError::Full { keys }| RecoverError::IndexFull { keys })?;
                }
            }
            Page::Bytes(Section::Streams, chunk) => partition
                .streams
                .import(chunk)
                .map_err(|e| damage(e.to_string()))?,
            Page::Bytes(Section::Producers, chunk) => partition
                .producers
                .import(chunk)
                .map_err(|e| damage(e.to_string()))?,
            Page::Bytes(Section::IdempotencyKeys, chunk) => partition
                .keys
                .import(chunk)
                .map_err(|e| damage(e.to_string()))?,
            Page::Bytes(Section::Carried, chunk) => partition
                .carried
                .import(chunk, &mut |_, _, _| ())
                .map_err(|e| damage(e.to_string()))?,
            Page::Bytes(Section::Entries, _) => {
                return Err(damage("entries without their shape".into()));
            }
        }
        Ok(())
    }
}
