//! Out of descriptors: accepting does not spin, the log keeps what it needs, and it passes.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::ground::system;
use crate::http::Connection;
use crate::server::{Server, directory, eventually};

const LIMIT: usize = 160;

/// Processor time of the process so far.
fn processor_time(server: &Server) -> Duration {
    let stat =
        std::fs::read_to_string(format!("/proc/{}/stat", server.process())).expect("it lives");
    // Behind the name, which may hold anything: state is field 3, utime and stime are 14 and 15, in hundredths.
    let rest = stat.rsplit_once(") ").expect("a name in brackets").1;
    let field = |n: usize| -> u64 {
        let text = rest.split(' ').nth(n - 3).expect("enough fields");
        text.parse().expect("a number")
    };
    Duration::from_millis(10 * (field(14) + field(15)))
}

fn open_descriptors(server: &Server) -> usize {
    let folder = format!("/proc/{}/fd", server.process());
    std::fs::read_dir(folder).expect("it lives").count()
}

/// Sockets that it holds, the listeners included.
pub fn open_sockets(server: &Server) -> usize {
    let folder = format!("/proc/{}/fd", server.process());
    let entries = std::fs::read_dir(folder).expect("it lives");
    entries
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}

/// Share of one core over a second and a half.
fn processor_share(server: &Server) -> f64 {
    let (before, since) = (processor_time(server), Instant::now());
    std::thread::sleep(Duration::from_millis(1500));
    (processor_time(server) - before).as_secs_f64() / since.elapsed().as_secs_f64()
}

#[test]
fn exhausted_descriptors_stop_neither_the_log_nor_the_clients_that_are_there() {
    let data = directory();
    let limit = format!("--nofile={LIMIT}:{LIMIT}");
    let flags = [
        "--shards",
        "2",
        "--segment-bytes",
        "4MiB",
        "--segments-ahead",
        "1",
        "--memory",
        "1GiB",
    ];
    let mut server = Server::spawn_under(&["prlimit", &limit], data.path(), &flags);
    server.wait_until_ready();
    let mut here = server.http();
    assert_eq!(here.post("/v1/streams/s/records/k", "x").status, 201);
    let (before, quiet) = (open_descriptors(&server), processor_share(&server));

    // All at once: the kernel accepts until there is no descriptor left, before the server can look at one.
    server.signal("STOP");
    let mut crowd: Vec<TcpStream> = (0..2 * LIMIT)
        .map(|i| {
            let address = if i % 2 == 0 {
                server.native
            } else {
                server.http
            };
            TcpStream::connect(address).expect("the kernel takes it into the backlog")
        })
        .collect();
    server.signal("CONT");
    eventually("the server to run out", || {
        (open_descriptors(&server) + 40 >= LIMIT).then_some(())
    });
    let exhausted = processor_share(&server);
    println!(
        "{before} descriptors before, {} in exhaustion; processor {quiet:.3} before, {exhausted:.3} in exhaustion",
        open_descriptors(&server)
    );
    assert!(
        exhausted < quiet + 0.35,
        "accepting spins: {exhausted:.2} of a core, {quiet:.2} before"
    );
    let warnings = server.stderr().matches("accept stopped").count();
    assert!(warnings <= 6, "{warnings} lines about accept");

    // The log rolls over several segments, of both shards, which are files to be opened.
    for i in 0..120 {
        let answer = here.post(&format!("/v1/streams/s/records/k{i}"), vec![b'x'; 200_000]);
        assert_eq!(answer.status, 201, "{}\n{}", answer.text(), server.stderr());
    }
    for i in [0, 60, 119] {
        assert_eq!(
            here.get(&format!("/v1/streams/s/records/k{i}")).body.len(),
            200_000
        );
    }
    let files = system(&[
        "find",
        data.path().to_str().expect("UTF-8"),
        "-name",
        "*.seg",
    ]);
    let segments = files.expect("find").lines().count();
    assert!(segments >= 7, "the log did not roll: {segments}");

    // One more is told, or closed; it does not hang.
    let mut one_more = TcpStream::connect(server.http).expect("the kernel takes it");
    one_more
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a timeout");
    let mut said = Vec::new();
    match std::io::Read::read_to_end(&mut one_more, &mut said) {
        Ok(_) => {}
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset, "{e}"),
    }
    let said = String::from_utf8_lossy(&said);
    println!(
        "one more heard: {:?}",
        said.lines().next().unwrap_or_default()
    );
    assert!(
        said.is_empty() || said.starts_with("HTTP/1.1 429"),
        "{said}"
    );

    crowd.clear();
    eventually("room for a new client", || {
        let mut new = Connection::open(server.http);
        new.start("GET", "/v1/streams/s/records/k7", &[], b"");
        new.answer_or_end().filter(|answer| answer.status == 200)
    });
    eventually("the descriptors to come back", || {
        (open_descriptors(&server) <= before + segments).then_some(())
    });
    server.assert_alive();
    server.stop();
}
