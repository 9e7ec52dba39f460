//! One place of a machine where a setting is kept: how it is read, compared and written.
//!
//! Two texts can say the same: `none [bfq]` and `bfq`, `00000003` and `3`. Values are therefore compared in the form that
//! `canonical` gives, and that form is what snapshots hold.

use std::collections::BTreeSet;
use std::io;

use serde::{Deserialize, Serialize};

use crate::ethtool::{self, Setting};
use crate::inventory::{Choice, cpu_list, cpu_ranges};
use crate::system::System;

/// Where a setting is kept.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A file of /proc or /sys.
    File {
        /// Absolute path.
        path: String,
        /// How its text is to be read.
        shape: Shape,
    },
    /// What only ethtool reads and writes.
    Ethtool {
        /// Interface name.
        nic: String,
        /// Which of its settings.
        setting: Setting,
    },
}

/// How the text of a setting is to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Shape {
    /// Words and numbers with white space between them.
    Words,
    /// The word in brackets.
    Choice,
    /// A mask of cores in hexadecimal groups.
    Mask,
    /// A list of cores.
    Cores,
}

impl Shape {
    /// The one form of a text.
    #[must_use]
    pub fn canonical(self, text: &str) -> String {
        let words = || text.split_whitespace().collect::<Vec<_>>().join(" ");
        match self {
            Shape::Words => words(),
            Shape::Choice => Choice::parse(text).map_or_else(words, |choice| choice.current),
            Shape::Mask => mask_of(&cores_of_mask(text)),
            Shape::Cores => cpu_ranges(&cpu_list(text)),
        }
    }
}

/// Cores of a mask such as `3,0000000f`.
fn cores_of_mask(text: &str) -> Vec<usize> {
    let digits: Vec<u32> = text.chars().rev().filter_map(|c| c.to_digit(16)).collect();
    let bits = digits
        .iter()
        .enumerate()
        .flat_map(|(place, digit)| (0..4).map(move |bit| (place * 4 + bit, digit >> bit & 1)));
    bits.filter(|(_, set)| *set == 1)
        .map(|(core, _)| core)
        .collect()
}

/// Cores as the kernel wants a mask: groups of eight hexadecimal digits, for more than 32 cores it accepts nothing else.
#[must_use]
pub fn mask_of(cores: &[usize]) -> String {
    let cores: BTreeSet<usize> = cores.iter().copied().collect();
    let groups = cores.last().map_or(1, |last| last / 32 + 1);
    let group = |number: usize| {
        let bits = (0..32).filter(|bit| cores.contains(&(number * 32 + bit)));
        bits.fold(0_u32, |mask, bit| mask | 1 << bit)
    };
    let mut text = format!("{:x}", group(groups - 1));
    for number in (0..groups - 1).rev() {
        text.push_str(&format!(",{:08x}", group(number)));
    }
    text
}

impl Target {
    /// A file whose text is words.
    #[must_use]
    pub fn words(path: impl Into<String>) -> Target {
        Target::shaped(path, Shape::Words)
    }

    /// A file whose text has this shape.
    #[must_use]
    pub fn shaped(path: impl Into<String>, shape: Shape) -> Target {
        let path = path.into();
        Target::File { path, shape }
    }

    /// The value in force, in its one form.
    pub fn read(&self, system: &dyn System) -> io::Result<String> {
        match self {
            Target::File { path, shape } => Ok(shape.canonical(&system.read(path)?)),
            Target::Ethtool { nic, setting } => {
                let words = setting.words();
                let text = system.ethtool(words.query, nic)?;
                ethtool::current(&text, words.field)
                    .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
            }
        }
    }

    /// Puts a value in force.
    pub fn write(&self, system: &dyn System, value: &str) -> io::Result<()> {
        match self {
            Target::File { path, .. } => system.set(path, value),
            Target::Ethtool { nic, setting } => {
                let words = setting.words();
                system.ethtool_set(words.change, nic, words.option, value)
            }
        }
    }

    /// What a person would type.
    #[must_use]
    pub fn command(&self, value: &str) -> String {
        match self {
            Target::File { path, .. } => format!("echo '{value}' > {path}"),
            Target::Ethtool { nic, setting } => {
                let words = setting.words();
                format!("ethtool {} {nic} {} {value}", words.change, words.option)
            }
        }
    }

    /// Whether a driver decides about it, which may say yes and do nothing (virtio_net with adaptive coalescing).
    #[must_use]
    pub fn is_of_a_driver(&self) -> bool {
        matches!(self, Target::Ethtool { .. })
    }

    /// Whether a failed write says that this machine does not have or does not allow the setting at all, rather than that
    /// something went wrong: the setting is then left out.
    #[must_use]
    pub fn is_refusal_of_the_device(&self, error: &io::Error) -> bool {
        // EIO on an affinity, since Linux 6.11 EPERM: the kernel manages that interrupt itself (NVMe, some cards). Who is not
        // root does not come so far, the file cannot be opened then (EACCES).
        let managed = matches!(self, Target::File { path, .. }
            if path.starts_with("/proc/irq/") && matches!(error.raw_os_error(), Some(5 | 1)));
        managed
            || matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::Unsupported
            )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_that_say_the_same_have_one_form() {
        for (shape, texts, one) in [
            (
                Shape::Words,
                vec!["4096\t131072  6291456\n", "4096 131072 6291456"],
                "4096 131072 6291456",
            ),
            (Shape::Choice, vec!["none [bfq] kyber\n", "bfq\n"], "bfq"),
            (Shape::Mask, vec!["00000000,0000000f\n", "f", "0f"], "f"),
            (Shape::Mask, vec!["00000001,00000000"], "1,00000000"),
            (Shape::Mask, vec!["00000000,00000000", "0"], "0"),
            (Shape::Cores, vec!["0,1,2\n", "0-2", "0-1,2"], "0-2"),
        ] {
            for text in texts {
                assert_eq!(shape.canonical(text), one, "{text:?}");
            }
        }
    }

    #[test]
    fn an_interrupt_that_the_kernel_manages_is_left_out_and_a_missing_right_is_not() {
        let affinity = Target::words("/proc/irq/7/smp_affinity_list");
        let other = Target::words("/proc/sys/vm/swappiness");
        let (eio, eperm, eacces) = (5, 1, 13);
        for (target, errno, refused) in [
            (&affinity, eio, true),
            (&affinity, eperm, true),
            (&affinity, eacces, false),
            (&other, eio, false),
            (&other, eperm, false),
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert_eq!(target.is_refusal_of_the_device(&error), refused, "{errno}");
        }
    }

    #[test]
    fn masks_of_many_cores_are_cut_into_groups() {
        for (cores, mask) in [
            (vec![], "0"),
            (vec![0, 1], "3"),
            (vec![31], "80000000"),
            (vec![0, 32], "1,00000001"),
            (vec![127], "80000000,00000000,00000000,00000000"),
        ] {
            assert_eq!(mask_of(&cores), mask);
            assert_eq!(cores_of_mask(mask), cores);
        }
    }
}
