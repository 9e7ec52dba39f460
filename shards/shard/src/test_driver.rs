//! A driver for unit tests: files in memory, operations that end at the next look, clients that are byte strings.
//!
//! It does what it is told and nothing by chance; the simulator is the one that is unkind.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use uring::{Buffer, BufferPool};
use wal::LogIdentity;
use wire::{ShardRoute, Topology};

use crate::assemble::{Parts, assemble};
use crate::core::{Bounds, Shared};
use crate::driver::{ConnId, Door, Driver, Event, FileId, LogFiles, Now, Patience, SegmentSource};
use crate::fill_pace::{Fill, FillSeen};
use crate::hop::Parcel;
use crate::mailbox::{self, Mailbox};
use crate::plan::{Plan, PlanInput};
use crate::recover::{RecoverConfig, RecoverError, Recovered, SparePolicy};
use crate::turn::{Pace, Shard};

pub const SEGMENT_BYTES: u64 = 4 << 20;
pub const PAYLOAD_BYTES_MAX: u32 = 300 << 10;

/// File, offset, length of each.
pub type ReadsMade = Vec<(FileId, u64, usize)>;

/// See the module's header.
pub struct TestDriver {
    pub files: Vec<Vec<u8>>,
    events: Vec<Event<(), Vec<u8>>>,
    /// Durable writes wait here while `hold_writes`: token and length.
    pub held_writes: Vec<(u64, usize)>,
    /// When each durable write was started.
    pub write_times_ns: Vec<u64>,
    pub hold_writes: bool,
    /// Reads wait here while `hold_reads`.
    pub held_reads: Vec<Event<(), Vec<u8>>>,
    pub hold_reads: bool,
    pub fail_writes: bool,
    /// Writes of checkpoints fail.
    pub fail_checkpoints: bool,
    /// Writes of checkpoints longer than this end here.
    pub checkpoint_write_bytes_max: usize,
    /// Segments cannot be made, for this reason.
    pub fail_segments: Option<io::ErrorKind>,
    /// With so many files the disk is full: those that are there can be used again.
    pub files_max: usize,
    /// Added to the wall clock.
    pub clock_off_us: i64,
    /// Longest read that was asked for.
    pub longest_read: usize,
    /// Every read that was asked for.
    pub reads: ReadsMade,
    now_ns: u64,
    conns: u64,
    /// What each client has been sent; None once it is closed.
    pub clients: BTreeMap<u64, (Vec<u8>, bool)>,
}

impl TestDriver {
    fn new(files: Vec<Vec<u8>>) -> TestDriver {
        TestDriver {
            files,
            events: Vec::new(),
            held_writes: Vec::new(),
            write_times_ns: Vec::new(),
            hold_writes: false,
            held_reads: Vec::new(),
            hold_reads: false,
            fail_writes: false,
            fail_checkpoints: false,
            checkpoint_write_bytes_max: usize::MAX,
            fail_segments: None,
            files_max: usize::MAX,
            clock_off_us: 0,
            longest_read: 0,
            reads: Vec::new(),
            now_ns: 1_000_000_000,
            conns: 0,
            clients: BTreeMap::new(),
        }
    }

    fn store(&mut self, file: FileId, offset: u64, bytes: &[u8]) {
        let place = &mut self.files[file.0 as usize];
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        place.resize(place.len().max(to), 0);
        place[from..to].copy_from_slice(bytes);
    }

    /// Time passes.
    pub fn pass_seconds(&mut self, seconds: u64) {
        self.now_ns += seconds * 1_000_000_000;
    }

    /// Let the reads that were held end.
    pub fn let_reads_end(&mut self) {
        self.hold_reads = false;
        self.events.append(&mut self.held_reads);
    }

    /// Let the writes that were held end well.
    pub fn let_writes_end(&mut self, bytes: impl Fn(u64) -> usize) {
        self.hold_writes = false;
        for (token, _) in std::mem::take(&mut self.held_writes) {
            self.events.push(Event::Written {
                token,
                result: Ok(bytes(token)),
            });
        }
    }
}

impl TestDriver {
    /// Let the write that has been held for longest end well; false: there is none.
    pub fn let_one_write_end(&mut self) -> bool {
        if self.held_writes.is_empty() {
            return false;
        }
        let (token, count) = self.held_writes.remove(0);
        self.events.push(Event::Written {
            token,
            result: Ok(count),
        });
        true
    }
}

impl Driver for TestDriver {
    type Socket = ();
    type Received = Vec<u8>;

    fn now(&mut self) -> Now {
        self.now_ns += 1_000;
        Now {
            monotonic_ns: self.now_ns,
            wall_us: (1_700_000_000_000_000 + self.now_ns / 1_000)
                .saturating_add_signed(self.clock_off_us),
        }
    }
    fn adopt(&mut self, (): ()) -> ConnId {
        self.conns += 1;
        self.clients.insert(self.conns, (Vec::new(), true));
        ConnId(self.conns)
    }
    fn received<'a>(&'a self, data: &'a Vec<u8>) -> &'a [u8] {
        data
    }
    fn recycle(&mut self, _: Vec<u8>) {}
    fn pause(&mut self, conn: ConnId) {
        self.events.push(Event::RecvPaused { conn });
    }
    fn resume(&mut self, _: ConnId) {}
    fn send(&mut self, conn: ConnId, data: Vec<u8>) {
        if let Some((got, _)) = self.clients.get_mut(&conn.0) {
            got.extend_from_slice(&data);
        }
        self.events.push(Event::Sent {
            conn,
            data,
            result: Ok(()),
        });
    }
    fn close(&mut self, conn: ConnId) {
        if let Some((_, open)) = self.clients.get_mut(&conn.0) {
            *open = false;
        }
    }
    fn stop_accepting(&mut self) {}
    fn write_durable(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    ) {
        let count = range.len();
        self.write_times_ns.push(self.now_ns);
        if self.fail_writes {
            return self.events.push(Event::Written {
                token,
                result: Err(io::Error::other("the device said no")),
            });
        }
        self.store(file, offset, &buffer[range]);
        if self.hold_writes {
            self.held_writes.push((token, count));
        } else {
            self.events.push(Event::Written {
                token,
                result: Ok(count),
            });
        }
    }
    fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    ) {
        let result = match self.fail_checkpoints {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(range.len().min(self.checkpoint_write_bytes_max)),
        };
        if let Ok(count) = result {
            self.store(file, offset, &buffer[range][..count]);
        }
        self.events.push(Event::Written { token, result });
    }
    fn sync(&mut self, _: FileId, token: u64) {
        self.events.push(Event::Synced {
            token,
            result: Ok(()),
        });
    }
    fn read(&mut self, file: FileId, offset: u64, mut buffer: Buffer, len: usize, token: u64) {
        assert!(
            len <= buffer.len(),
            "a read of {len} bytes into {}",
            buffer.len()
        );
        self.longest_read = self.longest_read.max(len);
        self.reads.push((file, offset, len));
        let from = &self.files[file.0 as usize];
        let from = from.get((offset as usize).min(from.len())..).unwrap_or(&[]);
        let count = len.min(from.len());
        buffer[..count].copy_from_slice(&from[..count]);
        let done = Event::Read {
            token,
            buffer,
            result: Ok(count),
        };
        match self.hold_reads {
            true => self.held_reads.push(done),
            false => self.events.push(done),
        }
    }
    fn prepare_segment(
        &mut self,
        _: u32,
        source: SegmentSource,
        segment_bytes: u64,
        header: Vec<u8>,
        _: u64,
        token: u64,
    ) {
        if let Some(kind) = self.fail_segments {
            return self.events.push(Event::SegmentReady {
                token,
                result: Err(kind.into()),
            });
        }
        let sized = |file: &&Vec<u8>| !file.is_empty();
        let full = self.files[2..].iter().filter(sized).count() + 2 >= self.files_max;
        if !source.has_space() && full {
            return self.events.push(Event::SegmentReady {
                token,
                result: Err(io::ErrorKind::StorageFull.into()),
            });
        }
        let file = source.file().unwrap_or_else(|| {
            self.files.push(Vec::new());
            FileId(self.files.len() as u32 - 1)
        });
        if !source.has_space() {
            self.files[file.0 as usize] = vec![0; segment_bytes as usize];
        }
        // A recycled file loses its first batch; what lies behind it stays.
        self.store(file, 4096, &[0; 4096]);
        self.store(file, 0, &header);
        self.events.push(Event::SegmentReady {
            token,
            result: Ok(file),
        });
    }
    fn empty_segment(&mut self, _: u32, file: FileId) {
        self.files[file.0 as usize].clear();
    }
    /// Preparations here take steps, not time.
    fn pace_preparation(&mut self, _: Fill) -> FillSeen {
        FillSeen::default()
    }

    fn wake(&mut self, _: usize) {}
    fn poll(&mut self, patience: Patience, events: &mut Vec<Event<(), Vec<u8>>>) -> io::Result<()> {
        if let Patience::Sleep(time) = patience
            && self.events.is_empty()
        {
            self.now_ns += time.as_nanos() as u64;
        }
        events.append(&mut self.events);
        Ok(())
    }
}

pub fn identity() -> LogIdentity {
    LogIdentity {
        store: [1; 16],
        log: [2; 16],
        number: 0,
        timeline: 1,
    }
}

/// A shard of one, recovered from what `files` hold (checkpoints first, then segments), in term `epoch`.
pub fn shard(files: Vec<Vec<u8>>, epoch: u32, connections_max: u32) -> Shard<TestDriver> {
    recovered(files, epoch, connections_max, Duration::ZERO).0
}

/// The same with a commit window, and what its recovery said.
pub fn recovered(
    files: Vec<Vec<u8>>,
    epoch: u32,
    connections_max: u32,
    commit_window: Duration,
) -> (Shard<TestDriver>, Recovered) {
    let shared = Arc::new(shared(1, connections_max));
    let mailbox = mailbox::mesh(1, 8).pop().expect("one shard");
    let (mut shard, report) = one_of(shared, mailbox, files, epoch, commit_window);
    let report = report.expect("an undamaged log");
    shard.start();
    (shard, report)
}

/// What a recovery of these files says, and the reads that it made.
pub fn recovery_of(files: Vec<Vec<u8>>) -> (Result<Recovered, RecoverError>, ReadsMade) {
    let mailbox = mailbox::mesh(1, 8).pop().expect("one shard");
    let (shard, report) = one_of(Arc::new(shared(1, 8)), mailbox, files, 2, Duration::ZERO);
    (report, shard.driver.reads)
}

/// Two new shards of one store.
pub fn two_shards(connections_max: u32) -> [Shard<TestDriver>; 2] {
    let shared = Arc::new(shared(2, connections_max));
    let mut both = mailbox::mesh(2, 8).into_iter().map(|mailbox| {
        let (mut shard, report) =
            one_of(Arc::clone(&shared), mailbox, Vec::new(), 1, Duration::ZERO);
        report.expect("a new log");
        shard.start();
        shard
    });
    [both.next().expect("one"), both.next().expect("two")]
}

fn shared(shards: usize, connections_max: u32) -> Shared {
    let routes = (0..shards as u16).map(|shard| {
        let slots = wire::slot::range_of_shard(shard, shards as u16);
        ShardRoute {
            shard,
            log: shard.into(),
            slot_first: *slots.start(),
            slot_last: *slots.end(),
            address: "test".into(),
            native_port: 1,
        }
    });
    Shared {
        store: "test".into(),
        topology: Topology {
            store: "test".into(),
            map_epoch: 1,
            shards: routes.collect(),
        },
        logs: (0..shards as u32).collect(),
        timeline: 1,
        token: None,
        listen: IpAddr::V4(Ipv4Addr::LOCALHOST),
        bounds: Bounds::new(PAYLOAD_BYTES_MAX, SEGMENT_BYTES, connections_max),
        load: (0..shards).map(|_| AtomicU32::new(0)).collect(),
        ready: (0..shards).map(|_| AtomicU32::new(0)).collect(),
        settled: (0..shards).map(|_| AtomicBool::new(false)).collect(),
    }
}

fn one_of(
    shared: Arc<Shared>,
    mailbox: Mailbox<Box<Parcel<()>>>,
    mut files: Vec<Vec<u8>>,
    epoch: u32,
    commit_window: Duration,
) -> (Shard<TestDriver>, Result<Recovered, RecoverError>) {
    files.resize_with(files.len().max(2), Vec::new);
    let mut known = LogFiles {
        segments: Vec::new(),
        checkpoints: [Some(FileId(0)), Some(FileId(1))],
        no_room: false,
    };
    for (slot, bytes) in files.iter().skip(2).enumerate() {
        known
            .segments
            .push((slot as u32, FileId(slot as u32 + 2), bytes.len() as u64));
    }
    let input = PlanInput {
        memory_bytes: Some(1 << 30),
        shards: 1,
        connections_max: shared.bounds.connections_max,
        payload_bytes_max: PAYLOAD_BYTES_MAX,
        segment_bytes: SEGMENT_BYTES,
        cache_bytes: Some(0),
    };
    let plan = Plan::new(&input).expect("memory enough");
    let number = mailbox.shard();
    let recover = RecoverConfig {
        identity: LogIdentity {
            number: number as u32,
            ..identity()
        },
        epoch,
        segment_bytes: SEGMENT_BYTES,
        segments_ahead: 2,
        spare_policy: SparePolicy::default(),
        closed_durable_lsn: 0,
        commit_window,
        large_in_flight_max: crate::profile::LARGE_WRITES_IN_FLIGHT,
    };
    let parts = Parts {
        scrub_bytes_per_second: 1 << 30,
        shard: number,
        pool: BufferPool::new(plan.batch_buffers, plan.batch_bytes).expect("memory"),
        plan,
        shared,
        recover: recover.clone(),
        digest_key: [3; 16],
        checkpoints: known.checkpoints,
        checkpoint_log_bytes: 1 << 40,
        space_amplification_percent: 200,
        mailbox,
        driver: TestDriver::new(files),
        pace: Pace {
            spin: Duration::ZERO,
            ..Pace::default()
        },
    };
    let mut shard = assemble(parts).expect("memory");
    let report = shard.recover(&known, &recover);
    (shard, report)
}

impl Shard<TestDriver> {
    /// A client of the HTTP port.
    pub fn connect(&mut self) -> u64 {
        self.event(Event::Accepted {
            door: Door::Http,
            socket: (),
        });
        self.driver.conns
    }
    /// Bytes from a client.
    pub fn say(&mut self, client: u64, bytes: impl AsRef<[u8]>) {
        self.driver.events.push(Event::Received {
            conn: ConnId(client),
            data: bytes.as_ref().to_vec(),
        });
    }
    /// A client closes its connection.
    pub fn hang_up(&mut self, client: u64) {
        let conn = ConnId(client);
        self.driver.events.push(Event::RecvClosed { conn });
    }
    /// Time passes in which nothing runs.
    pub fn sleep(&mut self, time: Duration) {
        self.driver.now_ns += time.as_nanos() as u64;
    }
    /// Turns until so much time has passed.
    pub fn turns_for(&mut self, time: Duration) {
        let end = self.driver.now_ns + time.as_nanos() as u64;
        while self.driver.now_ns < end {
            self.turn();
        }
    }
    /// Some turns.
    pub fn turns(&mut self, count: usize) {
        for _ in 0..count {
            self.turn();
        }
    }
    /// What a client was sent since the last time.
    pub fn heard(&mut self, client: u64) -> String {
        let (got, _) = self.driver.clients.get_mut(&client).expect("it connected");
        String::from_utf8_lossy(&std::mem::take(got)).into_owned()
    }
    /// Say, wait, hear.
    pub fn ask(&mut self, client: u64, bytes: impl AsRef<[u8]>) -> String {
        self.say(client, bytes);
        self.turns(20);
        self.heard(client)
    }
}

/// A POST of one record.
pub fn post(key: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes = format!("POST /v1/streams/s/records/{key} HTTP/1.1\r\nHost: x\r\n{headers}Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// A PUT of a stream's policy.
pub fn put_policy(stream: &str, policy: &str) -> String {
    format!(
        "PUT /v1/streams/{stream} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{policy}",
        policy.len()
    )
}

/// A GET of any path.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")
}
