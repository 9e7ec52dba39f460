//! What a request wants of the newest version: `If-Match` and `If-None-Match` (RFC 9110, sections 13.1.1 and 13.1.2).
//!
//! An entity tag is a version in quotes, character by character: no other spelling of the number is one.

use super::head::Head;
use super::query::number;
use super::{Checked, reject};
use crate::{Code, Condition, Refusal};

/// Of a read. Both may be there; `If-Match` counts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preconditions {
    /// Only then is the record sent.
    pub if_match: Tags,
    /// Then it is not sent again.
    pub if_none_match: Tags,
}

/// One of the two fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tags {
    /// It is not there.
    Absent,
    /// It names no version of ours: no record is meant.
    Foreign,
    /// The largest version it names. If one of them is the newest, it is that one.
    Version(u32),
    /// `*`: whatever there is.
    Any,
}

/// What becomes of a read that found a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is sent.
    Send,
    /// 304: the client has it.
    NotModified,
    /// 412.
    Refuse(Refusal),
}

impl Preconditions {
    /// None at all.
    pub const NONE: Preconditions = Preconditions {
        if_match: Tags::Absent,
        if_none_match: Tags::Absent,
    };

    pub(super) fn of_read(head: &Head<'_>) -> Preconditions {
        Preconditions {
            if_match: head.if_match.map_or(Tags::Absent, |f| tags(f, false)),
            if_none_match: head.if_none_match.map_or(Tags::Absent, |f| tags(f, true)),
        }
    }

    /// For a record whose newest version is `version`.
    pub fn verdict(self, version: u32) -> Verdict {
        if self.if_match != Tags::Absent && !self.if_match.mean(version) {
            return Verdict::Refuse(Refusal::new(
                Code::ConditionFailed,
                format!("the key is at version {version}, which If-Match does not name"),
            ));
        }
        if self.if_none_match.mean(version) {
            return Verdict::NotModified;
        }
        Verdict::Send
    }
}

impl Tags {
    fn mean(self, version: u32) -> bool {
        match self {
            Tags::Absent | Tags::Foreign => false,
            Tags::Version(named) => named == version,
            Tags::Any => true,
        }
    }
}

/// A field's list. Weak tags count where the comparison is a weak one (`If-None-Match`).
fn tags(field: &[u8], weak: bool) -> Tags {
    if field == b"*" {
        return Tags::Any;
    }
    let versions = field.split(|byte| *byte == b',').filter_map(|tag| {
        let tag = tag.trim_ascii();
        etag(tag.strip_prefix(b"W/").filter(|_| weak).unwrap_or(tag))
    });
    versions.max().map_or(Tags::Foreign, Tags::Version)
}

/// `"N"`, N a version.
fn etag(value: &[u8]) -> Option<u32> {
    let digits = value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    number(digits).filter(|_| !digits.starts_with(b"0"))
}

/// Of a write.
pub(super) fn condition(head: &Head<'_>) -> Checked<Condition> {
    match (head.if_match, head.if_none_match) {
        (None, None) => Ok(Condition::None),
        (None, Some(b"*")) => Ok(Condition::New),
        (None, Some(_)) => reject(
            Code::Malformed,
            "If-None-Match on a write is `*` (only if new): for a version use If-Match: \"version\"",
        ),
        (Some(tag), None) => match etag(tag) {
            Some(version) => Ok(Condition::Version(version)),
            None => reject(
                Code::Malformed,
                "If-Match is not one \"version\": send the ETag that a GET gave, with its quotes",
            ),
        },
        (Some(_), Some(_)) => reject(
            Code::Malformed,
            "If-Match and If-None-Match are both there: send one of them",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_match_counts_first_and_compares_strongly() {
        let verdict = |if_match: &[u8], if_none_match: &[u8]| {
            let wanted = Preconditions {
                if_match: tags(if_match, false),
                if_none_match: tags(if_none_match, true),
            };
            match wanted.verdict(7) {
                Verdict::Send => 200,
                Verdict::NotModified => 304,
                Verdict::Refuse(refusal) => refusal.code.http_status(),
            }
        };
        for (if_match, if_none_match, status) in [
            ("*", "\"6\"", 200),
            ("\"7\"", "x", 200),
            ("\"6\", \"7\"", "\"8\"", 200),
            ("\"7\"", "W/\"7\"", 304),
            ("*", "*", 304),
            ("W/\"7\"", "\"6\"", 412),
            ("\"6\"", "\"7\"", 412),
            ("\"07\"", "*", 412),
            ("x", "*", 412),
        ] {
            let told = verdict(if_match.as_bytes(), if_none_match.as_bytes());
            assert_eq!(told, status, "{if_match} {if_none_match}");
        }
        assert_eq!(Preconditions::NONE.verdict(7), Verdict::Send);
    }
}
