//! Native appends: on the spot where all records belong to this shard, as a question to their owner where they belong to
//! another, in parts where they belong to several.
//!
//! A frame with a producer sequence is never taken apart: a part of it would use up the sequence.

use index::Digest;
use wire::native::{self, Append, AppendPart, opcode};

use crate::conns::Connection;
use crate::core::Core;
use crate::hop::Ask;
use crate::jobs::{AppendForm, AppendWork, Voice, Work};
use crate::outbox::{Operation, Released};
use crate::partition::{Later, NotAppended, Once, Unit, append_gate};

impl<S> Core<S> {
    pub(super) fn native_append(
        &mut self,
        conn: &mut Connection,
        id: u64,
        append: &Append<'_>,
        digest: Option<Digest>,
    ) -> Result<(), Later> {
        let once = match append.producer {
            None => Once::No,
            Some(p) => Once::Producer {
                id: p.id,
                sequence: p.sequence,
                fingerprint: crate::dedup::fingerprint_in(append.stream, append.body()),
            },
        };
        let (owner, repeat_only) = match self.single_owner(append.body(), append.records) {
            Some(owner) => (owner, false),
            // It may be a repeat from before the shards were changed: then the owner of its first record knows it.
            None if once != Once::No => {
                let first = append.iter().next();
                (first.map_or(self.id, |r| self.owner_of(r.key)), true)
            }
            None => return self.native_append_split(conn, id, append),
        };
        if owner != self.id {
            let ask = Ask::Append {
                stream: append.stream,
                records: append.body(),
                count: append.records,
                durability: append.durability,
                once,
                want_versions: append.want_versions,
                tombstone_needs_live: false,
                repeat_only,
            };
            let asker = self.asker(
                conn,
                Voice::Native {
                    id,
                    opcode: opcode::APPEND,
                },
            );
            let work = AppendWork::new(
                append.durability,
                AppendForm::Many,
                append.records,
                append.body().len(),
            );
            let ticket = self.jobs.add(asker, 1, Work::Append(work));
            self.ask(owner, ticket, &ask);
            return Ok(());
        }
        if let Some(refusal) = self.not_ready() {
            self.native_refuse(conn, id, opcode::APPEND, &refusal);
            return Ok(());
        }
        let unit = Unit {
            stream: append.stream,
            records: append.iter(),
            count: append.records,
            once,
            tombstone_needs_live: false,
            repeat_only,
            digest,
        };
        let mut versions = std::mem::take(&mut self.versions);
        let result = self.partition.append(&unit, &mut versions);
        match result {
            Ok(done) => {
                self.count_append(&done, append.body().len());
                let gate = self
                    .partition
                    .gate(append_gate(append.durability, done.last_lsn));
                let mark = native::ReplyMark {
                    durable_lsn: self.partition.log.durable_lsn().max(gate),
                    ..self.mark()
                };
                let part = AppendPart {
                    log: mark.log,
                    records: done.records,
                    first_lsn: done.first_lsn,
                    durable_lsn: mark.durable_lsn,
                };
                let shown: &[u32] = if append.want_versions { &versions } else { &[] };
                let released = Released {
                    operation: Operation::Append,
                    started_ns: conn.input_since_ns,
                    count: 1,
                };
                let now = conn.out.reply(gate, released, |out| {
                    native::append_reply(out, id, mark, append.durability, &[part], shown)
                });
                if now {
                    self.latency.record(&released, self.now.monotonic_ns);
                }
            }
            Err(NotAppended::Refused(refusal)) => {
                self.native_refuse(conn, id, opcode::APPEND, &refusal)
            }
            Err(NotAppended::RefusedBehind(refusal, lsn)) => {
                self.native_refuse_behind(conn, lsn, id, opcode::APPEND, &refusal)
            }
            Err(NotAppended::Later(later)) => {
                self.versions = versions;
                return Err(later);
            }
        }
        self.versions = versions;
        Ok(())
    }

    fn native_append_split(
        &mut self,
        conn: &mut Connection,
        id: u64,
        append: &Append<'_>,
    ) -> Result<(), Later> {
        let mut work = AppendWork::new(
            append.durability,
            AppendForm::Many,
            append.records,
            append.body().len(),
        );
        if append.want_versions {
            work.owners = append
                .iter()
                .map(|r| self.shared.logs[self.owner_of(r.key)] as u16)
                .collect();
        }
        self.sort_by_owner(append.body(), append.records);
        if let Err(refusal) = self.check_parts(append.stream) {
            self.native_refuse(conn, id, opcode::APPEND, &refusal);
            return Ok(());
        }
        let template = Ask::Append {
            stream: append.stream,
            records: [].as_slice(),
            count: 0,
            durability: append.durability,
            once: Once::No,
            want_versions: append.want_versions,
            tombstone_needs_live: false,
            repeat_only: false,
        };
        self.append_split(
            conn,
            Voice::Native {
                id,
                opcode: opcode::APPEND,
            },
            work,
            &template,
        )
    }
}
