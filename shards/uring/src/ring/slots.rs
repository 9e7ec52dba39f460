//! The fixed pool of operation contexts.
//!
//! Invariants: a slot is free or holds exactly one operation; what the kernel knows as user data is the slot's index and
//! its generation, which changes on release, so a completion can never be taken for that of an earlier operation.
//! Nothing is allocated after start. Internal operations (wake-ups) have a reserve of their own, so that a full pool
//! of callers' operations cannot keep a shard from being woken.

use crate::op::Operation;

/// Slots beyond `operations_max`: one wake-up to every other shard of a large machine, and the eventfd.
const INTERNAL_MAX: usize = 257;
/// Generations stay clear of the two top bits of the user data (messages, ignored completions).
const GENERATION_MASK: u32 = (1 << 30) - 1;

/// Address of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SlotId {
    index: u32,
    generation: u32,
}

impl SlotId {
    pub(crate) fn user_data(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn from_user_data(user_data: u64) -> SlotId {
        SlotId {
            index: user_data as u32,
            generation: (user_data >> 32) as u32,
        }
    }
}

struct Slot {
    generation: u32,
    operation: Option<Operation>,
}

pub(crate) struct Slots {
    slots: Box<[Slot]>,
    /// Beside the slots rather than in them: `cancel` scans only these.
    tokens: Box<[u64]>,
    /// Free indices, lowest last, so that the pool stays dense and a scan short.
    free: Vec<u32>,
    /// One past the highest index ever used.
    reached: usize,
    callers: usize,
    callers_max: usize,
    internal: usize,
}

impl Slots {
    pub(crate) fn new(callers_max: u32) -> Slots {
        let callers_max = callers_max as usize;
        let count = callers_max + INTERNAL_MAX;
        let last = u32::try_from(count).expect("checked with the configuration");
        Slots {
            slots: (0..count)
                .map(|_| Slot {
                    generation: 0,
                    operation: None,
                })
                .collect(),
            tokens: vec![0; count].into_boxed_slice(),
            free: (0..last).rev().collect(),
            reached: 0,
            callers: 0,
            callers_max,
            internal: 0,
        }
    }

    /// None (and the operation is dropped) when its part of the pool is used up.
    pub(crate) fn claim(&mut self, token: u64, operation: Operation) -> Option<SlotId> {
        let (used, most) = if operation.is_internal() {
            (&mut self.internal, INTERNAL_MAX)
        } else {
            (&mut self.callers, self.callers_max)
        };
        if *used == most {
            return None;
        }
        *used += 1;
        let index = self
            .free
            .pop()
            .expect("as many slots as both parts have together");
        let slot = &mut self.slots[index as usize];
        assert!(slot.operation.is_none(), "slot {index} was free and in use");
        slot.operation = Some(operation);
        self.tokens[index as usize] = token;
        self.reached = self.reached.max(index as usize + 1);
        Some(SlotId {
            index,
            generation: slot.generation,
        })
    }

    /// The operation and its token. Panics on an id that is not in use: memory would be at stake.
    pub(crate) fn get_mut(&mut self, id: SlotId) -> (u64, &mut Operation) {
        let slot = &mut self.slots[id.index as usize];
        assert_eq!(
            slot.generation, id.generation,
            "completion for a slot that was released"
        );
        let operation = slot
            .operation
            .as_mut()
            .expect("a slot of this generation is in use");
        (self.tokens[id.index as usize], operation)
    }

    pub(crate) fn release(&mut self, id: SlotId) -> Operation {
        let slot = &mut self.slots[id.index as usize];
        assert_eq!(slot.generation, id.generation, "slot released twice");
        let operation = slot
            .operation
            .take()
            .expect("a slot of this generation is in use");
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        if operation.is_internal() {
            self.internal -= 1;
        } else {
            self.callers -= 1;
        }
        self.free.push(id.index);
        operation
    }

    /// The next caller's operation with this token, from index `from` on, and where to look further.
    pub(crate) fn find(&self, token: u64, from: usize) -> Option<(SlotId, usize)> {
        let mut start = from;
        loop {
            let offset = self.tokens[start..self.reached]
                .iter()
                .position(|&t| t == token)?;
            let index = start + offset;
            let slot = &self.slots[index];
            if slot
                .operation
                .as_ref()
                .is_some_and(|operation| !operation.is_internal())
            {
                return Some((
                    SlotId {
                        index: index as u32,
                        generation: slot.generation,
                    },
                    index + 1,
                ));
            }
            start = index + 1;
        }
    }

    /// Callers' operations in flight.
    pub(crate) fn callers(&self) -> usize {
        self.callers
    }

    /// How many more operations callers may start.
    pub(crate) fn callers_free(&self) -> usize {
        self.callers_max - self.callers
    }

    /// All operations in flight.
    pub(crate) fn all(&self) -> usize {
        self.callers + self.internal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::op::{Fdatasync, MessageRing};
    use crate::ring::files::RegisteredFiles;
    use std::rc::Rc;

    fn sync() -> Operation {
        let file = Rc::new(std::fs::File::open("/dev/null").unwrap().into());
        let target = RegisteredFiles::default().target(&file);
        Operation::Fdatasync(Fdatasync { file, target })
    }

    fn wake() -> Operation {
        Operation::MessageRing(MessageRing {
            target: -1,
            message: 0,
            attempts: 0,
        })
    }

    #[test]
    fn the_pool_is_bounded_and_wake_ups_have_their_own_part() {
        let mut slots = Slots::new(2);
        let first = slots.claim(1, sync()).unwrap();
        slots.claim(1, sync()).unwrap();
        assert!(slots.claim(1, sync()).is_none());
        for _ in 0..INTERNAL_MAX {
            slots.claim(1, wake()).unwrap();
        }
        assert!(slots.claim(1, wake()).is_none());
        slots.release(first);
        let again = slots.claim(2, sync()).unwrap();
        assert_eq!(again.index, first.index);
        assert_ne!(again.user_data(), first.user_data());
        assert_eq!((slots.callers(), slots.callers_free()), (2, 0));
    }

    #[test]
    fn find_walks_all_of_a_token_and_no_others() {
        let mut slots = Slots::new(8);
        slots.claim(5, wake()).unwrap();
        let ids: Vec<SlotId> = [5, 6, 5]
            .into_iter()
            .map(|token| slots.claim(token, sync()).unwrap())
            .collect();
        let (a, next) = slots.find(5, 0).unwrap();
        let (b, next) = slots.find(5, next).unwrap();
        assert_eq!([a, b], [ids[0], ids[2]]);
        assert!(slots.find(5, next).is_none());
        slots.release(ids[0]);
        assert_eq!(slots.find(5, 0).unwrap().0, ids[2]);
    }

    #[test]
    #[should_panic(expected = "slot that was released")]
    fn a_stale_completion_is_caught() {
        let mut slots = Slots::new(1);
        let stale = slots.claim(1, sync()).unwrap();
        slots.release(stale);
        slots.claim(2, sync()).unwrap();
        slots.get_mut(SlotId::from_user_data(stale.user_data()));
    }
}
