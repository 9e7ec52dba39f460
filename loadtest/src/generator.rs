//! One generator thread: many connections on one epoll, closed or open loop, latency per request.
//!
//! A turn: wait for sockets, then for each that has something read once, count the answers, encode what may be sent now, write
//! once. The clock is read once per socket and turn, not per request.
//!
//! Invariants: a closed loop keeps every connection's window full until the end; an open loop sends nothing before it is due,
//! counts latency from then, and sends what was due before the end even after it; memory is the windows and buffers,
//! whatever the server does.

use std::io;
use std::net::TcpStream;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use mio::{Events, Interest, Poll, Token};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::connection::{Connection, Kind, Received, Started};
use crate::flags::Workload;
use crate::protocol::{Answer, Dialect, Outcome, Protocol};
use crate::records::Records;
use crate::schedule::Schedule;
use crate::tally::{Failure, LATENCY_NS_MAX, Tally};
use crate::verify::Acked;

/// How long answers are waited for after the end, and in an open loop what was due before it may still be sent.
pub const DRAIN: Duration = Duration::from_secs(10);
/// One interval of the progress line, the timeline and the interval log.
pub const INTERVAL: Duration = Duration::from_secs(1);
/// The clock of epoll ticks in milliseconds: what is due sooner than this is waited for by polling.
const SPIN_NS: u64 = 1_500_000;
/// How long an open loop sleeps when nothing is due yet.
const NAP: Duration = Duration::from_micros(5);

/// What one thread is to do.
#[derive(Clone, Debug)]
pub struct Job {
    /// How its connections talk.
    pub dialect: Dialect,
    /// What is asked.
    pub workload: Workload,
    /// Requests in flight per connection, at most.
    pub pipeline: u32,
    /// Records per append.
    pub batch: u32,
    /// Share of gets in the mixed workload.
    pub get_share: f64,
    /// Requests per second of this thread; None: closed loop.
    pub rate: Option<f64>,
    /// Not measured.
    pub warmup: Duration,
    /// Measured; None: until every key was drawn once.
    pub measure: Option<Duration>,
    /// A read that finds nothing is a failure.
    pub must_find: bool,
    /// Seed of the mix of gets and appends.
    pub seed: u64,
}

/// Which part of a run an interval belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Before measuring.
    Warmup,
    /// Counts.
    Measured,
    /// Answers to requests that were sent, or due, while measuring: their latency counts, the rate does not.
    Drain,
}

/// What a thread did in about a second.
pub struct Interval {
    /// Which part of the run.
    pub phase: Phase,
    /// From when, in nanoseconds of the run.
    pub start_ns: u64,
    /// Until when.
    pub end_ns: u64,
    /// What was measured.
    pub tally: Tally,
    /// Open loop: requests that are due and not sent, at the end of the interval.
    pub backlog: u64,
    /// The thread ends with it.
    pub last: bool,
}

/// Runs `job` over `sockets` and reports every interval. `clock` is when the run began, the same for all threads.
///
/// Errors: epoll cannot be had. Everything that happens to connections is counted instead.
pub fn run<P: Protocol>(
    job: &Job,
    sockets: Vec<TcpStream>,
    records: Records,
    acked: Option<Acked>,
    clock: Instant,
    reports: &Sender<Interval>,
) -> io::Result<Option<Acked>> {
    // A client beside the server on one machine holds up the workers that end the server's durable writes: it gives way.
    // Where the scheduler takes no slice the figures are what they are.
    let _ = uring::scheduling::give_way_to_workers();
    Generator::<P>::new(job, sockets, records, acked, clock)?.run(reports)
}

struct Generator<'a, P> {
    job: &'a Job,
    poll: Poll,
    connections: Vec<Connection<P>>,
    records: Records,
    acked: Option<Acked>,
    coin: SmallRng,
    clock: Clock,
    schedule: Option<Schedule>,
    tally: Tally,
    /// No request is due, or in a closed loop sent, at or after this.
    end_ns: u64,
}

#[derive(Clone, Copy)]
struct Clock(Instant);

impl Clock {
    #[inline]
    fn now_ns(self) -> u64 {
        self.0.elapsed().as_nanos() as u64 // 584 years fit
    }
}

impl<'a, P: Protocol> Generator<'a, P> {
    fn new(
        job: &'a Job,
        sockets: Vec<TcpStream>,
        records: Records,
        acked: Option<Acked>,
        clock: Instant,
    ) -> io::Result<Generator<'a, P>> {
        let poll = Poll::new()?;
        let mut connections = Vec::with_capacity(sockets.len());
        for (index, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            let socket = mio::net::TcpStream::from_std(socket);
            let mut connection = Connection::new(socket, P::new(&job.dialect), job.pipeline);
            poll.registry().register(
                connection.socket(),
                Token(index),
                Interest::READABLE | Interest::WRITABLE,
            )?;
            connections.push(connection);
        }
        let schedule = job
            .rate
            .map(|rate| Schedule::new(rate, connections.len(), 0));
        Ok(Generator {
            job,
            poll,
            connections,
            records,
            acked,
            coin: SmallRng::seed_from_u64(job.seed),
            clock: Clock(clock),
            schedule,
            tally: Tally::default(),
            end_ns: job
                .measure
                .map_or(u64::MAX, |measure| (job.warmup + measure).as_nanos() as u64),
        })
    }

    fn run(mut self, reports: &Sender<Interval>) -> io::Result<Option<Acked>> {
        let warmup_ns = self.job.warmup.as_nanos() as u64;
        let mut events = Events::with_capacity(1024);
        let mut interval_start_ns = 0;
        let mut steps = 0; // of the schedule
        loop {
            let now_ns = self.clock.now_ns();
            let phase = match interval_start_ns {
                start_ns if start_ns < warmup_ns => Phase::Warmup,
                start_ns if start_ns < self.end_ns => Phase::Measured,
                _ => Phase::Drain,
            };
            let mut interval_end_ns = interval_start_ns + INTERVAL.as_nanos() as u64;
            match phase {
                Phase::Warmup => interval_end_ns = interval_end_ns.min(warmup_ns),
                Phase::Measured => interval_end_ns = interval_end_ns.min(self.end_ns),
                Phase::Drain => {}
            }
            let done = self.is_done(now_ns);
            if done {
                self.give_up_the_rest();
            }
            if now_ns >= interval_end_ns || done {
                let end_ns = if done {
                    now_ns.min(interval_end_ns)
                } else {
                    interval_end_ns
                };
                let tally = std::mem::take(&mut self.tally);
                let backlog = self.backlog(now_ns);
                // The receiver outlives the generators; if it went away there is nobody to tell.
                let start_ns = interval_start_ns;
                let _ = reports.send(Interval {
                    phase,
                    start_ns,
                    end_ns,
                    tally,
                    backlog,
                    last: done,
                });
                interval_start_ns = interval_end_ns;
                if done {
                    return Ok(self.acked);
                }
                continue;
            }
            let wake_ns = match &self.schedule {
                None => {
                    if steps == 0 {
                        steps = 1;
                        self.fill_all(now_ns);
                    }
                    interval_end_ns
                }
                Some(schedule) => {
                    let schedule = *schedule;
                    steps = self.send_due(&schedule, steps, now_ns);
                    schedule.step_due_ns(steps).min(interval_end_ns)
                }
            };
            let wait_ns = wake_ns.saturating_sub(self.clock.now_ns());
            let timeout =
                Duration::from_millis(wait_ns.saturating_sub(SPIN_NS).div_ceil(1_000_000));
            if timeout.is_zero() {
                // The kernel may end the server's durable writes in a worker bound to this core: a generator that only
                // spins makes each of them wait for the scheduler's tick, and then measures that. A nap (some 50 us with
                // the kernel's timer slack) counts into the latencies, as everything behind the intended time does.
                std::thread::sleep(NAP);
            }
            match self.poll.poll(&mut events, Some(timeout)) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            for event in &events {
                let index = event.token().0;
                if event.is_readable() || event.is_read_closed() || event.is_error() {
                    let ending = event.is_read_closed() || event.is_error();
                    self.turn(index, ending);
                }
                if event.is_writable() {
                    self.connections[index].flush();
                }
            }
        }
    }

    /// No request is left to send and none is answered any more.
    fn is_done(&self, now_ns: u64) -> bool {
        if self.connections.iter().all(|connection| connection.closed) {
            return true;
        }
        if now_ns < self.end_ns {
            return self.records.draw.left() == 0 && self.in_flight() == 0;
        }
        let drained = self.in_flight() == 0 && self.backlog(now_ns) == 0;
        drained || now_ns > self.end_ns + DRAIN.as_nanos() as u64
    }

    fn in_flight(&self) -> usize {
        self.connections.iter().map(Connection::in_flight).sum()
    }

    /// What was sent and not answered, and what was due and never sent, is counted with the time it has waited so far.
    fn give_up_the_rest(&mut self) {
        let end_ns = self.end_ns.min(self.clock.now_ns());
        let backlog = self.backlog(end_ns);
        for (index, connection) in self.connections.iter_mut().enumerate() {
            self.tally.fail(Failure::Unanswered, connection.abandon());
            let Some(schedule) = &self.schedule else {
                continue;
            };
            let histogram = match self.job.workload {
                Workload::Get | Workload::History => &mut self.tally.read_ns,
                _ => &mut self.tally.append_ns,
            };
            if backlog > 0 {
                for number in connection.scheduled.. {
                    let due_ns = schedule.due_ns(index, number);
                    if due_ns >= end_ns {
                        break;
                    }
                    histogram
                        .saturating_record((self.clock.now_ns() - due_ns).clamp(1, LATENCY_NS_MAX));
                }
            }
        }
    }

    /// Open loop: requests due before `now_ns` that were not sent.
    fn backlog(&self, now_ns: u64) -> u64 {
        let Some(schedule) = &self.schedule else {
            return 0;
        };
        let until_ns = now_ns.min(self.end_ns);
        let due = |index: usize| schedule.due_before(index, until_ns);
        self.connections
            .iter()
            .enumerate()
            .map(|(index, connection)| due(index).saturating_sub(connection.scheduled))
            .sum()
    }

    fn fill_all(&mut self, now_ns: u64) {
        for index in 0..self.connections.len() {
            self.fill(index, now_ns);
            self.connections[index].flush();
        }
    }

    /// Lets every connection that has become due since the last time send. Returns the step that is due next.
    fn send_due(&mut self, schedule: &Schedule, mut step: u64, now_ns: u64) -> u64 {
        let count = self.connections.len() as u64;
        let mut touched = 0;
        while touched < count && schedule.step_due_ns(step) <= now_ns {
            let index = (step % count) as usize;
            // Sends all that this connection has due, not only this step: it may have had no room before.
            self.fill(index, now_ns);
            self.connections[index].flush();
            step += 1;
            touched += 1;
        }
        if touched == count {
            // Every connection was served up to now; the steps in between are its own business.
            step = step.max(schedule.steps_before(now_ns));
        }
        step
    }

    /// One socket: receive, count, refill, send.
    fn turn(&mut self, index: usize, ending: bool) {
        loop {
            let received = self.connections[index].receive();
            let now_ns = self.clock.now_ns();
            if self.connections[index].closed {
                return;
            }
            if let Err(detail) = self.count_answers(index, now_ns) {
                eprintln!("connection {index}: {detail}");
                self.close(index, Failure::Broken);
                return;
            }
            if received == Received::Closed {
                self.close(index, Failure::ConnectionLost);
                return;
            }
            self.fill(index, now_ns);
            self.connections[index].flush();
            if received == Received::Drained && !ending {
                return;
            }
            if received == Received::Drained && self.connections[index].in_flight() == 0 {
                self.close(index, Failure::ConnectionLost);
                return;
            }
        }
    }

    fn close(&mut self, index: usize, failure: Failure) {
        let connection = &mut self.connections[index];
        connection.closed = true;
        let lost = connection.abandon();
        self.tally.fail(failure, lost.max(1));
        let _ = self.poll.registry().deregister(connection.socket());
    }

    #[inline]
    fn count_answers(&mut self, index: usize, now_ns: u64) -> Result<(), String> {
        let Generator {
            connections,
            acked,
            tally,
            job,
            ..
        } = self;
        let connection = &mut connections[index];
        loop {
            let next = connection.next(|written, versions| {
                if let Some(acked) = acked {
                    acked.remember(written, versions);
                }
            })?;
            let Some((answer, started)) = next else {
                return Ok(());
            };
            count(tally, job, answer, started, now_ns);
        }
    }

    /// Encodes what the connection may send now.
    #[inline]
    fn fill(&mut self, index: usize, now_ns: u64) {
        let Generator {
            connections,
            records,
            tally,
            job,
            coin,
            schedule,
            end_ns,
            ..
        } = self;
        let connection = &mut connections[index];
        for _ in 0..connection.room() {
            let at_ns = match schedule {
                None if now_ns >= *end_ns => return,
                None => now_ns,
                Some(schedule) => {
                    let due_ns = schedule.due_ns(index, connection.scheduled);
                    if due_ns > now_ns || due_ns >= *end_ns {
                        return;
                    }
                    connection.scheduled += 1;
                    due_ns
                }
            };
            let left = records.draw.left();
            if left == 0 {
                return;
            }
            let kind = match job.workload {
                Workload::Append | Workload::Queue => Kind::Append,
                Workload::Get => Kind::Get,
                Workload::History => Kind::History,
                Workload::Mixed if coin.random::<f64>() < job.get_share => Kind::Get,
                Workload::Mixed => Kind::Append,
            };
            // A batch is never larger than the keys that are left, so the narrowing loses nothing.
            let count = if kind == Kind::Append {
                u64::from(job.batch).min(left) as u32
            } else {
                1
            };
            let started = Started {
                at_ns,
                records: count,
                kind,
            };
            tally.bytes_out += connection.ask(started, job.dialect.limit, records) as u64;
        }
    }
}

/// Counts one answer.
#[inline]
fn count(tally: &mut Tally, job: &Job, answer: Answer, started: Started, now_ns: u64) {
    tally.bytes_in += answer.bytes as u64;
    match answer.outcome {
        Outcome::Good => tally.records += u64::from(started.records),
        Outcome::NotFound if !job.must_find => tally.not_found += 1,
        Outcome::NotFound => return tally.fail(Failure::NotFound, 1),
        Outcome::Refused(number) => return tally.fail(Failure::Refused(number), 1),
    }
    tally.requests += 1;
    let latency_ns = now_ns
        .saturating_sub(started.at_ns)
        .clamp(1, LATENCY_NS_MAX);
    match started.kind {
        Kind::Append => tally.append_ns.saturating_record(latency_ns),
        Kind::Get | Kind::History => tally.read_ns.saturating_record(latency_ns),
    }
}
