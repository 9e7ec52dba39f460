//! Recorded machines, and a machine that fails, dies or panics at a chosen write.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;

use tuning::apply::Request;
use tuning::recorded::Recorded;
use tuning::settings::{Base, Profile};
use tuning::system::{Lock, System};
use tuning::target::Shape;

pub const STATE: &str = "/var/lib/pinion/tuning";

/// Every recorded machine with the directory that its data are in.
pub const MACHINES: [(&str, &str, &str); 5] = [
    (
        "vm-2core-virtio",
        "/var/lib/pinion",
        include_str!("../../fixtures/vm-2core-virtio.txt"),
    ),
    (
        "metal-2socket-mlx5",
        "/var/lib/pinion",
        include_str!("../../fixtures/metal-2socket-mlx5.txt"),
    ),
    (
        "ec2-16core-ena",
        "/var/lib/pinion",
        include_str!("../../fixtures/ec2-16core-ena.txt"),
    ),
    (
        "laptop-4core",
        "/var/lib/pinion",
        include_str!("../../fixtures/laptop-4core.txt"),
    ),
    (
        "container",
        "/data",
        include_str!("../../fixtures/container.txt"),
    ),
];

pub fn machine(name: &str) -> (Recorded, &'static str) {
    let (_, data, text) = MACHINES
        .iter()
        .find(|(known, ..)| *known == name)
        .expect("a recorded machine");
    let machine = Recorded::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
    (machine, data)
}

pub fn profiles() -> [Profile; 2] {
    Base::ALL.map(Profile::built_in)
}

pub fn request<'a>(system: &'a dyn System, data: &'a str, profile: &'a Profile) -> Request<'a> {
    Request {
        system,
        data,
        profile,
        force: true,
        state: STATE,
    }
}

/// Everything on a machine, in the form in which equal settings are equal texts.
pub fn content(machine: &Recorded) -> BTreeMap<String, String> {
    let one_form = |(path, text): (String, String)| {
        let shape = if path.ends_with("_cpus") || path.ends_with("/cpumask") {
            Shape::Mask
        } else {
            Shape::Words
        };
        let text = shape.canonical(&text);
        (path, text)
    };
    machine.files().into_iter().map(one_form).collect()
}

/// What happens at the chosen write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails with this errno, and nothing is written.
    Errno(i32),
    /// The process ends before it.
    DeathBefore,
    /// The process ends behind it.
    DeathBehind,
    /// It and what follows are done, and this file cannot be read any more.
    Unreadable(&'static str),
    /// A driver says yes to this option and does nothing.
    Ignored(&'static str),
    /// There must be none.
    Panic,
}

/// A machine with a fault at its nth write, counted from 0.
pub struct Faulty<'a> {
    pub machine: &'a Recorded,
    pub fault: Fault,
    pub at: usize,
    pub writes: Cell<usize>,
    dead: Cell<bool>,
}

impl<'a> Faulty<'a> {
    pub fn new(machine: &'a Recorded, fault: Fault, at: usize) -> Faulty<'a> {
        Faulty {
            machine,
            fault,
            at,
            writes: Cell::new(0),
            dead: Cell::new(false),
        }
    }

    /// A dead process does nothing any more, whatever its code would have it do.
    fn alive(&self) -> io::Result<()> {
        if self.dead.get() {
            return Err(io::Error::other("the process has ended"));
        }
        Ok(())
    }

    fn write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        self.alive()?;
        let number = self.writes.replace(self.writes.get() + 1);
        if number != self.at {
            return write();
        }
        match self.fault {
            Fault::Unreadable(_) | Fault::Ignored(_) => write(),
            Fault::Errno(number) => Err(io::Error::from_raw_os_error(number)),
            Fault::Panic => panic!("nothing may be written here"),
            Fault::DeathBefore => {
                self.dead.set(true);
                self.alive()?;
                unreachable!("it has just died")
            }
            Fault::DeathBehind => {
                let _ = write();
                self.dead.set(true);
                Err(io::Error::other("the process has ended"))
            }
        }
    }
}

impl System for Faulty<'_> {
    fn read(&self, path: &str) -> io::Result<String> {
        self.alive()?;
        if let Fault::Unreadable(unreadable) = self.fault
            && self.writes.get() > self.at
            && path == unreadable
        {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.machine.read(path)
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.alive()?;
        self.machine.list(path)
    }

    fn link(&self, path: &str) -> io::Result<String> {
        self.alive()?;
        self.machine.link(path)
    }

    fn canonical(&self, path: &str) -> io::Result<String> {
        self.machine.canonical(path)
    }

    fn ethtool(&self, query: &str, nic: &str) -> io::Result<String> {
        self.alive()?;
        self.machine.ethtool(query, nic)
    }

    fn set(&self, path: &str, value: &str) -> io::Result<()> {
        self.write(|| self.machine.set(path, value))
    }

    fn ethtool_set(&self, flag: &str, nic: &str, option: &str, value: &str) -> io::Result<()> {
        self.write(|| match self.fault {
            Fault::Ignored(ignored) if ignored == option => Ok(()),
            _ => self.machine.ethtool_set(flag, nic, option, value),
        })
    }

    fn replace(&self, path: &str, text: &str) -> io::Result<()> {
        self.write(|| self.machine.replace(path, text))
    }

    fn make_link(&self, path: &str, target: &str) -> io::Result<()> {
        self.write(|| self.machine.make_link(path, target))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.write(|| self.machine.remove(path))
    }

    fn remove_directory(&self, path: &str) -> io::Result<()> {
        self.write(|| self.machine.remove_directory(path))
    }

    fn lock(&self, path: &str) -> io::Result<Lock> {
        self.write(|| self.machine.lock(path))
    }
}
