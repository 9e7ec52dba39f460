//! Native gets: from memory on the spot, else by the record's owner.
//!
//! What is shown from memory has the stream and key that were asked for, and is gated on its lsn until that is durable.

use index::Digest;
use wire::http::Preconditions;
use wire::native::{self, opcode};

use crate::conns::Connection;
use crate::core::{Core, State};
use crate::hop::Ask;
use crate::jobs::{Voice, Work};
use crate::outbox::{Operation, Released};
use crate::records::record_out;

impl<S> Core<S> {
    pub(super) fn native_get(
        &mut self,
        conn: &mut Connection,
        id: u64,
        stream: &[u8],
        key: &[u8],
        digest: Option<Digest>,
    ) {
        let owner = self.owner_of(key);
        if owner == self.id && self.state == State::Ready {
            let (log, mark) = (self.log_number(), self.mark());
            let failed = self.partition.log.failed().is_some();
            if let Some((record, gate)) = self.partition.find_shown(stream, key, digest) {
                if gate > 0 && failed {
                    let refusal = self.never_durable();
                    return self.native_refuse(conn, id, opcode::GET, &refusal);
                }
                let mark = native::ReplyMark {
                    durable_lsn: mark.durable_lsn.max(gate),
                    ..mark
                };
                let released = Released {
                    operation: Operation::Get,
                    started_ns: conn.input_since_ns,
                    count: 1,
                };
                if conn.out.reply(gate, released, |out| {
                    native::get_reply(out, id, mark, &record_out(log, &record))
                }) {
                    self.latency.record(&released, self.now.monotonic_ns);
                }
                return;
            }
        }
        let asker = self.asker(
            conn,
            Voice::Native {
                id,
                opcode: opcode::GET,
            },
        );
        let ticket = self.jobs.add(
            asker,
            1,
            Work::Get {
                preconditions: Preconditions::NONE,
            },
        );
        self.ask(owner, ticket, &Ask::Get { stream, key });
    }
}
