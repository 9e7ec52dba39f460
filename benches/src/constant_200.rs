//! What is the most that `wrk` can get out of this ring?
//!
//! An HTTP server that does nothing but count empty lines: for each request the same 200, of the very bytes that a GET of a 256-byte
//! record is answered with. It waits as the engine waits. The engine's GET is held against this, under the same `wrk`.

use std::time::{Duration, Instant};

use memchr::memmem::Finder;
use wire::http;
use wire::http::reply::General;

use crate::frame_parse::record_out;
use crate::machine;
use crate::ring_server::{Answers, listen, serve};

/// The engine's spin, unless it is told otherwise.
const SPIN: Duration = Duration::from_micros(200);
const PAYLOAD_BYTES: usize = 256;
const END_OF_HEAD: &[u8; 4] = b"\r\n\r\n";

/// Serve on 127.0.0.1, for `seconds` or until the process is ended. `spin_us`: None = as the engine.
///
/// # Errors
/// A port or a core that is not to be had; what the ring says.
pub fn run(
    port: u16,
    core: usize,
    spin_us: Option<u64>,
    seconds: Option<f64>,
) -> anyhow::Result<()> {
    machine::pin(core)?;
    let (listener, address) = listen(port)?;
    let response = response();
    println!("# {}", machine::line());
    println!(
        "listening on {address}, core {core}: {} bytes for every request",
        response.len()
    );
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let spin = spin_us.map_or(SPIN, Duration::from_micros);
    serve(listener, Constant::new(response), spin, end)
}

/// What the engine answers, for a record whose lsn has as many digits as after a million appends.
fn response() -> Vec<u8> {
    let mut out = Vec::new();
    let payload = vec![b'x'; PAYLOAD_BYTES];
    let general = General {
        keep_alive: true,
        unix_seconds: 1_700_000_000,
    };
    http::reply::record(&mut out, general, false, &record_out(&payload, 1_000_000));
    out
}

struct Constant {
    response: Vec<u8>,
    finder: Finder<'static>,
}

impl Constant {
    fn new(response: Vec<u8>) -> Constant {
        Constant {
            response,
            finder: Finder::new(END_OF_HEAD),
        }
    }
}

impl Answers for Constant {
    /// How many bytes of [`END_OF_HEAD`] the last receive ended with.
    type State = usize;

    fn answer(&mut self, matched: &mut usize, mut received: &[u8], out: &mut Vec<u8>) -> bool {
        while *matched > 0 && !received.is_empty() {
            *matched = step(*matched, received[0]);
            received = &received[1..];
            if *matched == END_OF_HEAD.len() {
                out.extend_from_slice(&self.response);
                *matched = 0;
            }
        }
        let mut behind = 0;
        for at in self.finder.find_iter(received) {
            out.extend_from_slice(&self.response);
            behind = at + END_OF_HEAD.len();
        }
        let rest = &received[behind.max(received.len().saturating_sub(END_OF_HEAD.len() - 1))..];
        for byte in rest {
            *matched = step(*matched, *byte);
        }
        true
    }
}

/// Bytes of [`END_OF_HEAD`] that match after one more byte.
fn step(matched: usize, byte: u8) -> usize {
    match byte {
        b if b == END_OF_HEAD[matched] => matched + 1,
        b'\r' => 1,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpStream;

    const REQUEST: &[u8] = b"GET /v1/streams/s/records/k HTTP/1.1\r\nHost: x\r\nX: \r\r\n\r\n";

    #[test]
    fn requests_are_counted_however_they_are_cut() {
        let stream = REQUEST.repeat(3);
        for cut in 0..stream.len() {
            for second in cut..stream.len() {
                let mut server = Constant::new(b"!".to_vec());
                let (mut state, mut out) = (0, Vec::new());
                for part in [&stream[..cut], &stream[cut..second], &stream[second..]] {
                    assert!(server.answer(&mut state, part, &mut out));
                }
                assert_eq!(out, b"!!!", "cut at {cut} and {second}");
            }
        }
    }

    #[test]
    fn the_response_is_the_engines() {
        let text = String::from_utf8(response()).unwrap();
        for field in [
            "Content-Type: ",
            "Content-Length: 256\r\n",
            "ETag: ",
            "X-Pinion-Position: 0:1000000",
            "Last-Modified: ",
        ] {
            assert!(text.contains(field), "{text}");
        }
    }

    #[test]
    fn pipelined_requests_get_a_response_each() {
        let (listener, address) = listen(0).unwrap();
        let end = Instant::now() + Duration::from_millis(400);
        let server =
            std::thread::spawn(move || serve(listener, Constant::new(response()), SPIN, Some(end)));
        let mut client = TcpStream::connect(address).unwrap();
        client
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        let mut got = vec![0; response().len() * 200];
        client.write_all(&REQUEST.repeat(100)).unwrap();
        client.write_all(&REQUEST.repeat(100)).unwrap();
        client.read_exact(&mut got).unwrap();
        assert!(got.chunks(response().len()).all(|one| one == response()));
        server.join().unwrap().unwrap();
    }
}
