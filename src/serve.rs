//! `pinion serve`: settings → preflight → engine → banner → wait for a signal → drain.

use std::io::Write as _;

use clap::ArgMatches;

use crate::config::{self, ServeConfig, ServeFlags};
use crate::exit::{Failure, output};

/// Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.
pub fn run(flags: ServeFlags, matches: &ArgMatches) -> Result<(), Failure> {
    let settings = config::merge(flags, matches)?;
    let config = config::resolve(settings)?;
    if config.settings.print_config {
        let text = toml::to_string(&config.settings)?;
        output(std::io::stdout().write_all(text.as_bytes()))?;
        return Ok(());
    }
    start_logging(&config.settings.log)?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    preflight(&config)
}

fn start_logging(filter: &str) -> Result<(), Failure> {
    let filter = tracing_subscriber::EnvFilter::try_new(filter).map_err(|error| {
        crate::exit::usage(format!(
            "--log {filter}: {error}: type a level such as info, or target=level"
        ))
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}

/// Says what is missing and how to get it; refuses to start where nothing would work.
fn preflight(config: &ServeConfig) -> Result<(), Failure> {
    let settings = &config.settings;
    let shards = settings
        .shards
        .or(settings.cores.as_ref().map(|cores| cores.0.len()))
        .unwrap_or_else(|| core_affinity::get_core_ids().map_or(1, |cores| cores.len()));
    let connections = settings.connections_max as usize * shards;
    let findings = uring::preflight::check(&settings.data, connections, 0);
    for finding in &findings {
        if finding.fatal {
            tracing::error!(fix = %finding.fix, "{}", finding.what);
        } else {
            tracing::warn!(fix = %finding.fix, "{}", finding.what);
        }
    }
    match findings.iter().filter(|finding| finding.fatal).count() {
        0 => Ok(()),
        count => Err(anyhow::anyhow!(
            "cannot start: {} above",
            crate::text::counted(count as u64, "finding")
        )
        .into()),
    }
}
