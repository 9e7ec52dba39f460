//! A `Driver` over the simulated machine: operations end after random times, in random order, or not at all.
//!
//! Invariant: once the machine has crashed nothing that is asked here has an effect. It does not know why a shard asks.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use rand::Rng;
use rand::seq::SliceRandom;
use shard::driver::{ConnId, Driver, Event, FileId, Now, Patience};
use shard::preparer::{Step, steps};
use uring::Buffer;

use crate::disk::{PAGE_BYTES, Role};
use crate::machine::{FaultKind, Machine, Mutant};

/// Zeroes that a preparation writes at once.
const ZERO_CHUNK: usize = 64 * 1024;
/// Polls of a dead process before it is told: a turn polls less often and ends by itself, a recovery must be told.
const POLLS_AFTER_DEATH: u32 = 8;

struct Preparation {
    file: usize,
    slot: u32,
    recycled: Option<FileId>,
    header: Vec<u8>,
    token: u64,
    /// What is left to do, the next step first.
    steps: VecDeque<Step>,
    /// What a sync that has begun makes durable.
    syncing: Vec<u64>,
    fault: Option<FaultKind>,
}

enum Operation {
    Write {
        file: usize,
        id: u64,
        len: usize,
        durable: bool,
        token: u64,
        fault: Option<FaultKind>,
    },
    /// A lying driver's write, after the lie.
    Late {
        file: usize,
        id: u64,
        len: usize,
    },
    Sync {
        file: usize,
        ids: Vec<u64>,
        token: u64,
        fault: Option<FaultKind>,
    },
    Read {
        file: usize,
        offset: u64,
        buffer: Buffer,
        len: usize,
        token: u64,
    },
    Prepare(Box<Preparation>),
    Send {
        conn: ConnId,
        socket: u64,
        data: Vec<u8>,
    },
}

struct Pending {
    due_ns: u64,
    operation: Operation,
}

/// See the module's header.
pub struct SimDriver {
    machine: Rc<RefCell<Machine>>,
    shard: usize,
    files: Vec<usize>,
    pending: Vec<Pending>,
    /// Socket of each connection; None once closed.
    conns: Vec<Option<u64>>,
    ready: Vec<Event<u64, Vec<u8>>>,
    accepting: bool,
    polls_dead: u32,
}

fn broken(kind: FaultKind) -> io::Error {
    // EIO and ENOSPC by their numbers, as the kernel gives them.
    io::Error::from_raw_os_error(if kind == FaultKind::Full { 28 } else { 5 })
}

impl SimDriver {
    /// A driver for `shard` with `files` open: `FileId(i)` is `files[i]` of the disk.
    pub fn new(machine: Rc<RefCell<Machine>>, shard: usize, files: Vec<usize>) -> SimDriver {
        SimDriver {
            machine,
            shard,
            files,
            pending: Vec::new(),
            conns: Vec::new(),
            ready: Vec::new(),
            accepting: true,
            polls_dead: 0,
        }
    }

    fn push(&mut self, machine: &mut Machine, operation: Operation) {
        let due_ns = machine.now_ns + machine.latency_ns();
        self.pending.push(Pending { due_ns, operation });
    }

    fn start_write(&mut self, file: FileId, offset: u64, bytes: &[u8], durable: bool, token: u64) {
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        if m.crashed {
            return;
        }
        let file = self.files[file.0 as usize];
        let fault = m.next_fault(self.shard, durable);
        let id = m.disk.start_write(file, offset as usize, bytes.to_vec());
        let (shard, len) = (self.shard, bytes.len());
        m.tick(|| {
            format!(
                "shard {shard} write {len} at {offset} of file {file}, durable: {durable}, starts"
            )
        });
        self.push(
            &mut m,
            Operation::Write {
                file,
                id,
                len,
                durable,
                token,
                fault,
            },
        );
    }

    /// One operation ends. Gives the event for the shard, or the operation that follows it.
    fn finish(&mut self, m: &mut Machine, operation: Operation) {
        let shard = self.shard;
        match operation {
            Operation::Write {
                file,
                id,
                len,
                durable,
                token,
                fault,
            } => {
                let result = match fault {
                    None => Ok(len),
                    Some(FaultKind::Short) => Ok(m.rng.random_range(0..len / 512) * 512),
                    Some(kind) => Err(broken(kind)),
                };
                match &result {
                    Ok(_) if durable && m.mutant == Mutant::AckBeforeFlush => {
                        let due_ns = m.now_ns + 50 * m.latency_ns();
                        self.pending.push(Pending {
                            due_ns,
                            operation: Operation::Late { file, id, len },
                        });
                    }
                    Ok(count) => m.disk.finish_write(file, id, *count, durable),
                    // The write stays unsynced for ever: whatever a crash makes of it.
                    Err(_) => {}
                }
                m.tick(|| format!("shard {shard} write of file {file} ends: {result:?}"));
                let result = if m.mutant == Mutant::IgnoreShort {
                    result.map(|_| len)
                } else {
                    result
                };
                self.ready.push(Event::Written { token, result });
            }
            Operation::Late { file, id, len } => m.disk.finish_write(file, id, len, true),
            Operation::Sync {
                file,
                ids,
                token,
                fault,
            } => {
                let result = match fault {
                    None => Ok(()),
                    Some(kind) => Err(broken(kind)),
                };
                if result.is_ok() && m.mutant != Mutant::SkipSync {
                    m.disk.finish_sync(file, &ids);
                }
                m.tick(|| format!("shard {shard} sync of file {file} ends: {result:?}"));
                self.ready.push(Event::Synced { token, result });
            }
            Operation::Read {
                file,
                offset,
                mut buffer,
                len,
                token,
            } => {
                let count = m.disk.read(file, offset as usize, &mut buffer[..len]);
                m.tick(|| format!("shard {shard} read {len} at {offset} of file {file}: {count}"));
                self.ready.push(Event::Read {
                    token,
                    buffer,
                    result: Ok(count),
                });
            }
            Operation::Prepare(preparation) => self.prepare_step(m, preparation),
            Operation::Send { conn, socket, data } => {
                m.wires[socket as usize].inbox.extend_from_slice(&data);
                if self.conns[conn.0 as usize].is_some() {
                    self.ready.push(Event::Sent {
                        conn,
                        data,
                        result: Ok(()),
                    });
                }
            }
        }
    }

    fn prepare_step(&mut self, m: &mut Machine, mut p: Box<Preparation>) {
        let shard = self.shard;
        if let Some(kind) = p.fault {
            if p.recycled.is_none() {
                m.disk.remove(p.file);
            }
            m.tick(|| format!("shard {shard} slot {} cannot be prepared", p.slot));
            self.ready.push(Event::SegmentReady {
                token: p.token,
                result: Err(broken(kind)),
            });
            return;
        }
        let step = p
            .steps
            .pop_front()
            .expect("a preparation ends with its last step");
        match &step {
            Step::Zero(range) => {
                let (from, to) = (
                    range.start as usize,
                    (range.start as usize + ZERO_CHUNK).min(range.end as usize),
                );
                let id = m.disk.start_write(p.file, from, vec![0; to - from]);
                m.disk.finish_write(p.file, id, to - from, false);
                if (to as u64) < range.end {
                    p.steps.push_front(Step::Zero(to as u64..range.end));
                }
            }
            Step::Header => {
                let id = m.disk.start_write(p.file, 0, p.header.clone());
                m.disk.finish_write(p.file, id, p.header.len(), false);
            }
            Step::SyncFile if m.mutant == Mutant::SkipSync => {}
            Step::SyncFile => m.disk.finish_sync(p.file, &p.syncing),
            Step::SyncDirectory => m.disk.sync_directory(shard),
        }
        m.tick(|| format!("shard {shard} slot {}: {step:?}", p.slot));
        p.syncing = m.disk.finished_writes(p.file);
        if p.steps.is_empty() {
            let file = p.recycled.unwrap_or_else(|| {
                self.files.push(p.file);
                FileId(self.files.len() as u32 - 1)
            });
            self.ready.push(Event::SegmentReady {
                token: p.token,
                result: Ok(file),
            });
            return;
        }
        p.fault = m.next_fault(shard, false);
        self.push(m, Operation::Prepare(p));
    }

    fn receive(&mut self, m: &mut Machine) {
        if self.accepting {
            while let Some((door, socket)) = m.arriving[self.shard].pop_front() {
                self.ready.push(Event::Accepted { door, socket });
            }
        }
        for (index, socket) in self.conns.iter().enumerate() {
            let Some(socket) = socket else { continue };
            let wire = &mut m.wires[*socket as usize];
            if wire.paused || wire.to_server.is_empty() {
                continue;
            }
            let there = wire.to_server.len();
            let count = match m.rng.random_range(0..4) {
                0 => 0,
                1 => m.rng.random_range(1..=there),
                _ => there,
            };
            if count > 0 {
                let data = m.wires[*socket as usize].to_server.drain(..count).collect();
                self.ready.push(Event::Received {
                    conn: ConnId(index as u64),
                    data,
                });
            }
        }
    }

    fn finish_due(&mut self, m: &mut Machine) {
        let now_ns = m.now_ns;
        let mut due: Vec<Pending> = self
            .pending
            .extract_if(.., |p| p.due_ns <= now_ns)
            .collect();
        due.shuffle(&mut m.rng);
        for pending in due {
            if m.crashed {
                self.dying(m, pending.operation);
            } else {
                self.finish(m, pending.operation);
            }
        }
        if m.crashed {
            for pending in std::mem::take(&mut self.pending) {
                self.dying(m, pending.operation);
            }
        }
    }

    fn dying(&mut self, m: &mut Machine, operation: Operation) {
        if let Operation::Send { socket, data, .. } = operation {
            m.last_words.push((socket, data));
        }
    }
}

impl Drop for SimDriver {
    fn drop(&mut self) {
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        for pending in std::mem::take(&mut self.pending) {
            self.dying(&mut m, pending.operation);
        }
    }
}

impl Driver for SimDriver {
    type Socket = u64;
    type Received = Vec<u8>;

    fn now(&mut self) -> Now {
        let m = self.machine.borrow();
        Now {
            monotonic_ns: m.now_ns,
            wall_us: m.wall_base_us + m.now_ns / 1000,
        }
    }

    fn adopt(&mut self, socket: u64) -> ConnId {
        let conn = ConnId(self.conns.len() as u64);
        self.conns.push(Some(socket));
        self.machine.borrow_mut().wires[socket as usize].served = Some((self.shard, conn));
        conn
    }

    fn received<'a>(&'a self, data: &'a Vec<u8>) -> &'a [u8] {
        data
    }

    fn recycle(&mut self, _data: Vec<u8>) {}

    fn pause(&mut self, conn: ConnId) {
        if let Some(socket) = self.conns[conn.0 as usize] {
            self.machine.borrow_mut().wires[socket as usize].paused = true;
            self.ready.push(Event::RecvPaused { conn });
        }
    }

    fn resume(&mut self, conn: ConnId) {
        if let Some(socket) = self.conns[conn.0 as usize] {
            self.machine.borrow_mut().wires[socket as usize].paused = false;
        }
    }

    fn send(&mut self, conn: ConnId, data: Vec<u8>) {
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        let Some(socket) = self.conns[conn.0 as usize] else {
            return;
        };
        if m.crashed {
            return;
        }
        let due_ns = m.now_ns + m.rng.random_range(1_000..100_000);
        self.pending.push(Pending {
            due_ns,
            operation: Operation::Send { conn, socket, data },
        });
    }

    fn close(&mut self, conn: ConnId) {
        if let Some(socket) = self.conns[conn.0 as usize].take() {
            self.machine.borrow_mut().wires[socket as usize].closed = true;
        }
    }

    fn stop_accepting(&mut self) {
        self.accepting = false;
    }

    fn write_durable(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    ) {
        self.start_write(file, offset, &buffer[range], true, token);
    }

    fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    ) {
        self.start_write(file, offset, &buffer[range], false, token);
    }

    fn sync(&mut self, file: FileId, token: u64) {
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        if m.crashed {
            return;
        }
        let file = self.files[file.0 as usize];
        let fault = m.next_fault(self.shard, false);
        let ids = m.disk.finished_writes(file);
        let shard = self.shard;
        m.tick(|| format!("shard {shard} sync of file {file} starts"));
        self.push(
            &mut m,
            Operation::Sync {
                file,
                ids,
                token,
                fault,
            },
        );
    }

    fn read(&mut self, file: FileId, offset: u64, buffer: Buffer, len: usize, token: u64) {
        assert!(
            len.is_multiple_of(PAGE_BYTES) && offset.is_multiple_of(PAGE_BYTES as u64),
            "reads are of whole blocks"
        );
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        if m.crashed {
            return;
        }
        let file = self.files[file.0 as usize];
        self.push(
            &mut m,
            Operation::Read {
                file,
                offset,
                buffer,
                len,
                token,
            },
        );
    }

    fn prepare_segment(
        &mut self,
        slot: u32,
        recycle: Option<FileId>,
        segment_bytes: u64,
        header: Vec<u8>,
        token: u64,
    ) {
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        if m.crashed {
            return;
        }
        let shard = self.shard;
        let file = match recycle {
            Some(id) => self.files[id.0 as usize],
            None => m.disk.open(shard, Role::Segment(slot)),
        };
        m.tick(|| {
            format!(
                "shard {shard} slot {slot} preparation starts, recycled: {}",
                recycle.is_some()
            )
        });
        let steps = steps(recycle.is_some(), segment_bytes).into();
        let fault = m.next_fault(shard, false);
        let preparation = Preparation {
            file,
            slot,
            recycled: recycle,
            header,
            token,
            steps,
            syncing: Vec::new(),
            fault,
        };
        self.push(&mut m, Operation::Prepare(Box::new(preparation)));
    }

    /// Preparations here take steps, not time.
    fn pace_preparation(&mut self, _bytes_per_second: u64) {}

    fn wake(&mut self, _shard: usize) {
        // Simulated shards never sleep for long: whose turn it is, the host decides.
    }

    fn poll(
        &mut self,
        patience: Patience,
        events: &mut Vec<Event<u64, Vec<u8>>>,
    ) -> io::Result<()> {
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        if m.crashed {
            self.finish_due(&mut m);
            self.polls_dead += 1;
            return if self.polls_dead > POLLS_AFTER_DEATH {
                Err(io::Error::other("the machine has crashed"))
            } else {
                Ok(())
            };
        }
        m.now_ns += m.rng.random_range(500..20_000);
        self.receive(&mut m);
        self.finish_due(&mut m);
        if let Patience::Sleep(most) = patience
            && self.ready.is_empty()
            && !m.crashed
        {
            let until = m.now_ns + most.as_nanos() as u64;
            let next = self.pending.iter().map(|p| p.due_ns).min().unwrap_or(until);
            m.now_ns = m.now_ns.max(next.min(until));
            self.finish_due(&mut m);
        }
        if m.crashed {
            // What had ended before the crash was never told.
            self.ready.clear();
        }
        events.append(&mut self.ready);
        Ok(())
    }
}
