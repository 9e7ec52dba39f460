//! Which cores the shards are pinned to: physical cores first, NUMA node by node, SMT siblings last.
//!
//! Two hardware threads of one core share its execution units and its first caches: a second shard there takes from the
//! first. So a store gets one shard per physical core, and the order in which cores are given out begins with one thread of
//! each. Reads `/sys/devices/system/cpu` (kernel documentation: admin-guide/cputopology); does not pin anything itself.

use std::collections::BTreeSet;
use std::path::Path;

use wal::superblock::LOGS_MAX;

const SYSFS: &str = "/sys/devices/system/cpu";

/// One logical CPU and where it sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cpu {
    id: usize,
    node: usize,
    package: usize,
    core: usize,
}

/// The CPUs to give to shards, best first, and how many physical cores are among them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Every CPU of `allowed`, in the order in which shards get them.
    pub order: Vec<usize>,
    /// The first so many are on cores of their own: the default number of shards.
    pub physical: usize,
}

impl Placement {
    /// Of the CPUs that this process may use.
    pub fn of_this_process() -> Placement {
        let allowed: Vec<usize> = core_affinity::get_core_ids()
            .unwrap_or_default()
            .iter()
            .map(|core| core.id)
            .collect();
        Placement::of(Path::new(SYSFS), &allowed)
    }

    /// Shards of a new store: one per physical core, and no more than `most`, or than a store can have.
    pub fn shards(&self, most: Option<usize>) -> usize {
        self.physical
            .min(most.unwrap_or(LOGS_MAX))
            .clamp(1, LOGS_MAX)
    }

    /// Of `allowed`, by what the tree under `sysfs` says. A CPU that it says nothing about counts as a core of its own.
    fn of(sysfs: &Path, allowed: &[usize]) -> Placement {
        let cpus: Vec<Cpu> = allowed.iter().map(|id| cpu(sysfs, *id)).collect();
        order(cpus)
    }
}

fn order(mut cpus: Vec<Cpu>) -> Placement {
    cpus.sort_by_key(|cpu| (cpu.node, cpu.package, cpu.core, cpu.id));
    let mut taken = BTreeSet::new();
    let (first, siblings): (Vec<Cpu>, Vec<Cpu>) = cpus
        .into_iter()
        .partition(|cpu| taken.insert((cpu.package, cpu.core)));
    Placement {
        physical: first.len(),
        order: first.iter().chain(&siblings).map(|cpu| cpu.id).collect(),
    }
}

fn cpu(sysfs: &Path, id: usize) -> Cpu {
    let folder = sysfs.join(format!("cpu{id}"));
    let number = |file: &str| -> Option<usize> {
        let text = std::fs::read_to_string(folder.join("topology").join(file)).ok()?;
        text.trim().parse().ok()
    };
    let known = number("physical_package_id").zip(number("core_id"));
    // Unknown: a package of its own, which no other CPU can share.
    let (package, core) = known.unwrap_or((usize::MAX, id));
    Cpu {
        id,
        node: node(&folder).unwrap_or(0),
        package,
        core,
    }
}

/// A CPU's folder has a link `nodeN` to its NUMA node.
fn node(folder: &Path) -> Option<usize> {
    std::fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.strip_prefix("node")?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (cpu, node, package, core) of each CPU, as a tree of files.
    fn machine(cpus: &[(usize, usize, usize, usize)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        for (id, node, package, core) in cpus {
            let folder = root.path().join(format!("cpu{id}"));
            let topology = folder.join("topology");
            std::fs::create_dir_all(&topology).expect("a folder");
            std::fs::create_dir(folder.join(format!("node{node}"))).expect("a folder");
            for (file, number) in [("physical_package_id", package), ("core_id", core)] {
                std::fs::write(topology.join(file), format!("{number}\n")).expect("a file");
            }
        }
        root
    }

    fn placement(cpus: &[(usize, usize, usize, usize)], allowed: &[usize]) -> Placement {
        Placement::of(machine(cpus).path(), allowed)
    }

    #[test]
    fn smt_siblings_come_last_and_do_not_count() {
        // As laptops number them: siblings side by side.
        let found = placement(
            &[(0, 0, 0, 0), (1, 0, 0, 0), (2, 0, 0, 1), (3, 0, 0, 1)],
            &[0, 1, 2, 3],
        );
        assert_eq!((found.order, found.physical), (vec![0, 2, 1, 3], 2));
    }

    #[test]
    fn a_machine_with_more_cores_than_a_store_has_logs_gets_as_many_shards_as_fit() {
        let cpus: Vec<_> = (0..128).map(|id| (id, id / 64, id / 64, id % 64)).collect();
        let found = placement(&cpus, &(0..128).collect::<Vec<_>>());
        assert_eq!((found.physical, found.shards(None)), (128, LOGS_MAX));
        assert_eq!(found.shards(Some(4)), 4);
    }

    #[test]
    fn nodes_are_filled_one_after_the_other() {
        // As two-socket servers number them: nodes in turns, siblings in the upper half.
        let cpus: Vec<_> = (0..8).map(|id| (id, id % 2, id % 2, id / 2 % 2)).collect();
        let found = placement(&cpus, &[0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(found.order, [0, 2, 1, 3, 4, 6, 5, 7]);
        assert_eq!(found.physical, 4);
    }

    #[test]
    fn only_what_is_allowed_is_given_out() {
        let cpus = [(0, 0, 0, 0), (1, 0, 0, 1), (2, 0, 0, 0), (3, 0, 0, 1)];
        let found = placement(&cpus, &[2, 3]);
        assert_eq!((found.order, found.physical), (vec![2, 3], 2));
    }

    #[test]
    fn a_machine_that_says_nothing_has_a_core_per_cpu() {
        let found = placement(&[], &[0, 1, 2]);
        assert_eq!((found.order, found.physical), (vec![0, 1, 2], 3));
    }
}
