//! `pinion load`: a file of records, appended over the native protocol.
//!
//! Streams: one line, one batch and a bounded window of frames are in memory, whatever the size of the file. Nothing is dropped in
//! silence: a line that is no record stops the load, or is counted and reported where `--skip-bad` was typed.

mod batch;
mod reader;
mod report;

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use client::{Client, Code, ConnectOptions, Ticket};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::{Format, LoadFlags};
use crate::exit::{Failure, output};
use crate::remote;
use batch::Batch;
use reader::{Entry, Fields, ReadError, Reader};
use report::Report;

const PROGRESS_EVERY: Duration = Duration::from_millis(200);

/// Loads the file and prints what was done.
pub fn run(flags: &LoadFlags) -> Result<(), Failure> {
    let (input, length) = open(&flags.file)?;
    let options = ConnectOptions {
        // A frame whose ack got lost with its connection is sent again and stored once.
        producer_id: Some(uuid::Uuid::new_v4().as_u128()),
        durability: flags.durability.into(),
        want_versions: false,
        window: flags.window as usize,
        ..ConnectOptions::default()
    };
    let client = remote::connect(&flags.target, options)?;
    let progress = progress(length);
    let fields = Fields {
        key: flags.key.clone(),
        value: flags.value.clone(),
    };
    let input = progress.wrap_read(input);
    let reader = match format(flags) {
        Format::Ndjson => Ok(Reader::ndjson(input, fields)),
        Format::Csv => Reader::csv(input, fields),
    };
    let reader = reader.map_err(|error| read_failure(flags, error, ""))?;

    let mut load = Load::new(flags, client, progress);
    let result = load.all(reader);
    load.progress.finish_and_clear();
    load.report.elapsed = load.started.elapsed();
    output(write!(io::stdout(), "{}", load.report))?;
    result
}

fn open(path: &Path) -> anyhow::Result<(Box<dyn Read>, Option<u64>)> {
    if path == Path::new("-") {
        return Ok((Box::new(io::stdin()), None));
    }
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let metadata = file
        .metadata()
        .with_context(|| path.display().to_string())?;
    let length = metadata.is_file().then_some(metadata.len());
    Ok((Box::new(file), length))
}

fn format(flags: &LoadFlags) -> Format {
    let named_csv = || {
        flags
            .file
            .extension()
            .is_some_and(|extension| extension.eq_ignore_ascii_case("csv"))
    };
    flags.format.unwrap_or_else(|| {
        if named_csv() {
            Format::Csv
        } else {
            Format::Ndjson
        }
    })
}

/// On standard error, and only where that is a terminal.
fn progress(length: Option<u64>) -> ProgressBar {
    let (bar, template) = match length {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{wide_bar} {bytes} of {total_bytes}, {msg}, {eta} left",
        ),
        None => (ProgressBar::new_spinner(), "{spinner} {bytes}, {msg}"),
    };
    bar.with_style(ProgressStyle::with_template(template).expect("the templates are constants"))
}

fn input_name(flags: &LoadFlags) -> String {
    if flags.file == Path::new("-") {
        "standard input".to_owned()
    } else {
        flags.file.display().to_string()
    }
}

fn read_failure(flags: &LoadFlags, error: ReadError, stored: &str) -> Failure {
    let file = input_name(flags);
    match error {
        ReadError::Line { line, why } => {
            anyhow::anyhow!("{file} line {line}: {why}{stored}").into()
        }
        ReadError::Input(error) => anyhow::Error::new(error)
            .context(format!("reading {file}"))
            .into(),
    }
}

/// A frame on its way.
struct Sent {
    at: Instant,
    records: u64,
    bytes: u64,
    lines: (u64, u64),
}

struct Load<'f> {
    flags: &'f LoadFlags,
    client: Client,
    batch: Batch,
    records_max: usize,
    in_flight: HashMap<Ticket, Sent>,
    /// Why the first frame that was not acked was not.
    failed: Option<Failure>,
    report: Report,
    progress: ProgressBar,
    started: Instant,
    shown: Instant,
}

impl<'f> Load<'f> {
    fn new(flags: &'f LoadFlags, client: Client, progress: ProgressBar) -> Load<'f> {
        // The client makes one frame per shard out of a batch.
        let records_max = flags.batch as usize * client.topology().shards.len();
        let now = Instant::now();
        Load {
            flags,
            client,
            batch: Batch::default(),
            records_max,
            in_flight: HashMap::new(),
            failed: None,
            report: Report::default(),
            progress,
            started: now,
            shown: now,
        }
    }

    /// Everything up to the end of the input or to the first thing that stops it. When this returns every frame that was sent
    /// has its answer, and the acked ones are counted.
    fn all<R: Read>(&mut self, mut reader: Reader<R>) -> Result<(), Failure> {
        let mut entry = Entry::default();
        let stopped = loop {
            if self.failed.is_some() {
                break None;
            }
            let mut read = reader.next(&mut entry);
            if let Ok(true) = read {
                read = self.fits(&entry).map(|()| true);
            }
            match read {
                Ok(true) => {
                    self.batch.push(&entry);
                    if self.batch.is_full(self.records_max) {
                        self.send()?;
                    }
                }
                Ok(false) => break None,
                Err(ReadError::Line { line, why }) if self.flags.skip_bad => {
                    self.report.skip(line, why)
                }
                Err(error) => break Some(error),
            }
        };
        if self.failed.is_none() {
            self.send()?;
        }
        while let Some((ticket, ack)) = self.client.recv() {
            self.settle(ticket, ack);
        }
        match (self.failed.take(), stopped) {
            (Some(failure), _) => Err(failure),
            (None, None) => Ok(()),
            (None, Some(error)) => {
                let stored =
                    "; the lines before it are stored (--skip-bad counts bad lines and goes on)";
                Err(read_failure(self.flags, error, stored))
            }
        }
    }

    /// One that does not would have the whole frame refused, with all that is in it.
    fn fits(&self, entry: &Entry) -> Result<(), ReadError> {
        let bytes = entry.payload.len() as u64;
        match self.flags.payload_bytes_max {
            Some(most) if bytes > most.0 => Err(ReadError::Line {
                line: entry.line,
                why: format!("payload has {bytes} bytes, and --payload-bytes-max is {most}"),
            }),
            _ => Ok(()),
        }
    }

    fn send(&mut self) -> Result<(), Failure> {
        if self.batch.len() == 0 {
            return Ok(());
        }
        let sent = Sent {
            at: Instant::now(),
            records: self.batch.len() as u64,
            bytes: self.batch.bytes(),
            lines: self.batch.lines(),
        };
        let ticket = self
            .client
            .send_append(&self.flags.stream, &self.batch.records())
            .map_err(remote::failed)?;
        self.in_flight.insert(ticket, sent);
        self.batch.clear();
        while let Some((ticket, ack)) = self.client.poll() {
            self.settle(ticket, ack);
        }
        Ok(())
    }

    fn settle(&mut self, ticket: Ticket, ack: client::Result<client::Ack>) {
        let sent = self
            .in_flight
            .remove(&ticket)
            .expect("a ticket is answered once");
        if let Err(error) = ack {
            let failure = self.not_acked(&sent, error);
            self.failed.get_or_insert(failure);
            return;
        }
        self.report.acked(sent.at.elapsed());
        self.report.records += sent.records;
        self.report.bytes += sent.bytes;
        if self.shown.elapsed() >= PROGRESS_EVERY {
            self.shown = Instant::now();
            let rate = self.report.records as f64 / self.started.elapsed().as_secs_f64();
            self.progress.set_message(format!("{rate:.0} records/s"));
        }
    }

    /// Each shard has a frame of its own of a batch, and answers for itself.
    fn not_acked(&self, sent: &Sent, error: client::Error) -> Failure {
        let hint = match error.code() {
            Some(Code::TooLarge) => {
                " (with --payload-bytes-max lines that are too large are told by their numbers)"
            }
            _ => "",
        };
        let file = input_name(self.flags);
        let what = match sent.lines {
            (first, last) if first == last => format!("line {first} of {file} was not acked"),
            (first, last) => format!(
                "lines {first} to {last} of {file} were not all acked, and are not in these totals"
            ),
        };
        anyhow::Error::new(error)
            .context(format!("{what}{hint}"))
            .into()
    }
}
