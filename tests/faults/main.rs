//! Faults under the real binary: killed, stopped, out of disk, out of descriptors, on a filesystem that fails, with clients
//! that misbehave. Real processes, real kernel.
//!
//! What needs root and loop devices says `skipped: …` on standard error and passes where it has none. Sizes for longer runs
//! come from the environment: `PINION_KILLS`, `PINION_SHUTDOWNS`, `PINION_POWER_CUTS`, `PINION_DEVICE_CUTS`,
//! `PINION_ATTACKERS`. What disturbs the whole machine is done only where `PINION_CORE_OFFLINE=1` asks for it.
//!
//! `ground` makes filesystems that can be broken, `forgetful` one that forgets what nobody synced, `oracle` writes down what
//! was sent and acked, `book` holds a server to it; the other modules are the tests.

#[path = "../e2e/accepting.rs"]
mod accepting;
mod book;
mod caps;
mod clients;
mod cores;
mod descriptors;
mod device;
mod filesystem;
mod forgetful;
mod ground;
#[path = "../e2e/http.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests")]
mod http;
mod kill;
mod limits;
mod lingering;
mod network;
mod oracle;
mod power;
mod process;
mod reshard;
#[path = "../e2e/server.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests")]
mod server;
mod steps;
mod syn_flood;
mod unit;

/// A size from the environment.
fn number_from(variable: &str, otherwise: u64) -> u64 {
    std::env::var(variable).map_or(otherwise, |text| {
        text.parse()
            .unwrap_or_else(|_| panic!("{variable}={text} is no number"))
    })
}

/// Says on standard error that a test cannot run here; the harness shows that without being asked to.
fn skipped(test: &str, why: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "skipped: {test} {why}");
}
