//! HTTP gets: from memory on the spot, else by the record's owner.
//!
//! What is shown from memory has the stream and key that were asked for, and is gated on its lsn until that is durable.

use crate::conns::Connection;
use crate::core::{Core, State};
use crate::hop::Ask;
use crate::jobs::{Asker, Voice, Work};
use crate::outbox::{Operation, Released};
use crate::records::record_out;
use crate::render;
use wire::http::{Preconditions, Verdict};

impl<S> Core<S> {
    pub(super) fn http_get(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        stream: &[u8],
        key: &[u8],
        preconditions: Preconditions,
    ) {
        let owner = self.owner_of(key);
        if owner == self.id && self.state == State::Ready {
            let (log, moment) = (self.log_number(), self.moment());
            let failed = self.partition.log.failed().is_some();
            if let Some((record, gate)) = self.partition.find_shown(stream, key, None) {
                if gate > 0 && failed {
                    let refusal = self.never_durable();
                    return self.http_refuse(conn, voice, &refusal);
                }
                let verdict = preconditions.verdict(record.version);
                if let Verdict::Refuse(refusal) = &verdict {
                    return self.http_refuse_behind(conn, gate, voice, refusal);
                }
                let released = Released {
                    operation: Operation::Get,
                    started_ns: conn.input_since_ns,
                    count: 1,
                };
                let now = conn.out.reply(gate, released, |out| {
                    render::record(out, &voice, moment, &record_out(log, &record), &verdict);
                });
                if now {
                    self.latency.record(&released, self.now.monotonic_ns);
                }
                return;
            }
        }
        let asker = Asker::on(conn, voice);
        let ticket = self.jobs.add(asker, 1, Work::Get { preconditions });
        self.ask(owner, ticket, &Ask::Get { stream, key });
    }
}
