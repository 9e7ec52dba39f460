//! Clients, machine and oracle together, over many lives: what a scenario is written with.
//!
//! Every reply goes past the oracle before anybody else sees it. It does not decide when to crash.

use std::collections::BTreeMap;

use shard::driver::Door;
use wire::Durability;
use wire::native::Producer;

use crate::client::{
    About, Append, FROM_NEWEST, Heard, Lanes, Outcome, Said, Seen, Sent, stream_name,
};
use crate::disk::CrashMode;
use crate::host::{Host, Opened};
use crate::machine::Mutant;
use crate::oracle::{Broken, Oracle};
use crate::promise::Promise;

/// Turns without an answer after which a request counts as forgotten.
const TURNS_MAX: usize = 20_000;

/// What a step of a life came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate<T> {
    /// It went well.
    Alive(T),
    /// The machine crashed on the way.
    Crashed,
}

/// Unwraps a [`Fate`], or passes the crash on.
#[macro_export]
macro_rules! alive {
    ($fate:expr) => {
        match $fate {
            $crate::trial::Fate::Alive(value) => value,
            $crate::trial::Fate::Crashed => return Ok($crate::trial::Fate::Crashed),
        }
    };
}

fn is_damage(said: &Said) -> bool {
    matches!(said, Said::Refused { code: wire::Code::Internal, message } if message.contains("damaged"))
}

/// A shard that stops says where: the file, or the segment.
fn names_a_place(why: &str) -> bool {
    why.contains("segment")
}

/// See the module's header.
pub struct Trial {
    /// The machine with its store.
    pub host: Host,
    /// The judge.
    pub oracle: Oracle,
    /// Connections of this life.
    pub lanes: Option<Lanes>,
    lanes_count: usize,
    streams: usize,
    /// Number of this life.
    pub life: u32,
    /// Recoveries that began with a checkpoint.
    pub checkpoints: u64,
    sequences: BTreeMap<(usize, usize), u64>,
    /// A log write of this shard failed when so many appends had been sent.
    failed_from: Option<(usize, usize)>,
    /// Appends of this life whose answers were cut.
    unheard: Vec<usize>,
    /// After a silent fault a shard did not start, and said where the damage is.
    pub stopped: bool,
    /// The answer to a scan, the last thing that was asked, was that something is damaged.
    pub refused_for_damage: bool,
}

impl Trial {
    /// Clients of `lanes` connections using `streams` streams.
    pub fn new(host: Host, lanes: usize, streams: usize) -> Trial {
        let oracle = Oracle::new(host.config.shards);
        Trial {
            host,
            oracle,
            lanes: None,
            lanes_count: lanes,
            streams,
            life: 0,
            checkpoints: 0,
            sequences: BTreeMap::new(),
            failed_from: None,
            unheard: Vec::new(),
            stopped: false,
            refused_for_damage: false,
        }
    }

    /// The same clients with what they remember, before another machine.
    pub fn again(&self, host: Host) -> Trial {
        Trial {
            oracle: self.oracle.clone(),
            lanes: None,
            life: self.life,
            sequences: self.sequences.clone(),
            ..Trial::new(host, self.lanes_count, self.streams)
        }
    }

    /// Set a stream's policy.
    ///
    /// # Errors
    /// A refusal, or no answer.
    pub fn policy(&mut self, stream: usize, json: &str) -> Result<Fate<()>, Broken> {
        let name = String::from_utf8_lossy(&stream_name(stream)).into_owned();
        let socket = {
            let mut m = self.host.machine.borrow_mut();
            let socket = m.connect(0, Door::Http);
            let request = format!(
                "PUT /v1/streams/{name} HTTP/1.1\r\nHost: sim\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}",
                json.len()
            );
            m.wires[socket as usize]
                .to_server
                .extend(request.as_bytes());
            socket
        };
        for _ in 0..TURNS_MAX {
            alive!(self.turn()?);
            let m = self.host.machine.borrow();
            let said = String::from_utf8_lossy(&m.wires[socket as usize].inbox).into_owned();
            if said.starts_with("HTTP/1.1 20") {
                return Ok(Fate::Alive(()));
            }
            if !said.is_empty() {
                return Err(format!("a policy was answered {said}"));
            }
        }
        Err("a policy is not answered".into())
    }

    /// Begin a life and connect.
    ///
    /// # Errors
    /// A shard did not start although nothing was damaged.
    pub fn open(&mut self) -> Result<Fate<()>, Broken> {
        self.life += 1;
        self.failed_from = None;
        match self.host.open() {
            Opened::Ready(reports) => {
                self.checkpoints +=
                    reports.iter().filter(|r| r.checkpoint_bytes > 0).count() as u64;
                let mut m = self.host.machine.borrow_mut();
                self.lanes = Some(Lanes::connect(
                    &mut m,
                    self.lanes_count,
                    self.host.config.shards,
                ));
                Ok(Fate::Alive(()))
            }
            Opened::Crashed => Ok(Fate::Crashed),
            Opened::Stopped(why) => {
                let m = self.host.machine.borrow();
                // A read that fails stops a start; the next one finds the device well again.
                if m.read_failed && why.contains("failed") {
                    return Ok(Fate::Crashed);
                }
                if m.lie.is_some() && names_a_place(&why) {
                    self.stopped = true;
                    return Ok(Fate::Crashed);
                }
                Err(Promise::Durable.broken(format!("a shard stopped: {why}")))
            }
        }
    }

    /// End a life as `mode` has it; the clients hear what was under way.
    ///
    /// # Errors
    /// What is wrong with a last reply.
    pub fn crash(&mut self, mode: CrashMode) -> Result<(), Broken> {
        let failing = self.host.machine.borrow().fault_hit.is_some();
        if failing {
            self.oracle.failing_lives.insert(self.life);
        }
        for number in std::mem::take(&mut self.unheard) {
            self.oracle.appends[number].unheard = failing;
        }
        self.host.crash(mode);
        self.hear()?;
        self.lanes = None;
        self.host.machine.borrow_mut().reborn();
        Ok(())
    }

    /// End a life cleanly.
    ///
    /// # Errors
    /// What is wrong with a last reply, or a drain that does not end.
    pub fn close(&mut self) -> Result<Fate<()>, Broken> {
        if !self.host.close()? {
            return Ok(Fate::Crashed);
        }
        self.crash(CrashMode::DropAll)?;
        Ok(Fate::Alive(()))
    }

    fn hear(&mut self) -> Result<Vec<Heard>, Broken> {
        let Some(lanes) = &mut self.lanes else {
            return Ok(Vec::new());
        };
        let (heard, hit) = {
            let mut m = self.host.machine.borrow_mut();
            let heard = lanes.hear(&mut m)?;
            for one in &heard {
                m.note(|| format!("heard {one:?}"));
            }
            (heard, m.fault_hit)
        };
        self.oracle.media_failed = {
            let m = self.host.machine.borrow();
            m.read_failed || m.lie.is_some()
        };
        for one in &heard {
            self.oracle.heard(one)?;
            if let (
                About::Append(number),
                Said::Appended(Outcome::Acked {
                    durability: Durability::Durable,
                    parts,
                    ..
                }),
                Some((shard, from)),
            ) = (&one.about, &one.said, self.failed_from)
                && *number >= from
                && parts.iter().any(|p| p.0 as usize == shard)
            {
                return Err(Promise::FailStop.broken(format!(
                    "append {number} was acked by shard {shard} after a write of its log had failed"
                )));
            }
        }
        if self.failed_from.is_none()
            && let Some((shard, true)) = hit
        {
            self.failed_from = Some((shard, self.oracle.appends.len()));
        }
        Ok(heard)
    }

    /// One turn of one shard.
    ///
    /// # Errors
    /// What is wrong with a reply.
    pub fn turn(&mut self) -> Result<Fate<Vec<Heard>>, Broken> {
        if !self.host.turn() {
            return Ok(Fate::Crashed);
        }
        self.hear().map(Fate::Alive)
    }

    /// Send a new append; its number. With `producer` it is one of its lane's and shard's sequence.
    pub fn append(
        &mut self,
        lane: usize,
        stream: usize,
        durability: Durability,
        producer: Option<usize>,
        records: Vec<Sent>,
    ) -> usize {
        let producer = producer.map(|shard| {
            let sequence = self.sequences.entry((lane, shard)).or_insert(0);
            *sequence += 1;
            Producer {
                id: (lane as u128) << 64 | shard as u128 | 7 << 32,
                sequence: *sequence,
            }
        });
        let append = Append {
            lane,
            stream,
            durability,
            producer,
            records,
            outcome: Outcome::Unknown,
            connection: 0,
            unheard: false,
            life: self.life,
            attempts: 1,
        };
        let number = self.oracle.sent(append);
        self.put(number);
        number
    }

    fn put(&mut self, number: usize) {
        let mut m = self.host.machine.borrow_mut();
        if let Some(lanes) = &mut self.lanes {
            self.oracle.appends[number].connection =
                lanes.connection(self.oracle.appends[number].lane);
            let append = &self.oracle.appends[number];
            let id = lanes.append(&mut m, number, append);
            m.note(|| {
                let keys: Vec<_> = append.records.iter().map(|r| String::from_utf8_lossy(&r.key)).collect();
                let (durability, producer) = (append.durability, append.producer);
                format!("request {id} is append {number} of lane {}: {durability:?} {producer:?} {keys:?}", append.lane)
            });
        }
    }

    /// Cut the connection of a lane before its answers come. The client connects again and sends again what it may: the
    /// appends of its producers.
    pub fn cut(&mut self, lane: usize) {
        let shards = self.host.config.shards;
        let unheard = {
            let mut m = self.host.machine.borrow_mut();
            m.inject("cut connection");
            m.note(|| format!("lane {lane} is cut"));
            match &mut self.lanes {
                Some(lanes) => lanes.cut(&mut m, lane, shards),
                None => return,
            }
        };
        self.unheard.extend(&unheard);
        for number in unheard {
            if self.oracle.appends[number].producer.is_some() {
                self.oracle.sent_again(number, self.life);
                self.host.machine.borrow_mut().inject("retry");
                self.put(number);
            }
        }
    }

    /// Ask something on a lane; the request's id.
    pub fn ask(&mut self, f: impl FnOnce(&mut Lanes, &mut crate::machine::Machine) -> u64) -> u64 {
        let mut m = self.host.machine.borrow_mut();
        self.lanes.as_mut().map_or(0, |lanes| f(lanes, &mut m))
    }

    /// Turn until the reply to `id` is there.
    ///
    /// # Errors
    /// What is wrong with a reply, or that none comes.
    pub fn answer(&mut self, id: u64) -> Result<Fate<Said>, Broken> {
        for _ in 0..TURNS_MAX {
            for heard in alive!(self.turn()?) {
                if heard.id == id {
                    return Ok(Fate::Alive(heard.said));
                }
            }
        }
        Err(Promise::Answers.broken(format!("request {id} is not answered")))
    }

    /// Turn until nobody waits for anything.
    ///
    /// # Errors
    /// What is wrong with a reply, or that one does not come.
    pub fn settle(&mut self) -> Result<Fate<()>, Broken> {
        // A history of a hundred versions takes as many reads of a slow device: who waits is patient as long as it works.
        let (mut turns, mut idle) = (0, 0);
        while idle < TURNS_MAX && turns < 100 * TURNS_MAX {
            if self.lanes.as_ref().is_none_or(|l| l.waiting() == 0) || self.is_cut_off() {
                return Ok(Fate::Alive(()));
            }
            let ticks = self.host.machine.borrow().ticks;
            let heard = alive!(self.turn()?);
            let worked = !heard.is_empty() || self.host.machine.borrow().ticks > ticks;
            idle = if worked { 0 } else { idle + 1 };
            turns += 1;
        }
        let m = self.host.machine.borrow();
        let wires: Vec<_> = m
            .wires
            .iter()
            .map(|w| {
                (
                    w.served,
                    w.to_server.len(),
                    w.inbox.len(),
                    w.paused,
                    w.closed,
                )
            })
            .collect();
        Err(Promise::Answers.broken(format!(
            "{} requests are not answered; connections (served by, unread, unheard, paused, closed): {wires:?}",
            self.lanes.as_ref().map_or(0, Lanes::waiting)
        )))
    }

    /// New connections in place of those that were closed; what waited there is never answered.
    pub fn reconnect(&mut self) {
        let mut m = self.host.machine.borrow_mut();
        self.lanes = Some(Lanes::connect(
            &mut m,
            self.lanes_count,
            self.host.config.shards,
        ));
    }

    /// Read every key that was acked durably, in a life in which a log write has failed: what was durable before is served.
    ///
    /// # Errors
    /// What is wrong with a reply, or that none comes.
    pub fn reads_go_on(&mut self) -> Result<Fate<()>, Broken> {
        for (stream, key) in self.oracle.acked_keys() {
            let id = self.ask(|lanes, m| lanes.history(m, 0, stream, &key, FROM_NEWEST, 0));
            match alive!(self.answer(id)?) {
                Said::Records { .. }
                | Said::Refused {
                    code: wire::Code::Unavailable,
                    ..
                } => {}
                other => {
                    return Err(Promise::Answers.broken(format!(
                        "behind a failed write a history was answered {other:?}"
                    )));
                }
            }
        }
        // A scan shows what is durable and nothing else: it never has to wait.
        alive!(self.dump(100)?);
        Ok(Fate::Alive(()))
    }

    /// A shard whose log has failed closes the connections that wait for it.
    fn is_cut_off(&self) -> bool {
        let m = self.host.machine.borrow();
        self.failed_from.is_some()
            && self
                .lanes
                .as_ref()
                .is_some_and(|lanes| lanes.any_closed(&m))
    }

    /// Everything the store shows, stream by stream, by log and lsn.
    ///
    /// # Errors
    /// What is wrong with a reply.
    pub fn dump(&mut self, page: u32) -> Result<Fate<Vec<BTreeMap<u64, Seen>>>, Broken> {
        let mut dump = vec![BTreeMap::new(); self.host.config.shards];
        for stream in 0..self.streams {
            let mut cursor = Vec::new();
            loop {
                let lane = stream % self.lanes_count;
                let id = self.ask(|lanes, m| lanes.scan(m, lane, stream, &cursor, page));
                match alive!(self.answer(id)?) {
                    Said::Records { records, .. } if records.is_empty() => break,
                    Said::Records {
                        records,
                        cursor: next,
                    } => {
                        for seen in records {
                            if let Some(twice) = dump[seen.log as usize].insert(seen.lsn, seen) {
                                return Err(
                                    Promise::Prefix.broken(format!("a scan shows {twice:?} twice"))
                                );
                            }
                        }
                        cursor = next;
                    }
                    other => {
                        let lied = self.host.machine.borrow().lie.is_some();
                        self.refused_for_damage = lied && is_damage(&other);
                        return Err(
                            Promise::Answers.broken(format!("a scan was answered {other:?}"))
                        );
                    }
                }
            }
        }
        Ok(Fate::Alive(dump))
    }

    /// Hold everything that the store shows against everything that was said.
    ///
    /// # Errors
    /// The promise that is broken.
    pub fn verify(&mut self, page: u32) -> Result<Fate<()>, Broken> {
        let dump = alive!(self.dump(page)?);
        let durable = self.host.durable_lsns();
        self.oracle.check(dump, &durable)?;
        for ((stream, key), expected) in self.oracle.histories() {
            let newest = &expected[0];
            let lane = key.len() % self.lanes_count;
            // Both at once: the answer to one must not depend on the other.
            let history = self
                .ask(|lanes, m| lanes.history(m, lane, stream, &key, (0, page), newest.version));
            let get = self.ask(|lanes, m| lanes.get(m, lane, stream, &key, newest.version));
            let (mut first, mut got) = (None, None);
            for _ in 0..TURNS_MAX {
                if first.is_some() && got.is_some() {
                    break;
                }
                for heard in alive!(self.turn()?) {
                    match heard.id {
                        id if id == get => got = Some(heard.said),
                        id if id == history => first = Some(heard.said),
                        _ => {}
                    }
                }
            }
            match got {
                Some(Said::Refused {
                    code: wire::Code::NotFound,
                    ..
                }) if newest.tombstone => {}
                Some(Said::Records { records, .. })
                    if records == [newest.clone()] && !newest.tombstone => {}
                other => {
                    return Err(Promise::Answers.broken(format!(
                        "get was answered {other:?}; the scan shows {newest:?}"
                    )));
                }
            }
            alive!(self.verify_history(lane, &expected, first, page)?);
        }
        // What a limit has ended is ended for every reader.
        for (stream, key) in self.oracle.ended_keys() {
            let id = self.ask(|lanes, m| lanes.get(m, 0, stream, &key, 0));
            match alive!(self.answer(id)?) {
                Said::Refused {
                    code: wire::Code::NotFound,
                    ..
                } => {}
                other => {
                    return Err(Promise::Retention.broken(format!(
                        "the scan shows no record of a key, and a get {other:?}"
                    )));
                }
            }
        }
        Ok(Fate::Alive(()))
    }

    /// A history comes in pages: they must be what the scan showed, newest first.
    fn verify_history(
        &mut self,
        lane: usize,
        expected: &[Seen],
        first: Option<Said>,
        limit: u32,
    ) -> Result<Fate<()>, Broken> {
        let (stream, key) = (expected[0].stream, expected[0].key.clone());
        let mut left = expected;
        let mut page = first;
        loop {
            let records = match page {
                Some(Said::Records { records, .. })
                    if !records.is_empty() && records.len() <= left.len() =>
                {
                    records
                }
                other => {
                    return Err(Promise::Answers.broken(format!(
                        "history was answered {other:?}, {} versions from {:?} on are left",
                        left.len(),
                        left.first()
                    )));
                }
            };
            if let Some((wrong, right)) = records.iter().zip(left).find(|(a, b)| a != b) {
                return Err(Promise::NoPhantom.broken(format!(
                    "history shows {wrong:?}, the scan showed {right:?}"
                )));
            }
            left = &left[records.len()..];
            let Some(last) = records.last().filter(|_| !left.is_empty()) else {
                return Ok(Fate::Alive(()));
            };
            let id =
                self.ask(|lanes, m| lanes.history(m, lane, stream, &key, (last.version, limit), 0));
            page = Some(alive!(self.answer(id)?));
        }
    }

    /// Send what producers have to send again, wait for the answers. The oracle compares them with the first ones.
    ///
    /// # Errors
    /// A repeat that is answered otherwise.
    pub fn repeat(&mut self) -> Result<Fate<()>, Broken> {
        for number in self.oracle.to_repeat() {
            self.oracle.sent_again(number, self.life);
            self.put(number);
        }
        self.settle()
    }

    /// Read the history of every key, whatever the answer: the oracle sees to it that it is not wrong.
    ///
    /// # Errors
    /// What is wrong with a reply, or that none comes.
    pub fn read_behind_a_lie(&mut self) -> Result<Fate<()>, Broken> {
        for (stream, key) in self.oracle.acked_keys() {
            let history = self.ask(|lanes, m| lanes.history(m, 0, stream, &key, FROM_NEWEST, 0));
            alive!(self.answer(history)?);
            let get = self.ask(|lanes, m| lanes.get(m, 0, stream, &key, 0));
            alive!(self.answer(get)?);
        }
        Ok(Fate::Alive(()))
    }

    /// Judge what a restart shows after the device has lied: the end of a log may be missing, and then silently, if nothing on
    /// the media speaks of it. Gives the records that were acked durably and are lost.
    ///
    /// # Errors
    /// Anything that is there and wrong, or missing before the end.
    pub fn verify_after_a_lie(&mut self) -> Result<Fate<u64>, Broken> {
        alive!(self.read_behind_a_lie()?);
        let dump = alive!(self.dump(1000)?);
        self.oracle.check_after_a_lie(&dump).map(Fate::Alive)
    }

    /// Let the driver lie from now on.
    pub fn lie(&mut self, mutant: Mutant) {
        self.host.machine.borrow_mut().mutant = mutant;
    }
}
