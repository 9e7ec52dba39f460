//! The plan as a POSIX shell script that does what `apply` does, for people who would rather read and run it themselves.
//!
//! Rules stay rules: a capacity is raised only if it is lower when the script runs. There is no snapshot; the script prints the
//! commands that put things back.

use std::fmt::Write as _;

use crate::check::{Finding, Group, Report};
use crate::items::Want;
use crate::target::Target;

const HEAD: &str = r#"set -eu
root=${ROOT:-} # a tree to work on instead of this machine
failed=0

get() { # the value in force: the word in brackets, or all of it
    value=$(cat "$root$1")
    case $value in
    *\[*\]*) value=${value#*\[} && value=${value%%\]*} ;;
    esac
    printf '%s' "$value" | tr -s '\t' ' '
}
put() {
    old=$(get "$1")
    [ "$old" != "$2" ] || return 0
    if printf '%s\n' "$2" > "$root$1"; then
        printf "echo '%s' > %s\n" "$old" "$1"
    else
        failed=1
    fi
}
at_least() { [ "$(get "$1")" -ge "$2" ] || put "$1" "$2"; }
at_most() { [ "$(get "$1")" -le "$2" ] || put "$1" "$2"; }
last_at_least() {
    now=$(get "$1")
    [ "${now##* }" -ge "$2" ] || put "$1" "${now% *} $2"
}
card() { # flag, card, option, value, old value
    if ethtool "$1" "$2" "$3" "$4"; then
        printf 'ethtool %s %s %s %s\n' "$1" "$2" "$3" "$5"
    else
        failed=1
    fi
}
"#;

/// A word that the shell takes as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The script for everything that would be changed.
#[must_use]
pub fn script(report: &Report) -> String {
    let mut out = String::from("#!/bin/sh\n");
    // A String takes everything: the results below say nothing.
    let _ = writeln!(
        out,
        "# pinion tune plan --script: profile {}, Linux {}",
        report.profile.replace(['\n', '\r'], " "),
        report.inventory.kernel.release
    );
    let _ = writeln!(
        out,
        "# Needs root. Prints what puts each setting back; a setting that cannot be changed is left, and the exit code is 1.\n{HEAD}"
    );
    for finding in report.group(Group::Change) {
        let _ = writeln!(out, "# {}: {}", finding.id, finding.why);
        if let Some(line) = line(finding) {
            let _ = writeln!(out, "{line}");
        }
    }
    out.push_str("exit \"$failed\"\n");
    out
}

fn line(finding: &Finding) -> Option<String> {
    let value = finding.value.as_deref()?;
    match finding.target.as_ref()? {
        Target::File { path, .. } => {
            let (function, value) = match &finding.want {
                Want::AtLeast(number) => ("at_least", number.to_string()),
                Want::AtMost(number) => ("at_most", number.to_string()),
                Want::LastAtLeast(number) => ("last_at_least", number.to_string()),
                _ => ("put", value.to_owned()),
            };
            Some(format!("{function} {} {}", quoted(path), quoted(&value)))
        }
        Target::Ethtool { nic, setting } => {
            let words = setting.words();
            Some(format!(
                "card {} {} {} {} {}",
                words.change,
                quoted(nic),
                words.option,
                quoted(value),
                quoted(finding.current.as_deref().unwrap_or_default())
            ))
        }
    }
}
