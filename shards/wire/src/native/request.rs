//! Requests as clients write them, all but append.
//!
//! Each writes what it is given, so that a test can send what a server must refuse. They panic only on a name, key,
//! token or cursor over 64 KiB, which their lengths could not say.

use super::{FRAME_HEADER_BYTES, FrameHeader, PROTOCOL_VERSION, opcode};
use crate::bytes::{len_u16, len_u32};

fn frame(out: &mut Vec<u8>, id: u64, opcode: u8, parts: &[&[u8]]) {
    let body_bytes: usize = parts.iter().map(|part| part.len()).sum();
    let header = FrameHeader {
        frame_bytes: len_u32(FRAME_HEADER_BYTES + body_bytes),
        opcode,
        flags: 0,
        code: 0,
        request_id: id,
    };
    out.reserve(FRAME_HEADER_BYTES + body_bytes);
    out.extend_from_slice(&header.to_bytes());
    for part in parts {
        out.extend_from_slice(part);
    }
}

fn lengths(first: &[u8], second: &[u8]) -> [u8; 4] {
    let [a, b] = len_u16(first).to_le_bytes();
    let [c, d] = len_u16(second).to_le_bytes();
    [a, b, c, d]
}

/// Introduces the client; first on every connection. `token` is empty where the server needs none.
pub fn hello(out: &mut Vec<u8>, id: u64, token: &[u8]) {
    let parts: [&[u8]; 3] = [
        &PROTOCOL_VERSION.to_le_bytes(),
        &len_u16(token).to_le_bytes(),
        token,
    ];
    frame(out, id, opcode::HELLO, &parts);
}

/// Asks for the newest record of a key.
pub fn get(out: &mut Vec<u8>, id: u64, stream: &[u8], key: &[u8]) {
    frame(out, id, opcode::GET, &[&lengths(stream, key), stream, key]);
}

/// Asks for records of a key, newest first: versions below `before` (0 = from the newest), at most `limit` (0 = 100).
pub fn history(out: &mut Vec<u8>, id: u64, stream: &[u8], key: &[u8], before: u32, limit: u32) {
    let parts: [&[u8]; 5] = [
        &lengths(stream, key),
        &before.to_le_bytes(),
        &limit.to_le_bytes(),
        stream,
        key,
    ];
    frame(out, id, opcode::HISTORY, &parts);
}

/// Asks for a page of a stream. `cursor` is what the page before gave; empty = from the beginning.
pub fn scan(out: &mut Vec<u8>, id: u64, stream: &[u8], cursor: &[u8], limit: u32) {
    let parts: [&[u8]; 4] = [
        &lengths(stream, cursor),
        &limit.to_le_bytes(),
        stream,
        cursor,
    ];
    frame(out, id, opcode::SCAN, &parts);
}

/// Like [`scan`], and waits up to `wait_ms` for records where there are none yet.
pub fn tail(out: &mut Vec<u8>, id: u64, stream: &[u8], cursor: &[u8], limit: u32, wait_ms: u32) {
    let parts: [&[u8]; 5] = [
        &lengths(stream, cursor),
        &limit.to_le_bytes(),
        &wait_ms.to_le_bytes(),
        stream,
        cursor,
    ];
    frame(out, id, opcode::TAIL, &parts);
}

/// A request without fields: ping, topology, streams.
pub fn simple(out: &mut Vec<u8>, id: u64, opcode: u8) {
    frame(out, id, opcode, &[]);
}
