//! What a repeat needs to be recognised after a restart, as it stands in the log: the payloads of the extension blocks
//! `wal::extension::PRODUCER` and `wal::extension::IDEMPOTENCY`, on the first record of a request's part in this log.
//!
//! Little-endian, fixed offsets, each derived from the one before. A longer payload is one of a later version: what is known of it
//! is read. A shorter one is none.
//!
//! ```text
//! PRODUCER     id 16 | sequence u64 | fingerprint u64 | records u32 | flags u32                                            40 bytes
//! IDEMPOTENCY  digest 16 | fingerprint u64 | records u32 | window_seconds u32 | version u32 | code u16 | flags u16         40 bytes
//! flags        bit 0: the first answer said `buffered`
//! ```
//!
//! lsn, log time and the versions of the records are not repeated here: the record, its batch and the records after it say them.

const FLAG_BUFFERED: u16 = 1;

const fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    let (_, tail) = bytes.split_at(offset);
    match tail.first_chunk::<N>() {
        Some(field) => *field,
        None => panic!("offsets lie below the length that decode checked"),
    }
}

/// Payload of a PRODUCER block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerExtension {
    /// who sent the request
    pub id: u128,
    /// the request's number in that producer's order, from 1
    pub sequence: u64,
    /// [`fingerprint`](super::fingerprint) of the request, 0 = unknown
    pub fingerprint: u64,
    /// records of the request in this log, this one included; 0 on a note
    pub records: u32,
    /// the answer said durable (else buffered)
    pub durable: bool,
}

impl ProducerExtension {
    const ID_AT: usize = 0;
    const SEQUENCE_AT: usize = Self::ID_AT + 16;
    const FINGERPRINT_AT: usize = Self::SEQUENCE_AT + 8;
    const RECORDS_AT: usize = Self::FINGERPRINT_AT + 8;
    const FLAGS_AT: usize = Self::RECORDS_AT + 4;
    /// Length of the payload.
    pub const BYTES: usize = Self::FLAGS_AT + 4;

    /// The payload, for `wal::extension::push`.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[Self::ID_AT..Self::SEQUENCE_AT].copy_from_slice(&self.id.to_le_bytes());
        out[Self::SEQUENCE_AT..Self::FINGERPRINT_AT].copy_from_slice(&self.sequence.to_le_bytes());
        out[Self::FINGERPRINT_AT..Self::RECORDS_AT]
            .copy_from_slice(&self.fingerprint.to_le_bytes());
        out[Self::RECORDS_AT..Self::FLAGS_AT].copy_from_slice(&self.records.to_le_bytes());
        let flags = if self.durable {
            0
        } else {
            u32::from(FLAG_BUFFERED)
        };
        out[Self::FLAGS_AT..].copy_from_slice(&flags.to_le_bytes());
        out
    }

    /// `None` when the payload is too short to be one.
    pub fn decode(bytes: &[u8]) -> Option<ProducerExtension> {
        let bytes = bytes.get(..Self::BYTES)?;
        Some(ProducerExtension {
            id: u128::from_le_bytes(at(bytes, Self::ID_AT)),
            sequence: u64::from_le_bytes(at(bytes, Self::SEQUENCE_AT)),
            fingerprint: u64::from_le_bytes(at(bytes, Self::FINGERPRINT_AT)),
            records: u32::from_le_bytes(at(bytes, Self::RECORDS_AT)),
            durable: u32::from_le_bytes(at(bytes, Self::FLAGS_AT)) & u32::from(FLAG_BUFFERED) == 0,
        })
    }
}

/// Payload of an IDEMPOTENCY block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyExtension {
    /// digest of the key and its scope
    pub digest: u128,
    /// [`fingerprint`](super::fingerprint) of the request, 0 = unknown
    pub fingerprint: u64,
    /// records of the request in this log, this one included; 0 on a note
    pub records: u32,
    /// how long the answer is remembered, in log time
    pub window_seconds: u32,
    /// the version that the answer named (of the first record, or the one that a condition failed on)
    pub version: u32,
    /// `wire::Code` of the answer, 0 = appended
    pub code: u16,
    /// the answer said durable (else buffered)
    pub durable: bool,
}

impl IdempotencyExtension {
    const DIGEST_AT: usize = 0;
    const FINGERPRINT_AT: usize = Self::DIGEST_AT + 16;
    const RECORDS_AT: usize = Self::FINGERPRINT_AT + 8;
    const WINDOW_AT: usize = Self::RECORDS_AT + 4;
    const VERSION_AT: usize = Self::WINDOW_AT + 4;
    const CODE_AT: usize = Self::VERSION_AT + 4;
    const FLAGS_AT: usize = Self::CODE_AT + 2;
    /// Length of the payload.
    pub const BYTES: usize = Self::FLAGS_AT + 2;

    /// The payload, for `wal::extension::push`.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut out = [0; Self::BYTES];
        out[Self::DIGEST_AT..Self::FINGERPRINT_AT].copy_from_slice(&self.digest.to_le_bytes());
        out[Self::FINGERPRINT_AT..Self::RECORDS_AT]
            .copy_from_slice(&self.fingerprint.to_le_bytes());
        out[Self::RECORDS_AT..Self::WINDOW_AT].copy_from_slice(&self.records.to_le_bytes());
        out[Self::WINDOW_AT..Self::VERSION_AT].copy_from_slice(&self.window_seconds.to_le_bytes());
        out[Self::VERSION_AT..Self::CODE_AT].copy_from_slice(&self.version.to_le_bytes());
        out[Self::CODE_AT..Self::FLAGS_AT].copy_from_slice(&self.code.to_le_bytes());
        let flags = if self.durable { 0 } else { FLAG_BUFFERED };
        out[Self::FLAGS_AT..].copy_from_slice(&flags.to_le_bytes());
        out
    }

    /// `None` when the payload is too short to be one.
    pub fn decode(bytes: &[u8]) -> Option<IdempotencyExtension> {
        let bytes = bytes.get(..Self::BYTES)?;
        Some(IdempotencyExtension {
            digest: u128::from_le_bytes(at(bytes, Self::DIGEST_AT)),
            fingerprint: u64::from_le_bytes(at(bytes, Self::FINGERPRINT_AT)),
            records: u32::from_le_bytes(at(bytes, Self::RECORDS_AT)),
            window_seconds: u32::from_le_bytes(at(bytes, Self::WINDOW_AT)),
            version: u32::from_le_bytes(at(bytes, Self::VERSION_AT)),
            code: u16::from_le_bytes(at(bytes, Self::CODE_AT)),
            durable: u16::from_le_bytes(at(bytes, Self::FLAGS_AT)) & FLAG_BUFFERED == 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn producer_bytes_are_these() {
        let extension = ProducerExtension {
            id: 0x0102,
            sequence: 3,
            fingerprint: 4,
            records: 5,
            durable: false,
        };
        let mut wanted = [0u8; 40];
        (
            wanted[0], wanted[1], wanted[16], wanted[24], wanted[32], wanted[36],
        ) = (2, 1, 3, 4, 5, 1);
        assert_eq!(extension.encode(), wanted);
    }

    #[test]
    fn idempotency_bytes_are_these() {
        let extension = IdempotencyExtension {
            digest: 1,
            fingerprint: 2,
            records: 3,
            window_seconds: 4,
            version: 5,
            code: 6,
            durable: false,
        };
        let mut wanted = [0u8; 40];
        (
            wanted[0], wanted[16], wanted[24], wanted[28], wanted[32], wanted[36], wanted[38],
        ) = (1, 2, 3, 4, 5, 6, 1);
        assert_eq!(extension.encode(), wanted);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_whatever_follows(id: u128, sequence: u64, fingerprint: u64, records: u32, version: u32, code: u16, durable: bool, later in prop::collection::vec(any::<u8>(), 0..9)) {
            let producer = ProducerExtension { id, sequence, fingerprint, records, durable };
            let bytes = [producer.encode().as_slice(), later.as_slice()].concat();
            prop_assert_eq!(ProducerExtension::decode(&bytes), Some(producer));
            prop_assert_eq!(ProducerExtension::decode(&bytes[..ProducerExtension::BYTES - 1]), None);
            let key = IdempotencyExtension { digest: id, fingerprint, records, window_seconds: records ^ 1, version, code, durable };
            let bytes = [key.encode().as_slice(), later.as_slice()].concat();
            prop_assert_eq!(IdempotencyExtension::decode(&bytes), Some(key));
            prop_assert_eq!(IdempotencyExtension::decode(&bytes[..IdempotencyExtension::BYTES - 1]), None);
        }
    }
}
