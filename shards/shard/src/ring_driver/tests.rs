//! The driver over a real ring that is far too small, a real file and real sockets.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use uring::RingConfig;

use super::connections::LINGER_BYTES_MAX;
use super::*;

const FILE: FileId = FileId(0);
const BLOCK: usize = 4096;

struct Small {
    driver: RingDriver,
    events: Vec<Event<OwnedFd, Received>>,
    _directory: tempfile::TempDir,
}

/// A driver with `operations` contexts, of which connections leave `disk` to the file.
fn small(operations: u32, disk: usize, sync_method: SyncMethod) -> Small {
    let directory = tempfile::tempdir().unwrap();
    let file = uring::file::open_direct(&directory.path().join("file"), true).unwrap();
    uring::file::zero_fill(&file, 64 * BLOCK as u64).unwrap();
    let ring = Ring::new(&RingConfig {
        entries: 4,
        recv_buffers: 8,
        recv_buffer_bytes: 4096,
        operations_max: operations,
    })
    .unwrap();
    let preparer = Preparer::spawn(directory.path().to_path_buf(), 0).unwrap();
    let addresses: Addresses = [OnceLock::new()].into();
    let mut driver = RingDriver::new(
        ring,
        sync_method,
        vec![file],
        Vec::new(),
        preparer,
        0,
        addresses,
    )
    .unwrap();
    driver.disk_reserve = disk;
    Small {
        driver,
        events: Vec::new(),
        _directory: directory,
    }
}

impl Small {
    /// Poll until `count` events of interest are there.
    fn until<T>(
        &mut self,
        count: usize,
        mut wanted: impl FnMut(&RingDriver, &Event<OwnedFd, Received>) -> Option<T>,
    ) -> Vec<T> {
        let (mut found, started) = (Vec::new(), Instant::now());
        while found.len() < count {
            assert!(
                started.elapsed() < Duration::from_secs(10),
                "{} of {count}",
                found.len()
            );
            let patience = Patience::Sleep(Duration::from_millis(20));
            self.driver.poll(patience, &mut self.events).unwrap();
            for event in self.events.drain(..) {
                found.extend(wanted(&self.driver, &event));
                if let Event::Received { data, .. } = event {
                    self.driver.recycle(data);
                }
            }
        }
        found
    }
}

#[test]
fn a_full_ring_makes_operations_wait_and_fails_none() {
    for method in [SyncMethod::Dsync, SyncMethod::Fdatasync] {
        let mut small = small(6, 3, method);
        // Three of five receives fit beside what is the disk's.
        let (mut ours, theirs): (Vec<_>, Vec<_>) = (0..5)
            .map(|_| UnixStream::pair().unwrap())
            .map(|(a, b)| (Some(a), b))
            .unzip();
        let conns: Vec<ConnId> = ours
            .iter_mut()
            .map(|s| small.driver.adopt(s.take().unwrap().into()))
            .collect();
        assert_eq!(small.driver.waiting_connections.len(), 2);
        let mut block = Buffer::new(BLOCK).unwrap();
        block.fill(7);
        let block = Rc::new(block);
        for token in 1..=20 {
            small.driver.write_durable(
                FILE,
                token * BLOCK as u64,
                Rc::clone(&block),
                0..BLOCK,
                token,
            );
        }
        small.driver.sync(FILE, 21);
        assert!(small.driver.waiting_disk.len() > 10, "they have to wait");
        let done = small.until(21, |_, event| match event {
            Event::Written { token, result } => {
                assert_eq!(*result.as_ref().unwrap(), BLOCK);
                Some(*token)
            }
            Event::Synced { token, result } => {
                assert!(result.is_ok());
                Some(*token)
            }
            other => panic!("{other:?}"),
        });
        let mut sorted = done.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (1..=21).collect::<Vec<u64>>(), "each of them once");
        for token in 1..=20 {
            let buffer = Buffer::new(BLOCK).unwrap();
            small
                .driver
                .read(FILE, token * BLOCK as u64, buffer, BLOCK, token);
        }
        small.until(20, |_, event| match event {
            Event::Read { buffer, result, .. } => {
                assert_eq!(*result.as_ref().unwrap(), BLOCK);
                assert!(buffer.iter().all(|b| *b == 7));
                Some(())
            }
            other => panic!("{other:?}"),
        });
        assert_eq!(small.driver.disk_in_flight, 0);
        // Two that end make room for the two that wait, and a reply after them; a pause of one is kept too.
        small.driver.send(conns[3], b"reply".to_vec());
        small.driver.pause(conns[4]);
        small.driver.close(conns[0]);
        small.driver.close(conns[1]);
        small.driver.close(conns[2]);
        for (i, mut client) in theirs.iter().enumerate().skip(3) {
            client.write_all(&[i as u8]).unwrap();
        }
        let seen = small.until(4, |driver, event| match event {
            Event::Received { conn, data } => Some((*conn, driver.received(data)[0])),
            Event::Sent { conn, result, .. } => {
                assert!(result.is_ok());
                Some((*conn, b's'))
            }
            Event::RecvPaused { conn } => Some((*conn, b'p')),
            other => panic!("{other:?}"),
        });
        for wanted in [(3, 3), (3, b's'), (4, 4), (4, b'p')] {
            assert!(seen.contains(&(conns[wanted.0], wanted.1)), "{seen:?}");
        }
        let mut reply = [0; 5];
        (&theirs[3]).read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"reply");
    }
}

/// A client that sends `bytes` behind the connection's start and reads to the end; what it read.
fn client(address: std::net::SocketAddr, bytes: usize) -> std::thread::JoinHandle<String> {
    std::thread::spawn(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        let sent = socket.write_all(&vec![b'x'; bytes]);
        let mut answer = String::new();
        let read = socket.read_to_string(&mut answer);
        assert!(sent.is_ok() && read.is_ok(), "{sent:?}, {read:?}");
        answer
    })
}

#[test]
fn a_finished_connection_is_read_on_until_its_client_has_the_reply() {
    for (bytes, paused) in [(0, false), (100, true), (2 << 20, false), (2 << 20, true)] {
        let mut small = small(64, 3, SyncMethod::Dsync);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = client(listener.local_addr().unwrap(), bytes);
        let (socket, _) = listener.accept().unwrap();
        let conn = small.driver.adopt(socket.into());
        if paused {
            small.driver.pause(conn);
            small.until(1, |_, event| {
                matches!(event, Event::RecvPaused { .. }).then_some(())
            });
        }
        small.driver.send(conn, b"refused".to_vec());
        small.until(1, |_, event| {
            matches!(event, Event::Sent { .. }).then_some(())
        });
        small.driver.finish(conn);
        let started = Instant::now();
        while !small.driver.lingering.is_empty() {
            assert!(started.elapsed() < Duration::from_secs(10));
            let patience = Patience::Sleep(Duration::from_millis(20));
            small.driver.poll(patience, &mut small.events).unwrap();
            assert!(small.events.is_empty(), "it is closed for the shard");
        }
        assert_eq!(client.join().unwrap(), "refused");
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "it did not wait for the bound"
        );
    }
}

#[test]
fn a_client_that_goes_on_sending_beyond_the_bound_is_reset_and_does_not_hang() {
    let mut small = small(64, 3, SyncMethod::Dsync);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = std::thread::spawn(move || {
        let mut socket = TcpStream::connect(address).unwrap();
        let bytes = vec![b'x'; LINGER_BYTES_MAX + (64 << 20)];
        let patience = Some(Duration::from_secs(5));
        socket.set_write_timeout(patience).unwrap();
        socket.write_all(&bytes).unwrap_err().kind()
    });
    let (socket, _) = listener.accept().unwrap();
    let conn = small.driver.adopt(socket.into());
    small.driver.finish(conn);
    while !client.is_finished() {
        let patience = Patience::Sleep(Duration::from_millis(20));
        small.driver.poll(patience, &mut small.events).unwrap();
    }
    let told = client.join().unwrap();
    assert!(
        matches!(told, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{told}"
    );
}

#[test]
fn lingering_is_bounded_in_time_number_and_bytes() {
    let mut small = small(1024, 3, SyncMethod::Dsync);
    let mut clients = Vec::new();
    for _ in 0..LINGERING_MAX + 3 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let conn = small.driver.adopt(ours.into());
        small.driver.finish(conn);
        clients.push(theirs);
    }
    assert_eq!(small.driver.lingering.len(), LINGERING_MAX);
    // One that never stops sending.
    let mut greedy = clients.pop().unwrap();
    let sender = std::thread::spawn(move || {
        let mut sent = 0;
        while let Ok(count) = greedy.write(&[0; 1 << 16]) {
            sent += count;
        }
        sent
    });
    let started = Instant::now();
    while !small.driver.lingering.is_empty() {
        assert!(started.elapsed() < Duration::from_secs(10));
        let patience = Patience::Sleep(Duration::from_secs(100));
        small.driver.poll(patience, &mut small.events).unwrap();
        assert!(small.events.is_empty());
    }
    assert!(sender.join().unwrap() < LINGER_BYTES_MAX + (16 << 20));
    for client in &mut clients {
        client.shutdown(Shutdown::Write).unwrap_or_default();
        let mut nothing = Vec::new();
        client.read_to_end(&mut nothing).unwrap();
        assert!(nothing.is_empty());
    }
}
