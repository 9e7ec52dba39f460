//! What does it cost to understand a request?
//!
//! Bytes as a busy connection receives them: requests one behind the other in a buffer. Parsing alone, reading each record once;
//! for the HTTP GET also its reply, as the shard writes it for a record of 256 bytes. No socket, no index.

use wire::http::reply::General;
use wire::http::{self, Route};
use wire::native::{self, AppendBuilder, Request};
use wire::{AppendRecord, Condition, ContentType, Durability, RecordOut};

use crate::log_append::{key, payload_source};
use crate::{Bench, Checksum};

/// Bytes of requests that are parsed again and again: what one core has received and not yet read stays in its cache.
const RECEIVED_BYTES: usize = 64 << 10;
const PAYLOAD_BYTES: usize = 256;

pub(crate) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let source = payload_source();
    for per_frame in [1, 100] {
        let (bytes, frames) = native_frames(&source, per_frame);
        let rounds = bench.parameter(2, 40_000);
        bench.case(
            format!("native append, {per_frame} per frame: per record"),
            rounds * frames * per_frame,
            rounds * bytes.len() as u64,
            || repeat(rounds, || read_native(&bytes)),
        );
    }
    let rounds = bench.parameter(2, 2_000);
    let (bytes, requests) = http_gets();
    let (total, total_bytes) = (rounds * requests, rounds * bytes.len() as u64);
    bench.case("HTTP GET: parse", total, total_bytes, || {
        repeat(rounds, || read_http(&bytes, None))
    });
    let mut out = Vec::new();
    let payload = &source[..PAYLOAD_BYTES];
    bench.case("HTTP GET: parse and reply", total, total_bytes, || {
        repeat(rounds, || read_http(&bytes, Some((payload, &mut out))))
    });
    let (bytes, requests) = http_posts(&source);
    let (total, total_bytes) = (rounds * requests, rounds * bytes.len() as u64);
    bench.case("HTTP POST of 256 bytes: parse", total, total_bytes, || {
        repeat(rounds, || read_http(&bytes, None))
    });
    Ok(())
}

fn repeat(rounds: u64, mut read: impl FnMut() -> u64) -> u64 {
    let mut checksum = Checksum::default();
    for _ in 0..rounds {
        checksum.add(read());
    }
    checksum.finish()
}

fn native_frames(source: &[u8], per_frame: u64) -> (Vec<u8>, u64) {
    let mut bytes = Vec::new();
    let mut frames = 0;
    while bytes.len() < RECEIVED_BYTES {
        let mut frame = AppendBuilder::begin(
            &mut bytes,
            frames,
            b"assertions",
            Durability::Durable,
            false,
            None,
        );
        for number in 0..per_frame {
            let number = frames * per_frame + number;
            let from = number as usize * 57 % (source.len() - PAYLOAD_BYTES);
            frame.record(&AppendRecord {
                key: &key(number),
                payload: &source[from..from + PAYLOAD_BYTES],
                content_type: ContentType::Code(1),
                tombstone: false,
                condition: Condition::None,
            });
        }
        frame.finish();
        frames += 1;
    }
    (bytes, frames)
}

fn read_native(mut bytes: &[u8]) -> u64 {
    let limits = native::Limits {
        frame_bytes_max: 16 << 20,
        payload_bytes_max: 1 << 20,
    };
    let mut checksum = Checksum::default();
    while !bytes.is_empty() {
        let native::Parsed::Request {
            consumed,
            id,
            request: Request::Append(append),
        } = native::parse(bytes, &limits)
        else {
            unreachable!("only whole appends were written");
        };
        for record in append.iter() {
            checksum.add(id ^ u64::from(record.key[0]) << 32 ^ record.payload.len() as u64);
        }
        bytes = &bytes[consumed..];
    }
    checksum.finish()
}

/// Requests as `wrk` writes them.
fn http_gets() -> (Vec<u8>, u64) {
    let mut bytes = Vec::new();
    let mut requests = 0;
    while bytes.len() < RECEIVED_BYTES {
        let request = format!(
            "GET /v1/streams/assertions/records/key:{requests:012} HTTP/1.1\r\nHost: 127.0.0.1:7500\r\n\r\n"
        );
        bytes.extend_from_slice(request.as_bytes());
        requests += 1;
    }
    (bytes, requests)
}

fn http_posts(source: &[u8]) -> (Vec<u8>, u64) {
    let mut bytes = Vec::new();
    let mut requests = 0;
    while bytes.len() < RECEIVED_BYTES {
        let head = format!(
            "POST /v1/streams/assertions/records/key:{requests:012} HTTP/1.1\r\nHost: 127.0.0.1:7500\r\n\
             Content-Type: application/json\r\nContent-Length: {PAYLOAD_BYTES}\r\n\r\n"
        );
        bytes.extend_from_slice(head.as_bytes());
        bytes.extend_from_slice(&source[..PAYLOAD_BYTES]);
        requests += 1;
    }
    (bytes, requests)
}

fn read_http(mut bytes: &[u8], mut reply: Option<(&[u8], &mut Vec<u8>)>) -> u64 {
    let limits = http::Limits {
        head_bytes_max: 16 << 10,
        body_bytes_max: 1 << 20,
        payload_bytes_max: 1 << 20,
    };
    let mut checksum = Checksum::default();
    if let Some((_, out)) = &mut reply {
        out.clear();
    }
    let mut lsn = 0;
    while !bytes.is_empty() {
        let http::Parsed::Request {
            consumed,
            request,
            keep_alive,
        } = http::parse(bytes, &limits)
        else {
            unreachable!("only whole requests were written");
        };
        match &request.route {
            Route::Get { key, .. } => checksum.add(u64::from(key[key.len() - 1])),
            Route::Append { key, body, .. } => {
                checksum.add(u64::from(key[key.len() - 1]) ^ body.len() as u64)
            }
            _ => unreachable!("only gets and appends were written"),
        }
        if let Some((payload, out)) = &mut reply {
            lsn += 1;
            let general = General {
                keep_alive,
                unix_seconds: 1_700_000_000,
            };
            http::reply::record(out, general, request.head, &record_out(payload, lsn));
        }
        bytes = &bytes[consumed..];
    }
    if let Some((_, out)) = reply {
        checksum.add(out.len() as u64);
        checksum.add(u64::from(out[out.len() - 1]));
    }
    checksum.finish()
}

/// A record as a GET finds it.
pub(crate) fn record_out(payload: &[u8], lsn: u64) -> RecordOut<'_> {
    RecordOut {
        log: 0,
        lsn,
        version: 1,
        timestamp_us: 1_700_000_000_000_000,
        tombstone: false,
        content_type: ContentType::Code(1),
        key: b"key:000000000000",
        payload,
    }
}
