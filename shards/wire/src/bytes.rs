//! Little-endian fields off the front of a slice and onto the end of a vector.
//!
//! Every take checks the length and leaves the slice as it was when there is too little.

/// A read position in borrowed bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    pub rest: &'a [u8],
}

impl<'a> Reader<'a> {
    #[inline]
    pub fn new(rest: &'a [u8]) -> Self {
        Reader { rest }
    }

    #[inline]
    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*first)
    }

    #[inline]
    pub fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[b]| b)
    }

    #[inline]
    pub fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    #[inline]
    pub fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    #[inline]
    pub fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    #[inline]
    pub fn u128(&mut self) -> Option<u128> {
        self.array().map(u128::from_le_bytes)
    }

    #[inline]
    pub fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (first, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(first)
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }
}

/// Lengths that a frame states in 16 bits. Callers bound what they pass; a length beyond is their bug, and a frame
/// with a cut length would be worse than a panic.
#[inline]
pub(crate) fn len_u16(bytes: &[u8]) -> u16 {
    u16::try_from(bytes.len()).expect("field is longer than its 16-bit length can say")
}

/// Lengths that a frame states in 32 bits; see [`len_u16`].
#[inline]
pub(crate) fn len_u32(len: usize) -> u32 {
    u32::try_from(len).expect("field is longer than its 32-bit length can say")
}
