//! HTTP/1.1: requests from templates, answers through httparse and Content-Length.
//!
//! Answers come in the order of the requests, so the ids of a connection's requests wait in a queue.

use std::collections::VecDeque;
use std::io::Write as _;

use serde::Deserialize;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use super::{Answer, Dialect, Outcome, Protocol, Seen};
use crate::records::Records;

/// Largest head of an answer that is read; more is not the server that this is meant for.
const HEAD_BYTES_MAX: usize = 64 * 1024;

/// HTTP/1.1 on one connection.
pub struct Http {
    /// `/v1/streams/{stream}/records`.
    path: String,
    /// ` HTTP/1.1`, Host and Authorization, up to where further headers start.
    common: Vec<u8>,
    /// `?durability=buffered` or nothing.
    query: &'static str,
    /// One request's body is composed here, since its length goes before it.
    body: Vec<u8>,
    json: bool,
    asked: VecDeque<u64>,
}

/// Head of an answer.
struct Head {
    status: u16,
    head_bytes: usize,
    body_bytes: usize,
    /// From ETag.
    version: Option<u32>,
}

fn head(bytes: &[u8]) -> Result<Option<Head>, String> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut response = httparse::Response::new(&mut headers);
    let head_bytes = match response.parse(bytes) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(httparse::Status::Partial) => {
            return Err(format!("a head of more than {HEAD_BYTES_MAX} bytes"));
        }
        Err(error) => return Err(format!("not HTTP: {error}")),
    };
    let status = response.code.unwrap_or_default();
    let mut body_bytes = None;
    let mut version = None;
    for header in response.headers.iter() {
        let text = || std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            body_bytes = Some(
                text()
                    .parse()
                    .map_err(|_| format!("Content-Length: {}", text()))?,
            );
        } else if header.name.eq_ignore_ascii_case("etag") {
            version = text().trim_matches('"').parse().ok();
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(format!(
                "Transfer-Encoding: {}: answers with a Content-Length are expected",
                text()
            ));
        }
    }
    let body_bytes = match body_bytes {
        Some(body_bytes) => body_bytes,
        None if status == 204 || status == 304 => 0,
        None => return Err(format!("status {status} without Content-Length")),
    };
    Ok(Some(Head {
        status,
        head_bytes,
        body_bytes,
        version,
    }))
}

/// The body of the answer at the start of `bytes`; None when it is not whole yet. Err: not HTTP, or not a 200.
pub fn body(bytes: &[u8]) -> Result<Option<&[u8]>, String> {
    let Some(head) = head(bytes)? else {
        return Ok(None);
    };
    if head.status != 200 {
        return Err(format!("status {}", head.status));
    }
    Ok(bytes.get(head.head_bytes..head.head_bytes + head.body_bytes))
}

fn whole(answer: &[u8]) -> Result<(Head, &[u8]), String> {
    let head = head(answer)?.ok_or("an answer ends before its end")?;
    let body = answer
        .get(head.head_bytes..head.head_bytes + head.body_bytes)
        .ok_or("an answer ends before its end")?;
    Ok((head, body))
}

impl Http {
    fn request(&mut self, out: &mut Vec<u8>, id: u64, method: &str) {
        self.asked.push_back(id);
        out.extend_from_slice(method.as_bytes());
        out.extend_from_slice(self.path.as_bytes());
    }

    /// Ends the head and adds the body that was composed.
    fn finish_with_body(&mut self, out: &mut Vec<u8>, content_type: &[u8]) {
        out.extend_from_slice(self.query.as_bytes());
        out.extend_from_slice(&self.common);
        out.extend_from_slice(b"Content-Type: ");
        out.extend_from_slice(content_type);
        out.extend_from_slice(b"\r\nContent-Length: ");
        write!(out, "{}", self.body.len()).expect("writing to memory succeeds");
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(&self.body);
    }
}

impl Protocol for Http {
    fn new(dialect: &Dialect) -> Http {
        let mut common = b" HTTP/1.1\r\nHost: ".to_vec();
        common.extend_from_slice(dialect.address.as_bytes());
        common.extend_from_slice(b"\r\n");
        if let Some(token) = &dialect.token {
            common.extend_from_slice(b"Authorization: Bearer ");
            common.extend_from_slice(token);
            common.extend_from_slice(b"\r\n");
        }
        Http {
            path: format!("/v1/streams/{}/records", dialect.stream),
            common,
            query: match dialect.durability {
                wire::Durability::Durable => "",
                wire::Durability::Buffered => "?durability=buffered",
            },
            body: Vec::new(),
            json: dialect.json,
            asked: VecDeque::new(),
        }
    }

    fn append(&mut self, out: &mut Vec<u8>, id: u64, count: u32, records: &mut Records) {
        self.request(out, id, "POST ");
        self.body.clear();
        if count == 1 {
            let (key, payload) = records.deal();
            self.body.extend_from_slice(payload);
            out.push(b'/');
            // Key texts are digits and letters and one colon, which a path may hold as they are.
            out.extend_from_slice(key);
            self.finish_with_body(
                out,
                if self.json {
                    b"application/json"
                } else {
                    b"text/plain"
                },
            );
        } else {
            for _ in 0..count {
                let (key, payload) = records.deal();
                self.body.extend_from_slice(b"{\"key\":\"");
                self.body.extend_from_slice(key);
                self.body.extend_from_slice(b"\",\"value\":");
                self.body.extend_from_slice(payload);
                self.body.extend_from_slice(b"}\n");
            }
            self.finish_with_body(out, b"application/x-ndjson");
        }
    }

    fn get(&mut self, out: &mut Vec<u8>, id: u64, key: &[u8]) {
        self.request(out, id, "GET ");
        out.push(b'/');
        out.extend_from_slice(key);
        out.extend_from_slice(&self.common);
        out.extend_from_slice(b"\r\n");
    }

    fn history(&mut self, out: &mut Vec<u8>, id: u64, key: &[u8], before: u32, limit: u32) {
        self.request(out, id, "GET ");
        out.push(b'/');
        out.extend_from_slice(key);
        write!(out, "/history?limit={limit}").expect("writing to memory succeeds");
        if before > 0 {
            write!(out, "&before={before}").expect("writing to memory succeeds");
        }
        out.extend_from_slice(&self.common);
        out.extend_from_slice(b"\r\n");
    }

    fn answer(&mut self, bytes: &[u8]) -> Result<Option<Answer>, String> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let Some(head) = head(bytes)? else {
            return Ok(None);
        };
        let answer_bytes = head.head_bytes + head.body_bytes;
        if bytes.len() < answer_bytes {
            return Ok(None);
        }
        let id = self
            .asked
            .pop_front()
            .ok_or("an answer that was not asked for")?;
        let outcome = match head.status {
            200..=299 => Outcome::Good,
            404 => Outcome::NotFound,
            status => Outcome::Refused(status),
        };
        Ok(Some(Answer {
            id,
            outcome,
            bytes: answer_bytes,
        }))
    }

    fn versions(&self, answer: &[u8], versions: &mut Vec<u32>) -> Result<(), String> {
        #[derive(Deserialize)]
        struct Appended {
            version: Option<u32>,
        }
        let (_, body) = whole(answer)?;
        let appended: Appended = serde_json::from_slice(body)
            .map_err(|error| format!("answer to an append: {error}"))?;
        versions.extend(appended.version); // NDJSON appends do not say their versions
        Ok(())
    }

    fn newest(&self, answer: &[u8]) -> Result<Seen, String> {
        let (head, body) = whole(answer)?;
        let version = head.version.ok_or("a get without ETag")?;
        Ok(Seen {
            version,
            hash: xxh3_64(body),
        })
    }

    fn listed(&self, answer: &[u8]) -> Result<Vec<Seen>, String> {
        #[derive(Deserialize)]
        struct Line<'a> {
            version: u32,
            #[serde(borrow)]
            value: Option<&'a RawValue>,
        }
        let (_, body) = whole(answer)?;
        let mut seen = Vec::new();
        for line in body
            .split(|&byte| byte == b'\n')
            .filter(|line| !line.is_empty())
        {
            let line: Line = serde_json::from_slice(line)
                .map_err(|error| format!("line of a history: {error}"))?;
            let Some(value) = line.value else { continue }; // a tombstone, or bytes that this program never writes
            let text: String = serde_json::from_str(value.get()).unwrap_or_default();
            // What was written is the text itself (text/plain) or the JSON string as it stands.
            let hash = if self.json {
                xxh3_64(value.get().as_bytes())
            } else {
                xxh3_64(text.as_bytes())
            };
            seen.push(Seen {
                version: line.version,
                hash,
            });
        }
        Ok(seen)
    }

    fn refusal_name(number: u16) -> String {
        format!("http {number}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::{KeyDraw, KeyText, Payloads};

    fn http(json: bool) -> Http {
        Http::new(&Dialect {
            address: "127.0.0.1:7500".into(),
            stream: "s".into(),
            durability: wire::Durability::Buffered,
            want_versions: false,
            limit: 10,
            token: Some(b"secret".to_vec()),
            json,
        })
    }

    fn records(quoted: bool) -> Records {
        Records {
            draw: KeyDraw::in_order(7..100),
            text: KeyText::new(7, 100),
            payloads: Payloads::new(4, quoted, None, 1),
            written: None,
        }
    }

    #[test]
    fn requests_are_these_bytes() {
        let mut out = Vec::new();
        http(false).append(&mut out, 1, 1, &mut records(false));
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert_eq!(
            head,
            "POST /v1/streams/s/records/key:007?durability=buffered HTTP/1.1\r\nHost: 127.0.0.1:7500\r\n\
             Authorization: Bearer secret\r\nContent-Type: text/plain\r\nContent-Length: 4"
        );
        assert_eq!(body.len(), 4);

        let mut out = Vec::new();
        http(true).append(&mut out, 1, 2, &mut records(true));
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.ends_with(&format!(
                "Content-Type: application/x-ndjson\r\nContent-Length: {}",
                body.len()
            )),
            "{head}"
        );
        for line in body.lines() {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert!(line["key"].as_str().unwrap().starts_with("key:"));
            assert_eq!(line["value"].as_str().unwrap().len(), 2);
        }
    }

    #[test]
    fn answers_are_found_at_every_split() {
        let bytes = b"HTTP/1.1 201 Created\r\ncontent-length: 13\r\nETag: \"5\"\r\n\r\n{\"version\":5}HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        let first_bytes = bytes.windows(5).rposition(|w| w == b"HTTP/").unwrap();
        for end in 0..=bytes.len() {
            let mut http = http(false);
            http.asked.extend([11, 12]);
            let first = http.answer(&bytes[..end]).unwrap();
            if end < first_bytes {
                assert_eq!(first, None);
                continue;
            }
            assert_eq!(
                first,
                Some(Answer {
                    id: 11,
                    outcome: Outcome::Good,
                    bytes: first_bytes
                })
            );
            let second = http.answer(&bytes[first_bytes..end]).unwrap();
            assert_eq!(second.is_some(), end == bytes.len());
        }
        let mut versions = Vec::new();
        http(false)
            .versions(&bytes[..first_bytes], &mut versions)
            .unwrap();
        assert_eq!(versions, [5]);
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_an_error() {
        assert!(
            http(false)
                .answer(b"HTTP/1.1 204 No Content\r\n\r\n")
                .is_err()
        );
        assert!(http(false).answer(b"SSH-2.0-OpenSSH_9\r\n").is_err());
    }
}
