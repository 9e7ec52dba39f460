//! Lanes and links from a topology: at connect, and again when a reconnect finds that the server's shards were changed.
//!
//! Then no log is what it was. An append that had no answer may have been stored by a log that is gone, and the new ones know
//! it by its frame as it was, producer and sequence included (PROTOCOL.md). So each is asked for in that form first, one after the
//! other in the order of its lane; a refusal says that it was not stored, and so nothing behind it was. What is left is split by the
//! new slots and numbered above everything that was ever used, before anything that the caller sends from then on.
//!
//! Invariant: an append leaves its lane only with an answer or into `held`, and asking twice changes nothing: a connection that
//! ends on the way costs time only.

use std::thread::sleep;
use std::time::{Duration, Instant};

use wire::slot::{SLOTS, slot_of};
use wire::{Code, Refusal, ShardRoute, Topology};

use super::{Client, Link, Part, delivery};
use crate::connection::{Answer, Connection};
use crate::error::{Error, Result, code_is_retryable};
use crate::lane::{Lane, Pending, decoded, with_records};
use crate::options::ConnectOptions;
use crate::protocol::Window;

/// Answers of a producer that a log remembers, at least: more may not be in flight, or a repeat could not be told from news.
const PRODUCER_WINDOW_MAX: usize = 128;
/// How long a shard's own port may take before the shared port serves for it.
const SHARD_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A part of an append that is to be sent by whatever lanes its records have now.
pub(super) struct Held {
    pub ticket: u64,
    /// Where its records stand in the caller's append; empty: it is the whole.
    positions: Vec<u32>,
    /// As it was sent to a log that is gone.
    frame: Vec<u8>,
    /// When that was.
    since: Instant,
}

/// What a topology makes of an address.
pub(super) struct Layout {
    /// The first one is to the address that was given.
    pub links: Vec<Link>,
    pub lanes: Vec<Lane>,
    /// Lane of each slot.
    pub lane_of_slot: Vec<u16>,
}

impl Layout {
    /// Opens a connection to every shard's own port that can be reached. `shared`: one to `address`, if there is one.
    /// `sequence_of` a log: the next one there.
    pub fn new(
        address: &str,
        shared: Option<Connection>,
        topology: &Topology,
        options: &ConnectOptions,
        sequence_of: impl Fn(u32) -> u64,
    ) -> Layout {
        let mut window = options.window.max(1);
        if options.producer_id.is_some() {
            window = window.min(PRODUCER_WINDOW_MAX);
        }
        let mut links = vec![Link {
            address: address.to_owned(),
            connection: shared,
            window: Window::new(window),
            turned_away: false,
        }];
        let mut lanes = Vec::new();
        let mut lane_of_slot = vec![0; usize::from(SLOTS)];
        for (lane, route) in (0..).zip(&topology.shards) {
            let mut link = 0;
            if options.shard_aware {
                let own = own_address(route, address);
                let timeout = options.timeout.min(SHARD_CONNECT_TIMEOUT);
                if let Ok((connection, _)) = Connection::open(&own, options, timeout) {
                    link = links.len();
                    links.push(Link {
                        address: own,
                        connection: Some(connection),
                        window: Window::new(window),
                        turned_away: false,
                    });
                }
            }
            lanes.push(Lane::new(route.log, link, sequence_of(route.log)));
            let last = route.slot_last.min(SLOTS - 1);
            for slot in route.slot_first..=last {
                lane_of_slot[usize::from(slot)] = lane;
            }
        }
        Layout {
            links,
            lanes,
            lane_of_slot,
        }
    }
}

/// The address of a shard's own port, for who reached its server at `reached`.
pub(super) fn own_address(route: &ShardRoute, reached: &str) -> String {
    let host = reachable_host(&route.address, reached);
    format!("{host}:{}", route.native_port)
}

/// A server that listens on every address tells that one; the host that was reached is the one to use.
fn reachable_host<'a>(told: &'a str, reached: &'a str) -> &'a str {
    match told {
        "" | "0.0.0.0" | "::" | "[::]" => {
            reached.rsplit_once(':').map_or(reached, |(host, _)| host)
        }
        told => told,
    }
}

/// What a log of now says to an append that was sent to a log of before.
enum Asked {
    /// It is stored: it was, or it is now, under the sequence that it had.
    Stored(Part),
    /// It is not, and this log cannot take it as it is.
    NotStored,
    /// It is not, and will not be.
    Refused(Refusal),
}

impl Client {
    /// Takes up a topology in which the slots are divided otherwise. `connection` is to a server that has told it.
    ///
    /// Errors: those of the connection; then it is to be done again, over another one.
    pub(super) fn adopt(
        &mut self,
        mut connection: Connection,
        topology: Topology,
        deadline: Instant,
    ) -> Result<()> {
        if topology.shards.is_empty() {
            return Err(Error::broken(
                &self.links[0].address,
                "its topology has no shards",
            ));
        }
        // Every connection was to the server of before.
        for link in 0..self.links.len() {
            self.disconnect(link);
        }
        for lane in 0..self.lanes.len() {
            while let Some(pending) = self.lanes[lane].pending.front() {
                let asked = ask(&mut connection, pending, deadline, &self.links[0].address)?;
                if matches!(asked, Asked::NotStored) {
                    break;
                }
                let pending = self.lanes[lane]
                    .pending
                    .pop_front()
                    .expect("just looked at");
                let part = match asked {
                    Asked::Stored(part) => {
                        self.note_told(&topology, &pending);
                        Ok(part)
                    }
                    Asked::Refused(refusal) => Err(Error::Refused(refusal)),
                    Asked::NotStored => unreachable!("handled above"),
                };
                self.end_part(pending.ticket, part);
            }
        }
        // Above every sequence that any log may have used, or was asked to.
        let next = self.lanes.iter().map(|lane| lane.next_sequence).max();
        let next = next.unwrap_or(1);
        let mut left: Vec<Held> = std::mem::take(&mut self.held).into();
        for pending in self
            .lanes
            .iter_mut()
            .flat_map(|lane| lane.pending.drain(..))
        {
            left.push(Held {
                ticket: pending.ticket,
                positions: pending.positions,
                frame: pending.frame,
                since: pending.since,
            });
        }
        left.sort_by_key(|held| held.ticket);
        self.held = left.into();
        let address = self.links[0].address.clone();
        let shared = (connection.address() == address).then_some(connection);
        let Layout {
            links,
            mut lanes,
            lane_of_slot,
        } = Layout::new(&address, shared, &topology, &self.options, |_| next);
        // A log that took what it was asked for, as news under its old sequence, goes on behind that one. One that only knew
        // it takes any sequence above all. Which of the two it was the answer does not say: the second is tried first, since
        // no log can take it for a repeat.
        for (log, sequence) in self.told.drain(..) {
            if let Some(lane) = lanes.iter_mut().find(|lane| lane.log == log) {
                lane.otherwise = Some(sequence + 1).filter(|sequence| *sequence != next);
            }
        }
        (self.links, self.lanes, self.lane_of_slot) = (links, lanes, lane_of_slot);
        self.topology = topology;
        Ok(())
    }

    fn note_told(&mut self, topology: &Topology, pending: &Pending) {
        let (_, append) = decoded(&pending.frame);
        let slot = append.iter().next().map(|record| slot_of(record.key));
        let route = topology.shards.iter().find(|route| {
            slot.is_some_and(|slot| (route.slot_first..=route.slot_last).contains(&slot))
        });
        let Some(log) = route.map(|route| route.log) else {
            return;
        };
        match self.told.iter_mut().find(|(told, _)| *told == log) {
            Some((_, largest)) => *largest = (*largest).max(pending.sequence),
            None => self.told.push((log, pending.sequence)),
        }
    }

    /// Sends what is held while there is room for it.
    pub(super) fn send_held(&mut self) {
        while let Some(held) = self.held.pop_front() {
            let parts = self.split_held(&held);
            if parts.len() > 1 {
                if let Some(open) = self.open.get_mut(&held.ticket) {
                    open.parts_left += parts.len() - 1;
                }
                for part in parts.into_iter().rev() {
                    self.held.push_front(part);
                }
                continue;
            }
            let (_, append) = decoded(&held.frame);
            let first = append.iter().next().expect("an append has a record");
            let lane = self.lane_of_key(first.key);
            if !self.has_room(lane) {
                self.held.push_front(held);
                return;
            }
            self.held.push_front(held);
            let connected = self.ensure_connected(self.lanes[lane].link);
            if matches!(connected, Ok(false)) {
                continue;
            }
            let Some(held) = self.held.pop_front() else {
                return;
            };
            match connected {
                Err(error) => self.end_part(held.ticket, Err(error)),
                Ok(_) => {
                    let (_, append) = decoded(&held.frame);
                    let (ticket, since) = (held.ticket, held.since);
                    self.put_part(
                        lane,
                        ticket,
                        append.stream,
                        append.iter(),
                        held.positions.clone(),
                        since,
                    );
                }
            }
        }
    }

    /// Sends everything that is held, waiting for answers where there is no room.
    pub(super) fn send_all_held(&mut self) {
        loop {
            self.send_held();
            if self.held.is_empty() {
                return;
            }
            match self.link_of_oldest() {
                Some(link) => self.pump(link),
                None => return,
            }
        }
    }

    /// One for each lane that its records have now.
    fn split_held(&self, held: &Held) -> Vec<Held> {
        let (_, append) = decoded(&held.frame);
        let ordinals = (0..).zip(append.iter());
        let split = self.split(ordinals.map(|(ordinal, record)| (ordinal, record.key)));
        let part = |(_, ordinals): (usize, Vec<u32>)| Held {
            ticket: held.ticket,
            positions: match held.positions.is_empty() {
                true => ordinals.clone(),
                false => (ordinals.iter())
                    .map(|ordinal| held.positions[*ordinal as usize])
                    .collect(),
            },
            frame: with_records(&held.frame, &ordinals),
            since: held.since,
        };
        split.into_iter().map(part).collect()
    }

    /// The connection on which the oldest append is in flight.
    pub(super) fn link_of_oldest(&self) -> Option<usize> {
        let fronts = self
            .lanes
            .iter()
            .filter_map(|lane| Some((lane.pending.front()?.ticket, lane.link)));
        fronts.min().map(|(_, link)| link)
    }
}

/// Sends an append as it was before and waits for the answer.
fn ask(
    connection: &mut Connection,
    pending: &Pending,
    deadline: Instant,
    address: &str,
) -> Result<Asked> {
    loop {
        connection.writer().extend_from_slice(&pending.frame);
        connection.flush()?;
        let Some((id, answer)) = connection.next_until(deadline)? else {
            return Err(delivery::timed_out(address));
        };
        if id != pending.id {
            return Err(Error::broken(
                address,
                format!("request {id} was answered, {} was asked", pending.id),
            ));
        }
        match answer {
            Answer::Appended {
                durability,
                parts,
                versions,
            } => {
                return Ok(Asked::Stored(Part {
                    positions: pending.positions.clone(),
                    durability,
                    parts,
                    versions,
                }));
            }
            Answer::Refused(refusal) => match refusal.code {
                Code::SequenceOutOfOrder | Code::IdempotencyMismatch | Code::Malformed => {
                    return Ok(Asked::NotStored);
                }
                code if code_is_retryable(code) && Instant::now() < deadline => {
                    let wait = refusal.retry_after_ms.unwrap_or(10).max(1);
                    sleep(Duration::from_millis(wait.into()));
                }
                _ => return Ok(Asked::Refused(refusal)),
            },
            other => {
                return Err(Error::broken(
                    address,
                    format!("{other:?} answers an append"),
                ));
            }
        }
    }
}
