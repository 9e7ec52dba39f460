//! What `pinion serve` will not do, and how it says so: in one line that names the fix.

use std::path::Path;

use client::{Client, Code, ConnectOptions, Error};

use crate::server::{SMALL, Server, directory, pinion, run};

/// Runs `serve` on `data`, which must end with `code` and say all of `wanted`.
#[track_caller]
fn refused(data: &Path, flags: &[&str], code: i32, wanted: &[&str]) {
    let data = data.to_str().expect("a UTF-8 path");
    let mut command = pinion(&[
        "serve",
        "--data",
        data,
        "--port",
        "0",
        "--http-port",
        "0",
        "--memory",
        "1GiB",
    ]);
    let (_, stderr) = run(command.args(flags), code);
    for text in wanted {
        assert!(stderr.contains(text), "{text:?} is not in: {stderr}");
    }
}

#[test]
fn a_directory_in_use_is_refused_and_its_owner_goes_on() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    refused(
        data.path(),
        &[],
        1,
        &["another process is using this data directory"],
    );
    let data_text = data.path().to_str().expect("UTF-8");
    let (_, stderr) = run(&mut pinion(&["verify", data_text]), 1);
    assert!(
        stderr.contains("in use") || stderr.contains("using"),
        "{stderr}"
    );
    assert_eq!(
        server.http().post("/v1/streams/s/records/k", "x").status,
        201
    );
    server.stop();
    run(&mut pinion(&["verify", data_text]), 0);
}

#[test]
fn a_directory_keeps_its_number_of_shards_and_its_segment_size() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    server.http().post("/v1/streams/s/records/k", "x");
    server.stop();
    refused(
        data.path(),
        &["--shards", "1"],
        1,
        &["was made with 2 shards, not 1", "--shards 2"],
    );
    refused(
        data.path(),
        &["--shards", "2", "--segment-bytes", "8MiB"],
        1,
        &["4194304", "8388608", "--segment-bytes"],
    );
    // Without the flags the directory knows.
    let mut server = Server::spawn(data.path(), &["--memory", "1GiB"]);
    server.wait_until_ready();
    assert!(
        server.banner().contains("on 2 shards"),
        "{}",
        server.banner()
    );
    assert_eq!(server.http().get("/v1/streams/s/records/k").text(), "x");
    server.stop();
}

#[test]
fn a_filesystem_without_direct_io_is_named_with_its_fix() {
    let Ok(memory) = tempfile::Builder::new()
        .prefix("pinion-")
        .tempdir_in("/dev/shm")
    else {
        println!("no /dev/shm here: nothing to see");
        return;
    };
    refused(
        memory.path(),
        &["--shards", "1"],
        1,
        &[
            "tmpfs",
            "O_DIRECT",
            "choose a data directory on ext4 or XFS",
        ],
    );
    let left: Vec<_> = std::fs::read_dir(memory.path())
        .expect("there")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    assert!(left.is_empty(), "a refused start leaves {left:?}");
}

#[test]
fn what_is_not_a_data_directory_is_not_made_one() {
    let data = directory();
    std::fs::write(data.path().join("superblock-a"), b"not ours").expect("written");
    refused(data.path(), &["--shards", "1"], 1, &["superblock"]);
    assert_eq!(
        std::fs::read(data.path().join("superblock-a")).expect("there"),
        b"not ours"
    );

    let data = directory();
    std::fs::write(data.path().join("file"), b"x").expect("written");
    refused(
        &data.path().join("file"),
        &["--shards", "1"],
        1,
        &["--data"],
    );

    let data = directory();
    let server = Server::start(data.path(), 1);
    server.stop();
    for copy in ["superblock-a", "superblock-b"] {
        std::fs::remove_file(data.path().join(copy)).expect("there");
    }
    refused(
        data.path(),
        &["--shards", "1"],
        1,
        &["holds log directories but no superblock"],
    );
}

#[test]
fn a_port_that_is_taken_is_named() {
    let data = directory();
    let server = Server::start(data.path(), 1);
    let other = directory();
    let mut command = pinion(&[
        "serve",
        "--data",
        other.path().to_str().expect("UTF-8"),
        "--http-port",
        "0",
        "--memory",
        "1GiB",
        "--shards",
        "1",
    ]);
    let port = server.native.port().to_string();
    let (_, stderr) = run(command.args(["--port", &port, "--shard-ports", "false"]), 1);
    assert!(
        stderr.contains(&port) && stderr.contains("--port"),
        "{stderr}"
    );
    server.stop();
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let data = directory();
    let data = data.path().to_str().expect("UTF-8");
    let mut command = pinion(&[
        "serve",
        "--data",
        data,
        "--port",
        "0",
        "--http-port",
        "0",
        "--shards",
        "2",
        "--memory",
        "64MiB",
    ]);
    let (_, stderr) = run(&mut command, 1);
    assert!(stderr.contains("--memory at least"), "{stderr}");
}

#[test]
fn a_token_is_asked_for_on_every_door() {
    let files = directory();
    let file = files.path().join("token");
    std::fs::write(&file, "open sesame\n".replace(' ', "-")).expect("written");
    let file = file.to_str().expect("UTF-8");
    let data = directory();
    let server = Server::start_with(
        data.path(),
        2,
        &["--token-file", file, "--listen", "0.0.0.0"],
    );
    let native = format!("127.0.0.1:{}", server.native.port());
    let connect = |token: Option<&[u8]>| {
        let token = token.map(<[u8]>::to_vec);
        Client::connect(
            &native,
            ConnectOptions {
                token,
                ..ConnectOptions::default()
            },
        )
    };
    for wrong in [None, Some(&b"open"[..]), Some(b"open-sesame!")] {
        match connect(wrong) {
            Err(Error::Refused(refusal)) => {
                assert_eq!(refusal.code, Code::Unauthorized, "{}", refusal.message)
            }
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("let in with {wrong:?}"),
        }
    }
    let mut client = connect(Some(b"open-sesame")).expect("the right token");
    assert_eq!(
        client.shard_connections(),
        2,
        "the shards' own ports take it too"
    );
    client.ping().expect("served");
    let (said, _) = run(
        pinion(&[
            "append",
            "s",
            "k",
            "x",
            "--to",
            &native,
            "--token-file",
            file,
        ])
        .env_remove("PINION_TOKEN_FILE"),
        0,
    );
    assert!(said.contains("\"version\":1"), "{said}");
    run(&mut pinion(&["get", "s", "k", "--to", &native]), 1);

    let mut http = crate::http::Connection::open(([127, 0, 0, 1], server.http.port()).into());
    for headers in [
        &[][..],
        &["Authorization: Bearer open"],
        &["Authorization: Basic open-sesame"],
    ] {
        for (method, path) in [
            ("GET", "/v1/streams/s/records/k"),
            ("POST", "/v1/streams/s/records/k"),
            ("GET", "/v1/streams"),
            ("GET", "/metrics"),
            ("GET", "/v1/topology"),
        ] {
            let refused = http.call(method, path, headers, "");
            refused.problem(401, "unauthorized");
            assert_eq!(
                refused.header("www-authenticate"),
                Some("Bearer"),
                "{method} {path}"
            );
        }
    }
    assert_eq!(http.get("/healthz").status, 200, "probes carry no token");
    assert_eq!(
        http.call(
            "GET",
            "/v1/streams/s/records/k",
            &["Authorization: Bearer open-sesame"],
            ""
        )
        .text(),
        "x"
    );
    // A native frame without a hello is refused as well, and nothing is said of what is wrong with it.
    let mut good = Vec::new();
    wire::native::get(&mut good, 1, b"s", b"k");
    let (mut unknown, mut malformed) = (good.clone(), good.clone());
    unknown[4] = 77;
    *malformed.last_mut().expect("a frame") = 0;
    malformed[16] = 200;
    for bytes in [good, unknown, malformed] {
        let mut socket = std::net::TcpStream::connect(&native).expect("it listens");
        std::io::Write::write_all(&mut socket, &bytes).expect("read");
        let mut head = [0; 16];
        std::io::Read::read_exact(&mut socket, &mut head).expect("a reply");
        assert_eq!(
            Code::from_u16(u16::from_le_bytes([head[6], head[7]])),
            Some(Code::Unauthorized)
        );
    }
    server.stop();
}

#[test]
fn the_banner_tells_the_plan() {
    let data = directory();
    let server = Server::start(data.path(), 2);
    for label in [
        "  data ",
        "  shards ",
        "  memory ",
        "  native ",
        "  http ",
        "  sync ",
        "  durability ",
        "  ring ",
    ] {
        assert!(
            server.banner().contains(label),
            "{label} is not in:\n{}",
            server.banner()
        );
    }
    assert!(
        server.banner().contains("per shard")
            && server.banner().contains("per durable 4 KiB write"),
        "{}",
        server.banner()
    );
    assert!(SMALL.contains(&"1GiB"));
    server.stop();
}
