//! `benches`: ask a question at real size, or run one of the servers that a figure is held against.

use std::path::PathBuf;

use benches::runtimes::{self, Comparison, Load, Runtime};
use benches::{QUESTIONS, Question, Size, ask_and_print, constant_200, machine};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// In-process questions about pinion's parts, one per file; benches/README.md says how to read the answers.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// Every in-process question, one after the other
    All(Ask),
    /// What does a record cost on its way into a batch?
    LogAppend(Ask),
    /// How fast is a segment read back, and replayed into an index?
    Recovery(Ask),
    /// What does it cost to understand a request?
    FrameParse(Ask),
    /// What does a lookup cost, alone and in a batch, and how much memory does a key take?
    IndexLookup(Ask),
    /// What does the ring add: a wake-up, a durable write, a read?
    RingRoundTrip(Ask),
    /// What does crossing cores cost?
    MailboxHop(Ask),
    /// What does a busy neighbour do to a durable write, and does the machine itself stand still?
    BusyNeighbour(Ask),
    /// What would another runtime make of the same requests? (others than the ring: --features runtimes)
    Runtimes(Compare),
    /// What is the most that wrk can get out of this ring? Serves until ended
    #[command(name = "constant-200")]
    Constant200(Constant),
    /// One server of the comparison, until ended; prints its address
    Serve(Serve),
}

#[derive(Args)]
struct Ask {
    /// How much work
    #[arg(long, value_enum, default_value = "real")]
    size: Size,
    /// Core to measure on
    #[arg(long)]
    core: Option<usize>,
    /// Where files are put: the disk that is asked about [default: the temporary directory]
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Keep the figures in this folder, with machine, commit and command
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Keep them under benches/runs/, in a folder named by date, kernel and kind of host
    #[arg(long, conflicts_with = "output")]
    keep: bool,
}

#[derive(Args)]
struct Compare {
    /// Servers to compare [default: all that were built]
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Runtime>,
    /// Requests in flight per connection
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    pipelines: Vec<usize>,
    /// Connections of the client
    #[arg(long, default_value_t = 50)]
    connections: usize,
    /// Runs of each; the figure is the median
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Requests of a run with one in flight; deeper pipelines send up to 32 times as many [default: 400000]
    #[arg(long)]
    requests: Option<u64>,
    /// How much work: smoke is 2,000 requests
    #[arg(long, value_enum, default_value = "real")]
    size: Size,
    /// Core of the server [default: the first one]
    #[arg(long)]
    server_core: Option<usize>,
    /// Core of the client [default: the second one]
    #[arg(long)]
    client_core: Option<usize>,
    /// Who sends the requests
    #[arg(long, value_enum, default_value = "auto")]
    client: Load,
    /// Folder for the table [default: benches/runs/<date>-<kernel>-<kind of host>; at smoke size none]
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
}

#[derive(Args)]
struct Constant {
    /// Port on 127.0.0.1; 0 = any
    #[arg(long, default_value_t = 7599)]
    port: u16,
    /// Core to serve on
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Microseconds of spin before sleeping [default: the engine's]
    #[arg(long)]
    spin_us: Option<u64>,
    /// Stop after so long [default: never]
    #[arg(long)]
    seconds: Option<f64>,
}

#[derive(Args)]
struct Serve {
    /// Which one
    runtime: Runtime,
    /// Core to serve on
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Port on 127.0.0.1; 0 = any
    #[arg(long, default_value_t = 0)]
    port: u16,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().what {
        What::All(ask) => ask.run(&QUESTIONS),
        What::LogAppend(ask) => ask.one("log-append"),
        What::Recovery(ask) => ask.one("recovery"),
        What::FrameParse(ask) => ask.one("frame-parse"),
        What::IndexLookup(ask) => ask.one("index-lookup"),
        What::BusyNeighbour(ask) => ask.one("busy-neighbour"),
        What::RingRoundTrip(ask) => ask.one("ring-round-trip"),
        What::MailboxHop(ask) => ask.one("mailbox-hop"),
        What::Runtimes(compare) => runtimes::compare(&compare.plan()),
        What::Constant200(constant) => constant_200::run(
            constant.port,
            constant.core,
            constant.spin_us,
            constant.seconds,
        ),
        What::Serve(serve) => runtimes::serve(serve.runtime, serve.core, serve.port),
    }
}

impl Ask {
    fn one(self, name: &str) -> anyhow::Result<()> {
        let question = QUESTIONS.iter().find(|question| question.0 == name);
        self.run(&[*question.expect("the subcommands name the questions")])
    }

    fn run(self, questions: &[Question]) -> anyhow::Result<()> {
        if let Some(core) = self.core {
            machine::pin(core)?;
        }
        let output = self.output.or_else(|| self.keep.then(machine::run_folder));
        let dir = self.dir.unwrap_or_else(std::env::temp_dir);
        ask_and_print(questions, self.size, dir, output.as_deref())
    }
}

impl Compare {
    fn plan(self) -> Comparison {
        let ([first, second], _) = machine::two_cores();
        let (requests, folder) = match self.size {
            Size::Smoke => (2_000, None),
            Size::Real => (400_000, Some(machine::run_folder())),
        };
        let runtimes = if self.only.is_empty() {
            Runtime::value_variants().to_vec()
        } else {
            self.only
        };
        Comparison {
            runtimes,
            pipelines: self.pipelines,
            connections: self.connections,
            runs: self.runs,
            requests: self.requests.unwrap_or(requests),
            server_core: self.server_core.unwrap_or(first.id),
            client_core: self.client_core.unwrap_or(second.id),
            load: self.client,
            output: self.output.or(folder),
        }
    }
}
