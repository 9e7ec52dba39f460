//! Connections through the ring: accept, receive, send, and what happens when buffers run out.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use crate::common::{assert_quiet, pair, ring, small, wait_for};
use uring::{Completion, Ring, RingConfig, Wait, socket};

const ACCEPT: u64 = 1;
const FIRST_CONNECTION: u64 = 100;

#[test]
fn tcp_connections_are_echoed_through_multishot_accept_and_recv() {
    let (listener, address) = socket::listen(
        "127.0.0.1:0".parse().unwrap(),
        &socket::ListenOptions::default(),
    )
    .unwrap();
    let clients = std::thread::spawn(move || {
        let mut clients: Vec<TcpStream> = (0..5)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        for round in 0..20u8 {
            for (i, client) in clients.iter_mut().enumerate() {
                let message = vec![round.wrapping_mul(7) ^ i as u8; 1 + 37 * usize::from(round)];
                client.write_all(&message).unwrap();
                let mut echo = vec![0; message.len()];
                client.read_exact(&mut echo).unwrap();
                assert_eq!(echo, message);
            }
        }
    });
    let mut ring = ring();
    ring.accept(Rc::new(listener), ACCEPT).unwrap();
    let mut connections = Vec::new();
    let (mut out, mut ended) = (Vec::new(), 0);
    while ended < 5 {
        ring.turn(
            Wait::Spin {
                at_most: Duration::from_micros(50),
                then_sleep: Some(Duration::from_secs(5)),
            },
            &mut out,
        )
        .unwrap();
        assert!(!out.is_empty(), "nothing for five seconds");
        for completion in out.drain(..) {
            match completion {
                Completion::Accepted { token, socket } => {
                    assert_eq!(token, ACCEPT);
                    let socket = Rc::new(socket);
                    ring.recv(socket.clone(), FIRST_CONNECTION + connections.len() as u64)
                        .unwrap();
                    connections.push(socket);
                }
                Completion::Received { token, data } => {
                    let bytes = ring.received(&data).to_vec();
                    ring.recycle(data);
                    let socket = connections[(token - FIRST_CONNECTION) as usize].clone();
                    ring.send(socket, bytes, 0, token).unwrap();
                }
                Completion::Sent { data, result, .. } => assert_eq!(result.unwrap(), data.len()),
                Completion::RecvEnded { token, result } => match result {
                    Ok(()) => ended += 1,
                    Err(error) => {
                        assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS), "{error}");
                        ring.recv(
                            connections[(token - FIRST_CONNECTION) as usize].clone(),
                            token,
                        )
                        .unwrap();
                    }
                },
                other => panic!("{other:?}"),
            }
        }
    }
    clients.join().unwrap();
    assert_eq!(connections.len(), 5);
    assert_eq!(ring.in_flight(), 1);
    assert_eq!(ring.recv_buffers_available(), 4);
}

#[test]
fn a_send_starts_at_from_and_gives_the_vec_back() {
    let (ours, mut theirs) = pair();
    let mut ring = ring();
    // More than a socket buffer: the kernel has to come back to it (MSG_WAITALL).
    let data: Vec<u8> = (0..4u32 << 20).map(|i| (i / 7) as u8).collect();
    let expected = data[3..].to_vec();
    let capacity = data.capacity();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        theirs.read_exact(&mut got).unwrap();
        assert!(got == expected);
    });
    ring.send(ours, data, 3, 9).unwrap();
    match wait_for(&mut ring, 1).pop() {
        Some(Completion::Sent {
            token: 9,
            data,
            result,
        }) => {
            assert_eq!(result.unwrap(), data.len() - 3);
            assert_eq!(data.capacity(), capacity);
        }
        other => panic!("{other:?}"),
    }
    reader.join().unwrap();
}

#[test]
fn a_send_to_a_closed_peer_fails_without_a_signal() {
    let (ours, theirs) = pair();
    drop(theirs);
    let mut ring = ring();
    ring.send(ours.clone(), b"late".to_vec(), 0, 1).unwrap();
    match wait_for(&mut ring, 1).pop() {
        Some(Completion::Sent { result, .. }) => {
            assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::BrokenPipe)
        }
        other => panic!("{other:?}"),
    }
    assert!(ring.send(ours, Vec::new(), 1, 1).is_err());
}

#[test]
fn receives_end_when_no_provided_buffer_is_left_and_lose_nothing() {
    let (ours, mut theirs) = pair();
    let mut ring = ring();
    let sent: Vec<u8> = (0..1000u32).map(|i| i as u8).collect();
    theirs.write_all(&sent).unwrap();
    ring.recv(ours.clone(), 3).unwrap();
    let (mut got, mut starved) = (Vec::new(), 0);
    while got.len() < sent.len() {
        // Nothing is recycled until the receive has ended.
        let mut held = Vec::new();
        'armed: loop {
            for completion in wait_for(&mut ring, 1) {
                match completion {
                    Completion::Received { data, .. } => held.push(data),
                    Completion::RecvEnded { token: 3, result } => {
                        assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOBUFS));
                        break 'armed;
                    }
                    other => panic!("{other:?}"),
                }
            }
            if got.len() + held.iter().map(|data| data.len as usize).sum::<usize>() == sent.len() {
                break;
            }
        }
        starved += usize::from(ring.in_flight() == 0);
        for data in held {
            got.extend_from_slice(ring.received(&data));
            ring.recycle(data);
        }
        if ring.in_flight() == 0 {
            ring.recv(ours.clone(), 3).unwrap();
        }
    }
    assert_eq!(got, sent);
    // 1000 bytes through four buffers of 64.
    assert!(starved >= 3, "{starved}");
}

#[test]
fn the_end_of_a_stream_is_ok_and_costs_no_buffer() {
    let (ours, theirs) = pair();
    let mut ring = ring();
    ring.recv(ours, 4).unwrap();
    assert_quiet(&mut ring);
    drop(theirs);
    assert!(matches!(
        wait_for(&mut ring, 1)[..],
        [Completion::RecvEnded {
            token: 4,
            result: Ok(())
        }]
    ));
    assert_eq!(ring.recv_buffers_available(), 4);
    assert_eq!(ring.in_flight(), 0);
}

#[test]
fn cancel_ends_all_operations_of_a_token_and_no_others() {
    let (first, _keep_first) = pair();
    let (second, _keep_second) = pair();
    let (other, mut theirs) = pair();
    let mut ring = ring();
    ring.recv(first, 5).unwrap();
    ring.recv(second, 5).unwrap();
    ring.recv(other, 6).unwrap();
    assert_quiet(&mut ring);
    ring.cancel(5).unwrap();
    for completion in wait_for(&mut ring, 2) {
        match completion {
            Completion::RecvEnded { token: 5, result } => {
                assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ECANCELED));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_quiet(&mut ring);
    theirs.write_all(b"still here").unwrap();
    assert!(matches!(
        wait_for(&mut ring, 1)[..],
        [Completion::Received { token: 6, .. }]
    ));
    ring.cancel(77).unwrap();
    assert_quiet(&mut ring);
}

#[test]
fn cancel_in_the_turn_of_the_submission_works_too() {
    let (ours, _theirs) = pair();
    let mut ring = ring();
    ring.recv(ours, 5).unwrap();
    ring.cancel(5).unwrap();
    assert!(matches!(
        wait_for(&mut ring, 1)[..],
        [Completion::RecvEnded {
            token: 5,
            result: Err(_)
        }]
    ));
}

#[test]
fn the_operation_pool_is_bounded_and_more_entries_than_the_queue_holds_are_fine() {
    let config = RingConfig {
        operations_max: 20,
        ..small()
    };
    let mut ring = Ring::new(&config).unwrap();
    let (ours, theirs) = pair();
    // Twenty entries through a queue of eight: submitted on the way.
    for _ in 0..20 {
        ring.recv(ours.clone(), 8).unwrap();
    }
    assert_eq!((ring.in_flight(), ring.operations_free()), (20, 0));
    let error = ring.recv(ours.clone(), 8).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    drop(theirs);
    assert_eq!(wait_for(&mut ring, 20).len(), 20);
    assert_eq!((ring.in_flight(), ring.operations_free()), (0, 20));
    ring.recv(ours, 8).unwrap();
}

#[test]
fn room_is_known_before_an_operation_is_given_away() {
    let mut ring = ring();
    let (ours, theirs) = pair();
    let mut started = 0;
    // Six stay free for others, whatever the queue of eight had to submit on the way.
    while ring.has_room(6).unwrap() {
        ring.recv(ours.clone(), 8).unwrap();
        started += 1;
    }
    assert_eq!(started, small().operations_max - 6);
    while ring.has_room(0).unwrap() {
        ring.send(ours.clone(), b"x".to_vec(), 0, 9).unwrap();
        started += 1;
    }
    assert_eq!((started, ring.operations_free()), (16, 0));
    drop(theirs);
    wait_for(&mut ring, 16);
    assert!(ring.has_room(15).unwrap() && !ring.has_room(16).unwrap());
}

#[test]
fn more_completions_than_the_queue_holds_are_not_lost() {
    // Completion queue: 4 x 8. The kernel keeps the rest until it is asked.
    let config = RingConfig {
        operations_max: 500,
        ..small()
    };
    let mut ring = Ring::new(&config).unwrap();
    let (ours, theirs) = pair();
    for _ in 0..500 {
        ring.recv(ours.clone(), 8).unwrap();
    }
    assert_quiet(&mut ring);
    drop(theirs);
    let ended = wait_for(&mut ring, 500);
    assert_eq!(ended.len(), 500);
    assert!(
        ended
            .iter()
            .all(|completion| matches!(completion, Completion::RecvEnded { result: Ok(()), .. }))
    );
}

#[test]
#[should_panic(expected = "was recycled")]
fn a_recycled_buffer_cannot_be_read() {
    let (ours, mut theirs) = pair();
    let mut ring = ring();
    theirs.write_all(b"x").unwrap();
    ring.recv(ours, 1).unwrap();
    if let Some(Completion::Received { data, .. }) = wait_for(&mut ring, 1).pop() {
        let copy = uring::Received {
            buffer: data.buffer,
            len: data.len,
        };
        ring.recycle(data);
        ring.received(&copy);
    }
}

#[test]
fn a_cancelled_accept_says_so_and_can_be_armed_again() {
    let (listener, address) = socket::listen(
        "127.0.0.1:0".parse().unwrap(),
        &socket::ListenOptions::default(),
    )
    .unwrap();
    let listener = Rc::new(listener);
    let mut ring = ring();
    ring.accept(listener.clone(), ACCEPT).unwrap();
    assert_quiet(&mut ring);
    ring.cancel(ACCEPT).unwrap();
    match wait_for(&mut ring, 1).pop() {
        Some(Completion::AcceptEnded {
            token: ACCEPT,
            error,
        }) => {
            assert_eq!(error.raw_os_error(), Some(libc::ECANCELED));
        }
        other => panic!("{other:?}"),
    }
    let _client = TcpStream::connect(address).unwrap();
    ring.accept(listener, ACCEPT).unwrap();
    assert!(matches!(
        wait_for(&mut ring, 1)[..],
        [Completion::Accepted { token: ACCEPT, .. }]
    ));
}
