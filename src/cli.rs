//! What can be typed: the subcommands and their flags. One declaration per flag; help, parser and environment follow from it.
//!
//! `serve` has its flags in `config`, because they can also come from a file.

use std::ffi::OsString;
use std::path::PathBuf;

use wal::superblock::LOGS_MAX;

use clap::{ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::ServeFlags;
use crate::exit::Failure;
use crate::tune::TuneCommand;
use crate::units::Bytes;

/// Durable ingest engine for one machine: a shard per core, an ack means stable storage.
#[derive(Debug, Parser)]
#[command(
    name = "pinion",
    version,
    max_term_width = 110,
    arg_required_else_help = true
)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 bad usage.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the engine and serve the native protocol and HTTP until a signal drains it
    Serve(Box<ServeFlags>),
    /// Append every record of a file, over the native protocol
    Load(LoadFlags),
    /// Append one record
    Append(AppendFlags),
    /// Write the newest payload of a key to standard output, as it came
    Get(GetFlags),
    /// Print the versions of a key as NDJSON, newest first
    History(HistoryFlags),
    /// Print the records of a stream as NDJSON
    Scan(ScanFlags),
    /// Print the records of a stream as NDJSON, then wait for more
    Tail(TailFlags),
    /// Show what is in a data directory, as much of it as can be decoded (offline)
    Inspect(InspectFlags),
    /// Check every checksum in a data directory (offline)
    Verify(VerifyFlags),
    /// Cut damaged logs behind their last good batch, only when asked to (offline)
    Repair(RepairFlags),
    /// Lay a data directory down anew for another number of shards (offline)
    Reshard(ReshardFlags),
    /// Look at this machine's settings, change them with proof, put them back without trace
    #[command(subcommand)]
    Tune(TuneCommand),
}

/// Where a client command connects.
#[derive(Args, Clone, Debug)]
pub struct Target {
    /// Native address of the server
    #[arg(
        long,
        value_name = "HOST:PORT",
        default_value = "127.0.0.1:7600",
        env = "PINION_TO",
        value_parser = crate::units::address
    )]
    pub to: String,
    /// File that holds the server's token
    #[arg(long, value_name = "FILE", env = "PINION_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
}

/// What an ack means for this write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Durability {
    /// acked when it is on stable storage
    #[default]
    Durable,
    /// acked when it is in memory; a crash may take it back
    Buffered,
}

impl From<Durability> for wire::Durability {
    fn from(durability: Durability) -> wire::Durability {
        match durability {
            Durability::Durable => wire::Durability::Durable,
            Durability::Buffered => wire::Durability::Buffered,
        }
    }
}

/// Flags of `pinion append`.
#[derive(Args, Debug)]
pub struct AppendFlags {
    /// Stream to append to
    pub stream: String,
    /// Key of the record
    pub key: OsString,
    /// Payload; `-` or nothing reads standard input
    pub value: Option<OsString>,
    /// Content type that is kept with the record
    #[arg(long, value_name = "TYPE", default_value = "application/octet-stream")]
    pub content_type: String,
    /// Append only if the key's newest version is N
    #[arg(long, value_name = "N", conflicts_with = "if_new")]
    pub if_version: Option<u32>,
    /// Append only if the key has no live record
    #[arg(long)]
    pub if_new: bool,
    /// End the key instead: append a tombstone, without a value
    #[arg(long, conflicts_with_all = ["value", "content_type"])]
    pub tombstone: bool,
    /// When the write is acknowledged
    #[arg(long, value_enum, default_value_t)]
    pub durability: Durability,
    #[command(flatten)]
    pub target: Target,
}

/// Flags of `pinion get`.
#[derive(Args, Debug)]
pub struct GetFlags {
    /// Stream to read
    pub stream: String,
    /// Key to look up
    pub key: OsString,
    #[command(flatten)]
    pub target: Target,
}

/// Flags of `pinion history`.
#[derive(Args, Debug)]
pub struct HistoryFlags {
    /// Stream to read
    pub stream: String,
    /// Key whose versions are printed
    pub key: OsString,
    /// Print at most N versions
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Start below version N
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub before: Option<u32>,
    #[command(flatten)]
    pub target: Target,
}

/// Flags of `pinion scan`.
#[derive(Args, Debug)]
pub struct ScanFlags {
    /// Stream to read
    pub stream: String,
    /// Go on from this cursor (an earlier scan printed it on standard error)
    #[arg(long)]
    pub cursor: Option<String>,
    /// Print at most N records; without it, all of them
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    #[command(flatten)]
    pub target: Target,
}

/// Flags of `pinion tail`.
#[derive(Args, Debug)]
pub struct TailFlags {
    /// Stream to follow
    pub stream: String,
    /// Go on from this cursor (an earlier scan or tail printed it on standard error); without it, from the beginning
    #[arg(long)]
    pub cursor: Option<String>,
    /// Stop after N records; without it, follow until interrupted
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub limit: Option<u64>,
    #[command(flatten)]
    pub target: Target,
}

/// How the lines of the input are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// a JSON object per line
    Ndjson,
    /// comma-separated, the first line names the fields
    Csv,
}

/// Flags of `pinion load`.
#[derive(Args, Debug)]
pub struct LoadFlags {
    /// File to read; `-` is standard input
    pub file: PathBuf,
    /// Stream to append to
    #[arg(long)]
    pub stream: String,
    /// Field that holds the key
    #[arg(long, value_name = "FIELD")]
    pub key: String,
    /// Store this field alone; without it the whole line (CSV: the row as a JSON object)
    #[arg(long, value_name = "FIELD")]
    pub value: Option<String>,
    /// Format of the input; without it told by the file's name, else ndjson
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// Records per frame at most
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub batch: u32,
    /// Frames that may wait for their ack at once
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub window: u32,
    /// When a write is acknowledged
    #[arg(long, value_enum, default_value_t)]
    pub durability: Durability,
    /// Largest payload that the server takes, as it was started with (1MiB unless it was told): a line that would be a larger
    /// one is bad, and not the whole frame
    #[arg(long, value_name = "BYTES")]
    pub payload_bytes_max: Option<Bytes>,
    /// Count and report bad lines instead of stopping at the first
    #[arg(long)]
    pub skip_bad: bool,
    #[command(flatten)]
    pub target: Target,
}

/// Flags of `pinion inspect`.
#[derive(Args, Debug)]
pub struct InspectFlags {
    /// Data directory of a server that is not running
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Print one JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// Flags of `pinion verify`.
#[derive(Args, Debug)]
pub struct VerifyFlags {
    /// Data directory of a server that is not running
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}

/// Flags of `pinion repair`.
#[derive(Args, Debug)]
pub struct RepairFlags {
    /// Data directory of a server that is not running
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Cut damaged logs behind their last good batch; what is left out is kept in DIR/left-out-…
    #[arg(long)]
    pub cut: bool,
}

/// Flags of `pinion reshard`.
#[derive(Args, Debug)]
pub struct ReshardFlags {
    /// Data directory of a server that is not running
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Shards that it is to have
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=LOGS_MAX as i64))]
    pub shards: u32,
}

/// Parses the command line. The matches belong to the subcommand and tell a typed value from a default one.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(Command, ArgMatches), Failure> {
    let matches = Cli::command()
        .try_get_matches_from(arguments)
        .map_err(Failure::Parse)?;
    let cli = Cli::from_arg_matches(&matches).map_err(Failure::Parse)?;
    let matches = matches
        .subcommand()
        .map(|(_, matches)| matches.clone())
        .unwrap_or_default();
    Ok((cli.command, matches))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_declarations_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_serve_flag_has_its_environment_variable() {
        let command = Cli::command();
        let serve = command
            .find_subcommand("serve")
            .expect("serve is a subcommand");
        for flag in serve
            .get_arguments()
            .filter(|flag| flag.get_id() != "help" && flag.get_id() != "print_config")
        {
            let long = flag.get_long().expect("serve takes flags only");
            let wanted = format!("PINION_{}", long.to_uppercase().replace('-', "_"));
            assert_eq!(
                flag.get_env().and_then(|name| name.to_str()),
                Some(wanted.as_str()),
                "--{long}"
            );
        }
    }
}
