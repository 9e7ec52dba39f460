//! Content types: one byte for the usual ones, the text as it came for all others.
//!
//! The codes are those that records are stored with (`wal::record::content_type`). It does not parse media types
//! beyond what decides how a record is shown.

use crate::{Code, Refusal};

const OCTET_STREAM: u8 = 0;
const JSON: u8 = 1;
const TEXT_PLAIN: u8 = 2;
const NDJSON: u8 = 3;
/// Says that the type is spelled out.
pub(crate) const OTHER: u8 = 255;

/// Content type of a record: the codes are those of `wal::record::content_type`; other types are kept as they came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentType<'a> {
    /// 0 `application/octet-stream`, 1 `application/json`, 2 `text/plain`, 3 `application/x-ndjson`.
    Code(u8),
    /// Any other type, 1 to 255 bytes of printable ASCII.
    Other(&'a [u8]),
}

impl<'a> ContentType<'a> {
    /// `application/octet-stream`: what a record without a content type is.
    pub const OCTET_STREAM: ContentType<'static> = ContentType::Code(OCTET_STREAM);
    /// `application/json`.
    pub const JSON: ContentType<'static> = ContentType::Code(JSON);
    /// `text/plain`.
    pub const TEXT_PLAIN: ContentType<'static> = ContentType::Code(TEXT_PLAIN);
    /// `application/x-ndjson`.
    pub const NDJSON: ContentType<'static> = ContentType::Code(NDJSON);

    /// From a header value, e.g. `application/json`. Only the exact spelling becomes a code, so that a reader gets
    /// back what the writer sent: with parameters or capitals it is `Other`.
    #[inline]
    pub fn from_header(value: &'a [u8]) -> ContentType<'a> {
        match value {
            b"application/octet-stream" => ContentType::OCTET_STREAM,
            b"application/json" => ContentType::JSON,
            b"text/plain" => ContentType::TEXT_PLAIN,
            b"application/x-ndjson" => ContentType::NDJSON,
            other => ContentType::Other(other),
        }
    }

    /// The header value. A code that this version does not know reads as `application/octet-stream`.
    #[inline]
    pub fn as_header(&self) -> &'a [u8] {
        match *self {
            ContentType::Code(JSON) => b"application/json",
            ContentType::Code(TEXT_PLAIN) => b"text/plain",
            ContentType::Code(NDJSON) => b"application/x-ndjson",
            ContentType::Code(_) => b"application/octet-stream",
            ContentType::Other(text) => text,
        }
    }

    /// `application/json` or any `…+json`, in any case, with or without parameters.
    pub fn is_json(&self) -> bool {
        match self {
            ContentType::Code(code) => *code == JSON,
            ContentType::Other(_) => {
                let essence = self.essence();
                essence.eq_ignore_ascii_case(b"application/json")
                    || essence
                        .last_chunk::<5>()
                        .is_some_and(|end| end.eq_ignore_ascii_case(b"+json"))
            }
        }
    }

    /// `text/…`, in any case.
    pub fn is_text(&self) -> bool {
        self.essence()
            .first_chunk::<5>()
            .is_some_and(|start| start.eq_ignore_ascii_case(b"text/"))
    }

    /// `application/x-ndjson`, in any case, with or without parameters.
    pub fn is_ndjson(&self) -> bool {
        self.essence().eq_ignore_ascii_case(b"application/x-ndjson")
    }

    /// The type without its parameters.
    fn essence(&self) -> &'a [u8] {
        let value = self.as_header();
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        value[..end].trim_ascii()
    }

    /// The byte that stands for it in frames and records.
    #[inline]
    pub(crate) fn code(&self) -> u8 {
        match self {
            ContentType::Code(code) => *code,
            ContentType::Other(_) => OTHER,
        }
    }

    /// Whether `code` stands for a type by itself.
    #[inline]
    pub(crate) fn code_is_known(code: u8) -> bool {
        code <= NDJSON
    }

    /// Printable ASCII only: the text goes out as a header value, where a line break would start another header.
    #[inline]
    pub(crate) fn text_is_valid(text: &[u8]) -> bool {
        !text.is_empty()
            && text.len() <= 255
            && text.iter().all(|b| b.is_ascii_graphic() || *b == b' ')
    }

    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let good = match self {
            ContentType::Code(code) => Self::code_is_known(*code),
            ContentType::Other(text) => Self::text_is_valid(text),
        };
        if good {
            return Ok(());
        }
        Err(Refusal::new(
            Code::Malformed,
            "content type is not allowed: send 1 to 255 bytes of printable ASCII, or one of the four known codes",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_and_codes_are_inverse_and_parameters_are_kept() {
        for code in 0..=NDJSON {
            let known = ContentType::Code(code);
            assert_eq!(ContentType::from_header(known.as_header()), known);
        }
        let with_parameter = ContentType::from_header(b"application/json; charset=utf-8");
        assert_eq!(
            with_parameter.as_header(),
            b"application/json; charset=utf-8"
        );
        assert_eq!(with_parameter.code(), OTHER);
    }

    #[test]
    fn json_text_and_neither() {
        for (value, json, text) in [
            ("application/json", true, false),
            ("Application/JSON ; x=1", true, false),
            ("application/problem+json", true, false),
            ("text/plain", false, true),
            ("TEXT/html; charset=utf-8", false, true),
            ("application/x-ndjson", false, false),
            ("application/octet-stream", false, false),
            ("json", false, false),
        ] {
            let it = ContentType::from_header(value.as_bytes());
            assert_eq!((it.is_json(), it.is_text()), (json, text), "{value}");
        }
    }
}
