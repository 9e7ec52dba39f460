//! How a walk ends: its segment is released, or kept for what cannot be read in it.

use index::Digest;
use index::checkpoint::PAGE_ENTRIES;

use super::{KEPT_RETRY_NS, Stage, Walk};
use crate::driver::Driver;
use crate::turn::Shard;

impl<D: Driver> Shard<D> {
    pub(super) fn space_stuck(&mut self, segment: u32, why: &str) {
        self.space.stuck = true;
        tracing::error!(
            shard = self.core.id,
            "segment {segment} cannot be compacted ({why}), and space is freed from the oldest segment only: run `pinion verify` on the data directory"
        );
    }

    /// Something of a segment cannot be read, and may be wanted.
    pub(super) fn space_keeps(&mut self, walk: &Walk, why: &str) {
        self.space.keeps = true;
        self.space.not_before_ns = self.core.now.monotonic_ns + KEPT_RETRY_NS;
        if std::mem::replace(&mut self.space.told, walk.segment) != walk.segment {
            self.core.partition.damage += 1;
            let (first, last) = walk.unreadable[0];
            tracing::error!(
                shard = self.core.id,
                "segment {} is kept, and no space is freed behind it: lsn {first} to {last} cannot be read, and {why}: \
                 write those keys anew, or run `pinion verify` on the data directory",
                walk.segment
            );
        }
    }

    /// Everything of the segment has been looked at. It is released once all is durable that the log holds by now: the copies,
    /// and what the rest of it was found dead by. A crash that takes that back brings back what readers have passed over.
    pub(super) fn walked(&mut self, mut walk: Walk) {
        walk.settled_lsn = self.core.partition.log.next_lsn() - 1;
        self.settle(walk);
    }

    /// Whether that is so.
    pub(super) fn settle(&mut self, walk: Walk) {
        if self.core.partition.log.durable_lsn() < walk.settled_lsn {
            self.space.stage = Stage::Settle(walk);
            return;
        }
        if walk.unreadable.is_empty() {
            self.release(&walk);
        } else if self.core.partition.shows_older_versions() {
            self.space_keeps(&walk, "it may be a version that a history shows");
        } else {
            self.space.stage = Stage::Search(walk, Digest(0));
        }
    }

    /// A page of the index: is there a record that cannot be read, and is the newest of its key?
    pub(super) fn search(&mut self, walk: Walk, from: Digest) {
        let mut page = Vec::new();
        let next = (self.core.partition.index).export(from, PAGE_ENTRIES, &mut page);
        let wanted = page.iter().any(|(_, entry)| {
            entry.location.segment == walk.segment && !entry.tombstone && walk.has_lost(entry.lsn)
        });
        match next {
            _ if wanted => self.space_keeps(&walk, "it is the newest record of a key"),
            Some(next) => self.space.stage = Stage::Search(walk, next),
            None => {
                let (shard, segment) = (self.core.id, walk.segment);
                let (first, last) = walk.unreadable[0];
                tracing::warn!(
                    shard,
                    "segment {segment} is released: lsn {first} to {last} of it cannot be read, but nobody can ask for them any more"
                );
                self.release(&walk);
            }
        }
    }

    fn release(&mut self, walk: &Walk) {
        self.core.partition.release_front(walk.found);
        // A recovery may have found copies of the next segment too, which only a replay from before them would see again.
        if self.core.partition.copies.is_empty() {
            self.space.began = None;
        }
        self.space.keeps = false;
        self.space.released += 1;
        tracing::debug!(
            shard = self.core.id,
            "segment {} released: {} record bytes, {} of them copied",
            walk.segment,
            walk.found.walked,
            walk.found.copied
        );
        self.begin_if_wanted();
    }
}
