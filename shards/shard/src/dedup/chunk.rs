//! The bytes of one checkpoint chunk: a small header, then entries, little-endian, no padding.
//!
//! ```text
//! kind u16 | version u16 | entries u32 | entry…
//! ```
//!
//! It knows no checksum (the page around a chunk has one) and no entry: who writes them also reads them. Every read is checked
//! against what is left, so that bytes of another version or a wrong length are refused instead of believed.

/// Upper bound of a chunk, below what one checkpoint page holds.
pub const CHUNK_BYTES_MAX: usize = 200 * 1024;

/// Why bytes are not a chunk of what was asked for.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
pub enum ChunkError {
    /// ends inside a field
    #[error("checkpoint chunk is cut short")]
    Short,
    /// bytes behind the last entry
    #[error("checkpoint chunk has {0} bytes behind its last entry")]
    Trailing(usize),
    /// another structure's chunk
    #[error("checkpoint chunk is of kind {found}, wanted {wanted}")]
    Kind {
        /// what the chunk says
        found: u16,
        /// what the reader is
        wanted: u16,
    },
    /// written by a binary that this one does not know
    #[error("checkpoint chunk has version {found}; this binary reads {known}")]
    Version {
        /// what the chunk says
        found: u16,
        /// what the reader knows
        known: u16,
    },
    /// a field that cannot be
    #[error("checkpoint chunk makes no sense: {0}")]
    Malformed(&'static str),
}

/// What a chunk holds. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    Producers = 1,
    IdempotencyKeys = 2,
    Streams = 3,
    Carried = 4,
}

const VERSION: u16 = 1;
const KIND_AT: usize = 0;
const VERSION_AT: usize = KIND_AT + 2;
const ENTRIES_AT: usize = VERSION_AT + 2;
const HEADER_BYTES: usize = ENTRIES_AT + 4;

/// Fills a chunk, entry by entry.
#[derive(Debug)]
pub(crate) struct ChunkWriter<'o> {
    out: &'o mut Vec<u8>,
    bytes_max: usize,
    entries: u32,
}

impl<'o> ChunkWriter<'o> {
    /// Starts in `out`, which is emptied. At most `bytes_max` bytes, and never more than `CHUNK_BYTES_MAX`.
    pub(crate) fn begin(kind: Kind, bytes_max: usize, out: &'o mut Vec<u8>) -> ChunkWriter<'o> {
        out.clear();
        out.extend_from_slice(&(kind as u16).to_le_bytes());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&0u32.to_le_bytes());
        ChunkWriter {
            out,
            bytes_max: bytes_max.min(CHUNK_BYTES_MAX),
            entries: 0,
        }
    }

    /// Bytes that still fit.
    pub(crate) fn room(&self) -> usize {
        self.bytes_max.saturating_sub(self.out.len())
    }

    /// Nothing was written yet: the next entry goes in whatever the bound says, or an export would never end.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries == 0
    }

    /// Counts one entry, whose fields follow.
    pub(crate) fn entry(&mut self) -> &mut Self {
        self.entries += 1;
        self
    }

    pub(crate) fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }
    pub(crate) fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(crate) fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(crate) fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(crate) fn u128(&mut self, value: u128) -> &mut Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.out.extend_from_slice(bytes);
        self
    }
}

impl Drop for ChunkWriter<'_> {
    /// The count goes into the header whichever way the writer ends.
    fn drop(&mut self) {
        self.out[ENTRIES_AT..HEADER_BYTES].copy_from_slice(&self.entries.to_le_bytes());
    }
}

/// Reads fields in order; each read fails where the bytes end.
#[derive(Debug)]
pub(crate) struct ChunkReader<'a> {
    rest: &'a [u8],
    entries: u32,
}

impl<'a> ChunkReader<'a> {
    pub(crate) fn begin(kind: Kind, chunk: &'a [u8]) -> Result<ChunkReader<'a>, ChunkError> {
        let mut reader = ChunkReader {
            rest: chunk,
            entries: 0,
        };
        let found = reader.u16()?;
        if found != kind as u16 {
            return Err(ChunkError::Kind {
                found,
                wanted: kind as u16,
            });
        }
        let version = reader.u16()?;
        if version != VERSION {
            return Err(ChunkError::Version {
                found: version,
                known: VERSION,
            });
        }
        reader.entries = reader.u32()?;
        Ok(reader)
    }

    pub(crate) fn entries(&self) -> u32 {
        self.entries
    }

    /// Everything was read.
    pub(crate) fn end(self) -> Result<(), ChunkError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(ChunkError::Trailing(self.rest.len()))
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ChunkError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(ChunkError::Short)?;
        self.rest = rest;
        Ok(*head)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, ChunkError> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    pub(crate) fn u16(&mut self) -> Result<u16, ChunkError> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, ChunkError> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, ChunkError> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(crate) fn u128(&mut self) -> Result<u128, ChunkError> {
        Ok(u128::from_le_bytes(self.array()?))
    }
    pub(crate) fn bytes(&mut self, length: usize) -> Result<&'a [u8], ChunkError> {
        let (head, rest) = self
            .rest
            .split_at_checked(length)
            .ok_or(ChunkError::Short)?;
        self.rest = rest;
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_come_back_in_order_and_every_cut_is_noticed() {
        let mut chunk = vec![9, 9, 9];
        let mut writer = ChunkWriter::begin(Kind::Streams, 100, &mut chunk);
        assert!(writer.is_empty());
        assert_eq!(writer.room(), 100 - HEADER_BYTES);
        writer
            .entry()
            .u8(1)
            .u16(2)
            .u32(3)
            .u64(4)
            .u128(5)
            .bytes(b"six");
        drop(writer);
        let read = |chunk: &[u8]| -> Result<(), ChunkError> {
            let mut reader = ChunkReader::begin(Kind::Streams, chunk)?;
            assert_eq!(reader.entries(), 1);
            assert_eq!(
                (
                    reader.u8()?,
                    reader.u16()?,
                    reader.u32()?,
                    reader.u64()?,
                    reader.u128()?
                ),
                (1, 2, 3, 4, 5)
            );
            assert_eq!(reader.bytes(3)?, b"six");
            reader.end()
        };
        assert_eq!(read(&chunk), Ok(()));
        for length in 0..chunk.len() {
            assert_eq!(
                read(&chunk[..length]),
                Err(ChunkError::Short),
                "cut at {length}"
            );
        }
        chunk.push(0);
        assert_eq!(read(&chunk), Err(ChunkError::Trailing(1)));
    }

    #[test]
    fn another_kind_or_version_is_refused_by_name() {
        let mut chunk = Vec::new();
        drop(ChunkWriter::begin(Kind::Producers, 100, &mut chunk));
        let error = ChunkReader::begin(Kind::Streams, &chunk).unwrap_err();
        assert_eq!(
            error,
            ChunkError::Kind {
                found: 1,
                wanted: 3
            }
        );
        chunk[VERSION_AT] = 7;
        let error = ChunkReader::begin(Kind::Producers, &chunk).unwrap_err();
        assert_eq!(
            error,
            ChunkError::Version {
                found: 7,
                known: VERSION
            }
        );
    }
}
