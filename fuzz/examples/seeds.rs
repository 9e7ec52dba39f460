//! Writes the corpora anew: real bytes from the encoders, some of each kind. `cargo run --example seeds` in `fuzz/`.

use std::path::Path;

use index::checkpoint::{self, HEADER_BYTES, PAGE_BYTES, Section};
use wal::superblock::{LogEntry, Superblock};
use wal::{BATCH_HEADER_BYTES, BLOCK_BYTES};
use wire::native::{self, AppendBuilder};
use wire::{AppendRecord, Condition, ContentType, Cursor, Durability};

fn save(target: &str, name: &str, bytes: impl AsRef<[u8]>) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("corpus")
        .join(target);
    std::fs::create_dir_all(&folder).expect("a folder of ours");
    std::fs::write(folder.join(name), bytes).expect("writable");
}

fn append(out: &mut Vec<u8>, durability: Durability, records: &[(&[u8], &[u8])]) {
    let mut builder = AppendBuilder::begin(out, 7, b"stream", durability, true, None);
    for (n, (key, payload)) in records.iter().enumerate() {
        builder.record(&AppendRecord {
            key,
            payload,
            content_type: ContentType::OCTET_STREAM,
            tombstone: n % 3 == 2,
            condition: if n == 1 {
                Condition::Version(3)
            } else {
                Condition::None
            },
        });
    }
    builder.finish();
}

fn native_requests() {
    let mut all = Vec::new();
    let mut one = |name: &str, write: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = Vec::new();
        write(&mut bytes);
        all.extend_from_slice(&bytes);
        save("native", name, &bytes);
    };
    one("append", &|out| {
        append(out, Durability::Durable, &[(b"k", b"payload")])
    });
    one("append-many", &|out| {
        append(
            out,
            Durability::Buffered,
            &[(b"a", b""), (b"{b}c", b"x"), (b"c", b"a longer payload")],
        )
    });
    one("get", &|out| native::get(out, 1, b"stream", b"key"));
    one("history", &|out| {
        native::history(out, 2, b"s", b"key", 9, 100)
    });
    one("scan", &|out| native::scan(out, 3, b"s", b"", 1000));
    save("native", "pipelined", &all);
    save("native", "cut", &all[..all.len() - 3]);
    save("native", "long", [0xff, 0xff, 0xff, 0x7f, 2, 0, 0, 0]);
}

fn http_requests() {
    let body = "{\"key\":\"a\",\"value\":{\"n\":1}}\n{\"key\":\"b\",\"value_base64\":\"AAEC\"}\n";
    let requests = [
        ("get", "GET /v1/streams/s/records/k%20x HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("post", "POST /v1/streams/s/records/k?durability=buffered HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nIdempotency-Key: a\r\nContent-Length: 7\r\n\r\n{\"a\":1}".to_owned()),
        ("if-match", "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: x\r\nIf-Match: \"3\"\r\nContent-Length: 0\r\n\r\n".to_owned()),
        ("chunked", "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4;a=b\r\nWiki\r\n5\r\npedia\r\n0\r\nTrailer: x\r\n\r\n".to_owned()),
        ("ndjson", format!("POST /v1/streams/s/records HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-ndjson\r\nContent-Length: {}\r\n\r\n{body}", body.len())),
        ("expect", "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n".to_owned()),
        ("delete", "DELETE /v1/streams/s/records/k HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("history", "GET /v1/streams/s/records/k/history?limit=10&before=4 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("scan", "GET /v1/streams/s/scan?cursor=&limit=10 HTTP/1.1\r\nHost: x\r\n\r\n".to_owned()),
        ("tail", "GET /v1/streams/s/tail?wait_ms=10 HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n\r\n".to_owned()),
        ("put", "PUT /v1/streams/s HTTP/1.1\r\nHost: x\r\nContent-Length: 19\r\n\r\n{\"history_depth\":3}".to_owned()),
        ("old", "GET /metrics HTTP/1.0\r\n\r\n".to_owned()),
        ("two-lengths", "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd".to_owned()),
        ("token", "GET /v1/topology HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer abc\r\nConnection: close\r\n\r\n".to_owned()),
    ];
    let mut all = String::new();
    for (name, text) in &requests {
        save("http", name, text);
        all += text;
    }
    save("http", "pipelined", all);
    save("ndjson", "both", body);
    for (n, text) in [
        "{\"key\":\"k\",\"value\":null}",
        "{\"key\":\"\\u00e9\",\"value\":\"text\"}\n\n{\"key\":\"k\"}",
        "{\"key\":\"k\",\"value\":1,\"value_base64\":\"AA==\"}",
        "[\"k\",1]\n{\"key\":1}\nnot json",
        "{\"key\":\"k\",\"value\":[1,2,{\"a\":[]}]}\r\n",
    ]
    .iter()
    .enumerate()
    {
        save("ndjson", &format!("line-{n}"), text);
    }
}

fn replies() {
    let mark = native::ReplyMark {
        durable_lsn: 77,
        log: 1,
        epoch: 2,
    };
    let mut bytes = Vec::new();
    native::bytes_reply(&mut bytes, 3, native::opcode::PING, mark, b"");
    save("reply", "ping", &bytes);
    let mut refused = Vec::new();
    let refusal = wire::Refusal {
        code: wire::Code::DiskFull,
        message: "the disk is full".into(),
        retry_after_ms: Some(1000),
    };
    native::error_reply(&mut refused, 4, native::opcode::APPEND, mark, &refusal);
    save("reply", "refused", &refused);
    bytes.extend_from_slice(&refused);
    save("reply", "two", &bytes);
    for (n, next) in [vec![], vec![(0, 1)], vec![(0, 9), (1, 1 << 40)]]
        .into_iter()
        .enumerate()
    {
        let cursor = Cursor { timeline: 1, next };
        save("cursor", &format!("{n}"), cursor.encode());
    }
}

fn log() {
    for (n, shape) in [&[1][..], &[4, 0, 3], &[0x41, 2], &[0x91, 0x92, 0x93, 0x94]]
        .iter()
        .enumerate()
    {
        let (file, _) = fuzz::written_segment(shape);
        let used = file.iter().rposition(|b| *b != 0).expect("written") + 1;
        let used = used.next_multiple_of(BLOCK_BYTES);
        let mut raw = vec![0];
        raw.extend_from_slice(&file[..used.min(3 * BLOCK_BYTES)]);
        save("segment", &format!("raw-{n}"), &raw);
        let mut built = vec![1];
        built.extend_from_slice(shape);
        built.resize(9, 0);
        save("segment", &format!("built-{n}"), &built);
        built.extend_from_slice(&[0x40, 0x10, 0x03, 0xff]);
        save("segment", &format!("damaged-{n}"), &built);
        built.extend_from_slice(&[0x00, 0x10, 0xc0, 0x02]);
        save("segment", &format!("moved-{n}"), &built);
        save(
            "record",
            &format!("{n}"),
            &file[BLOCK_BYTES + BATCH_HEADER_BYTES..][..600],
        );
        save("header", &format!("{n}"), &file[..BLOCK_BYTES]);
    }
    let mut block = vec![0; BLOCK_BYTES];
    fuzz::segment_header(4 << 20).encode_with_keys(&mut block, 12_345);
    save("header", "with-keys", &block);
}

fn superblocks() {
    let log = LogEntry {
        log: [7; 16],
        number: 0,
        timeline: 1,
        epoch: 3,
        slot_first: 0,
        slot_last: 16383,
        durable_lsn: 99,
    };
    let mut both = Vec::new();
    for (n, logs) in [
        vec![log.clone()],
        vec![log.clone(), LogEntry { number: 1, ..log }],
    ]
    .into_iter()
    .enumerate()
    {
        let mut block = vec![0; BLOCK_BYTES];
        let superblock = Superblock {
            sequence: n as u64,
            features: 0,
            store: [1; 16],
            digest_key: [2; 16],
            shards: logs.len() as u32,
            segment_bytes: 4 << 20,
            map_epoch: 1,
            logs,
        };
        if superblock.encode(&mut block).is_ok() {
            save("superblock", &format!("{n}"), &block);
            both.extend_from_slice(&block);
        }
    }
    save("superblock", "both", &both);
}

fn checkpoints() {
    let mut block = vec![0; HEADER_BYTES];
    fuzz::checkpoint_header().encode(&mut block);
    save("checkpoint", "header", &block);
    let mut page = vec![0; PAGE_BYTES];
    checkpoint::encode_bytes(
        &fuzz::identity(),
        5,
        1,
        Section::Streams,
        b"a stream",
        &mut page,
    );
    let used = page.iter().rposition(|b| *b != 0).expect("written") + 1;
    save("checkpoint", "streams", &page[..used]);
    checkpoint::encode_entries(&fuzz::identity(), 5, 0, &[], &mut page);
    let used = page.iter().rposition(|b| *b != 0).expect("written") + 1;
    save("checkpoint", "entries", &page[..used]);
}

fn configs() {
    for (name, text) in [
        (
            "small",
            "port = 7001\nhttp-port = 7002\nsegment-bytes = \"32MiB\"\n",
        ),
        ("cores", "cores = [0]\nshards = 1\nmemory = \"1.5 GiB\"\n"),
        (
            "listen",
            "listen = \"0.0.0.0\"\ninsecure = true\nlog = \"debug\"\n",
        ),
        (
            "numbers",
            "spin-us = 10\ncommit-window-us = 0\nconnections-max = 9\npayload-bytes-max = 65536\nrequest-timeout-seconds = 3\n",
        ),
        ("wrong", "prot = 1\n"),
    ] {
        save("config", name, text);
    }
}

fn main() {
    native_requests();
    http_requests();
    replies();
    log();
    superblocks();
    checkpoints();
    configs();
}
