//! Provided receive buffers: a ring shared with the kernel from which it takes one when bytes arrive.
//!
//! Invariants: a buffer is with the kernel (in the shared ring) or held (bytes in it wait to be read), never both;
//! `held` says which. Buffers given back are published once per turn: with deferred task work the kernel only receives
//! while we are inside it, so it could not use them earlier.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

use crate::memory::Mapping;
use crate::{Received, RingConfig};

/// The one buffer group of a ring.
pub(crate) const BUFFER_GROUP: u16 = 0;

pub(crate) struct Provided {
    /// `count` entries; the tail sits in the unused last field of the first.
    entries: Mapping,
    memory: Mapping,
    count: u16,
    bytes_each: u32,
    held: Box<[bool]>,
    held_count: usize,
    /// Entries written so far, modulo 2^16; the kernel sees them when `publish` stores it.
    tail: u16,
    published: u16,
}

impl Provided {
    /// Map the memory, register the ring and give every buffer to the kernel.
    pub(crate) fn new(config: &RingConfig, uring: &IoUring) -> io::Result<Provided> {
        let count = config.recv_buffers;
        assert!(count.is_power_of_two(), "checked with the configuration");
        let entries = Mapping::new(usize::from(count) * size_of::<BufRingEntry>())?;
        let memory = Mapping::new(usize::from(count) * config.recv_buffer_bytes as usize)?;
        let held = vec![true; usize::from(count)].into_boxed_slice();
        let bytes_each = config.recv_buffer_bytes;
        let held_count = usize::from(count);
        let mut provided = Provided {
            entries,
            memory,
            count,
            bytes_each,
            held,
            held_count,
            tail: 0,
            published: 0,
        };
        for buffer in 0..count {
            provided.give_back(Received { buffer, len: 0 });
        }
        let address = provided.entries.start().as_ptr().addr() as u64;
        // SAFETY: the mapping has room for `count` entries, is page-aligned, and the ring is closed before it is unmapped
        // (see Ring's Drop).
        unsafe {
            uring
                .submitter()
                .register_buf_ring_with_flags(address, count, BUFFER_GROUP, 0)
        }?;
        provided.publish();
        Ok(provided)
    }

    /// The kernel has put `len` bytes into `buffer`.
    pub(crate) fn taken(&mut self, buffer: u16, len: u32) -> Received {
        let held = &mut self.held[usize::from(buffer)];
        assert!(
            !*held,
            "the kernel took provided buffer {buffer} which it did not have"
        );
        assert!(
            len <= self.bytes_each,
            "the kernel wrote past provided buffer {buffer}"
        );
        *held = true;
        self.held_count += 1;
        Received { buffer, len }
    }

    pub(crate) fn bytes(&self, data: &Received) -> &[u8] {
        assert!(
            self.held[usize::from(data.buffer)],
            "provided buffer {} was recycled",
            data.buffer
        );
        assert!(
            data.len <= self.bytes_each,
            "more bytes than a provided buffer has"
        );
        let start = self.address(data.buffer);
        // SAFETY: inside the mapping (zeroed at first, so initialised); the buffer is held, so the kernel does not write to
        // it, and it cannot be given back while self is borrowed.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), data.len as usize) }
    }

    /// Queue a held buffer for the kernel.
    pub(crate) fn give_back(&mut self, data: Received) {
        let held = &mut self.held[usize::from(data.buffer)];
        assert!(*held, "provided buffer {} recycled twice", data.buffer);
        *held = false;
        self.held_count -= 1;
        let address = self.address(data.buffer).as_ptr().addr() as u64;
        let place = usize::from(self.tail & (self.count - 1));
        // SAFETY: place < count, and the mapping has `count` entries. The kernel does not read this entry: there are
        // never more than `count` buffers with it, so places between the published tail and ours are free.
        let entry = unsafe {
            &mut *self
                .entries
                .start()
                .cast::<BufRingEntry>()
                .add(place)
                .as_ptr()
        };
        entry.set_addr(address);
        entry.set_len(self.bytes_each);
        entry.set_bid(data.buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Show the kernel everything given back.
    pub(crate) fn publish(&mut self) {
        if self.tail == self.published {
            return;
        }
        // SAFETY: the mapping begins with the first entry.
        let tail =
            unsafe { BufRingEntry::tail(self.entries.start().cast::<BufRingEntry>().as_ptr()) };
        // SAFETY: aligned to 2, valid for the life of the mapping; both sides access it atomically (the setters of
        // an entry leave this field alone).
        unsafe { AtomicU16::from_ptr(tail.cast_mut()) }.store(self.tail, Ordering::Release);
        self.published = self.tail;
    }

    /// Buffers that are not with the caller.
    pub(crate) fn available(&self) -> usize {
        usize::from(self.count) - self.held_count
    }

    /// Keep the memory mapped for ever: a receive could not be cancelled.
    pub(crate) fn leak(&mut self) {
        self.entries.leak();
        self.memory.leak();
    }

    fn address(&self, buffer: u16) -> NonNull<u8> {
        assert!(
            buffer < self.count,
            "provided buffer {buffer} of {}",
            self.count
        );
        // SAFETY: buffer < count, and the mapping holds count * bytes_each bytes.
        unsafe {
            self.memory
                .start()
                .add(usize::from(buffer) * self.bytes_each as usize)
        }
    }
}
