//! The decision table: what recovery does where the chain stops. See FORMAT.md.
//!
//! Three facts decide: why reading stopped, whether the next segment goes on from exactly here, and whether
//! anything behind the stop proves that the next record had been durable.

use super::scan::{Stop, Term};

/// What recovery does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// the next segment continues the chain
    NextSegment,
    /// torn tail, never acked: cut here
    Cut,
    /// damage below the durable mark: stop the shard
    Damage,
}

/// What is known where the chain stops.
#[derive(Clone, Debug)]
pub struct Evidence {
    /// Why reading stopped.
    pub stop: Stop,
    /// the next segment's header is valid and its first batch continues the chain (`scan::continues` with the position that `walk` returned)
    pub next_continues: bool,
    /// a later batch, checkpoint or superblock proves that the lsn at the stop (`ChainPoint::next_lsn`) was durable.
    /// Ask every later segment too, not only the one that the walk stopped in.
    pub proven_durable: bool,
}

/// Look it up. `FORMAT.md` holds the table with the reason for each row; a test holds both together.
pub fn decide(evidence: &Evidence) -> Decision {
    match (
        &evidence.stop,
        evidence.next_continues,
        evidence.proven_durable,
    ) {
        // One writer writes a block once per term, each batch behind its own last: two histories under one term are nobody's torn tail.
        (
            Stop::Unchained {
                term: Term::Same, ..
            },
            _,
            _,
        ) => Decision::Damage,
        // The link names the last batch by a 128-bit hash: whatever lies here is not part of the log.
        (
            Stop::NoBatch
            | Stop::Invalid(_)
            | Stop::Unchained {
                term: Term::Older | Term::Newer,
                ..
            }
            | Stop::End,
            true,
            _,
        ) => Decision::NextSegment,
        (
            Stop::NoBatch
            | Stop::Invalid(_)
            | Stop::Unchained {
                term: Term::Older | Term::Newer,
                ..
            }
            | Stop::End,
            false,
            true,
        ) => Decision::Damage,
        (
            Stop::NoBatch
            | Stop::Invalid(_)
            | Stop::Unchained {
                term: Term::Older | Term::Newer,
                ..
            }
            | Stop::End,
            false,
            false,
        ) => Decision::Cut,
    }
}
