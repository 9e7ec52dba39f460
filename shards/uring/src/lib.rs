//! The kernel boundary: one io_uring per shard, O_DIRECT files, sockets and huge-page memory.
//!
//! The only crate with `unsafe`. Everything it exports is safe to call in any order: an operation owns
//! (or holds a counted reference to) its buffer and its descriptor from submission to completion.
//! It knows nothing of records, requests, shards or protocols.
#![allow(dead_code, unused_variables)]
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;

/// Page-aligned memory of fixed capacity; from a `BufferPool` (returned to it on drop) or its own mapping.
pub struct Buffer { _p: () }
impl Buffer {
    /// Own anonymous mapping; huge pages are asked for from 2 MiB on.
    pub fn new(bytes: usize) -> io::Result<Buffer> { todo!() }
}
impl Deref for Buffer { type Target = [u8]; fn deref(&self) -> &[u8] { todo!() } }
impl DerefMut for Buffer { fn deref_mut(&mut self) -> &mut [u8] { todo!() } }
impl AsRef<[u8]> for Buffer { fn as_ref(&self) -> &[u8] { self } }
impl AsMut<[u8]> for Buffer { fn as_mut(&mut self) -> &mut [u8] { self } }

/// `count` equal buffers carved out of one huge-page mapping. Not Send; cheap to clone (Rc inside).
#[derive(Clone)]
pub struct BufferPool { _p: () }
impl BufferPool {
    pub fn new(count: usize, bytes_each: usize) -> io::Result<BufferPool> { todo!() }
    /// None when all are out. Contents are whatever was there.
    pub fn take(&self) -> Option<Buffer> { todo!() }
    pub fn available(&self) -> usize { todo!() }
    pub fn bytes_each(&self) -> usize { todo!() }
}

/// A large array in reserved address space: zeroed, committed as it is touched, on huge pages where allowed.
pub struct Region<T: bytemuck::Zeroable + bytemuck::Pod> { _p: std::marker::PhantomData<T> }
impl<T: bytemuck::Zeroable + bytemuck::Pod> Region<T> {
    /// Reserve room for `count` items (virtual; MAP_NORESERVE).
    pub fn reserve(count: usize) -> io::Result<Region<T>> { todo!() }
}
impl<T: bytemuck::Zeroable + bytemuck::Pod> Deref for Region<T> { type Target = [T]; fn deref(&self) -> &[T] { todo!() } }
impl<T: bytemuck::Zeroable + bytemuck::Pod> DerefMut for Region<T> { fn deref_mut(&mut self) -> &mut [T] { todo!() } }

/// Ask the cache for the line that holds `item`.
#[inline(always)]
pub fn prefetch<T>(item: &T) { todo!() }

/// How a ring is set up. See `Ring::new`.
#[derive(Clone, Debug)]
pub struct RingConfig {
    pub entries: u32,             // submission queue; completion queue is 4x
    pub recv_buffers: u16,        // power of two, provided-buffer ring
    pub recv_buffer_bytes: u32,
    pub operations_max: u32,      // fixed pool of op contexts; beyond it submit calls return Err(WouldBlock)
}

/// What the running kernel gave us; shown in the banner.
#[derive(Clone, Debug, Default)]
pub struct Features { pub kernel: String, pub single_issuer: bool, pub defer_taskrun: bool, pub coop_taskrun: bool, pub no_iowait: bool, pub multishot_recv: bool, pub multishot_accept: bool, pub provided_ring: bool, pub msg_ring: bool, pub registered_buffers: bool, pub missing: Vec<String> }

/// Why a ring could not be set up, each with what to type.
#[derive(Debug, thiserror::Error)]
pub enum RingError {
    #[error("{0}")] Todo(String),
}

/// Bytes received into a provided buffer; give it back with `Ring::recycle`.
#[derive(Debug)]
#[must_use = "a provided buffer that is not recycled is lost to the ring"]
pub struct Received { pub buffer: u16, pub len: u32 }

/// One finished operation. `token` is what the caller passed in.
#[derive(Debug)]
pub enum Completion {
    Accepted { token: u64, socket: OwnedFd },
    /// The multishot accept has ended (error inside); arm it again, later if EMFILE.
    AcceptEnded { token: u64, error: io::Error },
    Received { token: u64, data: Received },
    /// Multishot recv is over: Ok(()) = end of stream; Err(ENOBUFS) = out of provided buffers (arm again); Err(ECANCELED); other errors = reset.
    RecvEnded { token: u64, result: io::Result<()> },
    Sent { token: u64, data: Vec<u8>, result: io::Result<usize> },
    Written { token: u64, result: io::Result<usize> },
    Read { token: u64, buffer: Buffer, result: io::Result<usize> },
    Synced { token: u64, result: io::Result<()> },
    /// Another ring sent `message` with `wake`.
    Woken { message: u64 },
}
impl std::fmt::Debug for Buffer { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("Buffer") } }

/// Write then what? Chosen from the device profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteDurability { None, Dsync }

/// How long `Ring::turn` may stay in the kernel.
#[derive(Clone, Copy, Debug)]
pub enum Wait { No, Spin { at_most: Duration, then_sleep: Option<Duration> }, Sleep(Duration) }

/// Send + Sync address of a ring for `wake`.
#[derive(Clone, Debug)]
pub struct RingAddress { fd: i32 }

pub struct Ring { _p: () }
impl Ring {
    pub fn new(config: &RingConfig) -> Result<Ring, RingError> { todo!() }
    pub fn features(&self) -> &Features { todo!() }
    pub fn address(&self) -> RingAddress { todo!() }
    /// Register the pool so that writes and reads of its buffers are WRITE_FIXED/READ_FIXED. Err(ENOMEM) = memlock: go on unregistered and say so.
    pub fn register_buffers(&mut self, pool: &BufferPool) -> io::Result<()> { todo!() }
    pub fn accept(&mut self, listener: Rc<OwnedFd>, token: u64) -> io::Result<()> { todo!() }
    pub fn recv(&mut self, socket: Rc<OwnedFd>, token: u64) -> io::Result<()> { todo!() }
    /// Bytes of a `Received`.
    pub fn received(&self, data: &Received) -> &[u8] { todo!() }
    pub fn recycle(&mut self, data: Received) { todo!() }
    /// Send all of data[from..] (MSG_WAITALL|MSG_NOSIGNAL); the Vec comes back in `Sent`.
    pub fn send(&mut self, socket: Rc<OwnedFd>, data: Vec<u8>, from: usize, token: u64) -> io::Result<()> { todo!() }
    pub fn write(&mut self, file: Rc<OwnedFd>, offset: u64, buffer: Rc<Buffer>, range: Range<usize>, durability: WriteDurability, token: u64) -> io::Result<()> { todo!() }
    pub fn read(&mut self, file: Rc<OwnedFd>, offset: u64, buffer: Buffer, len: usize, token: u64) -> io::Result<()> { todo!() }
    pub fn fdatasync(&mut self, file: Rc<OwnedFd>, token: u64) -> io::Result<()> { todo!() }
    /// Cancel every operation submitted with this token (their completions still come).
    pub fn cancel(&mut self, token: u64) -> io::Result<()> { todo!() }
    /// MSG_RING: the target's `turn` returns with `Woken { message }`.
    pub fn wake(&mut self, target: &RingAddress, message: u64) -> io::Result<()> { todo!() }
    /// Submit what is queued, wait as asked, append completions to `out`.
    pub fn turn(&mut self, wait: Wait, out: &mut Vec<Completion>) -> io::Result<()> { todo!() }
    pub fn in_flight(&self) -> usize { todo!() }
}

/// Wake a ring from a thread that has none (signals, the segment preparer): an eventfd that the ring reads.
#[derive(Clone)]
pub struct Waker { _p: () }
impl Ring { pub fn waker(&mut self) -> io::Result<Waker> { todo!() } }
impl Waker { pub fn wake(&self) { todo!() } }

pub mod file {
    //! O_DIRECT files by path: open, preallocate, zero-fill, sync, lock.
    use std::{io, os::fd::OwnedFd, path::Path};
    pub fn open_direct(path: &Path, create: bool) -> io::Result<OwnedFd> { todo!() }
    /// fallocate + write zeroes over every byte (O_DIRECT, 1 MiB writes, several in flight not needed) + fdatasync.
    pub fn zero_fill(file: &OwnedFd, bytes: u64) -> io::Result<()> { todo!() }
    pub fn sync_directory(path: &Path) -> io::Result<()> { todo!() }
    /// Exclusive flock, retried for `patience` (io_uring can keep a dead process's descriptor alive for a moment).
    pub fn lock_exclusive(path: &Path, patience: std::time::Duration) -> io::Result<OwnedFd> { todo!() }
    pub fn pread_exact(file: &OwnedFd, offset: u64, out: &mut [u8]) -> io::Result<()> { todo!() }
    pub fn pwrite_all(file: &OwnedFd, offset: u64, data: &[u8]) -> io::Result<()> { todo!() }
}

pub mod socket {
    //! Listeners and socket options (socket2 inside).
    use std::{io, net::SocketAddr, os::fd::OwnedFd};
    #[derive(Clone, Debug, Default)]
    pub struct ListenOptions { pub reuse_port: bool, pub backlog: i32, pub congestion: Option<String> }
    pub fn listen(address: SocketAddr, options: &ListenOptions) -> io::Result<(OwnedFd, SocketAddr)> { todo!() }
    /// TCP_NODELAY, TCP_USER_TIMEOUT, keepalive.
    pub fn tune_accepted(socket: &OwnedFd) -> io::Result<()> { todo!() }
    pub fn shutdown(socket: &OwnedFd) { todo!() }
}

pub mod preflight {
    //! What must be there before a ring can work; every missing thing with its fix.
    pub struct Finding { pub fatal: bool, pub what: String, pub fix: String }
    pub fn check(data: &std::path::Path, connections_max: usize, registered_bytes: u64) -> Vec<Finding> { todo!() }
}
