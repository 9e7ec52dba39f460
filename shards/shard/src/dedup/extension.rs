//! What a repeat needs to be recognised after a restart, as it stands in the log: the payloads of the extension blocks
//! `wal::extension::PRODUCER` and `wal::extension::IDEMPOTENCY`, on the first record of a request's part in this log.
//!
//! Little-endian, fixed offsets, each derived from the one before. A longer payload is one of a later version: what is known of it
//! is read. A shorter one is none.
//!
//! ```text
//! PRODUCER     id 16 | sequence u64 | fingerprint u64 | records u32              36 bytes
//! IDEMPOTENCY  digest 16 | fingerprint u64 | records u32 | window_seconds u32    32 bytes
//! ```
//!
//! lsn, log time and the versions of the records are not repeated here: the record, its batch and the records after it say them.

/// Payload of a PRODUCER block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerExtension {
    /// who sent the request
    pub id: u128,
    /// the request's number in that producer's order, from 1
    pub sequence: u64,
    /// [`fingerprint`](super::fingerprint) of the request, 0 = unknown
    pub fingerprint: u64,
    /// records of the request in this log, this one included
    pub records: u32,
}

const PRODUCER_SEQUENCE_AT: usize = 16;
const PRODUCER_FINGERPRINT_AT: usize = PRODUCER_SEQUENCE_AT + 8;
const PRODUCER_RECORDS_AT: usize = PRODUCER_FINGERPRINT_AT + 8;
const PRODUCER_BYTES: usize = PRODUCER_RECORDS_AT + 4;

/// Payload of an IDEMPOTENCY block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdempotencyExtension {
    /// [`scope_digest`](super::scope_digest) of key and scope
    pub digest: u128,
    /// [`fingerprint`](super::fingerprint) of the request, 0 = unknown
    pub fingerprint: u64,
    /// records of the request in this log, this one included
    pub records: u32,
    /// how long the answer is remembered, in log time
    pub window_seconds: u32,
}

const KEY_FINGERPRINT_AT: usize = 16;
const KEY_RECORDS_AT: usize = KEY_FINGERPRINT_AT + 8;
const KEY_WINDOW_AT: usize = KEY_RECORDS_AT + 4;
const KEY_BYTES: usize = KEY_WINDOW_AT + 4;

impl ProducerExtension {
    /// The payload, for `wal::extension::push`.
    pub fn encode(&self) -> [u8; PRODUCER_BYTES] {
        let mut out = [0; PRODUCER_BYTES];
        out[..PRODUCER_SEQUENCE_AT].copy_from_slice(&self.id.to_le_bytes());
        out[PRODUCER_SEQUENCE_AT..PRODUCER_FINGERPRINT_AT]
            .copy_from_slice(&self.sequence.to_le_bytes());
        out[PRODUCER_FINGERPRINT_AT..PRODUCER_RECORDS_AT]
            .copy_from_slice(&self.fingerprint.to_le_bytes());
        out[PRODUCER_RECORDS_AT..].copy_from_slice(&self.records.to_le_bytes());
        out
    }

    /// `None` when the payload is too short to be one.
    pub fn decode(payload: &[u8]) -> Option<ProducerExtension> {
        Some(ProducerExtension {
            id: u128::from_le_bytes(*payload.first_chunk()?),
            sequence: u64::from_le_bytes(*payload.get(PRODUCER_SEQUENCE_AT..)?.first_chunk()?),
            fingerprint: u64::from_le_bytes(
                *payload.get(PRODUCER_FINGERPRINT_AT..)?.first_chunk()?,
            ),
            records: u32::from_le_bytes(*payload.get(PRODUCER_RECORDS_AT..)?.first_chunk()?),
        })
    }
}

impl IdempotencyExtension {
    /// The payload, for `wal::extension::push`.
    pub fn encode(&self) -> [u8; KEY_BYTES] {
        let mut out = [0; KEY_BYTES];
        out[..KEY_FINGERPRINT_AT].copy_from_slice(&self.digest.to_le_bytes());
        out[KEY_FINGERPRINT_AT..KEY_RECORDS_AT].copy_from_slice(&self.fingerprint.to_le_bytes());
        out[KEY_RECORDS_AT..KEY_WINDOW_AT].copy_from_slice(&self.records.to_le_bytes());
        out[KEY_WINDOW_AT..].copy_from_slice(&self.window_seconds.to_le_bytes());
        out
    }

    /// `None` when the payload is too short to be one.
    pub fn decode(payload: &[u8]) -> Option<IdempotencyExtension> {
        Some(IdempotencyExtension {
            digest: u128::from_le_bytes(*payload.first_chunk()?),
            fingerprint: u64::from_le_bytes(*payload.get(KEY_FINGERPRINT_AT..)?.first_chunk()?),
            records: u32::from_le_bytes(*payload.get(KEY_RECORDS_AT..)?.first_chunk()?),
            window_seconds: u32::from_le_bytes(*payload.get(KEY_WINDOW_AT..)?.first_chunk()?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_these() {
        let mut wanted = [0u8; 36];
        (wanted[0], wanted[1], wanted[16], wanted[24], wanted[32]) = (2, 1, 3, 4, 5);
        assert_eq!(
            ProducerExtension {
                id: 0x0102,
                sequence: 3,
                fingerprint: 4,
                records: 5
            }
            .encode(),
            wanted
        );
        let mut wanted = [0u8; 32];
        (wanted[0], wanted[16], wanted[24], wanted[28]) = (1, 2, 3, 4);
        assert_eq!(
            IdempotencyExtension {
                digest: 1,
                fingerprint: 2,
                records: 3,
                window_seconds: 4
            }
            .encode(),
            wanted
        );
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_whatever_follows(id: u128, sequence: u64, fingerprint: u64, records: u32, window_seconds: u32, later in prop::collection::vec(any::<u8>(), 0..9)) {
            let producer = ProducerExtension { id, sequence, fingerprint, records };
            let bytes = [producer.encode().as_slice(), later.as_slice()].concat();
            prop_assert_eq!(ProducerExtension::decode(&bytes), Some(producer));
            prop_assert_eq!(ProducerExtension::decode(&bytes[..PRODUCER_BYTES - 1]), None);
            let key = IdempotencyExtension { digest: id, fingerprint, records, window_seconds };
            let bytes = [key.encode().as_slice(), later.as_slice()].concat();
            prop_assert_eq!(IdempotencyExtension::decode(&bytes), Some(key));
            prop_assert_eq!(IdempotencyExtension::decode(&bytes[..KEY_BYTES - 1]), None);
        }
    }
}
