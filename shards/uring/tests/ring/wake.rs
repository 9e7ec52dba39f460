//! Waking a sleeping ring, and how long a turn stays.

use std::time::{Duration, Instant};

use crate::common::{assert_quiet, ring, wait_for};
use uring::{Completion, Wait};

#[test]
fn another_ring_wakes_a_sleeping_one() {
    let (send, addresses) = std::sync::mpsc::channel();
    let sleeper = std::thread::spawn(move || {
        let mut ring = ring();
        send.send(ring.address()).unwrap();
        let mut messages = Vec::new();
        while messages.len() < 3 {
            for completion in wait_for(&mut ring, 1) {
                match completion {
                    Completion::Woken { message } => messages.push(message),
                    other => panic!("{other:?}"),
                }
            }
        }
        messages
    });
    let target = addresses.recv().unwrap();
    let mut ring = ring();
    for message in [7, 1 << 63, u64::from(u32::MAX) + 5] {
        std::thread::sleep(Duration::from_millis(20));
        ring.wake(&target, message).unwrap();
        ring.turn(Wait::No, &mut Vec::new()).unwrap();
    }
    assert_eq!(
        sleeper.join().unwrap(),
        [7, 1 << 63, u64::from(u32::MAX) + 5]
    );
    assert_eq!(ring.in_flight(), 0);
    // The sleeper's ring is gone: nobody to wake, nothing to report.
    ring.wake(&target, 1).unwrap();
    assert_quiet(&mut ring);
}

#[test]
fn a_ring_can_wake_itself() {
    let mut ring = ring();
    let own = ring.address();
    ring.wake(&own, 42).unwrap();
    assert!(matches!(
        wait_for(&mut ring, 1)[..],
        [Completion::Woken { message: 42 }]
    ));
}

#[test]
fn a_plain_thread_wakes_a_ring_again_and_again() {
    let mut ring = ring();
    let waker = ring.waker().unwrap();
    assert_eq!(ring.in_flight(), 0);
    for _ in 0..5 {
        let waker = waker.clone();
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            waker.wake();
        });
        assert!(matches!(
            wait_for(&mut ring, 1)[..],
            [Completion::Woken { message: u64::MAX }]
        ));
        assert!(start.elapsed() >= Duration::from_millis(15));
        thread.join().unwrap();
    }
    ring.waker().unwrap().wake();
    assert_eq!(wait_for(&mut ring, 1).len(), 1);
    assert_quiet(&mut ring);
    drop(ring);
    waker.wake();
}

#[test]
fn a_spinning_ring_sees_a_message_without_sleeping() {
    let mut ring = ring();
    let waker = ring.waker().unwrap();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(10));
        waker.wake();
    });
    let mut out = Vec::new();
    ring.turn(
        Wait::Spin {
            at_most: Duration::from_secs(5),
            then_sleep: None,
        },
        &mut out,
    )
    .unwrap();
    assert!(matches!(out[..], [Completion::Woken { .. }]));
    thread.join().unwrap();
}

#[test]
fn every_wait_ends_when_it_should() {
    let mut ring = ring();
    let mut out = Vec::new();
    let mut took = |wait| {
        let start = Instant::now();
        ring.turn(wait, &mut out).unwrap();
        start.elapsed()
    };
    let ms = Duration::from_millis;
    assert!(took(Wait::No) < ms(20));
    assert!((ms(30)..ms(90)).contains(&took(Wait::Sleep(ms(30)))));
    assert!((ms(5)..ms(60)).contains(&took(Wait::Spin {
        at_most: ms(5),
        then_sleep: None
    })));
    assert!((ms(35)..ms(95)).contains(&took(Wait::Spin {
        at_most: ms(5),
        then_sleep: Some(ms(30))
    })));
    assert!(took(Wait::Sleep(Duration::ZERO)) < ms(20));
}

#[test]
fn a_signal_ends_a_sleep_early_and_without_error() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: a zeroed sigaction is a valid one; the handler does nothing, so it may interrupt anything.
    let installed = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as libc::sighandler_t;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut())
    };
    assert_eq!(installed, 0);
    let mut ring = ring();
    // SAFETY: returns the calling thread's own handle.
    let sleeper = unsafe { libc::pthread_self() };
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        // SAFETY: the sleeper joins this thread, so its handle is valid.
        unsafe { libc::pthread_kill(sleeper, libc::SIGUSR1) }
    });
    let start = Instant::now();
    let mut out = Vec::new();
    ring.turn(Wait::Sleep(Duration::from_secs(10)), &mut out)
        .unwrap();
    assert!(
        out.is_empty() && start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(thread.join().unwrap(), 0);
}
