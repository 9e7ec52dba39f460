//! What this process gets of the machine: the flags' part, or what control groups leave. A plan for the whole machine would
//! be ended by the kernel in a container that may use an eighth of it.

use tuning::inventory::Groups;
use tuning::system::Host;

use shard::plan::machine_memory_bytes;

use crate::config::ServeConfig;
use crate::text::{counted, human};

/// See the module's header.
#[derive(Debug, PartialEq)]
pub struct Share {
    /// Cap on the memory plan; None: what the engine takes of a whole machine.
    pub memory_bytes: Option<u64>,
    /// Shards of a new store, at most.
    pub shards_max: Option<usize>,
    groups: Groups,
    machine_bytes: u64,
    /// `--memory` was given.
    asked: bool,
}

impl Share {
    /// Of this process, by its flags and its control groups.
    pub fn of_this_process(config: &ServeConfig) -> Share {
        let asked = config.settings.memory.map(|bytes| bytes.0);
        let groups = Groups::gather(&Host::this());
        Share::new(asked, groups, machine_memory_bytes())
    }

    fn new(asked: Option<u64>, groups: Groups, machine_bytes: u64) -> Share {
        Share {
            machine_bytes,
            // As of a machine: a quarter is left to the kernel's side of connections and files, which counts too.
            memory_bytes: asked.or(groups.memory_bytes.map(|bytes| bytes / 4 * 3)),
            shards_max: groups.cores.map(|cores| cores.ceil().max(1.0) as usize),
            groups,
            asked: asked.is_some(),
        }
    }

    /// Logs what follows from the control groups for so many shards.
    pub fn tell(&self, shards: usize) {
        for line in self.warnings(shards) {
            tracing::warn!("{line}");
        }
        if let (Some(limit), false) = (self.groups.memory_bytes, self.asked) {
            tracing::info!(
                "control groups leave {} of memory: the plan is made for three quarters of it",
                human(limit)
            );
        }
    }

    fn warnings(&self, shards: usize) -> Vec<String> {
        let mut warnings = Vec::new();
        let left = self.groups.memory_bytes.unwrap_or(u64::MAX);
        let asked = self.memory_bytes.filter(|_| self.asked).unwrap_or(0);
        if asked > left.min(self.machine_bytes) {
            let (has, remedy) = if left < self.machine_bytes {
                (
                    format!("the {} that control groups leave", human(left)),
                    "or raise memory.max",
                )
            } else {
                (
                    format!("the {} of this machine", human(self.machine_bytes)),
                    "or add some",
                )
            };
            warnings.push(format!(
                "--memory {} is more than {has}: the kernel ends this process when it has filled them; give less, {remedy}",
                human(asked),
            ));
        }
        if let (Some(cores), Some(most)) = (self.groups.cores, self.shards_max)
            && shards > most
        {
            warnings.push(format!(
                "{} share the time of {cores:.1} cores that control groups leave, and all stand still when it is used up: raise cpu.max, or use fewer shards (pinion reshard)",
                counted(shards as u64, "shard")
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn without_groups_the_flag_alone_counts() {
        let share = Share::new(None, Groups::default(), 64 * GIB);
        assert_eq!((share.memory_bytes, share.shards_max), (None, None));
        let share = Share::new(Some(GIB), Groups::default(), 64 * GIB);
        assert_eq!(share.memory_bytes, Some(GIB));
        assert!(share.warnings(64).is_empty());
        let share = Share::new(Some(1024 * GIB), Groups::default(), 64 * GIB);
        assert!(share.warnings(1)[0].contains("64 GiB of this machine"));
    }

    #[test]
    fn groups_bound_the_plan_and_the_shards_of_a_new_store() {
        let groups = Groups {
            memory_bytes: Some(4 * GIB),
            cores: Some(2.5),
            threads: None,
        };
        let share = Share::new(None, groups, 64 * GIB);
        assert_eq!(
            (share.memory_bytes, share.shards_max),
            (Some(3 * GIB), Some(3))
        );
        assert!(share.warnings(3).is_empty());
        assert!(share.warnings(4)[0].contains("4 shards share the time of 2.5 cores"));
        let share = Share::new(Some(5 * GIB), groups, 64 * GIB);
        assert_eq!(share.memory_bytes, Some(5 * GIB), "who asks for it gets it");
        assert!(share.warnings(1)[0].contains("--memory"));
        let little = Groups {
            cores: Some(0.3),
            ..Groups::default()
        };
        assert_eq!(Share::new(None, little, 64 * GIB).shards_max, Some(1));
    }
}
