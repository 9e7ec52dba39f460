//! Limits in bytes of a random run: which streams have one, and when it changes.
//!
//! They are drawn from a generator of their own, so that a seed without them does what it did before there were any.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use shard::recover::SparePolicy;

use crate::alive;
use crate::oracle::Broken;
use crate::trial::{Fate, Trial};

/// See the module's header.
pub(super) struct Limits {
    rng: StdRng,
    /// By stream: it has a limit, and whether the server has confirmed one.
    streams: Vec<Option<bool>>,
    /// Segments are compacted and released.
    pub compacts: bool,
    /// When spare segment files give their space back.
    pub spare_policy: SparePolicy,
}

impl Limits {
    /// What `seed` draws for so many streams: in one run of four the first stream has a limit, and perhaps the others.
    pub fn draw(seed: u64, streams: usize) -> Limits {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x6d61_785f_6279_7465);
        let some = rng.random_bool(0.25);
        let compacts = rng.random_bool(0.5);
        let streams = (0..streams)
            .map(|stream| (some && (stream == 0 || rng.random_bool(0.5))).then_some(false))
            .collect();
        let spare_policy = match rng.random_range(0..4) {
            0 => SparePolicy::NEVER,
            n => SparePolicy {
                patience: Duration::from_millis(20 * (n - 1)),
                patience_over: Duration::from_millis(5 * (n - 1)),
                kept: 0,
            },
        };
        Limits {
            rng,
            streams,
            compacts,
            spare_policy,
        }
    }

    /// Some stream has one.
    pub fn are_drawn(&self) -> bool {
        self.streams.iter().any(Option::is_some)
    }

    fn bytes(&mut self) -> u64 {
        let scale = [1, 8, 64, 256][self.rng.random_range(0..4)];
        self.rng.random_range(200..1500) * scale
    }

    /// Set what is not confirmed yet, and now and then another limit. A stream's first one comes before its first record.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub fn set(&mut self, trial: &mut Trial) -> Result<Fate<()>, Broken> {
        for stream in 0..self.streams.len() {
            let Some(confirmed) = self.streams[stream] else {
                continue;
            };
            if confirmed && !self.rng.random_bool(0.2) {
                continue;
            }
            let bytes = self.bytes();
            trial.oracle.limit(stream, bytes);
            (trial.host.machine.borrow_mut())
                .note(|| format!("stream {stream} shall keep {bytes} bytes"));
            alive!(trial.policy(stream, &format!("{{\"max_bytes\":{bytes}}}"))?);
            self.streams[stream] = Some(true);
        }
        Ok(Fate::Alive(()))
    }
}
