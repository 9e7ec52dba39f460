//! No bytes make a parser panic; what is encoded parses to the same.

use proptest::collection::vec;
use proptest::prelude::*;
use wire::native::*;
use wire::*;

const NATIVE: Limits = Limits {
    frame_bytes_max: 1 << 20,
    payload_bytes_max: 1 << 16,
};
const HTTP: http::Limits = http::Limits {
    head_bytes_max: 4096,
    body_bytes_max: 4096,
    payload_bytes_max: 2048,
};

#[derive(Clone, Debug)]
struct Owned {
    key: Vec<u8>,
    payload: Vec<u8>,
    content_type: Result<u8, String>,
    tombstone: bool,
    condition: Condition,
}

impl Owned {
    fn borrow(&self) -> AppendRecord<'_> {
        AppendRecord {
            key: &self.key,
            payload: if self.tombstone { &[] } else { &self.payload },
            content_type: self.content_type(),
            tombstone: self.tombstone,
            condition: self.condition,
        }
    }

    fn content_type(&self) -> ContentType<'_> {
        match &self.content_type {
            Ok(code) => ContentType::Code(*code),
            Err(text) => ContentType::Other(text.as_bytes()),
        }
    }
}

fn owned() -> impl Strategy<Value = Owned> {
    let content_type = prop_oneof![(0u8..4).prop_map(Ok), "[ -~]{1,40}".prop_map(Err)];
    let condition = prop_oneof![
        Just(Condition::None),
        Just(Condition::New),
        (1u32..).prop_map(Condition::Version)
    ];
    (
        vec(any::<u8>(), 1..40),
        vec(any::<u8>(), 0..200),
        content_type,
        any::<bool>(),
        condition,
    )
        .prop_map(|(key, payload, content_type, tombstone, condition)| Owned {
            key,
            payload,
            content_type,
            tombstone,
            condition,
        })
}

proptest! {
    #[test]
    fn append_reads_back(
        stream in "[A-Za-z0-9._:-]{1,128}",
        id: u64,
        buffered: bool,
        want_versions: bool,
        producer: Option<(u128, u64)>,
        records in vec(owned(), 1..20),
    ) {
        let durability = if buffered { Durability::Buffered } else { Durability::Durable };
        let producer = producer.map(|(id, sequence)| Producer { id, sequence });
        let mut out = Vec::new();
        let mut builder = AppendBuilder::begin(&mut out, id, stream.as_bytes(), durability, want_versions, producer);
        for record in &records {
            prop_assert_eq!(record.borrow().check(NATIVE.payload_bytes_max), Ok(()));
            builder.record(&record.borrow());
        }
        prop_assert_eq!(builder.finish() as usize, records.len());
        let Parsed::Request { consumed, id: read_id, request: Request::Append(append) } = parse(&out, &NATIVE) else {
            return Err(TestCaseError::fail("not an append"));
        };
        prop_assert_eq!((consumed, read_id), (out.len(), id));
        prop_assert_eq!((append.stream, append.durability, append.want_versions, append.producer),
            (stream.as_bytes(), durability, want_versions, producer));
        let wanted: Vec<_> = records.iter().map(Owned::borrow).collect();
        prop_assert_eq!(append.iter().collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn an_append_with_any_byte_changed_is_read_or_refused_whole(
        records in vec(owned(), 1..8), at: prop::sample::Index, byte: u8,
    ) {
        let mut out = Vec::new();
        let mut builder = AppendBuilder::begin(&mut out, 1, b"s", Durability::Durable, true, None);
        records.iter().for_each(|record| builder.record(&record.borrow()));
        builder.finish();
        let at = at.index(out.len());
        out[at] = byte;
        match parse(&out, &NATIVE) {
            Parsed::Request { request: Request::Append(append), .. } => {
                prop_assert_eq!(append.iter().count(), append.records as usize);
                for record in append.iter() {
                    prop_assert_eq!(record.check(NATIVE.payload_bytes_max), Ok(()));
                }
            }
            Parsed::Refused { consumed, .. } | Parsed::Request { consumed, .. } => prop_assert!(consumed <= out.len()),
            Parsed::Incomplete { needed } => prop_assert!(needed > out.len()),
            Parsed::Broken(_) => prop_assert!(at < 4),
        }
    }

    #[test]
    fn records_read_back(records in vec((owned(), any::<(u32, u64, u32, u64)>()), 0..10), cursor in vec(any::<u8>(), 0..50)) {
        let mark = ReplyMark { durable_lsn: 1, log: 2, epoch: 3 };
        let mut out = Vec::new();
        let mut reply = RecordsReply::begin(&mut out, 9, opcode::TAIL, mark);
        let wanted: Vec<_> = records.iter().map(|(record, (log, lsn, version, timestamp_us))| RecordOut {
            log: *log, lsn: *lsn, version: *version, timestamp_us: *timestamp_us, tombstone: record.tombstone,
            content_type: record.content_type(), key: &record.key, payload: &record.payload,
        }).collect();
        wanted.iter().for_each(|record| reply.record(&mut out, record));
        reply.finish(&mut out, &cursor);
        match parse_reply(&out) {
            Ok(Some((9, opcode::TAIL, Reply::Records { mark: read_mark, records, cursor: read_cursor }, used))) => {
                prop_assert_eq!((read_mark, used), (mark, out.len()));
                prop_assert_eq!(records, wanted);
                prop_assert_eq!(read_cursor, &cursor[..]);
            }
            other => return Err(TestCaseError::fail(format!("{other:?}"))),
        }
    }

    #[test]
    fn a_json_line_of_any_record_is_one_line_of_json(record in owned(), json in "\\PC{0,20}") {
        let json = format!("[\n{}\r\n]", serde_json::to_string(&json).unwrap());
        for payload in [&record.payload[..], json.as_bytes()] {
            let mut out = Vec::new();
            ndjson::write_record(&mut out, &RecordOut {
                log: 1, lsn: 2, version: 3, timestamp_us: 4, tombstone: record.tombstone,
                content_type: record.content_type(), key: &record.key, payload,
            });
            prop_assert_eq!(out.pop(), Some(b'\n'));
            prop_assert!(!out.contains(&b'\n') && !out.contains(&b'\r'));
            prop_assert!(serde_json::from_slice::<serde_json::Value>(&out).is_ok(), "{}", String::from_utf8_lossy(&out));
        }
    }

    #[test]
    fn cursors_and_topologies_read_back(timeline: u32, next in prop::collection::btree_map(any::<u32>(), any::<u64>(), 0..20)) {
        let cursor = Cursor { timeline, next: next.into_iter().collect(), walked: Vec::new() };
        prop_assert_eq!(Cursor::decode(cursor.encode().as_bytes()), Some(cursor));
    }

    #[test]
    fn nothing_panics_on_any_bytes(mut bytes in vec(any::<u8>(), 0..300), op in 0u8..12) {
        parse_everything(&bytes);
        // The same as the body of a whole frame, so that the fields are reached.
        if bytes.len() >= 16 {
            let length = (bytes.len() as u32).to_le_bytes();
            bytes[..4].copy_from_slice(&length);
            bytes[4..8].copy_from_slice(&[op, 0, 0, 0]);
            parse_everything(&bytes);
            bytes[4] |= REPLY_BIT;
            parse_everything(&bytes);
        }
    }

    #[test]
    fn a_chunked_body_is_read_alike_however_it_was_cut(
        chunks in vec((0usize..40, "[0-9a-fA-F]{0,1}", "(;x)?", any::<bool>()), 0..12),
        cuts in vec(any::<prop::sample::Index>(), 0..8),
    ) {
        let mut text = b"POST /v1/streams/s/records/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        for (size, digit, extension, good) in &chunks {
            let digit = if *good { "" } else { digit };
            text.extend_from_slice(format!("{size:x}{digit}{extension}\r\n").as_bytes());
            text.extend(std::iter::repeat_n(b'x', *size));
            text.extend_from_slice(b"\r\n");
        }
        text.extend_from_slice(b"0\r\n\r\nGET /");
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len())).collect();
        cuts.push(text.len());
        cuts.sort_unstable();
        let mut progress = http::Progress::default();
        for cut in cuts {
            let went_on = http::parse_on(&text[..cut], &HTTP, &mut progress);
            let at_once = http::parse(&text[..cut], &HTTP);
            prop_assert_eq!(format!("{went_on:?}"), format!("{at_once:?}"));
            if !matches!(went_on, http::Parsed::Incomplete { .. }) {
                break;
            }
        }
    }

    #[test]
    fn nothing_panics_on_almost_http(
        method in "(GET|POST|PUT|DELETE|HEAD|X)",
        target in "(/v1/streams/|/v1/)?[ -~]{0,30}",
        fields in vec("(Content-Length|Transfer-Encoding|If-Match|Host|X): ?[ -~]{0,10}", 0..4),
        body in vec(any::<u8>(), 0..30),
    ) {
        let mut text = format!("{method} {target} HTTP/1.1\r\nHost: h\r\n{}\r\n\r\n", fields.join("\r\n")).into_bytes();
        text.extend_from_slice(&body);
        match http::parse(&text, &HTTP) {
            http::Parsed::Incomplete { needed, .. } => prop_assert!(needed > text.len()),
            http::Parsed::Request { consumed, .. } => prop_assert!(consumed <= text.len()),
            http::Parsed::Refused { consumed, .. } => prop_assert!(consumed.is_none_or(|bytes| bytes <= text.len())),
        }
    }
}

fn parse_everything(bytes: &[u8]) {
    let _ = parse_reply(bytes);
    let _ = peek_reply(bytes);
    let _ = http::parse(bytes, &HTTP);
    let _ = Cursor::decode(bytes);
    let _ = Topology::decode(bytes);
    let _ = slot::slot_of(bytes);
    let _ = ndjson::lines(bytes, 100).count();
    let _ = AppendIter::new(bytes, u32::MAX).count();
    match parse(bytes, &NATIVE) {
        Parsed::Request {
            request: Request::Append(append),
            ..
        } => {
            assert_eq!(append.iter().count(), append.records as usize);
        }
        Parsed::Incomplete { needed } => assert!(needed > bytes.len()),
        _ => {}
    }
}
