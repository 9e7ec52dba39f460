//! Reading and writing the 512 bytes of a bucket.
//!
//! ```text
//! byte 0      16 fingerprints, u32 each: the first cache line. 0 = free slot
//! byte 64     16 slots of 28 bytes: high half of the digest (u64), packed entry (5 x u32)
//! ```
//!
//! Invariant: occupied slots come first, so the sixteenth fingerprint says whether the bucket is full. A lookup reads the
//! fingerprint line, then the slot that matches: 32 bits of fingerprint make a second, wrong candidate a matter
//! of 4 in 10^9. 32 bytes a slot and not one spare. It does not know which bucket it is, nor where a key belongs.

use crate::digest::TableKey;
use crate::entry::Packed;
use crate::memory::Bucket;

/// Slots of a bucket.
pub(crate) const SLOTS: usize = 16;

const LANES: usize = 128;
const SLOT_LANES: usize = 7;

/// A key and its packed entry.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Item {
    pub key: TableKey,
    pub packed: Packed,
}

#[inline]
fn lanes(bucket: &Bucket) -> &[u32; LANES] {
    bytemuck::cast_ref(&bucket.words)
}

#[inline]
fn lanes_mut(bucket: &mut Bucket) -> &mut [u32; LANES] {
    bytemuck::cast_mut(&mut bucket.words)
}

#[inline]
fn fingerprints(bucket: &Bucket) -> &[u32; SLOTS] {
    lanes(bucket).first_chunk().expect("128 lanes")
}

#[inline]
fn slot_lanes(bucket: &Bucket, slot: usize) -> &[u32; SLOT_LANES] {
    lanes(bucket)[SLOTS + slot * SLOT_LANES..]
        .first_chunk()
        .expect("a slot of the bucket")
}

#[inline]
fn slot_lanes_mut(bucket: &mut Bucket, slot: usize) -> &mut [u32; SLOT_LANES] {
    lanes_mut(bucket)[SLOTS + slot * SLOT_LANES..]
        .first_chunk_mut()
        .expect("a slot of the bucket")
}

/// First and last cache line of a slot.
#[inline]
pub(crate) fn slot_lines(slot: usize) -> (usize, usize) {
    let first = (SLOTS + slot * SLOT_LANES) * 4;
    (first / 64, (first + SLOT_LANES * 4 - 1) / 64)
}

#[inline]
pub(crate) fn is_full(bucket: &Bucket) -> bool {
    fingerprints(bucket)[SLOTS - 1] != 0
}

/// Occupied slots. They come first, so four comparisons find the border.
#[inline]
pub(crate) fn count(bucket: &Bucket) -> usize {
    let fingerprints = fingerprints(bucket);
    let mut slot = 0;
    for step in [8, 4, 2, 1] {
        slot += step * usize::from(fingerprints[slot + step - 1] != 0);
    }
    slot + usize::from(fingerprints[slot] != 0)
}

/// The slots that have this fingerprint: a byte each, 1 or 0, in slot order. In this shape the comparison becomes a dozen
/// vector instructions.
#[inline]
fn matching(bucket: &Bucket, fingerprint: u32) -> u128 {
    let mut equal = [0u8; SLOTS];
    for (equal, found) in equal.iter_mut().zip(fingerprints(bucket)) {
        *equal = u8::from(*found == fingerprint);
    }
    u128::from_le_bytes(equal)
}

/// The first slot that has this fingerprint.
#[inline]
pub(crate) fn first_match(bucket: &Bucket, fingerprint: u32) -> Option<usize> {
    let candidates = matching(bucket, fingerprint);
    (candidates != 0).then(|| candidates.trailing_zeros() as usize / 8)
}

#[inline]
pub(crate) fn high(bucket: &Bucket, slot: usize) -> u64 {
    let lanes = slot_lanes(bucket, slot);
    u64::from(lanes[1]) << 32 | u64::from(lanes[0])
}

#[inline]
pub(crate) fn key(bucket: &Bucket, slot: usize) -> TableKey {
    TableKey {
        high: high(bucket, slot),
        fingerprint: fingerprints(bucket)[slot],
    }
}

/// The slot that holds `key`.
#[inline]
pub(crate) fn find(bucket: &Bucket, key: TableKey) -> Option<usize> {
    let mut candidates = matching(bucket, key.fingerprint);
    while candidates != 0 {
        let slot = candidates.trailing_zeros() as usize / 8;
        if high(bucket, slot) == key.high {
            return Some(slot);
        }
        candidates &= candidates - 1;
    }
    None
}

#[inline]
pub(crate) fn packed(bucket: &Bucket, slot: usize) -> &Packed {
    slot_lanes(bucket, slot).last_chunk().expect("5 of 7 lanes")
}

#[inline]
pub(crate) fn packed_mut(bucket: &mut Bucket, slot: usize) -> &mut Packed {
    slot_lanes_mut(bucket, slot)
        .last_chunk_mut()
        .expect("5 of 7 lanes")
}

#[inline]
pub(crate) fn item(bucket: &Bucket, slot: usize) -> Item {
    Item {
        key: key(bucket, slot),
        packed: *packed(bucket, slot),
    }
}

#[inline]
#[allow(clippy::cast_possible_truncation)] // the two halves
fn write(bucket: &mut Bucket, slot: usize, item: &Item) {
    lanes_mut(bucket)[slot] = item.key.fingerprint;
    let lanes = slot_lanes_mut(bucket, slot);
    lanes[0] = item.key.high as u32;
    lanes[1] = (item.key.high >> 32) as u32;
    lanes[2..].copy_from_slice(&item.packed);
}

/// Add to a bucket that is not full.
#[inline]
pub(crate) fn push(bucket: &mut Bucket, item: &Item) {
    let slot = count(bucket);
    write(bucket, slot, item);
}
