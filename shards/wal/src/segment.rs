//! The first block of a segment file: whose segment it is, which one, and in which life of the file.
//!
//! Written once per life, before any batch of it; the batches' envelopes repeat segment and generation.

use crate::{BLOCK_BYTES, FormatError, LogIdentity, layout};
use rkyv::{Archive, Serialize};

const WHAT: &str = "segment header";
const MAGIC: [u8; 8] = *b"pinSEGMT";
/// Version of everything in a segment file.
pub const VERSION: u32 = 1;

/// First block of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// Whose log it is.
    pub identity: LogIdentity,
    /// Number in the log, from 1, never reused.
    pub segment: u32,
    /// Life of the file: +1 each time it is recycled.
    pub generation: u32,
    /// Size of the file, a multiple of 4096.
    pub segment_bytes: u64,
}

#[derive(Archive, Serialize)]
struct Layout {
    magic: [u8; 8],
    version: u32,
    number: u32,
    store: [u8; 16],
    log: [u8; 16],
    timeline: u32,
    segment: u32,
    generation: u32,
    features: u32,
    segment_bytes: u64,
    keys_hint: u64,
}
const LAYOUT_BYTES: usize = 80;
const _: () = assert!(
    size_of::<ArchivedLayout>() == LAYOUT_BYTES,
    "FORMAT.md draws 80 bytes"
);

impl SegmentHeader {
    /// Lay the header into the first 4096 bytes of `block`.
    ///
    /// # Panics
    /// When `block` is shorter than that.
    pub fn encode(&self, block: &mut [u8]) {
        self.encode_with_keys(block, 0);
    }

    /// [`SegmentHeader::encode`] with the number of keys in the log's index at this time, so that a recovery can size its
    /// index before it reads the log. A hint: nothing may depend on it being right. 0 = unknown.
    ///
    /// # Panics
    /// When `block` is shorter than 4096 bytes.
    pub fn encode_with_keys(&self, block: &mut [u8], keys_hint: u64) {
        let block = &mut block[..BLOCK_BYTES];
        block.fill(0);
        let layout = Layout {
            magic: MAGIC,
            version: VERSION,
            number: self.identity.number,
            store: self.identity.store,
            log: self.identity.log,
            timeline: self.identity.timeline,
            segment: self.segment,
            generation: self.generation,
            features: 0,
            segment_bytes: self.segment_bytes,
            keys_hint,
        };
        layout::put(&layout, &mut block[..LAYOUT_BYTES]);
        layout::close_block(block);
    }

    /// The keys that a header which [`SegmentHeader::decode`] has accepted speaks of; 0 = unknown.
    pub fn keys_hint(block: &[u8]) -> u64 {
        layout::get::<ArchivedLayout>(&block[..LAYOUT_BYTES])
            .keys_hint
            .to_native()
    }

    /// Read the header from the first 4096 bytes of `block`.
    ///
    /// # Errors
    /// Every [`FormatError`]; a zeroed or foreign block is `Magic`.
    pub fn decode(block: &[u8]) -> Result<SegmentHeader, FormatError> {
        let block = block.get(..BLOCK_BYTES).ok_or(FormatError::Short(WHAT))?;
        let layout = layout::get::<ArchivedLayout>(&block[..LAYOUT_BYTES]);
        if layout.magic != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        if !layout::block_is_intact(block) {
            return Err(FormatError::Checksum(WHAT));
        }
        if layout.version.to_native() != VERSION {
            return Err(FormatError::Version {
                what: WHAT,
                found: layout.version.to_native(),
                known: VERSION,
            });
        }
        let malformed = |why: String| Err(FormatError::Malformed { what: WHAT, why });
        if layout.features.to_native() != 0 {
            return malformed(format!(
                "features {:#x} need a newer binary",
                layout.features.to_native()
            ));
        }
        let segment_bytes = layout.segment_bytes.to_native();
        if segment_bytes < 2 * BLOCK_BYTES as u64
            || segment_bytes > u64::from(u32::MAX)
            || !segment_bytes.is_multiple_of(BLOCK_BYTES as u64)
        {
            return malformed(format!("a segment of {segment_bytes} bytes"));
        }
        Ok(SegmentHeader {
            identity: LogIdentity {
                store: layout.store,
                log: layout.log,
                number: layout.number.to_native(),
                timeline: layout.timeline.to_native(),
            },
            segment: layout.segment.to_native(),
            generation: layout.generation.to_native(),
            segment_bytes,
        })
    }
}
