//! Whole files through glommio: large O_DIRECT reads, the next files in flight while one is worked on. Must be called on an executor.

use std::collections::VecDeque;
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use glommio::io::{DmaFile, ReadResult};

/// Files in flight behind the one that is worked on. With one, checking and reading take turns where a file is read faster than it is checked.
const FILES_AHEAD: usize = 2;

/// Bytes of a file or of a part of it, where the device put them.
pub enum Bytes {
    /// One read gave all of them.
    Whole(ReadResult),
    /// The kernel gave them in pieces.
    Pieces(Vec<u8>),
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Whole(bytes) => bytes,
            Bytes::Pieces(bytes) => bytes,
        }
    }
}

/// glommio's error as the one of the operating system that it carries.
pub fn plain<T: std::fmt::Debug>(error: glommio::GlommioError<T>) -> io::Error {
    match error {
        glommio::GlommioError::IoError(error) => error,
        glommio::GlommioError::EnhancedIoError { source, .. } => source,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// An open file.
pub struct Reader {
    file: DmaFile,
    path: PathBuf,
}

impl Reader {
    /// Opens for reading, past the page cache.
    pub async fn open(path: &Path) -> anyhow::Result<Reader> {
        let file = DmaFile::open(path)
            .await
            .map_err(plain)
            .with_context(|| path.display().to_string())?;
        Ok(Reader {
            file,
            path: path.to_owned(),
        })
    }

    /// `length` bytes from `offset` (a multiple of the block size), fewer only at the end of the file.
    pub async fn read(&self, offset: u64, length: usize) -> anyhow::Result<Bytes> {
        let context = || format!("reading {} at {offset}", self.path.display());
        let wanted = self.file.align_up(length as u64) as usize;
        let first = self
            .file
            .read_at_aligned(offset, wanted)
            .await
            .map_err(plain)
            .with_context(context)?;
        if first.len() >= length {
            return Ok(Bytes::Whole(first));
        }
        let mut bytes = first.to_vec();
        while bytes.len() < length && !bytes.is_empty() {
            // A short read that ends off a block is the end of the file.
            let at = offset + bytes.len() as u64;
            if self.file.align_down(at) != at {
                break;
            }
            let more = self
                .file
                .read_at_aligned(at, wanted - bytes.len())
                .await
                .map_err(plain)
                .with_context(context)?;
            if more.is_empty() {
                break;
            }
            bytes.extend_from_slice(&more);
        }
        Ok(Bytes::Pieces(bytes))
    }

    /// Closes; a reader that is dropped closes too, later.
    pub async fn close(self) -> anyhow::Result<()> {
        self.file
            .close()
            .await
            .map_err(plain)
            .with_context(|| self.path.display().to_string())
    }
}

/// The first bytes of a file.
pub async fn read_head(path: &Path, length: usize) -> anyhow::Result<Bytes> {
    let reader = Reader::open(path).await?;
    let bytes = reader.read(0, length).await?;
    reader.close().await?;
    Ok(bytes)
}

/// Whole files in the order given, read ahead.
pub struct Files {
    waiting: VecDeque<(PathBuf, u64)>,
    in_flight: VecDeque<glommio::Task<anyhow::Result<Bytes>>>,
}

impl Files {
    /// Paths and lengths.
    pub fn new(files: impl IntoIterator<Item = (PathBuf, u64)>) -> Files {
        Files {
            waiting: files.into_iter().collect(),
            in_flight: VecDeque::new(),
        }
    }

    /// The next file's bytes, None after the last.
    pub async fn next(&mut self) -> Option<anyhow::Result<Bytes>> {
        while self.in_flight.len() <= FILES_AHEAD
            && let Some((path, length)) = self.waiting.pop_front()
        {
            self.in_flight.push_back(glommio::spawn_local(async move {
                let reader = Reader::open(&path).await?;
                let length = usize::try_from(length)
                    .context("a segment is far smaller than the address space")?;
                let bytes = reader.read(0, length).await?;
                reader.close().await?;
                Ok(bytes)
            }));
        }
        Some(self.in_flight.pop_front()?.await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_whole_and_in_order() {
        let directory = tempfile::tempdir().expect("a directory on a disk");
        let files: Vec<(PathBuf, u64)> = (0..5u8)
            .map(|number| {
                let path = directory.path().join(number.to_string());
                let bytes = vec![
                    number;
                    4096 * (1 + usize::from(number))
                        + if number == 4 { 100 } else { 0 }
                ];
                std::fs::write(&path, &bytes).expect("a file");
                (path, bytes.len() as u64)
            })
            .collect();
        let executor = glommio::LocalExecutorBuilder::default()
            .make()
            .expect("io_uring is there");
        executor.run(async move {
            let mut stream = Files::new(files.clone());
            for (number, (_, length)) in files.iter().enumerate() {
                let bytes = stream
                    .next()
                    .await
                    .expect("a file is left")
                    .expect("it can be read");
                assert_eq!(bytes.len() as u64, *length);
                assert!(bytes.iter().all(|byte| usize::from(*byte) == number));
            }
            assert!(stream.next().await.is_none());
        });
    }
}
