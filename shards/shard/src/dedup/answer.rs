//! What a request was answered, as both windows keep it.
//!
//! The usual answer takes no allocation. It does not know under what it is remembered.

/// Versions kept without an allocation of their own.
const VERSIONS_INLINE: usize = 4;

/// The versions that an answer gave its records, in request order. Up to four take no allocation.
#[derive(Clone, Debug)]
pub struct Versions(Repr);

#[derive(Clone, Debug)]
enum Repr {
    Inline {
        length: u8,
        values: [u32; VERSIONS_INLINE],
    },
    Heap(Box<[u32]>),
}

impl Versions {
    /// No versions: a reply that did not ask for them.
    pub const NONE: Versions = Versions(Repr::Inline {
        length: 0,
        values: [0; VERSIONS_INLINE],
    });

    pub(super) fn heap_bytes(&self) -> usize {
        match &self.0 {
            Repr::Inline { .. } => 0,
            Repr::Heap(values) => size_of_val::<[u32]>(values),
        }
    }

    /// None took an allocation.
    pub(super) fn are_inline(&self) -> bool {
        matches!(self.0, Repr::Inline { .. })
    }

    /// For an import that got the list in parts.
    pub(super) fn append(&mut self, more: &[u32]) {
        *self = Versions::from([self, more].concat().as_slice());
    }
}

impl Default for Versions {
    fn default() -> Versions {
        Versions::NONE
    }
}

impl From<&[u32]> for Versions {
    fn from(versions: &[u32]) -> Versions {
        if versions.len() > VERSIONS_INLINE {
            return Versions(Repr::Heap(versions.into()));
        }
        let mut values = [0; VERSIONS_INLINE];
        values[..versions.len()].copy_from_slice(versions);
        Versions(Repr::Inline {
            length: versions.len() as u8,
            values,
        })
    }
}

impl std::ops::Deref for Versions {
    type Target = [u32];
    fn deref(&self) -> &[u32] {
        match &self.0 {
            Repr::Inline { length, values } => &values[..usize::from(*length)],
            Repr::Heap(values) => values,
        }
    }
}

impl PartialEq for Versions {
    fn eq(&self, other: &Versions) -> bool {
        **self == **other
    }
}
impl Eq for Versions {}

/// What a request was answered, as far as this log is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// of the request's first record here
    pub first_lsn: u64,
    /// records of the request here; their lsns follow each other
    pub records: u32,
    /// one per record, or none
    pub versions: Versions,
}

impl Answer {
    /// The lsn that must be durable before this answer may be given again.
    pub fn last_lsn(&self) -> u64 {
        self.first_lsn + u64::from(self.records.max(1)) - 1
    }
}
