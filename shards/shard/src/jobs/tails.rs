//! Tails: every log is asked for news behind the cursor, again and again for as long as the client waits.
//!
//! A followed tail asks for more only while its client reads what it is sent. It does not know how a log finds its news.

use wire::Cursor;

use super::{Asker, Job, ScanWork, Work};
use crate::core::Core;
use crate::hop::Ask;
use crate::records::RecordSet;
use crate::render;

/// A log waits so long for news before it is asked again.
const TAIL_SLICE_NS: u64 = 500_000_000;
/// A followed tail says so often that it is alive.
const HEARTBEAT_NS: u64 = 15_000_000_000;

impl<S> Core<S> {
    /// A followed tail: write what came as events, ask again.
    pub(super) fn tail_goes_on(&mut self, mut job: Job, sets: &[RecordSet], cursor: &Cursor) {
        let asker = job.asker;
        let Some(conn) = self.conns.get_mut(asker.conn) else {
            return;
        };
        if conn.ended || self.draining {
            // Nobody listens any more, or nobody will speak: the end of the stream is the end of the connection.
            return self.reply_to(&job, |_| ());
        }
        let mut bytes = Vec::new();
        render::events(&mut bytes, sets, cursor);
        conn.out.stream(asker.hole, bytes, job.released());
        self.touch(asker.conn);
        let Work::Tail(tail) = &mut job.work else {
            unreachable!("only tails are followed")
        };
        tail.records = 0;
        tail.wait_until_ns = self.now.monotonic_ns + HEARTBEAT_NS;
        let Work::Tail(tail) = job.work else {
            unreachable!("only tails are followed")
        };
        self.held_tails.push((asker, tail));
        self.resume_tails();
    }

    /// Followed tails whose clients have read enough of what they were sent ask for more.
    pub(crate) fn resume_tails(&mut self) {
        for (asker, tail) in std::mem::take(&mut self.held_tails) {
            let Some(conn) = self.conns.get_mut(asker.conn) else {
                continue;
            };
            if conn.out.bytes() < self.shared.bounds.unsent_bytes_max {
                self.start_tail(asker, tail);
            } else {
                self.held_tails.push((asker, tail));
            }
        }
    }

    /// Ask every log for news behind the cursor. They wait for a slice of the time only: what one of them still waits for
    /// when another had news, or when the client is gone, is over soon.
    pub(crate) fn start_tail(&mut self, asker: Asker, tail: ScanWork) {
        let logs = self.shared.logs.clone();
        let stream = tail.stream.clone();
        let (limit, wait_until_ns) = (
            tail.limit,
            tail.wait_until_ns
                .min(self.now.monotonic_ns + TAIL_SLICE_NS),
        );
        let from: Vec<_> = logs.iter().map(|l| tail.place_of(*l)).collect();
        let ticket = self.jobs.add(asker, logs.len() as u32, Work::Tail(tail));
        for (shard, (from_lsn, walked)) in from.into_iter().enumerate() {
            self.ask(
                shard,
                ticket,
                &Ask::Scan {
                    stream: stream.as_slice(),
                    from_lsn,
                    walked,
                    limit,
                    wait_until_ns,
                },
            );
        }
    }
}
