//! HTTP/1.1 on httparse: requests routed to what they mean; replies rendered.
//!
//! `head` reads the header fields, `preconditions` those about versions, `route` the method and path, `query` what is behind the path, `chunked` the body that comes in pieces, `reply`
//! writes. A request is answered by its meaning ([`Route`]); what comes out of it is the shard's business.
//!
//! Invariants: where one request ends and the next begins is never guessed. A head that leaves it open (two lengths,
//! a length and a transfer coding, a folded line) is refused and the connection closes (RFC 9112, sections 5.2, 6.3 and 11.2). A request
//! that is refused for what it asks is consumed whole, and the connection goes on. HTTP/1.0 is answered and closed.

mod chunked;
mod head;
mod preconditions;
mod query;
pub mod reply;
mod route;

use std::borrow::Cow;
use std::mem::MaybeUninit;

use crate::model::refuse_payload;
use crate::{Code, Condition, ContentType, Cursor, Durability, Policy, Refusal};
use chunked::{Measured, NotWhole};
use head::{Framing, Head};
pub use preconditions::{Preconditions, Tags, Verdict};

/// Most header fields of a request.
pub const HEADERS_MAX: usize = 64;

/// Bounds of one server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest head: request line, header fields, empty line.
    pub head_bytes_max: usize,
    /// Longest body, decoded.
    pub body_bytes_max: usize,
    /// Longest payload of a record. A client that asks before it sends a longer one is told so at once.
    pub payload_bytes_max: u32,
}

/// What stands at the start of the bytes.
#[derive(Debug)]
pub enum Parsed<'a> {
    /// Not a whole request yet.
    Incomplete {
        /// At least so many bytes in all are wanted.
        needed: usize,
        /// The client sent `Expect: 100-continue` and waits for it: true only while nothing of the body is there.
        expects_continue: bool,
    },
    /// A whole request.
    Request {
        /// Bytes of it, body included.
        consumed: usize,
        /// What it asks.
        request: Request<'a>,
        /// Whether the connection goes on behind it.
        keep_alive: bool,
    },
    /// Answer with the refusal.
    Refused {
        /// Some = the connection can go on behind it, None = close after the answer.
        consumed: Option<usize>,
        /// What to answer.
        refusal: Refusal,
        /// For the `Allow` field of a 405.
        allow: Option<&'static str>,
        /// Answer without a body.
        head: bool,
    },
}

/// What is asked, after routing. Keys are percent-decoded.
#[derive(Debug)]
pub struct Request<'a> {
    /// Which operation.
    pub route: Route<'a>,
    /// `Authorization: Bearer` value.
    pub bearer: Option<&'a [u8]>,
    /// A HEAD: answer as to GET, without the body.
    pub head: bool,
}

/// The operations. Stream names are valid, keys have 1 to 1024 bytes, limits are 1 to 10,000.
#[derive(Debug)]
pub enum Route<'a> {
    /// `POST /v1/streams/{stream}/records/{key}`
    Append {
        /// Stream name.
        stream: &'a str,
        /// Key bytes.
        key: Cow<'a, [u8]>,
        /// Payload; owned where it came in chunks.
        body: Cow<'a, [u8]>,
        /// As it came; `application/octet-stream` where none did.
        content_type: ContentType<'a>,
        /// From `If-Match` and `If-None-Match`.
        condition: Condition,
        /// Makes a repeat return the first answer.
        idempotency_key: Option<&'a [u8]>,
        /// What the ack must mean.
        durability: Durability,
    },
    /// `POST /v1/streams/{stream}/records`
    AppendMany {
        /// Stream name.
        stream: &'a str,
        /// NDJSON; read it with [`crate::ndjson::lines`].
        body: Cow<'a, [u8]>,
        /// Makes a repeat return the first answer.
        idempotency_key: Option<&'a [u8]>,
        /// What the ack must mean.
        durability: Durability,
    },
    /// `DELETE /v1/streams/{stream}/records/{key}`
    Delete {
        /// Stream name.
        stream: &'a str,
        /// Key bytes.
        key: Cow<'a, [u8]>,
        /// From `If-Match`.
        condition: Condition,
        /// Makes a repeat return the first answer.
        idempotency_key: Option<&'a [u8]>,
        /// What the ack must mean.
        durability: Durability,
    },
    /// `GET /v1/streams/{stream}/records/{key}`
    Get {
        /// Stream name.
        stream: &'a str,
        /// Key bytes.
        key: Cow<'a, [u8]>,
        /// What it wants of the newest version.
        preconditions: Preconditions,
    },
    /// `GET /v1/streams/{stream}/records/{key}/history`
    History {
        /// Stream name.
        stream: &'a str,
        /// Key bytes.
        key: Cow<'a, [u8]>,
        /// Records at most.
        limit: u32,
        /// Only versions below this one; 0 = from the newest.
        before: u32,
    },
    /// `GET /v1/streams/{stream}/scan`
    Scan {
        /// Stream name.
        stream: &'a str,
        /// None = from the beginning.
        cursor: Option<Cursor>,
        /// Records at most.
        limit: u32,
    },
    /// `GET /v1/streams/{stream}/tail`
    Tail {
        /// Stream name.
        stream: &'a str,
        /// From `Last-Event-ID` where an event stream reconnects, else from the query. None = from the beginning.
        cursor: Option<Cursor>,
        /// How long to wait for a first record, 0 to 60,000.
        wait_ms: u32,
        /// Records at most.
        limit: u32,
        /// `Accept: text/event-stream`.
        event_stream: bool,
    },
    /// `PUT /v1/streams/{stream}`
    PutStream {
        /// Stream name.
        stream: &'a str,
        /// From the body; an empty body is the default policy.
        policy: Policy,
    },
    /// `GET /v1/streams/{stream}`
    GetStream {
        /// Stream name.
        stream: &'a str,
    },
    /// `GET /v1/streams`
    ListStreams,
    /// `GET /v1/topology`
    Topology,
    /// `GET /healthz`
    Healthz,
    /// `GET /readyz`
    Readyz,
    /// `GET /metrics`
    Metrics,
    /// `GET /v1/openapi.json`
    OpenApi,
}

impl<'a> Route<'a> {
    /// Gives a routed head its body. Operations without a body take none in: what came with them is dropped.
    fn fill(&mut self, bytes: Cow<'a, [u8]>) -> Result<(), Box<Refusal>> {
        match self {
            Route::Append { body, .. } | Route::AppendMany { body, .. } => *body = bytes,
            Route::PutStream { policy, .. } if !bytes.is_empty() => {
                *policy = Policy::from_json(&bytes).map_err(|why| {
                    Box::new(Refusal::new(
                        Code::Malformed,
                        format!(
                            "policy is not readable ({why}): send a JSON object with history_depth, max_age_seconds, max_bytes, dedup_window_seconds"
                        ),
                    ))
                })?;
            }
            _ => {}
        }
        Ok(())
    }
}

/// Why a head is refused. Boxed at the rare end so that good results stay small.
struct Rejection {
    refusal: Refusal,
    allow: Option<&'static str>,
}

type Checked<T> = Result<T, Box<Rejection>>;

#[cold]
fn reject<T>(code: Code, message: impl Into<String>) -> Checked<T> {
    Err(Box::new(Rejection {
        refusal: Refusal::new(code, message),
        allow: None,
    }))
}

impl From<Refusal> for Box<Rejection> {
    fn from(refusal: Refusal) -> Self {
        Box::new(Rejection {
            refusal,
            allow: None,
        })
    }
}

#[cold]
fn close(code: Code, message: impl Into<String>, head: bool) -> Parsed<'static> {
    Parsed::Refused {
        consumed: None,
        refusal: Refusal::new(code, message),
        allow: None,
        head,
    }
}

/// How much of an unfinished request is understood already, for [`parse_on`].
///
/// It is a shortcut and decides nothing: the answer is the one that [`parse`] gives for the same bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress(Option<Unfinished>);

/// A request whose head is whole and good, and whose body is not there yet.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    head_bytes: usize,
    is_head: bool,
    framing: Framing,
    expects_continue: bool,
    measured: Measured,
}

impl Unfinished {
    /// What stands behind the head now; None: the body is whole.
    fn look(&mut self, bytes: &[u8], limits: &Limits) -> Option<Parsed<'static>> {
        let behind = &bytes[self.head_bytes..];
        match body_end(self.framing, behind, limits, &mut self.measured) {
            Ok(_) => None,
            Err(NotWhole::Incomplete { needed }) => Some(Parsed::Incomplete {
                needed: self.head_bytes + needed,
                expects_continue: self.expects_continue && behind.is_empty(),
            }),
            Err(why) => Some(refuse_body(&why, limits, self.is_head)),
        }
    }
}

/// Reads what stands at the start of `bytes`.
pub fn parse<'a>(bytes: &'a [u8], limits: &Limits) -> Parsed<'a> {
    parse_on(bytes, limits, &mut Progress::default())
}

/// The same for bytes that grow. `progress` is of an earlier look at a shorter beginning of the same bytes, or new; after
/// any answer but [`Parsed::Incomplete`] it is new again.
///
/// A body is looked at once as it arrives and once more when it is whole, however many pieces it comes in.
pub fn parse_on<'a>(bytes: &'a [u8], limits: &Limits, progress: &mut Progress) -> Parsed<'a> {
    let mut measured = Measured::default();
    if let Some(mut unfinished) = progress.0.take() {
        match unfinished.look(bytes, limits) {
            Some(incomplete @ Parsed::Incomplete { .. }) => {
                progress.0 = Some(unfinished);
                return incomplete;
            }
            Some(refused) => return refused,
            None => measured = unfinished.measured,
        }
    }
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut line = httparse::Request::new(&mut []);
    // Only the allowed head is looked at, so that how much has arrived behind it changes nothing.
    let window = &bytes[..bytes.len().min(limits.head_bytes_max)];
    let head_bytes = match line.parse_with_uninit_headers(window, &mut fields) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if window.len() == limits.head_bytes_max => {
            return close(
                Code::HeadTooLarge,
                format!(
                    "request head is over {} bytes: send fewer or shorter header fields",
                    limits.head_bytes_max
                ),
                false,
            );
        }
        Ok(httparse::Status::Partial) => {
            return Parsed::Incomplete {
                needed: bytes.len() + 1,
                expects_continue: false,
            };
        }
        Err(httparse::Error::TooManyHeaders) => {
            return close(
                Code::HeadTooLarge,
                format!("request has more than {HEADERS_MAX} header fields: send fewer"),
                false,
            );
        }
        Err(error) => {
            return close(
                Code::Malformed,
                format!("request head is not HTTP/1.1 ({error}): check it against RFC 9112"),
                false,
            );
        }
    };
    let (Some(method), Some(target), Some(minor)) = (line.method, line.path, line.version) else {
        unreachable!("a complete head has a request line");
    };
    let is_head = method == "HEAD";
    let head = match Head::read(line.headers, minor) {
        Ok(head) => head,
        Err(why) => return close(Code::Malformed, why, is_head),
    };
    let behind = &bytes[head_bytes..];
    let body_end = match body_end(head.framing, behind, limits, &mut measured) {
        Ok(end) => Ok(end),
        Err(NotWhole::Incomplete { needed }) => Err(needed),
        Err(why) => return refuse_body(&why, limits, is_head),
    };
    let routed = match &head.refusal {
        Some(refusal) => Err(refusal.clone().into()),
        None => route::resolve(method, target, &head),
    };
    let expects_continue = head.expects_continue && minor == 1;
    let routed = match (routed, head.framing) {
        // RFC 9110, section 10.1.1: the final answer, where the head suffices for it.
        (Ok(Route::Append { .. }), Framing::Length(bytes))
            if expects_continue && bytes > u64::from(limits.payload_bytes_max) =>
        {
            Err(refuse_payload(bytes, limits.payload_bytes_max).into())
        }
        (routed, _) => routed,
    };
    if let (Err(rejection), true) = (&routed, expects_continue) {
        // The client holds its body back until it hears; after a refusal it may or may not send it, so the
        // connection cannot go on.
        return Parsed::Refused {
            consumed: None,
            refusal: rejection.refusal.clone(),
            allow: rejection.allow,
            head: is_head,
        };
    }
    let body_end = match body_end {
        Ok(end) => end,
        Err(needed) => {
            progress.0 = Some(Unfinished {
                head_bytes,
                is_head,
                framing: head.framing,
                expects_continue,
                measured,
            });
            return Parsed::Incomplete {
                needed: head_bytes + needed,
                expects_continue: expects_continue && behind.is_empty(),
            };
        }
    };
    let body = match head.framing {
        Framing::Length(_) => Cow::Borrowed(&behind[..body_end]),
        Framing::Chunked => Cow::Owned(chunked::decode(behind, limits.body_bytes_max, &measured)),
    };
    let consumed = head_bytes + body_end;
    let filled = routed.and_then(|mut route| {
        route
            .fill(body)
            .map_err(|refusal| Box::<Rejection>::from(*refusal))?;
        Ok(route)
    });
    match filled {
        Ok(route) => Parsed::Request {
            consumed,
            request: Request {
                route,
                bearer: head.bearer,
                head: is_head,
            },
            keep_alive: head.keep_alive,
        },
        Err(rejection) => Parsed::Refused {
            consumed: head.keep_alive.then_some(consumed),
            refusal: rejection.refusal,
            allow: rejection.allow,
            head: is_head,
        },
    }
}

/// Where the body behind a head ends, once it is there. Too large is known from the first length that says so.
fn body_end(
    framing: Framing,
    behind: &[u8],
    limits: &Limits,
    measured: &mut Measured,
) -> Result<usize, NotWhole> {
    match framing {
        Framing::Length(length) => {
            let end = usize::try_from(length)
                .ok()
                .filter(|length| *length <= limits.body_bytes_max)
                .ok_or(NotWhole::TooLarge)?;
            if behind.len() < end {
                return Err(NotWhole::Incomplete { needed: end });
            }
            Ok(end)
        }
        Framing::Chunked => chunked::measure(behind, limits.body_bytes_max, measured),
    }
}

#[cold]
fn refuse_body(why: &NotWhole, limits: &Limits, head: bool) -> Parsed<'static> {
    match why {
        NotWhole::Malformed(what) => close(
            Code::Malformed,
            format!("{what}: check the chunked body against RFC 9112, section 7.1"),
            head,
        ),
        _ => close(
            Code::TooLarge,
            format!(
                "body is over {} bytes: send less at a time",
                limits.body_bytes_max
            ),
            head,
        ),
    }
}

/// The OpenAPI 3.1 document of all this.
pub fn openapi() -> &'static str {
    include_str!("../openapi.json")
}
