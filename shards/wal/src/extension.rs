//! Typed blocks after a record's fixed header: type (u16), length (u16), bytes, zeroes to a multiple of 8.
//!
//! Unknown types are kept and skipped, so that a record of a newer writer is read by an older reader.
//! What the bytes of a type mean is its user's business.

/// The content type in full, where the record's code is `Other`.
pub const CONTENT_TYPE: u16 = 1;
/// lsn it was copied from (u64), lsn of its first place (u64), lsn that the next version's link names (u64), see [`Relocated`]
pub const RELOCATED: u16 = 23;
/// On a note: its payload is a part of what an earlier set of logs left to this one. No content.
pub const CARRIED: u16 = 24;
/// producer id (16), sequence (u64), records of the request in this log (u32): on the first record of a request's part in this log
pub const PRODUCER: u16 = 2;
/// digest of the Idempotency-Key scope (16), request fingerprint (u64), records in this log (u32)
pub const IDEMPOTENCY: u16 = 3;
// reserved, see FORMAT.md: not-before 16, expiry 17, running total 18, claim 19, origin 20, trace context 21, skip pointer 22

/// Type and length, before a block's content.
pub const HEAD_BYTES: usize = 4;

/// Bytes that a block with `length` bytes of content takes in the area.
pub const fn encoded_bytes(length: usize) -> usize {
    (HEAD_BYTES + length).next_multiple_of(8)
}

/// Append one block to `out`.
///
/// # Panics
/// When `bytes` is longer than a u16 says, or `out` does not end at a multiple of 8.
pub fn push(out: &mut Vec<u8>, kind: u16, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).expect("an extension holds at most 65535 bytes");
    assert_eq!(out.len() % 8, 0, "extension blocks start at multiples of 8");
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(8), 0);
}

/// One block off the front: type, bytes and what follows. None when the area ends here or makes no sense.
fn split(area: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (head, rest) = area.split_first_chunk::<HEAD_BYTES>()?;
    let kind = u16::from_le_bytes([head[0], head[1]]);
    let length = usize::from(u16::from_le_bytes([head[2], head[3]]));
    let padded = encoded_bytes(length) - HEAD_BYTES;
    if rest.len() < padded {
        return None;
    }
    Some((kind, &rest[..length], &rest[padded..]))
}

/// Every block in order. Ends early at one that makes no sense, which a decoded record never has.
pub fn iter(extensions: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut area = extensions;
    std::iter::from_fn(move || {
        let (kind, bytes, rest) = split(area)?;
        area = rest;
        Some((kind, bytes))
    })
}

/// The first block of a type.
pub fn find(extensions: &[u8], kind: u16) -> Option<&[u8]> {
    iter(extensions)
        .find(|(found, _)| *found == kind)
        .map(|(_, bytes)| bytes)
}

/// Whether the area is whole blocks from end to end.
pub(crate) fn is_well_formed(mut area: &[u8]) -> bool {
    while !area.is_empty() {
        match split(area) {
            Some((_, _, rest)) => area = rest,
            None => return false,
        }
    }
    true
}

/// What a copy says that was made to free the segment of its original: the record is the same, its place is another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Relocated {
    /// The place that it was copied from.
    pub from: u64,
    /// Its first place: the position that its reply said, and that every reply says.
    pub first: u64,
    /// An older version: the lsn under which the next version's link names it. 0: it was the newest version of its key.
    pub link: u64,
}

impl Relocated {
    /// Bytes of the block's content.
    pub const BYTES: usize = 24;

    /// The block's content.
    pub fn encode(&self) -> [u8; Relocated::BYTES] {
        let mut out = [0; Relocated::BYTES];
        out[..8].copy_from_slice(&self.from.to_le_bytes());
        out[8..16].copy_from_slice(&self.first.to_le_bytes());
        out[16..].copy_from_slice(&self.link.to_le_bytes());
        out
    }

    /// Of a record with these extensions; None: it lies where it was written first.
    #[inline]
    pub fn of(extensions: &[u8]) -> Option<Relocated> {
        if extensions.is_empty() {
            return None;
        }
        let (words, _) = find(extensions, RELOCATED)?
            .get(..Relocated::BYTES)?
            .as_chunks::<8>();
        let word = |at: usize| u64::from_le_bytes(words[at]);
        Some(Relocated {
            from: word(0),
            first: word(1),
            link: word(2),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_in_order_and_unknown_types_are_skipped() {
        let mut area = Vec::new();
        push(&mut area, 40_000, b"from a newer writer");
        push(&mut area, CONTENT_TYPE, b"image/png");
        push(&mut area, PRODUCER, &[7; 28]);
        push(&mut area, IDEMPOTENCY, b"");
        let lengths = [19, 9, 28, 0];
        assert_eq!(
            area.len(),
            lengths.into_iter().map(encoded_bytes).sum::<usize>()
        );
        assert!(is_well_formed(&area));
        let kinds: Vec<u16> = iter(&area).map(|(kind, _)| kind).collect();
        assert_eq!(kinds, [40_000, CONTENT_TYPE, PRODUCER, IDEMPOTENCY]);
        assert_eq!(find(&area, CONTENT_TYPE), Some(&b"image/png"[..]));
        assert_eq!(find(&area, PRODUCER), Some(&[7; 28][..]));
        assert_eq!(find(&area, IDEMPOTENCY), Some(&b""[..]));
        assert_eq!(find(&area, 99), None);
        assert_eq!(find(&[], CONTENT_TYPE), None);
    }

    #[test]
    fn an_area_cut_anywhere_inside_a_block_is_not_well_formed() {
        let mut area = Vec::new();
        push(&mut area, 1, b"eleven byte");
        push(&mut area, 2, b"x");
        for cut in 1..area.len() {
            assert_eq!(is_well_formed(&area[..cut]), cut == 16, "cut at {cut}");
        }
    }

    #[test]
    fn a_relocated_record_says_where_it_was() {
        let relocated = Relocated {
            from: 7,
            first: u64::MAX,
            link: 1 << 40,
        };
        let mut area = Vec::new();
        push(&mut area, CONTENT_TYPE, b"image/png");
        push(&mut area, RELOCATED, &relocated.encode());
        assert_eq!(Relocated::of(&area), Some(relocated));
        assert_eq!(Relocated::of(&[]), None);
        assert_eq!(Relocated::of(&area[..16]), None);
    }
}
