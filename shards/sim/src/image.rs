//! One file as a device keeps it: what is visible now, what would survive a crash, and what lies between.
//!
//! A write is *unsynced* from its start until it is known to be on stable storage; a crash decides the fate of each
//! unsynced write by the seed: whole, dropped, or torn by sectors that are old, new or garbage. The length is unsynced in the
//! same way. It does not know the file's name, time, or what the bytes mean.

use rand::Rng;
use rand::rngs::StdRng;

/// What a crash may tear.
pub const SECTOR_BYTES: usize = 512;
/// What a write is a multiple of.
pub const PAGE_BYTES: usize = 4096;

/// How gentle a crash is with unsynced writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// The process dies, the machine lives: finished writes stay, running ones end somewhere.
    Kill,
    /// Power fails with an honest but lucky cache: everything that was written is there.
    KeepAll,
    /// Power fails and nothing unsynced is there.
    DropAll,
    /// Each write is there or not.
    Mixed,
    /// Each write is there, not there, or torn.
    Torn,
}

impl CrashMode {
    /// All of them.
    pub const ALL: [CrashMode; 5] = [
        CrashMode::Kill,
        CrashMode::KeepAll,
        CrashMode::DropAll,
        CrashMode::Mixed,
        CrashMode::Torn,
    ];

    /// As a run prints it.
    pub fn name(self) -> &'static str {
        match self {
            CrashMode::Kill => "process killed",
            CrashMode::KeepAll => "power lost, cache kept",
            CrashMode::DropAll => "power lost, cache lost",
            CrashMode::Mixed => "power lost, some writes",
            CrashMode::Torn => "power lost, torn writes",
        }
    }
}

#[derive(Clone, Debug)]
struct Unsynced {
    id: u64,
    offset: usize,
    bytes: Vec<u8>,
    finished: bool,
}

/// The contents of one file.
#[derive(Clone, Debug, Default)]
pub struct Image {
    durable: Vec<u8>,
    visible: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// It was cut to nothing, and no sync has come since. What is written meanwhile goes to other blocks: the old ones stay as
    /// they are until the filesystem has written the cut down.
    emptied: bool,
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if image.len() < offset + bytes.len() {
        image.resize(offset + bytes.len(), 0);
    }
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
}

impl Image {
    /// What can be read now.
    pub fn bytes(&self) -> &[u8] {
        &self.visible
    }

    /// Cut to nothing.
    pub fn empty(&mut self) {
        self.visible.clear();
        self.unsynced.clear();
        self.emptied = true;
    }

    /// Lengthen with zeroes to `bytes`. The length is as unsynced as a write.
    pub fn lengthen(&mut self, bytes: usize) {
        if self.visible.len() < bytes {
            self.visible.resize(bytes, 0);
        }
    }

    /// Start a write by a name that no other write of this file has; it is neither visible nor durable.
    pub fn start_write(&mut self, id: u64, offset: usize, bytes: Vec<u8>) {
        self.unsynced.push(Unsynced {
            id,
            offset,
            bytes,
            finished: false,
        });
    }

    /// A write ends: visible, and durable if `durable`. Only the first `count` bytes took effect.
    pub fn finish_write(&mut self, id: u64, count: usize, durable: bool) {
        let Some(at) = self.unsynced.iter().position(|w| w.id == id) else {
            return;
        };
        self.unsynced[at].bytes.truncate(count);
        self.unsynced[at].finished = true;
        let (offset, bytes) = (self.unsynced[at].offset, self.unsynced[at].bytes.clone());
        put(&mut self.visible, offset, &bytes);
        if durable {
            // What was written there earlier must not come back over it.
            for older in &mut self.unsynced[..at] {
                let from = offset.max(older.offset);
                let to = (offset + bytes.len()).min(older.offset + older.bytes.len());
                if from < to {
                    older.bytes[from - older.offset..to - older.offset]
                        .copy_from_slice(&bytes[from - offset..to - offset]);
                }
            }
            self.unsynced.remove(at);
            self.write_cut_down();
            put(&mut self.durable, offset, &bytes);
        }
    }

    /// A write that took no effect, out of the way: its offset and bytes.
    pub fn take_write(&mut self, id: u64) -> Option<(usize, Vec<u8>)> {
        let at = self.unsynced.iter().position(|w| w.id == id)?;
        let write = self.unsynced.remove(at);
        Some((write.offset, write.bytes))
    }

    /// Bytes come onto the media behind everybody's back.
    pub fn overwrite(&mut self, offset: usize, bytes: &[u8]) {
        put(&mut self.visible, offset, bytes);
        put(&mut self.durable, offset, bytes);
    }

    /// Change a byte that is visible, on the media too if it is there.
    pub fn change(&mut self, offset: usize, change: impl Fn(&mut u8)) {
        change(&mut self.visible[offset]);
        if let Some(byte) = self.durable.get_mut(offset) {
            change(byte);
        }
    }

    /// Writes that a sync which starts now has to make durable.
    pub fn finished_writes(&self) -> Vec<u64> {
        self.unsynced
            .iter()
            .filter(|w| w.finished)
            .map(|w| w.id)
            .collect()
    }

    /// A sync ends that began with these writes.
    pub fn finish_sync(&mut self, ids: &[u64]) {
        self.write_cut_down();
        let all = std::mem::take(&mut self.unsynced);
        for write in all {
            if ids.contains(&write.id) {
                put(&mut self.durable, write.offset, &write.bytes);
            } else {
                self.unsynced.push(write);
            }
        }
        let len = self.visible.len();
        if self.durable.len() < len && self.unsynced.is_empty() {
            self.durable.resize(len, 0);
        }
    }

    /// The filesystem has written down that the file was cut.
    fn write_cut_down(&mut self) {
        if std::mem::take(&mut self.emptied) {
            self.durable.clear();
        }
    }

    /// Visible bytes at `offset`; how many there were.
    pub fn read(&self, offset: usize, into: &mut [u8]) -> usize {
        let from = self.visible.get(offset..).unwrap_or(&[]);
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        count
    }

    /// Power fails, or the process dies: each unsynced write finds its fate, which is said under `name`. Afterwards everything
    /// visible is durable.
    pub fn crash(&mut self, rng: &mut StdRng, mode: CrashMode, name: &str, said: &mut Vec<String>) {
        let cut_lost = match mode {
            CrashMode::Kill | CrashMode::KeepAll => false,
            CrashMode::DropAll => true,
            CrashMode::Mixed | CrashMode::Torn => self.emptied && rng.random_bool(0.5),
        };
        if self.emptied && cut_lost {
            said.push(format!("{name}: it was not cut after all"));
            self.emptied = false;
            self.unsynced.clear();
        }
        self.write_cut_down();
        let synced_bytes = self.durable.len();
        for write in std::mem::take(&mut self.unsynced) {
            let whole = match mode {
                CrashMode::Kill => write.finished || rng.random_bool(0.5),
                CrashMode::KeepAll => true,
                CrashMode::DropAll => false,
                CrashMode::Mixed => rng.random_bool(0.5),
                CrashMode::Torn => rng.random_bool(0.2),
            };
            let what = format!("{name}: write of {} at {}", write.bytes.len(), write.offset);
            if whole {
                put(&mut self.durable, write.offset, &write.bytes);
                said.push(format!("{what} kept"));
            } else if mode == CrashMode::Torn && rng.random_bool(0.75) {
                tear(&mut self.durable, &write, rng);
                said.push(format!("{what} torn"));
            } else if mode == CrashMode::Kill {
                let pages = write.bytes.len() / PAGE_BYTES;
                let kept = rng.random_range(0..=pages) * PAGE_BYTES;
                put(&mut self.durable, write.offset, &write.bytes[..kept]);
                said.push(format!("{what} ended after {kept} bytes"));
            } else {
                said.push(format!("{what} dropped"));
            }
        }
        // The length is a thing of its own in a filesystem: it may lag behind the blocks.
        let written = self.durable.len();
        if written > synced_bytes
            && matches!(mode, CrashMode::Mixed | CrashMode::Torn)
            && rng.random_bool(0.5)
        {
            let pages = rng.random_range(synced_bytes / PAGE_BYTES..=written / PAGE_BYTES);
            self.durable
                .truncate((pages * PAGE_BYTES).max(synced_bytes));
            said.push(format!(
                "{name}: length {written} became {}",
                self.durable.len()
            ));
        }
        // Into the memory that is there: a segment is larger than what the allocator keeps.
        self.visible.clone_from(&self.durable);
    }
}

fn tear(image: &mut Vec<u8>, write: &Unsynced, rng: &mut StdRng) {
    for (page, bytes) in write.bytes.chunks(PAGE_BYTES).enumerate() {
        let at = write.offset + page * PAGE_BYTES;
        match rng.random_range(0..4) {
            0 => put(image, at, bytes),
            1 => {}
            _ => tear_page(image, at, bytes, rng),
        }
    }
}

fn tear_page(image: &mut Vec<u8>, at: usize, bytes: &[u8], rng: &mut StdRng) {
    for (sector, new) in bytes.chunks(SECTOR_BYTES).enumerate() {
        let at = at + sector * SECTOR_BYTES;
        let mut result = new.to_vec();
        match rng.random_range(0..4) {
            0 => {}
            1 => continue,
            // Half of the sectors come out wrong: their head, their tail, or all of them is garbage.
            _ => {
                let cut = rng.random_range(0..new.len());
                let wrong = match rng.random_range(0..3) {
                    0 => 0..cut,
                    1 => cut..new.len(),
                    _ => 0..new.len(),
                };
                rng.fill(&mut result[wrong]);
            }
        }
        put(image, at, &result);
    }
}
