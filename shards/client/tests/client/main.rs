//! The client against a small server with two shards that counts producer sequences as the real one does, and fails on cue
//! (`server`).

mod server;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;
use std::time::Duration;

use client::{Client, Code, Condition, ConnectOptions, ContentType, Durability, Error, Record};

use server::{Fault, Server};

fn new<'a>(key: &'a str, payload: &'a str) -> Record<'a> {
    let content_type = ContentType::TEXT_PLAIN;
    Record {
        key: key.as_bytes(),
        payload: payload.as_bytes(),
        content_type,
        tombstone: false,
        condition: Condition::None,
    }
}

/// `foo` has slot 12182 and so log 11, `bar` has slot 5061 and so log 10.
const FIRST: &str = "bar";
const SECOND: &str = "foo";

fn producer() -> ConnectOptions {
    ConnectOptions {
        producer_id: Some(7),
        timeout: Duration::from_secs(5),
        ..ConnectOptions::default()
    }
}

#[test]
fn records_go_to_their_shards_and_the_ack_is_put_together_in_order() {
    let server = Server::start(true, &[]);
    let mut client = server.connect(ConnectOptions::default());
    assert_eq!(client.shard_connections(), 2);
    let ack = client
        .append(
            "s",
            &[
                new(SECOND, "1"),
                new(FIRST, "2"),
                new(SECOND, "3"),
                new(FIRST, "4"),
                new(FIRST, "5"),
            ],
        )
        .unwrap();
    assert_eq!(ack.versions, [1, 1, 2, 2, 3]);
    assert_eq!(
        ack.parts
            .iter()
            .map(|part| (part.log, part.records))
            .collect::<Vec<_>>(),
        [(10, 3), (11, 2)]
    );
    assert_eq!(ack.durability, Durability::Durable);
    assert_eq!(
        (server.payloads(0), server.payloads(1)),
        (
            vec!["2".into(), "4".into(), "5".into()],
            vec!["1".into(), "3".into()]
        )
    );
    let connections: Vec<u64> = server
        .logs
        .iter()
        .map(|log| log.lock().unwrap().connections)
        .collect();
    assert_eq!(connections, [1, 1]);
}

#[test]
fn shards_that_cannot_be_reached_are_served_over_the_shared_port() {
    let server = Server::start(false, &[]);
    let mut client = server.connect(producer());
    assert_eq!(client.shard_connections(), 0);
    for round in 1..=3 {
        let ack = client
            .append("s", &[new(FIRST, "a"), new(SECOND, "b")])
            .unwrap();
        assert_eq!(ack.versions, [round, round]);
    }
    assert_eq!(
        client.sequences(),
        [(10, 4), (11, 4)],
        "a frame each, so that each log counts its own"
    );
}

#[test]
fn reads_find_what_was_written() {
    let server = Server::start(true, &[]);
    let mut client = server.connect(ConnectOptions {
        want_versions: false,
        ..ConnectOptions::default()
    });
    for number in 0..7 {
        let payload = number.to_string();
        let ack = client
            .append(
                "s",
                &[new(if number % 2 == 0 { FIRST } else { SECOND }, &payload)],
            )
            .unwrap();
        assert!(ack.versions.is_empty());
    }
    let newest = client.get("s", FIRST.as_bytes()).unwrap().unwrap();
    assert_eq!(
        (
            newest.version,
            newest.payload.as_slice(),
            newest.content_type.as_str()
        ),
        (4, &b"6"[..], "text/plain")
    );
    assert_eq!(client.get("s", b"nothing").unwrap(), None);
    let mut scan = client.scan("s", 3);
    assert_eq!(
        scan.by_ref()
            .map(|record| record.unwrap().payload[0])
            .collect::<Vec<_>>(),
        *b"0246135"
    );
    assert_eq!(scan.cursor(), b"7");
    client.ping().unwrap();
    assert_eq!(client.streams().unwrap(), "[]");
}

#[test]
fn appends_in_flight_are_bounded_and_each_ends_once() {
    let server = Server::start(true, &[]);
    let mut client = server.connect(ConnectOptions {
        window: 4,
        ..ConnectOptions::default()
    });
    let mut tickets = Vec::new();
    for number in 0..100 {
        let payload = number.to_string();
        tickets.push(client.send_append("s", &[new(FIRST, &payload)]).unwrap());
    }
    let middle = client.wait(tickets[50]).unwrap();
    assert_eq!(middle.versions, [51]);
    let mut ended: Vec<_> = std::iter::from_fn(|| client.recv())
        .map(|(ticket, ack)| ack.map(|_| ticket).unwrap())
        .collect();
    ended.push(tickets[50]);
    ended.sort();
    assert_eq!(ended, tickets);
    assert_eq!((client.in_flight(), client.poll().is_none()), (0, true));
    assert!(matches!(client.wait(tickets[50]), Err(Error::Usage(_))));
}

#[test]
fn a_producer_stores_every_append_once_whatever_is_lost() {
    for fault in [
        Fault::LoseAnswer,
        Fault::LoseRequest,
        Fault::Refuse(Code::Overloaded),
    ] {
        let server = Server::start(
            true,
            &[
                ((0, 3), fault.clone()),
                ((0, 9), fault.clone()),
                ((1, 0), fault.clone()),
            ],
        );
        let mut client = server.connect(producer());
        let payloads: Vec<String> = (0..40).map(|number| number.to_string()).collect();
        for payload in &payloads {
            client
                .send_append("s", &[new(FIRST, payload), new(SECOND, payload)])
                .unwrap();
        }
        let acks: Vec<_> = std::iter::from_fn(|| client.recv()).collect();
        assert_eq!(acks.len(), 40, "{fault:?}");
        for (_, ack) in acks {
            ack.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        }
        assert_eq!(
            (server.payloads(0), server.payloads(1)),
            (payloads.clone(), payloads),
            "{fault:?}"
        );
        assert_eq!(client.sequences(), [(10, 41), (11, 41)]);
    }
}

#[test]
fn a_refused_append_does_not_hold_up_those_behind_it() {
    let server = Server::start(true, &[((0, 2), Fault::Refuse(Code::ConditionFailed))]);
    let mut client = server.connect(producer());
    let payloads: Vec<String> = (0..6).map(|number| number.to_string()).collect();
    for payload in &payloads {
        client.send_append("s", &[new(FIRST, payload)]).unwrap();
    }
    let refused: Vec<_> = std::iter::from_fn(|| client.recv())
        .filter_map(|(_, ack)| ack.err())
        .collect();
    assert_eq!(
        refused.iter().map(Error::code).collect::<Vec<_>>(),
        [Some(Code::ConditionFailed)]
    );
    assert_eq!(server.payloads(0), ["0", "1", "3", "4", "5"]);
    client.append("s", &[new(FIRST, "6")]).unwrap();
    assert_eq!(server.payloads(0).last().unwrap(), "6");
}

#[test]
fn without_a_producer_id_a_lost_answer_is_told_and_the_client_goes_on() {
    let server = Server::start(true, &[((0, 1), Fault::LoseAnswer)]);
    let mut client = server.connect(ConnectOptions::default());
    client.append("s", &[new(FIRST, "0")]).unwrap();
    assert!(matches!(
        client.append("s", &[new(FIRST, "1")]),
        Err(Error::Lost { .. })
    ));
    client.append("s", &[new(FIRST, "2")]).unwrap();
    assert_eq!(server.payloads(0), ["0", "1", "2"]);
}

#[test]
fn a_connection_that_is_refused_as_a_whole_says_why_and_is_not_tried_again() {
    for options in [ConnectOptions::default(), producer()] {
        let server = Server::start(true, &[((0, 1), Fault::TurnAway(Code::TooLarge))]);
        let mut client = server.connect(options);
        client.append("s", &[new(FIRST, "0")]).unwrap();
        let connections = server.logs[0].lock().unwrap().connections;
        let error = client.append("s", &[new(FIRST, "1")]).unwrap_err();
        assert_eq!(error.code(), Some(Code::TooLarge), "{error}");
        assert_eq!(server.logs[0].lock().unwrap().connections, connections);
        client.append("s", &[new(SECOND, "2")]).unwrap();
        assert_eq!(server.payloads(0), ["0"]);
    }
}

#[test]
fn of_several_in_flight_none_is_said_to_be_refused_that_may_be_stored() {
    for (options, connections) in [(ConnectOptions::default(), 1), (producer(), 2)] {
        let faults = [1, 2].map(|arrival| ((0, arrival), Fault::TurnAway(Code::TooLarge)));
        let server = Server::start(true, &faults);
        let mut client = server.connect(options);
        for payload in ["0", "1", "2"] {
            client.send_append("s", &[new(FIRST, payload)]).unwrap();
        }
        let failed: Vec<Error> = std::iter::from_fn(|| client.recv())
            .filter_map(|(_, ack)| ack.err())
            .collect();
        assert_eq!(failed.len(), 2);
        for error in failed {
            assert!(matches!(error, Error::Lost { .. }), "{error}");
            assert!(error.to_string().contains("too_large: as told"), "{error}");
        }
        assert_eq!(server.logs[0].lock().unwrap().connections, connections);
        assert_eq!(server.payloads(0), ["0"]);
    }
}

#[test]
fn a_connection_that_is_refused_for_now_is_tried_again() {
    let server = Server::start(true, &[((0, 0), Fault::TurnAway(Code::Overloaded))]);
    let mut client = server.connect(producer());
    client.append("s", &[new(FIRST, "0")]).unwrap();
    assert_eq!(server.payloads(0), ["0"]);
}

#[test]
fn silence_ends_with_the_timeout_and_the_sequence_is_not_used_again() {
    let server = Server::start(true, &[((0, 0), Fault::Silence)]);
    let mut client = server.connect(ConnectOptions {
        timeout: Duration::from_millis(200),
        ..producer()
    });
    assert!(matches!(
        client.append("s", &[new(FIRST, "0")]),
        Err(Error::Io { .. })
    ));
    let stuck = client.append("s", &[new(FIRST, "1")]).unwrap_err();
    assert!(stuck.to_string().contains("new producer id"), "{stuck}");
    client.append("s", &[new(SECOND, "2")]).unwrap();
}

#[test]
fn a_producer_continues_where_an_earlier_run_ended() {
    let server = Server::start(true, &[]);
    let mut first = server.connect(producer());
    first.append("s", &[new(FIRST, "0")]).unwrap();
    let sequences = first.sequences();
    let mut second = server.connect(ConnectOptions {
        sequences,
        ..producer()
    });
    second.append("s", &[new(FIRST, "1")]).unwrap();
    let mut forgetful = server.connect(producer());
    let error = forgetful.append("s", &[new(FIRST, "2")]).unwrap_err();
    assert_eq!(error.code(), Some(Code::IdempotencyMismatch));
    assert_eq!(server.payloads(0), ["0", "1"]);
}

#[test]
fn a_wrong_token_a_wrong_port_and_nobody_are_told_apart() {
    let server = Server::start(true, &[]);
    let options = || ConnectOptions {
        timeout: Duration::from_secs(2),
        ..ConnectOptions::default()
    };
    let connect =
        |address: &str, options| Client::connect(address, options).map(|_| ()).unwrap_err();
    let wrong = connect(
        &server.shared.to_string(),
        ConnectOptions {
            token: Some(b"wrong".to_vec()),
            ..options()
        },
    );
    assert_eq!(wrong.code(), Some(Code::Unauthorized));
    assert!(matches!(
        connect("127.0.0.1:1", options()),
        Error::Io { .. }
    ));
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http.local_addr().unwrap().to_string();
    thread::spawn(move || {
        let (mut stream, _) = http.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            .unwrap();
        let _ = stream.read(&mut [0; 64]);
    });
    assert!(matches!(connect(&address, options()), Error::Broken { .. }));
}

#[test]
fn what_cannot_be_sent_is_said_before_anything_is() {
    let server = Server::start(true, &[]);
    let mut client = server.connect(producer());
    assert!(matches!(
        client.append("no spaces", &[new(FIRST, "0")]),
        Err(Error::Usage(_))
    ));
    assert!(matches!(client.append("s", &[]), Err(Error::Usage(_))));
    assert!(matches!(
        client.append("s", &[new(FIRST, "0"), new("", "1")]),
        Err(Error::Usage(_))
    ));
    assert_eq!(client.sequences(), [(10, 1), (11, 1)]);
    assert!(server.payloads(0).is_empty());
}
