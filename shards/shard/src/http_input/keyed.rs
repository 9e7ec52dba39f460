//! Batches under an Idempotency-Key: all shards are asked what they know of it before any of them appends.
//!
//! The shards that a batch went to remember its key, and no others do: another batch under the same key may go to shards that have
//! never heard of it. The request that waits keeps its connection; nothing of it is held besides its bytes. Two requests under one
//! key that are on their way at the same time, and share no shard, are not told apart from each other; a shard that recovers or
//! has stopped says nothing against a key, so that the others go on.

use wire::Refusal;

use crate::conns::Connection;
use crate::core::Core;
use crate::hop::{Ask, Ticket};
use crate::jobs::{Asker, KeyUse, Voice, Work};
use crate::partition::{Later, Once};

impl<S> Core<S> {
    /// What stands against a batch, once all shards have said; `Err` until then.
    pub(super) fn objection_to_key(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        once: &Once,
    ) -> Result<Option<Refusal>, Later> {
        let Once::Key {
            digest,
            fingerprint,
        } = *once
        else {
            return Ok(None);
        };
        if self.shards() == 1 {
            return Ok(None);
        }
        // It stays known until the request is taken: one that then waits for room must not lose its turn to another round.
        if let Some(known) = &conn.key_use
            && (known.digest, known.fingerprint) == (digest, fingerprint)
        {
            return Ok(known.objection.clone());
        }
        let asker = Asker::on(conn, voice);
        let asked = KeyUse {
            digest,
            fingerprint,
            objection: None,
        };
        let ask = Ask::KeyUse {
            digest,
            fingerprint,
        };
        self.ask_all(asker, Work::KeyUse(asked), &ask);
        Err(Later::KeyUse)
    }

    /// All have said: the request that waits for it is parsed again.
    pub(crate) fn key_use_is_known(&mut self, ticket: Ticket) {
        let Some(job) = self.jobs.remove(ticket) else {
            return;
        };
        let Work::KeyUse(known) = job.work else {
            unreachable!("the caller has looked")
        };
        let Some(conn) = self.conns.get_mut(job.asker.conn) else {
            return;
        };
        conn.jobs -= 1;
        conn.out.fill_nothing(job.asker.hole);
        conn.key_use = Some(known);
        // What stood behind it may have gates that were passed while it waited.
        let (durable, now_ns, latency) = (
            self.partition.log.durable_lsn(),
            self.now.monotonic_ns,
            &mut self.latency,
        );
        conn.out.release(durable, |r| latency.record(&r, now_ns));
        self.retry(job.asker.conn);
    }
}
