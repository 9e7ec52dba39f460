//! The client: routes records to shards, keeps appends in flight, hands out acks.
//!
//! Every append goes out as one frame per log, also where a single connection carries them all, because sequences are counted per
//! log. Nothing is read in the background: answers are taken off the sockets by the calls that wait for them.
//!
//! Invariants: a ticket ends exactly once, with an ack or an error; frames of one log go out in the order of their sequences, also
//! after a reconnect; lanes and links are made anew only by [`Client::ensure_connected`], which says so.

mod adopt;
mod delivery;

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use wire::native::AppendPart;
use wire::slot::slot_of;
use wire::{AppendRecord, Durability, Topology};

use crate::connection::{Answer, Connection};
use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::options::ConnectOptions;
use crate::protocol::Window;

use adopt::{Held, Layout};

/// Bytes of keys and payloads in one append; servers take less.
const APPEND_BYTES_MAX: usize = 1 << 30;
/// Set in the ids of requests that one call waits for, clear in those of appends.
const CALL_BIT: u64 = 1 << 63;

/// An append on its way, see [`Client::send_append`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// What the server said to an append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Where the records went: per log how many, and their first lsn. Records of one append in one log have consecutive lsns in the
    /// order they were given.
    pub parts: Vec<AppendPart>,
    /// The version of each record, in the order they were given; empty unless the options want versions.
    pub versions: Vec<u32>,
    /// The weakest of what the logs promised.
    pub durability: Durability,
}

/// A connection to a pinion server, or one to each of its shards.
pub struct Client {
    options: ConnectOptions,
    topology: Topology,
    /// The first one is to the address that was given.
    links: Vec<Link>,
    lanes: Vec<Lane>,
    /// Lane of each slot.
    lane_of_slot: Vec<u16>,
    open: HashMap<u64, Open>,
    ready: VecDeque<(Ticket, Result<Ack>)>,
    next_ticket: u64,
    next_call: u64,
    /// Parts that the shards before a change did not store, oldest first: to be sent by the new lanes before anything else.
    held: VecDeque<Held>,
    /// By new log, the largest sequence under which it has answered a part of before; while a change is being taken up.
    told: Vec<(u32, u64)>,
}

struct Link {
    address: String,
    connection: Option<Connection>,
    /// What is in flight: the lane of each.
    window: Window<usize>,
    /// The server has ended the last connection for what was sent over it, and answered no append since.
    turned_away: bool,
}

/// An append of the caller that is not answered by all of its logs.
struct Open {
    records: usize,
    parts_left: usize,
    ack: Ack,
    error: Option<Error>,
}

/// One log's answer to its part of an append.
struct Part {
    positions: Vec<u32>,
    durability: Durability,
    parts: Vec<AppendPart>,
    versions: Vec<u32>,
}

impl Client {
    /// Connects to `address` (`host:port` of the native protocol) and, unless the options say otherwise, to every shard that the
    /// topology names. Shards whose own port cannot be reached are served over the shared one.
    ///
    /// Errors: [`Error::Io`] when nobody is there, [`Error::Refused`] for a wrong token.
    pub fn connect(address: &str, options: ConnectOptions) -> Result<Client> {
        let (connection, topology) = Connection::open(address, &options, options.timeout)?;
        if topology.shards.is_empty() {
            return Err(Error::broken(address, "its topology has no shards"));
        }
        // Logs that are gone: the server's shards were changed since. Every log goes on above what was used in any.
        let gone = options
            .sequences
            .iter()
            .filter(|(log, _)| topology.shards.iter().all(|route| route.log != *log));
        let first_sequence = gone.map(|(_, next)| *next).max().unwrap_or(1);
        let sequence_of = |log| {
            let continued = options.sequences.iter().find(|(l, _)| *l == log);
            continued.map_or(first_sequence, |(_, next)| *next)
        };
        let Layout {
            links,
            lanes,
            lane_of_slot,
        } = Layout::new(address, Some(connection), &topology, &options, sequence_of);
        Ok(Client {
            options,
            topology,
            links,
            lanes,
            lane_of_slot,
            open: HashMap::new(),
            ready: VecDeque::new(),
            next_ticket: 1,
            next_call: 0,
            held: VecDeque::new(),
            told: Vec::new(),
        })
    }

    /// Slots, shards and ports as the server told them at connect, or at the last reconnect that found them changed.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Connections to shards' own ports; the rest of the shards is served over the shared port.
    pub fn shard_connections(&self) -> usize {
        self.links.len() - 1
    }

    /// The next sequence of each log, for [`ConnectOptions::sequences`] of a later run with the same producer id. Meaningful when
    /// every append was answered; behind a change of the server's shards with appends under way, for logs that have answered one
    /// since.
    pub fn sequences(&self) -> Vec<(u32, u64)> {
        self.lanes
            .iter()
            .map(|lane| (lane.log, lane.next_sequence))
            .collect()
    }

    /// Appends `records` to `stream` and waits for the ack. Records of one shard are stored all or none; records of several shards
    /// are not tied together.
    ///
    /// Errors: [`Error::Refused`] when a shard refused its part (others may have stored theirs), [`Error::Lost`] when the
    /// connection ended first and there is no producer id, [`Error::Usage`] for what cannot be sent.
    pub fn append(&mut self, stream: &str, records: &[AppendRecord<'_>]) -> Result<Ack> {
        let ticket = self.send_append(stream, records)?;
        self.wait(ticket)
    }

    /// Sends an append and returns at once, unless the window of a connection is full: then it first waits for answers, which
    /// [`recv`](Self::recv), [`poll`](Self::poll) or [`wait`](Self::wait) hand out later.
    ///
    /// Errors: [`Error::Usage`] for what cannot be sent; everything else is the ticket's.
    pub fn send_append(&mut self, stream: &str, records: &[AppendRecord<'_>]) -> Result<Ticket> {
        check(stream, records)?;
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        let ack = Ack {
            parts: Vec::new(),
            versions: Vec::new(),
            durability: Durability::Durable,
        };
        self.open.insert(
            ticket,
            Open {
                records: records.len(),
                parts_left: 0,
                ack,
                error: None,
            },
        );
        self.send_parts(ticket, stream, records);
        Ok(Ticket(ticket))
    }

    /// The next answered append in the order of answers, waiting for one. None: nothing is in flight.
    pub fn recv(&mut self) -> Option<(Ticket, Result<Ack>)> {
        while self.ready.is_empty() {
            self.send_held();
            if self.ready.is_empty() {
                self.pump(self.link_of_oldest()?);
            }
        }
        self.ready.pop_front()
    }

    /// The next answered append that has arrived. It waits only where a connection has to be made again.
    pub fn poll(&mut self) -> Option<(Ticket, Result<Ack>)> {
        self.send_held();
        for link in 0..self.links.len() {
            // Made anew on the way, there may be fewer.
            if link >= self.links.len()
                || self.oldest_on(link).is_some()
                    && !self.ensure_connected(link).is_ok_and(|same| same)
            {
                continue;
            }
            while self.ready.is_empty() {
                let Some(connection) = self.links[link].connection.as_mut() else {
                    break;
                };
                match connection.next_available() {
                    Ok(Some((id, answer))) => self.dispatch(link, id, answer),
                    Ok(None) => break,
                    Err(_) => self.disconnect(link),
                }
            }
        }
        self.ready.pop_front()
    }

    /// Waits for this append's answer. Answers of others stay for [`recv`](Self::recv).
    ///
    /// Errors: those of the append; [`Error::Usage`] for a ticket that was already handed out.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Ack> {
        loop {
            let ready = self.ready.iter().position(|(ready, _)| *ready == ticket);
            if let Some((_, result)) = ready.and_then(|index| self.ready.remove(index)) {
                return result;
            }
            self.send_held();
            if self.ready.iter().any(|(ready, _)| *ready == ticket) {
                continue;
            }
            let waits = |lane: &&Lane| {
                lane.pending
                    .iter()
                    .any(|pending| pending.ticket == ticket.0)
            };
            let mut link = self.lanes.iter().find(waits).map(|lane| lane.link);
            if self.held.iter().any(|held| held.ticket == ticket.0) {
                link = link.or(self.link_of_oldest());
            }
            let Some(link) = link else {
                return Err(Error::Usage(format!(
                    "append {} was answered before",
                    ticket.0
                )));
            };
            self.pump(link);
        }
    }

    /// Appends that have no answer yet.
    pub fn in_flight(&self) -> usize {
        self.open.len()
    }

    /// Sends a request to the shard of `key` (none: to any) and waits for its answer, `extra` longer than for others; sent again
    /// once if the connection ends.
    pub(crate) fn call(
        &mut self,
        key: Option<&[u8]>,
        extra: Duration,
        encode: impl Fn(&mut Vec<u8>, u64),
    ) -> Result<Answer> {
        let deadline = Instant::now() + self.options.timeout + extra;
        let mut again = true;
        loop {
            let mut link = self.link_of_key(key);
            while !self.ensure_connected(link)? {
                link = self.link_of_key(key);
            }
            match self.call_once(link, deadline, &encode) {
                Err(error @ (Error::Io { .. } | Error::Lost { .. })) => {
                    let alone = self.in_flight_on(link) == 0;
                    let farewell = self.final_farewell(link).filter(|_| alone);
                    self.disconnect(link);
                    if let Some(refusal) = farewell {
                        return Err(Error::Refused(refusal));
                    }
                    if !again || Instant::now() >= deadline {
                        return Err(error);
                    }
                    again = false;
                }
                Err(error) => {
                    self.disconnect(link);
                    return Err(error);
                }
                Ok(answer) => return Ok(answer),
            }
        }
    }

    fn call_once(
        &mut self,
        link: usize,
        deadline: Instant,
        encode: impl Fn(&mut Vec<u8>, u64),
    ) -> Result<Answer> {
        self.next_call += 1;
        let called = CALL_BIT | self.next_call;
        let lost = |link: &Link| Error::Lost {
            address: link.address.clone(),
            why: None,
        };
        let Some(connection) = self.links[link].connection.as_mut() else {
            return Err(lost(&self.links[link]));
        };
        encode(connection.writer(), called);
        connection.flush()?;
        loop {
            // Dispatching another answer may have ended the connection.
            let Some(connection) = self.links[link].connection.as_mut() else {
                return Err(lost(&self.links[link]));
            };
            match connection.next_until(deadline)? {
                Some((id, answer)) if id == called => return Ok(answer),
                Some((id, answer)) => self.dispatch(link, id, answer),
                None => return Err(delivery::timed_out(&self.links[link].address)),
            }
        }
    }

    pub(crate) fn address_of(&self, link: usize) -> &str {
        &self.links[link].address
    }

    /// The connection that serves `key`, or whatever is asked of any shard.
    pub(crate) fn link_of_key(&self, key: Option<&[u8]>) -> usize {
        key.map_or(0, |key| self.lanes[self.lane_of_key(key)].link)
    }

    fn lane_of_key(&self, key: &[u8]) -> usize {
        usize::from(self.lane_of_slot[usize::from(slot_of(key))])
    }
}

/// Refuses what the server would refuse, before anything is sent.
pub(crate) fn check_stream(stream: &str) -> Result<()> {
    if wire::stream_name_is_valid(stream.as_bytes()) {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "stream name {stream:?}: use 1 to 128 of A-Z a-z 0-9 . _ : -"
    )))
}

fn check(stream: &str, records: &[AppendRecord<'_>]) -> Result<()> {
    check_stream(stream)?;
    if records.is_empty() {
        return Err(Error::Usage(
            "an append needs at least one record".to_owned(),
        ));
    }
    let mut bytes = 0;
    for record in records {
        record
            .check(u32::MAX)
            .map_err(|refusal| Error::Usage(refusal.message))?;
        bytes += record.key.len() + record.payload.len();
    }
    if bytes > APPEND_BYTES_MAX {
        return Err(Error::Usage(format!(
            "{bytes} bytes in one append: keep appends within {APPEND_BYTES_MAX}"
        )));
    }
    Ok(())
}
