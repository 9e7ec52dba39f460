//! Dropping a ring with operations in flight: they end, and only then is their memory free.

use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::common::{assert_quiet, pair, ring};
use uring::{BufferPool, Wait, WriteDurability, file};

#[test]
fn everything_in_flight_ends_before_drop_returns() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let log = Rc::new(file::open_direct(&dir.path().join("log"), true).unwrap());
    let pool = BufferPool::new(2, 1 << 20).unwrap();
    let mut ring = ring();
    ring.register_buffers(&pool).unwrap();
    let (idle, _keep) = pair();
    // The peer does not read: this send cannot finish.
    let (stuck, _silent) = pair();
    let (listener, _) =
        uring::socket::listen("127.0.0.1:0".parse().unwrap(), &Default::default()).unwrap();
    let listener = Rc::new(listener);
    let _waker = ring.waker().unwrap();
    ring.accept(listener.clone(), 1).unwrap();
    ring.recv(idle.clone(), 2).unwrap();
    ring.send(stuck.clone(), vec![0; 8 << 20], 0, 3).unwrap();
    ring.turn(Wait::No, &mut Vec::new()).unwrap();
    let shared = Rc::new(pool.take().unwrap());
    ring.write(
        log.clone(),
        0,
        shared.clone(),
        0..1 << 20,
        WriteDurability::Dsync,
        4,
    )
    .unwrap();
    ring.read(log.clone(), 0, pool.take().unwrap(), 4096, 5)
        .unwrap();
    let start = Instant::now();
    drop(ring);
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "{:?}",
        start.elapsed()
    );
    for counted in [&idle, &stuck, &listener, &log] {
        assert_eq!(Rc::strong_count(counted), 1);
    }
    assert_eq!(Rc::strong_count(&shared), 1);
    assert_eq!(pool.available(), 1);
}

#[test]
fn connections_nobody_took_are_closed_with_the_ring() {
    use std::io::Read;
    let (listener, address) =
        uring::socket::listen("127.0.0.1:0".parse().unwrap(), &Default::default()).unwrap();
    let mut ring = ring();
    ring.accept(Rc::new(listener), 1).unwrap();
    assert_quiet(&mut ring);
    let mut client = std::net::TcpStream::connect(address).unwrap();
    drop(ring);
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let end = client.read(&mut [0; 1]);
    assert!(
        matches!(&end, Ok(0))
            || end
                .as_ref()
                .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
        "{end:?}"
    );
}

#[test]
fn rings_come_and_go() {
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let rings = links.filter(|entry| {
            std::fs::read_link(entry.path())
                .is_ok_and(|link| link.to_string_lossy().contains("io_uring"))
        });
        rings.count()
    };
    for _ in 0..200 {
        let mut ring = ring();
        let (ours, _theirs) = pair();
        ring.recv(ours, 1).unwrap();
        ring.turn(Wait::No, &mut Vec::new()).unwrap();
    }
    // Other tests have rings of their own open meanwhile.
    assert!(open() < 100, "{} rings are open", open());
}
