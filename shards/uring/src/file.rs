//! O_DIRECT files by path: open, preallocate, zero-fill, sync, lock.
//!
//! Blocking calls, for start, shutdown and the thread that prepares segments. It does not know what the files are.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::memory::PAGE;
use crate::{Buffer, WriteDurability, device};

/// Size of one zero-filling write: a durable write of somebody else waits behind at most so much.
const ZERO_WRITE: usize = 128 << 10;
/// Between attempts at a lock.
const LOCK_RETRY: Duration = Duration::from_millis(10);

/// Open for reading and writing past the page cache; created (empty) if `create` and not there.
///
/// Unsupported, naming the filesystem, where O_DIRECT is refused.
pub fn open_direct(path: &Path, create: bool) -> io::Result<OwnedFd> {
    open_with(path, create, libc::O_DIRECT)
}

/// [`open_direct`] with O_DSYNC: every write is durable when it ends, whatever it asks for itself.
pub fn open_direct_dsync(path: &Path, create: bool) -> io::Result<OwnedFd> {
    open_with(path, create, libc::O_DIRECT | libc::O_DSYNC)
}

fn open_with(path: &Path, create: bool, flags: libc::c_int) -> io::Result<OwnedFd> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .create(create)
        .truncate(false)
        .custom_flags(flags);
    match options.open(path) {
        Ok(file) => Ok(file.into()),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            let filesystem =
                device::filesystem_of(path).unwrap_or_else(|_| "its filesystem".to_owned());
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!(
                    "{}: {filesystem} refuses O_DIRECT; put the data directory on ext4, XFS or another filesystem on a block device",
                    path.display()
                ),
            ))
        }
        Err(error) => Err(at(path, error)),
    }
}

/// Reserve `bytes` of disk from the start of the file and set its length; contents read as zero but are not written.
///
/// A first write into such space costs a metadata update; see [`zero_fill`].
pub fn preallocate(file: &OwnedFd, bytes: u64) -> io::Result<()> {
    let length = signed(bytes)?;
    retry(|| {
        // SAFETY: no pointers are passed.
        unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) as isize }
    })
    .map(|_| ())
}

/// Reserve the first `bytes` of disk for the file at `path`, whose length and contents stay as they are: writes there find
/// room on a disk that has become full. Where the filesystem cannot, nothing is reserved.
///
/// # Errors
/// `StorageFull` where there is not that much; nothing is taken then.
pub fn reserve(path: &Path, bytes: u64) -> io::Result<()> {
    let file = open_direct(path, true)?;
    let has = std::fs::metadata(path)?.blocks() * 512;
    if has >= bytes {
        return Ok(());
    }
    // A fallocate that fails for want of space keeps what it got until then.
    if crate::limits::free_bytes(path)? < bytes - has {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let length = signed(bytes)?;
    // SAFETY: no pointers are passed.
    let reserved = retry(|| unsafe {
        libc::fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, length) as isize
    });
    match reserved {
        Err(error) if is_unsupported(&error) => Ok(()),
        result => result.map(|_| ()),
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// fallocate + write zeroes over every byte (O_DIRECT, in slices, several in flight not needed) + fdatasync.
///
/// Afterwards a write anywhere in the file changes data blocks only, so RWF_DSYNC needs no journal commit.
/// `bytes` must be a multiple of 4096.
pub fn zero_fill(file: &OwnedFd, bytes: u64) -> io::Result<()> {
    let mut fill = ZeroFill::begin(file, bytes)?;
    while fill.slice()?.is_some() {}
    fdatasync(file)
}

/// A [`zero_fill`] slice by slice, for a caller that paces it, or ends it early. Nothing of it is durable before an fdatasync.
pub struct ZeroFill<'a> {
    file: &'a OwnedFd,
    bytes: u64,
    filled: u64,
    reserved: bool,
    zeroes: Buffer,
}

impl ZeroFill<'_> {
    /// Empty the file and reserve the space, where the filesystem can.
    pub fn begin(file: &OwnedFd, bytes: u64) -> io::Result<ZeroFill<'_>> {
        if !bytes.is_multiple_of(PAGE as u64) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "zero_fill of a length that is no multiple of 4096",
            ));
        }
        // What is left reserved must read as zeroes, whatever an earlier life wrote there.
        // SAFETY: no pointers are passed.
        retry(|| unsafe { libc::ftruncate(file.as_raw_fd(), 0) as isize })?;
        let reserved = match preallocate(file, bytes) {
            // A filesystem without fallocate allocates as it is written.
            Err(error) if is_unsupported(&error) => false,
            result => result.map(|()| true)?,
        };
        Ok(ZeroFill {
            file,
            bytes,
            filled: 0,
            reserved,
            zeroes: Buffer::new(ZERO_WRITE)?,
        })
    }

    /// Whether what is not filled yet is reserved: the file has its length and its space, and reads as zeroes. A first write
    /// there costs a metadata update.
    pub fn is_reserved(&self) -> bool {
        self.reserved
    }

    /// Write the next slice; its bytes, or None when all is filled.
    pub fn slice(&mut self) -> io::Result<Option<u64>> {
        let step = (self.bytes - self.filled).min(ZERO_WRITE as u64);
        if step == 0 {
            return Ok(None);
        }
        pwrite_all(self.file, self.filled, &self.zeroes[..step as usize])?;
        self.filled += step;
        Ok(Some(step))
    }
}

/// Make the data of a file, and what is needed to find it, durable.
pub fn fdatasync(file: &OwnedFd) -> io::Result<()> {
    retry(|| {
        // SAFETY: no pointers are passed.
        unsafe { libc::fdatasync(file.as_raw_fd()) as isize }
    })
    .map(|_| ())
}

/// Make creations, renames and removals in a directory durable.
pub fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| at(path, error))
}

/// Put a file in the place of another, or of none: a crash in between leaves the one or the other, whole.
pub fn replace(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let whole = path.with_file_name(name);
    File::create(&whole)
        .and_then(|mut file| file.write_all(contents).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&whole, path))
        .map_err(|error| at(path, error))?;
    sync_directory(path.parent().unwrap_or(path))
}

/// Exclusive flock, retried for `patience` (io_uring can keep a dead process's descriptor alive for a moment).
///
/// The file (a directory will do) is created if need be; the lock is held until the descriptor is dropped.
/// WouldBlock: another process has it.
pub fn lock_exclusive(path: &Path, patience: Duration) -> io::Result<OwnedFd> {
    let file = if path.is_dir() {
        File::open(path)
    } else {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    };
    let file = file.map_err(|error| at(path, error))?;
    let start = Instant::now();
    loop {
        // SAFETY: no pointers are passed.
        let locked = retry(|| unsafe {
            libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) as isize
        });
        match locked {
            Ok(_) => return Ok(file.into()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(at(path, error)),
            Err(_) if start.elapsed() >= patience => {
                let text = format!(
                    "{}: locked by another process; find it with `lslocks | grep -F {0}`",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            Err(_) => std::thread::sleep(LOCK_RETRY),
        }
    }
}

/// Fill `out` from `offset`. UnexpectedEof if the file ends before.
///
/// O_DIRECT asks for multiples of the logical block in offset, length and address.
pub fn pread_exact(file: &OwnedFd, mut offset: u64, out: &mut [u8]) -> io::Result<()> {
    let mut rest = out;
    while !rest.is_empty() {
        let at = signed(offset)?;
        // SAFETY: `rest` is writable for its length.
        let read = retry(|| unsafe {
            libc::pread(file.as_raw_fd(), rest.as_mut_ptr().cast(), rest.len(), at)
        })?;
        if read == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("file ends at {offset}"),
            ));
        }
        rest = &mut rest[read..];
        offset += read as u64;
    }
    Ok(())
}

/// Write all of `data` at `offset`. Not durable before an [`fdatasync`].
pub fn pwrite_all(file: &OwnedFd, offset: u64, data: &[u8]) -> io::Result<()> {
    pwrite_all_with(file, offset, data, WriteDurability::None)
}

/// [`pwrite_all`], durable on return if `durability` says so.
pub fn pwrite_all_with(
    file: &OwnedFd,
    mut offset: u64,
    data: &[u8],
    durability: WriteDurability,
) -> io::Result<()> {
    let flags = match durability {
        WriteDurability::None => 0,
        WriteDurability::Dsync => libc::RWF_DSYNC,
    };
    let mut rest = data;
    while !rest.is_empty() {
        let at = signed(offset)?;
        let part = libc::iovec {
            iov_base: rest.as_ptr().cast_mut().cast(),
            iov_len: rest.len(),
        };
        // SAFETY: one iovec that names the readable bytes of `rest`; pwritev2 does not write through it.
        let written = retry(|| unsafe { libc::pwritev2(file.as_raw_fd(), &part, 1, at, flags) })?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        rest = &rest[written..];
        offset += written as u64;
    }
    Ok(())
}

/// Turn -1 into errno, and call again after EINTR.
fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(result) => return Ok(result),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}

fn signed(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "offset past 2^63"))
}

/// Whether the process (or the machine) had no descriptor left, also where the error names a path.
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    let behind = error.get_ref().and_then(std::error::Error::source);
    let errno = match behind.and_then(|source| source.downcast_ref::<io::Error>()) {
        Some(source) => source.raw_os_error(),
        None => error.raw_os_error(),
    };
    matches!(errno, Some(libc::EMFILE | libc::ENFILE))
}

/// The error with the path in its text, its kind and its number kept.
fn at(path: &Path, source: io::Error) -> io::Error {
    in_context(path.display().to_string(), source)
}

/// The error with what was being done in front of it, its kind and its number kept.
pub(crate) fn in_context(what: String, source: io::Error) -> io::Error {
    io::Error::new(source.kind(), InContext { what, source })
}

#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
struct InContext {
    what: String,
    source: io::Error,
}
