//! One connection of the generator: nonblocking socket, buffers, window of requests in flight, place in the schedule.
//!
//! One read and one write per turn. It does not know when a request should be sent; [`crate::generator`] does.

use std::io::{self, Read as _, Write as _};

use client::protocol::{Input, Output, Window};

use crate::protocol::{Answer, Outcome, Protocol};
use crate::records::{Records, Written};

const INPUT_BYTES: usize = 64 * 1024;

/// What a request asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An append of a batch.
    Append,
    /// The newest value of a key.
    Get,
    /// Versions of a key.
    History,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub struct Started {
    /// When its latency began, in nanoseconds of the run: sent (closed loop) or due (open loop).
    pub at_ns: u64,
    /// Records in it.
    pub records: u32,
    /// What it asks.
    pub kind: Kind,
}

/// Whether the other end is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Everything that had arrived was read.
    Drained,
    /// There may be more.
    More,
    /// The connection ended.
    Closed,
}

/// A connection of the generator.
pub struct Connection<P> {
    socket: mio::net::TcpStream,
    input: Input,
    output: Output,
    window: Window<Started>,
    protocol: P,
    /// With `--verify`: per slot of the window, what the append in it writes.
    written: Vec<Vec<Written>>,
    /// Requests of the schedule that were sent (open loop).
    pub scheduled: u64,
    /// It ended; nothing is sent any more.
    pub closed: bool,
}

impl<P: Protocol> Connection<P> {
    /// Takes over a connected socket in nonblocking mode.
    pub fn new(socket: mio::net::TcpStream, protocol: P, pipeline: u32) -> Connection<P> {
        Connection {
            socket,
            input: Input::with_capacity(INPUT_BYTES),
            output: Output::default(),
            window: Window::new(pipeline as usize),
            protocol,
            written: Vec::new(),
            scheduled: 0,
            closed: false,
        }
    }

    /// For registering with the poll.
    pub fn socket(&mut self) -> &mut mio::net::TcpStream {
        &mut self.socket
    }

    /// Requests that may be sent before an answer must come.
    #[inline]
    pub fn room(&self) -> usize {
        if self.closed { 0 } else { self.window.room() }
    }

    /// Requests without an answer.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.window.in_flight()
    }

    /// Encodes one request; there must be room. Returns its bytes.
    #[inline]
    pub fn ask(&mut self, started: Started, limit: u32, records: &mut Records) -> usize {
        let id = self.window.claim(started).expect("the caller saw room");
        let out = self.output.writer();
        let before = out.len();
        match started.kind {
            Kind::Append => {
                self.protocol.append(out, id, started.records, records);
                if let Some(written) = &mut records.written {
                    self.remember(id, written);
                }
            }
            Kind::Get => self.protocol.get(out, id, records.deal_key()),
            Kind::History => self.protocol.history(out, id, records.deal_key(), 0, limit),
        }
        self.output.writer().len() - before
    }

    fn remember(&mut self, id: u64, written: &mut Vec<Written>) {
        let slot = id as u32 as usize; // low half of an id: its slot in the window
        if self.written.len() <= slot {
            self.written.resize_with(slot + 1, Vec::new);
        }
        self.written[slot].clear();
        self.written[slot].append(written);
    }

    /// Sends what it can; what is left goes out when the socket says it is writable.
    #[inline]
    pub fn flush(&mut self) {
        while !self.closed && !self.output.unsent().is_empty() {
            match self.socket.write(self.output.unsent()) {
                Ok(count) => self.output.sent(count),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.closed = true,
            }
        }
    }

    /// Receives once.
    #[inline]
    pub fn receive(&mut self) -> Received {
        loop {
            let space = self.input.space();
            let room = space.len();
            return match self.socket.read(space) {
                Ok(0) => Received::Closed,
                Ok(count) => {
                    self.input.filled(count);
                    if count == room {
                        Received::More
                    } else {
                        Received::Drained
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Received::Drained,
                Err(_) => Received::Closed,
            };
        }
    }

    /// The next whole answer, the request that it ends, and, for a good append under `--verify`, `see` is shown what was
    /// written and the versions it got.
    ///
    /// Err: what came is not the protocol, or answers a request that is not in flight.
    #[inline]
    pub fn next(
        &mut self,
        mut see: impl FnMut(&[Written], &[u32]),
    ) -> Result<Option<(Answer, Started)>, String> {
        let Some(answer) = self.protocol.answer(self.input.unread())? else {
            return Ok(None);
        };
        let Some(started) = self.window.release(answer.id) else {
            return Err(format!(
                "an answer to request {}, which is not in flight",
                answer.id
            ));
        };
        if started.kind == Kind::Append
            && answer.outcome == Outcome::Good
            && let Some(written) = self.written.get(answer.id as u32 as usize)
        {
            let mut versions = Vec::new();
            self.protocol
                .versions(&self.input.unread()[..answer.bytes], &mut versions)?;
            if !versions.is_empty() && versions.len() != written.len() {
                return Err(format!(
                    "{} versions for {} records",
                    versions.len(),
                    written.len()
                ));
            }
            see(written, &versions);
        }
        self.input.consume(answer.bytes);
        Ok(Some((answer, started)))
    }

    /// Gives up what is in flight; returns how many requests that were.
    pub fn abandon(&mut self) -> u64 {
        let ids: Vec<u64> = self.window.iter().map(|(id, _)| id).collect();
        for id in &ids {
            self.window.release(*id);
        }
        ids.len() as u64
    }
}
