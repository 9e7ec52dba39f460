//! pinion: the composition root. Flags become a plan, the plan becomes running shards, a signal drains them.
//!
//! Holds no data and no protocol: the engine is `shard`, the client commands are `client`, the offline tools
//! read a directory with the same `wal` and `index` code that recovery uses.

mod banner;
mod cli;
mod config;
mod exit;
mod load;
mod offline;
mod probe;
mod prove;
mod remote;
mod serve;
mod share;
mod supervisor;
mod text;
mod tune;
mod units;

use std::process::ExitCode;

fn main() -> ExitCode {
    exit::code(run())
}

fn run() -> Result<(), exit::Failure> {
    let (command, matches) = cli::parse(std::env::args_os())?;
    match command {
        cli::Command::Serve(flags) => serve::run(*flags, &matches),
        cli::Command::Load(flags) => load::run(&flags),
        cli::Command::Append(flags) => remote::append(&flags),
        cli::Command::Get(flags) => remote::get(&flags),
        cli::Command::History(flags) => remote::history(&flags),
        cli::Command::Scan(flags) => remote::scan(&flags),
        cli::Command::Tail(flags) => remote::tail(&flags),
        cli::Command::Inspect(flags) => offline::inspect::run(&flags),
        cli::Command::Verify(flags) => offline::verify::run(&flags),
        cli::Command::Repair(flags) => offline::repair::run(&flags),
        cli::Command::Reshard(flags) => offline::reshard::run(&flags),
        cli::Command::Tune(command) => tune::run(&command),
    }
}
