//! Files as a device keeps them: what is visible now, what would survive a crash, and what lies between.
//!
//! A write is *unsynced* from its start until it is known to be on stable storage; a crash decides the fate of each
//! unsynced write by the seed: whole, dropped, or torn by sectors that are old, new or garbage. A file's length and its
//! directory entry are unsynced in the same way. It does not know time, sockets or what the bytes mean.

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

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Segment file of a slot.
    Segment(u32),
    /// Checkpoint file 0 or 1.
    Checkpoint(usize),
}

#[derive(Clone, Debug)]
struct Unsynced {
    id: u64,
    offset: usize,
    bytes: Vec<u8>,
    finished: bool,
}

/// One file.
#[derive(Clone, Debug)]
pub struct SimFile {
    /// Shard whose log it belongs to.
    pub shard: usize,
    /// What it is for.
    pub role: Role,
    durable: Vec<u8>,
    visible: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// It was cut to nothing, and no sync has come since. What is written meanwhile goes to other blocks: the old ones stay as
    /// they are until the filesystem has written the cut down.
    emptied: bool,
    entry_durable: bool,
    gone: bool,
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if image.len() < offset + bytes.len() {
        image.resize(offset + bytes.len(), 0);
    }
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
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
                    durable: Vec::new(),
                    visible: Vec::new(),
                    unsynced: Vec::new(),
                    emptied: false,
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
                Role::Segment(slot) => Some((slot, index, f.visible.len() as u64)),
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
        let f = &mut self.files[file];
        f.visible.clear();
        f.unsynced.clear();
        f.emptied = true;
    }

    /// Start a write; it is neither visible nor durable.
    pub fn start_write(&mut self, file: usize, offset: usize, bytes: Vec<u8>) -> u64 {
        self.next_id += 1;
        self.files[file].unsynced.push(Unsynced {
            id: self.next_id,
            offset,
            bytes,
            finished: false,
        });
        self.next_id
    }

    /// A write ends: visible, and durable if `durable`. Only the first `count` bytes took effect.
    pub fn finish_write(&mut self, file: usize, id: u64, count: usize, durable: bool) {
        let f = &mut self.files[file];
        let Some(at) = f.unsynced.iter().position(|w| w.id == id) else {
            return;
        };
        f.unsynced[at].bytes.truncate(count);
        f.unsynced[at].finished = true;
        let (offset, bytes) = (f.unsynced[at].offset, f.unsynced[at].bytes.clone());
        put(&mut f.visible, offset, &bytes);
        if durable {
            // What was written there earlier must not come back over it.
            for older in &mut f.unsynced[..at] {
                let from = offset.max(older.offset);
                let to = (offset + bytes.len()).min(older.offset + older.bytes.len());
                if from < to {
                    older.bytes[from - older.offset..to - older.offset]
                        .copy_from_slice(&bytes[from - offset..to - offset]);
                }
            }
            f.unsynced.remove(at);
            f.write_cut_down();
            put(&mut f.durable, offset, &bytes);
        }
    }

    /// A write ends and was lost: the device says that it is done, and the old sectors stay.
    pub fn lose_write(&mut self, file: usize, id: u64) {
        self.files[file].unsynced.retain(|w| w.id != id);
    }

    /// A write ends and has landed at a wrong place of a wrong file, or of the right one. Where, in words.
    pub fn misdirect_write(&mut self, rng: &mut StdRng, file: usize, id: u64) -> String {
        let unsynced = &mut self.files[file].unsynced;
        let Some(at) = unsynced.iter().position(|w| w.id == id) else {
            return "nowhere".into();
        };
        let write = unsynced.remove(at);
        let fits: Vec<usize> = (0..self.files.len())
            .filter(|f| !self.files[*f].gone && self.files[*f].visible.len() >= write.bytes.len())
            .collect();
        let Some(target) = (!fits.is_empty()).then(|| fits[rng.random_range(0..fits.len())]) else {
            return "nowhere".into();
        };
        let f = &mut self.files[target];
        let pages = (f.visible.len() - write.bytes.len()) / PAGE_BYTES;
        let offset = rng.random_range(0..=pages) * PAGE_BYTES;
        put(&mut f.visible, offset, &write.bytes);
        put(&mut f.durable, offset, &write.bytes);
        format!("shard {} {:?} at {offset}", f.shard, f.role)
    }

    /// A bit rots somewhere in what was written. Where, in words.
    pub fn rot(&mut self, rng: &mut StdRng) -> String {
        let there: Vec<usize> = (0..self.files.len())
            .filter(|f| !self.files[*f].gone && !self.files[*f].visible.is_empty())
            .collect();
        let Some(target) = (!there.is_empty()).then(|| there[rng.random_range(0..there.len())])
        else {
            return "nowhere".into();
        };
        let f = &mut self.files[target];
        // Zeroes behind the log are most of a file; what was written is what matters.
        let end = f.visible.iter().rposition(|b| *b != 0).unwrap_or(0);
        let (offset, bit) = (rng.random_range(0..=end), rng.random_range(0..8u8));
        f.visible[offset] ^= 1 << bit;
        if let Some(byte) = f.durable.get_mut(offset) {
            *byte ^= 1 << bit;
        }
        format!("shard {} {:?} at {offset}", f.shard, f.role)
    }

    /// Writes that a sync which starts now has to make durable.
    pub fn finished_writes(&self, file: usize) -> Vec<u64> {
        self.files[file]
            .unsynced
            .iter()
            .filter(|w| w.finished)
            .map(|w| w.id)
            .collect()
    }

    /// A sync ends.
    pub fn finish_sync(&mut self, file: usize, ids: &[u64]) {
        let f = &mut self.files[file];
        f.write_cut_down();
        let all = std::mem::take(&mut f.unsynced);
        for write in all {
            if ids.contains(&write.id) {
                put(&mut f.durable, write.offset, &write.bytes);
            } else {
                f.unsynced.push(write);
            }
        }
        let len = f.visible.len();
        if f.durable.len() < len && f.unsynced.is_empty() {
            f.durable.resize(len, 0);
        }
    }

    /// The directory of a shard is synced: its entries are durable.
    pub fn sync_directory(&mut self, shard: usize) {
        for f in self.files.iter_mut().filter(|f| f.shard == shard) {
            f.entry_durable = true;
        }
    }

    /// Visible bytes at `offset`; how many there were.
    pub fn read(&self, file: usize, offset: usize, into: &mut [u8]) -> usize {
        let image = &self.files[file].visible;
        let from = image.get(offset..).unwrap_or(&[]);
        let count = from.len().min(into.len());
        into[..count].copy_from_slice(&from[..count]);
        count
    }

    /// The image that survives, for tests that damage it. Call it between two lives.
    pub fn image_mut(&mut self, file: usize) -> ImageMut<'_> {
        ImageMut {
            file: &mut self.files[file],
        }
    }

    /// Power fails, or the process dies. Afterwards everything visible is durable.
    pub fn crash(&mut self, rng: &mut StdRng, mode: CrashMode) -> Vec<String> {
        let mut said = Vec::new();
        for f in &mut self.files {
            crash_file(f, rng, mode, &mut said);
        }
        self.files.retain(|f| !f.gone);
        said
    }
}

impl SimFile {
    /// The filesystem has written down that the file was cut.
    fn write_cut_down(&mut self) {
        if std::mem::take(&mut self.emptied) {
            self.durable.clear();
        }
    }
}

/// Damages both images of a file alike.
pub struct ImageMut<'a> {
    file: &'a mut SimFile,
}

impl ImageMut<'_> {
    /// Its bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.file.visible
    }
    /// Change bytes on the media.
    pub fn change(&mut self, offset: usize, change: impl Fn(&mut u8)) {
        change(&mut self.file.visible[offset]);
        change(&mut self.file.durable[offset]);
    }
}

fn crash_file(f: &mut SimFile, rng: &mut StdRng, mode: CrashMode, said: &mut Vec<String>) {
    let name = format!("shard {} {:?}", f.shard, f.role);
    let entry_lost = match mode {
        CrashMode::Kill | CrashMode::KeepAll => false,
        CrashMode::DropAll => true,
        CrashMode::Mixed | CrashMode::Torn => rng.random_bool(0.5),
    };
    if !f.entry_durable && entry_lost && !f.gone {
        said.push(format!("{name}: directory entry lost"));
        f.gone = true;
    }
    if f.gone {
        return;
    }
    let cut_lost = match mode {
        CrashMode::Kill | CrashMode::KeepAll => false,
        CrashMode::DropAll => true,
        CrashMode::Mixed | CrashMode::Torn => f.emptied && rng.random_bool(0.5),
    };
    if f.emptied && cut_lost {
        said.push(format!("{name}: it was not cut after all"));
        f.emptied = false;
        f.unsynced.clear();
    }
    f.write_cut_down();
    let synced_bytes = f.durable.len();
    for write in std::mem::take(&mut f.unsynced) {
        let whole = match mode {
            CrashMode::Kill => write.finished || rng.random_bool(0.5),
            CrashMode::KeepAll => true,
            CrashMode::DropAll => false,
            CrashMode::Mixed => rng.random_bool(0.5),
            CrashMode::Torn => rng.random_bool(0.2),
        };
        let what = format!("{name}: write of {} at {}", write.bytes.len(), write.offset);
        if whole {
            put(&mut f.durable, write.offset, &write.bytes);
            said.push(format!("{what} kept"));
        } else if mode == CrashMode::Torn && rng.random_bool(0.75) {
            tear(&mut f.durable, &write, rng);
            said.push(format!("{what} torn"));
        } else if mode == CrashMode::Kill {
            let pages = write.bytes.len() / PAGE_BYTES;
            let kept = rng.random_range(0..=pages) * PAGE_BYTES;
            put(&mut f.durable, write.offset, &write.bytes[..kept]);
            said.push(format!("{what} ended after {kept} bytes"));
        } else {
            said.push(format!("{what} dropped"));
        }
    }
    // The length is a thing of its own in a filesystem: it may lag behind the blocks.
    let written = f.durable.len();
    if written > synced_bytes
        && matches!(mode, CrashMode::Mixed | CrashMode::Torn)
        && rng.random_bool(0.5)
    {
        let pages = rng.random_range(synced_bytes / PAGE_BYTES..=written / PAGE_BYTES);
        f.durable.truncate((pages * PAGE_BYTES).max(synced_bytes));
        said.push(format!(
            "{name}: length {written} became {}",
            f.durable.len()
        ));
    }
    f.entry_durable = true;
    // Into the memory that is there: a segment is larger than what the allocator keeps.
    f.visible.clone_from(&f.durable);
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
