//! What the index knows of a key's newest record, and its packing into 20 bytes.
//!
//! Invariant: packing then unpacking gives the entry back, except `bytes`, which comes back as the size class
//! that covers it. It does not know where the packed words are kept.

use wal::Location;

/// The newest record of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Entry {
    /// The record's number in its log.
    pub lsn: u64,
    /// The key's version count: the newest record's version.
    pub version: u32,
    /// The newest record ends the key.
    pub tombstone: bool,
    /// Where the record lies. `offset` is a multiple of 8 and below [`OFFSET_END`].
    pub location: Location,
    /// At least the record's length: given exact (at most [`BYTES_MAX`]), comes back rounded up to a size class, so
    /// `location + bytes` may pass the end of the segment or of what is written: clamp before reading.
    pub bytes: u32,
}

/// Size classes of records: powers of two, and two sizes more where payloads are often a round number plus a
/// header and key (4 KiB pages, the 1 MiB payload limit), so that the aligned read of a record wastes little.
pub const SIZE_CLASSES: [u32; 16] = [
    256,
    512,
    1024,
    2048,
    4096,
    4096 + 512,
    8192,
    16 << 10,
    32 << 10,
    64 << 10,
    128 << 10,
    256 << 10,
    512 << 10,
    1 << 20,
    (1 << 20) + (64 << 10),
    2 << 20,
];

/// Longest record that an entry can name.
pub const BYTES_MAX: u32 = SIZE_CLASSES[15];

/// Offsets in a segment are below this (27 bits of 8-byte units).
pub const OFFSET_END: u32 = 1 << 30;

const UNITS_MASK: u32 = (1 << 27) - 1;
const CLASS_SHIFT: u32 = 27;
const TOMBSTONE: u32 = 1 << 31;

/// lsn low, lsn high, version, segment, then offset / 8 (27 bits), size class (4), tombstone (1).
pub(crate) type Packed = [u32; 5];

/// The size class that covers `bytes` (at most [`BYTES_MAX`]), as its position in [`SIZE_CLASSES`]: the power of two that
/// covers them, plus the classes below it that are none.
#[inline]
#[must_use]
pub fn class_of(bytes: u32) -> u32 {
    let power = bytes
        .max(SIZE_CLASSES[0])
        .next_power_of_two()
        .trailing_zeros()
        - 8;
    power + u32::from(bytes > SIZE_CLASSES[5]) + u32::from(bytes > SIZE_CLASSES[14])
}

impl Entry {
    /// The entry with `bytes` as it will come back from the index.
    #[must_use]
    pub fn rounded(self) -> Entry {
        Entry::unpack(&self.pack())
    }

    /// # Panics
    /// When the offset is misaligned or too large or the record too long: the entry would name other bytes.
    #[inline]
    #[allow(clippy::cast_possible_truncation)] // the two halves of the lsn
    pub(crate) fn pack(&self) -> Packed {
        let offset = self.location.offset;
        assert!(
            offset < OFFSET_END && offset.is_multiple_of(8) && self.bytes <= BYTES_MAX,
            "no index entry can name this record: {self:?}"
        );
        [
            self.lsn as u32,
            (self.lsn >> 32) as u32,
            self.version,
            self.location.segment,
            (offset / 8)
                | (class_of(self.bytes) << CLASS_SHIFT)
                | if self.tombstone { TOMBSTONE } else { 0 },
        ]
    }

    #[inline]
    pub(crate) fn unpack(packed: &Packed) -> Entry {
        let [lsn_low, lsn_high, version, segment, place] = *packed;
        Entry {
            lsn: u64::from(lsn_high) << 32 | u64::from(lsn_low),
            version,
            tombstone: place & TOMBSTONE != 0,
            location: Location {
                segment,
                offset: (place & UNITS_MASK) * 8,
            },
            bytes: SIZE_CLASSES[(place >> CLASS_SHIFT & 15) as usize],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packing_keeps_everything_but_rounds_the_length_up(
            lsn: u64, version: u32, segment: u32, tombstone: bool, units in 0..1u32 << 27, bytes in 0..=BYTES_MAX,
        ) {
            let entry = Entry { lsn, version, tombstone, location: Location { segment, offset: units * 8 }, bytes };
            let back = entry.rounded();
            prop_assert!(back.bytes >= bytes);
            prop_assert!(back.bytes <= 256 || back.bytes < 2 * bytes.max(1), "{bytes} became {}", back.bytes);
            prop_assert_eq!(Entry { bytes, ..back }, entry);
            prop_assert_eq!(back.rounded(), back);
        }
    }

    #[test]
    fn each_class_covers_itself_and_the_next_byte_takes_the_next() {
        for (class, pair) in SIZE_CLASSES.windows(2).enumerate() {
            assert!(pair[0] < pair[1]);
            assert_eq!(class_of(pair[0]) as usize, class);
            assert_eq!(class_of(pair[0] + 1) as usize, class + 1);
        }
    }

    #[test]
    fn what_cannot_be_named_is_refused() {
        for (offset, bytes) in [(4, 8), (OFFSET_END, 8), (8, BYTES_MAX + 1)] {
            let entry = Entry {
                location: Location { segment: 1, offset },
                bytes,
                ..Entry::default()
            };
            assert!(
                std::panic::catch_unwind(|| entry.rounded()).is_err(),
                "{entry:?}"
            );
        }
    }
}
