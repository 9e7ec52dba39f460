//! Sockets in a turn: taken in here or handed to a shard with fewer, sent to, held back while their clients are, closed.
//!
//! A shard's count in `Shared::load` holds every connection from the moment it was given to it until it is forgotten. It
//! does not know what requests and replies say.

use super::Shard;
use crate::conns::Connection;
use crate::driver::{ConnId, Descriptors, Door, Driver};
use crate::hop::Item;

/// Connections over the bound that are told so at a time; those beyond are dropped unheard, because each holds operations
/// of the ring, which the log must not be left without.
pub(crate) const REFUSED_AT_ONCE: usize = 64;
/// A connection is handed over when this shard has so many more than the least loaded one.
const SKEW_MAX: u32 = 4;

impl<D: Driver> Shard<D> {
    pub(super) fn accepted(&mut self, door: Door, socket: D::Socket) {
        if self.stopping {
            return;
        }
        let few_descriptors = match self.driver.descriptors(&socket) {
            Descriptors::Enough => false,
            Descriptors::Few => true,
            Descriptors::Last => {
                self.core.metrics.refusal(wire::Code::Overloaded);
                return;
            }
        };
        if few_descriptors {
            self.core.metrics.accepted(false);
            self.core.shared.load[self.core.id].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            return self.adopt(door, socket, true);
        }
        let id = self.core.id;
        let target = if door == Door::NativeShard {
            id
        } else {
            self.core.least_loaded(SKEW_MAX)
        };
        self.core.metrics.accepted(target != id);
        if target == id {
            self.serve_socket(door, socket);
        } else {
            self.core.shared.load[target].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.core.outbound[target]
                .items
                .push(Item::Socket { door, socket });
        }
    }

    fn serve_socket(&mut self, door: Door, socket: D::Socket) {
        self.core.shared.load[self.core.id].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.adopt(door, socket, false);
    }

    pub(super) fn adopt(&mut self, door: Door, socket: D::Socket, few_descriptors: bool) {
        let (open, most) = (
            self.core.conns.len(),
            self.core.shared.bounds.connections_max as usize,
        );
        if open >= most + REFUSED_AT_ONCE {
            self.core.shared.load[self.core.id].fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
            self.core.metrics.refusal(wire::Code::Overloaded);
            return;
        }
        let authorised = self.core.shared.token.is_none();
        let conn = self.driver.adopt(socket);
        let mut connection = Connection::new(conn, door, authorised, self.core.now.monotonic_ns);
        if open >= most || few_descriptors {
            self.core
                .refuse_connection(&mut connection, few_descriptors);
        }
        self.core.conns.insert(connection);
        self.core.touch(conn);
    }

    pub(super) fn sent(&mut self, id: ConnId, data: Vec<u8>, ok: bool) {
        let now_ns = self.core.now.monotonic_ns;
        let Some(conn) = self.core.conns.get_mut(id) else {
            return;
        };
        conn.out.sent(data);
        conn.progress_ns = now_ns;
        if ok {
            self.core.touch(id);
        } else {
            self.close(id);
        }
    }

    pub(super) fn close(&mut self, id: ConnId) {
        if self.forget_connection(id) {
            self.driver.close(id);
        }
    }

    /// Close behind a last reply that the client has to be able to read.
    fn finish(&mut self, id: ConnId) {
        if self.forget_connection(id) {
            self.driver.finish(id);
        }
    }

    fn forget_connection(&mut self, id: ConnId) -> bool {
        let known = self.core.conns.remove(id).is_some();
        if known {
            self.core.shared.load[self.core.id].fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
        }
        known
    }

    pub(super) fn flush_connections(&mut self) {
        let mut touched = std::mem::take(&mut self.core.touched);
        for id in touched.drain(..) {
            self.flush_connection(id);
        }
        // Retried requests may have touched connections again: they have their turn now, not a sleep later.
        for id in std::mem::replace(&mut self.core.touched, touched) {
            self.flush_connection(id);
        }
    }

    fn flush_connection(&mut self, id: ConnId) {
        let (unparsed_max, unsent_max) = (
            self.core.shared.bounds.unparsed_bytes_max,
            self.core.shared.bounds.unsent_bytes_max,
        );
        let Some(conn) = self.core.conns.get_mut(id) else {
            return;
        };
        conn.listed_touched = false;
        // Waits for a commit that will not come; its client learns after a restart what became of it.
        if conn.out.is_gated() && self.core.partition.log.failed().is_some() {
            return self.close(id);
        }
        if let Some(bytes) = conn.out.take() {
            conn.progress_ns = self.core.now.monotonic_ns;
            self.driver.send(id, bytes);
        }
        let said = conn.out.is_idle() && conn.jobs == 0;
        let whole = !conn.input.is_empty() && conn.input.len() >= conn.needed;
        if conn.ended && said && (conn.closing || (!conn.stalled && !whole)) {
            return self.close(id);
        }
        if conn.closing && said {
            return self.finish(id);
        }
        // A request that is still arriving is let in whatever its size (the parser bounds it); whole ones that cannot be
        // taken yet are not piled up.
        let crowded =
            (whole && conn.input.len() > unparsed_max) || conn.out.bytes() > 2 * unsent_max;
        if conn.ended {
            // Nothing more to read.
        } else if crowded && !conn.paused && !conn.pausing {
            conn.pausing = true;
            self.driver.pause(id);
        } else if conn.paused && !crowded {
            (conn.paused, conn.pausing) = (false, false);
            self.driver.resume(id);
        }
        if whole && !conn.stalled && !conn.closing {
            self.parsed_late |= self.core.parse_on(id);
        }
    }
}
