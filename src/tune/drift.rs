//! While serving: whether the host still is as `pinion tune apply` left it. A reset of a network card loses its affinities,
//! another tool sets its own values; the metric and the log say so, `pinion tune apply --yes` mends it.

use std::path::PathBuf;
use std::time::Duration;

use shard::engine::note_tuning_drift;
use tuning::apply::Request;
use tuning::settings::{Base, Profile};
use tuning::system::Host;

/// Between two looks. Each reads some hundred small files and may run ethtool.
const EVERY: Duration = Duration::from_secs(60);

/// Looks now and every minute, on a thread of its own, for as long as the process lives.
pub fn watch(state: PathBuf, data: PathBuf) {
    let watch = move || {
        let mut before = Vec::new();
        loop {
            // Where nothing was ever applied there is nothing to look at.
            if state.is_dir() {
                let drifted = look(&state, &data);
                note_tuning_drift(drifted.len());
                tell(&before, &drifted);
                before = drifted;
            }
            std::thread::sleep(EVERY);
        }
    };
    if let Err(error) = std::thread::Builder::new()
        .name("tuning".into())
        .spawn(watch)
    {
        tracing::warn!("the host's tuning is not watched: {error}");
    }
}

/// Settings that are not as they were left, in words.
fn look(state: &std::path::Path, data: &std::path::Path) -> Vec<String> {
    let (Some(state), Some(data)) = (state.to_str(), data.to_str()) else {
        return Vec::new();
    };
    let verified = tuning::verify::verify(Request {
        system: &Host::this(),
        data,
        // What was applied is in the journal; which profile is asked for makes no difference to that.
        profile: &Profile::built_in(Base::Throughput),
        force: false,
        state,
    });
    match verified {
        Ok(verified) => verified.amiss().map(ToString::to_string).collect(),
        Err(error) => {
            tracing::debug!("the host's tuning cannot be looked at: {error}");
            Vec::new()
        }
    }
}

fn tell(before: &[String], now: &[String]) {
    for drift in now.iter().filter(|drift| !before.contains(drift)) {
        tracing::warn!("tuning is no longer in force: {drift}; type `pinion tune apply --yes`");
    }
    if now.is_empty() && !before.is_empty() {
        tracing::info!("tuning is in force again");
    }
}
