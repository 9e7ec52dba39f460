//! Profiles: two that are built in, and files that extend one of them.
//!
//! ```toml
//! extends = "latency"
//! skip = ["vm.swappiness"]
//! [set]
//! "net.core.somaxconn" = 8192
//! ```
//!
//! A value takes the place of the built-in one under the row's own rule: a capacity stays a floor. Every error names the line.

use std::collections::{BTreeMap, BTreeSet};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Allowed, Row, Rule, TABLE};

/// What a machine is tuned for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// As many records as the machine can take.
    Throughput,
    /// Each of them as soon as can be.
    Latency,
}

impl Base {
    /// Both.
    pub const ALL: [Base; 2] = [Base::Throughput, Base::Latency];

    /// As it is typed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Base::Throughput => "throughput",
            Base::Latency => "latency",
        }
    }
}

/// What is wanted of every setting.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// As it was typed: a built-in name or a file.
    pub name: String,
    /// The built-in profile that it is or extends.
    pub base: Base,
    values: BTreeMap<&'static str, String>,
    skipped: BTreeSet<&'static str>,
}

/// What is wrong with a profile file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}, line {line}: {what}")]
pub struct ProfileError {
    /// The file as it was named.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// What is wrong there, and what to type instead.
    pub what: String,
}

impl Profile {
    /// A built-in profile.
    #[must_use]
    pub fn built_in(base: Base) -> Profile {
        Profile {
            name: base.name().to_owned(),
            base,
            values: BTreeMap::new(),
            skipped: BTreeSet::new(),
        }
    }

    /// Reads a profile file; `name` is how messages call it.
    pub fn parse(name: &str, text: &str) -> Result<Profile, ProfileError> {
        let error = |at: usize, what: String| ProfileError {
            file: name.to_owned(),
            line: text[..at.min(text.len())].matches('\n').count() + 1,
            what,
        };
        let document = DeTable::parse(text).map_err(|problem| {
            let at = problem.span().map_or(0, |span| span.start);
            error(at, problem.message().to_owned())
        })?;
        let mut profile = Profile::built_in(Base::Throughput);
        name.clone_into(&mut profile.name);
        let mut extends = None;
        for (key, value) in document.get_ref() {
            let at = key.span().start;
            match key.get_ref().as_ref() {
                "extends" => {
                    let named = value
                        .get_ref()
                        .as_str()
                        .and_then(|word| Base::ALL.into_iter().find(|base| base.name() == word));
                    extends = Some(named.ok_or_else(|| {
                        error(at, "extends must be \"throughput\" or \"latency\"".into())
                    })?);
                }
                "skip" => {
                    let list = value.get_ref().as_array().ok_or_else(|| {
                        error(
                            at,
                            "skip must be a list of settings, as in [\"vm.swappiness\"]".into(),
                        )
                    })?;
                    for entry in list {
                        let word = entry.get_ref().as_str().unwrap_or_default();
                        let row = known(word).map_err(|what| error(entry.span().start, what))?;
                        profile.skipped.insert(row.key);
                    }
                }
                "set" => {
                    let table = value.get_ref().as_table().ok_or_else(|| {
                        error(
                            at,
                            "set must be a table: [set], and below it \"vm.swappiness\" = 1".into(),
                        )
                    })?;
                    for (key, value) in table {
                        let (row, value) =
                            setting(key, value).map_err(|what| error(key.span().start, what))?;
                        profile.values.insert(row.key, value);
                    }
                }
                other => {
                    return Err(error(
                        at,
                        format!(
                            "{other:?} means nothing here: a profile has extends, skip and [set]"
                        ),
                    ));
                }
            }
        }
        profile.base = extends.ok_or_else(|| {
            error(0, "a profile must say what it extends: extends = \"throughput\" or extends = \"latency\"".into())
        })?;
        Ok(profile)
    }

    /// What is wanted of a setting; None leaves it as it is.
    #[must_use]
    pub fn value(&self, row: &Row) -> Option<&str> {
        if self.skipped.contains(row.key) {
            return None;
        }
        self.values
            .get(row.key)
            .map(String::as_str)
            .or(row.value(self.base))
    }

    /// Whether a setting is left alone because the file says so.
    #[must_use]
    pub fn skips(&self, row: &Row) -> bool {
        self.skipped.contains(row.key)
    }
}

/// The row that is meant, or the one that was probably meant.
fn known(key: &str) -> Result<&'static Row, String> {
    Row::named(key).ok_or_else(|| {
        let near = TABLE
            .iter()
            .map(|row| (distance(key, row.key), row.key))
            .min()
            .filter(|(distance, _)| *distance <= 4);
        let hint = near.map_or_else(
            || "pinion tune check --json lists them all".to_owned(),
            |(_, near)| format!("did you mean {near:?}?"),
        );
        format!("no setting is called {key:?}: {hint}")
    })
}

fn setting(
    key: &Spanned<std::borrow::Cow<'_, str>>,
    value: &Spanned<DeValue<'_>>,
) -> Result<(&'static Row, String), String> {
    let row = known(key.get_ref())?;
    let key = row.key;
    let text = match value.get_ref() {
        DeValue::Integer(number) => number.to_string(),
        DeValue::String(word) => word.clone().into_owned(),
        _ => return Err(format!("{key:?} takes a number or a word")),
    };
    match row.allowed {
        Allowed::Number(first, last) => {
            let fits = text
                .parse::<u64>()
                .is_ok_and(|number| (first..=last).contains(&number));
            if !fits {
                return Err(format!(
                    "{key:?} is {text}: it must be a number from {first} to {last}"
                ));
            }
        }
        Allowed::Word(words) if !words.contains(&text.as_str()) => {
            return Err(format!(
                "{key:?} is {text:?}: it must be one of {}",
                words.join(", ")
            ));
        }
        Allowed::Word(_) => {}
        Allowed::Nothing => {
            let why = match row.rule {
                Rule::FromTopology => "it follows from the machine's cores and queues",
                _ => "it is only looked at, never changed",
            };
            return Err(format!(
                "{key:?} cannot be set: {why}; skip = [{key:?}] leaves it out"
            ));
        }
    }
    Ok((row, text))
}

/// Letters to insert, delete or replace to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let replaced = corner + usize::from(x != y);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
