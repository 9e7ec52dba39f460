//! Exact bytes of every native frame, and that every one of them reads back as what was written.

use wire::native::*;
use wire::*;

const LIMITS: Limits = Limits {
    frame_bytes_max: 1 << 20,
    payload_bytes_max: 1 << 16,
};

/// Bytes from a drawing: words of hex digits (spaces and line breaks between bytes), and 'text'.
fn bytes(drawing: &str) -> Vec<u8> {
    let mut out = Vec::new();
    for word in drawing.split_whitespace() {
        if let Some(text) = word.strip_prefix('\'') {
            out.extend_from_slice(text.trim_end_matches('\'').as_bytes());
        } else {
            assert!(word.len().is_multiple_of(2), "{word}");
            for at in (0..word.len()).step_by(2) {
                out.push(u8::from_str_radix(&word[at..at + 2], 16).unwrap());
            }
        }
    }
    out
}

#[track_caller]
fn check(written: &[u8], drawing: &str) {
    assert_eq!(hex(written), hex(&bytes(drawing)));
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x} ")).collect()
}

fn plain<'a>(key: &'a [u8], payload: &'a [u8]) -> AppendRecord<'a> {
    AppendRecord {
        key,
        payload,
        content_type: ContentType::OCTET_STREAM,
        tombstone: false,
        condition: Condition::None,
    }
}

const MARK: ReplyMark = ReplyMark {
    durable_lsn: 0x0102,
    log: 3,
    epoch: 4,
};
/// MARK as it stands in every reply.
const MARK_BYTES: &str = "0201000000000000 03000000 04000000 ";

#[test]
fn requests_but_append() {
    let mut out = Vec::new();
    hello(&mut out, 0x0807060504030201, b"tok");
    check(&out, "17000000 01 00 0000 0102030405060708 0100 0300 'tok'");
    out.clear();
    get(&mut out, 7, b"s", b"key");
    check(
        &out,
        "18000000 03 00 0000 0700000000000000 0100 0300 's' 'key'",
    );
    out.clear();
    history(&mut out, 7, b"s", b"key", 5, 10);
    check(
        &out,
        "20000000 04 00 0000 0700000000000000 0100 0300 05000000 0a000000 's' 'key'",
    );
    out.clear();
    scan(&mut out, 7, b"s", b"cur", 10);
    check(
        &out,
        "1c000000 05 00 0000 0700000000000000 0100 0300 0a000000 's' 'cur'",
    );
    out.clear();
    tail(&mut out, 7, b"s", b"", 10, 2000);
    check(
        &out,
        "1d000000 06 00 0000 0700000000000000 0100 0000 0a000000 d0070000 's'",
    );
    for (op, drawn) in [
        (opcode::PING, "07"),
        (opcode::TOPOLOGY, "08"),
        (opcode::STREAMS, "09"),
    ] {
        out.clear();
        simple(&mut out, 7, op);
        check(&out, &format!("10000000 {drawn} 00 0000 0700000000000000"));
    }
}

#[test]
fn append() {
    let mut out = Vec::new();
    let producer = Producer {
        id: 0x100f0e0d0c0b0a090807060504030201,
        sequence: 9,
    };
    let records = [
        plain(b"k", b"pay"),
        AppendRecord {
            condition: Condition::Version(6),
            content_type: ContentType::Other(b"image/png"),
            ..plain(b"k2", b"")
        },
        AppendRecord {
            condition: Condition::New,
            content_type: ContentType::JSON,
            ..plain(b"k3", b"{}")
        },
        AppendRecord {
            tombstone: true,
            ..plain(b"k4", b"")
        },
    ];
    let mut builder = AppendBuilder::begin(
        &mut out,
        7,
        b"st",
        Durability::Buffered,
        true,
        Some(producer),
    );
    for record in &records {
        builder.record(record);
    }
    let bytes = builder.bytes();
    assert_eq!(builder.finish(), 4);
    assert_eq!(bytes, out.len());
    let body = "0100 00 00 03000000 'k' 'pay' \
         0200 ff 02 00000000 06000000 09 'image/png' 'k2' \
         0200 01 04 02000000 'k3' '{}' \
         0200 00 01 00000000 'k4'";
    check(
        &out,
        &format!(
            "6c000000 02 00 0000 0700000000000000 \
             01 03 0200 04000000 0102030405060708090a0b0c0d0e0f10 0900000000000000 'st' {body}"
        ),
    );
    let Parsed::Request {
        consumed,
        id: 7,
        request: Request::Append(append),
    } = parse(&out, &LIMITS)
    else {
        panic!("not an append");
    };
    assert_eq!(consumed, out.len());
    assert_eq!(append.stream, b"st");
    assert_eq!(append.durability, Durability::Buffered);
    assert!(append.want_versions);
    assert_eq!(append.producer, Some(producer));
    assert_eq!(append.records, 4);
    check(append.body(), body);
    assert_eq!(append.iter().collect::<Vec<_>>(), records);
}

#[test]
fn a_frame_split_by_record_is_put_together_again() {
    let mut out = Vec::new();
    let mut builder = AppendBuilder::begin(&mut out, 1, b"s", Durability::Durable, false, None);
    let keys: Vec<String> = (0..20).map(|i| format!("key{i}")).collect();
    for (i, key) in keys.iter().enumerate() {
        let condition = if i % 3 == 0 {
            Condition::Version(i as u32 + 1)
        } else {
            Condition::New
        };
        builder.record(&AppendRecord {
            condition,
            ..plain(key.as_bytes(), &out_payload(i))
        });
    }
    builder.finish();
    let Parsed::Request {
        request: Request::Append(append),
        ..
    } = parse(&out, &LIMITS)
    else {
        panic!("not an append");
    };
    let mut halves = [Vec::new(), Vec::new()];
    let mut expected = [Vec::new(), Vec::new()];
    let mut iter = append.iter();
    while let Some((raw, record)) = iter.next_raw() {
        let half = usize::from(slot::shard_of_slot(slot::slot_of(record.key), 2));
        halves[half].extend_from_slice(raw);
        expected[half].push(record);
    }
    assert_eq!(halves[0].len() + halves[1].len(), append.body().len());
    for (half, expected) in halves.iter().zip(expected) {
        let count = expected.len() as u32;
        let part = Append::from_parts(append.stream, append.durability, false, None, count, half);
        assert_eq!(part.iter().collect::<Vec<_>>(), expected);
        // A count that is too high, or bytes that are cut, end the iteration instead of failing it.
        assert_eq!(AppendIter::new(half, count + 1).count(), expected.len());
        assert_eq!(
            AppendIter::new(&half[..half.len() - 1], count).count(),
            expected.len() - 1
        );
    }
}

fn out_payload(i: usize) -> Vec<u8> {
    vec![i as u8; i]
}

#[test]
fn append_reply_bytes() {
    let mut out = Vec::new();
    let parts = [AppendPart {
        log: 1,
        records: 2,
        first_lsn: 3,
        durable_lsn: 4,
    }];
    append_reply(&mut out, 7, MARK, Durability::Buffered, &parts, &[5, 6]);
    check(
        &out,
        &format!(
            "48000000 82 00 0000 0700000000000000 {MARK_BYTES} 01 00 0100 02000000 \
             01000000 02000000 0300000000000000 0400000000000000 05000000 06000000"
        ),
    );
    assert_eq!(peek_reply(&out), Some((7, opcode::APPEND, 0, out.len())));
    let Ok(Some((
        7,
        opcode::APPEND,
        Reply::Append {
            mark,
            durability,
            parts: read,
            versions,
        },
        used,
    ))) = parse_reply(&out)
    else {
        panic!("not an append reply");
    };
    assert_eq!(
        (mark, durability, used),
        (MARK, Durability::Buffered, out.len())
    );
    assert_eq!((&read[..], &versions[..]), (&parts[..], &[5, 6][..]));
}

fn two_records() -> [RecordOut<'static>; 2] {
    let first = RecordOut {
        log: 1,
        lsn: 2,
        version: 3,
        timestamp_us: 4,
        tombstone: false,
        content_type: ContentType::TEXT_PLAIN,
        key: b"key",
        payload: b"payload",
    };
    let second = RecordOut {
        version: 4,
        tombstone: true,
        content_type: ContentType::Other(b"a/b"),
        payload: b"",
        ..first
    };
    [first, second]
}

const TWO_RECORDS: [&str; 2] = [
    "01000000 03000000 0200000000000000 0400000000000000 07000000 0300 02 00 'key' 'payload'",
    "01000000 04000000 0200000000000000 0400000000000000 00000000 0300 ff 01 03 'a/b' 'key'",
];

#[test]
fn get_reply_bytes() {
    for (record, drawn, size) in [
        (two_records()[0], TWO_RECORDS[0], "4a000000"),
        (two_records()[1], TWO_RECORDS[1], "47000000"),
    ] {
        let mut out = Vec::new();
        get_reply(&mut out, 7, MARK, &record);
        check(
            &out,
            &format!("{size} 83 00 0000 0700000000000000 {MARK_BYTES} {drawn}"),
        );
        let Ok(Some((
            7,
            opcode::GET,
            Reply::Get {
                mark: MARK,
                record: read,
            },
            _,
        ))) = parse_reply(&out)
        else {
            panic!("not a get reply");
        };
        assert_eq!(read, record);
    }
}

#[test]
fn records_reply_bytes() {
    let mut out = b"before".to_vec();
    let mut reply = RecordsReply::begin(&mut out, 7, opcode::SCAN, MARK);
    for record in two_records() {
        reply.record(&mut out, &record);
    }
    assert_eq!(reply.bytes(&out), out.len() - 6);
    reply.finish(&mut out, b"cursor");
    let [first, second] = TWO_RECORDS;
    check(
        &out[6..],
        &format!(
            "7d000000 85 00 0000 0700000000000000 {MARK_BYTES} 02000000 {first} {second} 0600 'cursor'"
        ),
    );
    let Ok(Some((
        7,
        opcode::SCAN,
        Reply::Records {
            mark: MARK,
            records,
            cursor,
        },
        _,
    ))) = parse_reply(&out[6..])
    else {
        panic!("not a records reply");
    };
    assert_eq!(records, two_records());
    assert_eq!(cursor, b"cursor");
}

#[test]
fn hello_and_bytes_replies() {
    let topology = Topology {
        store: "st".to_owned(),
        map_epoch: 5,
        shards: vec![ShardRoute {
            shard: 1,
            log: 2,
            slot_first: 3,
            slot_last: 4,
            address: "::1".to_owned(),
            native_port: 0x1234,
        }],
    };
    let mut body = Vec::new();
    topology.encode(&mut body);
    let mut out = Vec::new();
    bytes_reply(&mut out, 7, opcode::HELLO, MARK, &body);
    check(
        &out,
        &format!(
            "3f000000 81 00 0000 0700000000000000 {MARK_BYTES} 0500000000000000 0100 0200 'st' \
             0100 3412 0300 0400 02000000 0300 '::1'"
        ),
    );
    let Ok(Some((
        7,
        opcode::HELLO,
        Reply::Hello {
            mark: MARK,
            topology: read,
        },
        _,
    ))) = parse_reply(&out)
    else {
        panic!("not a hello reply");
    };
    assert_eq!(read, topology);
    out.clear();
    bytes_reply(&mut out, 7, opcode::PING, MARK, b"");
    check(
        &out,
        &format!("20000000 87 00 0000 0700000000000000 {MARK_BYTES}"),
    );
    let Ok(Some((
        7,
        opcode::PING,
        Reply::Bytes {
            mark: MARK,
            body: b"",
        },
        32,
    ))) = parse_reply(&out)
    else {
        panic!("not a ping reply");
    };
}

#[test]
fn error_reply_bytes() {
    for (retry_after_ms, drawn) in [
        (None, "ffffffff"),
        (Some(0), "00000000"),
        (Some(250), "fa000000"),
    ] {
        let refusal = Refusal {
            code: Code::Overloaded,
            message: "wait".to_owned(),
            retry_after_ms,
        };
        let mut out = Vec::new();
        error_reply(&mut out, 7, opcode::GET, MARK, &refusal);
        check(
            &out,
            &format!("2a000000 83 00 0700 0700000000000000 {MARK_BYTES} {drawn} 0400 'wait'"),
        );
        assert_eq!(peek_reply(&out), Some((7, opcode::GET, 7, out.len())));
        let Ok(Some((
            7,
            opcode::GET,
            Reply::Error {
                mark: MARK,
                refusal: read,
            },
            _,
        ))) = parse_reply(&out)
        else {
            panic!("not an error reply");
        };
        assert_eq!(read, refusal);
    }
}
