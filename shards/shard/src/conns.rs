//! Connections of one shard: what has come in unparsed, what has to go out, and when one is too slow to keep.
//!
//! A connection's input is parsed in place in the receive buffer; only what straddles two receives is copied. It does not
//! know what requests mean.

use crate::driver::{ConnId, Door};
use crate::jobs::KeyUse;
use crate::outbox::{Order, Outbox};

/// One client's connection.
pub struct Connection {
    pub id: ConnId,
    pub door: Door,
    /// Has shown the token, where one is needed.
    pub authorised: bool,
    /// Received and not parsed: the start of a request, or whole ones while the connection is stalled.
    pub input: Vec<u8>,
    /// How long `input` must get before parsing it again makes sense.
    pub needed: usize,
    /// How much of the unfinished request in `input` is understood (HTTP).
    pub progress: wire::http::Progress,
    pub out: Outbox,
    /// Jobs that will answer here.
    pub jobs: u32,
    /// Of them: histories, scans and tails, whose replies may be large.
    pub heavy: u32,
    /// An append waits for room in the log, or for what it needs to know: nothing is parsed until then.
    pub stalled: bool,
    /// What was found out for the request that is parsed next, until it is taken.
    pub key_use: Option<KeyUse>,
    /// Receiving is switched off (or was switched off by the kernel for want of buffers).
    pub paused: bool,
    /// Receiving is being switched off.
    pub pausing: bool,
    /// The client has sent its last byte.
    pub ended: bool,
    /// Close as soon as everything is said; nothing more is parsed.
    pub closing: bool,
    /// When the oldest unparsed byte arrived.
    pub input_since_ns: u64,
    /// When the client last took bytes, or had none to take.
    pub progress_ns: u64,
    pub continue_sent: bool,
    /// Stands in the shard's list of connections with gated replies / with something to do.
    pub listed_gated: bool,
    pub listed_touched: bool,
}

impl Connection {
    pub fn new(id: ConnId, door: Door, authorised: bool, now_ns: u64) -> Connection {
        let order = match door {
            Door::Http => Order::InOrder,
            Door::Native | Door::NativeShard => Order::Any,
        };
        Connection {
            id,
            door,
            authorised,
            input: Vec::new(),
            needed: 0,
            progress: wire::http::Progress::default(),
            out: Outbox::new(order),
            jobs: 0,
            heavy: 0,
            stalled: false,
            key_use: None,
            paused: false,
            pausing: false,
            ended: false,
            closing: false,
            input_since_ns: now_ns,
            progress_ns: now_ns,
            continue_sent: false,
            listed_gated: false,
            listed_touched: false,
        }
    }
}

/// Connections by the driver's id.
#[derive(Default)]
pub struct Connections {
    table: Vec<Option<Box<Connection>>>,
    live: usize,
}

fn index(id: ConnId) -> usize {
    (id.0 & 0xffff_ffff) as usize
}

impl Connections {
    pub fn insert(&mut self, connection: Connection) {
        let at = index(connection.id);
        if self.table.len() <= at {
            self.table.resize_with(at + 1, || None);
        }
        assert!(
            self.table[at].is_none(),
            "the driver gave the id of a live connection"
        );
        self.table[at] = Some(Box::new(connection));
        self.live += 1;
    }
    #[inline]
    pub fn get_mut(&mut self, id: ConnId) -> Option<&mut Connection> {
        self.table
            .get_mut(index(id))?
            .as_deref_mut()
            .filter(|c| c.id == id)
    }
    /// Take a connection out to work on it beside everything else; `check_in` puts it back.
    #[inline]
    pub fn check_out(&mut self, id: ConnId) -> Option<Box<Connection>> {
        self.table.get_mut(index(id))?.take_if(|c| c.id == id)
    }
    #[inline]
    pub fn check_in(&mut self, connection: Box<Connection>) {
        let at = index(connection.id);
        self.table[at] = Some(connection);
    }
    pub fn remove(&mut self, id: ConnId) -> Option<Box<Connection>> {
        let gone = self.check_out(id);
        self.live -= usize::from(gone.is_some());
        gone
    }
    pub fn len(&self) -> usize {
        self.live
    }
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Connection> {
        self.table.iter_mut().filter_map(Option::as_deref_mut)
    }
}
