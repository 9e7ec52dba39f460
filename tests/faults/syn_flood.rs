//! Handshakes that are begun and never ended, from addresses that do not answer (RFC 4987): whoever means it still gets in.
//!
//! In a network namespace of its own, which the test runs itself in: the packets are made by hand, and nothing of them leaves.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};

use crate::clients::{assert_nothing_left, beside};
use crate::descriptors::open_sockets;
use crate::http::Connection;
use crate::number_from;
use crate::oracle::Random;
use crate::server::{Server, directory};
use crate::skipped;

const NAME: &str = "syn_flood::handshakes_that_nobody_ends_keep_nobody_out";
/// Set in the namespace.
const INSIDE: &str = "PINION_TEST_NAMESPACE";
/// Answers to 192.0.2.0/24 (RFC 5737: nobody has these addresses) go into a cable whose other end listens to nobody, also those
/// from the loopback address that the server listens on.
const SET_UP: &str = "ip link set lo up && ip link add out type veth peer name in && ip link set out arp off up \
    && ip link set in arp off up && ip route add 192.0.2.0/24 dev out \
    && echo 1 > /proc/sys/net/ipv4/conf/out/route_localnet";

#[test]
fn handshakes_that_nobody_ends_keep_nobody_out() {
    if std::env::var_os(INSIDE).is_some() {
        return flooded();
    }
    let namespace = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script]);
        command
    };
    let possible = namespace(SET_UP).output();
    if !possible.is_ok_and(|output| output.status.success()) {
        return skipped(
            "a SYN flood",
            "needs root, unshare and ip (util-linux, iproute2)",
        );
    }
    let this = std::env::current_exe().expect("a test runs");
    let output = namespace(&format!(
        "{SET_UP} && exec \"$0\" --exact {NAME} --nocapture"
    ))
    .arg(this)
    .env(INSIDE, "1")
    .output()
    .expect("it has started before");
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{said}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn flooded() {
    let least = number_from("PINION_ATTACKERS", 300) as usize * 100;
    let data = directory();
    let mut server = Server::start(data.path(), 2);
    let before = open_sockets(&server);
    let with_header = Some(Protocol::from(IPPROTO_RAW));
    let socket = Socket::new(Domain::IPV4, Type::RAW, with_header).expect("root");
    let targets = [server.http, server.native].map(|address| match address {
        SocketAddr::V4(address) => address,
        SocketAddr::V6(address) => panic!("{address}"),
    });
    let got_in = AtomicBool::new(true);
    let (sent, newcomers) = beside(&server, "a SYN flood", |done| {
        std::thread::scope(|scope| {
            // Whoever comes while it lasts is let in.
            let newcomers = scope.spawn(|| {
                let mut waited = Vec::new();
                while !done.load(Ordering::Relaxed) || waited.len() < 20 {
                    let since = Instant::now();
                    let mut http = Connection::open(server.http);
                    got_in.fetch_and(http.get("/healthz").status == 200, Ordering::Relaxed);
                    waited.push(since.elapsed());
                    std::thread::sleep(Duration::from_millis(20));
                }
                waited
            });
            let (mut sent, mut random) = (0, Random(7));
            while !done.load(Ordering::Relaxed) || sent < least {
                for target in targets {
                    let from = Ipv4Addr::new(192, 0, 2, 1 + random.below(250) as u8);
                    let from = SocketAddrV4::new(from, 1024 + random.below(60_000) as u16);
                    let packet = syn(from, target, random.next() as u32);
                    sent += usize::from(socket.send_to(&packet, &target.into()).is_ok());
                }
                // As for connections: a thread that takes a whole core would measure the scheduler.
                if sent % 64 == 0 {
                    std::thread::sleep(Duration::from_micros(500));
                }
            }
            (sent, newcomers.join().expect("no panic"))
        })
    });
    let cookies = host_metric(&server, "pinion_host_syn_cookies_total");
    let slowest = newcomers.iter().max().expect("there were some");
    println!(
        "{sent} handshakes were begun, {cookies} answered unremembered; {} newcomers got in, the slowest in {slowest:?}",
        newcomers.len()
    );
    assert!(got_in.load(Ordering::Relaxed));
    // A lost SYN is sent again after a second: none was lost.
    assert!(*slowest < Duration::from_millis(900), "{slowest:?}");
    assert!(cookies > 1000.0, "the queue was never full: {cookies}");
    assert_nothing_left(&server, before);
    server.assert_alive();
    server.stop();
}

fn host_metric(server: &Server, name: &str) -> f64 {
    let text = server.http().get("/metrics").text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.unwrap_or_else(|| panic!("no {name}"));
    value.trim().parse().expect("a number")
}

/// What is sent begins with its IP header: raw(7).
const IPPROTO_RAW: i32 = 255;
const TCP: u8 = 6;
const SYN: u8 = 2;

/// The first packet of a handshake (RFC 791, RFC 9293).
fn syn(from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> [u8; 40] {
    let mut packet = [0; 40];
    let (ip, tcp) = packet.split_at_mut(20);
    // Version and length of the header in words; length and checksum are filled in by the kernel.
    ip[0] = 0x45;
    ip[8] = 64;
    ip[9] = TCP;
    ip[12..16].copy_from_slice(&from.ip().octets());
    ip[16..20].copy_from_slice(&to.ip().octets());
    tcp[0..2].copy_from_slice(&from.port().to_be_bytes());
    tcp[2..4].copy_from_slice(&to.port().to_be_bytes());
    tcp[4..8].copy_from_slice(&sequence.to_be_bytes());
    tcp[12] = 5 << 4;
    tcp[13] = SYN;
    tcp[14..16].copy_from_slice(&u16::MAX.to_be_bytes());
    // Over a header of its own too: addresses, protocol, length.
    let words = |bytes: &[u8]| -> u32 {
        let pairs = bytes.chunks_exact(2);
        pairs
            .map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])))
            .sum()
    };
    let mut sum = words(&ip[12..20]) + u32::from(TCP) + tcp.len() as u32 + words(tcp);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    tcp[16..18].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    packet
}
