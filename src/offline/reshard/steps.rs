//! The durable steps of a change, counted: behind each the process may die, and a test makes it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Ends the process, as a kill does, behind this durable step. For tests: where a crash is survived only deterministic ones show.
const STOP_BEHIND: &str = "PINION_TEST_RESHARD_STOP_BEHIND_STEP";

/// How many were passed.
#[derive(Clone, Debug)]
pub struct Steps {
    passed: Arc<AtomicU64>,
    stop_behind: Option<u64>,
}

impl Steps {
    /// None yet.
    pub fn new() -> Steps {
        let stop_behind = std::env::var(STOP_BEHIND).ok().and_then(|n| n.parse().ok());
        Steps {
            passed: Arc::default(),
            stop_behind,
        }
    }

    /// Something is durable now.
    pub fn passed(&self) {
        let passed = self.passed.fetch_add(1, Ordering::Relaxed) + 1;
        if self.stop_behind == Some(passed) {
            std::process::abort();
        }
    }
}
