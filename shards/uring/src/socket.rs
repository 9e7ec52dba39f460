//! Listeners and socket options (socket2 inside).

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// Connections that wait to be accepted, unless said otherwise; the kernel caps it at net.core.somaxconn.
const BACKLOG_DEFAULT: i32 = 4096;
/// Default of [`ListenOptions::user_timeout`].
pub const USER_TIMEOUT: Duration = Duration::from_secs(30);
/// Default of [`ListenOptions::keepalive`].
pub const KEEPALIVE: Duration = Duration::from_secs(60);
/// Between keepalive probes, and how many may go unanswered.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// How to listen, and what accepted connections inherit of the listener: the kernel clones its options at accept, so a
/// connection costs no call of its own.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// Let several listeners share the address; the kernel spreads connections over them.
    pub reuse_port: bool,
    /// Connections waiting to be accepted; 0 = 4096.
    pub backlog: i32,
    /// Congestion control by name, e.g. `bbr`; accepted connections inherit it. None = the system's.
    pub congestion: Option<String>,
    /// How long sent bytes may stay unacknowledged before the connection is given up (TCP_USER_TIMEOUT).
    pub user_timeout: Duration,
    /// Silence before the first keepalive probe (TCP_KEEPIDLE).
    pub keepalive: Duration,
    /// Among listeners that share the address, this one takes what the network stack worked on at this core (SO_INCOMING_CPU;
    /// in SO_REUSEPORT groups since Linux 6.2).
    pub incoming_cpu: Option<usize>,
}

impl Default for ListenOptions {
    fn default() -> ListenOptions {
        ListenOptions {
            reuse_port: false,
            backlog: 0,
            congestion: None,
            user_timeout: USER_TIMEOUT,
            keepalive: KEEPALIVE,
            incoming_cpu: None,
        }
    }
}

/// Listen on `address`. Returns the listener and the address it got (port 0 = one of the kernel's choice).
pub fn listen(address: SocketAddr, options: &ListenOptions) -> io::Result<(OwnedFd, SocketAddr)> {
    let named =
        |error: io::Error| crate::file::in_context(format!("listening on {address}"), error);
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )
    .map_err(named)?;
    socket.set_reuse_address(true).map_err(named)?;
    if options.reuse_port {
        socket.set_reuse_port(true).map_err(named)?;
    }
    if let Some(name) = &options.congestion {
        set_congestion(&socket, name)?;
    }
    if let Some(core) = options.incoming_cpu {
        socket.set_cpu_affinity(core).map_err(named)?;
    }
    set_inherited(&socket, options).map_err(named)?;
    socket.bind(&address.into()).map_err(named)?;
    socket
        .listen(if options.backlog == 0 {
            BACKLOG_DEFAULT
        } else {
            options.backlog
        })
        .map_err(named)?;
    let bound = socket.local_addr().map_err(named)?;
    let bound = bound
        .as_socket()
        .expect("a socket of an IP domain has an IP address");
    Ok((socket.into(), bound))
}

fn set_congestion(socket: &Socket, name: &str) -> io::Result<()> {
    socket.set_tcp_congestion(name.as_bytes()).map_err(|error| {
        let available =
            std::fs::read_to_string("/proc/sys/net/ipv4/tcp_available_congestion_control");
        let available = available.unwrap_or_else(|_| "unknown".to_owned());
        io::Error::new(
            error.kind(),
            format!(
                "congestion control {name:?}: {error}; available: {}; try `modprobe tcp_{name}`",
                available.trim()
            ),
        )
    })
}

/// What accepted connections have from their listener.
fn set_inherited(socket: &Socket, options: &ListenOptions) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(options.user_timeout))?;
    let keepalive = TcpKeepalive::new()
        .with_time(options.keepalive)
        .with_interval(KEEPALIVE_EVERY)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)
}

/// End both directions. Armed receives and sends complete by themselves; a connection that is gone is fine.
pub fn shutdown(socket: &OwnedFd) {
    // The only error is ENOTCONN, and then there is nothing to end.
    let _ = SockRef::from(socket).shutdown(Shutdown::Both);
}

/// As [`shutdown`], and a client that has all of its answer and is still sending is told at once: the close that follows resets
/// the connection (SO_LINGER 0, socket(7)). Without it, what came in and is not read shuts the window, and the client waits until
/// the kernel gives it up. While some of the answer is on its way it is closed as usual: a reset would overtake the rest.
pub fn reset(socket: &OwnedFd) {
    if has_arrived(socket) {
        // Where it is no such socket any more there is nobody to tell.
        let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
    }
    shutdown(socket);
}

/// Whether the other side's kernel has acknowledged all that was sent (SIOCOUTQ, tcp(7)).
fn has_arrived(socket: &OwnedFd) -> bool {
    let mut left: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int, which outlives the call.
    let told = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut left) };
    told == 0 && left == 0
}

/// End our direction behind what was sent; the other side may go on. A connection that is gone is fine.
pub fn shutdown_write(socket: &OwnedFd) {
    let _ = SockRef::from(socket).shutdown(Shutdown::Write);
}

/// Whether the other side has ended the connection (or reset it) and all its bytes have been read. Reads nothing.
pub fn has_ended(socket: &OwnedFd) -> bool {
    let mut byte = [std::mem::MaybeUninit::uninit()];
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    match SockRef::from(socket).recv_with_flags(&mut byte, flags) {
        Ok(count) => count == 0,
        Err(error) => !matches!(
            error.kind(),
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
        ),
    }
}

/// The peer of a connection; None if it is gone or not TCP/IP.
pub fn peer(socket: &OwnedFd) -> Option<SocketAddr> {
    SockRef::from(socket).peer_addr().ok()?.as_socket()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpStream;

    fn local() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    #[test]
    fn two_listeners_share_a_port_only_when_asked() {
        let shared = ListenOptions {
            reuse_port: true,
            ..Default::default()
        };
        let (_first, address) = listen(local(), &shared).unwrap();
        let (_second, same) = listen(address, &shared).unwrap();
        assert_eq!(address, same);
        let error = listen(address, &ListenOptions::default()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[test]
    fn an_accepted_socket_inherits_what_its_listener_was_told() {
        let options = ListenOptions {
            user_timeout: Duration::from_secs(7),
            keepalive: Duration::from_secs(8),
            ..Default::default()
        };
        let (listener, address) = listen(local(), &options).unwrap();
        let client = TcpStream::connect(address).unwrap();
        let (accepted, _) = Socket::from(listener).accept().unwrap();
        let accepted: OwnedFd = accepted.into();
        assert_eq!(peer(&accepted), Some(client.local_addr().unwrap()));
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(options.user_timeout)
        );
        assert!(socket.keepalive().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), options.keepalive);
        shutdown(&accepted);
        shutdown(&accepted);
    }

    #[test]
    fn a_listener_can_be_told_its_core() {
        let options = ListenOptions {
            reuse_port: true,
            incoming_cpu: Some(0),
            ..Default::default()
        };
        let (listener, _) = listen(local(), &options).unwrap();
        assert_eq!(SockRef::from(&listener).cpu_affinity().unwrap(), 0);
    }

    #[test]
    fn a_client_in_front_of_a_shut_window_learns_of_a_reset() {
        let (listener, address) = listen(local(), &ListenOptions::default()).unwrap();
        let listener = Socket::from(listener);
        listener.set_recv_buffer_size(4096).unwrap();
        let mut client = TcpStream::connect(address).unwrap();
        client
            .set_write_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let writer = std::thread::spawn(move || {
            let bytes = vec![0; 32 << 20];
            io::Write::write_all(&mut client, &bytes)
                .unwrap_err()
                .kind()
        });
        let accepted: OwnedFd = accepted.into();
        shutdown_write(&accepted);
        // Until the window is shut and our end has arrived, which is acknowledged a while later.
        std::thread::sleep(Duration::from_millis(300));
        reset(&accepted);
        // As a receive that is armed does: what is there is read to the end, and then the socket is closed.
        let mut accepted = TcpStream::from(accepted);
        io::copy(&mut accepted, &mut io::sink()).unwrap();
        drop(accepted);
        let told = writer.join().unwrap();
        assert!(
            matches!(
                told,
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
            ),
            "{told}"
        );
    }

    #[test]
    fn a_reset_does_not_overtake_an_answer() {
        let (listener, address) = listen(local(), &ListenOptions::default()).unwrap();
        let listener = Socket::from(listener);
        let client = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        client.set_recv_buffer_size(4096).unwrap();
        client.connect(&address.into()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        // More than the client's kernel takes before the client reads, and less than ours takes from us.
        accepted.set_send_buffer_size(1 << 20).unwrap();
        let answer = vec![7; 200_000];
        let mut accepted = TcpStream::from(accepted);
        io::Write::write_all(&mut accepted, &answer).unwrap();
        let accepted: OwnedFd = accepted.into();
        shutdown_write(&accepted);
        reset(&accepted);
        drop(accepted);
        let mut read = Vec::new();
        io::Read::read_to_end(&mut TcpStream::from(client), &mut read).unwrap();
        assert!(read == answer, "{} bytes arrived", read.len());
    }

    #[test]
    fn an_end_is_seen_behind_the_last_byte_and_reads_nothing() {
        let (listener, address) = listen(local(), &ListenOptions::default()).unwrap();
        let listener = Socket::from(listener);
        for reset in [false, true] {
            let mut client = TcpStream::connect(address).unwrap();
            let (accepted, _) = listener.accept().unwrap();
            let accepted: OwnedFd = accepted.into();
            assert!(!has_ended(&accepted));
            io::Write::write_all(&mut client, b"x").unwrap();
            if reset {
                SockRef::from(&client)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
            }
            drop(client);
            assert!(!has_ended(&accepted), "there is a byte to be read");
            let mut byte = [std::mem::MaybeUninit::uninit()];
            assert_eq!(SockRef::from(&accepted).recv(&mut byte).unwrap(), 1);
            assert!(has_ended(&accepted), "reset: {reset}");
        }
    }

    #[test]
    fn an_unknown_congestion_control_lists_those_there_are() {
        let options = ListenOptions {
            congestion: Some("no-such".to_owned()),
            ..Default::default()
        };
        let text = listen(local(), &options).unwrap_err().to_string();
        assert!(
            text.contains("available:") && text.contains("cubic"),
            "{text}"
        );
    }
}
