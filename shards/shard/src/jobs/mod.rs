//! Requests that are not answered on the spot: what each still waits for, and how its answers become one reply.
//!
//! A job lives on the shard whose connection asked. It gathers answers of one or several owners and ends as one reply in
//! the connection's outbox (or, for a followed tail, as many). It does not know how owners find their answers.
//!
//! Here is what a job is and holds; `answers` takes in what owners say, `replies` ends a job, `tails` keeps tails going.

mod answers;
mod replies;
mod tails;

use wire::cursor::Walked;
use wire::http::Preconditions;
use wire::native::AppendPart;
use wire::{Cursor, Durability, Refusal};

use crate::conns::Connection;
use crate::driver::ConnId;
use crate::hop::{StreamInfo, Ticket};
use crate::metrics::ShardSnapshot;
use crate::outbox::{Operation, Released};
use crate::records::RecordSet;

/// How the connection wants its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Voice {
    Native { id: u64, opcode: u8 },
    Http { keep_alive: bool, head: bool },
}

/// Who is told, where in its outbox, since when it waits.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub conn: ConnId,
    pub hole: u64,
    pub voice: Voice,
    pub started_ns: u64,
    /// Counted in the connection's `heavy`.
    pub heavy: bool,
}

/// What a job is about and what it has so far.
pub enum Work {
    Append(AppendWork),
    Get {
        preconditions: Preconditions,
    },
    History,
    Scan(ScanWork),
    Tail(ScanWork),
    PutStream,
    KeyUse(KeyUse),
    Streams {
        only: Option<Vec<u8>>,
        found: Vec<StreamInfo>,
    },
    Metrics {
        shards: Vec<ShardSnapshot>,
    },
}

/// An append whose records went to one or several logs.
pub struct AppendWork {
    pub parts: Vec<AppendPart>,
    pub durability: Durability,
    /// How HTTP says it.
    pub form: AppendForm,
    pub records: u32,
    /// Length of the request, which stays in the mail until its owners take it.
    pub bytes: usize,
    /// Owner of each record in request order; empty when there is one part or versions are not wanted.
    pub owners: Vec<u16>,
    /// Versions by log, as they came.
    pub versions: Vec<(u32, Vec<u32>)>,
    pub refusal: Option<Refusal>,
}

/// What all shards say of an Idempotency-Key.
pub struct KeyUse {
    pub digest: u128,
    pub fingerprint: u64,
    /// Of a shard where the key was used for another request.
    pub objection: Option<Refusal>,
}

/// What kind of append request it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendForm {
    One,
    Many,
    Delete,
}

/// A scan or tail over all logs.
pub struct ScanWork {
    pub stream: Vec<u8>,
    pub cursor: Cursor,
    pub limit: u32,
    pub set: Vec<RecordSet>,
    pub records: u32,
    /// Scans: the shard at work.
    pub shard: usize,
    pub wait_until_ns: u64,
    /// Server-sent events: the reply never ends.
    pub follow: bool,
}

/// A request in flight.
pub struct Job {
    pub asker: Asker,
    pub waits_for: u32,
    pub gate: u64,
    pub work: Work,
    sequence: u32,
    log: u32,
    epoch: u32,
    durable_lsn: u64,
}

/// All jobs of a shard.
#[derive(Default)]
pub struct Jobs {
    slab: slab::Slab<Job>,
    sequence: u32,
    /// Request bytes that other shards have been sent and have not answered for.
    bytes: usize,
}

impl Jobs {
    pub fn add(&mut self, asker: Asker, waits_for: u32, work: Work) -> Ticket {
        self.bytes += work.bytes();
        self.sequence = self.sequence.wrapping_add(1);
        let job = Job {
            asker,
            waits_for,
            gate: 0,
            work,
            sequence: self.sequence,
            log: 0,
            epoch: 0,
            durable_lsn: 0,
        };
        let index = self.slab.insert(job);
        Ticket((u64::from(self.sequence) << 32) | index as u64)
    }
    fn get(&mut self, ticket: Ticket) -> Option<&mut Job> {
        let (index, sequence) = ((ticket.0 & 0xffff_ffff) as usize, (ticket.0 >> 32) as u32);
        self.slab.get_mut(index).filter(|j| j.sequence == sequence)
    }
    pub fn remove(&mut self, ticket: Ticket) -> Option<Job> {
        self.get(ticket)?;
        let job = self.slab.remove((ticket.0 & 0xffff_ffff) as usize);
        self.bytes -= job.work.bytes();
        Some(job)
    }
    /// Request bytes on their way to other shards.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
    pub fn len(&self) -> usize {
        self.slab.len()
    }
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Work::Append(work) => work.bytes,
            _ => 0,
        }
    }
}

impl Job {
    fn released(&self) -> Released {
        let operation = match &self.work {
            Work::Append(_) => Operation::Append,
            Work::Get { .. } => Operation::Get,
            Work::History => Operation::History,
            Work::Scan(_) => Operation::Scan,
            _ => Operation::Other,
        };
        Released {
            operation,
            started_ns: self.asker.started_ns,
            count: 1,
        }
    }
}

impl ScanWork {
    /// Where it goes on in a log, and what it has walked there.
    pub fn place_of(&self, log: u32) -> (u64, Walked) {
        let next = self.cursor.next.iter().find(|(l, _)| *l == log);
        let walked = self.cursor.walked.iter().find(|(l, _)| *l == log);
        (
            next.map_or(1, |(_, lsn)| *lsn),
            walked.map_or(Walked::default(), |(_, walked)| walked.clone()),
        )
    }
    fn take(&mut self, log: u32, set: RecordSet, next_lsn: u64, walked: Walked) {
        let known = &mut self.cursor.walked;
        known.retain(|(l, _)| *l != log);
        if walked != Walked::default() {
            known.push((log, walked));
            known.sort_unstable_by_key(|(l, _)| *l);
        }
        self.records += set.len() as u32;
        if !set.is_empty() {
            self.set.push(set);
        }
        match self.cursor.next.iter_mut().find(|(l, _)| *l == log) {
            Some((_, lsn)) => *lsn = next_lsn,
            None => {
                self.cursor.next.push((log, next_lsn));
                self.cursor.next.sort_unstable();
            }
        }
    }
    fn is_full(&self) -> bool {
        self.records >= self.limit
            || self.set.iter().map(RecordSet::bytes).sum::<usize>()
                >= crate::owner::ANSWER_BYTES_MAX
    }
}

impl AppendWork {
    /// `bytes`: length of the records.
    pub fn new(
        durability: wire::Durability,
        form: AppendForm,
        records: u32,
        bytes: usize,
    ) -> AppendWork {
        AppendWork {
            parts: Vec::new(),
            durability,
            form,
            records,
            bytes,
            owners: Vec::new(),
            versions: Vec::new(),
            refusal: None,
        }
    }

    fn versions_in_request_order(&mut self) -> Vec<u32> {
        if self.owners.is_empty() {
            return self.versions.pop().map(|(_, v)| v).unwrap_or_default();
        }
        let mut next = vec![0usize; self.versions.len()];
        let mut ordered = Vec::with_capacity(self.owners.len());
        for log in &self.owners {
            if let Some(i) = self
                .versions
                .iter()
                .position(|(l, _)| *l == u32::from(*log))
            {
                ordered.push(self.versions[i].1[next[i]]);
                next[i] += 1;
            }
        }
        ordered
    }
}

impl Asker {
    /// Asker of a job on `conn`, with a place in its outbox.
    pub(crate) fn on(conn: &mut Connection, voice: Voice) -> Asker {
        conn.jobs += 1;
        Asker {
            conn: conn.id,
            hole: conn.out.hole(),
            voice,
            started_ns: conn.input_since_ns,
            heavy: false,
        }
    }

    /// The same for a history, scan or tail.
    pub(crate) fn heavy_on(conn: &mut Connection, voice: Voice) -> Asker {
        conn.heavy += 1;
        Asker {
            heavy: true,
            ..Asker::on(conn, voice)
        }
    }
}
