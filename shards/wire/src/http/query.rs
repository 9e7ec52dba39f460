//! Query parameters: which there are, and their values.
//!
//! Invariant: a parameter that the path does not take, or takes once and got twice, is refused by name, so that a
//! mistyped `durabilty=buffered` is not quietly something else. It does not know paths.

use std::borrow::Cow;

use super::{Checked, reject};
use crate::{Code, Cursor, Durability, LIMIT_DEFAULT, LIMIT_MAX};

/// The query parameters there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Param {
    Durability,
    Limit,
    Before,
    Cursor,
    WaitMs,
}

impl Param {
    const ALL: [Param; 5] = [
        Param::Durability,
        Param::Limit,
        Param::Before,
        Param::Cursor,
        Param::WaitMs,
    ];

    fn name(self) -> &'static str {
        match self {
            Param::Durability => "durability",
            Param::Limit => "limit",
            Param::Before => "before",
            Param::Cursor => "cursor",
            Param::WaitMs => "wait_ms",
        }
    }
}

/// Parameters of one request, by [`Param`], as they came.
#[derive(Default)]
pub(super) struct Query<'a> {
    values: [Option<&'a str>; Param::ALL.len()],
}

impl<'a> Query<'a> {
    pub(super) fn read(text: &'a str, known: &[Param]) -> Checked<Query<'a>> {
        let mut query = Query::default();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let Some(param) = known.iter().find(|param| param.name() == name) else {
                return unknown_parameter(name, known);
            };
            if query.values[*param as usize].replace(value).is_some() {
                return reject(
                    Code::Malformed,
                    format!("query parameter {name} is there twice: send it once"),
                );
            }
        }
        Ok(query)
    }

    fn value(&self, param: Param) -> Checked<Option<Cow<'a, [u8]>>> {
        self.values[param as usize].map(decode).transpose()
    }

    pub(super) fn number(&self, param: Param, default: u32) -> Checked<u32> {
        let Some(value) = self.value(param)?.filter(|value| !value.is_empty()) else {
            return Ok(default);
        };
        if let Some(value) = number(&value) {
            return Ok(value);
        }
        if value.iter().all(u8::is_ascii_digit) {
            // Too many digits for 32 bits; every bound is below that.
            return Ok(u32::MAX);
        }
        reject(
            Code::Malformed,
            format!("{} is not a number: send decimal digits", param.name()),
        )
    }

    pub(super) fn limit(&self) -> Checked<u32> {
        match self.number(Param::Limit, LIMIT_DEFAULT)? {
            0 => reject(
                Code::Malformed,
                format!(
                    "limit is 0: ask for 1 to {LIMIT_MAX}, or leave it out for {LIMIT_DEFAULT}"
                ),
            ),
            limit => Ok(limit.min(LIMIT_MAX)),
        }
    }

    pub(super) fn cursor(&self) -> Checked<Option<Cursor>> {
        match self.value(Param::Cursor)?.filter(|value| !value.is_empty()) {
            Some(text) => read_cursor(&text).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn durability(&self) -> Checked<Durability> {
        let Some(value) = self.value(Param::Durability)? else {
            return Ok(Durability::default());
        };
        match Durability::from_name(&value) {
            Some(durability) => Ok(durability),
            None => reject(
                Code::Malformed,
                "durability is neither durable nor buffered: send one of them",
            ),
        }
    }
}

#[cold]
fn unknown_parameter<T>(name: &str, known: &[Param]) -> Checked<T> {
    let shown: String = name.chars().take(40).collect();
    let known: Vec<&str> = known.iter().map(|param| param.name()).collect();
    let instead = if known.is_empty() {
        "this path takes none".to_owned()
    } else {
        format!("this path takes {}", known.join(", "))
    };
    reject(
        Code::Malformed,
        format!("query parameter {shown:?} is not known here: {instead}"),
    )
}

pub(super) fn read_cursor(text: &[u8]) -> Checked<Cursor> {
    match Cursor::decode(text) {
        Some(cursor) => Ok(cursor),
        None => reject(
            Code::Malformed,
            "cursor is not one that this server gave: send X-Pinion-Cursor as it came, or none to start over",
        ),
    }
}

/// Percent escapes to bytes; half an escape is refused, not kept.
#[inline]
pub(super) fn decode(raw: &str) -> Checked<Cow<'_, [u8]>> {
    let raw = raw.as_bytes();
    if memchr::memchr(b'%', raw).is_none() {
        return Ok(Cow::Borrowed(raw));
    }
    let is_whole = |at: usize| {
        raw.get(at + 1..at + 3)
            .is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
    };
    if !memchr::memchr_iter(b'%', raw).all(is_whole) {
        return reject(
            Code::Malformed,
            "percent escape is not two hex digits: write a percent sign as %25",
        );
    }
    Ok(percent_encoding::percent_decode(raw).into())
}

/// Decimal digits and nothing else (`str::parse` would take a sign).
pub(super) fn number(digits: &[u8]) -> Option<u32> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}
