//! `pinion serve`: settings → preflight → engine → banner → wait for a signal → drain.
//!
//! Knows the engine's outside (`shard::engine`) and nothing of what a shard does.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use clap::ArgMatches;
use shard::engine::{Engine, EngineConfig, HostConfig, SEGMENT_BYTES};
use shard::plan::{Plan, PlanInput};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::banner;
use crate::config::{self, ServeConfig, ServeFlags};
use crate::exit::{Failure, output, usage};
use crate::share::Share;
use crate::supervisor;
use crate::text::counted;
use crate::tune;

/// How often a starting server looks whether its shards have recovered.
const READY_POLL: Duration = Duration::from_millis(5);

/// Serves until SIGTERM or SIGINT, then drains. A second signal ends the process at once.
pub fn run(flags: ServeFlags, matches: &ArgMatches) -> Result<(), Failure> {
    let settings = config::merge(flags, matches)?;
    let config = config::resolve(settings)?;
    let filter = tracing_subscriber::EnvFilter::try_new(&config.settings.log).map_err(|error| {
        usage(format!(
            "--log {}: {error}: type a level such as info, or a list of target=level",
            config.settings.log
        ))
    })?;
    if config.settings.print_config {
        let text = toml::to_string(&config.settings)?;
        output(std::io::stdout().write_all(text.as_bytes()))?;
        return Ok(());
    }
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }

    let data = &config.settings.data;
    std::fs::create_dir_all(data).with_context(|| format!("--data {}", data.display()))?;
    let share = Share::of_this_process(&config);
    preflight(&config, &share)?;
    // Before the engine starts, so that a signal during recovery is a drain and not a kill.
    let mut signals = listen_for_signals()?;
    let settings = &config.settings;
    let (tuning_state, data) = (settings.tuning_state.clone(), settings.data.clone());
    let engine = Engine::open(engine_config(config, &share))?;
    share.tell(engine.banner().shards.len());
    show(&banner::render(engine.banner()));
    supervisor::recovering();
    tune::drift::watch(tuning_state, data);
    if wait_until_settled(&engine, &mut signals) {
        let line = banner::ready_line(engine.banner(), &engine.stopped_shards());
        show(&line);
        supervisor::ready(&line);
        signals.forever().next();
    }
    supervisor::draining();
    tracing::info!("draining: no new connections, open requests are finished");
    engine
        .drain()
        .map_err(|why| anyhow::anyhow!("the drain was not clean: {why}"))?;
    tracing::info!("drained");
    Ok(())
}

/// SIGTERM and SIGINT come out of the iterator; a second one ends the process with 1, because acked work is safe on disk
/// anyway and whoever sends it twice means it.
fn listen_for_signals() -> anyhow::Result<Signals> {
    let asked_before = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // The order matters: the first signal passes this one by and arms it.
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&asked_before))?;
        signal_hook::flag::register(signal, Arc::clone(&asked_before))?;
    }
    Ok(Signals::new([SIGTERM, SIGINT])?)
}

/// False: a signal came first.
fn wait_until_settled(engine: &Engine, signals: &mut Signals) -> bool {
    loop {
        if signals.pending().next().is_some() {
            return false;
        }
        if engine.is_settled() {
            return true;
        }
        std::thread::sleep(READY_POLL);
    }
}

/// Prints to standard output. Nobody reading the banner is no reason not to serve.
fn show(text: &str) {
    let mut out = std::io::stdout().lock();
    if let Err(error) = out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        tracing::warn!("the banner cannot be printed: {error}");
    }
}

fn engine_config(config: ServeConfig, share: &Share) -> EngineConfig {
    let ServeConfig {
        settings, token, ..
    } = config;
    EngineConfig {
        data: settings.data,
        shards: settings.shards,
        shards_max: share.shards_max,
        cores: settings.cores.map(|cores| cores.0),
        listen: settings.listen,
        native_port: settings.port,
        http_port: settings.http_port,
        segment_bytes: settings.segment_bytes.map(|bytes| bytes.0),
        memory_bytes: share.memory_bytes,
        payload_bytes_max: u32::try_from(settings.payload_bytes_max.0)
            .expect("checked to be below 2 MiB"),
        connections_max: settings.connections_max,
        request_timeout: Duration::from_secs(u64::from(settings.request_timeout_seconds)),
        token,
        spin_us: settings.spin_us,
        commit_window_us: settings.commit_window_us,
        congestion: settings.congestion,
        cache_bytes: settings.cache.map(|bytes| bytes.0),
        segments_ahead: settings.segments_ahead,
        checkpoint_log_bytes: settings.checkpoint_log_bytes.map(|bytes| bytes.0),
        scrub_bytes_per_second: settings.scrub_bytes_per_second.0,
        space_amplification_percent: settings
            .space_amplification
            .map(|times| (times * 100.0).round() as u64),
        shard_ports: settings.shard_ports,
        host: HostConfig {
            incoming_cpu: settings.incoming_cpu,
            napi_busy_poll_us: settings.napi_busy_poll_us,
            io_workers: settings.io_workers,
            io_worker_cores: settings.io_worker_cores.map_or(Vec::new(), |cores| cores.0),
            huge_pages: settings.huge_pages,
            lock_memory: settings.lock_memory,
            cpu_dma_latency_us: settings.cpu_dma_latency_us,
            tcp_user_timeout: Duration::from_secs(u64::from(settings.tcp_user_timeout_seconds)),
            tcp_keepalive: Duration::from_secs(u64::from(settings.tcp_keepalive_seconds)),
        },
    }
}

/// Says what is missing and how to get it; refuses to start where nothing would work.
fn preflight(config: &ServeConfig, share: &Share) -> Result<(), Failure> {
    let settings = &config.settings;
    let shards = settings
        .shard_count()
        .unwrap_or_else(|| shard::placement::Placement::of_this_process().shards(share.shards_max));
    let plan = Plan::new(&PlanInput {
        memory_bytes: share.memory_bytes,
        shards,
        connections_max: settings.connections_max,
        payload_bytes_max: u32::try_from(settings.payload_bytes_max.0)
            .expect("checked to be below 2 MiB"),
        segment_bytes: settings
            .segment_bytes
            .map_or(SEGMENT_BYTES, |bytes| bytes.0),
        cache_bytes: settings.cache.map(|bytes| bytes.0),
    });
    // A plan that cannot be met is the engine's to refuse: it knows how many shards the directory really has.
    let registered = plan.map_or(0, |plan| {
        let each = plan.batch_buffers * plan.batch_bytes
            + usize::from(plan.recv_buffers) * plan.recv_buffer_bytes as usize;
        (shards * each) as u64
    });
    let findings = uring::preflight::check(
        &settings.data,
        settings.connections_max as usize * shards,
        registered,
    );
    for finding in &findings {
        if finding.fatal {
            tracing::error!("{}; {}", finding.what, finding.fix);
        } else {
            tracing::warn!("{}; {}", finding.what, finding.fix);
        }
    }
    match findings.iter().filter(|finding| finding.fatal).count() {
        0 => Ok(()),
        count => Err(anyhow::anyhow!(
            "cannot start: see the {} above",
            counted(count as u64, "error")
        )
        .into()),
    }
}
