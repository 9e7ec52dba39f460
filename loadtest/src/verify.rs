//! `--verify`: what the server acknowledged, and whether it is there at the end.
//!
//! For every key the newest acknowledged write is remembered: 12 bytes per key and thread, whatever the length of the run. At the
//! end each is read back: the newest record of the key must be it, byte for byte by hash, or the key's history must hold it (a
//! later write whose ack never came may be in front).
//!
//! It trusts nothing that the server says about counts; it knows only acks and reads.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;

use anyhow::{Context as _, bail};
use client::protocol::Input;

use crate::protocol::{Dialect, Outcome, Protocol, Seen};
use crate::records::{KeyText, Written};

/// Gets in flight while reading back.
const READ_BACK_PIPELINE: usize = 256;
/// Versions asked for at a time when a history is searched.
const HISTORY_PAGE: u32 = 100;

/// The newest acknowledged write of every key.
pub struct Acked {
    /// By key number. Fresh zero pages until a key is written.
    hashes: Vec<u64>,
    /// By key number: 0 for keys that were not written.
    versions: Vec<u32>,
    /// Acknowledged writes that got a key and version which another acknowledged write had.
    doubled: u64,
    writes: u64,
}

/// The version of a write that was acknowledged without saying it (NDJSON).
const UNKNOWN: u32 = u32::MAX;

/// What reading back found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Acknowledged writes in the run.
    pub acked_writes: u64,
    /// Keys that were read back.
    pub checked_keys: u64,
    /// Acknowledged writes that are not there.
    pub lost: u64,
    /// Acknowledged writes whose place holds other bytes, or whose version was given away twice.
    pub wrong: u64,
}

impl Acked {
    /// Room for keys below `keys`.
    pub fn new(keys: u64) -> Acked {
        let keys = usize::try_from(keys).expect("flags are checked: at most 2^32 keys");
        Acked {
            hashes: vec![0; keys],
            versions: vec![0; keys],
            doubled: 0,
            writes: 0,
        }
    }

    /// An acknowledged append: its records, and their versions where the server said them.
    pub fn remember(&mut self, written: &[Written], versions: &[u32]) {
        self.writes += written.len() as u64;
        for (index, write) in written.iter().enumerate() {
            self.put(*write, versions.get(index).copied().unwrap_or(UNKNOWN));
        }
    }

    fn put(&mut self, write: Written, version: u32) {
        let key = write.key as usize;
        let newest = &mut self.versions[key];
        if version == *newest && version != UNKNOWN {
            self.doubled += 1;
        } else if version >= *newest {
            *newest = version;
            self.hashes[key] = write.hash;
        }
    }

    /// Keys that were written, with the version and hash of the newest acknowledged write.
    fn newest(&self) -> impl Iterator<Item = (Written, u32)> {
        let all = (0..).zip(self.hashes.iter().zip(&self.versions));
        all.filter(|(_, (_, version))| **version != 0)
            .map(|(key, (&hash, &version))| (Written { key, hash }, version))
    }

    /// Adds what another thread got acknowledged.
    pub fn add(&mut self, other: &Acked) {
        self.writes += other.writes;
        self.doubled += other.doubled;
        for (write, version) in other.newest() {
            self.put(write, version);
        }
    }
}

/// Reads every remembered write back over one connection.
///
/// Errors: the connection ends, or what comes is not the protocol. A refused read is an error as well: nothing is proven by it.
pub fn read_back<P: Protocol>(
    acked: &Acked,
    socket: TcpStream,
    dialect: &Dialect,
    text: &KeyText,
    mut progress: impl FnMut(u64),
) -> anyhow::Result<Verdict> {
    let mut reader = Reader {
        socket,
        input: Input::with_capacity(256 * 1024),
        protocol: P::new(dialect),
        text: text.clone(),
    };
    let mut verdict = Verdict {
        acked_writes: acked.writes,
        wrong: acked.doubled,
        ..Verdict::default()
    };
    let writes: Vec<(Written, u32)> = acked.newest().collect();
    for chunk in writes.chunks(READ_BACK_PIPELINE) {
        let found = reader.newest(chunk)?;
        for (&(write, version), seen) in chunk.iter().zip(found) {
            match seen {
                None => verdict.lost += 1,
                Some(seen)
                    if seen.hash == write.hash
                        && (version == UNKNOWN || version == seen.version) => {}
                Some(seen) if version != UNKNOWN && seen.version < version => verdict.lost += 1,
                Some(seen) if version != UNKNOWN && seen.version == version => verdict.wrong += 1,
                Some(_) => reader.search_history(write, version, &mut verdict)?,
            }
        }
        verdict.checked_keys += chunk.len() as u64;
        progress(verdict.checked_keys);
    }
    Ok(verdict)
}

struct Reader<P> {
    socket: TcpStream,
    input: Input,
    protocol: P,
    text: KeyText,
}

impl<P: Protocol> Reader<P> {
    /// The newest record of each key, in order.
    fn newest(&mut self, writes: &[(Written, u32)]) -> anyhow::Result<Vec<Option<Seen>>> {
        let mut out = Vec::new();
        for (id, (write, _)) in (0..).zip(writes) {
            self.protocol.get(&mut out, id, self.text.spell(write.key));
        }
        self.socket.write_all(&out).context("reading back")?;
        let mut found = vec![None; writes.len()];
        for _ in writes {
            self.answer(|protocol, id, good| {
                let place = found
                    .get_mut(id as usize)
                    .ok_or("an answer that was not asked for")?;
                *place = good.map(|answer| protocol.newest(answer)).transpose()?;
                Ok(())
            })?;
        }
        Ok(found)
    }

    /// Looks for `write` behind the newest record of its key.
    fn search_history(
        &mut self,
        write: Written,
        version: u32,
        verdict: &mut Verdict,
    ) -> anyhow::Result<()> {
        if version != UNKNOWN {
            match self.page(write.key, version.saturating_add(1), 1)?.first() {
                Some(seen) if seen.version == version && seen.hash == write.hash => {}
                Some(seen) if seen.version == version => verdict.wrong += 1,
                _ => verdict.lost += 1,
            }
            return Ok(());
        }
        let mut before = 0;
        loop {
            let page = self.page(write.key, before, HISTORY_PAGE)?;
            if page.iter().any(|seen| seen.hash == write.hash) {
                return Ok(());
            }
            match page.last() {
                Some(oldest) if oldest.version > 1 => before = oldest.version,
                _ => {
                    verdict.lost += 1;
                    return Ok(());
                }
            }
        }
    }

    /// Versions of a key before `before`, newest first.
    fn page(&mut self, key: u64, before: u32, limit: u32) -> anyhow::Result<Vec<Seen>> {
        let mut out = Vec::new();
        self.protocol
            .history(&mut out, 0, self.text.spell(key), before, limit);
        self.socket.write_all(&out).context("reading back")?;
        let mut page = Vec::new();
        self.answer(|protocol, _, good| {
            page = good
                .map(|answer| protocol.listed(answer))
                .transpose()?
                .unwrap_or_default();
            Ok(())
        })?;
        Ok(page)
    }

    /// Waits for one answer and shows it with its id; None for "no such key".
    fn answer(
        &mut self,
        see: impl FnOnce(&P, u64, Option<&[u8]>) -> Result<(), String>,
    ) -> anyhow::Result<()> {
        loop {
            let next = self
                .protocol
                .answer(self.input.unread())
                .map_err(anyhow::Error::msg)?;
            if let Some(answer) = next {
                let bytes = &self.input.unread()[..answer.bytes];
                let good = match answer.outcome {
                    Outcome::Good => Some(bytes),
                    Outcome::NotFound => None,
                    Outcome::Refused(number) => {
                        bail!("a read was refused: {}", P::refusal_name(number))
                    }
                };
                see(&self.protocol, answer.id, good).map_err(anyhow::Error::msg)?;
                self.input.consume(answer.bytes);
                return Ok(());
            }
            let count = match self.socket.read(self.input.space()) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => read.context("reading back")?,
            };
            if count == 0 {
                bail!("the server closed the connection while acknowledged writes were read back");
            }
            self.input.filled(count);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(key: u64, hash: u64) -> Written {
        Written { key, hash }
    }

    #[test]
    fn the_newest_version_is_remembered_whatever_the_order_of_acks() {
        let mut acked = Acked::new(4);
        acked.remember(&[write(1, 10), write(1, 11)], &[2, 3]);
        acked.remember(&[write(1, 9)], &[1]);
        assert_eq!((acked.hashes[1], acked.versions[1]), (11, 3));
        let mut other = Acked::new(4);
        other.remember(&[write(1, 12), write(2, 1)], &[4, 1]);
        acked.add(&other);
        assert_eq!(
            (acked.hashes[1], acked.versions[2], acked.writes),
            (12, 1, 5)
        );
        acked.remember(&[write(3, 20), write(3, 21)], &[]);
        assert_eq!(acked.newest().last(), Some((write(3, 21), UNKNOWN)));
    }

    #[test]
    fn a_version_that_was_given_twice_is_noticed() {
        let mut acked = Acked::new(4);
        acked.remember(&[write(1, 10)], &[1]);
        acked.remember(&[write(1, 11)], &[1]);
        assert_eq!(acked.doubled, 1);
    }
}
