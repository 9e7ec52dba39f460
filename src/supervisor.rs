//! What a service manager is told: that the server starts, serves and drains (sd_notify(3), `NOTIFY_SOCKET`).
//!
//! Without a service manager every call does nothing; a manager that does not listen is no reason not to serve.

use sd_notify::NotifyState;

/// The engine is open, its shards recover.
pub fn recovering() {
    tell(&[NotifyState::Status("recovering")]);
}

/// Every shard has ended its recovery; `line` says what is served.
pub fn ready(line: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(line.trim_end())]);
}

/// A signal came; what was accepted is finished.
pub fn draining() {
    tell(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn tell(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("the service manager cannot be told ({error})");
    }
}
