//! The command line and what follows from it: every flag, its default, and which of them do not go together.
//!
//! A [`Flags`] that passed [`Flags::check`] can be run; nothing behind this module looks for contradictions again.

use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Load for pinion, as its clients see it: closed or open loop, native or HTTP, latency percentiles and verification.
#[derive(Clone, Debug, Parser)]
#[command(name = "loadtest", version, about, long_about = None)]
pub struct Flags {
    /// Where the server listens [default: 127.0.0.1:7600 native, 127.0.0.1:7500 http]
    #[arg(long, value_name = "HOST:PORT")]
    pub to: Option<String>,
    /// What is spoken
    #[arg(long, value_enum, default_value_t = ProtocolName::Native)]
    pub protocol: ProtocolName,
    /// What is asked
    #[arg(long, value_enum, default_value_t = Workload::Append)]
    pub workload: Workload,
    /// Connections, over all threads
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub connections: u32,
    /// Requests in flight on each connection, at most
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub pipeline: u32,
    /// Records in each append
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub batch: u32,
    /// Bytes of each payload
    #[arg(long, value_name = "BYTES", default_value_t = 256, value_parser = clap::value_parser!(u32).range(0..=16_777_216))]
    pub payload_bytes: u32,
    /// Bytes of each key
    #[arg(long, value_name = "BYTES", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub key_bytes: u32,
    /// Different keys
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..=4_294_967_296))]
    pub keys: u64,
    /// How keys are drawn
    #[arg(long, value_enum, default_value_t = Distribution::Uniform)]
    pub distribution: Distribution,
    /// Exponent of the Zipf distribution
    #[arg(long, value_name = "S", default_value_t = 0.99)]
    pub zipf_exponent: f64,
    /// Open loop at this many records a second; without it the loop is closed
    #[arg(long, value_name = "RECORDS/S")]
    pub rate: Option<f64>,
    /// How long to measure
    #[arg(long, default_value_t = 10.0)]
    pub seconds: f64,
    /// How long to run before measuring
    #[arg(long, default_value_t = 2.0)]
    pub warmup_seconds: f64,
    /// What an ack of an append shall mean
    #[arg(long, value_enum, default_value_t = DurabilityName::Durable)]
    pub durability: DurabilityName,
    /// Cores to pin the generator threads to, e.g. 1 or 2-5,7
    #[arg(long, value_name = "LIST", value_parser = parse_cores)]
    pub cores: Option<Cores>,
    /// Generator threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub threads: u32,
    /// Read every acknowledged write back at the end; exit 1 when one is lost or wrong
    #[arg(long)]
    pub verify: bool,
    /// Append every key once before anything is measured
    #[arg(long)]
    pub preload: bool,
    /// Share of gets in the mixed workload, 0 to 1
    #[arg(long, value_name = "SHARE", default_value_t = 0.5)]
    pub get_share: f64,
    /// Versions asked for in the history workload
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Stream to write to and read from
    #[arg(long, default_value = "loadtest")]
    pub stream: String,
    /// File with the token that the server asks for
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// TCP congestion control of the connections
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    pub congestion: String,
    /// Seed of keys and payloads
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Write summary.json, latency.csv, timeline.csv, latency.hlog and latency.svg here
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Print one JSON object instead of the summary
    #[arg(long)]
    pub json: bool,
}

/// What is spoken to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// The native protocol
    Native,
    /// HTTP/1.1
    Http,
    /// Comes with the RESP server
    Resp,
}

/// What is asked of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Workload {
    /// Appends of --batch records
    Append,
    /// Newest value of a key (see --preload)
    Get,
    /// Gets and appends, see --get-share
    Mixed,
    /// The newest --limit versions of a key (see --preload)
    History,
    /// Comes with work leases
    Queue,
}

/// How keys are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Distribution {
    /// Every key equally often
    Uniform,
    /// A few keys very often
    Zipf,
}

/// What an ack shall mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DurabilityName {
    /// On stable storage
    Durable,
    /// Accepted in memory
    Buffered,
}

/// Core numbers as given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores(pub Vec<usize>);

fn parse_cores(text: &str) -> Result<Cores, String> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let number = |text: &str| {
            text.trim()
                .parse::<usize>()
                .map_err(|_| format!("'{text}' is not a core number"))
        };
        match part.split_once('-') {
            Some((first, last)) => cores.extend(number(first)?..=number(last)?),
            None => cores.push(number(part)?),
        }
    }
    if cores.is_empty() {
        Err("no cores in that range".to_owned())
    } else {
        Ok(Cores(cores))
    }
}

/// Longer runs are typing errors, and no duration holds them all.
const SECONDS_MAX: f64 = 31_536_000.0;

impl Flags {
    /// Refuses combinations that cannot be run; the sentence says what to type instead.
    pub fn check(&self) -> Result<(), String> {
        if self.protocol == ProtocolName::Resp {
            return Err(
                "--protocol resp comes with the RESP server; use native or http".to_owned(),
            );
        }
        if self.workload == Workload::Queue {
            return Err(
                "--workload queue comes with work leases; use append, get, mixed or history"
                    .to_owned(),
            );
        }
        if self.threads > self.connections {
            return Err(
                "every thread needs a connection: raise --connections or lower --threads"
                    .to_owned(),
            );
        }
        if self.batch > 1 && matches!(self.workload, Workload::Get | Workload::History) {
            return Err("--batch is about appends; a get asks for one key".to_owned());
        }
        let digits = decimal_digits(self.keys - 1);
        if (self.key_bytes as usize) < digits {
            return Err(format!(
                "{} keys need --key-bytes {digits} or more",
                self.keys
            ));
        }
        if !(self.seconds > 0.0
            && self.seconds.is_finite()
            && self.warmup_seconds >= 0.0
            && self.warmup_seconds.is_finite())
        {
            return Err("--seconds must be above 0 and --warmup-seconds not below".to_owned());
        }
        if self.seconds.max(self.warmup_seconds) > SECONDS_MAX {
            return Err(format!(
                "keep --seconds and --warmup-seconds within {SECONDS_MAX}: a year"
            ));
        }
        if self
            .rate
            .is_some_and(|rate| rate.is_nan() || rate <= 0.0 || rate.is_infinite())
        {
            return Err("--rate must be above 0; leave it out for a closed loop".to_owned());
        }
        if !(0.0..=1.0).contains(&self.get_share) {
            return Err("--get-share lies between 0 and 1".to_owned());
        }
        if self.distribution == Distribution::Zipf
            && !(self.zipf_exponent > 0.0 && self.zipf_exponent.is_finite())
        {
            return Err("--zipf-exponent must be above 0".to_owned());
        }
        if self.quotes_payloads() && self.payload_bytes < 2 {
            return Err("NDJSON values are JSON strings: --payload-bytes 2 or more".to_owned());
        }
        if self.verify && self.payload_bytes < 18 {
            return Err("--verify tells payloads apart by a stamp of 16 bytes (and quotes): --payload-bytes 18 or more".to_owned());
        }
        if !wire::stream_name_is_valid(self.stream.as_bytes()) {
            return Err("--stream is 1 to 128 of A-Z a-z 0-9 . _ : -".to_owned());
        }
        Ok(())
    }

    /// Where to connect.
    pub fn address(&self) -> String {
        self.to.clone().unwrap_or_else(|| match self.protocol {
            ProtocolName::Http => "127.0.0.1:7500".to_owned(),
            ProtocolName::Native | ProtocolName::Resp => "127.0.0.1:7600".to_owned(),
        })
    }

    /// Whether payloads go out as JSON strings, quotes included: HTTP appends of more than one record are NDJSON, and what is
    /// preloaded over HTTP is, too.
    pub fn quotes_payloads(&self) -> bool {
        self.protocol == ProtocolName::Http && (self.batch > 1 || self.preload)
    }
}

impl DurabilityName {
    /// As the wire names it.
    pub fn wire(self) -> wire::Durability {
        match self {
            DurabilityName::Durable => wire::Durability::Durable,
            DurabilityName::Buffered => wire::Durability::Buffered,
        }
    }
}

/// Digits of `number` in decimal.
pub fn decimal_digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::try_parse_from(std::iter::once("loadtest").chain(line.split_whitespace())).unwrap()
    }

    #[test]
    fn cores_are_lists_and_ranges() {
        assert_eq!(flags("--cores 1").cores, Some(Cores(vec![1])));
        assert_eq!(flags("--cores 2-4,7").cores, Some(Cores(vec![2, 3, 4, 7])));
        assert!(parse_cores("4-2").is_err());
        assert!(parse_cores("two").is_err());
    }

    #[test]
    fn contradictions_are_named() {
        for (line, word) in [
            ("--protocol resp", "RESP"),
            ("--workload queue", "leases"),
            ("--threads 3 --connections 2", "--connections"),
            ("--workload get --batch 2", "--batch"),
            ("--keys 1000001 --key-bytes 6", "--key-bytes 7"),
            ("--rate 0", "--rate"),
            ("--seconds 0", "--seconds"),
            ("--verify --payload-bytes 17", "--payload-bytes"),
        ] {
            let refused = flags(line).check().unwrap_err();
            assert!(refused.contains(word), "{line}: {refused}");
        }
    }

    #[test]
    fn digits() {
        assert_eq!(
            [0, 9, 10, 999_999, 1_000_000].map(decimal_digits),
            [1, 1, 2, 6, 7]
        );
    }
}
