//! The seam between a shard and the world: disk, sockets, clock and the other shards' attention.
//!
//! A shard's turn runs against a `Driver`: the real ring (`ring_driver`), or a simulator with a seeded disk, clock and
//! network. The code on this side of the seam is the code that ships. A driver owns every buffer of an operation from
//! submission to completion; what it hands out comes back as an `Event` exactly once.

use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use crate::fill_pace::{Fill, FillSeen};

use uring::Buffer;

/// A file that the driver has open: a segment or a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub u32);

/// A connection, never reused within a process: a late event of a closed one finds nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId(pub u64);

/// Which listener a connection came in through; it decides the protocol and whether balancing may move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// The shared native port (SO_REUSEPORT): any shard may serve it.
    Native,
    /// This shard's own native port: the client chose this core.
    NativeShard,
    /// The shared HTTP port.
    Http,
}

/// Two clocks read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Now {
    /// Nanoseconds since an arbitrary start; never goes back.
    pub monotonic_ns: u64,
    /// Microseconds since 1970; may jump. Log time is derived from it and never goes back.
    pub wall_us: u64,
}

/// What the world has to say to a shard.
#[derive(Debug)]
pub enum Event<S, R> {
    /// A connection arrived; the shard adopts it or hands it to another.
    Accepted {
        /// Where it came in.
        door: Door,
        /// The connection, served by nobody yet.
        socket: S,
    },
    /// Bytes of a connection; give `data` back with `recycle`.
    Received {
        /// Whose.
        conn: ConnId,
        /// The loan.
        data: R,
    },
    /// No more bytes will come: end of stream or a reset.
    RecvClosed {
        /// Whose.
        conn: ConnId,
    },
    /// The receive was paused (by us, or because receive buffers ran out): resume when there is room.
    RecvPaused {
        /// Whose.
        conn: ConnId,
    },
    /// A send finished; all of `data` went out unless `result` is an error.
    Sent {
        /// Whose.
        conn: ConnId,
        /// The buffer that was sent, to be used again.
        data: Vec<u8>,
        /// An error ends the connection.
        result: io::Result<()>,
    },
    /// A log or checkpoint write finished. `bytes` may be short of what was asked.
    Written {
        /// As given when the write was started.
        token: u64,
        /// Bytes written.
        result: io::Result<usize>,
    },
    /// A read finished.
    Read {
        /// As given when the read was started.
        token: u64,
        /// The buffer that was read into.
        buffer: Buffer,
        /// Bytes read.
        result: io::Result<usize>,
    },
    /// A sync finished.
    Synced {
        /// As given when the sync was started.
        token: u64,
        /// After an error nothing that was written before may be trusted.
        result: io::Result<()>,
    },
    /// A segment file is zero-filled (or recycled), its header durable.
    SegmentReady {
        /// As given when the preparation was started.
        token: u64,
        /// The file, or why it could not be made (a full disk, mostly).
        result: io::Result<FileId>,
    },
}

/// How long a turn may wait for events.
#[derive(Clone, Copy, Debug)]
pub enum Patience {
    /// There is work left: take what is there and come back.
    None,
    /// Nothing to do: sleep until an event, a wake from another shard, or this long.
    Sleep(Duration),
}

/// How many descriptors the process has left, as an accepted connection found it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptors {
    /// Serve it.
    Enough,
    /// What is left is for the log: say so to the client and close.
    Few,
    /// Close at once.
    Last,
}

/// The world of one shard. Methods that start an operation never fail: failure is an event. What has no room right now
/// waits inside and is started in order; want of room is no failure.
pub trait Driver {
    /// An accepted connection that no shard serves yet; may cross to another shard.
    type Socket: Send + 'static;
    /// A loan of received bytes.
    type Received;

    /// Both clocks.
    fn now(&mut self) -> Now;

    /// Whether there are descriptors for one more connection beside what the log needs.
    fn descriptors(&self, _: &Self::Socket) -> Descriptors {
        Descriptors::Enough
    }
    /// Serve a socket here: receiving starts at once.
    fn adopt(&mut self, socket: Self::Socket) -> ConnId;
    /// Bytes of a loan.
    fn received<'a>(&'a self, data: &'a Self::Received) -> &'a [u8];
    /// Give a loan back.
    fn recycle(&mut self, data: Self::Received);
    /// Stop receiving after what has already arrived; answered by `RecvPaused` (or `RecvClosed`).
    fn pause(&mut self, conn: ConnId);
    /// Receive again after `RecvPaused`.
    fn resume(&mut self, conn: ConnId);
    /// Send all of `data`; one send at a time per connection.
    fn send(&mut self, conn: ConnId, data: Vec<u8>);
    /// Drop the connection. A send in flight still completes with an event.
    fn close(&mut self, conn: ConnId);
    /// Drop the connection so that its client can read all that was sent: what it still sends is taken and thrown away for
    /// a while, because a close with unread input makes the kernel reset the connection, and a reset overtakes the reply.
    fn finish(&mut self, conn: ConnId) {
        self.close(conn);
    }
    /// Stop accepting on every door.
    fn stop_accepting(&mut self);

    /// Write `buffer[range]` at `offset`, durable by the device's sync method. Completes as `Written` once it is on
    /// stable storage.
    fn write_durable(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    );
    /// The same without asking for stable storage.
    fn write(
        &mut self,
        file: FileId,
        offset: u64,
        buffer: Rc<Buffer>,
        range: Range<usize>,
        token: u64,
    );
    /// Everything written to `file` before is on stable storage when this completes as `Synced`.
    fn sync(&mut self, file: FileId, token: u64);
    /// Read `len` bytes (block multiples) at `offset` into `buffer`.
    fn read(&mut self, file: FileId, offset: u64, buffer: Buffer, len: usize, token: u64);
    /// In the background: create (or take over) the segment file of `slot`, make every block written and `header` durable in
    /// its first block. One that needs space is made only where each checkpoint file has, or gets, room for
    /// `checkpoint_bytes`. Answered by `SegmentReady`.
    fn prepare_segment(
        &mut self,
        slot: u32,
        source: SegmentSource,
        segment_bytes: u64,
        header: Vec<u8>,
        checkpoint_bytes: u64,
        token: u64,
    );
    /// In the background, before what is prepared later: cut the segment file of `slot` to nothing. It is written again only
    /// by being prepared, as `Emptied`. No answer: where it fails, the space stays taken.
    fn empty_segment(&mut self, slot: u32, file: FileId);
    /// Fill segments so from now on, also one that is being prepared. Returns what was seen of it so far.
    fn pace_preparation(&mut self, fill: Fill) -> FillSeen;

    /// Make a sleeping shard look at its mail.
    fn wake(&mut self, shard: usize);
    /// Submit what was started, wait as asked, append what happened.
    fn poll(
        &mut self,
        patience: Patience,
        events: &mut Vec<Event<Self::Socket, Self::Received>>,
    ) -> io::Result<()>;
}

/// Where the file of a segment comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentSource {
    /// There is none yet, or none that is whole.
    New,
    /// It was another segment's; its blocks are there.
    Recycled(FileId),
    /// It was cut to nothing by `empty_segment`.
    Emptied(FileId),
}

impl SegmentSource {
    /// The handle of a file that is there.
    pub fn file(self) -> Option<FileId> {
        match self {
            SegmentSource::New => None,
            SegmentSource::Recycled(file) | SegmentSource::Emptied(file) => Some(file),
        }
    }

    /// It has its blocks already.
    pub fn has_space(self) -> bool {
        matches!(self, SegmentSource::Recycled(_))
    }
}

/// The files of one log as found when the data directory was opened.
#[derive(Clone, Debug, Default)]
pub struct LogFiles {
    /// (slot number of the file, handle, bytes)
    pub segments: Vec<(u32, FileId, u64)>,
    /// The two checkpoint files, written in turns.
    pub checkpoints: [Option<FileId>; 2],
    /// The filesystem has no room for more segment files.
    pub no_room: bool,
}
