//! A plain HTTP/1.1 client over one socket: bytes out, responses in, nothing hidden but their date.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use crate::server::PATIENCE;

/// One connection.
pub struct Connection {
    pub socket: TcpStream,
    input: Vec<u8>,
}

/// One response as it came, but for its `Date`: two equal answers come at different times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    /// A header field by its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self
            .headers
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
    #[track_caller]
    fn take_date(&mut self) {
        let at = self.headers.iter().position(|(name, _)| name == "Date");
        let at = at.unwrap_or_else(|| panic!("no Date in {:?}", self.headers));
        let (_, date) = self.headers.remove(at);
        assert!(date.len() == 29 && date.ends_with(" GMT"), "{date}");
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in {:?}", self.text()))
    }
    /// The body as one JSON value per line.
    #[track_caller]
    pub fn lines(&self) -> Vec<serde_json::Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/x-ndjson"));
        let line =
            |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e} in {line}"));
        self.text().lines().map(line).collect()
    }
    /// Holds status and problem document; returns its detail.
    #[track_caller]
    pub fn problem(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(
            self.header("content-type"),
            Some("application/problem+json")
        );
        let json = self.json();
        assert_eq!(json["status"], status);
        assert_eq!(json["code"], code);
        assert_eq!(json["type"], format!("urn:pinion:problem:{code}"));
        assert!(json["title"].as_str().is_some_and(|t| !t.is_empty()));
        let detail = json["detail"].as_str().unwrap_or_default();
        assert!(!detail.is_empty(), "no detail in {json}");
        detail.to_owned()
    }
}

impl Connection {
    #[track_caller]
    pub fn open(address: SocketAddr) -> Connection {
        let socket = TcpStream::connect(address).expect("the server takes connections");
        socket.set_nodelay(true).expect("a TCP socket");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Connection {
            socket,
            input: Vec::new(),
        }
    }

    #[track_caller]
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.socket
            .write_all(bytes.as_ref())
            .expect("the server reads");
    }

    /// One request with header lines (each without its line end) and a body; sent, not awaited.
    #[track_caller]
    pub fn start(&mut self, method: &str, target: &str, headers: &[&str], body: &[u8]) {
        self.send(request(method, target, headers, body));
    }

    #[track_caller]
    pub fn call(
        &mut self,
        method: &str,
        target: &str,
        headers: &[&str],
        body: impl AsRef<[u8]>,
    ) -> Response {
        self.start(method, target, headers, body.as_ref());
        self.response_to(method)
    }
    #[track_caller]
    pub fn get(&mut self, target: &str) -> Response {
        self.call("GET", target, &[], b"")
    }
    #[track_caller]
    pub fn post(&mut self, target: &str, body: impl AsRef<[u8]>) -> Response {
        self.call("POST", target, &[], body)
    }

    /// Bytes up to and with `end`.
    #[track_caller]
    pub fn read_until(&mut self, end: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.input.windows(end.len()).position(|w| w == end) {
                let rest = self.input.split_off(at + end.len());
                return std::mem::replace(&mut self.input, rest);
            }
            assert!(
                self.read_some(),
                "closed after {:?}",
                String::from_utf8_lossy(&self.input)
            );
        }
    }

    /// A socket with a timeout is interrupted when the whole process is stopped and goes on: signal(7).
    fn read_now(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.socket.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => return read,
            }
        }
    }

    #[track_caller]
    fn read_some(&mut self) -> bool {
        let mut buffer = [0; 65536];
        let got = self
            .read_now(&mut buffer)
            .expect("the server answers in time");
        self.input.extend_from_slice(&buffer[..got]);
        got > 0
    }

    /// The next response; None if the connection ends instead.
    #[allow(dead_code, reason = "used by the tests under faults")]
    #[track_caller]
    pub fn answer_or_end(&mut self) -> Option<Response> {
        let mut buffer = [0; 4096];
        while !self.input.windows(4).any(|w| w == b"\r\n\r\n") {
            match self.read_now(&mut buffer) {
                Ok(0) | Err(_) => return None,
                Ok(got) => self.input.extend_from_slice(&buffer[..got]),
            }
        }
        Some(self.response())
    }

    #[track_caller]
    pub fn response(&mut self) -> Response {
        self.response_to("GET")
    }

    #[track_caller]
    pub fn response_to(&mut self, method: &str) -> Response {
        let head = String::from_utf8(self.read_until(b"\r\n\r\n")).expect("an ASCII head");
        let mut lines = head.trim_end().split("\r\n");
        let status = lines
            .next()
            .and_then(|l| l.strip_prefix("HTTP/1.1 "))
            .and_then(|l| l.get(..3)?.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("no status line in {head:?}"));
        let field = |line: &str| {
            let (name, value) = line
                .split_once(": ")
                .unwrap_or_else(|| panic!("a header line without colon: {line:?}"));
            (name.to_owned(), value.to_owned())
        };
        let mut response = Response {
            status,
            headers: lines.map(field).collect(),
            body: Vec::new(),
        };
        if status >= 200 {
            response.take_date();
        }
        let bodiless = method == "HEAD" || matches!(status, 100 | 204 | 304);
        if !bodiless && response.header("content-type") != Some("text/event-stream") {
            let length = response
                .header("content-length")
                .and_then(|l| l.parse().ok());
            let length: usize = length.unwrap_or_else(|| panic!("no Content-Length in {head:?}"));
            while self.input.len() < length {
                assert!(self.read_some(), "closed inside a body of {length} bytes");
            }
            let rest = self.input.split_off(length);
            response.body = std::mem::replace(&mut self.input, rest);
        }
        response
    }

    /// The server closes without another byte.
    #[track_caller]
    pub fn assert_closed(&mut self) {
        let mut buffer = [0; 4096];
        match self.read_now(&mut buffer) {
            Ok(0) => {}
            // Unread bytes of ours make the kernel reset instead.
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
            other => panic!(
                "not closed: {other:?}, {:?}",
                String::from_utf8_lossy(&buffer)
            ),
        }
        assert!(
            self.input.is_empty(),
            "unexpected: {:?}",
            String::from_utf8_lossy(&self.input)
        );
    }
}

/// The bytes of a request.
pub fn request(method: &str, target: &str, headers: &[&str], body: &[u8]) -> Vec<u8> {
    let mut out = format!("{method} {target} HTTP/1.1\r\nHost: test\r\n");
    for header in headers {
        out += header;
        out += "\r\n";
    }
    let framed = headers
        .iter()
        .any(|h| h.to_ascii_lowercase().starts_with("transfer-encoding"));
    if !framed && (!body.is_empty() || matches!(method, "POST" | "PUT")) {
        out += &format!("Content-Length: {}\r\n", body.len());
    }
    out += "\r\n";
    let mut out = out.into_bytes();
    out.extend_from_slice(body);
    out
}

/// Pages through a scan by HTTP to its end.
#[track_caller]
pub fn scan(connection: &mut Connection, stream: &str, limit: usize) -> Vec<serde_json::Value> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    loop {
        let page = connection.get(&format!(
            "/v1/streams/{stream}/scan?limit={limit}&cursor={cursor}"
        ));
        let lines = page.lines();
        assert!(lines.len() <= limit, "{} lines of {limit}", lines.len());
        if lines.is_empty() {
            return all;
        }
        all.extend(lines);
        cursor = page
            .header("x-pinion-cursor")
            .expect("a page with records has a cursor")
            .to_owned();
    }
}
