//! Lines of `{"key":…,"value":…}` in, records as JSON lines out.
//!
//! Coming in, `value` is kept as the text it came as. Going out, the record's content type decides: JSON appears as
//! it is in `value`, `text/*` as a JSON string in `value`, anything else as `value_base64`. A payload that is not
//! what its content type says (broken JSON, text that is not UTF-8) goes out as `value_base64` as well.
//!
//! Invariant: what goes out is one line of valid JSON per record, whatever the payload. It does not know streams.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::model::{refuse_key, refuse_payload};
use crate::{Code, ContentType, KEY_BYTES_MAX, RecordOut, Refusal};

/// One line that came in.
#[derive(Debug, PartialEq, Eq)]
pub struct Line<'a> {
    /// 1 to 1024 bytes.
    pub key: Cow<'a, str>,
    /// Text of `value`, or the bytes of `value_base64`.
    pub payload: Cow<'a, [u8]>,
    /// JSON, or octet-stream for `value_base64`.
    pub content_type: ContentType<'static>,
}

/// As it stands in the line. Present-but-null and absent are different things, so the options are read by `present`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "present")]
    value: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present_text")]
    value_base64: Option<Cow<'a, str>>,
}

fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

fn present_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Cow<'de, str>>, D::Error> {
    #[derive(Deserialize)]
    struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
    Text::deserialize(from).map(|text| Some(text.0))
}

/// Lines of a body; empty lines are skipped; Err((line number from 1, why)). Keys and payloads over their bounds are
/// [`Code::TooLarge`], everything else is [`Code::Malformed`].
pub fn lines<'a>(
    body: &'a [u8],
    payload_bytes_max: u32,
) -> impl Iterator<Item = Result<Line<'a>, (u64, Refusal)>> {
    let mut rest = body;
    let mut number = 0;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let text = rest[..end].trim_ascii();
            rest = rest.get(end + 1..).unwrap_or_default();
            number += 1;
            if !text.is_empty() {
                return Some(line(text, payload_bytes_max).map_err(|why| (number, why)));
            }
        }
    })
}

fn line(text: &[u8], payload_bytes_max: u32) -> Result<Line<'_>, Refusal> {
    // serde would also read the fields from an array, by position.
    if text[0] != b'{' {
        return malformed("not a JSON object: write {\"key\":…,\"value\":…}");
    }
    let Fields {
        key,
        value,
        value_base64,
    } = serde_json::from_slice(text).map_err(|error| {
        // serde counts lines within the line, which would read as the body's.
        let said = error.to_string();
        let what = said.split(" at line ").next().unwrap_or(&said);
        Refusal::new(
            Code::Malformed,
            format!("{what} at column {}", error.column()),
        )
    })?;
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(refuse_key(key.len()));
    }
    let (payload, content_type) = match (value, value_base64) {
        (Some(value), None) => (Cow::Borrowed(value.get().as_bytes()), ContentType::JSON),
        (None, Some(text)) => {
            let bytes = STANDARD.decode(text.as_bytes()).map_err(|error| {
                Refusal::new(
                    Code::Malformed,
                    format!("value_base64 is not base64 ({error})"),
                )
            })?;
            (Cow::Owned(bytes), ContentType::OCTET_STREAM)
        }
        (Some(_), Some(_)) => {
            return malformed("value and value_base64 are both there: send one of them");
        }
        (None, None) => {
            return malformed("neither value nor value_base64 is there: send one of them");
        }
    };
    if payload.len() as u64 > u64::from(payload_bytes_max) {
        return Err(refuse_payload(payload.len() as u64, payload_bytes_max));
    }
    Ok(Line {
        key,
        payload,
        content_type,
    })
}

#[cold]
fn malformed<T>(why: &str) -> Result<T, Refusal> {
    Err(Refusal::new(Code::Malformed, why))
}

/// `{"key","version","position","timestamp",("tombstone":true)|("value"|"value_base64"),"content_type"?}` and a newline.
/// A key that is not UTF-8 goes out as "key_base64". `timestamp` is in microseconds since 1970; `content_type` is
/// left out for tombstones and for `application/json` in `value`.
pub fn write_record(out: &mut Vec<u8>, record: &RecordOut<'_>) {
    out.reserve(128 + record.key.len() + record.payload.len());
    match std::str::from_utf8(record.key) {
        Ok(key) => {
            out.extend_from_slice(b"{\"key\":");
            json_string(out, key);
        }
        Err(_) => {
            out.extend_from_slice(b"{\"key_base64\":");
            base64_string(out, record.key);
        }
    }
    out.extend_from_slice(b",\"version\":");
    number(out, record.version);
    out.extend_from_slice(b",\"position\":\"");
    number(out, record.log);
    out.push(b':');
    number(out, record.lsn);
    out.extend_from_slice(b"\",\"timestamp\":");
    number(out, record.timestamp_us);
    if record.tombstone {
        out.extend_from_slice(b",\"tombstone\":true}\n");
        return;
    }
    let as_json = record.content_type.is_json() && write_json(out, record.payload);
    let as_text = !as_json
        && record.content_type.is_text()
        && match std::str::from_utf8(record.payload) {
            Ok(text) => {
                out.extend_from_slice(b",\"value\":");
                json_string(out, text);
                true
            }
            Err(_) => false,
        };
    if !as_json && !as_text {
        out.extend_from_slice(b",\"value_base64\":");
        base64_string(out, record.payload);
    }
    if !as_json || record.content_type != ContentType::JSON {
        out.extend_from_slice(b",\"content_type\":");
        json_string(
            out,
            &String::from_utf8_lossy(record.content_type.as_header()),
        );
    }
    out.extend_from_slice(b"}\n");
}

/// Appends `,"value":` and the payload if it is one JSON value. Line breaks in valid JSON stand between tokens only,
/// so a space in their place keeps its meaning and the line whole.
fn write_json(out: &mut Vec<u8>, payload: &[u8]) -> bool {
    if serde_json::from_slice::<&RawValue>(payload).is_err() {
        return false;
    }
    out.extend_from_slice(b",\"value\":");
    let start = out.len();
    out.extend_from_slice(payload.trim_ascii());
    if memchr::memchr2(b'\n', b'\r', &out[start..]).is_some() {
        for byte in &mut out[start..] {
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
    }
    true
}

fn number(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

fn json_string(out: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(out, text).expect("a string always serialises into memory");
}

fn base64_string(out: &mut Vec<u8>, bytes: &[u8]) {
    let start = out.len() + 1;
    // Four letters for every three bytes begun; base64's own bound is checked by the allocation before it.
    out.resize(start + bytes.len().div_ceil(3) * 4 + 1, b'"');
    out[start - 1] = b'"';
    let end = out.len() - 1;
    let written = STANDARD
        .encode_slice(bytes, &mut out[start..end])
        .expect("the space is exactly what base64 takes");
    debug_assert_eq!(start + written, end);
}
