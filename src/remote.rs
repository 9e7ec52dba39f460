//! The client commands: one request or one stream of pages each, over the native protocol. Records go out as the NDJSON that HTTP
//! serves, payloads as they came.

use std::ffi::OsStr;
use std::io::{self, Read as _, Write};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use client::{Client, Condition, ConnectOptions, ContentType, Record, Stored};
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cli::{AppendFlags, GetFlags, HistoryFlags, ScanFlags, TailFlags, Target};
use crate::config::read_token;
use crate::exit::{Failure, output};

/// Records of a page at most.
const PAGE_RECORDS: u32 = 1000;
/// How long a tail waits in one request: as long as an interrupt may take to be seen.
const TAIL_WAIT: Duration = Duration::from_secs(1);

/// Connects where the flags say; `options` without the token.
pub fn connect(target: &Target, options: ConnectOptions) -> Result<Client, Failure> {
    let mut warnings = Vec::new();
    let token = target
        .token_file
        .as_deref()
        .map(|path| read_token(path, &mut warnings))
        .transpose()?;
    for warning in warnings {
        eprintln!("pinion: {warning}");
    }
    Client::connect(&target.to, ConnectOptions { token, ..options }).map_err(failed)
}

/// What cannot be sent was typed wrong; everything else failed.
pub fn failed(error: client::Error) -> Failure {
    match error {
        client::Error::Usage(text) => Failure::Usage(text),
        other => Failure::Failed(other.into()),
    }
}

/// One connection is enough for one request.
fn single() -> ConnectOptions {
    ConnectOptions {
        shard_aware: false,
        ..ConnectOptions::default()
    }
}

/// Appends one record and prints what the server said.
pub fn append(flags: &AppendFlags) -> Result<(), Failure> {
    let payload = match &flags.value {
        _ if flags.tombstone => Vec::new(),
        Some(value) if value != "-" => value.as_bytes().to_vec(),
        _ => {
            let mut payload = Vec::new();
            io::stdin()
                .lock()
                .read_to_end(&mut payload)
                .context("reading the value from standard input")?;
            payload
        }
    };
    let condition = match (flags.if_version, flags.if_new) {
        (Some(version), _) => Condition::Version(version),
        (None, true) => Condition::New,
        (None, false) => Condition::None,
    };
    let record = Record {
        key: flags.key.as_bytes(),
        payload: &payload,
        content_type: ContentType::from_header(flags.content_type.as_bytes()),
        tombstone: flags.tombstone,
        condition,
    };
    // With a producer id a lost ack is asked for again instead of guessed at.
    let producer_id = Some(uuid::Uuid::new_v4().as_u128());
    let mut client = connect(
        &flags.target,
        ConnectOptions {
            durability: flags.durability.into(),
            producer_id,
            ..single()
        },
    )?;
    let ack = client.append(&flags.stream, &[record]).map_err(failed)?;
    let part = ack.parts.first().context("the server named no position")?;
    let said = serde_json::json!({
        "position": format!("{}:{}", part.log, part.first_lsn),
        "version": ack.versions.first(),
        "durability": ack.durability.name(),
    });
    output(writeln!(io::stdout(), "{said}"))?;
    Ok(())
}

/// Writes the newest payload.
pub fn get(flags: &GetFlags) -> Result<(), Failure> {
    let mut client = connect(&flags.target, single())?;
    match client
        .get(&flags.stream, flags.key.as_bytes())
        .map_err(failed)?
    {
        Some(record) => {
            let mut out = io::stdout().lock();
            output(out.write_all(&record.payload).and_then(|()| out.flush()))?;
        }
        None => return Err(no_such_key(&flags.stream, &flags.key)),
    }
    Ok(())
}

/// Prints versions, newest first.
pub fn history(flags: &HistoryFlags) -> Result<(), Failure> {
    let mut client = connect(&flags.target, single())?;
    let mut lines = Lines::default();
    let mut left = flags.limit.unwrap_or(u32::MAX);
    let mut before = flags.before.unwrap_or(0);
    let mut any = false;
    while left > 0 {
        let records = client
            .history(
                &flags.stream,
                flags.key.as_bytes(),
                before,
                left.min(PAGE_RECORDS),
            )
            .map_err(failed)?;
        let Some(oldest) = records.last() else { break };
        any = true;
        lines.print(&records)?;
        left -= u32::try_from(records.len()).unwrap_or(left).min(left);
        before = oldest.version;
        if before <= 1 {
            break;
        }
    }
    // Nothing below a version that was asked for is an answer; nothing at all is a key that is not there.
    if !any && flags.before.is_none() {
        return Err(no_such_key(&flags.stream, &flags.key));
    }
    Ok(())
}

/// Prints records of a stream up to its end or a limit.
pub fn scan(flags: &ScanFlags) -> Result<(), Failure> {
    let mut client = connect(&flags.target, single())?;
    let mut lines = Lines::default();
    let mut left = flags.limit.unwrap_or(u64::MAX);
    let mut cursor = flags.cursor.clone().unwrap_or_default().into_bytes();
    while left > 0 {
        let page = client
            .scan_page(&flags.stream, &cursor, page_limit(left))
            .map_err(failed)?;
        // The page behind the last record carries no cursor; the one before it says where to go on.
        if page.records.is_empty() {
            break;
        }
        cursor = page.cursor;
        left = left.saturating_sub(page.records.len() as u64);
        lines.print(&page.records)?;
    }
    say_cursor(&cursor);
    Ok(())
}

/// Prints records of a stream as they come, until a limit or an interrupt.
pub fn tail(flags: &TailFlags) -> Result<(), Failure> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted))?;
    }
    let mut client = connect(&flags.target, single())?;
    let mut lines = Lines::default();
    let mut left = flags.limit.unwrap_or(u64::MAX);
    let mut cursor = flags.cursor.clone().unwrap_or_default().into_bytes();
    while left > 0 && !interrupted.load(Ordering::Relaxed) {
        let page = client
            .tail(&flags.stream, &cursor, page_limit(left), TAIL_WAIT)
            .map_err(failed)?;
        if !page.cursor.is_empty() {
            cursor = page.cursor;
        }
        left = left.saturating_sub(page.records.len() as u64);
        lines.print(&page.records)?;
    }
    say_cursor(&cursor);
    Ok(())
}

fn page_limit(left: u64) -> u32 {
    u32::try_from(left)
        .unwrap_or(PAGE_RECORDS)
        .min(PAGE_RECORDS)
}

fn no_such_key(stream: &str, key: &OsStr) -> Failure {
    anyhow::anyhow!("stream {stream} has no key {}", key.display()).into()
}

/// On standard error, so that what is piped stays NDJSON.
fn say_cursor(cursor: &[u8]) {
    if !cursor.is_empty() {
        eprintln!("cursor: {}", String::from_utf8_lossy(cursor));
    }
}

/// Records as NDJSON on standard output, a page at a time.
#[derive(Default)]
struct Lines {
    buffer: Vec<u8>,
}

impl Lines {
    fn print(&mut self, records: &[Stored]) -> anyhow::Result<()> {
        self.buffer.clear();
        for record in records {
            wire::ndjson::write_record(&mut self.buffer, &record.as_wire());
        }
        let mut out = io::stdout().lock();
        output(out.write_all(&self.buffer).and_then(|()| out.flush()))
    }
}
