//! The files of a machine by their roles: which are there, which names a crash would take away, and damage that strikes any of
//! them. What a crash leaves of a file's contents is `image`'s. It does not know time, sockets or what the bytes mean.

use rand::Rng;
use rand::rngs::StdRng;

use crate::image::Image;
pub use crate::image::{CrashMode, PAGE_BYTES, SECTOR_BYTES};

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Segment file of a slot.
    Segment(u32),
    /// Checkpoint file 0 or 1.
    Checkpoint(usize),
}

/// One file.
#[derive(Clone, Debug)]
pub struct SimFile {
    /// Shard whose log it belongs to.
    pub shard: usize,
    /// What it is for.
    pub role: Role,
    image: Image,
    entry_durable: bool,
    gone: bool,
}

/// All files of a machine.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    files: Vec<SimFile>,
    next_id: u64,
}

impl Disk {
    /// The file of a shard in a role, made if it is not there. A new one's directory entry is not durable.
    pub fn open(&mut self, shard: usize, role: Role) -> usize {
        match self.find(shard, role) {
            Some(index) => index,
            None => {
                self.files.push(SimFile {
                    shard,
                    role,
                    image: Image::default(),
                    entry_durable: false,
                    gone: false,
                });
                self.files.len() - 1
            }
        }
    }

    /// The file of a shard in a role.
    pub fn find(&self, shard: usize, role: Role) -> Option<usize> {
        self.files
            .iter()
            .position(|f| !f.gone && f.shard == shard && f.role == role)
    }

    /// Segment files of a shard: (slot, file, visible length), by slot.
    pub fn segments(&self, shard: usize) -> Vec<(u32, usize, u64)> {
        let mut found: Vec<_> = self
            .files
            .iter()
            .enumerate()
            .filter(|(_, f)| !f.gone && f.shard == shard)
            .filter_map(|(index, f)| match f.role {
                Role::Segment(slot) => Some((slot, index, f.image.bytes().len() as u64)),
                Role::Checkpoint(_) => None,
            })
            .collect();
        found.sort_unstable();
        found
    }

    /// Take a file's name away, as a failed preparation does.
    pub fn remove(&mut self, file: usize) {
        self.files[file].gone = true;
    }

    /// Cut a file to nothing. Its name stays.
    pub fn empty(&mut self, file: usize) {
        self.files[file].image.empty();
    }

    /// Start a write; it is neither visible nor durable.
    pub fn start_write(&mut self, file: usize, offset: usize, bytes: Vec<u8>) -> u64 {
        self.next_id += 1;
        let id = self.next_id;
        self.files[file].image.start_write(id, offset, bytes);
        id
    }

    /// A write ends: visible, and durable if `durable`. Only the first `count` bytes took effect.
    pub fn finish_write(&mut self, file: usize, id: u64, count: usize, durable: bool) {
        self.files[file].image.finish_write(id, count, durable);
    }

    /// A write ends and was lost: the device says that it is done, and the old sectors stay.
    pub fn lose_write(&mut self, file: usize, id: u64) {
        self.files[file].image.take_write(id);
    }

    /// A write ends and has landed at a wrong place of a wrong file, or of the right one. Where, in words.
    pub fn misdirect_write(&mut self, rng: &mut StdRng, file: usize, id: u64) -> String {
        let Some((_, bytes)) = self.files[file].image.take_write(id) else {
            return "nowhere".into();
        };
        let fits: Vec<usize> = (0..self.files.len())
            .filter(|f| !self.files[*f].gone && self.files[*f].image.bytes().len() >= bytes.len())
            .collect();
        let Some(target) = (!fits.is_empty()).then(|| fits[rng.random_range(0..fits.len())]) else {
            return "nowhere".into();
        };
        let f = &mut self.files[target];
        let pages = (f.image.bytes().len() - bytes.len()) / PAGE_BYTES;
        let offset = rng.random_range(0..=pages) * PAGE_BYTES;
        f.image.overwrite(offset, &bytes);
        format!("shard {} {:?} at {offset}", f.shard, f.role)
    }

    /// A bit rots somewhere in what was written. Where, in words.
    pub fn rot(&mut self, rng: &mut StdRng) -> String {
        let there: Vec<usize> = (0..self.files.len())
            .filter(|f| !self.files[*f].gone && !self.files[*f].image.bytes().is_empty())
            .collect();
        let Some(target) = (!there.is_empty()).then(|| there[rng.random_range(0..there.len())])
        else {
            return "nowhere".into();
        };
        let f = &mut self.files[target];
        // Zeroes behind the log are most of a file; what was written is what matters.
        let bytes = f.image.bytes();
        let end = bytes.iter().rposition(|b| *b != 0).unwrap_or(0);
        let (offset, bit) = (rng.random_range(0..=end), rng.random_range(0..8u8));
        f.image.change(offset, |byte| *byte ^= 1 << bit);
        format!("shard {} {:?} at {offset}", f.shard, f.role)
    }

    /// Writes that a sync which starts now has to make durable.
    pub fn finished_writes(&self, file: usize) -> Vec<u64> {
        self.files[file].image.finished_writes()
    }

    /// A sync ends.
    pub fn finish_sync(&mut self, file: usize, ids: &[u64]) {
        self.files[file].image.finish_sync(ids);
    }

    /// The directory of a shard is synced: its entries are durable.
    pub fn sync_directory(&mut self, shard: usize) {
        for f in self.files.iter_mut().filter(|f| f.shard == shard) {
            f.entry_durable = true;
        }
    }

    /// Visible bytes at `offset`; how many there were.
    pub fn read(&self, file: usize, offset: usize, into: &mut [u8]) -> usize {
        self.files[file].image.read(offset, into)
    }

    /// The contents that survive, for tests that look at them or damage them. Call it between two lives.
    pub fn image_mut(&mut self, file: usize) -> &mut Image {
        &mut self.files[file].image
    }

    /// Power fails, or the process dies. Afterwards everything visible is durable.
    pub fn crash(&mut self, rng: &mut StdRng, mode: CrashMode) -> Vec<String> {
        let mut said = Vec::new();
        for f in &mut self.files {
            f.crash(rng, mode, &mut said);
        }
        self.files.retain(|f| !f.gone);
        said
    }
}

impl SimFile {
    fn crash(&mut self, rng: &mut StdRng, mode: CrashMode, said: &mut Vec<String>) {
        let name = format!("shard {} {:?}", self.shard, self.role);
        let entry_lost = match mode {
            CrashMode::Kill | CrashMode::KeepAll => false,
            CrashMode::DropAll => true,
            CrashMode::Mixed | CrashMode::Torn => rng.random_bool(0.5),
        };
        if !self.entry_durable && entry_lost && !self.gone {
            said.push(format!("{name}: directory entry lost"));
            self.gone = true;
        }
        if !self.gone {
            self.image.crash(rng, mode, &name, said);
            self.entry_durable = true;
        }
    }
}
