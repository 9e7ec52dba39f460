//! The Python client, written from PROTOCOL.md alone, says the same bytes as the Rust one, and reads its replies.

use std::path::Path;
use std::process::Command;
use wire::native::*;
use wire::*;

const FRAMES: &str = r#"
import struct, sys
sys.path.insert(0, sys.argv[1])
from pinion_client import *
def show(op, body): print(frame(op, 7, body).hex())
show(HELLO, struct.pack("<HH", 1, 3) + b"tok")
records = [
    record(b"k", b"pay"),
    record(b"k2", b"", "image/png", if_version=6),
    record(b"k3", b"{}", "application/json", if_new=True),
    record(b"k4", tombstone=True),
]
show(APPEND, append_body("st", records, durable=False, producer=(bytes(range(1, 17)), 9)))
show(APPEND, append_body("st", records[:1], versions=False))
show(GET, named_body("s", b"key"))
show(HISTORY, named_body("s", b"key", 5, 10))
show(SCAN, named_body("s", b"cur", 10))
show(TAIL, named_body("s", b"cur", 10, 2000))
show(PING, b"")
one, end = read_record(bytes.fromhex(sys.argv[2]), 48 - 16)
print(one, end - 32)
"#;

#[test]
fn python_and_rust_write_the_same_frames() {
    let mut wanted = vec![Vec::new(); 8];
    hello(&mut wanted[0], 7, b"tok");
    let record = |key, payload, content_type, tombstone, condition| AppendRecord {
        key,
        payload,
        content_type,
        tombstone,
        condition,
    };
    let records: [AppendRecord<'_>; 4] = [
        record(
            b"k",
            b"pay",
            ContentType::OCTET_STREAM,
            false,
            Condition::None,
        ),
        record(
            b"k2",
            b"",
            ContentType::Other(b"image/png"),
            false,
            Condition::Version(6),
        ),
        record(b"k3", b"{}", ContentType::JSON, false, Condition::New),
        record(b"k4", b"", ContentType::OCTET_STREAM, true, Condition::None),
    ];
    let producer = Producer {
        id: 0x100f0e0d0c0b0a090807060504030201,
        sequence: 9,
    };
    let mut builder = AppendBuilder::begin(
        &mut wanted[1],
        7,
        b"st",
        Durability::Buffered,
        true,
        Some(producer),
    );
    records.iter().for_each(|record| builder.record(record));
    builder.finish();
    let mut builder =
        AppendBuilder::begin(&mut wanted[2], 7, b"st", Durability::Durable, false, None);
    builder.record(&records[0]);
    builder.finish();
    get(&mut wanted[3], 7, b"s", b"key");
    history(&mut wanted[4], 7, b"s", b"key", 5, 10);
    scan(&mut wanted[5], 7, b"s", b"cur", 10);
    tail(&mut wanted[6], 7, b"s", b"cur", 10, 2000);
    simple(&mut wanted[7], 7, opcode::PING);

    let mut reply = Vec::new();
    let out = RecordOut {
        log: 1,
        lsn: 2,
        version: 3,
        timestamp_us: 4,
        tombstone: false,
        content_type: ContentType::Other(b"a/b"),
        key: b"key",
        payload: b"pay",
    };
    get_reply(&mut reply, 7, ReplyMark::default(), &out);

    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let python = Command::new("python3")
        .args(["-B", "-c", FRAMES])
        .arg(&tests)
        .arg(hex(&reply))
        .output();
    let python = match python {
        Ok(python) => python,
        Err(error) => {
            println!("skipped: python3 does not run here ({error})");
            return;
        }
    };
    assert!(
        python.status.success(),
        "{}",
        String::from_utf8_lossy(&python.stderr)
    );
    let said = String::from_utf8(python.stdout).unwrap();
    let mut said = said.lines();
    for frame in &wanted {
        assert_eq!(said.next(), Some(&hex(frame)[..]));
    }
    let record = "Record(log=1, version=3, lsn=2, timestamp_us=4, tombstone=False, content_type='a/b', key=b'key', payload=b'pay')";
    assert_eq!(
        said.next(),
        Some(&format!("{record} {}", reply.len() - 32)[..])
    );
    assert_eq!(said.next(), None);
}

#[test]
fn the_client_is_short_enough_to_read() {
    let text = include_str!("pinion_client.py");
    assert!(text.lines().count() < 150);
}

/// PROTOCOL.md ends with an exchange byte by byte; it is what this code writes.
#[test]
fn the_exchange_on_the_protocol_page_is_true() {
    let page = include_str!("../PROTOCOL.md");
    let blocks: Vec<Vec<u8>> = page
        .split("## An exchange, byte by byte")
        .nth(1)
        .unwrap()
        .split("```")
        .skip(1)
        .step_by(2)
        .map(|block| {
            // Four spaces stand between a line's bytes and the remark on them.
            let drawn = block.lines().filter_map(|line| line.split("    ").next());
            let bytes = drawn
                .flat_map(str::split_whitespace)
                .map(|word| u8::from_str_radix(word, 16).unwrap());
            bytes.collect()
        })
        .collect();
    let mut request = Vec::new();
    let mut builder = AppendBuilder::begin(&mut request, 7, b"s", Durability::Durable, true, None);
    builder.record(&AppendRecord {
        key: b"k",
        payload: b"pay",
        content_type: ContentType::OCTET_STREAM,
        tombstone: false,
        condition: Condition::None,
    });
    builder.finish();
    let mut reply = Vec::new();
    let mark = ReplyMark {
        durable_lsn: 5,
        log: 0,
        epoch: 1,
    };
    let part = AppendPart {
        log: 0,
        records: 1,
        first_lsn: 5,
        durable_lsn: 5,
    };
    append_reply(&mut reply, 7, mark, Durability::Durable, &[part], &[1]);
    assert_eq!(blocks.len(), 2);
    assert_eq!(hex(&blocks[0]), hex(&request));
    assert_eq!(hex(&blocks[1]), hex(&reply));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
