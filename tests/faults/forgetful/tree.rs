//! Files and directories of a filesystem that forgets: what is visible, what is on its medium, and what a loss of power does to
//! the difference. Contents are `sim::image`'s, FoundationDB's model of a disk; a directory's changes are kept as far as some
//! point in their order, as a journal keeps them. It does not know FUSE.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

use fuser::Errno;
use rand::Rng;
use rand::rngs::StdRng;
use sim::image::{CrashMode, Image};

pub const ROOT: u64 = 1;

type Names = BTreeMap<OsString, u64>;

/// What becomes of names in one step that is there or not: the inode that a name leads to, or that it is gone.
type Change = Vec<(OsString, Option<u64>)>;

#[derive(Default)]
pub struct Directory {
    pub names: Names,
    durable: Names,
    unsynced: Vec<Change>,
}

impl Directory {
    fn change(&mut self, change: Change) {
        apply(&mut self.names, &change);
        self.unsynced.push(change);
    }

    fn sync(&mut self) {
        self.unsynced.clear();
        self.durable.clone_from(&self.names);
    }

    fn crash(&mut self, rng: &mut StdRng, mode: CrashMode, said: &mut Vec<String>) {
        let all = self.unsynced.len();
        let kept = match mode {
            CrashMode::Kill | CrashMode::KeepAll => all,
            CrashMode::DropAll => 0,
            CrashMode::Mixed | CrashMode::Torn => rng.random_range(0..=all),
        };
        for (at, change) in std::mem::take(&mut self.unsynced).into_iter().enumerate() {
            if at < kept {
                apply(&mut self.durable, &change);
            } else {
                said.push(format!("lost: {change:?}"));
            }
        }
        self.names.clone_from(&self.durable);
    }
}

fn apply(names: &mut Names, change: &Change) {
    for (name, leads_to) in change {
        match leads_to {
            Some(inode) => names.insert(name.clone(), *inode),
            None => names.remove(name),
        };
    }
}

pub enum Node {
    File(Image),
    Directory(Directory),
}

/// What was asked to be on the medium.
#[derive(Clone, Copy, Debug, Default)]
pub struct Syncs {
    pub durable_writes: u64,
    pub of_files: u64,
    pub of_directories: u64,
}

/// The whole filesystem.
pub struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    /// Nothing can be done, and nothing changes.
    pub off: bool,
    /// Syncs are answered and forgotten.
    pub lies: bool,
    /// Operations that change something, asked for so far.
    pub operations: u64,
    /// The power goes with this one of them: it is done, but nobody hears of that, or it is not done.
    pub off_at: Option<(u64, bool)>,
    /// Counted up by each loss of power: a descriptor from before is worth nothing.
    pub life: u64,
    pub syncs: Syncs,
}

impl Tree {
    pub fn new() -> Tree {
        Tree {
            nodes: BTreeMap::from([(ROOT, Node::Directory(Directory::default()))]),
            next: ROOT,
            off: false,
            lies: false,
            operations: 0,
            off_at: None,
            life: 0,
            syncs: Syncs::default(),
        }
    }

    /// An operation that changes something. Where the power goes with it, what it did is not heard of.
    pub fn operate<T>(
        &mut self,
        operation: impl FnOnce(&mut Tree) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.powered()?;
        self.operations += 1;
        match self.off_at {
            Some((at, done)) if at == self.operations => {
                if done {
                    let _ = operation(self);
                }
                self.off = true;
                Err(Errno::EIO)
            }
            _ => operation(self),
        }
    }

    pub fn node(&self, inode: u64) -> Result<&Node, Errno> {
        self.powered()?;
        self.nodes.get(&inode).ok_or(Errno::ENOENT)
    }

    fn powered(&self) -> Result<(), Errno> {
        if self.off { Err(Errno::EIO) } else { Ok(()) }
    }

    pub fn directory(&self, inode: u64) -> Result<&Directory, Errno> {
        match self.node(inode)? {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(Errno::ENOTDIR),
        }
    }

    fn directory_mut(&mut self, inode: u64) -> Result<&mut Directory, Errno> {
        self.powered()?;
        match self.nodes.get_mut(&inode) {
            Some(Node::Directory(directory)) => Ok(directory),
            Some(Node::File(_)) => Err(Errno::ENOTDIR),
            None => Err(Errno::ENOENT),
        }
    }

    pub fn file(&self, inode: u64) -> Result<&Image, Errno> {
        match self.node(inode)? {
            Node::File(image) => Ok(image),
            Node::Directory(_) => Err(Errno::EISDIR),
        }
    }

    pub fn file_mut(&mut self, inode: u64) -> Result<&mut Image, Errno> {
        self.powered()?;
        match self.nodes.get_mut(&inode) {
            Some(Node::File(image)) => Ok(image),
            Some(Node::Directory(_)) => Err(Errno::EISDIR),
            None => Err(Errno::ENOENT),
        }
    }

    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<u64, Errno> {
        let found = self.directory(parent)?.names.get(name);
        found.copied().ok_or(Errno::ENOENT)
    }

    /// A new file or directory; its inode.
    pub fn create(&mut self, parent: u64, name: &OsStr, node: Node) -> Result<u64, Errno> {
        if self.lookup(parent, name).is_ok() {
            return Err(Errno::EEXIST);
        }
        self.next += 1;
        let inode = self.next;
        self.directory_mut(parent)?
            .change(vec![(name.to_owned(), Some(inode))]);
        self.nodes.insert(inode, node);
        Ok(inode)
    }

    /// Takes a name away. Who has the file open goes on with it.
    pub fn remove(&mut self, parent: u64, name: &OsStr) -> Result<(), Errno> {
        let inode = self.lookup(parent, name)?;
        if let Node::Directory(directory) = self.node(inode)?
            && !directory.names.is_empty()
        {
            return Err(Errno::ENOTEMPTY);
        }
        self.directory_mut(parent)?
            .change(vec![(name.to_owned(), None)]);
        Ok(())
    }

    /// In one directory and in one step, whatever was at `to`.
    pub fn rename(&mut self, parent: u64, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        let inode = self.lookup(parent, from)?;
        self.directory_mut(parent)?
            .change(vec![(from.to_owned(), None), (to.to_owned(), Some(inode))]);
        Ok(())
    }

    pub fn write(
        &mut self,
        inode: u64,
        offset: usize,
        bytes: &[u8],
        durable: bool,
    ) -> Result<(), Errno> {
        self.next += 1;
        let (id, keep) = (self.next, durable && !self.lies);
        let image = self.file_mut(inode)?;
        image.start_write(id, offset, bytes.to_vec());
        image.finish_write(id, bytes.len(), keep);
        self.syncs.durable_writes += u64::from(durable);
        Ok(())
    }

    /// Of what is visible now, contents and length, or names.
    pub fn sync(&mut self, inode: u64) -> Result<(), Errno> {
        let lies = self.lies;
        match self.node(inode)? {
            Node::File(_) => self.syncs.of_files += 1,
            Node::Directory(_) => self.syncs.of_directories += 1,
        }
        match self.nodes.get_mut(&inode) {
            _ if lies => {}
            Some(Node::File(image)) => {
                let writes = image.finished_writes();
                image.finish_sync(&writes);
            }
            Some(Node::Directory(directory)) => directory.sync(),
            None => {}
        }
        Ok(())
    }

    /// What is not on the medium finds its fate; then the filesystem is there again, for those who open it anew.
    pub fn power_on(&mut self, rng: &mut StdRng, mode: CrashMode) -> Vec<String> {
        let mut said = Vec::new();
        for (inode, node) in &mut self.nodes {
            match node {
                Node::File(image) => image.crash(rng, mode, &format!("inode {inode}"), &mut said),
                Node::Directory(directory) => directory.crash(rng, mode, &mut said),
            }
        }
        let mut reached = BTreeSet::from([ROOT]);
        let mut next = vec![ROOT];
        while let Some(inode) = next.pop() {
            if let Some(Node::Directory(directory)) = self.nodes.get(&inode) {
                next.extend(directory.names.values().filter(|i| reached.insert(**i)));
            }
        }
        self.nodes.retain(|inode, _| reached.contains(inode));
        self.life += 1;
        (self.off, self.off_at) = (false, None);
        said
    }
}
