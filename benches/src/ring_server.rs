//! A server of one core over the shipped ring: accept, receive, answer, send.
//!
//! The loop is the shard's, without what a shard does: multishot accept and receive, the ring's own receive buffers, one send in flight
//! per connection, and a spin before sleeping that yields now and then, as `turn/waiting.rs` of the shard does. What an answer
//! is, the caller says.
//!
//! Invariants: a connection's replies leave in the order of its requests; its slot is used again only when nothing of it is
//! in flight; a client that never reads is dropped.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use slab::Slab;
use uring::{Completion, Ring, RingConfig, Wait, socket};

const ACCEPT: u64 = u64::MAX;
const SEND: u64 = 1 << 62;
/// Looks at the ring between two yields, as the shard's spin has them.
const LOOKS_PER_YIELD: u32 = 4;
/// Longest sleep: how soon an end that was asked for is noticed.
const SLEEP: Duration = Duration::from_millis(100);
/// A client that leaves so much unread is not coming back.
const UNSENT_BYTES_MAX: usize = 16 << 20;

/// What a server does with the bytes of one connection.
pub(crate) trait Answers {
    /// What is kept per connection between two receives.
    type State: Default;

    /// Append the replies to everything that `received` completes. False: the bytes make no sense, close.
    fn answer(&mut self, state: &mut Self::State, received: &[u8], out: &mut Vec<u8>) -> bool;
}

/// A listener with the congestion control that all sides of a comparison use. Accepted sockets inherit it and TCP_NODELAY.
pub(crate) fn listen(port: u16) -> anyhow::Result<(OwnedFd, SocketAddr)> {
    let options = socket::ListenOptions {
        congestion: Some(CONGESTION.to_owned()),
        ..Default::default()
    };
    Ok(socket::listen(
        SocketAddr::from(([127, 0, 0, 1], port)),
        &options,
    )?)
}

/// Bbr paces what it sends, which on loopback measures the pacing.
pub(crate) const CONGESTION: &str = "cubic";

struct Connection<S> {
    socket: Rc<OwnedFd>,
    state: S,
    /// Replies that wait for the send in flight to end.
    pending: Vec<u8>,
    /// The other buffer, while it is not being sent.
    spare: Vec<u8>,
    sent: usize,
    sending: bool,
    receiving: bool,
    closing: bool,
    listed: bool,
}

struct Server<A: Answers> {
    ring: Ring,
    answers: A,
    listener: Rc<OwnedFd>,
    connections: Slab<Connection<A::State>>,
    touched: Vec<usize>,
}

/// Serve `listener` on the calling thread; until `end`, or for as long as the process lives.
///
/// # Errors
/// What the ring or the listener says. Errors of a connection end that connection.
pub(crate) fn serve<A: Answers>(
    listener: OwnedFd,
    answers: A,
    spin: Duration,
    end: Option<Instant>,
) -> anyhow::Result<()> {
    // As the engine sets its rings up.
    let ring = Ring::new(&RingConfig {
        entries: 1024,
        recv_buffers: 256,
        recv_buffer_bytes: 32 << 10,
        operations_max: 4096,
    })?;
    let mut server = Server {
        ring,
        answers,
        listener: Rc::new(listener),
        connections: Slab::new(),
        touched: Vec::new(),
    };
    server.ring.accept(server.listener.clone(), ACCEPT)?;
    let mut completions = Vec::with_capacity(256);
    while end.is_none_or(|end| Instant::now() < end) {
        server.wait(spin, &mut completions)?;
        for completion in completions.drain(..) {
            server.take(completion)?;
        }
        server.flush()?;
    }
    Ok(())
}

impl<A: Answers> Server<A> {
    /// Poll; with nothing to do, spin for a while, then sleep.
    fn wait(&mut self, spin: Duration, out: &mut Vec<Completion>) -> std::io::Result<()> {
        self.ring.turn(Wait::No, out)?;
        if !out.is_empty() {
            return Ok(());
        }
        if !spin.is_zero() {
            let start = Instant::now();
            for look in 1u32.. {
                self.ring.turn(Wait::No, out)?;
                if !out.is_empty() {
                    return Ok(());
                }
                if look.is_multiple_of(LOOKS_PER_YIELD) {
                    std::thread::yield_now();
                    if start.elapsed() >= spin {
                        break;
                    }
                }
            }
        }
        self.ring.turn(Wait::Sleep(SLEEP), out)
    }

    fn take(&mut self, completion: Completion) -> anyhow::Result<()> {
        match completion {
            Completion::Accepted { socket, .. } => {
                // Fails only if the client is gone already; the receive will say so.
                let socket = Rc::new(socket);
                let id = self.connections.insert(Connection {
                    socket: socket.clone(),
                    state: A::State::default(),
                    pending: Vec::new(),
                    spare: Vec::new(),
                    sent: 0,
                    sending: false,
                    receiving: true,
                    closing: false,
                    listed: false,
                });
                self.ring.recv(socket, id as u64)?;
            }
            Completion::AcceptEnded { error, .. } => {
                anyhow::bail!("accepting connections: {error}")
            }
            Completion::Received { token, data } => {
                let id = token as usize;
                let connection = &mut self.connections[id];
                if !connection.closing {
                    let bytes = self.ring.received(&data);
                    let good =
                        self.answers
                            .answer(&mut connection.state, bytes, &mut connection.pending);
                    if !good || connection.pending.len() > UNSENT_BYTES_MAX {
                        connection.close();
                    }
                }
                self.ring.recycle(data);
                self.touch(id);
            }
            Completion::RecvEnded { token, result } => {
                let id = token as usize;
                let connection = &mut self.connections[id];
                let starved =
                    result.is_err_and(|error| error.raw_os_error() == Some(libc::ENOBUFS));
                if starved && !connection.closing {
                    self.ring.recv(connection.socket.clone(), token)?;
                } else {
                    connection.receiving = false;
                    connection.closing = true;
                    self.touch(id);
                }
            }
            Completion::Sent {
                token,
                data,
                result,
            } => {
                let id = (token & !SEND) as usize;
                let connection = &mut self.connections[id];
                match result {
                    Ok(bytes) if bytes > 0 && connection.sent + bytes < data.len() => {
                        connection.sent += bytes;
                        self.ring
                            .send(connection.socket.clone(), data, connection.sent, token)?;
                        return Ok(());
                    }
                    Ok(_) => {}
                    Err(_) => connection.close(),
                }
                connection.sending = false;
                connection.spare = data;
                connection.spare.clear();
                self.touch(id);
            }
            other => unreachable!("nothing else was started: {other:?}"),
        }
        Ok(())
    }

    fn touch(&mut self, id: usize) {
        let connection = &mut self.connections[id];
        if !connection.listed {
            connection.listed = true;
            self.touched.push(id);
        }
    }

    /// Replies of everything that was received in this turn leave together.
    fn flush(&mut self) -> anyhow::Result<()> {
        for id in self.touched.drain(..) {
            let connection = &mut self.connections[id];
            connection.listed = false;
            if connection.closing {
                if !connection.sending && !connection.receiving {
                    self.connections.remove(id);
                }
            } else if !connection.sending && !connection.pending.is_empty() {
                let data = std::mem::replace(
                    &mut connection.pending,
                    std::mem::take(&mut connection.spare),
                );
                connection.sent = 0;
                connection.sending = true;
                self.ring
                    .send(connection.socket.clone(), data, 0, SEND | id as u64)?;
            }
        }
        Ok(())
    }
}

impl<S> Connection<S> {
    /// The armed receive ends by itself.
    fn close(&mut self) {
        self.closing = true;
        socket::shutdown(&self.socket);
    }
}
