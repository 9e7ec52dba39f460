//! The shortest run that still fails: fewer lives, fewer requests, no faults.
//!
//! Each candidate is tried in a process of its own, because a panic ends a release build.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Arguments;

/// Longest time to look.
const PATIENCE: Duration = Duration::from_secs(30);

fn fails(candidate: &Arguments, seed: u64) -> bool {
    let Ok(binary) = std::env::current_exe() else {
        return false;
    };
    let status = Command::new(binary)
        .args(candidate.again(seed))
        .arg("--quiet")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    // 0 and 2 are a run that holds, and a usage that is wrong.
    status.is_ok_and(|status| !matches!(status.code(), Some(0 | 2)))
}

/// The arguments that show a failure of `seed` with the fewest requests; those that were given, if none are shorter.
pub fn shortest(given: &Arguments, seed: u64) -> Arguments {
    let until = Instant::now() + PATIENCE;
    let mut sizes = Vec::new();
    for lives in 2..=given.lives.max(2) {
        let mut requests = 1;
        while requests < given.requests {
            sizes.push((lives, requests));
            requests = (requests * 3).div_ceil(2);
        }
        sizes.push((lives, given.requests));
    }
    sizes.sort_by_key(|(lives, requests)| lives * requests);
    for (lives, requests) in sizes {
        for no_faults in [true, given.no_faults] {
            let candidate = Arguments {
                lives,
                requests,
                no_faults,
                ..given.clone()
            };
            if Instant::now() > until {
                return given.clone();
            }
            if fails(&candidate, seed) {
                return candidate;
            }
        }
    }
    given.clone()
}
