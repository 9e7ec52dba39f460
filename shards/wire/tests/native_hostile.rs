//! Native frames that were not written by a well-meaning client, and well-meant ones that arrive in pieces.

use wire::native::*;
use wire::*;

const LIMITS: Limits = Limits {
    frame_bytes_max: 4096,
    payload_bytes_max: 2048,
};

fn frame(opcode: u8, body: &[u8]) -> Vec<u8> {
    let header = FrameHeader {
        frame_bytes: (FRAME_HEADER_BYTES + body.len()) as u32,
        opcode,
        flags: 0,
        code: 0,
        request_id: 7,
    };
    [&header.to_bytes()[..], body].concat()
}

/// One line for what `parse` found; of good requests the debug form.
fn shown(bytes: &[u8]) -> String {
    match parse(bytes, &LIMITS) {
        Parsed::Incomplete { needed } => format!("incomplete {needed}"),
        Parsed::Request {
            consumed,
            id,
            request,
        } => {
            let records = match &request {
                Request::Append(append) => format!("{:?}", append.iter().collect::<Vec<_>>()),
                _ => String::new(),
            };
            format!("{consumed} {id} {request:?} {records}")
        }
        Parsed::Refused {
            consumed,
            id,
            opcode,
            refusal,
        } => {
            assert_eq!(consumed, bytes.len(), "the frame is consumed whole");
            assert_eq!(id, 7);
            assert_eq!(opcode, bytes[4]);
            format!("refused {}: {}", refusal.code.name(), refusal.message)
        }
        Parsed::Broken(refusal) => format!("broken {}: {}", refusal.code.name(), refusal.message),
    }
}

#[track_caller]
fn check(bytes: &[u8], expected: &str) {
    let found = shown(bytes);
    assert!(
        found.starts_with(expected),
        "\n found: {found}\nwanted: {expected}"
    );
}

/// One frame of every kind; appends with every kind of record.
fn every_request() -> Vec<Vec<u8>> {
    let mut out = vec![Vec::new(); 9];
    hello(&mut out[0], 7, b"token");
    get(&mut out[1], 7, b"stream", b"key");
    history(&mut out[2], 7, b"stream", b"key", 5, 6);
    scan(&mut out[3], 7, b"stream", b"cursor", 6);
    tail(&mut out[4], 7, b"stream", b"cursor", 6, 1000);
    simple(&mut out[5], 7, opcode::PING);
    simple(&mut out[6], 7, opcode::TOPOLOGY);
    simple(&mut out[7], 7, opcode::STREAMS);
    let producer = Some(Producer {
        id: 1 << 100,
        sequence: 3,
    });
    let mut builder = AppendBuilder::begin(
        &mut out[8],
        7,
        b"stream",
        Durability::Durable,
        true,
        producer,
    );
    for condition in [Condition::None, Condition::New, Condition::Version(1)] {
        for content_type in [ContentType::JSON, ContentType::Other(b"a/b")] {
            for (tombstone, payload) in [(true, &b""[..]), (false, b"payload")] {
                builder.record(&AppendRecord {
                    key: b"key",
                    payload,
                    content_type,
                    tombstone,
                    condition,
                });
            }
        }
    }
    builder.finish();
    out
}

#[test]
fn every_split_asks_for_more_and_then_reads_the_same() {
    for request in every_request() {
        let whole = shown(&request);
        assert!(
            whole.starts_with(&format!("{} 7 ", request.len())),
            "{whole}"
        );
        for split in 0..request.len() {
            let needed = if split < FRAME_HEADER_BYTES {
                FRAME_HEADER_BYTES
            } else {
                request.len()
            };
            assert_eq!(shown(&request[..split]), format!("incomplete {needed}"));
        }
        // What follows changes nothing.
        let followed = [&request[..], b"next frame"].concat();
        assert_eq!(shown(&followed), whole);
    }
}

#[test]
fn pipelined_frames_are_read_one_by_one_a_byte_at_a_time() {
    let requests = every_request();
    let (mut received, mut found) = (Vec::new(), Vec::new());
    for byte in requests.concat() {
        received.push(byte);
        if let Parsed::Request { consumed, .. } = parse(&received, &LIMITS) {
            found.push(shown(&received));
            received.drain(..consumed);
        }
    }
    assert!(received.is_empty());
    let wanted: Vec<_> = requests.iter().map(|request| shown(request)).collect();
    assert_eq!(found, wanted);
}

#[test]
fn a_frame_cut_short_inside_is_refused_and_never_read_beyond() {
    for request in every_request() {
        for cut in FRAME_HEADER_BYTES..request.len() {
            let mut frame = request[..cut].to_vec();
            frame[..4].copy_from_slice(&(cut as u32).to_le_bytes());
            check(&frame, "refused malformed");
            // The rest of the bytes behind it are another frame's.
            let longer = [&frame[..], &request[cut..]].concat();
            assert!(
                matches!(parse(&longer, &LIMITS), Parsed::Refused { consumed, .. } if consumed == cut)
            );
        }
        let mut longer = [&request[..], b"x"].concat();
        longer[..4].copy_from_slice(&(request.len() as u32 + 1).to_le_bytes());
        check(&longer, "refused malformed");
    }
}

#[test]
fn frame_lengths() {
    for (frame_bytes, expected) in [
        (0, "broken malformed: frame_bytes is 0"),
        (1, "broken malformed: frame_bytes is 1"),
        (15, "broken malformed: frame_bytes is 15"),
        (16, "16 7 Ping"),
        (17, "incomplete 17"),
        (4096, "incomplete 4096"),
        (
            4097,
            "broken too_large: frame_bytes is 4097: keep frames within 4096",
        ),
        (u32::MAX, "broken too_large"),
    ] {
        let mut bytes = frame(opcode::PING, b"");
        bytes[..4].copy_from_slice(&u32::to_le_bytes(frame_bytes));
        check(&bytes, expected);
    }
    check(
        b"GET / HTTP/1.1\r\n\r\n",
        "broken malformed: this is the native port and the bytes are HTTP",
    );
}

#[test]
fn headers() {
    for opcode in [0, 10, 42, 0x80 | opcode::PING, 255] {
        check(
            &frame(opcode, b""),
            &format!("refused unsupported: opcode {opcode} is not known"),
        );
    }
    for at in [5, 6, 7] {
        for op in [opcode::PING, opcode::APPEND] {
            let mut bytes = frame(op, b"");
            bytes[at] = 1;
            check(&bytes, "refused malformed: flags and code");
        }
    }
}

#[test]
fn names_keys_and_limits() {
    let key = |bytes: usize| {
        let mut out = Vec::new();
        get(&mut out, 7, b"s", &vec![b'k'; bytes]);
        shown(&out)
    };
    assert!(key(0).starts_with("refused malformed: key is empty"));
    assert!(key(1).contains(" Get "));
    assert!(key(1024).contains(" Get "));
    assert!(key(1025).starts_with("refused too_large: key has 1025 bytes"));
    let stream = |name: &[u8]| {
        let mut out = Vec::new();
        scan(&mut out, 7, name, b"", 0);
        shown(&out)
    };
    assert!(stream(b"").starts_with("refused malformed: stream name \"\" (0 bytes)"));
    assert!(stream(b"aZ09._:-").contains("limit: 100"));
    assert!(stream(&[b'a'; 128]).contains("Scan"));
    assert!(stream(&[b'a'; 129]).starts_with("refused malformed: stream name"));
    for bad in [&b"a b"[..], b"a/b", b"\xff", b"a\0", b"a{b}"] {
        assert!(
            stream(bad).starts_with("refused malformed: stream name"),
            "{bad:?}"
        );
    }
    let mut out = Vec::new();
    tail(&mut out, 7, b"s", b"", u32::MAX, u32::MAX);
    assert!(shown(&out).contains("limit: 10000, wait_ms: 60000"));
}

/// A one-record append whose head and record head are given as they are.
struct Hostile {
    durability: u8,
    flags: u8,
    stream_bytes: u16,
    records: u32,
    key_bytes: u16,
    content_type: u8,
    record_flags: u8,
    payload_bytes: u32,
    rest: &'static [u8],
}

const GOOD: Hostile = Hostile {
    durability: 0,
    flags: 0,
    stream_bytes: 1,
    records: 1,
    key_bytes: 1,
    content_type: 0,
    record_flags: 0,
    payload_bytes: 2,
    rest: b"kpp",
};

impl Hostile {
    #[track_caller]
    fn check(&self, expected: &str) {
        let mut body = vec![self.durability, self.flags];
        body.extend_from_slice(&self.stream_bytes.to_le_bytes());
        body.extend_from_slice(&self.records.to_le_bytes());
        body.push(b's');
        body.extend_from_slice(&self.key_bytes.to_le_bytes());
        body.extend_from_slice(&[self.content_type, self.record_flags]);
        body.extend_from_slice(&self.payload_bytes.to_le_bytes());
        body.extend_from_slice(self.rest);
        check(&frame(opcode::APPEND, &body), expected);
    }
}

#[test]
fn append_counts_and_lengths() {
    GOOD.check("36 7 Append");
    for (records, expected) in [
        (0, "refused malformed: append has no records"),
        (
            2,
            "refused malformed: record 2 of 2: the frame ends inside it",
        ),
        (
            u32::MAX,
            "refused malformed: record 2 of 4294967295: the frame ends inside it",
        ),
    ] {
        Hostile { records, ..GOOD }.check(expected);
    }
    for (key_bytes, expected) in [
        (0, "refused malformed: record 1 of 1: key is empty"),
        (
            2,
            "refused malformed: record 1 of 1: the frame ends inside it",
        ),
        (
            1024,
            "refused malformed: record 1 of 1: the frame ends inside it",
        ),
        (1025, "refused too_large: record 1 of 1: key has 1025 bytes"),
        (
            u16::MAX,
            "refused too_large: record 1 of 1: key has 65535 bytes",
        ),
    ] {
        Hostile { key_bytes, ..GOOD }.check(expected);
    }
    for (payload_bytes, expected) in [
        (0, "refused malformed: append goes on for 2 bytes"),
        (1, "refused malformed: append goes on for 1 bytes"),
        (
            3,
            "refused malformed: record 1 of 1: the frame ends inside it",
        ),
        (
            2048,
            "refused malformed: record 1 of 1: the frame ends inside it",
        ),
        (
            2049,
            "refused too_large: record 1 of 1: payload has 2049 bytes: keep payloads within 2048",
        ),
        (
            u32::MAX,
            "refused too_large: record 1 of 1: payload has 4294967295 bytes",
        ),
    ] {
        Hostile {
            payload_bytes,
            ..GOOD
        }
        .check(expected);
    }
    for (stream_bytes, expected) in [
        (0, "refused malformed: stream name \"\""),
        (2, "refused malformed: stream name"),
        (1000, "refused malformed: append frame ends"),
        (u16::MAX, "refused malformed: append frame ends"),
    ] {
        Hostile {
            stream_bytes,
            ..GOOD
        }
        .check(expected);
    }
}

#[test]
fn append_codes_and_flags() {
    Hostile {
        durability: 1,
        ..GOOD
    }
    .check("36 7 Append");
    Hostile {
        durability: 2,
        ..GOOD
    }
    .check("refused malformed: durability is neither");
    for bit in 2..8 {
        Hostile {
            flags: 1 << bit,
            ..GOOD
        }
        .check("refused malformed: append has reserved flags");
    }
    for bit in 3..8 {
        Hostile {
            record_flags: 1 << bit,
            ..GOOD
        }
        .check("refused malformed: record 1 of 1: reserved flags");
    }
    Hostile {
        record_flags: 1,
        ..GOOD
    }
    .check("refused malformed: record 1 of 1: tombstone has a payload");
    Hostile {
        record_flags: 6,
        ..GOOD
    }
    .check("refused malformed: record 1 of 1: both conditions");
    Hostile {
        record_flags: 6,
        rest: b"\x01\0\0\0kpp",
        ..GOOD
    }
    .check("refused malformed: record 1 of 1: both conditions");
    Hostile {
        record_flags: 2,
        ..GOOD
    }
    .check("refused malformed: record 1 of 1: the frame ends inside it");
    Hostile {
        record_flags: 2,
        rest: b"\0\0\0\0kpp",
        ..GOOD
    }
    .check("refused malformed: record 1 of 1: expected version is 0");
    Hostile {
        record_flags: 2,
        rest: b"\x01\0\0\0kpp",
        ..GOOD
    }
    .check("40 7 Append");
    for content_type in [4, 5, 254] {
        Hostile {
            content_type,
            ..GOOD
        }
        .check(&format!(
            "refused malformed: record 1 of 1: content type {content_type} is not known"
        ));
        Hostile {
            content_type,
            record_flags: 2,
            rest: b"\x01\0\0\0kpp",
            ..GOOD
        }
        .check(&format!(
            "refused malformed: record 1 of 1: content type {content_type} is not known"
        ));
    }
    for (rest, expected) in [
        (&b"\x03a/bkpp"[..], "40 7 Append"),
        (
            b"\0kpp",
            "refused malformed: record 1 of 1: content type is not 1 to 255",
        ),
        (
            b"\x03a\r\nkpp",
            "refused malformed: record 1 of 1: content type is not 1 to 255",
        ),
        (
            b"\xffkpp",
            "refused malformed: record 1 of 1: the frame ends inside it",
        ),
        (
            b"",
            "refused malformed: record 1 of 1: the frame ends inside it",
        ),
    ] {
        Hostile {
            content_type: 255,
            rest,
            ..GOOD
        }
        .check(expected);
    }
}

#[test]
fn replies_that_lie_are_errors_and_cut_ones_are_not_whole() {
    let mark = ReplyMark::default();
    let record = RecordOut {
        log: 0,
        lsn: 1,
        version: 1,
        timestamp_us: 1,
        tombstone: false,
        content_type: ContentType::Other(b"a/b"),
        key: b"k",
        payload: b"p",
    };
    let mut replies = vec![Vec::new(); 4];
    let part = AppendPart {
        log: 0,
        records: 1,
        first_lsn: 1,
        durable_lsn: 1,
    };
    append_reply(&mut replies[0], 7, mark, Durability::Durable, &[part], &[1]);
    get_reply(&mut replies[1], 7, mark, &record);
    let mut records = RecordsReply::begin(&mut replies[2], 7, opcode::SCAN, mark);
    records.record(&mut replies[2], &record);
    records.finish(&mut replies[2], b"cursor");
    error_reply(
        &mut replies[3],
        7,
        opcode::GET,
        mark,
        &Refusal::new(Code::NotFound, "no"),
    );
    for reply in replies {
        assert!(matches!(parse_reply(&reply), Ok(Some((7, _, _, used))) if used == reply.len()));
        for cut in 0..reply.len() {
            assert!(
                matches!(parse_reply(&reply[..cut]), Ok(None)),
                "cut at {cut}"
            );
            assert_eq!(peek_reply(&reply[..cut]), None);
            let mut lying = reply[..cut].to_vec();
            if cut >= FRAME_HEADER_BYTES {
                lying[..4].copy_from_slice(&(cut as u32).to_le_bytes());
                assert!(parse_reply(&lying).is_err(), "cut at {cut}");
            }
        }
        let mut longer = [&reply[..], b"x"].concat();
        longer[..4].copy_from_slice(&(reply.len() as u32 + 1).to_le_bytes());
        assert!(parse_reply(&longer).is_err());
    }
    // Made-up counts reserve nothing.
    let mut lying = Vec::new();
    let records = RecordsReply::begin(&mut lying, 7, opcode::SCAN, mark);
    records.finish(&mut lying, b"");
    lying[32..36].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(parse_reply(&lying).is_err());
}

#[test]
fn records_at_their_bounds_are_taken_and_one_beyond_is_not() {
    for (key_bytes, payload_bytes, expected) in [
        (1, 0, "34 7 Append"),
        (1024, 2048, "3105 7 Append"),
        (1025, 2048, "refused too_large: record 1 of 1: key has 1025"),
        (
            1024,
            2049,
            "refused too_large: record 1 of 1: payload has 2049",
        ),
    ] {
        let (key, payload) = (vec![b'k'; key_bytes], vec![b'p'; payload_bytes]);
        let record = AppendRecord {
            key: &key,
            payload: &payload,
            content_type: ContentType::OCTET_STREAM,
            tombstone: false,
            condition: Condition::None,
        };
        let mut out = Vec::new();
        let mut builder = AppendBuilder::begin(&mut out, 7, b"s", Durability::Durable, false, None);
        builder.record(&record);
        builder.finish();
        let found = shown(&out);
        assert!(found.starts_with(expected), "{found:.80}");
        let refused = record.check(LIMITS.payload_bytes_max).is_err();
        assert_eq!(refused, expected.starts_with("refused"));
    }
}
