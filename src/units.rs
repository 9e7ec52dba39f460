//! What people type for sizes and cores, as types: one parser for flags, environment and file alike.

use std::fmt;
use std::str::FromStr;

use bytesize::ByteSize;
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A size in bytes: `67108864`, `64MiB`, `64MB`, `1.5 GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        text.parse::<ByteSize>()
            .map(|size| Bytes(size.as_u64()))
            .map_err(|_| {
                format!("{text:?} is not a size: type bytes or a number with a unit, as in 64MiB")
            })
    }
}

impl fmt::Display for Bytes {
    /// Short where nothing is lost (`64MiB`), plain bytes where a unit would round.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >> shift > 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        struct Size;
        impl Visitor<'_> for Size {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: bytes, or a string with a unit as in \"64MiB\"")
            }
            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Bytes, E> {
                u64::try_from(bytes)
                    .map(Bytes)
                    .map_err(|_| E::custom("a size cannot be negative"))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Bytes, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Size)
    }
}

/// A set of cores: `0`, `0,2-5`. Ascending order is not required, a core named twice is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

/// Beyond any machine that we know, and small enough that a mistyped range does not eat the memory.
const CORE_MAX: usize = 4095;

impl Cores {
    fn checked(cores: Vec<usize>) -> Result<Cores, String> {
        if cores.is_empty() {
            return Err("no core is named: type a list such as 0,2-5".into());
        }
        for (at, core) in cores.iter().enumerate() {
            if *core > CORE_MAX {
                return Err(format!("core {core} is above {CORE_MAX}"));
            }
            if cores[..at].contains(core) {
                return Err(format!(
                    "core {core} is named twice: every shard has a core of its own"
                ));
            }
        }
        Ok(Cores(cores))
    }
}

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Cores, String> {
        let number = |part: &str| {
            part.trim()
                .parse::<usize>()
                .ok()
                .filter(|core| *core <= CORE_MAX)
                .ok_or_else(|| {
                    format!("{part:?} is not a core: type a list of cores and ranges such as 0,2-5")
                })
        };
        let mut cores = Vec::new();
        for part in text.split(',') {
            match part.split_once('-') {
                None => cores.push(number(part)?),
                Some((first, last)) => {
                    let (first, last) = (number(first)?, number(last)?);
                    if first > last {
                        return Err(format!("range {part} runs backwards: type {last}-{first}"));
                    }
                    cores.extend(first..=last);
                }
            }
        }
        Cores::checked(cores)
    }
}

impl fmt::Display for Cores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, core) in self.0.iter().enumerate() {
            write!(f, "{}{core}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Cores, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Cores;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("cores: a string such as \"0,2-5\", or a list of numbers")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Cores, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Cores, A::Error> {
                let mut cores = Vec::new();
                while let Some(core) = items.next_element()? {
                    cores.push(core);
                }
                Cores::checked(cores).map_err(de::Error::custom)
            }
        }
        deserializer.deserialize_any(List)
    }
}

/// `HOST:PORT`, as it is given to the resolver.
pub fn address(text: &str) -> Result<String, String> {
    let port = |port: &str| port.parse::<u16>().is_ok_and(|port| port > 0);
    match text.rsplit_once(':') {
        Some((host, number)) if !host.is_empty() && port(number) => Ok(text.to_owned()),
        _ => Err("type a host and a port, as in 127.0.0.1:7600".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["127.0.0.1:7600", "db.internal:1", "[::1]:65535"] {
            assert_eq!(address(good).as_deref(), Ok(good));
        }
        for bad in ["", "foo", ":7600", "foo:", "foo:0", "foo:65536", "foo:bar"] {
            assert!(address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_exact_and_come_back_as_they_went() {
        for (text, bytes) in [
            ("67108864", 64 << 20),
            ("64MiB", 64 << 20),
            ("64 MiB", 64 << 20),
            ("64MB", 64_000_000),
            ("1.5GiB", 3 << 29),
            ("0", 0),
        ] {
            assert_eq!(text.parse::<Bytes>(), Ok(Bytes(bytes)), "{text}");
        }
        for bytes in [0, 1, 1023, 1024, 1025, 3 << 29, 64 << 20, (64 << 20) + 1] {
            assert_eq!(Bytes(bytes).to_string().parse::<Bytes>(), Ok(Bytes(bytes)));
        }
        for text in ["", "many", "64 parsecs", "-1"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn cores_are_lists_and_ranges() {
        for (text, cores) in [
            ("0", vec![0]),
            ("0,2-5", vec![0, 2, 3, 4, 5]),
            ("3,1", vec![3, 1]),
            (" 1 , 2 - 3 ", vec![1, 2, 3]),
        ] {
            assert_eq!(text.parse::<Cores>(), Ok(Cores(cores)), "{text}");
        }
        for text in ["", ",", "a", "1-", "-1", "5-2", "1,1", "0-2,2", "99999999"] {
            assert!(text.parse::<Cores>().is_err(), "{text}");
        }
    }
}
