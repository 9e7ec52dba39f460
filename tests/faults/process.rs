//! The process as a whole: stopped and continued, and a second one on its directory.

use std::time::Duration;

use crate::book::{Book, read_notes, verify};
use crate::http::request;
use crate::oracle;
use crate::server::{Server, directory, eventually, run, serve_under};

#[test]
fn a_stopped_process_goes_on_where_it_was() {
    let data = directory();
    let mut server = Server::start_with(data.path(), 2, &["--request-timeout-seconds", "1"]);
    let (mut http, mut idle, mut half) = (server.http(), server.http(), server.http());
    let mut client = server.client();
    assert_eq!(http.post("/v1/streams/s/records/k", "before").status, 201);
    let whole = request("POST", "/v1/streams/s/records/half", &[], b"in two pieces");
    half.send(&whole[..whole.len() - 5]);
    // The server has seen the first half before it stops.
    assert_eq!(http.get("/healthz").status, 200);
    server.signal("STOP");
    http.start(
        "POST",
        "/v1/streams/s/records/k",
        &[],
        b"while it was stopped",
    );
    let mut late = server.http();
    late.start("GET", "/v1/streams/s/records/k", &[], b"");
    std::thread::sleep(Duration::from_secs(3));
    server.signal("CONT");
    half.send(&whole[whole.len() - 5..]);
    assert_eq!(
        half.response().status,
        201,
        "its time did not run while nothing ran"
    );
    assert_eq!(http.response().status, 201);
    assert_eq!(late.response().status, 200);
    assert_eq!(idle.get("/healthz").status, 200);
    assert_eq!(
        client
            .get("s", b"k")
            .expect("served")
            .expect("there")
            .payload,
        b"while it was stopped"
    );
    server.assert_alive();
    server.stop();
}

#[test]
fn a_second_process_is_refused_under_load_and_takes_over_after_a_kill() {
    let (data, notes) = (directory(), directory());
    let mut book = Book::new();
    for round in 0..2 {
        let mut server = Server::start(data.path(), 2);
        let oracle = oracle::start(notes.path(), server.native, server.http, round, 77 + round);
        eventually("the load", || {
            let sent = std::fs::metadata(oracle::file_of(notes.path(), round, 0));
            sent.is_ok_and(|m| m.len() > 4096).then_some(())
        });
        let flags = ["--memory", "1GiB"];
        let (_, stderr) = run(&mut serve_under(&[], data.path(), &flags), 1);
        assert!(
            stderr.contains("another process is using this data directory"),
            "{stderr}"
        );
        server.assert_alive();
        let before = server.metric("pinion_records_total", 0);
        eventually("the load to go on", || {
            (server.metric("pinion_records_total", 0) > before).then_some(())
        });
        server.kill();
        oracle::ended(oracle);
        read_notes(&mut book, notes.path(), round);
    }
    let server = Server::start(data.path(), 2);
    let counts = verify(&server, &book, 2, 4).unwrap_or_else(|why| panic!("{why}"));
    println!("{} acked, {} there", counts.acked, counts.found);
    server.stop();
}
