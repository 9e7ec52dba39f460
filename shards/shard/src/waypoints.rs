//! Places inside long histories: a walk to old versions begins at the nearest one instead of at the newest version.
//!
//! Versions are linked newest to oldest, so that the way to version 5 of a million is as long as the history. Whoever reads a history
//! in pages asks for what is before the last version that it has seen: where a page ends is remembered, every [`EVERY`]th version as
//! it is appended, and every [`EVERY`]th that a walk comes by.
//!
//! Invariants: a waypoint leads where the links of newer versions lead, and may be forgotten at any time: the walk from the newest
//! version finds the same records. A version above 1 is never given twice to a key, so a waypoint is never another record's.
//! Nothing of this is stored. It does not know what is shown of a history.

use std::collections::{BTreeMap, VecDeque};

use index::Digest;
use wal::Link;

/// Versions between two waypoints that nobody asked for.
pub const EVERY: u32 = 1024;
/// Waypoints of a shard. The oldest is forgotten for a new one.
const MOST: usize = 8192;

/// All of a shard.
#[derive(Default)]
pub struct Waypoints {
    of: BTreeMap<(Digest, u32), Link>,
    order: VecDeque<(Digest, u32)>,
}

impl Waypoints {
    /// What they take at most: nodes of a B-tree are at least half full.
    pub const PLAN_BYTES: u64 = (MOST
        * (2 * (size_of::<(Digest, u32)>() + size_of::<Link>()) + 2 * size_of::<(Digest, u32)>()))
        as u64;

    /// `link` leads to this version of the key.
    pub fn put(&mut self, digest: Digest, version: u32, link: Link) {
        if version == 1 {
            return;
        }
        if self.of.insert((digest, version), link).is_some() {
            return;
        }
        self.order.push_back((digest, version));
        if self.order.len() > MOST
            && let Some(oldest) = self.order.pop_front()
        {
            self.of.remove(&oldest);
        }
    }

    /// The last waypoint on the way down to the versions below `before` that leads somewhere.
    pub fn nearest(
        &self,
        digest: Digest,
        before: u32,
        leads_somewhere: impl Fn(Link) -> bool,
    ) -> Option<Link> {
        let way = self.of.range((digest, before)..=(digest, u32::MAX));
        way.map(|(_, link)| *link)
            .find(|link| leads_somewhere(*link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(lsn: u64) -> Link {
        Link {
            lsn,
            ..Link::default()
        }
    }

    #[test]
    fn the_nearest_one_above_is_found_and_of_no_other_key() {
        let (mine, other) = (Digest(7 << 64), Digest(8 << 64));
        let mut waypoints = Waypoints::default();
        for version in [10, 20, 30] {
            waypoints.put(mine, version, link(version.into()));
        }
        waypoints.put(other, 25, link(99));
        for (before, found) in [
            (1, Some(10)),
            (10, Some(10)),
            (11, Some(20)),
            (30, Some(30)),
            (31, None),
        ] {
            let nearest = waypoints.nearest(mine, before, |_| true);
            assert_eq!(nearest, found.map(link), "{before}");
        }
        assert_eq!(waypoints.nearest(other, 1, |_| true), Some(link(99)));
        let but_20 = |at: Link| at.lsn != 20;
        assert_eq!(waypoints.nearest(mine, 15, but_20), Some(link(30)));
    }

    #[test]
    fn the_oldest_is_forgotten_for_a_new_one() {
        let mut waypoints = Waypoints::default();
        for version in 1..=MOST as u32 + 6 {
            waypoints.put(Digest(1 << 64), version, link(version.into()));
            // The same again takes no room.
            waypoints.put(Digest(1 << 64), version, link(version.into()));
        }
        assert_eq!((waypoints.of.len(), waypoints.order.len()), (MOST, MOST));
        assert_eq!(
            waypoints.nearest(Digest(1 << 64), 1, |_| true),
            Some(link(7))
        );
    }
}
