//! The ring against the running kernel: needs io_uring, loopback TCP and a disk with O_DIRECT under the target directory.

mod close;
mod common;
mod disk;
mod stream;
mod wake;
