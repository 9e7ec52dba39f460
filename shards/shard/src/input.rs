//! From received bytes to requests: what both protocols share on the way in.
//!
//! Bytes are parsed where they were received. A request that is not whole is kept until it is; a connection whose append
//! has to wait, or that does not take its replies, is not parsed (and soon not read) until it can go on.

use subtle::ConstantTimeEq;
use wire::Cursor;

use crate::conns::Connection;
use crate::core::{Core, Waiter};
use crate::driver::{ConnId, Door};
use crate::hop::{Ask, Ticket};
use crate::jobs::{Asker, ScanWork, Voice, Work};
use crate::partition::Later;

impl<S> Core<S> {
    /// Bytes arrived on a connection.
    pub(crate) fn input(&mut self, id: ConnId, mut bytes: &[u8]) {
        let Some(mut conn) = self.conns.check_out(id) else {
            return;
        };
        let now_ns = self.now.monotonic_ns;
        if conn.input.is_empty() {
            conn.input_since_ns = now_ns;
        }
        if conn.closing {
            bytes = &[];
        }
        let bounds = &self.shared.bounds;
        if conn.input.len() > bounds.unparsed_bytes_max
            && self.unparsed_bytes > bounds.unparsed_bytes_total
        {
            let message = "too many large requests are on their way to this shard: try again shortly, or send smaller ones";
            let refusal = crate::partition::refuse_for(wire::Code::Overloaded, 1000, message);
            self.refuse_and_close(&mut conn, &refusal);
            bytes = &[];
        }
        while !bytes.is_empty() {
            if conn.input.is_empty() {
                let used = self.parse(&mut conn, bytes);
                conn.input.extend_from_slice(&bytes[used..]);
                break;
            }
            // Copy only what the kept request still needs; what follows is parsed in place.
            let missing = conn.needed.saturating_sub(conn.input.len());
            let take = if conn.stalled || missing <= 1 {
                bytes.len()
            } else {
                missing.min(bytes.len())
            };
            conn.input.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if conn.input.len() >= conn.needed {
                self.parse_kept(&mut conn);
            }
        }
        self.after_input(conn);
    }

    /// Try again what a stalled (or resumed) connection has kept. True if a request was taken up.
    pub(crate) fn retry(&mut self, id: ConnId) -> bool {
        self.begin_try(Waiter::Connection(id));
        let taken = self.parse_again(id);
        self.end_try();
        taken
    }

    fn parse_again(&mut self, id: ConnId) -> bool {
        let Some(mut conn) = self.conns.check_out(id) else {
            return false;
        };
        conn.stalled = false;
        let before = conn.input.len();
        self.parse_kept(&mut conn);
        let taken = conn.input.len() < before;
        self.after_input(conn);
        taken
    }

    fn parse_kept(&mut self, conn: &mut Connection) {
        if conn.input.is_empty() {
            return;
        }
        let mut input = std::mem::take(&mut conn.input);
        let used = self.parse(conn, &input);
        if used == input.len() {
            input.clear();
        } else {
            input.drain(..used);
        }
        // A large request must not pin its buffer for the life of the connection.
        if input.is_empty() && input.capacity() > 256 * 1024 {
            input = Vec::new();
        }
        conn.input = input;
    }

    fn parse(&mut self, conn: &mut Connection, bytes: &[u8]) -> usize {
        let used = match conn.door {
            Door::Native | Door::NativeShard => self.native_input(conn, bytes),
            Door::Http => self.http_input(conn, bytes),
        };
        conn.needed = used.needed;
        if used.bytes > 0 {
            conn.input_since_ns = self.now.monotonic_ns;
        }
        used.bytes
    }

    fn after_input(&mut self, conn: Box<Connection>) {
        let id = conn.id;
        self.conns.check_in(conn);
        self.touch(id);
    }

    /// Something changed in a connection's outbox: it is looked at before the turn ends.
    pub(crate) fn touch(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(id) else {
            return;
        };
        if !conn.listed_touched {
            conn.listed_touched = true;
            self.touched.push(id);
        }
        if conn.out.is_gated() && !conn.listed_gated {
            conn.listed_gated = true;
            self.gated.push(id);
        }
    }

    /// A connection that has too much under way or unsent waits before its next request is taken.
    pub(crate) fn must_wait(&self, conn: &Connection) -> bool {
        let bounds = &self.shared.bounds;
        let own = conn.jobs >= bounds.connection_jobs_max
            || conn.heavy >= bounds.connection_heavy_max
            || conn.out.bytes() >= bounds.unsent_bytes_max;
        // While draining nothing new is taken; what was taken is answered.
        own || self.overloaded() || self.draining
    }

    /// An append was not taken: keep the connection's input until what it waits for has come.
    pub(crate) fn stall(&mut self, conn: &mut Connection, later: Later) {
        conn.stalled = true;
        self.connection_waits(conn.id, later);
    }

    /// Undo the start of a job whose request will be parsed again.
    pub(crate) fn forget(&mut self, conn: &mut Connection, ticket: Ticket) {
        if let Some(job) = self.jobs.remove(ticket) {
            conn.jobs -= 1;
            conn.out.fill_nothing(job.asker.hole);
        }
    }

    /// Histories, scans and tails make large replies: they are refused while clients leave too much unread.
    pub(crate) fn too_much_unread(&self) -> Option<wire::Refusal> {
        (self.unsent_bytes > self.shared.bounds.unsent_bytes_total).then(|| {
            let message = "clients leave too many replies unread: this shard answers no large reads until they catch up";
            crate::partition::refuse_for(wire::Code::Overloaded, 1000, message)
        })
    }

    pub(crate) fn asker(&self, conn: &mut Connection, voice: Voice) -> Asker {
        Asker::on(conn, voice)
    }

    pub(crate) fn token_is_right(&self, token: &[u8]) -> bool {
        self.shared
            .token
            .as_deref()
            .is_none_or(|wanted| wanted.ct_eq(token).into())
    }

    pub(crate) fn start_scan(
        &mut self,
        asker: Asker,
        stream: &[u8],
        cursor: Option<Cursor>,
        limit: u32,
    ) {
        let work = ScanWork::new(
            stream,
            cursor.or(Some(self.first_cursor())),
            limit,
            0,
            false,
        );
        let (from_lsn, walked) = work.place_of(self.shared.logs[0]);
        let ticket = self.jobs.add(asker, 1, Work::Scan(work));
        self.ask(
            0,
            ticket,
            &Ask::Scan {
                stream,
                from_lsn,
                walked,
                limit,
                wait_until_ns: 0,
            },
        );
    }

    /// The cursor before the first record.
    pub(crate) fn first_cursor(&self) -> Cursor {
        Cursor {
            timeline: self.shared.timeline,
            next: Vec::new(),
            walked: Vec::new(),
        }
    }

    pub(crate) fn start_streams(&mut self, asker: Asker, only: Option<&[u8]>) {
        let work = Work::Streams {
            only: only.map(<[u8]>::to_vec),
            found: Vec::new(),
        };
        self.ask_all(asker, work, &Ask::Streams);
    }

    /// The same question to every shard.
    pub(crate) fn ask_all(&mut self, asker: Asker, work: Work, ask: &Ask<&[u8]>) {
        let ticket = self.jobs.add(asker, self.shards() as u32, work);
        for shard in 0..self.shards() {
            self.ask(shard, ticket, ask);
        }
    }
}

impl ScanWork {
    pub fn new(
        stream: &[u8],
        cursor: Option<Cursor>,
        limit: u32,
        wait_until_ns: u64,
        follow: bool,
    ) -> ScanWork {
        ScanWork {
            stream: stream.to_vec(),
            cursor: cursor.unwrap_or_default(),
            limit,
            set: Vec::new(),
            records: 0,
            shard: 0,
            wait_until_ns,
            follow,
        }
    }
}
