//! What clients ask of the simulated machine, and what they remember of it.
//!
//! A request is remembered with everything that was said about it, over all lives of the machine. Replies are taken apart
//! by the code that a real client uses. It does not judge: that is the oracle's.

use std::collections::BTreeMap;

use rand::Rng;
use shard::driver::Door;
use wire::native::{self, AppendBuilder, Producer, Reply, opcode};
use wire::{AppendRecord, Code, Condition, ContentType, Durability};

use crate::machine::Machine;

/// A history from its newest version on, as far as one page goes.
pub(crate) const FROM_NEWEST: (u32, u32) = (0, 10_000);

/// The beginning of some bytes, for people.
pub(crate) fn brief(bytes: &[u8]) -> String {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(16)]).into_owned();
    match bytes.len() {
        0..=16 => shown,
        more => format!("{shown}..{more}"),
    }
}

/// One record as it was sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Sent {
    /// Its key.
    pub key: Vec<u8>,
    /// Its payload; names request and ordinal, so that no two are alike.
    pub payload: Vec<u8>,
    /// It ends the key.
    pub tombstone: bool,
    /// When it may be appended.
    pub condition: Condition,
}

/// What is known of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// No answer came.
    Unknown,
    /// Acked.
    Acked {
        /// What the ack means.
        durability: Durability,
        /// (log, first lsn, records) of each part.
        parts: Vec<(u32, u64, u32)>,
        /// One per record.
        versions: Vec<u32>,
    },
    /// Refused.
    Refused(Code),
}

/// An append, as the client remembers it.
#[derive(Clone, Debug)]
pub struct Append {
    /// Lane that sent it.
    pub lane: usize,
    /// Stream.
    pub stream: usize,
    /// Asked for.
    pub durability: Durability,
    /// Producer id and sequence.
    pub producer: Option<Producer>,
    /// Records, in request order.
    pub records: Vec<Sent>,
    /// What is known.
    pub outcome: Outcome,
    /// Life in which it was sent last.
    pub life: u32,
    /// Connection on which, within that life.
    pub connection: u64,
    /// That connection was cut before the answer, and the disk was failing: it may have been refused.
    pub unheard: bool,
    /// Times it was sent.
    pub attempts: u32,
}

impl Append {
    /// Records that were acked in `log` from lsn `end` on, if it was.
    pub fn acked_in(&self, log: usize, end: u64) -> Option<u64> {
        let Outcome::Acked { parts, .. } = &self.outcome else {
            return None;
        };
        parts
            .iter()
            .find(|(l, first, _)| *l as usize == log && *first >= end)
            .map(|(_, _, records)| u64::from(*records))
    }
}

impl std::fmt::Debug for Sent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.tombstone {
            "tombstone".to_owned()
        } else {
            brief(&self.payload)
        };
        write!(f, "{}={what} if {:?}", brief(&self.key), self.condition)
    }
}

/// A record as a reply showed it.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    /// Log.
    pub log: u32,
    /// Its number there.
    pub lsn: u64,
    /// Stream.
    pub stream: usize,
    /// Version in its key's history.
    pub version: u32,
    /// Log time.
    pub timestamp_us: u64,
    /// It ends the key.
    pub tombstone: bool,
    /// Key.
    pub key: Vec<u8>,
    /// Payload.
    pub payload: Vec<u8>,
    /// Content type, as HTTP would spell it.
    pub content_type: Vec<u8>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let what = if self.tombstone {
            "tombstone".to_owned()
        } else {
            brief(&self.payload)
        };
        let (log, lsn, version, time) = (self.log, self.lsn, self.version, self.timestamp_us);
        write!(
            f,
            "{log}:{lsn} stream {} {}={what} version {version} at {time}",
            self.stream,
            brief(&self.key)
        )
    }
}

/// What a request was about.
#[derive(Clone, Debug)]
pub enum About {
    /// An append, by number.
    Append(usize),
    /// Newest record of a key; the version that must be shown at least.
    Get {
        /// Stream.
        stream: usize,
        /// Key.
        key: Vec<u8>,
        /// Version that must be shown at least.
        at_least: u32,
    },
    /// History of a key.
    History {
        /// Stream.
        stream: usize,
        /// Key.
        key: Vec<u8>,
        /// Version that must be shown at least.
        at_least: u32,
    },
    /// A page of a stream.
    Scan {
        /// Stream.
        stream: usize,
    },
}

/// A reply to a request, in a form that outlives its bytes.
#[derive(Clone, Debug)]
pub enum Said {
    /// To an append.
    Appended(Outcome),
    /// To get, history, scan.
    Records {
        /// In the order of the reply.
        records: Vec<Seen>,
        /// For the next page.
        cursor: Vec<u8>,
    },
    /// A refusal.
    Refused {
        /// Why.
        code: Code,
        /// In words.
        message: String,
    },
}

/// A reply with its request and the mark that came with it.
#[derive(Clone, Debug)]
pub struct Heard {
    /// The request's id.
    pub id: u64,
    /// What it was about.
    pub about: About,
    /// What was said.
    pub said: Said,
    /// (log, durable lsn, epoch)
    pub mark: (u32, u64, u32),
}

/// Content type of a record. A tombstone has no payload that could name it: its content type does.
pub fn content_type(number: usize, ordinal: usize, record: &Sent) -> Vec<u8> {
    match (record.tombstone, record.payload.len() % 3) {
        (true, _) => format!("{number}:{ordinal}:").into_bytes(),
        (false, 0) => b"text/plain".to_vec(),
        (false, 1) => b"application/json".to_vec(),
        (false, _) => b"application/simulated".to_vec(),
    }
}

struct Lane {
    socket: u64,
    inbox: Vec<u8>,
}

/// The clients of one life.
pub struct Lanes {
    lanes: Vec<Lane>,
    /// By request id: on which socket, and what it was about.
    waiting: BTreeMap<u64, (u64, About)>,
    next_id: u64,
}

/// Name of a stream.
pub fn stream_name(stream: usize) -> Vec<u8> {
    format!("stream.{stream}").into_bytes()
}

impl Lanes {
    /// Connect `count` lanes, the i-th to shard i modulo `shards`.
    pub fn connect(machine: &mut Machine, count: usize, shards: usize) -> Lanes {
        let lanes = (0..count)
            .map(|i| Lane {
                socket: machine.connect(i % shards, Door::NativeShard),
                inbox: Vec::new(),
            })
            .collect();
        Lanes {
            lanes,
            waiting: BTreeMap::new(),
            next_id: 1,
        }
    }

    /// How many lanes there are.
    pub fn count(&self) -> usize {
        self.lanes.len()
    }

    /// Whether a shard has closed one.
    pub fn any_closed(&self, machine: &Machine) -> bool {
        self.lanes
            .iter()
            .any(|lane| machine.wires[lane.socket as usize].closed)
    }

    /// The connection of a lane.
    pub fn connection(&self, lane: usize) -> u64 {
        self.lanes[lane % self.lanes.len()].socket
    }

    /// Cut the connection of a lane: of what was sent last some bytes are lost, and every answer. The lane connects anew.
    /// Gives the appends that were not answered, in the order in which they were sent.
    pub fn cut(&mut self, machine: &mut Machine, lane: usize, shards: usize) -> Vec<usize> {
        let old = self.lanes[lane].socket;
        let there = machine.wires[old as usize].to_server.len();
        let arrives = machine.rng.random_range(0..=there);
        let wire = &mut machine.wires[old as usize];
        wire.to_server.truncate(arrives);
        wire.cut = true;
        self.lanes[lane] = Lane {
            socket: machine.connect(lane % shards, Door::NativeShard),
            inbox: Vec::new(),
        };
        let unheard: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, (socket, _))| *socket == old)
            .map(|(id, _)| *id)
            .collect();
        let abouts = unheard.iter().filter_map(|id| self.waiting.remove(id));
        abouts
            .filter_map(|(_, about)| match about {
                About::Append(number) => Some(number),
                _ => None,
            })
            .collect()
    }

    /// Requests without an answer.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Requests without an answer that `f` picks.
    pub fn waiting_for(&self, f: impl Fn(&About) -> bool) -> usize {
        self.waiting.values().filter(|(_, about)| f(about)).count()
    }

    fn put(
        &mut self,
        machine: &mut Machine,
        lane: usize,
        about: About,
        write: impl FnOnce(&mut Vec<u8>, u64),
    ) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let mut bytes = Vec::new();
        write(&mut bytes, id);
        let socket = self.lanes[lane].socket;
        machine.wires[socket as usize].to_server.extend(bytes);
        self.waiting.insert(id, (socket, about));
        id
    }

    /// Send an append (again).
    pub fn append(&mut self, machine: &mut Machine, number: usize, append: &Append) -> u64 {
        let lane = append.lane % self.lanes.len();
        self.put(machine, lane, About::Append(number), |out, id| {
            let mut builder = AppendBuilder::begin(
                out,
                id,
                &stream_name(append.stream),
                append.durability,
                true,
                append.producer,
            );
            for (ordinal, record) in append.records.iter().enumerate() {
                let content_type = content_type(number, ordinal, record);
                builder.record(&AppendRecord {
                    key: &record.key,
                    payload: &record.payload,
                    content_type: ContentType::from_header(&content_type),
                    tombstone: record.tombstone,
                    condition: record.condition,
                });
            }
            builder.finish();
        })
    }

    /// Ask for the newest record of a key.
    pub fn get(
        &mut self,
        machine: &mut Machine,
        lane: usize,
        stream: usize,
        key: &[u8],
        at_least: u32,
    ) -> u64 {
        let about = About::Get {
            stream,
            key: key.to_vec(),
            at_least,
        };
        self.put(machine, lane, about, |out, id| {
            native::get(out, id, &stream_name(stream), key)
        })
    }

    /// Ask for a page of a key's history: at most `limit` versions below `before` (0: from the newest).
    pub fn history(
        &mut self,
        machine: &mut Machine,
        lane: usize,
        stream: usize,
        key: &[u8],
        (before, limit): (u32, u32),
        at_least: u32,
    ) -> u64 {
        let about = About::History {
            stream,
            key: key.to_vec(),
            at_least,
        };
        self.put(machine, lane, about, |out, id| {
            native::history(out, id, &stream_name(stream), key, before, limit)
        })
    }

    /// Ask for a page of a stream.
    pub fn scan(
        &mut self,
        machine: &mut Machine,
        lane: usize,
        stream: usize,
        cursor: &[u8],
        limit: u32,
    ) -> u64 {
        self.put(machine, lane, About::Scan { stream }, |out, id| {
            native::scan(out, id, &stream_name(stream), cursor, limit)
        })
    }

    /// Take what has arrived.
    ///
    /// # Errors
    /// Bytes that no server may send.
    pub fn hear(&mut self, machine: &mut Machine) -> Result<Vec<Heard>, String> {
        let mut heard = Vec::new();
        for lane in &mut self.lanes {
            lane.inbox
                .append(&mut machine.wires[lane.socket as usize].inbox);
            let mut used = 0;
            while let Some((id, op, reply, bytes)) = native::parse_reply(&lane.inbox[used..])? {
                used += bytes;
                let (_, about) = self
                    .waiting
                    .remove(&id)
                    .ok_or_else(|| format!("a reply to request {id}, which nobody waits for"))?;
                heard.push(understand(id, op, about, &reply)?);
            }
            lane.inbox.drain(..used);
        }
        Ok(heard)
    }
}

fn understand(id: u64, op: u8, about: About, reply: &Reply<'_>) -> Result<Heard, String> {
    let expected = match &about {
        About::Append(_) => opcode::APPEND,
        About::Get { .. } => opcode::GET,
        About::History { .. } => opcode::HISTORY,
        About::Scan { .. } => opcode::SCAN,
    };
    if op != expected {
        return Err(format!(
            "request {id} asked {expected} and was answered {op}"
        ));
    }
    let stream = match &about {
        About::Append(_) => 0,
        About::Get { stream, .. } | About::History { stream, .. } | About::Scan { stream } => {
            *stream
        }
    };
    let seen = |r: &wire::RecordOut<'_>| Seen {
        log: r.log,
        lsn: r.lsn,
        stream,
        version: r.version,
        timestamp_us: r.timestamp_us,
        tombstone: r.tombstone,
        key: r.key.to_vec(),
        payload: r.payload.to_vec(),
        content_type: r.content_type.as_header().to_vec(),
    };
    let (mark, said) = match reply {
        Reply::Append {
            mark,
            durability,
            parts,
            versions,
        } => {
            let parts = parts
                .iter()
                .map(|p| (p.log, p.first_lsn, p.records))
                .collect();
            (
                mark,
                Said::Appended(Outcome::Acked {
                    durability: *durability,
                    parts,
                    versions: versions.clone(),
                }),
            )
        }
        Reply::Get { mark, record } => (
            mark,
            Said::Records {
                records: vec![seen(record)],
                cursor: Vec::new(),
            },
        ),
        Reply::Records {
            mark,
            records,
            cursor,
        } => (
            mark,
            Said::Records {
                records: records.iter().map(seen).collect(),
                cursor: cursor.to_vec(),
            },
        ),
        Reply::Error { mark, refusal } => (
            mark,
            Said::Refused {
                code: refusal.code,
                message: refusal.message.clone(),
            },
        ),
        Reply::Hello { .. } | Reply::Bytes { .. } => {
            return Err(format!("request {id}: an answer of another kind"));
        }
    };
    Ok(Heard {
        id,
        about,
        said,
        mark: (mark.log, mark.durable_lsn, mark.epoch),
    })
}
