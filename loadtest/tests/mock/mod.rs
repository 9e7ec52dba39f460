//! A server in a thread that speaks just enough: appends, gets and histories in memory, native or HTTP by what comes first.
//!
//! Its faults are what the tests are about: it can stall, lose a write that it acknowledged, or hand out other bytes.

mod http;
mod native;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use wire::{AppendRecord, ContentType, RecordOut, ShardRoute, Topology};

/// What is wrong with the server.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Answers nothing in this span after the first append.
    pub stall: Option<(Duration, Duration)>,
    /// Acknowledges the append with this number (from 0) and forgets it.
    pub lose: Option<u64>,
    /// Reads of the key that the append with this number wrote come with one bit turned.
    pub corrupt: Option<u64>,
    /// Refuses every append.
    pub refuse: bool,
}

/// What was stored.
struct Store {
    faults: Faults,
    address: SocketAddr,
    /// Versions are indices from 1; None is a version that was lost.
    keys: HashMap<Vec<u8>, Vec<Option<Payload>>>,
    appends: u64,
    lsn: u64,
    corrupted: Option<Vec<u8>>,
    first_append: Option<Instant>,
}

#[derive(Clone)]
struct Payload {
    bytes: Vec<u8>,
    content_type: Vec<u8>,
}

/// Starts the server; it lives as long as the test process.
pub fn start(faults: Faults) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let store = Arc::new(Mutex::new(Store {
        faults,
        address,
        keys: HashMap::new(),
        appends: 0,
        lsn: 0,
        corrupted: None,
        first_append: None,
    }));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let store = store.clone();
            thread::spawn(move || serve(stream.unwrap(), faults, &store));
        }
    });
    address
}

fn serve(mut stream: TcpStream, faults: Faults, store: &Mutex<Store>) {
    stream.set_nodelay(true).unwrap();
    let mut input = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        let Ok(count @ 1..) = stream.read(&mut chunk) else {
            return;
        };
        input.extend_from_slice(&chunk[..count]);
        let mut out = Vec::new();
        let is_http = input.starts_with(b"GET ") || input.starts_with(b"POST");
        let answer_all = if is_http {
            http::answer_all
        } else {
            native::answer_all
        };
        let Some(consumed) = answer_all(&input, &mut out, store) else {
            return;
        };
        input.drain(..consumed);
        if let Some((after, length)) = faults.stall {
            let first = store.lock().unwrap().first_append;
            if let Some(since) = first.map(|first| first.elapsed())
                && since >= after
                && since < after + length
            {
                thread::sleep(after + length - since);
            }
        }
        if stream.write_all(&out).is_err() {
            return;
        }
    }
}

impl Store {
    /// The number of the append whose records come next.
    fn begin_append(&mut self) -> u64 {
        self.first_append.get_or_insert_with(Instant::now);
        self.appends += 1;
        self.appends - 1
    }

    /// Stores a record of append `number`, or does what its fault is. Returns its version.
    fn put(&mut self, number: u64, record: &AppendRecord<'_>) -> u32 {
        self.lsn += 1;
        let lost = self.faults.lose == Some(number);
        if self.faults.corrupt == Some(number) {
            self.corrupted = Some(record.key.to_vec());
        }
        let payload = Payload {
            bytes: record.payload.to_vec(),
            content_type: record.content_type.as_header().to_vec(),
        };
        let history = self.keys.entry(record.key.to_vec()).or_default();
        history.push((!lost).then_some(payload));
        history.len() as u32
    }

    /// Versions of a key below `before` (0: all), newest first.
    fn versions(&self, key: &[u8], before: u32) -> Option<Vec<(u32, Payload)>> {
        let flip = self.corrupted.as_deref() == Some(key);
        let history = self.keys.get(key)?.iter().enumerate().rev();
        let versions =
            history.filter_map(|(index, payload)| Some((index as u32 + 1, payload.clone()?)));
        let versions = versions.filter(|(version, _)| before == 0 || *version < before);
        Some(
            versions
                .map(|(version, mut payload)| {
                    payload.bytes[0] ^= u8::from(flip);
                    (version, payload)
                })
                .collect(),
        )
    }

    fn topology(&self) -> Topology {
        let route = ShardRoute {
            shard: 0,
            log: 0,
            slot_first: 0,
            slot_last: 16_383,
            address: self.address.ip().to_string(),
            native_port: self.address.port(),
        };
        Topology {
            store: "mock".into(),
            map_epoch: 1,
            shards: vec![route],
        }
    }
}

fn record<'a>(key: &'a [u8], version: u32, payload: &'a Payload) -> RecordOut<'a> {
    RecordOut {
        log: 0,
        lsn: 1,
        version,
        timestamp_us: 1,
        tombstone: false,
        content_type: ContentType::from_header(&payload.content_type),
        key,
        payload: &payload.bytes,
    }
}
