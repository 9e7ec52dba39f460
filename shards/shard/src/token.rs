//! Completion tokens: what kind of operation came back, and which one. Eight bits of kind, fifty-six of number.

/// A completion token, as the driver carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token;

/// A token taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Write of a log batch, by batch number.
    LogWrite(u64),
    /// Preparation of a segment file, by slot.
    Segment(u32),
    /// A record or chunk read, by slab index of the read.
    Read(usize),
    /// Recovery's own reads, by sequence.
    Recovery(u64),
    /// Checkpoint writes and syncs, by sequence.
    Checkpoint(u64),
    /// The one read of the scrub.
    Scrub,
    /// Compaction's reads, by sequence.
    Space(u64),
}

const SHIFT: u32 = 56;
const MASK: u64 = (1 << SHIFT) - 1;

impl Token {
    pub fn log_write(batch: u64) -> u64 {
        (1 << SHIFT) | (batch & MASK)
    }
    pub fn segment(slot: u32) -> u64 {
        (2 << SHIFT) | u64::from(slot)
    }
    pub fn read(index: usize) -> u64 {
        (3 << SHIFT) | index as u64
    }
    pub fn recovery(sequence: u64) -> u64 {
        (4 << SHIFT) | sequence
    }
    pub fn checkpoint(sequence: u64) -> u64 {
        (5 << SHIFT) | sequence
    }
    pub fn scrub() -> u64 {
        6 << SHIFT
    }
    pub fn space(sequence: u64) -> u64 {
        (7 << SHIFT) | sequence
    }
    /// Take a token apart. Panics on a number that none of the constructors made: the driver returned a token it was never given.
    pub fn kind(token: u64) -> Kind {
        let number = token & MASK;
        match token >> SHIFT {
            1 => Kind::LogWrite(number),
            2 => Kind::Segment(number as u32),
            3 => Kind::Read(number as usize),
            4 => Kind::Recovery(number),
            5 => Kind::Checkpoint(number),
            6 => Kind::Scrub,
            7 => Kind::Space(number),
            other => panic!("completion token of unknown kind {other}"),
        }
    }
}
