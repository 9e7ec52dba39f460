//! Reading: newest value, history, pages of a stream.
//!
//! Reads of a key go to its shard; pages of a stream come from any shard, which gathers them from all. Every read is sent again
//! once if its connection ends, since repeating it changes nothing.

use std::collections::VecDeque;
use std::time::Duration;

use wire::native::{self, opcode};
use wire::{Code, ContentType, RecordOut, Topology};

use crate::client::{Client, check_stream};
use crate::connection::Answer;
use crate::error::{Error, Result};

/// A record as the server holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Number of the log that it is in.
    pub log: u32,
    /// Its number in that log; `log:lsn` is its position.
    pub lsn: u64,
    /// Its number in the history of its key, from 1.
    pub version: u32,
    /// Log time in microseconds since 1970.
    pub timestamp_us: u64,
    /// It ends its key.
    pub tombstone: bool,
    /// As in a Content-Type header.
    pub content_type: String,
    /// What it is about.
    pub key: Vec<u8>,
    /// What was written.
    pub payload: Vec<u8>,
}

impl Stored {
    /// As the wire has it, for rendering.
    pub fn as_wire(&self) -> RecordOut<'_> {
        RecordOut {
            log: self.log,
            lsn: self.lsn,
            version: self.version,
            timestamp_us: self.timestamp_us,
            tombstone: self.tombstone,
            content_type: ContentType::from_header(self.content_type.as_bytes()),
            key: &self.key,
            payload: &self.payload,
        }
    }
}

impl From<&RecordOut<'_>> for Stored {
    fn from(record: &RecordOut<'_>) -> Stored {
        Stored {
            log: record.log,
            lsn: record.lsn,
            version: record.version,
            timestamp_us: record.timestamp_us,
            tombstone: record.tombstone,
            content_type: String::from_utf8_lossy(record.content_type.as_header()).into_owned(),
            key: record.key.to_vec(),
            payload: record.payload.to_vec(),
        }
    }
}

/// A page of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// A shard's in the order of its log: what compaction has copied comes where the copy lies.
    pub records: Vec<Stored>,
    /// Where the next page starts; opaque.
    pub cursor: Vec<u8>,
}

impl Client {
    /// The newest record of a key; None if there is none or it was deleted.
    pub fn get(&mut self, stream: &str, key: &[u8]) -> Result<Option<Stored>> {
        check_stream(stream)?;
        let answer = self.call(Some(key), Duration::ZERO, |out, id| {
            native::get(out, id, stream.as_bytes(), key)
        })?;
        match answer {
            Answer::Record(record) => Ok(Some(record)),
            Answer::Refused(refusal) if refusal.code == Code::NotFound => Ok(None),
            other => Err(self.unexpected(Some(key), other)),
        }
    }

    /// Up to `limit` records of a key, newest first, with versions below `before` (0: from the newest). Tombstones are among them.
    pub fn history(
        &mut self,
        stream: &str,
        key: &[u8],
        before: u32,
        limit: u32,
    ) -> Result<Vec<Stored>> {
        check_stream(stream)?;
        let encode =
            |out: &mut Vec<u8>, id| native::history(out, id, stream.as_bytes(), key, before, limit);
        match self.call(Some(key), Duration::ZERO, encode)? {
            Answer::Page { records, .. } => Ok(records),
            Answer::Refused(refusal) if refusal.code == Code::NotFound => Ok(Vec::new()),
            other => Err(self.unexpected(Some(key), other)),
        }
    }

    /// One page of a stream from `cursor` on (empty: from the beginning). An empty page is the end.
    pub fn scan_page(&mut self, stream: &str, cursor: &[u8], limit: u32) -> Result<Page> {
        check_stream(stream)?;
        let encode =
            |out: &mut Vec<u8>, id| native::scan(out, id, stream.as_bytes(), cursor, limit);
        let answer = self.call(None, Duration::ZERO, encode)?;
        self.page(answer)
    }

    /// Every record of a stream, `page` records at a time. Ends behind the last record that was there.
    pub fn scan<'a>(&'a mut self, stream: &'a str, page: u32) -> Scan<'a> {
        Scan {
            client: self,
            stream,
            limit: page,
            cursor: Vec::new(),
            records: VecDeque::new(),
            ended: false,
        }
    }

    /// Like [`scan_page`](Self::scan_page), but at the end of the stream it waits up to `wait` for records to come.
    pub fn tail(
        &mut self,
        stream: &str,
        cursor: &[u8],
        limit: u32,
        wait: Duration,
    ) -> Result<Page> {
        check_stream(stream)?;
        let wait_ms = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX);
        let encode = |out: &mut Vec<u8>, id| {
            native::tail(out, id, stream.as_bytes(), cursor, limit, wait_ms)
        };
        let answer = self.call(None, wait, encode)?;
        self.page(answer)
    }

    /// Asks for nothing. The time it takes is that of a round trip.
    pub fn ping(&mut self) -> Result<()> {
        self.bytes(opcode::PING).map(|_| ())
    }

    /// Streams and their counts, as JSON.
    pub fn streams(&mut self) -> Result<String> {
        let body = self.bytes(opcode::STREAMS)?;
        String::from_utf8(body)
            .map_err(|_| Error::broken(self.address_of(0), "the list of streams is not UTF-8"))
    }

    /// Asks for the topology anew. What [`Client::topology`] says, and the connections, stay as they are.
    pub fn fetch_topology(&mut self) -> Result<Topology> {
        let body = self.bytes(opcode::TOPOLOGY)?;
        Topology::decode(&body)
            .ok_or_else(|| Error::broken(self.address_of(0), "its topology cannot be read"))
    }

    fn bytes(&mut self, op: u8) -> Result<Vec<u8>> {
        match self.call(None, Duration::ZERO, |out, id| native::simple(out, id, op))? {
            Answer::Bytes(body) => Ok(body),
            other => Err(self.unexpected(None, other)),
        }
    }

    fn page(&mut self, answer: Answer) -> Result<Page> {
        match answer {
            Answer::Page { records, cursor } => Ok(Page { records, cursor }),
            other => Err(self.unexpected(None, other)),
        }
    }

    fn unexpected(&self, key: Option<&[u8]>, answer: Answer) -> Error {
        match answer {
            Answer::Refused(refusal) => Error::Refused(refusal),
            other => Error::broken(
                self.address_of(self.link_of_key(key)),
                format!("{other:?} answers another request"),
            ),
        }
    }
}

/// Iterator over the records of a stream. After an error it ends.
pub struct Scan<'a> {
    client: &'a mut Client,
    stream: &'a str,
    limit: u32,
    cursor: Vec<u8>,
    records: VecDeque<Stored>,
    ended: bool,
}

impl Scan<'_> {
    /// Where a later scan or tail goes on behind the pages that were fetched so far.
    pub fn cursor(&self) -> &[u8] {
        &self.cursor
    }
}

impl Iterator for Scan<'_> {
    type Item = Result<Stored>;

    fn next(&mut self) -> Option<Result<Stored>> {
        if self.records.is_empty() && !self.ended {
            match self.client.scan_page(self.stream, &self.cursor, self.limit) {
                Ok(page) => {
                    self.ended = page.records.is_empty();
                    self.cursor = page.cursor;
                    self.records = page.records.into();
                }
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        self.records.pop_front().map(Ok)
    }
}
