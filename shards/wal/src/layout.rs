//! How fixed structures become bytes: archived structs (rkyv, little-endian, unaligned) written into
//! and validated in place, and whole blocks closed by a checksum.
//!
//! It knows no structure by name. An archived struct here has no pointers and no padding: its layout is
//! its fields in order, which the size assertions beside each struct and the golden segment hold.

use crate::BLOCK_BYTES;
use rkyv::{
    Portable, Serialize,
    api::{high::HighValidator, serialize_using},
    bytecheck::CheckBytes,
    rancor::{Error, Strategy},
    ser::writer::Buffer,
};
use xxhash_rust::xxh3::xxh3_64;

/// Bytes of the checksum that closes a block.
const CHECKSUM_BYTES: usize = size_of::<u64>();
/// Where it lies.
const CHECKSUM_OFFSET: usize = BLOCK_BYTES - CHECKSUM_BYTES;

/// Lay `value` into `out`, which has exactly its archived size.
pub(crate) fn put<T>(value: &T, out: &mut [u8])
where
    T: rkyv::Archive + for<'b> Serialize<Strategy<Buffer<'b>, Error>>,
{
    assert_eq!(
        out.len(),
        size_of::<T::Archived>(),
        "an archived struct fills its place"
    );
    let mut writer = Buffer::from(out);
    serialize_using::<_, Error>(value, &mut writer)
        .expect("a struct without pointers fits the place of its own size");
}

/// Read an archived struct in place. `bytes` has exactly its size; fields of plain integers and bytes accept any value.
pub(crate) fn get<T>(bytes: &[u8]) -> &T
where
    T: Portable + for<'b> CheckBytes<HighValidator<'b, Error>>,
{
    assert_eq!(
        bytes.len(),
        size_of::<T>(),
        "an archived struct fills its place"
    );
    rkyv::access::<T, Error>(bytes).expect("integers and byte arrays are valid whatever their bits")
}

/// Close a block: its last eight bytes become the checksum of all others.
pub(crate) fn close_block(block: &mut [u8]) {
    let checksum = xxh3_64(&block[..CHECKSUM_OFFSET]);
    block[CHECKSUM_OFFSET..BLOCK_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// Whether a block is as it was closed.
pub(crate) fn block_is_intact(block: &[u8]) -> bool {
    xxh3_64(&block[..CHECKSUM_OFFSET]).to_le_bytes() == block[CHECKSUM_OFFSET..BLOCK_BYTES]
}

/// `bytes` rounded up to whole blocks.
pub(crate) const fn whole_blocks(bytes: usize) -> usize {
    bytes.next_multiple_of(BLOCK_BYTES)
}
