//! Header fields: the ones this server acts on, each read once.
//!
//! Two kinds of wrong: a field that leaves the end of the request open is fatal (`Err`); any other is a refusal that
//! is answered in its turn (`refusal`). Fields that are not named here are ignored, as RFC 9110 wants it.

use httparse::Header;

use crate::{Code, ContentType, Refusal};

/// How the end of the body is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Length(u64),
    Chunked,
}

/// What the header fields say. Values are as they came, without the white space around them.
pub(super) struct Head<'a> {
    pub framing: Framing,
    pub keep_alive: bool,
    pub expects_continue: bool,
    pub bearer: Option<&'a [u8]>,
    pub content_type: Option<&'a [u8]>,
    pub idempotency_key: Option<&'a [u8]>,
    pub if_match: Option<&'a [u8]>,
    pub if_none_match: Option<&'a [u8]>,
    pub last_event_id: Option<&'a [u8]>,
    pub accepts_event_stream: bool,
    pub refusal: Option<Refusal>,
}

impl<'a> Head<'a> {
    pub fn read(fields: &[Header<'a>], minor_version: u8) -> Result<Head<'a>, &'static str> {
        let mut head = Head {
            framing: Framing::Length(0),
            keep_alive: minor_version == 1,
            expects_continue: false,
            bearer: None,
            content_type: None,
            idempotency_key: None,
            if_match: None,
            if_none_match: None,
            last_event_id: None,
            accepts_event_stream: false,
            refusal: None,
        };
        let mut host = None;
        let mut authorization = None;
        let mut length: Option<u64> = None;
        let mut coding = None;
        for field in fields {
            let name = field.name;
            let value = field.value.trim_ascii();
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
            let mut once = |slot: &mut Option<&'a [u8]>| {
                if slot.replace(value).is_some() {
                    head.refusal = Some(Refusal::new(
                        Code::Malformed,
                        format!("header field {name} is there twice: send it once"),
                    ));
                }
            };
            // By length first: most fields that clients send are ignored after one comparison.
            match name.len() {
                4 if is("host") => once(&mut host),
                6 if is("accept") => {
                    head.accepts_event_stream |= accepts(value, b"text/event-stream");
                }
                6 if is("expect") => {
                    head.expects_continue |= value.eq_ignore_ascii_case(b"100-continue");
                }
                8 if is("if-match") => once(&mut head.if_match),
                10 if is("connection") => head.keep_alive &= !contains_token(value, b"close"),
                12 if is("content-type") => once(&mut head.content_type),
                13 if is("authorization") => once(&mut authorization),
                13 if is("if-none-match") => once(&mut head.if_none_match),
                13 if is("last-event-id") => once(&mut head.last_event_id),
                14 if is("content-length") => {
                    let digits = value.iter().all(u8::is_ascii_digit) && !value.is_empty();
                    let number = std::str::from_utf8(value).ok().filter(|_| digits);
                    // Too many digits is a length that is over every limit, not an unreadable one.
                    let stated = number
                        .map(|number| number.parse().unwrap_or(u64::MAX))
                        .ok_or("Content-Length is not a number: send decimal digits")?;
                    if length.is_some_and(|length| length != stated) {
                        return Err("Content-Length is there twice and differs: send it once");
                    }
                    length = Some(stated);
                }
                15 if is("idempotency-key") => once(&mut head.idempotency_key),
                // Kept by the guard; a first one goes on to the arm that does nothing.
                17 if is("transfer-encoding") && coding.replace(value).is_some() => {
                    return Err("Transfer-Encoding is there twice: send it once");
                }
                _ => {}
            }
        }
        head.framing = match (length, coding) {
            (Some(_), Some(_)) => {
                return Err(
                    "Content-Length and Transfer-Encoding are both there: send one of them",
                );
            }
            (_, Some(_)) if minor_version == 0 => {
                return Err("Transfer-Encoding is not for HTTP/1.0: send Content-Length");
            }
            (_, Some(coding)) if !coding.eq_ignore_ascii_case(b"chunked") => {
                return Err("Transfer-Encoding is not chunked: send chunked or Content-Length");
            }
            (_, Some(_)) => Framing::Chunked,
            (length, None) => Framing::Length(length.unwrap_or(0)),
        };
        match host {
            None if minor_version == 1 => head.refuse("Host is missing: HTTP/1.1 requires it"),
            Some(value) if !is_host(value) => {
                head.refuse(
                    "Host is not a host: send the name or address, and the port behind a colon",
                );
            }
            _ => {}
        }
        head.bearer = authorization.and_then(bearer);
        if let Some(key) = head.idempotency_key
            && (key.is_empty() || key.len() > 255)
        {
            head.refuse("Idempotency-Key is not 1 to 255 bytes: send it so");
        }
        if let Some(text) = head.content_type
            && let Err(refusal) = ContentType::from_header(text).check()
        {
            head.refusal = Some(refusal);
        }
        Ok(head)
    }

    fn refuse(&mut self, message: &str) {
        self.refusal = Some(Refusal::new(Code::Malformed, message));
    }
}

/// The token of `Bearer token`; `None` for other schemes.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme
        .eq_ignore_ascii_case(b"bearer ")
        .then(|| token.trim_ascii())
}

/// Whether a comma-separated list has the token.
fn contains_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|b| *b == b',')
        .any(|item| item.trim_ascii().eq_ignore_ascii_case(token))
}

/// Whether an `Accept` names the type, and not with a weight of nought (RFC 9110, section 12.4.2).
fn accepts(list: &[u8], media_type: &[u8]) -> bool {
    list.split(|b| *b == b',').any(|item| {
        let mut parts = item.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let named = parts.next().unwrap_or_default();
        named.eq_ignore_ascii_case(media_type) && !parts.any(is_nought)
    })
}

/// `q=0`, `q=0.`, up to `q=0.000`.
fn is_nought(parameter: &[u8]) -> bool {
    let weight = parameter
        .strip_prefix(b"q=")
        .or(parameter.strip_prefix(b"Q="));
    let decimals = weight.and_then(|weight| weight.strip_prefix(b"0"));
    decimals.is_some_and(|decimals| decimals.iter().all(|b| matches!(b, b'.' | b'0')))
}

/// Whether a `Host` is a host and maybe a port (RFC 9112, section 3.2): bytes that end a host in an address are not in it.
fn is_host(value: &[u8]) -> bool {
    value
        .iter()
        .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'?' | b'#' | b'@' | b',' | b'\\'))
}
