//! What a connection still has to be told, and what each part of it waits for.
//!
//! Replies are encoded the moment their outcome is known and wait behind a *gate*: the lsn that must be durable before
//! they may leave. Two disciplines: `Any` (native: request ids let ready replies overtake gated ones) and `InOrder`
//! (HTTP: strictly in request order, with holes for requests whose outcome is not known yet). Invariant: no byte leaves
//! before the durable lsn has reached its gate. It does not know sockets or protocols.

use std::collections::VecDeque;

/// What was asked, for the latency figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Operation {
    Append,
    Get,
    History,
    Scan,
    Other,
}

/// One released group of replies: `count` of them, asked at `started_ns`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Released {
    pub operation: Operation,
    pub started_ns: u64,
    pub count: u32,
}

#[derive(Clone, Copy, Debug)]
struct Mark {
    /// Offset in the lane, counted from the lane's birth, behind the last byte of the group.
    end: u64,
    gate: u64,
    released: Released,
}

enum Slot {
    Hole(u64),
    Reply {
        bytes: Vec<u8>,
        gate: u64,
        released: Released,
    },
}

/// How replies of a connection may be ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    Any,
    InOrder,
}

/// See the module's header.
pub struct Outbox {
    order: Order,
    ready: Vec<u8>,
    lane: Vec<u8>,
    lane_start: u64,
    marks: VecDeque<Mark>,
    slots: VecDeque<Slot>,
    slot_bytes: usize,
    next_hole: u64,
    spare: Vec<u8>,
    sending: usize,
}

impl Outbox {
    pub fn new(order: Order) -> Outbox {
        Outbox {
            order,
            ready: Vec::new(),
            lane: Vec::new(),
            lane_start: 0,
            marks: VecDeque::new(),
            slots: VecDeque::new(),
            slot_bytes: 0,
            next_hole: 0,
            spare: Vec::new(),
            sending: 0,
        }
    }

    /// Add one reply, written by `write`. `gate` 0: may leave at once (in its order). Returns true if it is ready now.
    pub fn reply(
        &mut self,
        gate: u64,
        released: Released,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        if !self.slots.is_empty() {
            let mut bytes = Vec::new();
            write(&mut bytes);
            self.slot_bytes += bytes.len();
            self.slots.push_back(Slot::Reply {
                bytes,
                gate,
                released,
            });
            return false;
        }
        if gate == 0 && (self.order == Order::Any || self.lane.is_empty()) {
            write(&mut self.ready);
            return true;
        }
        write(&mut self.lane);
        self.mark(gate, released);
        false
    }

    fn mark(&mut self, gate: u64, released: Released) {
        let end = self.lane_start + self.lane.len() as u64;
        if let Some(last) = self.marks.back_mut()
            && last.gate == gate
            && (last.released.operation, last.released.started_ns)
                == (released.operation, released.started_ns)
        {
            last.end = end;
            last.released.count += released.count;
            return;
        }
        self.marks.push_back(Mark {
            end,
            gate,
            released,
        });
    }

    /// Keep a place for a reply that comes later. Only in order does a place matter; the number names it in both.
    pub fn hole(&mut self) -> u64 {
        self.next_hole += 1;
        if self.order == Order::InOrder {
            self.slots.push_back(Slot::Hole(self.next_hole));
        }
        self.next_hole
    }

    /// Fill a place. Returns true if bytes may have become ready.
    pub fn fill(
        &mut self,
        hole: u64,
        gate: u64,
        released: Released,
        write: impl FnOnce(&mut Vec<u8>),
    ) -> bool {
        if self.order == Order::Any {
            return self.reply(gate, released, write);
        }
        let Some(at) = self
            .slots
            .iter()
            .position(|s| matches!(s, Slot::Hole(h) if *h == hole))
        else {
            return false;
        };
        let mut bytes = Vec::new();
        write(&mut bytes);
        self.slot_bytes += bytes.len();
        self.slots[at] = Slot::Reply {
            bytes,
            gate,
            released,
        };
        self.advance()
    }

    /// Replies that no place stands before any more go to the lane. Returns true if bytes may have become ready.
    fn advance(&mut self) -> bool {
        let mut ready = false;
        while let Some(Slot::Reply { .. }) = self.slots.front() {
            let Some(Slot::Reply {
                bytes,
                gate,
                released,
            }) = self.slots.pop_front()
            else {
                unreachable!("just seen")
            };
            self.slot_bytes -= bytes.len();
            if gate == 0 && self.lane.is_empty() {
                self.ready.extend_from_slice(&bytes);
                ready = true;
            } else {
                self.lane.extend_from_slice(&bytes);
                self.mark(gate, released);
            }
        }
        ready
    }

    /// Give up a place: its request will be parsed again, or the connection ends before that.
    pub fn fill_nothing(&mut self, hole: u64) {
        self.slots
            .retain(|s| !matches!(s, Slot::Hole(h) if *h == hole));
        self.advance();
    }

    /// Bytes for a stream that stays open (server-sent events): they go in front of the hole that stands for it.
    pub fn stream(&mut self, hole: u64, bytes: Vec<u8>, released: Released) {
        match self
            .slots
            .iter()
            .position(|s| matches!(s, Slot::Hole(h) if *h == hole))
        {
            Some(0) if self.lane.is_empty() => self.ready.extend_from_slice(&bytes),
            Some(0) => {
                self.lane.extend_from_slice(&bytes);
                self.mark(0, released);
            }
            Some(at) => {
                self.slot_bytes += bytes.len();
                self.slots.insert(
                    at,
                    Slot::Reply {
                        bytes,
                        gate: 0,
                        released,
                    },
                );
            }
            None => {}
        }
    }

    /// Release everything whose gate `durable_lsn` has reached.
    pub fn release(&mut self, durable_lsn: u64, mut released: impl FnMut(Released)) {
        let mut end = self.lane_start;
        while let Some(mark) = self.marks.front() {
            if mark.gate > durable_lsn {
                break;
            }
            end = mark.end;
            released(mark.released);
            self.marks.pop_front();
        }
        let count = (end - self.lane_start) as usize;
        if count == 0 {
            return;
        }
        if count == self.lane.len() && self.ready.is_empty() {
            std::mem::swap(&mut self.ready, &mut self.lane);
        } else {
            self.ready.extend_from_slice(&self.lane[..count]);
            self.lane.drain(..count);
        }
        self.lane_start = end;
    }

    /// The next bytes for the socket, if none are under way.
    pub fn take(&mut self) -> Option<Vec<u8>> {
        if self.sending > 0 || self.ready.is_empty() {
            return None;
        }
        let bytes = std::mem::replace(&mut self.ready, std::mem::take(&mut self.spare));
        self.sending = bytes.len();
        Some(bytes)
    }

    /// A send came back with its buffer.
    pub fn sent(&mut self, mut buffer: Vec<u8>) {
        self.sending = 0;
        // A long reply must not pin its buffer for the life of the connection.
        if buffer.capacity() <= 256 * 1024 {
            buffer.clear();
            self.spare = buffer;
        }
    }

    pub fn is_gated(&self) -> bool {
        !self.marks.is_empty()
    }
    /// Nothing left to say, nothing under way.
    pub fn is_idle(&self) -> bool {
        self.sending == 0 && self.ready.is_empty() && self.lane.is_empty() && self.slots.is_empty()
    }
    /// Bytes are ready or under way that the client has not taken.
    pub fn has_unsent(&self) -> bool {
        self.sending > 0 || !self.ready.is_empty() || !self.lane.is_empty()
    }
    /// Bytes held for this connection.
    pub fn bytes(&self) -> usize {
        self.ready.len() + self.lane.len() + self.slot_bytes + self.sending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OP: Released = Released {
        operation: Operation::Append,
        started_ns: 1,
        count: 1,
    };

    fn text(outbox: &mut Outbox) -> String {
        let Some(bytes) = outbox.take() else {
            return String::new();
        };
        let text = String::from_utf8(bytes.clone()).unwrap();
        outbox.sent(bytes);
        text
    }

    #[test]
    fn a_place_that_is_given_up_holds_nothing_back() {
        let mut o = Outbox::new(Order::InOrder);
        let hole = o.hole();
        o.reply(0, OP, |b| b.extend_from_slice(b"behind"));
        assert_eq!(text(&mut o), "");
        o.fill_nothing(hole);
        o.release(0, |_| ());
        assert_eq!(text(&mut o), "behind");
        assert!(o.is_idle());
    }

    #[test]
    fn a_gated_reply_leaves_only_when_its_lsn_is_durable() {
        let mut o = Outbox::new(Order::Any);
        assert!(!o.reply(5, OP, |b| b.extend(b"five")));
        o.release(4, |_| panic!("too early"));
        assert_eq!(text(&mut o), "");
        let mut counts = 0;
        o.release(5, |r| counts += r.count);
        assert_eq!((text(&mut o).as_str(), counts), ("five", 1));
    }

    #[test]
    fn native_replies_overtake_and_http_replies_do_not() {
        let mut o = Outbox::new(Order::Any);
        o.reply(5, OP, |b| b.extend(b"gated"));
        o.reply(0, OP, |b| b.extend(b"now"));
        assert_eq!(text(&mut o), "now");
        let mut o = Outbox::new(Order::InOrder);
        o.reply(5, OP, |b| b.extend(b"gated "));
        o.reply(0, OP, |b| b.extend(b"now"));
        assert_eq!(text(&mut o), "");
        o.release(5, |_| {});
        assert_eq!(text(&mut o), "gated now");
    }

    #[test]
    fn holes_keep_the_order_of_requests() {
        let mut o = Outbox::new(Order::InOrder);
        let first = o.hole();
        o.reply(0, OP, |b| b.extend(b"second "));
        let third = o.hole();
        o.reply(7, OP, |b| b.extend(b"fourth"));
        assert!(!o.fill(third, 0, OP, |b| b.extend(b"third ")));
        assert_eq!(text(&mut o), "");
        assert!(o.fill(first, 0, OP, |b| b.extend(b"first ")));
        assert_eq!(text(&mut o), "first second third ");
        o.release(7, |_| {});
        assert_eq!(text(&mut o), "fourth");
        assert!(o.is_idle());
    }

    #[test]
    fn a_stream_keeps_its_place_behind_what_was_asked_before() {
        let mut o = Outbox::new(Order::InOrder);
        o.reply(3, OP, |b| b.extend(b"gated "));
        let earlier = o.hole();
        let follow = o.hole();
        o.stream(follow, b"one ".into(), OP);
        assert_eq!(text(&mut o), "");
        o.release(3, |_| {});
        assert_eq!(text(&mut o), "gated ");
        o.fill(earlier, 4, OP, |b| b.extend(b"earlier "));
        o.stream(follow, b"two ".into(), OP);
        assert_eq!(text(&mut o), "");
        o.release(4, |_| {});
        assert_eq!(text(&mut o), "earlier one two ");
        o.stream(follow, b"three".into(), OP);
        assert_eq!(text(&mut o), "three");
    }

    #[test]
    fn one_send_at_a_time() {
        let mut o = Outbox::new(Order::Any);
        o.reply(0, OP, |b| b.extend(b"a"));
        let a = o.take().unwrap();
        o.reply(0, OP, |b| b.extend(b"b"));
        assert!(o.take().is_none());
        o.sent(a);
        assert_eq!(text(&mut o), "b");
    }
}
