//! HTTP/1.1 on one connection: order of pipelined answers, bodies in chunks, `Expect`, who closes when.

use crate::http::{Connection, request};
use crate::server::{Server, directory};

#[test]
fn pipelined_requests_are_answered_in_order() {
    for shards in [1, 2] {
        let data = directory();
        let server = Server::start(data.path(), shards);
        let mut http = server.http();
        assert_eq!(http.post("/v1/streams/s/records/warm", "warm").status, 201);
        // Durable writes wait for the disk, reads of a hot key and errors do not; over two shards half of all hop.
        let mut bytes = Vec::new();
        for i in 0..200 {
            bytes.extend(request(
                "POST",
                &format!("/v1/streams/s/records/k{i}"),
                &[],
                format!("v{i}").as_bytes(),
            ));
            bytes.extend(request("GET", "/v1/streams/s/records/warm", &[], b""));
            bytes.extend(request(
                "GET",
                &format!("/v1/streams/s/records/k{i}"),
                &[],
                b"",
            ));
            bytes.extend(request("GET", &format!("/no/such/path/{i}"), &[], b""));
        }
        let mut writer = http.socket.try_clone().expect("a second handle");
        let sender = std::thread::spawn(move || std::io::Write::write_all(&mut writer, &bytes));
        for i in 0..200 {
            assert_eq!(
                http.response().json()["version"],
                1,
                "write {i} of {shards} shards"
            );
            assert_eq!(http.response().text(), "warm");
            // It was asked for behind the write, so it sees the write.
            assert_eq!(
                http.response().text(),
                format!("v{i}"),
                "read {i} of {shards} shards"
            );
            http.response().problem(404, "not_found");
        }
        sender.join().expect("no panic").expect("all was read");
        server.stop();
    }
}

#[test]
fn bytes_that_come_one_at_a_time_make_the_same_requests() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let mut bytes = request(
        "POST",
        "/v1/streams/s/records/k",
        &["Idempotency-Key: once"],
        b"slow",
    );
    bytes.extend(request("GET", "/v1/streams/s/records/k", &[], b""));
    for byte in &bytes {
        http.send([*byte]);
    }
    assert_eq!(http.response().status, 201);
    assert_eq!(http.response().text(), "slow");
    server.stop();
}

#[test]
fn chunked_bodies_are_joined() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let chunked = ["Transfer-Encoding: chunked"];
    let body = b"4\r\nWiki\r\n6;ext=1\r\npedia \r\n0\r\nTrailer: x\r\n\r\n";
    assert_eq!(
        http.call("POST", "/v1/streams/s/records/k", &chunked, body)
            .status,
        201
    );
    assert_eq!(http.get("/v1/streams/s/records/k").text(), "Wikipedia ");
    let ndjson = [
        "Transfer-Encoding: chunked",
        "Content-Type: application/x-ndjson",
    ];
    let line = b"{\"key\":\"a\",\"value\":1}\n{\"key\":\"b\",\"value\":2}\n";
    let body = line
        .iter()
        .flat_map(|b| [b"1\r\n", &[*b][..], b"\r\n"].concat())
        .chain(*b"0\r\n\r\n")
        .collect::<Vec<u8>>();
    assert_eq!(
        http.call("POST", "/v1/streams/s/records", &ndjson, body)
            .json()["appended"],
        2
    );
    http.call("POST", "/v1/streams/s/records/k", &chunked, b"zz\r\n")
        .problem(400, "malformed");
    http.assert_closed();
    server.stop();
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let head = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nHost: t\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n"
        )
    };
    for _ in 0..2 {
        http.send(head("/v1/streams/s/records/k"));
        assert_eq!(http.response().status, 100);
        http.send("body");
        assert_eq!(http.response().status, 201);
    }
    assert_eq!(
        http.get("/v1/streams/s/records/k").header("etag"),
        Some("\"2\"")
    );
    // A refused head: the body is not asked for, and the connection ends.
    http.send(head("/v1/streams/bad%20name/records/k"));
    http.response().problem(400, "malformed");
    http.assert_closed();
    server.stop();
}

#[test]
fn connections_are_kept_or_closed_as_asked() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let mut http = server.http();
    let last = http.call("GET", "/healthz", &["Connection: close"], "");
    assert_eq!(
        (last.status, last.header("connection")),
        (200, Some("close"))
    );
    http.assert_closed();

    let mut old = server.http();
    old.send("GET /healthz HTTP/1.0\r\n\r\n");
    assert_eq!(old.response().header("connection"), Some("close"));
    old.assert_closed();

    // Half closed: what was asked is still answered.
    let mut half = server.http();
    half.start("POST", "/v1/streams/s/records/k", &[], b"x");
    half.socket
        .shutdown(std::net::Shutdown::Write)
        .expect("open");
    assert_eq!(half.response().status, 201);
    half.assert_closed();

    // What leaves the end of the request open is refused and closed, whatever follows.
    for bad in [
        "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: t\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST /v1/streams/s/records/k HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n",
        "GET /healthz HTTP/1.1\r\nHo st: t\r\n\r\n",
        "GET  /healthz HTTP/3\r\n\r\n",
        "\u{0}\u{1}\u{2}\r\n\r\n",
    ] {
        let mut http = Connection::open(server.http);
        http.send(bad);
        let response = http.response();
        response.problem(400, "malformed");
        assert_eq!(response.header("connection"), Some("close"), "{bad:?}");
        http.assert_closed();
    }
    assert_eq!(
        server.http().get("/v1/streams/s/records/k").header("etag"),
        Some("\"1\""),
        "none of that was appended"
    );
    server.stop();
}
