//! One run from flags to summary: connect, preload, warm up, measure, drain, read back, report.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use client::protocol::Input;
use client::socket;
use indicatif::{ProgressBar, ProgressStyle};

use crate::flags::{Distribution, Flags, ProtocolName, Workload};
use crate::generator::{self, Interval, Job, Phase};
use crate::machine;
use crate::protocol::{Dialect, Protocol, http};
use crate::records::{KeyDraw, KeyText, Payloads, Records};
use crate::report::{self, Latency, Run, Summary, human, human_us};
use crate::tally::{Failure, Tally};
use crate::timeline::Timeline;
use crate::verify::{self, Acked, Verdict};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Records per append while preloading: keys are many, and this is not what is measured.
const PRELOAD_BATCH: u32 = 100;
/// Appends in flight per connection while preloading, at most: with their batches they fill the server's queues soon enough.
const PRELOAD_PIPELINE: u32 = 4;
/// How long one answer may take while writes are read back.
const READ_BACK_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs what the flags ask for.
pub fn run<P: Protocol>(flags: &Flags) -> anyhow::Result<Summary> {
    let target = Target::new(flags)?;
    let mut acked = None;
    if flags.preload {
        let stored = load::<P>(flags, &target, Part::Preload, &mut acked)?
            .timeline
            .everything();
        if stored.failed() > 0 || stored.records < flags.keys {
            let why = failures::<P>(&stored);
            bail!(
                "preloading stored {} of {} keys: {why:?}",
                stored.records,
                flags.keys
            );
        }
    }
    let loaded = load::<P>(flags, &target, Part::Run, &mut acked)?;
    let verdict = acked
        .map(|acked| read_back::<P>(flags, &target, &acked))
        .transpose()?;
    let summary = summarize::<P>(flags, &target, &loaded, verdict);
    if let Some(directory) = &flags.output {
        let all_ns = loaded.timeline.latencies().latency_ns();
        report::files::write(
            directory,
            &summary,
            &all_ns,
            &loaded.timeline.spans,
            loaded.began,
        )?;
    }
    Ok(summary)
}

/// Which part of a run is loaded.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Every key once, not measured.
    Preload,
    /// What was asked for.
    Run,
}

/// What loading gave.
struct Loaded {
    timeline: Timeline,
    congestion: String,
    began: SystemTime,
}

/// The server, and how to talk to it.
struct Target {
    address: String,
    token: Vec<u8>,
    dialect: Dialect,
    /// What it said about itself.
    server: serde_json::Value,
}

impl Target {
    fn new(flags: &Flags) -> anyhow::Result<Target> {
        let address = flags.address();
        let token = match &flags.token_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("reading {}", path.display()))?;
                text.trim().as_bytes().to_vec()
            }
            None => Vec::new(),
        };
        let dialect = Dialect {
            address: address.clone(),
            stream: flags.stream.clone(),
            durability: flags.durability.wire(),
            want_versions: flags.verify,
            limit: flags.limit,
            token: (!token.is_empty()).then(|| token.clone()),
            json: flags.quotes_payloads(),
        };
        let mut target = Target {
            address,
            token,
            dialect,
            server: serde_json::Value::Null,
        };
        target.server = match flags.protocol {
            ProtocolName::Http => target.topology_over_http(),
            _ => serde_json::to_value(target.topology()?)?,
        };
        Ok(target)
    }

    fn topology(&self) -> anyhow::Result<wire::Topology> {
        let mut socket = socket::open(&self.address, CONNECT_TIMEOUT, None)?;
        let mut input = Input::with_capacity(4096);
        Ok(socket::hello(
            &mut socket,
            &self.address,
            &self.token,
            CONNECT_TIMEOUT,
            &mut input,
        )?)
    }

    /// Null when the server does not tell: any HTTP server can be loaded.
    fn topology_over_http(&self) -> serde_json::Value {
        let ask = || -> anyhow::Result<serde_json::Value> {
            let mut socket = socket::open(&self.address, CONNECT_TIMEOUT, None)?;
            socket.set_read_timeout(Some(CONNECT_TIMEOUT))?;
            let bearer = String::from_utf8_lossy(&self.token);
            write!(
                socket,
                "GET /v1/topology HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {bearer}\r\nConnection: close\r\n\r\n",
                self.address
            )?;
            let mut input = Input::with_capacity(64 * 1024);
            loop {
                if let Some(body) = http::body(input.unread()).map_err(anyhow::Error::msg)? {
                    return Ok(serde_json::from_slice(body)?);
                }
                match socket.read(input.space())? {
                    0 => bail!("the connection ended before the answer"),
                    count => input.filled(count),
                }
            }
        };
        ask().unwrap_or_default()
    }

    /// Opens `count` connections. Returns the congestion control that they have.
    fn connect(&self, flags: &Flags, count: u32) -> anyhow::Result<(Vec<TcpStream>, String)> {
        let mut sockets = Vec::with_capacity(count as usize);
        let mut asked = Some(flags.congestion.as_str());
        let mut refused = None;
        for _ in 0..count {
            let opened = match socket::open(&self.address, CONNECT_TIMEOUT, asked) {
                // A kernel without this algorithm still makes a run; the summary says what it ran with.
                Err(error) if asked.is_some() && refused.is_none() => {
                    refused = Some(error);
                    asked = None;
                    socket::open(&self.address, CONNECT_TIMEOUT, None)
                }
                opened => opened,
            };
            let mut socket = opened?;
            if flags.protocol == ProtocolName::Native {
                let mut input = Input::with_capacity(4096);
                socket::hello(
                    &mut socket,
                    &self.address,
                    &self.token,
                    CONNECT_TIMEOUT,
                    &mut input,
                )?;
            }
            sockets.push(socket);
        }
        let has = sockets
            .first()
            .and_then(socket::congestion_of)
            .unwrap_or_else(|| "unknown".to_owned());
        let congestion = if has == flags.congestion {
            has
        } else {
            format!("{has} ({} was not to be had)", flags.congestion)
        };
        Ok((sockets, congestion))
    }
}

/// Connects and runs all threads to their end. What is acknowledged is added to `acked` under `--verify`.
fn load<P: Protocol>(
    flags: &Flags,
    target: &Target,
    part: Part,
    acked: &mut Option<Acked>,
) -> anyhow::Result<Loaded> {
    let threads = flags.threads as usize;
    let (mut sockets, congestion) = target.connect(flags, flags.connections)?;
    let (reports, intervals) = mpsc::channel();
    // Everything that takes time to make is made before the clock starts.
    let mut parts = Vec::with_capacity(threads);
    for thread in 0..threads {
        let own = sockets.split_off(sockets.len() - sockets.len() / (threads - thread));
        let share = own.len() as f64 / f64::from(flags.connections);
        let acked = flags.verify.then(|| Acked::new(flags.keys));
        let core = core_of(flags, thread)?;
        parts.push((
            job(flags, target, part, thread, share),
            own,
            records_of(flags, part, thread),
            acked,
            core,
        ));
    }
    let (began, clock) = (SystemTime::now(), Instant::now());
    let mut workers = Vec::with_capacity(threads);
    for (thread, (job, own, records, acked, core)) in parts.into_iter().enumerate() {
        let reports = reports.clone();
        let worker = thread::Builder::new()
            .name(format!("generator-{thread}"))
            .spawn(move || {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                generator::run::<P>(&job, own, records, acked, clock, &reports)
            });
        workers.push(worker.context("starting a generator thread")?);
    }
    drop(reports);
    let timeline = watch(flags, part, intervals);
    for worker in workers {
        let own = worker
            .join()
            .map_err(|_| anyhow::anyhow!("a generator thread panicked"))?
            .context("generator")?;
        match (acked.as_mut(), own) {
            (Some(all), Some(own)) => all.add(&own),
            (None, own) => *acked = own,
            (Some(_), None) => {}
        }
    }
    Ok(Loaded {
        timeline,
        congestion,
        began,
    })
}

fn job(flags: &Flags, target: &Target, part: Part, thread: usize, share: f64) -> Job {
    let records_per_request = match flags.workload {
        Workload::Append | Workload::Queue => f64::from(flags.batch),
        Workload::Get | Workload::History => 1.0,
        Workload::Mixed => flags.get_share + (1.0 - flags.get_share) * f64::from(flags.batch),
    };
    let run = Job {
        dialect: target.dialect.clone(),
        workload: flags.workload,
        pipeline: flags.pipeline,
        batch: flags.batch,
        get_share: flags.get_share,
        rate: flags.rate.map(|rate| rate * share / records_per_request),
        warmup: Duration::from_secs_f64(flags.warmup_seconds),
        measure: Some(Duration::from_secs_f64(flags.seconds)),
        must_find: flags.preload || flags.workload != Workload::Mixed,
        seed: thread_seed(flags, thread),
    };
    match part {
        Part::Run => run,
        Part::Preload => Job {
            workload: Workload::Append,
            pipeline: flags.pipeline.min(PRELOAD_PIPELINE),
            batch: PRELOAD_BATCH,
            rate: None,
            warmup: Duration::ZERO,
            measure: None,
            ..run
        },
    }
}

fn thread_seed(flags: &Flags, thread: usize) -> u64 {
    flags
        .seed
        .wrapping_add((thread as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

fn records_of(flags: &Flags, part: Part, thread: usize) -> Records {
    let seed = thread_seed(flags, thread);
    let (number, threads) = (thread as u64, u64::from(flags.threads));
    let draw = match (part, flags.distribution) {
        (Part::Preload, _) => {
            KeyDraw::in_order(flags.keys * number / threads..flags.keys * (number + 1) / threads)
        }
        (Part::Run, Distribution::Uniform) => KeyDraw::uniform(flags.keys, seed),
        (Part::Run, Distribution::Zipf) => KeyDraw::zipf(flags.keys, flags.zipf_exponent, seed),
    };
    // Unlike any stamp of another run, part or thread, so that what an earlier run left is not taken for what this one wrote:
    // 20 bits of seconds, 1 of part, 10 of thread, 33 to count.
    let second = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let stamp = (second << 44) | u64::from(part == Part::Preload) << 43 | number << 33;
    Records {
        draw,
        text: KeyText::new(flags.key_bytes as usize, flags.keys),
        payloads: Payloads::new(
            flags.payload_bytes as usize,
            flags.quotes_payloads(),
            flags.verify.then_some(stamp),
            seed,
        ),
        written: flags.verify.then(Vec::new),
    }
}

fn core_of(flags: &Flags, thread: usize) -> anyhow::Result<Option<core_affinity::CoreId>> {
    let Some(cores) = &flags.cores else {
        return Ok(None);
    };
    let id = cores.0[thread % cores.0.len()];
    let usable = core_affinity::get_core_ids().unwrap_or_default();
    match usable.into_iter().find(|core| core.id == id) {
        Some(core) => Ok(Some(core)),
        None => bail!("--cores: this process may not run on core {id} (see taskset -p $$)"),
    }
}

/// Shows the progress until all threads have ended; returns all that they reported.
fn watch(flags: &Flags, part: Part, intervals: Receiver<Interval>) -> Timeline {
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{elapsed:>4} {msg}").expect("the template is well-formed"),
    );
    let mut timeline = Timeline::new(flags.threads as usize);
    for interval in intervals {
        let Some(span) = timeline.add(interval) else {
            continue;
        };
        let phase = match (part, span.phase) {
            (Part::Preload, _) => "preload",
            (Part::Run, Phase::Warmup) => "warm-up",
            (Part::Run, Phase::Measured) => "measure",
            (Part::Run, Phase::Drain) => "drain",
        };
        bar.set_message(format!(
            "{phase}  {} records/s  {} requests/s  p99 {}  errors {}",
            human(span.records as f64 / span.seconds()),
            human(span.requests as f64 / span.seconds()),
            human_us(span.latency.p99_us),
            span.failed,
        ));
        bar.tick();
    }
    bar.finish_and_clear();
    timeline.finish();
    timeline
}

fn read_back<P: Protocol>(
    flags: &Flags,
    target: &Target,
    acked: &Acked,
) -> anyhow::Result<Verdict> {
    let (mut sockets, _) = target.connect(flags, 1)?;
    let socket = sockets.pop().expect("one was asked for");
    socket.set_read_timeout(Some(READ_BACK_TIMEOUT))?;
    socket.set_write_timeout(Some(READ_BACK_TIMEOUT))?;
    let bar = ProgressBar::new_spinner();
    bar.set_style(
        ProgressStyle::with_template("{elapsed:>4} read back {msg} keys")
            .expect("the template is well-formed"),
    );
    let text = KeyText::new(flags.key_bytes as usize, flags.keys);
    let verdict = verify::read_back::<P>(acked, socket, &target.dialect, &text, |keys| {
        bar.set_message(keys.to_string());
        bar.tick();
    });
    bar.finish_and_clear();
    verdict
}

fn failures<P: Protocol>(tally: &Tally) -> BTreeMap<String, u64> {
    let name = |failure: &Failure| match failure {
        Failure::Refused(number) => P::refusal_name(*number),
        Failure::NotFound => "not found".to_owned(),
        Failure::ConnectionLost => "connection lost".to_owned(),
        Failure::Unanswered => "unanswered".to_owned(),
        Failure::Broken => "protocol broken".to_owned(),
    };
    tally
        .failures
        .iter()
        .map(|(failure, &count)| (name(failure), count))
        .collect()
}

fn summarize<P: Protocol>(
    flags: &Flags,
    target: &Target,
    loaded: &Loaded,
    verify: Option<Verdict>,
) -> Summary {
    let (timeline, seconds) = (&loaded.timeline, loaded.timeline.measured_seconds());
    let (measured, latencies, everything) = (
        timeline.measured(),
        timeline.latencies(),
        timeline.everything(),
    );
    let (append, read) = report::by_operation(&latencies);
    Summary {
        records_per_second: (measured.records as f64 / seconds).round(),
        requests_per_second: (measured.requests as f64 / seconds).round(),
        latency: Latency::of(&latencies.latency_ns()),
        append,
        read,
        errors: everything.failed(),
        errors_by_code: failures::<P>(&everything),
        not_found: everything.not_found,
        unsent: timeline.unsent,
        records: measured.records,
        requests: measured.requests,
        seconds,
        sent_bytes_per_second: (measured.bytes_out as f64 / seconds).round(),
        received_bytes_per_second: (measured.bytes_in as f64 / seconds).round(),
        verify,
        run: Run {
            to: target.address.clone(),
            protocol: name_of(flags.protocol),
            workload: name_of(flags.workload),
            loop_kind: if flags.rate.is_some() {
                "open"
            } else {
                "closed"
            },
            rate: flags.rate,
            connections: flags.connections,
            pipeline: flags.pipeline,
            batch: flags.batch,
            payload_bytes: flags.payload_bytes,
            key_bytes: flags.key_bytes,
            keys: flags.keys,
            distribution: match flags.distribution {
                Distribution::Uniform => "uniform".to_owned(),
                Distribution::Zipf => format!("zipf {}", flags.zipf_exponent),
            },
            get_share: (flags.workload == Workload::Mixed).then_some(flags.get_share),
            warmup_seconds: flags.warmup_seconds,
            durability: target.dialect.durability.name(),
            congestion: loaded.congestion.clone(),
            threads: flags.threads,
            cores: flags
                .cores
                .as_ref()
                .map_or_else(Vec::new, |cores| cores.0.clone()),
            seed: flags.seed,
        },
        server: target.server.clone(),
        machine: machine::machine(),
        commit: machine::commit(),
        command: std::env::args().collect::<Vec<_>>().join(" "),
    }
}

/// A value as it is typed.
fn name_of(value: impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}
