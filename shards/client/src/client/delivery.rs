//! What happens to appends on their way: numbered and sent, answered, refused, lost and sent again.
//!
//! Every path ends in [`Client::end_part`], once per log and append. The decision what a refusal means for those behind it is
//! [`Lane::settle`](crate::lane::Lane::settle)'s; here it is carried out.

use std::collections::VecDeque;
use std::thread::sleep;
use std::time::{Duration, Instant};

use wire::native::{AppendBuilder, Producer};
use wire::{AppendRecord, Code, Durability, Refusal, Topology};

use super::adopt::own_address;
use super::{Client, Open, Part, Ticket};
use crate::connection::{Answer, Connection};
use crate::error::{Error, Result, code_is_retryable};
use crate::lane::{Lane, Pending, Settlement};

impl Client {
    /// Which lanes get which records, by their positions.
    pub(super) fn split<'a>(
        &self,
        keys: impl Iterator<Item = (u32, &'a [u8])>,
    ) -> Vec<(usize, Vec<u32>)> {
        let mut positions: Vec<Vec<u32>> = vec![Vec::new(); self.lanes.len()];
        for (position, key) in keys {
            positions[self.lane_of_key(key)].push(position);
        }
        positions
            .into_iter()
            .enumerate()
            .filter(|(_, own)| !own.is_empty())
            .collect()
    }

    /// Sends an append's records by their lanes. Where those are made anew on the way, what is left goes by the new ones.
    pub(super) fn send_parts(&mut self, ticket: u64, stream: &str, records: &[AppendRecord<'_>]) {
        self.send_all_held();
        let mut left: VecDeque<(usize, Vec<u32>)> = if self.lanes.len() == 1 {
            // No positions: all of them.
            [(0, Vec::new())].into()
        } else {
            let keys = (0..).zip(records.iter().map(|record| record.key));
            let mut split = self.split(keys);
            if let [(_, whole)] = split.as_mut_slice() {
                whole.clear();
            }
            split.into()
        };
        self.note_parts(ticket, left.len());
        while let Some((lane, positions)) = left.pop_front() {
            match self.make_room(lane) {
                Ok(true) => {
                    let stream = stream.as_bytes();
                    let now = Instant::now();
                    if positions.is_empty() {
                        let all = records.iter().copied();
                        self.put_part(lane, ticket, stream, all, positions, now);
                    } else {
                        let some: Vec<_> = (positions.iter())
                            .map(|&position| records[position as usize])
                            .collect();
                        self.put_part(lane, ticket, stream, some.into_iter(), positions, now);
                    }
                }
                Ok(false) => {
                    left.push_front((lane, positions));
                    self.send_all_held();
                    left = self.split_again(ticket, records, left);
                }
                Err(error) => self.end_part(ticket, Err(error)),
            }
        }
    }

    /// Parts that are not sent yet, by the lanes of now.
    fn split_again(
        &mut self,
        ticket: u64,
        records: &[AppendRecord<'_>],
        left: VecDeque<(usize, Vec<u32>)>,
    ) -> VecDeque<(usize, Vec<u32>)> {
        let count = left.len();
        let positions = left.into_iter().flat_map(|(_, positions)| {
            if positions.is_empty() {
                (0..records.len() as u32).collect()
            } else {
                positions
            }
        });
        let keys = positions.map(|position| (position, records[position as usize].key));
        let split = self.split(keys);
        self.note_parts(ticket, split.len());
        if let Some(open) = self.open.get_mut(&ticket) {
            open.parts_left -= count;
        }
        split.into()
    }

    fn note_parts(&mut self, ticket: u64, count: usize) {
        if let Some(open) = self.open.get_mut(&ticket) {
            open.parts_left += count;
        }
    }

    /// Whether a lane can take one more append.
    pub(super) fn has_room(&self, lane: usize) -> bool {
        let Lane { link, pending, .. } = &self.lanes[lane];
        // What follows a refused append waits until its sequence is settled.
        self.links[*link].window.room() > 0 && pending.iter().all(|p| p.refused.is_none())
    }

    /// Waits until a lane can take an append over its connection. False: the lanes were made anew.
    fn make_room(&mut self, lane: usize) -> Result<bool> {
        let (link, map_epoch) = (self.lanes[lane].link, self.topology.map_epoch);
        while !self.has_room(lane) {
            self.pump(link);
            if self.topology.map_epoch != map_epoch {
                return Ok(false);
            }
        }
        if !self.ensure_connected(link)? {
            return Ok(false);
        }
        if self.lanes[lane].stuck {
            let log = self.lanes[lane].log;
            return Err(Error::Usage(format!(
                "an earlier append to log {log} ended without an answer, so this producer's sequence there is unknown: \
                 connect again with a new producer id"
            )));
        }
        Ok(true)
    }

    /// Numbers and sends records by a lane that has room and a connection.
    pub(super) fn put_part<'a>(
        &mut self,
        lane: usize,
        ticket: u64,
        stream: &[u8],
        records: impl Iterator<Item = AppendRecord<'a>>,
        positions: Vec<u32>,
        since: Instant,
    ) {
        let link = self.lanes[lane].link;
        let Client {
            links,
            lanes,
            options,
            ..
        } = self;
        let (link_state, lane_state) = (&mut links[link], &mut lanes[lane]);
        let id = link_state.window.claim(lane).expect("there is room");
        let producer = options.producer_id.map(|id| Producer {
            id,
            sequence: lane_state.next_sequence,
        });
        let sequence = producer.map_or(0, |producer| producer.sequence);
        let connection = link_state.connection.as_mut().expect("just connected");
        let out = connection.writer();
        let start = out.len();
        let (durability, versions) = (options.durability, options.want_versions);
        let mut frame = AppendBuilder::begin(out, id, stream, durability, versions, producer);
        records.for_each(|record| frame.record(&record));
        frame.finish();
        let copy = if producer.is_some() {
            out[start..].to_vec()
        } else {
            Vec::new()
        };
        lane_state.next_sequence += u64::from(producer.is_some());
        lane_state.pending.push_back(Pending {
            id,
            ticket,
            positions,
            sequence,
            frame: copy,
            since,
            refused: None,
        });
        self.flush(link);
    }

    /// Sends what was encoded. Where the other end has closed, the next look finds the answers that it gave before, and why.
    fn flush(&mut self, link: usize) {
        let Some(connection) = self.links[link].connection.as_mut() else {
            return;
        };
        if let Err(error) = connection.flush()
            && !error.is_closed()
        {
            self.disconnect(link);
        }
    }

    /// Waits for one answer on a connection, making it again if need be. Afterwards at least one append is answered, or refused,
    /// or was sent again; or the lanes were made anew.
    pub(super) fn pump(&mut self, link: usize) {
        if !self.ensure_connected(link).is_ok_and(|same| same) {
            return;
        }
        let deadline = self.oldest_on(link).unwrap_or_else(Instant::now) + self.options.timeout;
        let Some(connection) = self.links[link].connection.as_mut() else {
            return;
        };
        match connection.next_until(deadline) {
            Ok(Some((id, answer))) => self.dispatch(link, id, answer),
            Ok(None) => self.fail(link, timed_out),
            Err(_) => self.disconnect(link),
        }
    }

    pub(super) fn dispatch(&mut self, link: usize, id: u64, answer: Answer) {
        let Some(&mut lane) = self.links[link].window.get_mut(id) else {
            // Nobody asked: the stream cannot be trusted.
            return self.disconnect(link);
        };
        match answer {
            Answer::Appended {
                durability,
                parts,
                versions,
            } => {
                self.links[link].window.release(id);
                self.links[link].turned_away = false;
                if let Some(Pending {
                    ticket, positions, ..
                }) = self.lanes[lane].take(id)
                {
                    self.end_part(
                        ticket,
                        Ok(Part {
                            positions,
                            durability,
                            parts,
                            versions,
                        }),
                    );
                }
                if self.lanes[lane].needs_settling() {
                    self.settle(lane);
                }
            }
            Answer::Refused(refusal) if self.options.producer_id.is_some() => {
                if self.lanes[lane].refuse(id, refusal) {
                    self.settle(lane);
                }
            }
            Answer::Refused(refusal) => {
                self.links[link].window.release(id);
                if let Some(pending) = self.lanes[lane].take(id) {
                    self.end_part(pending.ticket, Err(Error::Refused(refusal)));
                }
            }
            Answer::Record(_) | Answer::Page { .. } | Answer::Bytes(_) => self.disconnect(link),
        }
    }

    /// Every append of the lane is answered, and those that are left were refused.
    fn settle(&mut self, lane: usize) {
        let link = self.lanes[lane].link;
        let since = self.lanes[lane]
            .pending
            .front()
            .map(|pending| pending.since.elapsed());
        let left = since
            .and_then(|since| self.options.timeout.checked_sub(since))
            .unwrap_or_default();
        match self.lanes[lane].settle(!left.is_zero()) {
            Some(Settlement::Again { wait_ms }) => {
                sleep(Duration::from_millis(wait_ms.into()).min(left));
                self.send_again(lane);
            }
            Some(Settlement::GaveUp(pending, refusal)) => {
                self.links[link].window.release(pending.id);
                self.end_part(pending.ticket, Err(Error::Refused(refusal)));
                if self.lanes[lane].stuck {
                    for pending in std::mem::take(&mut self.lanes[lane].pending) {
                        self.links[link].window.release(pending.id);
                        let error = pending
                            .refused
                            .map_or_else(|| timed_out(&self.links[link].address), Error::Refused);
                        self.end_part(pending.ticket, Err(error));
                    }
                }
                self.send_again(lane);
            }
            None => {}
        }
    }

    /// Sends what is pending on a lane in order; on a connection that is gone, making it again does.
    fn send_again(&mut self, lane: usize) {
        let Lane {
            link, ref pending, ..
        } = self.lanes[lane];
        let Some(connection) = self.links[link].connection.as_mut() else {
            return;
        };
        for pending in pending {
            connection.writer().extend_from_slice(&pending.frame);
        }
        self.flush(link);
    }

    /// The connection is gone. A producer's appends stay, to be sent again; others' fate is unknown.
    pub(super) fn disconnect(&mut self, link: usize) {
        let why = self.final_farewell(link);
        if let Some(why) = &why {
            // It is about one of those that have no answer, which would end the next connection too.
            let in_flight = self.in_flight_on(link);
            let again = std::mem::replace(&mut self.links[link].turned_away, true);
            if in_flight == 1 {
                return self.fail(link, |_| Error::Refused(why.clone()));
            }
            if again {
                return self.fail(link, |address| Error::Lost {
                    address: address.to_owned(),
                    why: Some(why.clone()),
                });
            }
        }
        if self.options.producer_id.is_none() {
            return self.fail(link, |address| Error::Lost {
                address: address.to_owned(),
                why: why.clone(),
            });
        }
        self.links[link].connection = None;
        for lane in self.lanes.iter_mut().filter(|lane| lane.link == link) {
            lane.pending
                .iter_mut()
                .for_each(|pending| pending.refused = None);
        }
    }

    /// Why the server ended a connection, if that is for something that was sent over it.
    pub(super) fn final_farewell(&self, link: usize) -> Option<Refusal> {
        let farewell = self.links[link].connection.as_ref()?.farewell()?;
        matches!(farewell.code, Code::TooLarge | Code::Malformed).then(|| farewell.clone())
    }

    /// Appends on a connection that have no answer.
    pub(super) fn in_flight_on(&self, link: usize) -> usize {
        let lanes = self.lanes.iter().filter(|lane| lane.link == link);
        lanes.map(|lane| lane.pending.len()).sum()
    }

    /// Ends everything that is in flight on a connection.
    fn fail(&mut self, link: usize, error: impl Fn(&str) -> Error) {
        self.links[link].connection = None;
        let address = self.links[link].address.clone();
        let numbered = self.options.producer_id.is_some();
        for lane in 0..self.lanes.len() {
            if self.lanes[lane].link != link {
                continue;
            }
            for pending in std::mem::take(&mut self.lanes[lane].pending) {
                self.lanes[lane].stuck |= numbered;
                self.links[link].window.release(pending.id);
                self.end_part(pending.ticket, Err(error(&address)));
            }
        }
    }

    /// When the oldest append in flight on a connection was first sent.
    pub(super) fn oldest_on(&self, link: usize) -> Option<Instant> {
        let lanes = self.lanes.iter().filter(|lane| lane.link == link);
        lanes
            .filter_map(|lane| lane.pending.front())
            .map(|pending| pending.since)
            .min()
    }

    /// Makes a connection again if it is gone, and sends again what was in flight on it. Tries until the oldest append in flight
    /// has waited for the timeout; then everything in flight ends with the error that is returned. False: the server's shards were
    /// changed, and lanes and links are made anew.
    pub(super) fn ensure_connected(&mut self, link: usize) -> Result<bool> {
        if self.links[link].connection.is_some() {
            return Ok(true);
        }
        let deadline = self.oldest_on(link).unwrap_or_else(Instant::now) + self.options.timeout;
        let mut pause = Duration::from_millis(10);
        loop {
            let left = deadline
                .saturating_duration_since(Instant::now())
                .max(Duration::from_millis(1));
            let error = match self.open_again(link, left) {
                Ok((connection, topology)) if topology.map_epoch != self.topology.map_epoch => {
                    match self.adopt(connection, topology, deadline) {
                        Ok(()) => return Ok(false),
                        Err(error) => error,
                    }
                }
                Ok((connection, topology)) => {
                    self.topology = topology;
                    self.links[link].connection = Some(connection);
                    for lane in 0..self.lanes.len() {
                        if self.lanes[lane].link == link {
                            self.send_again(lane);
                        }
                    }
                    if self.links[link].connection.is_some() {
                        return Ok(true);
                    }
                    Error::Lost {
                        address: self.links[link].address.clone(),
                        why: None,
                    }
                }
                Err(error) => error,
            };
            let hopeless =
                matches!(&error, Error::Refused(refusal) if !code_is_retryable(refusal.code));
            if hopeless || Instant::now() + pause >= deadline {
                self.fail(link, |address| Error::Lost {
                    address: address.to_owned(),
                    why: None,
                });
                return Err(error);
            }
            sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// A connection to a link's address. Where nobody answers there the shared one is asked: it may tell other shards, whose
    /// connection it then is, or another port of the same one.
    fn open_again(&mut self, link: usize, left: Duration) -> Result<(Connection, Topology)> {
        let own = Connection::open(&self.links[link].address, &self.options, left);
        let Err(error) = own else {
            return own;
        };
        let shared = &self.links[0].address;
        if link == 0 {
            return Err(error);
        }
        let Ok((connection, topology)) = Connection::open(shared, &self.options, left) else {
            return Err(error);
        };
        if topology.map_epoch != self.topology.map_epoch {
            return Ok((connection, topology));
        }
        let lane = self.lanes.iter().position(|lane| lane.link == link);
        let route = lane.and_then(|lane| topology.shards.get(lane));
        let now = route.map(|route| own_address(route, shared));
        match now.filter(|now| *now != self.links[link].address) {
            Some(now) => {
                let opened = Connection::open(&now, &self.options, left)?;
                self.links[link].address = now;
                Ok(opened)
            }
            None => Err(error),
        }
    }

    /// One log's part of an append has ended.
    pub(super) fn end_part(&mut self, ticket: u64, part: Result<Part>) {
        let Some(open) = self.open.get_mut(&ticket) else {
            return;
        };
        match part {
            Ok(part) => {
                if part.durability == Durability::Buffered {
                    open.ack.durability = Durability::Buffered;
                }
                open.ack.parts.extend(part.parts);
                if part.positions.is_empty() {
                    open.ack.versions = part.versions;
                } else if part.versions.len() == part.positions.len() {
                    open.ack.versions.resize(open.records, 0);
                    for (position, version) in part.positions.into_iter().zip(part.versions) {
                        open.ack.versions[position as usize] = version;
                    }
                }
            }
            Err(error) => {
                open.error.get_or_insert(error);
            }
        }
        open.parts_left -= 1;
        if open.parts_left > 0 {
            return;
        }
        let Some(Open { mut ack, error, .. }) = self.open.remove(&ticket) else {
            return;
        };
        ack.parts.sort_by_key(|part| part.log);
        self.ready
            .push_back((Ticket(ticket), error.map_or(Ok(ack), Err)));
    }
}

pub(super) fn timed_out(address: &str) -> Error {
    Error::io(
        "get an answer from",
        address,
        std::io::ErrorKind::TimedOut.into(),
    )
}
