//! Opening a connection: socket options, hello, topology. The one place that knows how a connection begins.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use wire::Topology;
use wire::native::{self, Reply};

use crate::error::{Error, Result};
use crate::protocol::Input;

/// Resolves `address` (`host:port`) and opens a TCP connection with Nagle's delay off.
///
/// Errors: [`Error::Io`] with the last address that was tried; also when `congestion` names an algorithm that the kernel does not
/// offer.
pub fn open(address: &str, timeout: Duration, congestion: Option<&str>) -> Result<TcpStream> {
    let io = |source| Error::io("connect to", address, source);
    let mut last = io::Error::new(io::ErrorKind::NotFound, "no such host");
    for target in address.to_socket_addrs().map_err(io)? {
        match open_one(target, timeout, congestion) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(io(last))
}

fn open_one(
    target: SocketAddr,
    timeout: Duration,
    congestion: Option<&str>,
) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(target),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_tcp_nodelay(true)?;
    if let Some(name) = congestion {
        set_congestion(&socket, name)?;
    }
    socket.connect_timeout(&target.into(), timeout)?;
    Ok(socket.into())
}

#[cfg(target_os = "linux")]
fn set_congestion(socket: &Socket, name: &str) -> io::Result<()> {
    socket.set_tcp_congestion(name.as_bytes()).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("congestion control {name}: {error} (see /proc/sys/net/ipv4/tcp_available_congestion_control)"),
        )
    })
}

#[cfg(not(target_os = "linux"))]
fn set_congestion(_: &Socket, name: &str) -> io::Result<()> {
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        format!("congestion control {name}: only on Linux"),
    ))
}

/// The congestion control that a connection really has; None where the system does not say.
pub fn congestion_of(stream: &TcpStream) -> Option<String> {
    #[cfg(target_os = "linux")]
    {
        let name = socket2::SockRef::from(stream).tcp_congestion().ok()?;
        let end = name
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(name.len());
        Some(String::from_utf8_lossy(&name[..end]).into_owned())
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = stream;
        None
    }
}

/// Says hello on a fresh connection and waits for the topology. `input` receives what the server sends; it is empty afterwards.
///
/// Errors: [`Error::Refused`] for a wrong token or version, [`Error::Broken`] when something else than pinion answers.
pub fn hello(
    stream: &mut TcpStream,
    address: &str,
    token: &[u8],
    timeout: Duration,
    input: &mut Input,
) -> Result<Topology> {
    const ID: u64 = 0;
    let deadline = Instant::now() + timeout;
    let mut frame = Vec::new();
    native::hello(&mut frame, ID, token);
    stream
        .set_write_timeout(Some(timeout))
        .map_err(|e| Error::io("set up", address, e))?;
    stream
        .write_all(&frame)
        .map_err(|e| Error::io("write to", address, e))?;
    loop {
        let answer = match native::parse_reply(input.unread()) {
            Err(detail) => return Err(Error::broken(address, detail)),
            Ok(Some((ID, _, Reply::Hello { topology, .. }, consumed))) => {
                Some((Ok(topology), consumed))
            }
            Ok(Some((_, _, Reply::Error { refusal, .. }, consumed))) => {
                Some((Err(Error::Refused(refusal)), consumed))
            }
            Ok(Some((id, opcode, ..))) => {
                return Err(Error::broken(
                    address,
                    format!("reply {id} of opcode {opcode} to the hello"),
                ));
            }
            Ok(None) => None,
        };
        if let Some((answer, consumed)) = answer {
            input.consume(consumed);
            return answer;
        }
        let left = deadline
            .saturating_duration_since(Instant::now())
            .max(Duration::from_millis(1));
        stream
            .set_read_timeout(Some(left))
            .map_err(|e| Error::io("set up", address, e))?;
        match stream.read(input.space()) {
            Ok(0) => {
                return Err(Error::broken(
                    address,
                    "it closed the connection instead of answering the hello",
                ));
            }
            Ok(count) => input.filled(count),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(Error::io("read from", address, e)),
        }
    }
}
