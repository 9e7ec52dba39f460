//! Who waits for room in the log: connections whose append had to wait, and the other shards' requests.
//!
//! They are tried again in the order in which they came, and only the first may take buffers: a large request is not
//! overtaken for ever by small ones. Requests of other shards keep their order among themselves and stand in the line once.

use super::Core;
use crate::driver::ConnId;
use crate::hop::{Item, Origin, Parcel};
use crate::partition::Later;

/// A request from another shard that waits its turn, bytes still in the parcel it came in.
pub(super) struct Inbound<S> {
    from: usize,
    parcel: Box<Parcel<S>>,
    next: usize,
}

/// Who waits for room in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Waiter {
    /// A connection, stalled on an append.
    Connection(ConnId),
    /// The first of the other shards' requests.
    Inbound,
    /// Compaction, with a record to copy.
    Space,
}

impl<S> Core<S> {
    /// Mail from another shard. Answers are taken at once; requests in order, as the log has room.
    pub(crate) fn mail(
        &mut self,
        from: usize,
        parcel: Box<Parcel<S>>,
        mut socket: impl FnMut(crate::driver::Door, S),
    ) {
        let mut parcel = parcel;
        let mut asks = false;
        for item in &mut parcel.items {
            match item {
                Item::Ask { .. } => asks = true,
                Item::Answer { .. } | Item::Socket { .. } => {}
            }
        }
        let items = std::mem::take(&mut parcel.items);
        let mut kept = Vec::with_capacity(if asks { items.len() } else { 0 });
        for item in items {
            match item {
                Item::Answer { ticket, answered } => self.answers.push_back((ticket, 0, answered)),
                Item::Socket { door, socket: s } => socket(door, s),
                ask @ Item::Ask { .. } => kept.push(ask),
            }
        }
        if !kept.is_empty() {
            parcel.items = kept;
            self.inbound.push_back(Inbound {
                from,
                parcel,
                next: 0,
            });
        }
        self.work_inbound();
    }

    /// Serve other shards' requests until one has to wait: then all behind it do.
    pub(crate) fn work_inbound(&mut self) {
        if !self.inbound_waits {
            self.serve_inbound();
        }
    }

    /// True if one was served.
    fn serve_inbound(&mut self) -> bool {
        let mut served = false;
        self.begin_try(Waiter::Inbound);
        while let Some(mut inbound) = self.inbound.pop_front() {
            while let Some(Item::Ask { ticket, ask }) = inbound.parcel.items.get(inbound.next) {
                let origin = Origin {
                    shard: inbound.from,
                    ticket: *ticket,
                };
                let arena = &inbound.parcel.arena;
                let ask = ask.map(|piece| &arena[piece.range()]);
                if let Err(later) = self.serve(origin, &ask) {
                    self.inbound.push_front(inbound);
                    self.inbound_waits = true;
                    self.wait_for(Waiter::Inbound, later);
                    self.end_try();
                    return served;
                }
                inbound.next += 1;
                served = true;
            }
        }
        self.end_try();
        served
    }

    /// A connection's append was not taken.
    pub(crate) fn connection_waits(&mut self, id: ConnId, later: Later) {
        self.wait_for(Waiter::Connection(id), later);
    }

    pub(super) fn wait_in_line(&mut self, waiter: Waiter) {
        self.line.push_back(waiter);
        self.partition.log.stand_in_line(true, false);
    }

    /// Try again what waits for room, in order, up to the first that still has to. One that got its room and wants more
    /// stands at the end.
    pub(crate) fn work_line(&mut self) {
        while let Some(first) = self.line.pop_front() {
            let others = self.line.len();
            self.partition.log.stand_in_line(others > 0, true);
            let got = match first {
                Waiter::Connection(id) => self.retry(id),
                Waiter::Inbound => {
                    self.inbound_waits = false;
                    self.serve_inbound()
                }
                Waiter::Space => {
                    // It works behind the requests of a turn.
                    self.line.push_front(first);
                    self.partition.log.stand_in_line(true, false);
                    return;
                }
            };
            let waits_on = self.line.len() > others;
            if waits_on && !got {
                self.line.rotate_right(1);
            }
            self.partition
                .log
                .stand_in_line(!self.line.is_empty(), false);
            if waits_on && !got {
                return;
            }
        }
    }

    /// Compaction waits for room like a request; once.
    pub(crate) fn space_waits(&mut self) {
        if !self.line.contains(&Waiter::Space) {
            self.wait_in_line(Waiter::Space);
        }
    }

    /// Compaction does not wait any more.
    pub(crate) fn space_leaves_line(&mut self) {
        self.line.retain(|waiter| *waiter != Waiter::Space);
        self.partition
            .log
            .stand_in_line(!self.line.is_empty(), false);
    }

    /// Whether compaction is the first in line; it may take room then, until `end_turn_of_space`.
    pub(crate) fn begin_turn_of_space(&mut self) -> bool {
        let first = self.line.front() == Some(&Waiter::Space);
        if first {
            self.partition.log.stand_in_line(true, true);
        }
        first
    }

    /// `got`: it has what it waited for, or needs it no more, and the next in line follow. It stays the first otherwise.
    pub(crate) fn end_turn_of_space(&mut self, got: bool) {
        if got {
            self.space_leaves_line();
            self.work_line();
        } else {
            self.partition.log.stand_in_line(true, false);
        }
    }

    pub(crate) fn has_inbound(&self) -> bool {
        !self.inbound.is_empty()
    }
}
