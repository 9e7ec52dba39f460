//! A filesystem that forgets: mounted by FUSE, kept in memory, and what no sync has asked for is at the mercy of a loss of
//! power. The real binary runs on it over the real ring, so that what it syncs and when is what is tested; a SIGKILL tests
//! nothing of that, the page cache outlives it. The idea is LazyFS's (VLDB 2024), the fate of unsynced bytes FoundationDB's.
//!
//! Gone when dropped, also when a test fails. It does not know what is stored.

mod tree;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, KernelConfig, LockOwner, MountOption, OpenFlags, RenameFlags, ReplyAttr,
    ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, TimeOrNow, WriteFlags,
};
use rand::rngs::StdRng;
use sim::image::{CrashMode, Image, PAGE_BYTES};

use crate::ground::unmount;
use crate::skipped;
pub use tree::Syncs;
use tree::{Directory, Node, Tree};

/// The kernel asks anew each time: nothing that it remembers may outlive a loss of power.
const NOT_KEPT: Duration = Duration::ZERO;
/// O_DSYNC and O_SYNC, as Linux numbers them on x86-64 and AArch64; a write with RWF_DSYNC comes with the same.
const DSYNC: i32 = 0o10000;
/// As much as a large batch, so that one write is one request.
const WRITE_MAX: u32 = 1 << 20;

/// The mounted filesystem.
pub struct Forgetful {
    mount: PathBuf,
    tree: Arc<Mutex<Tree>>,
    session: Option<BackgroundSession>,
}

impl Forgetful {
    /// Mounted at `at`. None: it cannot be had here, which is said.
    pub fn mount(test: &str, at: &Path) -> Option<Forgetful> {
        let tree = Arc::new(Mutex::new(Tree::new()));
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("pinion-forgetful".into())];
        match fuser::spawn_mount(Mounted(tree.clone()), at, &config) {
            Ok(session) => Some(Forgetful {
                mount: at.to_owned(),
                tree,
                session: Some(session),
            }),
            Err(error) => {
                skipped(test, &format!("needs root and /dev/fuse ({error})"));
                None
            }
        }
    }

    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.tree.lock().expect("no panic")
    }

    /// From now on every operation fails, and nothing changes any more.
    pub fn power_off(&self) {
        self.tree().off = true;
    }

    /// The same with the operation that follows so many that change something; it is `done` all the same, or not.
    pub fn power_off_behind(&self, operations: u64, done: bool) {
        let mut tree = self.tree();
        tree.off_at = Some((tree.operations + operations + 1, done));
    }

    pub fn is_off(&self) -> bool {
        self.tree().off
    }

    /// How many that change something were asked for.
    pub fn operations(&self) -> u64 {
        self.tree().operations
    }

    /// The filesystem as it is found afterwards: of what nobody had synced some, torn, or nothing. What became of it, in words.
    pub fn power_on(&self, rng: &mut StdRng, mode: CrashMode) -> Vec<String> {
        self.tree().power_on(rng, mode)
    }

    /// From now on syncs are answered and not done.
    pub fn lie(&self) {
        self.tree().lies = true;
    }

    pub fn syncs(&self) -> Syncs {
        self.tree().syncs
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        // Who still has a file open is told of errors, and goes.
        if let Ok(mut tree) = self.tree.lock() {
            tree.off = true;
        }
        match unmount(&self.mount) {
            Ok(()) => drop(self.session.take().map(BackgroundSession::umount_and_join)),
            Err(why) => eprintln!("left mounted: {why}"),
        }
    }
}

/// What the kernel calls.
struct Mounted(Arc<Mutex<Tree>>);

impl Mounted {
    fn tree(&self) -> MutexGuard<'_, Tree> {
        self.0.lock().expect("no panic")
    }

    /// The tree, for who opened the file in this life.
    fn opened(&self, handle: FileHandle) -> Result<MutexGuard<'_, Tree>, Errno> {
        let tree = self.tree();
        if handle.0 == tree.life {
            Ok(tree)
        } else {
            Err(Errno::EIO)
        }
    }

    fn removed(&self, parent: INodeNo, name: &OsStr) -> Result<(), Errno> {
        self.tree().operate(|tree| tree.remove(parent.0, name))
    }

    fn resize(&self, inode: u64, size: u64) -> Result<(), Errno> {
        self.tree().operate(|tree| {
            let image = tree.file_mut(inode)?;
            match index(size)? {
                0 => image.empty(),
                size if size >= image.bytes().len() => image.lengthen(size),
                _ => return Err(Errno::EOPNOTSUPP),
            }
            Ok(())
        })
    }
}

fn index(offset: u64) -> Result<usize, Errno> {
    usize::try_from(offset).map_err(|_| Errno::EFBIG)
}

fn attributes(tree: &Tree, inode: u64) -> Result<FileAttr, Errno> {
    let (kind, perm, size) = match tree.node(inode)? {
        Node::File(image) => (FileType::RegularFile, 0o644, image.bytes().len() as u64),
        Node::Directory(_) => (FileType::Directory, 0o755, PAGE_BYTES as u64),
    };
    Ok(FileAttr {
        ino: INodeNo(inode),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PAGE_BYTES as u32,
        flags: 0,
    })
}

fn entered(tree: &mut Tree, parent: INodeNo, name: &OsStr, node: Node) -> Result<FileAttr, Errno> {
    let inode = tree.operate(|tree| tree.create(parent.0, name, node))?;
    attributes(tree, inode)
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}

fn answer_entry(reply: ReplyEntry, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.entry(&NOT_KEPT, &attributes, Generation(0)),
        Err(errno) => reply.error(errno),
    }
}

fn answer_attributes(reply: ReplyAttr, result: Result<FileAttr, Errno>) {
    match result {
        Ok(attributes) => reply.attr(&NOT_KEPT, &attributes),
        Err(errno) => reply.error(errno),
    }
}

fn answer_opened(reply: ReplyOpen, tree: &Tree, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.opened(FileHandle(tree.life), FopenFlags::empty()),
        Err(errno) => reply.error(errno),
    }
}

impl Filesystem for Mounted {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let largest = config.set_max_write(WRITE_MAX).err();
        if let Some(largest) = largest {
            let _ = config.set_max_write(largest);
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let tree = self.tree();
        let found = tree.lookup(parent.0, name);
        answer_entry(reply, found.and_then(|inode| attributes(&tree, inode)));
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        answer_attributes(reply, attributes(&self.tree(), inode.0));
    }

    fn setattr(
        &self,
        _: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let of_this_life = handle.map_or(Ok(()), |handle| self.opened(handle).map(drop));
        let result = of_this_life
            .and_then(|()| size.map_or(Ok(()), |size| self.resize(inode.0, size)))
            .and_then(|()| attributes(&self.tree(), inode.0));
        answer_attributes(reply, result);
    }

    fn mkdir(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        let node = Node::Directory(Directory::default());
        answer_entry(reply, entered(&mut self.tree(), parent, name, node));
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut tree = self.tree();
        match entered(&mut tree, parent, name, Node::File(Image::default())) {
            Ok(attributes) => reply.created(
                &NOT_KEPT,
                &attributes,
                Generation(0),
                FileHandle(tree.life),
                FopenFlags::empty(),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.removed(parent, name));
    }

    fn rmdir(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        answer(reply, self.removed(parent, name));
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let result = if parent == new_parent && flags.is_empty() {
            self.tree()
                .operate(|tree| tree.rename(parent.0, name, new_name))
        } else {
            Err(Errno::EOPNOTSUPP)
        };
        answer(reply, result);
    }

    fn open(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let tree = self.tree();
        answer_opened(reply, &tree, tree.file(inode.0).map(drop));
    }

    fn opendir(&self, _: &Request, inode: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        let tree = self.tree();
        answer_opened(reply, &tree, tree.directory(inode.0).map(drop));
    }

    fn read(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut bytes = vec![0; size as usize];
        let read = self
            .opened(handle)
            .and_then(|tree| Ok(tree.file(inode.0)?.read(index(offset)?, &mut bytes)));
        match read {
            Ok(count) => reply.data(&bytes[..count]),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let durable = flags.0 & DSYNC != 0;
        let written = self.opened(handle).and_then(|mut tree| {
            let offset = index(offset)?;
            tree.operate(|tree| tree.write(inode.0, offset, data, durable))
        });
        match written {
            Ok(()) => reply.written(data.len() as u32),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let synced = self
            .opened(handle)
            .and_then(|mut tree| tree.operate(|tree| tree.sync(inode.0)));
        answer(reply, synced);
    }

    fn fsyncdir(
        &self,
        request: &Request,
        inode: INodeNo,
        handle: FileHandle,
        datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.fsync(request, inode, handle, datasync, reply);
    }

    fn fallocate(
        &self,
        _: &Request,
        inode: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let result = self.opened(handle).and_then(|mut tree| {
            // Space is not counted here: there is nothing to reserve without a length.
            if mode != 0 {
                return Err(Errno::EOPNOTSUPP);
            }
            let end = index(offset + length)?;
            tree.operate(|tree| {
                tree.file_mut(inode.0)?.lengthen(end);
                Ok(())
            })
        });
        answer(reply, result);
    }

    fn readdir(
        &self,
        _: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let tree = self.tree();
        let names = match tree.directory(inode.0) {
            Ok(directory) => &directory.names,
            Err(errno) => return reply.error(errno),
        };
        let dots = [(OsStr::new("."), inode.0), (OsStr::new(".."), inode.0)];
        let all = dots
            .into_iter()
            .chain(names.iter().map(|(n, i)| (n.as_os_str(), *i)));
        for (at, (name, leads_to)) in (1..).zip(all).skip(offset as usize) {
            let kind = match tree.node(leads_to) {
                Ok(Node::File(_)) => FileType::RegularFile,
                _ => FileType::Directory,
            };
            if reply.add(INodeNo(leads_to), at, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        const BLOCKS: u64 = 1 << 21;
        let page = PAGE_BYTES as u32;
        reply.statfs(BLOCKS, BLOCKS, BLOCKS, 1 << 20, 1 << 20, page, 255, page);
    }
}
