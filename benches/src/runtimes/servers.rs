//! One server per runtime, each as its documentation writes an echo server: a task per connection, read, answer, write.
//!
//! All listen on a socket made the same way, with default settings of the runtime otherwise, on one thread pinned to one core.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::ping::Commands;
use crate::machine;
use crate::ring_server::{self, Answers};

/// Before it sleeps; the figure in the table of the design.
const RING_SPIN: Duration = Duration::from_micros(50);
/// Of a read, in the runtimes that read into a buffer of the task.
#[cfg(feature = "runtimes")]
const READ_BYTES: usize = 16 << 10;

/// Whose loop serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Runtime {
    /// Ours: `uring`, multishot receive into a buffer ring, 50 us of spin.
    Ring,
    /// glommio-ng, one executor, placed on the core.
    #[cfg(feature = "runtimes")]
    Glommio,
    /// monoio on its io_uring driver.
    #[cfg(feature = "runtimes")]
    Monoio,
    /// compio on its io_uring driver.
    #[cfg(feature = "runtimes")]
    Compio,
    /// tokio, current-thread, on epoll.
    #[cfg(feature = "runtimes")]
    Tokio,
}

impl Runtime {
    /// As on the command line and in the table.
    pub fn name(self) -> &'static str {
        match self {
            Runtime::Ring => "ring",
            #[cfg(feature = "runtimes")]
            Runtime::Glommio => "glommio",
            #[cfg(feature = "runtimes")]
            Runtime::Monoio => "monoio",
            #[cfg(feature = "runtimes")]
            Runtime::Compio => "compio",
            #[cfg(feature = "runtimes")]
            Runtime::Tokio => "tokio",
        }
    }
}

/// Serve until the process is ended. The first line on standard output is the address.
///
/// # Errors
/// What the runtime says; a core or a port that is not to be had.
pub fn serve(runtime: Runtime, core: usize, port: u16) -> anyhow::Result<()> {
    machine::pin(core)?;
    let (listener, address) = ring_server::listen(port)?;
    println!("{address}");
    match runtime {
        Runtime::Ring => ring(listener),
        #[cfg(feature = "runtimes")]
        Runtime::Glommio => others::glommio(listener.into(), core),
        #[cfg(feature = "runtimes")]
        Runtime::Monoio => others::monoio(listener.into()),
        #[cfg(feature = "runtimes")]
        Runtime::Compio => others::compio(listener.into()),
        #[cfg(feature = "runtimes")]
        Runtime::Tokio => others::tokio(listener.into()),
    }
}

struct Pongs;

impl Answers for Pongs {
    type State = Commands;

    fn answer(&mut self, commands: &mut Commands, received: &[u8], out: &mut Vec<u8>) -> bool {
        commands.answer(received, out).is_ok()
    }
}

fn ring(listener: OwnedFd) -> anyhow::Result<()> {
    ring_server::serve(listener, Pongs, RING_SPIN, None)
}

#[cfg(feature = "runtimes")]
mod others {
    use std::io;
    use std::net::TcpListener;
    use std::time::Duration;

    use super::READ_BYTES;
    use crate::runtimes::ping::Commands;

    pub(super) fn tokio(listener: TcpListener) -> anyhow::Result<()> {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()?;
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                tokio::task::spawn_local(async move {
                    let (mut commands, mut out) = (Commands::default(), Vec::new());
                    let mut buffer = vec![0; READ_BYTES];
                    while let Ok(read) = stream.read(&mut buffer).await
                        && read > 0
                        && commands.answer(&buffer[..read], &mut out).is_ok()
                        && stream.write_all(&out).await.is_ok()
                    {
                        out.clear();
                    }
                });
            }
        })
    }

    pub(super) fn monoio(listener: TcpListener) -> anyhow::Result<()> {
        use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
        let mut runtime = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new().build()?;
        runtime.block_on(async move {
            let listener = monoio::net::TcpListener::from_std(listener)?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                monoio::spawn(async move {
                    let (mut commands, mut out) = (Commands::default(), Vec::new());
                    let mut buffer = Vec::with_capacity(READ_BYTES);
                    loop {
                        let (read, lent) = stream.read(buffer).await;
                        buffer = lent;
                        let Ok(read @ 1..) = read else { return };
                        if commands.answer(&buffer[..read], &mut out).is_err() {
                            return;
                        }
                        let (written, lent) = stream.write_all(out).await;
                        out = lent;
                        if written.is_err() {
                            return;
                        }
                        out.clear();
                        buffer.clear();
                    }
                });
            }
        })
    }

    pub(super) fn compio(listener: TcpListener) -> anyhow::Result<()> {
        use compio::buf::BufResult;
        use compio::io::{AsyncRead, AsyncWriteExt};
        let runtime = compio::runtime::Runtime::new()?;
        runtime.block_on(async move {
            let listener = compio::net::TcpListener::from_std(listener)?;
            loop {
                let (mut stream, _) = listener.accept().await?;
                compio::runtime::spawn(async move {
                    let (mut commands, mut out) = (Commands::default(), Vec::new());
                    let mut buffer = Vec::with_capacity(READ_BYTES);
                    loop {
                        let BufResult(read, lent) = stream.read(buffer).await;
                        buffer = lent;
                        let Ok(read @ 1..) = read else { return };
                        if commands.answer(&buffer[..read], &mut out).is_err() {
                            return;
                        }
                        let BufResult(written, lent) = stream.write_all(out).await;
                        out = lent;
                        if written.is_err() {
                            return;
                        }
                        out.clear();
                        buffer.clear();
                    }
                })
                .detach();
            }
        })
    }

    pub(super) fn glommio(listener: TcpListener, core: usize) -> anyhow::Result<()> {
        use futures_lite::{AsyncReadExt, AsyncWriteExt};
        use glommio::{LocalExecutorBuilder, Placement};
        /// Between looks for new connections: soon after one came, and later.
        const LOOK: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(20));
        listener.set_nonblocking(true)?;
        let executor = LocalExecutorBuilder::new(Placement::Fixed(core))
            .make()
            .map_err(|error| anyhow::anyhow!("glommio: {error}"))?;
        // Its own listener takes no socket that is already there without unsafe code, and so no congestion control. Connections
        // come only at the start of a run, so looking for them now and then costs the figures nothing.
        executor.run(async move {
            let mut quiet = 0u32;
            loop {
                match listener.accept() {
                    Ok((stream, _)) => {
                        quiet = 0;
                        let mut stream =
                            glommio::net::TcpStream::from(socket2::Socket::from(stream));
                        glommio::spawn_local(async move {
                            let (mut commands, mut out) = (Commands::default(), Vec::new());
                            let mut buffer = vec![0; READ_BYTES];
                            while let Ok(read) = stream.read(&mut buffer).await
                                && read > 0
                                && commands.answer(&buffer[..read], &mut out).is_ok()
                                && stream.write_all(&out).await.is_ok()
                            {
                                out.clear();
                            }
                        })
                        .detach();
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        quiet += 1;
                        glommio::timer::sleep(if quiet < 100 { LOOK.0 } else { LOOK.1 }).await;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        })
    }
}
