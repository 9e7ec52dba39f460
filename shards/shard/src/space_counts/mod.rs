//! What is known of the bytes in the log: an estimate that decides when compaction looks, never what it frees.
//!
//! Record bytes are counted as they are laid down and as they are walked, exactly. Of what died an index entry knows the place
//! and a size class, so it is taken to be as long as records of that class are on average, and noted for the segment that it
//! lies in, as the segment usage table of a log-structured file system does (Rosenblum and Ousterhout, "The Design and
//! Implementation of a Log-Structured File System", 1992): what was thought of a segment leaves with it, so that errors do not
//! add up. What fell out of a deeper history, or was ended by a limit in bytes, lies nobody knows where: it is one sum, from
//! which what walks find is taken, and which is set right once in a round through the log ([`round`]).
//!
//! It does not know records, policies, or when space is looked for.

#[cfg(test)]
mod model_tests;
mod round;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use index::checkpoint::CheckpointHeader;
use index::{SIZE_CLASSES, class_of};

use round::Round;
pub use round::died_about;

/// Files that hold nothing count too when disk use is held down, but a log that holds no more than so many hundredths of what
/// is alive is left alone: under uniform overwrites about as many bytes would be copied as are freed.
const LEAST_PERCENT: u64 = 140;

/// Records that the average length of a size class is taken over, about.
const LENGTHS_OVER: f32 = 4096.0;

/// What a walk found in a segment, in record bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Found {
    pub walked: u64,
    /// Of them, what was worth a copy.
    pub copied: u64,
    /// Of them, what had died nobody noted where before the round: see [`SpaceCounts::was_dead`].
    pub was_dead: u64,
    /// Beside them, headers and padding.
    pub padding: u64,
}

/// See the module's header.
#[derive(Clone, Debug, Default)]
pub struct SpaceCounts {
    /// Record bytes in the segments that are not released.
    pub record_bytes: u64,
    /// Of them, about so many that nobody can read any more.
    pub dead_bytes: u64,
    /// Beside them: headers and padding of their batches. Where every record has a batch of its own this is most of the log.
    pub padding_bytes: u64,
    /// A policy has ended nobody knows how much: segments are walked as long as most of each is found dead.
    pub looks: bool,
    /// Last lsn that is counted by what a checkpoint remembered.
    counted_lsn: u64,
    /// Of streams with a largest age: (segment, when the last of them ends in log time, bytes), by segment. Segment 0: what was
    /// there before the restart, wherever it lies.
    aging: VecDeque<(u32, u64, u64)>,
    /// Of the dead bytes those whose segment is known, for each segment from `first` on.
    died: VecDeque<u64>,
    first: u32,
    /// Sum of `died`.
    died_bytes: u64,
    /// None until a segment is released.
    round: Option<Round>,
    /// Of each size class: average length of the records laid down, and how many count for it.
    lengths: [(f32, f32); SIZE_CLASSES.len()],
}

impl SpaceCounts {
    /// As a checkpoint remembers it; what ages there does so until `ends_us` at the latest.
    pub fn of(header: &CheckpointHeader, ends_us: u64) -> SpaceCounts {
        let aging = (header.aging_bytes > 0).then_some((0, ends_us, header.aging_bytes));
        SpaceCounts {
            record_bytes: header.record_bytes,
            dead_bytes: header.dead_bytes,
            padding_bytes: header.padding_bytes,
            counted_lsn: header.counted_lsn,
            aging: aging.into_iter().collect(),
            ..SpaceCounts::default()
        }
    }

    /// A record was laid down.
    #[inline]
    pub fn laid_down(&mut self, segment: u32, bytes: u64) {
        self.record_bytes += bytes;
        if self.died.is_empty() {
            self.first = segment;
        }
        let missing = (segment + 1).saturating_sub(self.first + self.died.len() as u32);
        self.died.extend((0..missing).map(|_| 0));
        if let Some((average, over)) = self.lengths.get_mut(class_of(bytes as u32) as usize) {
            *over = (*over + 1.0).min(LENGTHS_OVER);
            *average += (bytes as f32 - *average) / *over;
        }
    }

    /// Of what was laid down last so many bytes end by age, at `ends_us` in log time.
    pub fn will_age(&mut self, segment: u32, ends_us: u64, bytes: u64) {
        match self.aging.back_mut() {
            Some((of, last_us, sum)) if *of == segment => {
                (*last_us, *sum) = ((*last_us).max(ends_us), *sum + bytes);
            }
            _ => self.aging.push_back((segment, ends_us, bytes)),
        }
    }

    /// One of the records whose length rounds up to `class_bytes` died in this segment.
    #[inline]
    pub fn died(&mut self, segment: u32, class_bytes: u32) {
        let bytes = self.about(class_bytes);
        self.note_died(segment, bytes);
    }

    /// One of the records whose length rounds up to `class_bytes` died somewhere.
    pub fn died_somewhere(&mut self, class_bytes: u32) {
        self.dead_bytes += self.about(class_bytes);
    }

    fn about(&self, class_bytes: u32) -> u64 {
        match self.lengths[class_of(class_bytes) as usize] {
            (_, 0.0) => class_bytes.into(),
            (average, _) => average as u64,
        }
    }

    fn note_died(&mut self, segment: u32, bytes: u64) {
        self.dead_bytes += bytes;
        if let Some(died) = self.died_in(segment) {
            *died += bytes;
            self.died_bytes += bytes;
        }
    }

    fn died_in(&mut self, segment: u32) -> Option<&mut u64> {
        let place = segment.checked_sub(self.first)?;
        self.died.get_mut(place as usize)
    }

    /// Bytes that will end by age.
    pub fn aging_bytes(&self) -> u64 {
        self.aging.iter().map(|(.., bytes)| bytes).sum()
    }

    /// Whether a replay that comes to `lsn` has it in the checkpoint's counts already.
    pub fn has_counted(&self, lsn: u64) -> bool {
        lsn <= self.counted_lsn
    }

    /// Of the record bytes, about so many that can still be read.
    pub fn alive_bytes(&self) -> u64 {
        self.record_bytes.saturating_sub(self.dead_bytes)
    }

    /// Whether the log takes more than `percent` hundredths of what of it can still be read, so that a walk is worth it.
    ///
    /// `idle_bytes`, of files that hold nothing: Some where packing costs nothing but the copies. Then padding counts as well,
    /// and such files, as long as the log itself takes `LEAST_PERCENT`.
    pub fn is_too_much(&self, idle_bytes: Option<u64>, percent: u64) -> bool {
        let alive = self.alive_bytes();
        let Some(idle_bytes) = idle_bytes else {
            return self.record_bytes > alive.saturating_mul(percent) / 100;
        };
        let log = self.record_bytes + self.padding_bytes;
        log + idle_bytes > alive.saturating_mul(percent) / 100
            && log > alive.saturating_mul(percent.min(LEAST_PERCENT)) / 100
    }

    /// Time has passed.
    pub fn age(&mut self, log_time_us: u64) {
        let is_over = |one: &(u32, u64, u64)| one.1 < log_time_us;
        loop {
            // What was there before the restart keeps nothing waiting.
            let waits = (self.aging.front()).is_some_and(|one| one.0 == 0 && !is_over(one));
            let next = usize::from(waits);
            if !self.aging.get(next).is_some_and(is_over) {
                return;
            }
            let (segment, _, bytes) = self.aging.remove(next).expect("it was looked at");
            // What was overwritten there has died before.
            let before = self.died_in(segment).map_or(0, |died| *died);
            self.note_died(segment, bytes.saturating_sub(before));
            self.dead_bytes = self.dead_bytes.min(self.record_bytes);
        }
    }

    /// Whether what died somewhere with the write of this lsn had died before the round began.
    pub fn was_dead(&self, died_lsn: u64) -> bool {
        self.round.is_some_and(|round| round.was_dead(died_lsn))
    }

    /// A segment is released. What was thought of it is forgotten with it, and what else was dead there is taken from the sum
    /// of what died somewhere. The log goes on in segment `open` with `next_lsn`.
    pub fn released(&mut self, segment: u32, found: Found, (open, next_lsn): (u32, u64)) {
        let dead = found.walked.saturating_sub(found.copied);
        self.looks &= found.copied <= found.walked / 2;
        self.padding_bytes = self.padding_bytes.saturating_sub(found.padding);
        let somewhere = self.somewhere();
        let mut known = 0;
        while self.first <= segment
            && let Some(died) = self.died.pop_front()
        {
            known += died;
            self.first += 1;
        }
        self.died_bytes -= known;
        let unknown = dead.saturating_sub(known);
        let others = unknown.min(somewhere);
        self.dead_bytes = self.dead_bytes.saturating_sub(known + others);
        self.record_bytes = self.record_bytes.saturating_sub(found.walked);
        self.dead_bytes = self.dead_bytes.min(self.record_bytes);
        let round = self.round.get_or_insert(Round::first(next_lsn, open));
        let is_first = round.is_first();
        // So much was taken out of the sum; what died since, and is gone now, is no part of what was thought before.
        let since = unknown.saturating_sub(found.was_dead);
        let ended = round.released(segment, others as i64 - since as i64);
        if let Some(too_much) = ended {
            let dead = self.dead_bytes.saturating_add_signed(-too_much);
            self.dead_bytes = dead.max(self.died_bytes).min(self.record_bytes);
            self.round = Some(Round::begin(next_lsn, open, self.somewhere()));
        }
        self.aging.retain_mut(|(of, _, bytes)| {
            if *of == 0 {
                // In the first round everything that is released is from before the restart.
                *bytes = bytes.saturating_sub(if is_first { found.walked } else { 0 });
                return *bytes > 0 && !(is_first && ended.is_some());
            }
            *of > segment
        });
    }

    /// What died nobody knows where.
    fn somewhere(&self) -> u64 {
        self.dead_bytes.saturating_sub(self.died_bytes)
    }
}
