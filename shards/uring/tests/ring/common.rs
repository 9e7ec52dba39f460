//! A ring in test size, and how to wait for one completion.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::time::{Duration, Instant};

use uring::{Completion, Ring, RingConfig, Wait};

pub fn small() -> RingConfig {
    RingConfig {
        entries: 8,
        recv_buffers: 4,
        recv_buffer_bytes: 64,
        operations_max: 16,
    }
}

pub fn ring() -> Ring {
    Ring::new(&small()).expect("the machine that runs the tests has io_uring")
}

/// Turn until `count` completions are there; fails after five seconds.
pub fn wait_for(ring: &mut Ring, count: usize) -> Vec<Completion> {
    let mut out = Vec::new();
    let start = Instant::now();
    while out.len() < count {
        assert!(
            start.elapsed() < Duration::from_secs(5),
            "still waiting for {count} completions: {out:?}"
        );
        ring.turn(Wait::Sleep(Duration::from_millis(100)), &mut out)
            .unwrap();
    }
    out
}

/// Nothing comes within a moment.
pub fn assert_quiet(ring: &mut Ring) {
    let mut out = Vec::new();
    ring.turn(Wait::Sleep(Duration::from_millis(30)), &mut out)
        .unwrap();
    assert!(out.is_empty(), "{out:?}");
}

/// One end for the ring, the other for the test.
pub fn pair() -> (Rc<OwnedFd>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (Rc::new(ours.into()), theirs)
}
