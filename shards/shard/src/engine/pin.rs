//! A shard's thread and its core.
//!
//! A core may go away while a thread is pinned to it (CPU hotplug, a hypervisor that shrinks its guest). The kernel then lets
//! the thread run anywhere, and leaves it so when the core is back: sched_setaffinity(2) and `select_fallback_rq` of the
//! scheduler say nothing to anybody. So each thread looks for itself, once a second. Whoever has given it one other core meant
//! that, and is let be.

use core_affinity::CoreId;

const LOOK_NS: u64 = 1_000_000_000;

/// See the module's header.
pub(super) struct Pin {
    shard: usize,
    core: Option<CoreId>,
    next_look_ns: u64,
    /// The core is gone, and that was told.
    is_away: bool,
    was_there: bool,
}

impl Pin {
    /// Pins the calling thread; without a core it stays where it is.
    pub fn to(shard: usize, core: Option<CoreId>) -> Pin {
        let is_there = core.is_none_or(core_affinity::set_for_current);
        if let (Some(core), false) = (core, is_there) {
            tracing::warn!(
                shard,
                "shard {shard} could not be pinned to core {}: it runs where the kernel puts it, until it may",
                core.id
            );
        }
        Pin {
            shard,
            core,
            next_look_ns: 0,
            is_away: false,
            was_there: is_there,
        }
    }

    /// The thread that was pinned looks where it may run.
    #[inline]
    pub fn look(&mut self, now_ns: u64) {
        if now_ns >= self.next_look_ns {
            self.next_look_ns = now_ns + LOOK_NS;
            self.hold();
        }
    }

    fn hold(&mut self) {
        let (shard, Some(core)) = (self.shard, self.core) else {
            return;
        };
        // Cores that are gone are not among them.
        let allowed = core_affinity::get_core_ids().unwrap_or_default();
        if allowed == [core] {
            return;
        }
        if is_offline(core) {
            if !std::mem::replace(&mut self.is_away, true) {
                tracing::warn!(
                    shard,
                    "core {} is gone: shard {shard} runs where the kernel puts it, until it is back",
                    core.id
                );
            }
        } else if (self.is_away || allowed.len() > 1) && core_affinity::set_for_current(core) {
            self.is_away = false;
            if std::mem::replace(&mut self.was_there, true) {
                tracing::warn!(
                    shard,
                    "the kernel had taken shard {shard} off core {}: it is back there",
                    core.id
                );
            } else {
                tracing::info!(shard, "shard {shard} is pinned to core {} now", core.id);
            }
        }
    }
}

/// A core that cannot go away has no such file.
fn is_offline(core: CoreId) -> bool {
    let path = format!("/sys/devices/system/cpu/cpu{}/online", core.id);
    std::fs::read_to_string(path).is_ok_and(|text| text.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> Vec<CoreId> {
        core_affinity::get_core_ids().expect("Linux")
    }

    #[test]
    fn a_thread_that_may_run_anywhere_returns_to_its_core() {
        let all = allowed();
        let core = all[0];
        std::thread::spawn(move || {
            // As the kernel leaves it; tests/faults/cores.rs has it do that.
            let mut pin = Pin::to(0, None);
            pin.core = Some(core);
            assert_eq!(allowed(), all);
            pin.look(5);
            assert_eq!(allowed(), [core]);
            if let [_, other, ..] = all[..] {
                assert!(core_affinity::set_for_current(other));
                pin.look(5 + LOOK_NS);
                assert_eq!(allowed(), [other], "somebody wanted that");
            }
        })
        .join()
        .expect("no panic");
    }
}
