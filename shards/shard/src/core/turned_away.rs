//! Clients that are not served, or no longer: too many of them, too slow to take, too slow to ask, too late before the end.
//!
//! Whoever can still be told is told why before the connection closes. Time in which this process did not run counts for
//! nobody. It does not close sockets (`turn` does).

use wire::{Code, Refusal};

use super::Core;
use crate::conns::Connection;
use crate::driver::{ConnId, Door};
use crate::outbox::{Operation, Released};
use crate::partition::refuse_for;

/// A client that is slower than this while it sends a large request is not waited for.
const REQUEST_BYTES_PER_SECOND: u64 = 64 << 10;

/// Connections that are not waited for any longer.
#[derive(Default)]
pub(crate) struct LateClients {
    /// They have taken no byte of what is ready for them for too long.
    pub taking: Vec<ConnId>,
    /// They have begun a request and do not end it.
    pub asking: Vec<ConnId>,
}

impl<S> Core<S> {
    /// Over the bound of connections (or of descriptors): say so and close.
    pub(crate) fn refuse_connection(&mut self, conn: &mut Connection, few_descriptors: bool) {
        let max = self.shared.bounds.connections_max;
        let why = if few_descriptors {
            "this server has no descriptors left for more connections: try again later".to_owned()
        } else {
            format!("this shard serves {max} connections already: try again later")
        };
        self.refuse_and_close(conn, &refuse_for(Code::Overloaded, 1000, why));
    }

    /// Say why, then close.
    pub(crate) fn refuse_and_close(&mut self, conn: &mut Connection, refusal: &Refusal) {
        self.count_refusal(refusal);
        let now = self.moment();
        let voice = match conn.door {
            Door::Http => crate::jobs::Voice::Http {
                keep_alive: false,
                head: false,
            },
            _ => crate::jobs::Voice::Native { id: 0, opcode: 0 },
        };
        let released = Released {
            operation: Operation::Other,
            started_ns: self.now.monotonic_ns,
            count: 1,
        };
        conn.out.reply(0, released, |out| {
            crate::render::refusal(out, &voice, now, refusal, None)
        });
        conn.closing = true;
        conn.input = Vec::new();
    }

    /// Clients that take or send too slowly. What passed before `awake_since_ns` is not held against them: this process
    /// may have been stopped, and their bytes wait in the kernel.
    pub(crate) fn late_clients(&mut self, awake_since_ns: u64) -> LateClients {
        let now = self.now.monotonic_ns;
        let (limit, whole_after) = (
            self.shared.bounds.stalled_client_ns,
            self.shared.bounds.request_timeout_ns,
        );
        let passed = |since_ns: u64| now.saturating_sub(since_ns.max(awake_since_ns));
        let mut late = LateClients::default();
        let mut waiting = Vec::new();
        (self.unsent_bytes, self.unparsed_bytes) = (0, 0);
        for conn in self.conns.iter_mut() {
            self.unsent_bytes += conn.out.bytes() as u64;
            self.unparsed_bytes += conn.input.len() as u64;
            let arriving = !conn.input.is_empty()
                && conn.input.len() < conn.needed
                && !(conn.stalled || conn.paused || conn.pausing || conn.closing);
            if conn.out.has_unsent() && !conn.out.is_gated() && passed(conn.progress_ns) > limit {
                late.taking.push(conn.id);
            } else if arriving
                && passed(conn.input_since_ns)
                    > whole_after
                        + conn.input.len() as u64 * 1_000_000_000 / REQUEST_BYTES_PER_SECOND
            {
                late.asking.push(conn.id);
            } else if !conn.input.is_empty() && !conn.stalled {
                // Waits for a bound of the whole shard: nothing else would remind us of it.
                waiting.push(conn.id);
            }
        }
        for id in waiting {
            self.touch(id);
        }
        late
    }

    /// A request was begun and is not whole in time: say so and close.
    pub(crate) fn refuse_late_request(&mut self, id: ConnId) {
        let Some(mut conn) = self.conns.check_out(id) else {
            return;
        };
        let message = format!(
            "the request was begun and is not whole after {} s: send requests in one go",
            self.shared.bounds.request_timeout_ns / 1_000_000_000
        );
        let refusal = crate::partition::refuse(Code::RequestTimeout, message);
        self.refuse_and_close(&mut conn, &refusal);
        self.conns.check_in(conn);
        self.touch(id);
    }

    /// HTTP requests that the drain found unfinished, or came behind its beginning: nothing of them was done. A native client
    /// sends again what was not answered, to whoever serves next, and is told nothing that would keep it from that.
    pub(crate) fn refuse_what_the_drain_leaves(&mut self) {
        let left = |c: &&mut Connection| {
            c.door == Door::Http && !c.input.is_empty() && c.jobs == 0 && !c.closing
        };
        let left: Vec<_> = self.conns.iter_mut().filter(left).map(|c| c.id).collect();
        for id in left {
            if let Some(mut conn) = self.conns.check_out(id) {
                self.refuse_and_close(&mut conn, &refuse_draining());
                self.conns.check_in(conn);
                self.touch(id);
            }
        }
    }
}

/// Why a server that ends takes no more.
pub(crate) fn refuse_draining() -> Refusal {
    let message = "draining: this server is shutting down";
    refuse_for(Code::Unavailable, 1000, message)
}
