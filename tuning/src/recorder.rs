//! Writes down what is read of a machine, in the form that `recorded` reads.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use crate::system::{Lock, System};

/// A machine that remembers what was asked of it. Changes are refused: a recording is of the machine as it is.
#[derive(Debug)]
pub struct Recorder<S> {
    machine: S,
    /// Path to what stands behind it in the recording.
    seen: RefCell<BTreeMap<String, Seen>>,
}

#[derive(Debug)]
enum Seen {
    Text(String),
    Link(String),
    Directory,
}

impl<S: System> Recorder<S> {
    /// Records what is asked of `machine` from now on.
    pub fn new(machine: S) -> Recorder<S> {
        Recorder {
            machine,
            seen: RefCell::default(),
        }
    }

    fn note(&self, path: String, seen: Seen) {
        self.seen.borrow_mut().insert(path, seen);
    }

    /// The recording so far.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (path, seen) in &*self.seen.borrow() {
            // Writing to a String cannot fail.
            let _ = match seen {
                Seen::Text(text) if text.ends_with('\n') => write!(out, "== {path}\n{text}"),
                Seen::Text(text) => writeln!(out, "== {path}\n{text}"),
                Seen::Link(target) => writeln!(out, "== {path} -> {target}"),
                Seen::Directory => writeln!(out, "== {path}/"),
            };
        }
        out
    }
}

fn refused() -> io::Error {
    io::Error::new(
        io::ErrorKind::PermissionDenied,
        "a machine that is being recorded is not changed",
    )
}

impl<S: System> System for Recorder<S> {
    fn read(&self, path: &str) -> io::Result<String> {
        let text = self.machine.read(path)?;
        self.note(path.to_owned(), Seen::Text(text.clone()));
        Ok(text)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let names = self.machine.list(path)?;
        let mut seen = self.seen.borrow_mut();
        for directory in std::iter::once(path.to_owned())
            .chain(names.iter().map(|name| format!("{path}/{name}")))
        {
            seen.entry(directory).or_insert(Seen::Directory);
        }
        Ok(names)
    }

    fn link(&self, path: &str) -> io::Result<String> {
        let target = self.machine.link(path)?;
        self.note(path.to_owned(), Seen::Link(target.clone()));
        Ok(target)
    }

    fn canonical(&self, path: &str) -> io::Result<String> {
        self.machine.canonical(path)
    }

    fn ethtool(&self, query: &str, nic: &str) -> io::Result<String> {
        let text = self.machine.ethtool(query, nic)?;
        self.note(format!("/ethtool/{nic}/{query}"), Seen::Text(text.clone()));
        Ok(text)
    }

    fn set(&self, _: &str, _: &str) -> io::Result<()> {
        Err(refused())
    }

    fn ethtool_set(&self, _: &str, _: &str, _: &str, _: &str) -> io::Result<()> {
        Err(refused())
    }

    fn replace(&self, _: &str, _: &str) -> io::Result<()> {
        Err(refused())
    }

    fn make_link(&self, _: &str, _: &str) -> io::Result<()> {
        Err(refused())
    }

    fn remove(&self, _: &str) -> io::Result<()> {
        Err(refused())
    }

    fn remove_directory(&self, _: &str) -> io::Result<()> {
        Err(refused())
    }

    fn lock(&self, _: &str) -> io::Result<Lock> {
        Err(refused())
    }
}
