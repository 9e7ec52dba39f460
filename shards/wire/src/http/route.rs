//! Method and target to what they mean.
//!
//! Invariant: nothing is allocated unless a percent escape has to be decoded or a cursor is read. It does not know
//! the body; [`Route`] values come out with an empty one.

use std::borrow::Cow;

use super::head::Head;
use super::preconditions::{Preconditions, condition};
use super::query::{Param, Query, decode, read_cursor};
use super::{Checked, Rejection, Route, reject};
use crate::model::{refuse_key, refuse_stream_name};
use crate::{
    Code, ContentType, Durability, KEY_BYTES_MAX, Policy, Refusal, WAIT_MS_MAX,
    stream_name_is_valid,
};

/// How long a tail waits when the request does not say.
const WAIT_MS_DEFAULT: u32 = 30_000;

/// A known path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place<'a> {
    Streams,
    Stream(&'a str),
    Records(&'a str),
    Record(&'a str, &'a str),
    History(&'a str, &'a str),
    Scan(&'a str),
    Tail(&'a str),
    Topology,
    Healthz,
    Readyz,
    Metrics,
    OpenApi,
}

impl<'a> Place<'a> {
    #[inline]
    fn of(path: &'a str) -> Option<Place<'a>> {
        let Some(below) = path.strip_prefix("/v1/streams") else {
            return Some(match path {
                "/v1/topology" => Place::Topology,
                "/v1/openapi.json" => Place::OpenApi,
                "/healthz" => Place::Healthz,
                "/readyz" => Place::Readyz,
                "/metrics" => Place::Metrics,
                _ => return None,
            });
        };
        if below.is_empty() {
            return Some(Place::Streams);
        }
        let (stream, below) = cut(below.strip_prefix('/')?);
        let Some(below) = below else {
            return (!stream.is_empty()).then_some(Place::Stream(stream));
        };
        let (what, below) = cut(below);
        match (what, below) {
            ("records", None) => Some(Place::Records(stream)),
            ("scan", None) => Some(Place::Scan(stream)),
            ("tail", None) => Some(Place::Tail(stream)),
            ("records", Some(below)) => match cut(below) {
                (key, None) => Some(Place::Record(stream, key)),
                (key, Some("history")) => Some(Place::History(stream, key)),
                _ => None,
            },
            _ => None,
        }
    }

    fn allow(self) -> &'static str {
        match self {
            Place::Records(_) => "POST",
            Place::Record(..) => "GET, HEAD, POST, DELETE",
            Place::Stream(_) => "GET, HEAD, PUT",
            _ => "GET, HEAD",
        }
    }
}

/// Up to the first slash, and what is behind it.
#[inline]
fn cut(path: &str) -> (&str, Option<&str>) {
    match memchr::memchr(b'/', path.as_bytes()) {
        Some(at) => (&path[..at], Some(&path[at + 1..])),
        None => (path, None),
    }
}

pub(super) fn resolve<'a>(method: &str, target: &'a str, head: &Head<'a>) -> Checked<Route<'a>> {
    let target = origin_form(target);
    let (path, query) = match memchr::memchr(b'?', target.as_bytes()) {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, ""),
    };
    let Some(place) = Place::of(path) else {
        return reject(
            Code::NotFound,
            "no such path: see /v1/openapi.json for those there are; a slash in a key is written %2F",
        );
    };
    match (method, place) {
        ("GET" | "HEAD", Place::Record(name, key)) => {
            Query::read(query, &[])?;
            Ok(Route::Get {
                stream: stream(name)?,
                key: key_bytes(key)?,
                preconditions: Preconditions::of_read(head),
            })
        }
        ("POST", Place::Record(name, key)) => {
            let query = Query::read(query, &[Param::Durability])?;
            Ok(Route::Append {
                stream: stream(name)?,
                key: key_bytes(key)?,
                body: Cow::Borrowed(&[]),
                content_type: head
                    .content_type
                    .map_or(ContentType::OCTET_STREAM, ContentType::from_header),
                condition: condition(head)?,
                idempotency_key: head.idempotency_key,
                durability: query.durability()?,
            })
        }
        ("DELETE", Place::Record(name, key)) => {
            let query = Query::read(query, &[Param::Durability])?;
            if head.if_none_match.is_some() {
                return reject(
                    Code::Malformed,
                    "If-None-Match makes no sense with DELETE: use If-Match: \"version\"",
                );
            }
            Ok(Route::Delete {
                stream: stream(name)?,
                key: key_bytes(key)?,
                condition: condition(head)?,
                idempotency_key: head.idempotency_key,
                durability: query.durability()?,
            })
        }
        ("POST", Place::Records(name)) => {
            let query = Query::read(query, &[Param::Durability])?;
            append_many(stream(name)?, head, query.durability()?)
        }
        ("GET" | "HEAD", Place::History(name, key)) => {
            let query = Query::read(query, &[Param::Limit, Param::Before])?;
            Ok(Route::History {
                stream: stream(name)?,
                key: key_bytes(key)?,
                limit: query.limit()?,
                before: query.number(Param::Before, 0)?,
            })
        }
        ("GET" | "HEAD", Place::Scan(name)) => {
            let query = Query::read(query, &[Param::Cursor, Param::Limit])?;
            Ok(Route::Scan {
                stream: stream(name)?,
                cursor: query.cursor()?,
                limit: query.limit()?,
            })
        }
        ("GET" | "HEAD", Place::Tail(name)) => {
            let query = Query::read(query, &[Param::Cursor, Param::Limit, Param::WaitMs])?;
            // An answer to HEAD has no body, and would have no end.
            let event_stream = head.accepts_event_stream && method == "GET";
            // A browser reconnects to the address it first had; how far it came is in this field.
            let cursor = match head
                .last_event_id
                .filter(|id| event_stream && !id.is_empty())
            {
                Some(id) => Some(read_cursor(id)?),
                None => query.cursor()?,
            };
            Ok(Route::Tail {
                stream: stream(name)?,
                cursor,
                wait_ms: query
                    .number(Param::WaitMs, WAIT_MS_DEFAULT)?
                    .min(WAIT_MS_MAX),
                limit: query.limit()?,
                event_stream,
            })
        }
        ("PUT", Place::Stream(name)) => {
            Query::read(query, &[])?;
            Ok(Route::PutStream {
                stream: stream(name)?,
                policy: Policy::default(),
            })
        }
        ("GET" | "HEAD", place) => {
            let route = match place {
                Place::Stream(name) => Route::GetStream {
                    stream: stream(name)?,
                },
                Place::Streams => Route::ListStreams,
                Place::Topology => Route::Topology,
                Place::Healthz => Route::Healthz,
                Place::Readyz => Route::Readyz,
                Place::Metrics => Route::Metrics,
                Place::OpenApi => Route::OpenApi,
                other => return not_allowed(other),
            };
            Query::read(query, &[])?;
            Ok(route)
        }
        (_, other) => not_allowed(other),
    }
}

#[cold]
fn not_allowed<T>(place: Place<'_>) -> Checked<T> {
    let allow = place.allow();
    Err(Box::new(Rejection {
        refusal: Refusal::new(
            Code::MethodNotAllowed,
            format!("the path has no such method: use {allow}"),
        ),
        allow: Some(allow),
    }))
}

/// `http://host/path` is what proxies are sent, and a server must take it too (RFC 9112, section 3.2.2).
fn origin_form(target: &str) -> &str {
    if target.starts_with('/') {
        return target;
    }
    let Some((scheme, behind)) = target.split_once("://") else {
        return target;
    };
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return target;
    }
    match behind.find(['/', '?']) {
        Some(at) => &behind[at..],
        None => "/",
    }
}

fn append_many<'a>(stream: &'a str, head: &Head<'a>, durability: Durability) -> Checked<Route<'a>> {
    let named = head.content_type.unwrap_or_default();
    if !ContentType::from_header(named).is_ndjson() {
        return reject(
            Code::Malformed,
            format!(
                "Content-Type is {:?}: send application/x-ndjson, a line {{\"key\":…,\"value\":…}} per record",
                String::from_utf8_lossy(named)
            ),
        );
    }
    if head.if_match.is_some() || head.if_none_match.is_some() {
        return reject(
            Code::Malformed,
            "If-Match and If-None-Match are for single records: POST to records/{key}",
        );
    }
    Ok(Route::AppendMany {
        stream,
        body: Cow::Borrowed(&[]),
        idempotency_key: head.idempotency_key,
        durability,
    })
}

fn stream(name: &str) -> Checked<&str> {
    if stream_name_is_valid(name.as_bytes()) {
        return Ok(name);
    }
    if name.contains('%') {
        return reject(
            Code::Malformed,
            "stream name has a percent escape: write it as it is, none of A-Z a-z 0-9 . _ : - needs one",
        );
    }
    Err(refuse_stream_name(name.as_bytes()).into())
}

fn key_bytes(raw: &str) -> Checked<Cow<'_, [u8]>> {
    let key = decode(raw)?;
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(refuse_key(key.len()).into());
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        for (path, place) in [
            ("/v1/streams", Some(Place::Streams)),
            ("/v1/streams/", None),
            ("/v1/streamsx", None),
            ("/v1/streams/s", Some(Place::Stream("s"))),
            ("/v1/streams/s/", None),
            ("/v1/streams/s/records", Some(Place::Records("s"))),
            ("/v1/streams/s/records/", Some(Place::Record("s", ""))),
            ("/v1/streams/s/records/k", Some(Place::Record("s", "k"))),
            (
                "/v1/streams/s/records/history",
                Some(Place::Record("s", "history")),
            ),
            (
                "/v1/streams/s/records/k/history",
                Some(Place::History("s", "k")),
            ),
            ("/v1/streams/s/records/k/other", None),
            ("/v1/streams/s/records/a/b/history", None),
            ("/v1/streams/s/scan", Some(Place::Scan("s"))),
            ("/v1/streams/s/scan/", None),
            ("/v1/streams/s/tail", Some(Place::Tail("s"))),
            ("/v1/topology", Some(Place::Topology)),
            ("/metrics", Some(Place::Metrics)),
            ("/metrics/", None),
            ("/", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(Place::of(path), place, "{path}");
        }
    }

    #[test]
    fn absolute_form_is_taken() {
        assert_eq!(origin_form("http://h:1/v1/streams?x"), "/v1/streams?x");
        assert_eq!(origin_form("HTTPS://h/metrics"), "/metrics");
        assert_eq!(origin_form("http://h"), "/");
        assert_eq!(origin_form("ftp://h/metrics"), "ftp://h/metrics");
        assert_eq!(origin_form("/v1/streams"), "/v1/streams");
    }
}
