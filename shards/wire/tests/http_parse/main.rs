//! HTTP requests: what each means, at every split; what is refused, and whether the connection goes on.
//!
//! One `check` for all: `meaning` asks what a request is taken for, `framing` where it ends, `refusals` what is wrong with it.

mod framing;
mod meaning;
mod refusals;

use wire::http::*;

const LIMITS: Limits = Limits {
    head_bytes_max: 1024,
    body_bytes_max: 64,
    payload_bytes_max: 48,
};

/// A request with the usual fields: lines joined by CR LF, then a body.
fn request(first: &str, fields: &[&str], body: &str) -> String {
    let mut text = format!("{first} HTTP/1.1\r\nHost: h\r\n");
    for field in fields {
        text += field;
        text += "\r\n";
    }
    text + "\r\n" + body
}

/// One line for what `parse` found.
fn shown(text: &str) -> String {
    described(parse(text.as_bytes(), &LIMITS), text)
}

fn described(parsed: Parsed<'_>, text: &str) -> String {
    match parsed {
        Parsed::Incomplete {
            expects_continue, ..
        } => {
            format!(
                "incomplete{}",
                if expects_continue { ", continue" } else { "" }
            )
        }
        Parsed::Request {
            consumed,
            request,
            keep_alive,
        } => format!(
            "{:?}{}{}{}{}",
            request.route,
            request
                .bearer
                .map(|b| format!(" bearer {}", String::from_utf8_lossy(b)))
                .unwrap_or_default(),
            if request.head { " head" } else { "" },
            if keep_alive { "" } else { " close" },
            if consumed == text.len() {
                String::new()
            } else {
                format!(" rest {}", text.len() - consumed)
            },
        ),
        Parsed::Refused {
            consumed,
            refusal,
            allow,
            head,
        } => format!(
            "{} {}{}{}: {}",
            refusal.code.http_status(),
            if consumed.is_some() {
                "goes on"
            } else {
                "closes"
            },
            allow
                .map(|allow| format!(" allow {allow}"))
                .unwrap_or_default(),
            if head { " head" } else { "" },
            refusal.message
        ),
    }
}

/// The whole request gives `expected` (or what starts with it), every prefix asks for more or already refuses alike.
#[track_caller]
fn check(text: &str, expected: &str) {
    let whole = shown(text);
    assert!(
        whole.starts_with(expected),
        "\n{text:?}\n found: {whole}\nwanted: {expected}"
    );
    for split in 0..text.len() {
        if !text.is_char_boundary(split) {
            continue;
        }
        let part = shown(&text[..split]);
        if let Parsed::Incomplete { needed, .. } = parse(&text.as_bytes()[..split], &LIMITS) {
            assert!(
                needed > split && needed <= text.len(),
                "{split} of {text:?} needs {needed}"
            );
        }
        assert!(
            part.starts_with("incomplete") || part == whole,
            "split at {split} of {text:?}\n found: {part}\nwanted: {whole}"
        );
        // In two pieces it is what it is in one.
        let mut progress = Progress::default();
        if let Parsed::Incomplete { .. } =
            parse_on(&text.as_bytes()[..split], &LIMITS, &mut progress)
        {
            let went_on = parse_on(text.as_bytes(), &LIMITS, &mut progress);
            assert_eq!(
                described(went_on, text),
                whole,
                "cut at {split} of {text:?}"
            );
        }
    }
    // Nor does it matter that every byte came alone.
    let mut progress = Progress::default();
    for split in 0..=text.len() {
        let Some(part) = text.get(..split) else {
            continue;
        };
        let at_once = parse(part.as_bytes(), &LIMITS);
        let needed = |parsed: &Parsed<'_>| match parsed {
            Parsed::Incomplete { needed, .. } => *needed,
            _ => 0,
        };
        let went_on = parse_on(part.as_bytes(), &LIMITS, &mut progress);
        assert_eq!(needed(&went_on), needed(&at_once), "{part:?}");
        let incomplete = matches!(went_on, Parsed::Incomplete { .. });
        assert_eq!(described(went_on, part), described(at_once, part));
        if !incomplete {
            break;
        }
    }
}
