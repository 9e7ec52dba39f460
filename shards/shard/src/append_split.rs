//! An append whose records belong to several shards, in either protocol: sorted by owner, every owner asked for its part.
//!
//! Our own part goes first: only it can have to wait, and then nobody else has been asked yet. It does not know
//! how a part is appended, or how the answers become one (`jobs`).

use wire::Refusal;
use wire::native::AppendIter;

use crate::conns::Connection;
use crate::core::Core;
use crate::hop::{Ask, Origin};
use crate::jobs::{AppendWork, Voice, Work};
use crate::partition::Later;

/// A record of a frame is not so many times as long in the log, however small it is.
const RECORD_GROWTH_MAX: usize = 8;

impl<S> Core<S> {
    /// The one shard that all records belong to, if there is one.
    #[inline]
    pub(crate) fn single_owner(&self, body: &[u8], records: u32) -> Option<usize> {
        if self.shards() == 1 {
            return Some(0);
        }
        let mut owners = AppendIter::new(body, records).map(|r| self.owner_of(r.key));
        let first = owners.next()?;
        owners.all(|o| o == first).then_some(first)
    }

    /// Sort a request's records into `split`, by shard.
    pub(crate) fn sort_by_owner(&mut self, body: &[u8], records: u32) {
        let mut split = std::mem::take(&mut self.split);
        for (bytes, count) in &mut split {
            bytes.clear();
            *count = 0;
        }
        let mut iter = AppendIter::new(body, records);
        while let Some((raw, record)) = iter.next_raw() {
            let (bytes, count) = &mut split[self.owner_of(record.key)];
            bytes.extend_from_slice(raw);
            *count += 1;
        }
        self.split = split;
    }

    /// Refuses a request of which one part is too large, as long as nothing of it is appended anywhere.
    pub(crate) fn check_parts(&self, stream: &[u8]) -> Result<(), Refusal> {
        // Most requests are far from that: no need to count.
        let could_be = self.partition.log.unit_bytes_max() / RECORD_GROWTH_MAX;
        let parts = self
            .split
            .iter()
            .filter(|(bytes, _)| bytes.len() >= could_be);
        for (bytes, count) in parts {
            let records = AppendIter::new(bytes, *count);
            self.partition.part_fits(stream, records)?;
        }
        Ok(())
    }

    /// Ask every shard that has records in `split`; our own part first, because only it can ask to wait.
    pub(crate) fn append_split(
        &mut self,
        conn: &mut Connection,
        voice: Voice,
        work: AppendWork,
        template: &Ask<&[u8]>,
    ) -> Result<(), Later> {
        let split = std::mem::take(&mut self.split);
        let asker = self.asker(conn, voice);
        let parts = split.iter().filter(|(_, count)| *count > 0).count() as u32;
        let ticket = self.jobs.add(asker, parts, Work::Append(work));
        let part_of = |shard: usize| {
            let mut ask = template.map(|bytes| *bytes);
            if let Ask::Append { records, count, .. } = &mut ask {
                *records = split[shard].0.as_slice();
                *count = split[shard].1;
            }
            ask
        };
        let mut result = Ok(());
        if split[self.id].1 > 0 {
            result = self.serve(
                Origin {
                    shard: self.id,
                    ticket,
                },
                &part_of(self.id),
            );
        }
        match result {
            Ok(()) => {
                for shard in (0..split.len()).filter(|s| *s != self.id && split[*s].1 > 0) {
                    self.hops += 1;
                    self.outbound[shard].ask(ticket, &part_of(shard));
                }
            }
            Err(_) => self.forget(conn, ticket),
        }
        self.split = split;
        result
    }
}
