//! The client's side of the protocol without sockets or clocks: what was received and not yet read, what was encoded and not
//! yet sent, and which requests are in flight.
//!
//! Invariants: an id that [`Window::claim`] gave is live until it is released once; a second answer to it, or an answer to an id
//! that never was, is told apart (`None`), because ids carry the generation of their slot.

/// Received bytes, read from the front, filled at the back, moved only when the space behind them runs out.
#[derive(Debug)]
pub struct Input {
    bytes: Vec<u8>,
    head: usize,
    tail: usize,
}

impl Input {
    /// An empty buffer of `capacity` bytes; it grows when one answer is larger.
    pub fn with_capacity(capacity: usize) -> Input {
        Input {
            bytes: vec![0; capacity.max(64)],
            head: 0,
            tail: 0,
        }
    }

    /// What was received and not consumed.
    #[inline]
    pub fn unread(&self) -> &[u8] {
        &self.bytes[self.head..self.tail]
    }

    /// Room to receive into, at least 1 byte: what lies behind the unread bytes, after moving them to the front or growing when
    /// less than a quarter of the buffer is left.
    pub fn space(&mut self) -> &mut [u8] {
        if self.bytes.len() - self.tail < self.bytes.len() / 4 {
            self.bytes.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
            if self.tail > self.bytes.len() / 2 {
                self.bytes.resize(self.bytes.len() * 2, 0);
            }
        }
        &mut self.bytes[self.tail..]
    }

    /// `count` bytes of the space now hold received bytes.
    #[inline]
    pub fn filled(&mut self, count: usize) {
        assert!(
            count <= self.bytes.len() - self.tail,
            "more bytes filled than there was space"
        );
        self.tail += count;
    }

    /// The first `count` unread bytes are done with.
    #[inline]
    pub fn consume(&mut self, count: usize) {
        assert!(
            count <= self.tail - self.head,
            "more bytes consumed than were unread"
        );
        self.head += count;
        if self.head == self.tail {
            self.head = 0;
            self.tail = 0;
        }
    }

    /// Forget everything: the connection it came from is gone.
    pub fn clear(&mut self) {
        self.head = 0;
        self.tail = 0;
    }
}

/// Encoded requests on their way out.
#[derive(Debug, Default)]
pub struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// Where requests are encoded: append only.
    #[inline]
    pub fn writer(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What is left to send.
    #[inline]
    pub fn unsent(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// The first `count` unsent bytes went out.
    #[inline]
    pub fn sent(&mut self, count: usize) {
        assert!(
            count <= self.bytes.len() - self.sent,
            "more bytes sent than were encoded"
        );
        self.sent += count;
        if self.sent == self.bytes.len() {
            self.clear();
        }
    }

    /// Forget everything: the connection it was meant for is gone.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.sent = 0;
    }
}

/// Requests in flight, looked up by id without hashing: the low 32 bits of an id are its slot, the high ones the slot's
/// generation.
#[derive(Debug)]
pub struct Window<T> {
    slots: Vec<Slot<T>>,
    /// Slots without a request; the last one is used next, so that few slots stay hot.
    free: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    request: Option<T>,
}

impl<T> Window<T> {
    /// Room for `capacity` requests in flight.
    pub fn new(capacity: usize) -> Window<T> {
        let capacity = u32::try_from(capacity).expect("a window has fewer than 2^32 slots");
        Window {
            slots: (0..capacity)
                .map(|_| Slot {
                    generation: 1,
                    request: None,
                })
                .collect(),
            free: (0..capacity).rev().collect(),
        }
    }

    /// An id for `request`, or the request back when the window is full.
    #[inline]
    pub fn claim(&mut self, request: T) -> std::result::Result<u64, T> {
        let Some(index) = self.free.pop() else {
            return Err(request);
        };
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.request.is_none());
        slot.request = Some(request);
        Ok(u64::from(slot.generation) << 32 | u64::from(index))
    }

    /// The request that `id` stands for, if it is in flight.
    #[inline]
    pub fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(id as u32 as usize)?; // low half: the slot
        if u64::from(slot.generation) != id >> 32 {
            return None;
        }
        slot.request.as_mut()
    }

    /// Ends the request that `id` stands for. None: no such request is in flight.
    #[inline]
    pub fn release(&mut self, id: u64) -> Option<T> {
        let index = id as u32; // low half: the slot
        let slot = self.slots.get_mut(index as usize)?;
        if u64::from(slot.generation) != id >> 32 {
            return None;
        }
        let request = slot.request.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(request)
    }

    /// Requests in flight.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Requests that can still be claimed.
    #[inline]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Every request in flight, with its id, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &T)> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            Some((
                u64::from(slot.generation) << 32 | index as u64,
                slot.request.as_ref()?,
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_answer_to_one_request_is_noticed() {
        let mut window = Window::new(2);
        let first = window.claim("a").unwrap();
        let second = window.claim("b").unwrap();
        assert_eq!(window.claim("c"), Err("c"));
        assert_eq!(window.release(first), Some("a"));
        assert_eq!(window.release(first), None);
        let third = window.claim("c").unwrap();
        assert_ne!(third, first, "a reused slot has another id");
        assert_eq!(window.release(first), None);
        assert_eq!(
            (window.release(third), window.release(second)),
            (Some("c"), Some("b"))
        );
        assert_eq!(window.release(u64::MAX), None);
        assert_eq!((window.in_flight(), window.room()), (0, 2));
    }

    #[test]
    fn input_keeps_bytes_in_order_through_moves_and_growth() {
        let mut input = Input::with_capacity(64);
        let mut written = 0u32;
        let mut read = 0u32;
        for round in 0..500 {
            let burst = round % 37;
            for _ in 0..burst {
                let space = input.space();
                space[0] = (written % 251) as u8;
                input.filled(1);
                written += 1;
            }
            for _ in 0..burst.min(1 + round % 29) {
                assert_eq!(input.unread()[0], (read % 251) as u8);
                input.consume(1);
                read += 1;
            }
        }
        assert_eq!(input.unread().len() as u32, written - read);
    }

    #[test]
    fn output_resumes_behind_a_partial_write() {
        let mut output = Output::default();
        output.writer().extend_from_slice(b"abcdef");
        output.sent(2);
        output.writer().extend_from_slice(b"gh");
        assert_eq!(output.unsent(), b"cdefgh");
        output.sent(6);
        assert!(output.unsent().is_empty());
    }
}
