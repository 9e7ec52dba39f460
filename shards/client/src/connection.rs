//! One blocking connection: frames out, answers in.
//!
//! Invariants: answers are taken off the connection while requests wait to be sent, so that two full socket buffers cannot hold each
//! other up; after any error the connection is not used again. It does not know what the answers answer.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use wire::native::{self, AppendPart, FRAME_HEADER_BYTES, FrameHeader, REPLY_BIT, Reply};
use wire::{Durability, Refusal, Topology};

use crate::error::{Error, Result};
use crate::options::ConnectOptions;
use crate::protocol::{Input, Output};
use crate::reads::Stored;
use crate::socket;

/// Larger answers are taken for a broken stream: a page of records is far smaller.
const ANSWER_BYTES_MAX: u32 = 256 << 20;
/// How long a write waits for the server to take more before answers are looked at.
const WRITE_SLICE: Duration = Duration::from_millis(20);

/// An answer, owned.
#[derive(Debug)]
pub(crate) enum Answer {
    Appended {
        durability: Durability,
        parts: Vec<AppendPart>,
        versions: Vec<u32>,
    },
    Record(Stored),
    Page {
        records: Vec<Stored>,
        cursor: Vec<u8>,
    },
    Bytes(Vec<u8>),
    Refused(Refusal),
}

pub(crate) struct Connection {
    stream: TcpStream,
    address: String,
    input: Input,
    output: Output,
    timeout: Duration,
    farewell: Option<Refusal>,
}

impl Connection {
    /// Opens a connection and says hello.
    pub fn open(
        address: &str,
        options: &ConnectOptions,
        timeout: Duration,
    ) -> Result<(Connection, Topology)> {
        let mut stream = socket::open(address, timeout, options.congestion.as_deref())?;
        let mut input = Input::with_capacity(64 * 1024);
        let token = options.token.as_deref().unwrap_or_default();
        let topology = socket::hello(&mut stream, address, token, timeout, &mut input)?;
        stream
            .set_write_timeout(Some(WRITE_SLICE))
            .map_err(|e| Error::io("set up", address, e))?;
        let connection = Connection {
            stream,
            address: address.to_owned(),
            input,
            output: Output::default(),
            timeout: options.timeout,
            farewell: None,
        };
        Ok((connection, topology))
    }

    /// Why the server ends this connection, if it has said so: a refusal of no request in particular.
    pub fn farewell(&self) -> Option<&Refusal> {
        self.farewell.as_ref()
    }

    /// The other end, as it was given.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Where requests are encoded; [`flush`](Self::flush) sends them.
    pub fn writer(&mut self) -> &mut Vec<u8> {
        self.output.writer()
    }

    /// Sends everything that was encoded.
    pub fn flush(&mut self) -> Result<()> {
        let mut progress = Instant::now();
        while !self.output.unsent().is_empty() {
            match self.stream.write(self.output.unsent()) {
                Ok(count) => {
                    self.output.sent(count);
                    progress = Instant::now();
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if would_block(&e) && progress.elapsed() < self.timeout => {
                    // The server may itself be waiting for its answers to be read.
                    if self.receive_available()? {
                        progress = Instant::now();
                    }
                }
                Err(e) => return Err(Error::io("write to", &self.address, e)),
            }
        }
        Ok(())
    }

    /// The next answer, waiting for it until `deadline`. None: the time is over.
    pub fn next_until(&mut self, deadline: Instant) -> Result<Option<(u64, Answer)>> {
        loop {
            if let Some(answer) = self.next_answer()? {
                return Ok(Some(answer));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream
                .set_read_timeout(Some(left))
                .map_err(|e| self.io("set up", e))?;
            self.receive()?;
        }
    }

    /// The next answer, if it has arrived.
    pub fn next_available(&mut self) -> Result<Option<(u64, Answer)>> {
        loop {
            if let Some(answer) = self.next_answer()? {
                return Ok(Some(answer));
            }
            if !self.receive_available()? {
                return Ok(None);
            }
        }
    }

    /// What was received, without the farewell.
    fn next_answer(&mut self) -> Result<Option<(u64, Answer)>> {
        match self.next_received()? {
            Some((0, Answer::Refused(refusal))) => {
                self.farewell = Some(refusal);
                self.next_received()
            }
            other => Ok(other),
        }
    }

    fn next_received(&mut self) -> Result<Option<(u64, Answer)>> {
        let bytes = self.input.unread();
        let Some(header) = FrameHeader::read(bytes) else {
            return Ok(None);
        };
        if header.opcode & REPLY_BIT == 0
            || header.frame_bytes > ANSWER_BYTES_MAX
            || (header.frame_bytes as usize) < FRAME_HEADER_BYTES
        {
            return Err(Error::broken(
                &self.address,
                format!("{header:?} is not the head of an answer"),
            ));
        }
        let parsed =
            native::parse_reply(bytes).map_err(|detail| Error::broken(&self.address, detail))?;
        let Some((id, opcode, reply, consumed)) = parsed else {
            return Ok(None);
        };
        let answer = match reply {
            Reply::Append {
                durability,
                parts,
                versions,
                ..
            } => Answer::Appended {
                durability,
                parts,
                versions,
            },
            Reply::Get { record, .. } => Answer::Record(Stored::from(&record)),
            Reply::Records {
                records, cursor, ..
            } => Answer::Page {
                records: records.iter().map(Stored::from).collect(),
                cursor: cursor.to_vec(),
            },
            Reply::Bytes { body, .. } => Answer::Bytes(body.to_vec()),
            Reply::Error { refusal, .. } => Answer::Refused(refusal),
            Reply::Hello { .. } => {
                return Err(Error::broken(
                    &self.address,
                    format!("a second hello (answer {id}, opcode {opcode})"),
                ));
            }
        };
        self.input.consume(consumed);
        Ok(Some((id, answer)))
    }

    /// One read; true when bytes came, false when the socket's time was over.
    fn receive(&mut self) -> Result<bool> {
        loop {
            return match self.stream.read(self.input.space()) {
                Ok(0) => Err(self.io("read from", io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => {
                    self.input.filled(count);
                    Ok(true)
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if would_block(&e) => Ok(false),
                Err(e) => Err(self.io("read from", e)),
            };
        }
    }

    fn receive_available(&mut self) -> Result<bool> {
        self.stream
            .set_nonblocking(true)
            .map_err(|e| self.io("set up", e))?;
        let received = self.receive();
        self.stream
            .set_nonblocking(false)
            .map_err(|e| self.io("set up", e))?;
        received
    }

    fn io(&self, doing: &'static str, error: io::Error) -> Error {
        Error::io(doing, &self.address, error)
    }
}

/// A socket with a timeout says one or the other.
fn would_block(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}
