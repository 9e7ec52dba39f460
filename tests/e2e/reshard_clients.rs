//! Clients that stay while the number of shards is changed under them.

use std::collections::BTreeMap;
use std::io::copy;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::spawn;

use client::{Client, Condition, ConnectOptions, ContentType, Error, Record, Ticket};

use crate::accepting::Accepting;
use crate::reshard::{reshard, start};
use crate::server::{PATIENCE, Server, directory, eventually, run};

/// An address that stays, before servers that come and go on ports of their own.
struct Front {
    at: Accepting,
    server: Arc<Mutex<Option<SocketAddr>>>,
}

impl Front {
    fn new() -> Front {
        let server = Arc::new(Mutex::new(None));
        let at = Accepting::new({
            let server = Arc::clone(&server);
            move |client| {
                let to: Option<SocketAddr> = *server.lock().expect("no panic");
                if let Some(server) = to.and_then(|to| TcpStream::connect(to).ok()) {
                    pass(&client, &server);
                    pass(&server, &client);
                }
            }
        });
        Front { at, server }
    }

    fn lead_to(&self, server: Option<&Server>) {
        *self.server.lock().expect("no panic") = server.map(|server| server.native);
    }

    fn connect(&self, producer_id: Option<u128>) -> Client {
        let options = ConnectOptions {
            producer_id,
            timeout: PATIENCE,
            ..ConnectOptions::default()
        };
        Client::connect(&self.at.address.to_string(), options).expect("a server is there")
    }
}

/// Passes bytes on until one side ends; then both do.
fn pass(from: &TcpStream, to: &TcpStream) {
    let clone = |socket: &TcpStream| socket.try_clone().expect("a descriptor");
    let (mut from, mut to) = (clone(from), clone(to));
    spawn(move || {
        let _ = copy(&mut from, &mut to);
        let _ = from.shutdown(Shutdown::Both);
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// Two records of keys that most often have two shards, in the order of `number`.
fn records(number: usize) -> [(String, String); 2] {
    [0, 3].map(|more| (format!("k{}", (number + more) % 7), number.to_string()))
}

fn send(client: &mut Client, stream: &str, number: usize) -> Ticket {
    let records = records(number);
    let records = [&records[0], &records[1]].map(|(key, value)| Record {
        key: key.as_bytes(),
        payload: value.as_bytes(),
        content_type: ContentType::TEXT_PLAIN,
        tombstone: false,
        condition: Condition::None,
    });
    client
        .send_append(stream, &records)
        .expect("it can be sent")
}

/// Every key's values are those of the first `count` numbers, each once and in order.
#[track_caller]
fn assert_once(client: &mut Client, stream: &str, count: usize) {
    let mut expected: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in (0..count).flat_map(records) {
        expected.entry(key).or_default().insert(0, value);
    }
    for (key, values) in expected {
        let history = client.history(stream, key.as_bytes(), 0, 1000);
        let shown: Vec<String> = (history.expect("it can be read").into_iter())
            .map(|stored| String::from_utf8(stored.payload).expect("text"))
            .collect();
        assert_eq!(shown, values, "{key}");
    }
}

#[test]
fn a_producer_under_way_takes_up_other_shards_and_every_append_is_there_once_in_order() {
    let data = directory();
    let front = Front::new();
    let mut server = start(data.path(), &["--shards", "2"]);
    front.lead_to(Some(&server));
    let mut client = front.connect(Some(77));
    let mut reader = front.connect(None);
    let mut sent = 0;
    for shards in [3, 1, 2] {
        let mut tickets = Vec::new();
        for _ in 0..20 {
            tickets.push(send(&mut client, "s", sent));
            sent += 1;
        }
        // Stored, and the client has not heard of it.
        eventually("the records", || {
            let about = server.http().get("/v1/streams/s");
            (about.status == 200 && about.json()["records"] == 2 * sent).then_some(())
        });
        // Sent, and never read.
        server.signal("STOP");
        for _ in 0..20 {
            tickets.push(send(&mut client, "s", sent));
            sent += 1;
        }
        front.lead_to(None);
        server.kill();
        run(&mut reshard(data.path(), shards), 0);
        server = start(data.path(), &[]);
        front.lead_to(Some(&server));
        // More before the first answer is heard: they come behind what is under way.
        for _ in 0..5 {
            tickets.push(send(&mut client, "s", sent));
            sent += 1;
        }
        for ticket in tickets {
            let ack = client.wait(ticket).expect("it is stored");
            assert_eq!(ack.versions.len(), 2);
        }
        assert_eq!(client.in_flight(), 0);
        for client in [&mut client, &mut reader] {
            assert_once(client, "s", sent);
            assert_eq!(client.topology().shards.len(), shards as usize);
        }
        // And goes on, a connection to each shard.
        assert_eq!(client.shard_connections(), shards as usize);
        for _ in 0..5 {
            let ticket = send(&mut client, "s", sent);
            client.wait(ticket).expect("it is stored");
            sent += 1;
        }
    }
    assert_once(&mut client, "s", sent);
    server.stop();
}

#[test]
fn without_a_producer_id_what_was_under_way_is_lost_and_the_next_append_goes_by_the_new_shards() {
    let data = directory();
    let front = Front::new();
    let server = start(data.path(), &["--shards", "2"]);
    front.lead_to(Some(&server));
    let mut client = front.connect(None);
    let ticket = send(&mut client, "s", 0);
    client.wait(ticket).expect("it is stored");
    server.signal("STOP");
    let lost = send(&mut client, "s", 1);
    front.lead_to(None);
    server.kill();
    run(&mut reshard(data.path(), 3), 0);
    let server = start(data.path(), &[]);
    front.lead_to(Some(&server));
    let error = client.wait(lost).expect_err("nobody knows");
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    let ticket = send(&mut client, "s", 1);
    client.wait(ticket).expect("it is stored");
    assert_eq!(client.topology().shards.len(), 3);
    assert_once(&mut client, "s", 2);
    server.stop();
}

#[test]
fn a_server_that_comes_back_on_other_ports_of_its_shards_is_found_again() {
    let data = directory();
    let front = Front::new();
    let mut server = start(data.path(), &["--shards", "2"]);
    front.lead_to(Some(&server));
    let mut client = front.connect(Some(78));
    let mut sent = 0;
    for _ in 0..3 {
        assert_eq!(client.shard_connections(), 2);
        let ports: Vec<u16> = (client.topology().shards.iter())
            .map(|shard| shard.native_port)
            .collect();
        server.signal("STOP");
        let tickets: Vec<Ticket> = (sent..sent + 20)
            .map(|number| send(&mut client, "s", number))
            .collect();
        sent += 20;
        front.lead_to(None);
        server.kill();
        server = start(data.path(), &[]);
        front.lead_to(Some(&server));
        let now = front.connect(None);
        assert_ne!(now.topology().shards[0].native_port, ports[0]);
        for ticket in tickets {
            client.wait(ticket).expect("it is stored");
        }
        assert_once(&mut client, "s", sent);
        assert_eq!(client.topology(), now.topology());
    }
    server.stop();
}
