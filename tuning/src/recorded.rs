//! Machines in a text file: what a tuner reads, as it was read, and a machine in memory that answers from it.
//!
//! `pinion tune record` writes such a file, `--machine FILE` looks at one, the tests keep several. Writing to a recorded machine
//! changes its memory alone, in the ways a kernel would that matter here: a choice must be one that is offered, a setting that
//! is not there stays away, another I/O scheduler brings another number of requests.
//!
//! The file: `== PATH` before a text, `== PATH -> TARGET` for a link, `== PATH/` for a directory. So that large machines stay
//! readable, `{0-63}` in a path stands for one entry each, `{i}`, `{i+32}`, `{i%2}`, `{i/2}` in path or text for its number,
//! and `{TEXT x 64}` for a repetition.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::ethtool;
use crate::system::{Lock, System};

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    File(String),
    Link(String),
    Directory,
}

/// A machine in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recorded {
    entries: RefCell<BTreeMap<String, Entry>>,
}

fn absent() -> io::Error {
    io::Error::from_raw_os_error(2) // ENOENT: a caller may ask for the number
}

fn invalid() -> io::Error {
    io::Error::from_raw_os_error(22) // EINVAL
}

/// Replaces every `{…}` of which `value` knows the meaning.
fn expand(text: &str, value: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(start) = rest.find('{') {
        out.push_str(&rest[..start]);
        let inner = rest[start + 1..].split('}').next().unwrap_or_default();
        match value(inner) {
            Some(text) => {
                out.push_str(&text);
                rest = &rest[start + inner.len() + 2..];
            }
            None => {
                out.push('{');
                rest = &rest[start + 1..];
            }
        }
    }
    out + rest
}

fn repeated(inner: &str) -> Option<String> {
    let (text, times) = inner.rsplit_once(" x ")?;
    Some(text.repeat(times.parse().ok()?))
}

/// `i`, `i+32`, `i-32`, `i%2`, `i/2`.
fn computed(inner: &str, i: usize) -> Option<String> {
    let rest = inner.strip_prefix('i')?;
    if rest.is_empty() {
        return Some(i.to_string());
    }
    let number: usize = rest.get(1..)?.parse().ok()?;
    let value = match rest.as_bytes()[0] {
        b'+' => i + number,
        b'-' => i.checked_sub(number)?,
        b'%' => i % number,
        b'/' => i / number,
        _ => return None,
    };
    Some(value.to_string())
}

/// The first range of numbers in a path, with where it stands.
fn range(path: &str) -> Option<(usize, usize, Vec<usize>)> {
    let start = path.find('{')?;
    let end = start + path[start..].find('}')?;
    let mut numbers = Vec::new();
    for part in path[start + 1..end].split(',') {
        let (first, last) = part.split_once('-')?;
        numbers.extend(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?);
    }
    Some((start, end + 1, numbers))
}

impl Recorded {
    /// Reads a recorded machine. The error names the line.
    pub fn parse(text: &str) -> Result<Recorded, String> {
        let recorded = Recorded::default();
        let mut entry: Option<(String, String)> = None;
        for (number, line) in text.lines().enumerate() {
            if let Some(heading) = line.strip_prefix("== ") {
                if let Some((path, content)) = entry.take() {
                    recorded.add(&path, Entry::File(content));
                }
                if !heading.starts_with('/') {
                    return Err(format!(
                        "line {}: {heading:?} is not a path: it must begin with /",
                        number + 1
                    ));
                }
                if let Some((path, target)) = heading.split_once(" -> ") {
                    recorded.add(path, Entry::Link(target.to_owned()));
                } else if let Some(path) = heading.strip_suffix('/') {
                    recorded.add(path, Entry::Directory);
                } else {
                    entry = Some((heading.to_owned(), String::new()));
                }
            } else if let Some((_, content)) = &mut entry {
                content.push_str(line);
                content.push('\n');
            } else if !(line.is_empty() || line.starts_with('#')) {
                return Err(format!(
                    "line {}: text that belongs to no path: a line `== /path` must stand before it",
                    number + 1
                ));
            }
        }
        if let Some((path, content)) = entry {
            recorded.add(&path, Entry::File(content));
        }
        if recorded.entries.borrow().is_empty() {
            return Err("no line begins with `== /`: this is not a recorded machine".into());
        }
        Ok(recorded)
    }

    fn add(&self, path: &str, entry: Entry) {
        let Some((start, end, numbers)) = range(path) else {
            let entry = match entry {
                Entry::File(text) => Entry::File(expand(&text, repeated)),
                other => other,
            };
            self.entries.borrow_mut().insert(path.to_owned(), entry);
            return;
        };
        for i in numbers {
            let fill = |text: &str| expand(text, |inner| computed(inner, i));
            let entry = match &entry {
                Entry::File(text) => Entry::File(fill(text)),
                Entry::Link(target) => Entry::Link(fill(target)),
                Entry::Directory => Entry::Directory,
            };
            self.add(
                &fill(&format!("{}{i}{}", &path[..start], &path[end..])),
                entry,
            );
        }
    }

    /// Every file of the machine with its text, for a test that lays them down elsewhere.
    #[must_use]
    pub fn files(&self) -> Vec<(String, String)> {
        let entries = self.entries.borrow();
        entries
            .iter()
            .filter_map(|(path, entry)| match entry {
                Entry::File(text) => Some((path.clone(), text.clone())),
                _ => None,
            })
            .collect()
    }

    fn put(&self, path: &str, text: String) {
        self.entries
            .borrow_mut()
            .insert(path.to_owned(), Entry::File(text));
    }

    /// A card shows as many queues as it has channels; those that come new are as the first one is made: untouched.
    fn show_queues(&self, nic: &str, count: usize) {
        let mut entries = self.entries.borrow_mut();
        for kind in ["rx", "tx"] {
            let prefix = format!("/sys/class/net/{nic}/queues/{kind}-");
            let number = |path: &str| -> Option<usize> {
                path.strip_prefix(&prefix)?.split('/').next()?.parse().ok()
            };
            entries.retain(|path, _| number(path).is_none_or(|queue| queue < count));
            let first = format!("{prefix}0/");
            let files: Vec<String> = entries
                .keys()
                .filter_map(|path| path.strip_prefix(&first).map(str::to_owned))
                .collect();
            for queue in 1..count {
                for file in &files {
                    entries
                        .entry(format!("{prefix}{queue}/{file}"))
                        .or_insert_with(|| Entry::File("0\n".to_owned()));
                }
            }
        }
    }

    /// The kernel sizes the request queue anew for another scheduler.
    fn another_scheduler(&self, path: &str, value: &str) {
        let requests = path.replace("/scheduler", "/nr_requests");
        if self.read(&requests).is_ok() {
            let number = if value == "none" { "127" } else { "256" };
            self.put(&requests, format!("{number}\n"));
        }
    }
}

/// `none [mq-deadline] kyber` with another one in brackets; None if it is not offered.
fn chosen(text: &str, value: &str) -> Option<String> {
    let mut found = false;
    let words: Vec<String> = text
        .split_whitespace()
        .map(|word| word.trim_matches(['[', ']']))
        .map(|word| {
            if word == value {
                found = true;
                format!("[{word}]")
            } else {
                word.to_owned()
            }
        })
        .collect();
    found.then(|| words.join(" ") + "\n")
}

impl System for Recorded {
    fn read(&self, path: &str) -> io::Result<String> {
        match self.entries.borrow().get(path) {
            Some(Entry::File(text)) => Ok(text.clone()),
            _ => Err(absent()),
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let entries = self.entries.borrow();
        let below = format!("{}/", path.trim_end_matches('/'));
        let names: BTreeSet<String> = entries
            .range(below.clone()..)
            .take_while(|(name, _)| name.starts_with(&below))
            .filter_map(|(name, _)| name[below.len()..].split('/').next())
            .map(str::to_owned)
            .collect();
        if names.is_empty() && entries.get(path) != Some(&Entry::Directory) {
            return Err(absent());
        }
        Ok(names.into_iter().collect())
    }

    fn link(&self, path: &str) -> io::Result<String> {
        match self.entries.borrow().get(path) {
            Some(Entry::Link(target)) => Ok(target.clone()),
            _ => Err(absent()),
        }
    }

    fn canonical(&self, path: &str) -> io::Result<String> {
        Ok(path.to_owned())
    }

    fn ethtool(&self, query: &str, nic: &str) -> io::Result<String> {
        self.read(&format!("/ethtool/{nic}/{query}"))
    }

    fn set(&self, path: &str, value: &str) -> io::Result<()> {
        let old = self.read(path)?;
        let text = if old.contains('[') {
            chosen(&old, value).ok_or_else(invalid)?
        } else {
            format!("{value}\n")
        };
        if path.ends_with("/queue/scheduler") && text != old {
            self.another_scheduler(path, value);
        }
        self.put(path, text);
        Ok(())
    }

    fn ethtool_set(&self, flag: &str, nic: &str, option: &str, value: &str) -> io::Result<()> {
        let words = ethtool::SETTINGS
            .iter()
            .find(|words| words.change == flag && words.option == option)
            .ok_or_else(invalid)?;
        let path = format!("/ethtool/{nic}/{}", words.query);
        let text = self.read(&path)?;
        let maximum = ethtool::maximum(&text, words.field);
        if value
            .parse::<u64>()
            .is_ok_and(|value| maximum.is_some_and(|maximum| value > maximum))
        {
            return Err(invalid());
        }
        let text = ethtool::with(&text, words.field, value).ok_or_else(invalid)?;
        self.put(&path, text);
        if words.setting == ethtool::Setting::Channels {
            self.show_queues(nic, value.parse().map_err(|_| invalid())?);
        }
        Ok(())
    }

    fn replace(&self, path: &str, text: &str) -> io::Result<()> {
        self.put(path, text.to_owned());
        Ok(())
    }

    fn make_link(&self, path: &str, target: &str) -> io::Result<()> {
        let link = Entry::Link(target.to_owned());
        self.entries.borrow_mut().insert(path.to_owned(), link);
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.entries.borrow_mut().remove(path);
        Ok(())
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        // It is there by what is in it, or by its own entry.
        if self.list(path).is_ok_and(|names| names.is_empty()) {
            self.entries.borrow_mut().remove(path);
        }
        Ok(())
    }

    fn lock(&self, _: &str) -> io::Result<Lock> {
        Ok(Lock::alone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_repetitions_stand_for_many_entries() {
        let text = "# a machine\n== /cpu{0-1,4-4}/siblings\n{i},{i+8}\n== /node{0-3} -> ../{i%2}\n== /interrupts\n{ 0 x 3}\n== /empty/\n";
        let machine = Recorded::parse(text).expect("a machine");
        assert_eq!(machine.read("/cpu4/siblings").expect("there"), "4,12\n");
        assert_eq!(machine.link("/node3").expect("there"), "../1");
        assert_eq!(machine.read("/interrupts").expect("there"), " 0 0 0\n");
        assert_eq!(machine.list("/empty").expect("there"), [""; 0]);
        assert_eq!(
            machine.list("/").expect("there"),
            [
                "cpu0",
                "cpu1",
                "cpu4",
                "empty",
                "interrupts",
                "node0",
                "node1",
                "node2",
                "node3"
            ]
        );
        assert!(machine.read("/cpu2/siblings").is_err() && machine.list("/none").is_err());
    }

    #[test]
    fn what_is_no_recording_is_refused_with_its_line() {
        for (text, wanted) in [
            ("", "no line begins"),
            ("== proc/x\n", "line 1: \"proc/x\" is not a path"),
            ("\nhello\n", "line 2: text that belongs to no path"),
        ] {
            let error = Recorded::parse(text).expect_err(text);
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_choice_must_be_offered_and_a_setting_must_be_there() {
        let machine = Recorded::parse(
            "== /q/queue/scheduler\nnone [mq-deadline]\n== /q/queue/nr_requests\n64\n",
        )
        .expect("a machine");
        machine.set("/q/queue/scheduler", "none").expect("offered");
        assert_eq!(
            machine.read("/q/queue/scheduler").expect("there"),
            "[none] mq-deadline\n"
        );
        assert_eq!(
            machine.read("/q/queue/nr_requests").expect("there"),
            "127\n"
        );
        let error = machine
            .set("/q/queue/scheduler", "noop")
            .expect_err("not offered");
        assert_eq!(error.raw_os_error(), Some(22));
        let error = machine.set("/q/queue/none", "1").expect_err("not there");
        assert_eq!(error.raw_os_error(), Some(2));
    }
}
