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
pub struct KeyExtension {
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

/// The payload of a PRODUCER block, for `wal::extension::push`.
pub fn encode_producer(
    id: u128,
    sequence: u64,
    fingerprint: u64,
    records: u32,
) -> [u8; PRODUCER_BYTES] {
    let mut out = [0; PRODUCER_BYTES];
    out[..PRODUCER_SEQUENCE_AT].copy_from_slice(&id.to_le_bytes());
    out[PRODUCER_SEQUENCE_AT..PRODUCER_FINGERPRINT_AT].copy_from_slice(&sequence.to_le_bytes());
    out[PRODUCER_FINGERPRINT_AT..PRODUCER_RECORDS_AT].copy_from_slice(&fingerprint.to_le_bytes());
    out[PRODUCER_RECORDS_AT..].copy_from_slice(&records.to_le_bytes());
    out
}

/// The payload of an IDEMPOTENCY block, for `wal::extension::push`.
pub fn encode_key(
    digest: u128,
    fingerprint: u64,
    records: u32,
    window_seconds: u32,
) -> [u8; KEY_BYTES] {
    let mut out = [0; KEY_BYTES];
    out[..KEY_FINGERPRINT_AT].copy_from_slice(&digest.to_le_bytes());
    out[KEY_FINGERPRINT_AT..KEY_RECORDS_AT].copy_from_slice(&fingerprint.to_le_bytes());
    out[KEY_RECORDS_AT..KEY_WINDOW_AT].copy_from_slice(&records.to_le_bytes());
    out[KEY_WINDOW_AT..].copy_from_slice(&window_seconds.to_le_bytes());
    out
}

/// `None` when the payload is too short to be one.
pub fn decode_producer(payload: &[u8]) -> Option<ProducerExtension> {
    Some(ProducerExtension {
        id: u128::from_le_bytes(*payload.first_chunk()?),
        sequence: u64::from_le_bytes(*payload.get(PRODUCER_SEQUENCE_AT..)?.first_chunk()?),
        fingerprint: u64::from_le_bytes(*payload.get(PRODUCER_FINGERPRINT_AT..)?.first_chunk()?),
        records: u32::from_le_bytes(*payload.get(PRODUCER_RECORDS_AT..)?.first_chunk()?),
    })
}

/// `None` when the payload is too short to be one.
pub fn decode_key(payload: &[u8]) -> Option<KeyExtension> {
    Some(KeyExtension {
        digest: u128::from_le_bytes(*payload.first_chunk()?),
        fingerprint: u64::from_le_bytes(*payload.get(KEY_FINGERPRINT_AT..)?.first_chunk()?),
        records: u32::from_le_bytes(*payload.get(KEY_RECORDS_AT..)?.first_chunk()?),
        window_seconds: u32::from_le_bytes(*payload.get(KEY_WINDOW_AT..)?.first_chunk()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_bytes_are_these() {
        let mut wanted = [0u8; 36];
        (wanted[0], wanted[1], wanted[16], wanted[24], wanted[32]) = (2, 1, 3, 4, 5);
        assert_eq!(encode_producer(0x0102, 3, 4, 5), wanted);
        let mut wanted = [0u8; 32];
        (wanted[0], wanted[16], wanted[24], wanted[28]) = (1, 2, 3, 4);
        assert_eq!(encode_key(1, 2, 3, 4), wanted);
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded_whatever_follows(id: u128, sequence: u64, fingerprint: u64, records: u32, window_seconds: u32, later in prop::collection::vec(any::<u8>(), 0..9)) {
            let bytes = [encode_producer(id, sequence, fingerprint, records).as_slice(), later.as_slice()].concat();
            prop_assert_eq!(decode_producer(&bytes), Some(ProducerExtension { id, sequence, fingerprint, records }));
            prop_assert_eq!(decode_producer(&bytes[..PRODUCER_BYTES - 1]), None);
            let bytes = [encode_key(id, fingerprint, records, window_seconds).as_slice(), later.as_slice()].concat();
            prop_assert_eq!(decode_key(&bytes), Some(KeyExtension { digest: id, fingerprint, records, window_seconds }));
            prop_assert_eq!(decode_key(&bytes[..KEY_BYTES - 1]), None);
        }
    }
}
