//! Operations under way: what each is, and what its end does to the disk and to the shard.

use std::collections::VecDeque;
use std::io;

use rand::Rng;
use rand::seq::SliceRandom;
use shard::driver::{ConnId, Event, FileId};
use shard::preparer::Step;
use uring::Buffer;

use super::SimDriver;
use crate::machine::{Errno, FaultKind, Machine, Mutant, OperationKind};

/// Zeroes that a preparation writes at once.
const ZERO_CHUNK: usize = 64 * 1024;

pub(super) struct Preparation {
    pub(super) file: usize,
    pub(super) slot: u32,
    pub(super) recycled: Option<FileId>,
    pub(super) header: Vec<u8>,
    pub(super) token: u64,
    /// What is left to do, the next step first.
    pub(super) steps: VecDeque<Step>,
    /// What a sync that has begun makes durable.
    pub(super) syncing: Vec<u64>,
    pub(super) fault: Option<FaultKind>,
}

pub(super) enum Operation {
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
        fails: bool,
    },
    Prepare(Box<Preparation>),
    Send {
        conn: ConnId,
        socket: u64,
        data: Vec<u8>,
    },
}

pub(super) struct Pending {
    pub(super) due_ns: u64,
    pub(super) operation: Operation,
}

fn broken(kind: FaultKind) -> io::Error {
    io::Error::from_raw_os_error(match kind {
        FaultKind::Error(errno) => errno.number(),
        FaultKind::Full => 28, // ENOSPC
        _ => Errno::Io.number(),
    })
}

impl SimDriver {
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
                    Some(kind) if kind.is_silent() => Ok(len),
                    Some(FaultKind::Short) => Ok(m.rng.random_range(0..len / 512) * 512),
                    Some(kind) => Err(broken(kind)),
                };
                match &result {
                    Ok(_) if fault == Some(FaultKind::Lost) => m.disk.lose_write(file, id),
                    Ok(_) if fault == Some(FaultKind::Misdirected) => {
                        let place = m.disk.misdirect_write(&mut m.rng, file, id);
                        m.note(|| format!("the write has landed at {place}"));
                    }
                    Ok(_) if durable && m.mutant == Mutant::AckBeforeFlush => {
                        let due_ns = m.now_ns + 50 * m.latency_ns();
                        self.pending.push(Pending {
                            due_ns,
                            operation: Operation::Late { file, id, len },
                        });
                    }
                    Ok(count) => {
                        let durable = durable && m.flush_is_honest();
                        m.disk.finish_write(file, id, *count, durable);
                    }
                    // The write stays unsynced for ever: whatever a crash makes of it.
                    Err(_) => {}
                }
                if fault == Some(FaultKind::Rot) {
                    let place = m.disk.rot(&mut m.rng);
                    m.note(|| format!("a bit rots in {place}"));
                }
                m.tick(|| format!("shard {shard} write of file {file} ends: {result:?}"));
                let result = match (m.mutant, result) {
                    (Mutant::IgnoreShort, Ok(_)) | (Mutant::RetryFailed, Err(_)) => Ok(len),
                    (_, result) => result,
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
                if result.is_ok() && m.mutant != Mutant::SkipSync && m.flush_is_honest() {
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
                fails,
            } => {
                let result = if fails {
                    Err(broken(FaultKind::Unreadable))
                } else {
                    Ok(m.disk.read(file, offset as usize, &mut buffer[..len]))
                };
                m.tick(|| {
                    format!("shard {shard} read {len} at {offset} of file {file}: {result:?}")
                });
                self.ready.push(Event::Read {
                    token,
                    buffer,
                    result,
                });
            }
            Operation::Prepare(preparation) => self.prepare_step(m, preparation),
            Operation::Send { conn, socket, data } => {
                let wire = &mut m.wires[socket as usize];
                let result = if wire.cut {
                    Err(io::Error::from(io::ErrorKind::ConnectionReset))
                } else {
                    wire.inbox.extend_from_slice(&data);
                    Ok(())
                };
                if self.conns[conn.0 as usize].is_some() {
                    self.ready.push(Event::Sent { conn, data, result });
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
            Step::SyncFile if m.mutant == Mutant::SkipSync || !m.flush_is_honest() => {}
            Step::SyncFile => m.disk.finish_sync(p.file, &p.syncing),
            Step::SyncDirectory if m.mutant == Mutant::SkipDirectorySync => {}
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
        p.fault = m.next_fault(shard, OperationKind::Other);
        self.push(m, Operation::Prepare(p));
    }

    pub(super) fn finish_due(&mut self, m: &mut Machine) {
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

    pub(super) fn dying(&mut self, m: &mut Machine, operation: Operation) {
        if let Operation::Send { socket, data, .. } = operation {
            m.last_words.push((socket, data));
        }
    }
}
