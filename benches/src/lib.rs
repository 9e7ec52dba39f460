//! In-process questions about the parts, one per file, and the harness that they share.
//!
//! Every question runs at two sizes: smoke under the test command, real when a person asks. Inputs come from a fixed seed;
//! each case is run several times, must compute the same result every time, and prints a hash of it, so that
//! what is measured is known to have been done. The figure is the median of the runs.
//!
//! Invariants: nothing is measured that the shipped crates do not export; a case whose runs disagree ends the program.
//! It does not know what a good figure is.
//!
//! | module | question |
//! |---|---|
//! | [`log_append`] | What does a record cost on its way into a batch? |
//! | [`recovery`] | How fast is a segment read back, and replayed into an index? |
//! | [`frame_parse`] | What does it cost to understand a request? |
//! | [`index_lookup`] | What does a lookup cost, alone and in a batch, and how much memory does a key take? |
//! | [`ring_round_trip`] | What does the ring add: a wake-up, a durable write, a read? |
//! | [`mailbox_hop`] | What does crossing cores cost? |
//! | [`busy_neighbour`] | What does a busy neighbour do to a durable write, and does the machine itself stand still? |
//! | [`runtimes`] | What would another runtime make of the same requests? |
//! | [`constant_200`] | What is the most that `wrk` can get out of this ring? |

pub mod busy_neighbour;
pub mod constant_200;
pub mod frame_parse;
pub mod index_lookup;
pub mod log_append;
pub mod machine;
pub mod mailbox_hop;
pub mod recovery;
pub mod ring_round_trip;
mod ring_server;
pub mod runtimes;

use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use xxhash_rust::xxh3::xxh3_64;

/// Seed of every generated input.
pub const SEED: u64 = 0x70_69_6e_69_6f_6e;

/// How much work a question does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Size {
    /// Milliseconds in all: does it still run, and compute the same?
    Smoke,
    /// Long enough for a figure.
    Real,
}

/// A question: its name on the command line, and what asks it.
pub type Question = (&'static str, fn(&mut Bench) -> anyhow::Result<()>);

/// The in-process questions, in the order in which `all` asks them.
pub const QUESTIONS: [Question; 7] = [
    ("log-append", log_append::run),
    ("recovery", recovery::run),
    ("frame-parse", frame_parse::run),
    ("index-lookup", index_lookup::run),
    ("ring-round-trip", ring_round_trip::run),
    ("mailbox-hop", mailbox_hop::run),
    ("busy-neighbour", busy_neighbour::run),
];

/// One case's answer. Times in nanoseconds; a run's time divided by its items unless said otherwise.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Row {
    /// Which question.
    pub question: &'static str,
    /// Which case of it.
    pub case: String,
    /// Items of a run: records, frames, lookups, round trips.
    pub items: u64,
    /// How often it was run.
    pub runs: usize,
    /// Median over the runs.
    pub ns_per_item: f64,
    /// Fastest run.
    pub ns_per_item_min: f64,
    /// Slowest run.
    pub ns_per_item_max: f64,
    /// Items per second at the median.
    pub per_second: f64,
    /// 10^9 bytes per second at the median, where bytes are counted.
    pub gb_per_second: Option<f64>,
    /// Of single items, over all runs, where each was timed by itself.
    pub p50_ns: Option<u64>,
    /// Likewise.
    pub p99_ns: Option<u64>,
    /// Memory that an item takes, where that is the question.
    pub bytes_per_item: Option<f64>,
    /// Hash of what was computed, the same in every run.
    pub hash: String,
}

/// Runs cases and keeps their rows.
#[derive(Debug)]
pub struct Bench {
    size: Size,
    /// Where files may be written: a filesystem with O_DIRECT.
    pub dir: PathBuf,
    question: &'static str,
    rows: Vec<Row>,
}

impl Bench {
    /// `dir`: where questions about the disk put their files.
    pub fn new(size: Size, dir: PathBuf) -> Bench {
        Bench {
            size,
            dir,
            question: "",
            rows: Vec::new(),
        }
    }

    /// Ask one question. Its rows are added to [`Bench::rows`].
    ///
    /// # Errors
    /// What the question could not do, named after it.
    pub fn ask(&mut self, (name, run): Question) -> anyhow::Result<()> {
        self.question = name;
        run(self).map_err(|error| error.context(name))
    }

    /// Every row so far.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// How much work is asked for.
    pub fn size(&self) -> Size {
        self.size
    }

    /// A parameter: what it is at smoke size, and what it really is.
    pub fn parameter<T>(&self, smoke: T, real: T) -> T {
        match self.size {
            Size::Smoke => smoke,
            Size::Real => real,
        }
    }

    fn runs(&self) -> usize {
        self.parameter(3, 5)
    }

    /// Time `run`, which works on `items` items of `bytes` bytes in all (0: bytes are not the point) and returns a hash of its result.
    pub fn case(
        &mut self,
        case: impl Into<String>,
        items: u64,
        bytes: u64,
        run: impl FnMut() -> u64,
    ) {
        let mut run = run;
        self.case_prepared(case, items, bytes, || (), |()| (run(), None::<()>));
    }

    /// As [`Bench::case`]; `prepare` is not timed, nor is the end of what `run` hands back besides the hash.
    pub fn case_prepared<S, K>(
        &mut self,
        case: impl Into<String>,
        items: u64,
        bytes: u64,
        mut prepare: impl FnMut() -> S,
        mut run: impl FnMut(S) -> (u64, Option<K>),
    ) {
        let mut times = Vec::new();
        let mut hashes = Vec::new();
        for _ in 0..self.runs() {
            let prepared = prepare();
            let start = Instant::now();
            let (hash, kept) = run(prepared);
            times.push(start.elapsed().as_nanos() as f64 / items as f64);
            drop(kept);
            hashes.push(hash);
        }
        self.push(case.into(), items, bytes, times, hashes, Vec::new());
    }

    /// Items that are timed one by one: `run` fills in the nanoseconds of each and returns a hash of its result.
    pub fn case_each(
        &mut self,
        case: impl Into<String>,
        items: u64,
        mut run: impl FnMut(&mut Vec<u64>) -> u64,
    ) {
        let mut each = Vec::new();
        let mut times = Vec::new();
        let mut hashes = Vec::new();
        for _ in 0..self.runs() {
            let before = each.len();
            hashes.push(run(&mut each));
            let these = &each[before..];
            assert_eq!(these.len() as u64, items, "every item is timed");
            times.push(these.iter().sum::<u64>() as f64 / items as f64);
        }
        self.push(case.into(), items, 0, times, hashes, each);
    }

    /// Say how much memory an item of the last case takes.
    pub fn note_bytes_per_item(&mut self, bytes: f64) {
        self.rows
            .last_mut()
            .expect("a case came before its note")
            .bytes_per_item = Some(bytes);
    }

    fn push(
        &mut self,
        case: String,
        items: u64,
        bytes: u64,
        mut times: Vec<f64>,
        hashes: Vec<u64>,
        mut each: Vec<u64>,
    ) {
        assert!(
            hashes.iter().all(|hash| *hash == hashes[0]),
            "{}, {case}: runs of the same work computed different results: {hashes:x?}",
            self.question
        );
        times.sort_unstable_by(f64::total_cmp);
        each.sort_unstable();
        let percentile =
            |percent: usize| (!each.is_empty()).then(|| each[(each.len() - 1) * percent / 100]);
        let ns_per_item = median(&times);
        self.rows.push(Row {
            question: self.question,
            case,
            items,
            runs: times.len(),
            ns_per_item,
            ns_per_item_min: times[0],
            ns_per_item_max: times[times.len() - 1],
            per_second: 1e9 / ns_per_item,
            gb_per_second: (bytes > 0).then(|| bytes as f64 / items as f64 / ns_per_item),
            p50_ns: percentile(50),
            p99_ns: percentile(99),
            bytes_per_item: None,
            hash: format!("{:016x}", hashes[0]),
        });
    }
}

/// Of sorted values, the lower one of the middle two.
///
/// # Panics
/// When there are none.
pub fn median<T: Copy>(sorted: &[T]) -> T {
    sorted[(sorted.len() - 1) / 2]
}

/// Rows as CSV with a header line; numbers rounded to what they can be trusted for.
///
/// # Errors
/// What the writer says.
pub fn write_csv(rows: &[Row], out: impl Write) -> anyhow::Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    for row in rows {
        let mut row = row.clone();
        let round = |value: &mut f64, unit: f64| *value = (*value / unit).round() * unit;
        for time in [
            &mut row.ns_per_item,
            &mut row.ns_per_item_min,
            &mut row.ns_per_item_max,
        ] {
            *time = (*time * 100.0).round() / 100.0;
        }
        round(&mut row.per_second, 1.0);
        for rate in [&mut row.gb_per_second, &mut row.bytes_per_item]
            .into_iter()
            .flatten()
        {
            *rate = (*rate * 1000.0).round() / 1000.0;
        }
        csv.serialize(row)?;
    }
    csv.flush()?;
    Ok(())
}

/// What `cargo run` and `cargo bench` do: ask, print, and keep the figures where asked.
///
/// # Errors
/// The first question that could not be answered.
pub fn ask_and_print(
    questions: &[Question],
    size: Size,
    dir: PathBuf,
    output: Option<&std::path::Path>,
) -> anyhow::Result<()> {
    let command = machine::command_line();
    println!("# {}", machine::line());
    println!("# {command} ({size:?}, seed {SEED:#x})");
    let mut bench = Bench::new(size, dir);
    for question in questions {
        let before = bench.rows().len();
        bench.ask(*question)?;
        // A table per question: a person who watches should not wait for the last.
        write_csv(&bench.rows()[before..], std::io::stdout().lock())?;
        println!();
    }
    if let Some(folder) = output {
        machine::keep_run(
            folder,
            "In-process questions",
            &command,
            "questions.csv",
            |file| write_csv(bench.rows(), file),
        )?;
        println!("# kept in {}", folder.display());
    }
    Ok(())
}

/// The generator of one case's input. `salt` keeps cases apart.
pub fn generator(salt: u64) -> SmallRng {
    SmallRng::seed_from_u64(SEED ^ salt)
}

/// Folds what a run computes into one number, cheaply enough to stand inside a timed loop.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// Take a number.
    #[inline]
    pub fn add(&mut self, value: u64) {
        self.0 = (self.0 ^ value)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29);
    }

    /// Take bytes.
    #[inline]
    pub fn add_bytes(&mut self, bytes: &[u8]) {
        self.add(xxh3_64(bytes));
    }

    /// The number.
    pub fn finish(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bench() -> Bench {
        Bench::new(Size::Smoke, std::env::temp_dir())
    }

    #[test]
    fn the_figure_is_the_median_and_the_rest_is_beside_it() {
        let mut bench = bench();
        bench.push(
            "case".into(),
            10,
            20,
            vec![5.0, 1.0, 3.0],
            vec![7; 3],
            vec![4, 2, 9],
        );
        let row = &bench.rows()[0];
        assert_eq!(
            (row.ns_per_item_min, row.ns_per_item, row.ns_per_item_max),
            (1.0, 3.0, 5.0)
        );
        assert_eq!((row.p50_ns, row.p99_ns), (Some(4), Some(4)));
        assert_eq!(row.gb_per_second, Some(2.0 / 3.0));
        let mut text = Vec::new();
        write_csv(bench.rows(), &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert!(
            text.starts_with("question,case,items,runs,ns_per_item,"),
            "{text}"
        );
        assert!(
            text.contains(",case,10,3,3.0,1.0,5.0,333333333.0,0.667,4,4,,0000000000000007"),
            "{text}"
        );
    }

    #[test]
    #[should_panic(expected = "computed different results")]
    fn runs_that_disagree_are_no_measurement() {
        let mut next = 0;
        bench().case("case", 1, 0, || {
            next += 1;
            next
        });
    }
}
