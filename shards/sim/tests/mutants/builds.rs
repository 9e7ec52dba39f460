//! The builds that are wrong: where, how, and which test must fail.

use std::fmt;

/// A test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Killer {
    /// Member of the workspace, under `shards/`.
    pub member: &'static str,
    /// File of its tests.
    pub target: &'static str,
    /// Name.
    pub test: &'static str,
}

impl fmt::Display for Killer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/tests/{}.rs::{}", self.member, self.target, self.test)
    }
}

const fn sim(target: &'static str, test: &'static str) -> Killer {
    Killer {
        member: "sim",
        target,
        test,
    }
}

/// A change of a source. `to` asks the variable `MUTANT` whether it is meant.
#[derive(Clone, Copy, Debug)]
pub struct Edit {
    /// From the root.
    pub file: &'static str,
    /// What is there, once.
    pub from: &'static str,
    /// What takes its place.
    pub to: &'static str,
}

/// A build that is wrong.
#[derive(Clone, Copy, Debug)]
pub struct Build {
    /// What the variable `MUTANT` says.
    pub name: &'static str,
    /// How it becomes wrong.
    pub edits: &'static [Edit],
    /// Who notices.
    pub killer: Killer,
}

/// All of them, in the order of MUTANTS.md.
pub const BUILDS: &[Build] = &[
    Build {
        name: "ack-before-flush",
        edits: &[Edit {
            file: "shards/shard/src/log/mod.rs",
            from: "pub fn durable_lsn(&self) -> u64 {\n        self.commits.durable_lsn()",
            to: "pub fn durable_lsn(&self) -> u64 {\n        if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"ack-before-flush\") {\n            \
                 return self.writer.next_lsn() - 1;\n        }\n        self.commits.durable_lsn()",
        }],
        killer: sim(
            "crash",
            "a_crash_in_every_mode_behind_every_disk_operation_of_every_single_request_loses_nothing",
        ),
    },
    Build {
        name: "skip-flush",
        edits: &[Edit {
            file: "shards/shard/src/log/mod.rs",
            from: "driver.write_durable(\n",
            to: "(if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"skip-flush\") { D::write } else { D::write_durable })(\n                driver,\n",
        }],
        killer: sim(
            "crash",
            "a_crash_behind_every_disk_operation_of_every_pair_of_requests_loses_nothing",
        ),
    },
    Build {
        name: "skip-directory-flush",
        edits: &[Edit {
            file: "shards/shard/src/preparer.rs",
            from: "        Step::SyncDirectory,\n    ]",
            to: "        if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"skip-directory-flush\") {\n            \
                 Step::SyncFile\n        } else {\n            Step::SyncDirectory\n        },\n    ]",
        }],
        killer: sim(
            "random",
            "what_was_promised_holds_through_crashes_of_the_machine",
        ),
    },
    Build {
        name: "ignore-short-write",
        edits: &[Edit {
            file: "shards/shard/src/log/mod.rs",
            from: "Ok(n) if n == frozen.bytes as usize => None,",
            to: "Ok(n) if n == frozen.bytes as usize || std::env::var(\"MUTANT\").is_ok_and(|m| m == \"ignore-short-write\") => None,",
        }],
        killer: sim(
            "faults",
            "whichever_operation_fails_nothing_is_acked_that_is_not_durable_and_a_restart_recovers",
        ),
    },
    Build {
        name: "skip-checksum",
        edits: &[Edit {
            file: "shards/wal/src/record.rs",
            from: "if found != wanted {",
            to: "if found != wanted && !std::env::var(\"MUTANT\").is_ok_and(|m| m == \"skip-checksum\") {",
        }],
        killer: sim(
            "damage",
            "bits_that_rot_while_the_shard_runs_are_found_by_the_read_and_not_served",
        ),
    },
    Build {
        name: "cut-at-damage",
        edits: &[Edit {
            file: "shards/wal/src/recovery.rs",
            from: "            false,\n            true,\n        ) => Decision::Damage,",
            to: "            false,\n            true,\n        ) if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"cut-at-damage\") => Decision::Cut,\n        \
                 (_, false, true) => Decision::Damage,",
        }],
        killer: sim(
            "damage",
            "a_flipped_bit_in_an_acked_batch_stops_the_shard_with_file_offset_and_lsn",
        ),
    },
    Build {
        name: "retry-failed-flush",
        edits: &[Edit {
            file: "shards/shard/src/log/mod.rs",
            from: "Err(e) => Some(e.to_string()),\n        };\n        if let Some(problem)",
            to: "Err(_) if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"retry-failed-flush\") => None,\n            \
                 Err(e) => Some(e.to_string()),\n        };\n        if let Some(problem)",
        }],
        killer: sim(
            "faults",
            "whichever_operation_fails_nothing_is_acked_that_is_not_durable_and_a_restart_recovers",
        ),
    },
    Build {
        name: "reuse-without-generation",
        edits: &[Edit {
            file: "shards/shard/src/log/segments.rs",
            from: "Some(Spare { file, .. }) => (file.slot, file.generation + 1),",
            to: "Some(old) if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"reuse-without-generation\") => (old.file.slot, old.file.generation),\n            \
                 Some(Spare { file, .. }) => (file.slot, file.generation + 1),",
        }],
        killer: sim(
            "stale",
            "sectors_of_an_earlier_life_of_a_recycled_segment_are_refused_by_a_scan",
        ),
    },
    Build {
        name: "keep-what-was-cut",
        edits: &[Edit {
            file: "shards/shard/src/recover/mod.rs",
            from: "            if let Some(file) = segments.get(&stale.segment).copied() {",
            to: "            if let Some(file) = segments.get(&stale.segment).copied()\n                && !std::env::var(\"MUTANT\").is_ok_and(|m| m == \"keep-what-was-cut\")\n            {",
        }],
        killer: sim(
            "stale",
            "a_lost_write_in_the_place_of_a_batch_that_was_cut_off_is_found_by_every_read",
        ),
    },
    Build {
        name: "release-before-copies",
        edits: &[Edit {
            file: "shards/shard/src/space/ending.rs",
            from: "if self.core.partition.log.durable_lsn() < walk.settled_lsn {",
            to: "if self.core.partition.log.durable_lsn() < walk.settled_lsn\n            \
                 && !std::env::var(\"MUTANT\").is_ok_and(|m| m == \"release-before-copies\")\n        {",
        }],
        killer: sim(
            "space",
            "a_crash_beside_compaction_loses_nothing_and_brings_nothing_back_with_one_version_a_key",
        ),
    },
    Build {
        name: "replay-behind-copies",
        edits: &[Edit {
            file: "shards/shard/src/space/mod.rs",
            from: "        self.began\n    }",
            to: "        if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"replay-behind-copies\") {\n            \
                 return None;\n        }\n        self.began\n    }",
        }],
        killer: sim(
            "space",
            "a_crash_beside_compaction_keeps_histories_of_three_versions_whole",
        ),
    },
    Build {
        name: "forget-producers",
        edits: &[Edit {
            file: "shards/shard/src/recover/checkpoint.rs",
            from: "            Page::Bytes(Section::Producers, chunk) => partition",
            to: "            Page::Bytes(Section::Producers, _) if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"forget-producers\") => {}\n            \
                 Page::Bytes(Section::Producers, chunk) => partition",
        }],
        killer: sim(
            "space",
            "a_crash_beside_compaction_loses_nothing_and_brings_nothing_back_with_one_version_a_key",
        ),
    },
    Build {
        name: "reuse-after-one-checkpoint",
        edits: &[Edit {
            file: "shards/shard/src/checkpointer.rs",
            from: "        self.released_in[0].min(self.released_in[1])",
            to: "        if std::env::var(\"MUTANT\").is_ok_and(|m| m == \"reuse-after-one-checkpoint\") {\n            \
                 return self.released_in[0].max(self.released_in[1]);\n        }\n        self.released_in[0].min(self.released_in[1])",
        }],
        killer: sim(
            "space",
            "a_file_that_only_one_checkpoint_has_freed_is_not_filled_again",
        ),
    },
];
