//! A `Driver` over the simulated machine: operations end after random times, in random order, or not at all.
//!
//! Invariant: once the machine has crashed nothing that is asked here has an effect. It does not know why a shard asks.

mod operations;

use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;

use rand::Rng;
use shard::driver::{ConnId, Driver, Event, FileId, Now, Patience, SegmentSource};
use shard::fill_pace::{Fill, FillSeen};
use shard::preparer::steps;
use uring::Buffer;

use crate::disk::{PAGE_BYTES, Role};
use crate::machine::{Machine, OperationKind};

use operations::{Operation, Pending, Preparation};

/// Polls of a dead process before it is told: a turn polls less often and ends by itself, a recovery must be told.
const POLLS_AFTER_DEATH: u32 = 8;

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
        let kind = if durable {
            OperationKind::LogWrite
        } else {
            OperationKind::Write
        };
        let fault = m.next_fault(self.shard, kind);
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

    fn receive(&mut self, m: &mut Machine) {
        if self.accepting {
            while let Some((door, socket)) = m.arriving[self.shard].pop_front() {
                self.ready.push(Event::Accepted { door, socket });
            }
        }
        for (index, socket) in self.conns.iter().enumerate() {
            let Some(socket) = socket else { continue };
            let wire = &mut m.wires[*socket as usize];
            if wire.cut && wire.to_server.is_empty() && !wire.hung_up {
                wire.hung_up = true;
                self.ready.push(Event::RecvClosed {
                    conn: ConnId(index as u64),
                });
            }
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
        let fault = m.next_fault(self.shard, OperationKind::Other);
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
        let fails = m.next_read_fails(self.shard);
        self.push(
            &mut m,
            Operation::Read {
                fails,
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
        source: SegmentSource,
        segment_bytes: u64,
        header: Vec<u8>,
        _: u64,
        token: u64,
    ) {
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        if m.crashed {
            return;
        }
        let shard = self.shard;
        let file = match source.file() {
            Some(id) => self.files[id.0 as usize],
            None => m.disk.open(shard, Role::Segment(slot)),
        };
        m.tick(|| format!("shard {shard} slot {slot} preparation starts: {source:?}"));
        let steps = steps(source.has_space(), segment_bytes).into();
        let fault = m.next_fault(shard, OperationKind::Other);
        let preparation = Preparation {
            file,
            slot,
            recycled: source.file(),
            header,
            token,
            steps,
            syncing: Vec::new(),
            fault,
        };
        self.push(&mut m, Operation::Prepare(Box::new(preparation)));
    }

    /// Takes effect at once; whether a crash finds it done is the disk's to say.
    fn empty_segment(&mut self, slot: u32, file: FileId) {
        let shared = Rc::clone(&self.machine);
        let mut m = shared.borrow_mut();
        if m.crashed {
            return;
        }
        let shard = self.shard;
        m.disk.empty(self.files[file.0 as usize]);
        m.tick(|| format!("shard {shard} slot {slot} is emptied"));
    }

    /// Preparations here take steps, not time.
    fn pace_preparation(&mut self, _: Fill) -> FillSeen {
        FillSeen::default()
    }

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
