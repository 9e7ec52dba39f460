//! What does a record cost on its way into a batch?
//!
//! The writer alone: header, copy, record checksum, body checksum, and at the end of a batch its headers and padding. Buffers
//! rotate as the shard's do, so that the bytes written are not always the same warm ones. No device, no index, no ack.
//! The result is the chain's hash, which covers every byte that was laid down.

use rand::RngCore;
use uring::Buffer;
use wal::chain::ChainPoint;
use wal::record::{self, Kind, NewRecord};
use wal::writer::{ReadySegment, Writer};
use wal::{Link, LogIdentity};

use crate::{Bench, Checksum, generator};

/// As the shard's plan has them with default limits.
pub(crate) const BATCH_BUFFERS: usize = 24;
pub(crate) const BATCH_BYTES: usize = (1 << 20) + (64 << 10);
pub(crate) const SEGMENT_BYTES: u32 = 64 << 20;
pub(crate) const KEY_BYTES: usize = 16;
const TIMESTAMP_US: u64 = 1_700_000_000_000_000;

pub(crate) fn identity() -> LogIdentity {
    LogIdentity {
        store: *b"store of benches",
        log: *b"uuid of that log",
        number: 0,
        timeline: 1,
    }
}

pub(crate) fn ready(segment: u32, bytes: u32) -> ReadySegment {
    ReadySegment {
        segment,
        generation: 1,
        bytes,
        file: segment,
    }
}

/// Distinct keys, one per number.
#[inline]
pub(crate) fn key(number: u64) -> [u8; KEY_BYTES] {
    u128::from(number)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
        .to_le_bytes()
}

/// Bytes that payloads are cut from.
pub(crate) fn payload_source() -> Vec<u8> {
    let mut bytes = vec![0; 128 << 10];
    generator(1).fill_bytes(&mut bytes);
    bytes
}

/// The `number`th record.
#[inline]
pub(crate) fn new_record<'a>(
    number: u64,
    key: &'a [u8],
    source: &'a [u8],
    payload_bytes: usize,
) -> NewRecord<'a> {
    // Starts anywhere, as payloads in received bytes do.
    let from = (number as usize * 57) % (source.len() - payload_bytes);
    NewRecord {
        kind: Kind::Put,
        content_type: 1,
        stream: 1,
        version: 1,
        timestamp_us: TIMESTAMP_US,
        previous: Link::default(),
        key,
        payload: &source[from..from + payload_bytes],
        extensions: &[],
    }
}

pub(crate) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let source = payload_source();
    let mut buffers = (0..bench.parameter(2, BATCH_BUFFERS))
        .map(|_| Buffer::new(BATCH_BYTES))
        .collect::<Result<Vec<_>, _>>()?;
    let segment_bytes = bench.parameter(2 << 20, SEGMENT_BYTES);
    for payload_bytes in [16, 256, 1024] {
        let bytes_each = record::encoded_bytes(&new_record(0, &key(0), &source, payload_bytes));
        for per_batch in [1, 100] {
            let records = bench.parameter(1_000, 2_000_000);
            bench.case(
                format!("payload {payload_bytes}, {per_batch} per batch"),
                records,
                records * bytes_each as u64,
                || {
                    append(
                        &mut buffers,
                        segment_bytes,
                        &source,
                        payload_bytes,
                        per_batch,
                        records,
                    )
                },
            );
        }
    }
    Ok(())
}

fn append(
    buffers: &mut Vec<Buffer>,
    segment_bytes: u32,
    source: &[u8],
    payload_bytes: usize,
    per_batch: u64,
    records: u64,
) -> u64 {
    let mut writer = Writer::new(
        identity(),
        1,
        ChainPoint::genesis(1),
        ready(1, segment_bytes),
    );
    let mut idle: std::collections::VecDeque<Buffer> = buffers.drain(..).collect();
    let mut number = 0;
    while number < records {
        let least_room = 4096;
        if let Err(buffer) = writer.open(
            idle.pop_front().expect("every buffer comes back"),
            least_room,
        ) {
            writer.add_segment(ready(writer.chain().segment + 1, segment_bytes));
            assert!(
                writer.open(buffer, least_room).is_ok(),
                "there is a segment now"
            );
        }
        for _ in 0..per_batch.min(records - number) {
            let key = key(number);
            let record = new_record(number, &key, source, payload_bytes);
            if record::encoded_bytes(&record) > writer.room() {
                break;
            }
            writer.append(&record);
            number += 1;
        }
        let durable = writer.chain().next_lsn - 1;
        let sealed = writer
            .seal(true, durable, TIMESTAMP_US)
            .expect("a batch is open");
        idle.push_back(sealed.buffer);
    }
    buffers.extend(idle);
    let mut checksum = Checksum::default();
    checksum.add(writer.next_lsn());
    checksum.add_bytes(&writer.chain().hash);
    checksum.finish()
}
