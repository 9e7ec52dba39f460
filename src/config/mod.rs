//! What `serve` is told: flags over `PINION_…` environment over `--config FILE` over defaults, merged and checked.
//!
//! `ServeFlags` is the only declaration of a setting: clap reads flags, environment and defaults from it, serde the file.
//! `resolve` checks every range and reads the token; every error says what to type.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args, FromArgMatches};
use serde::{Deserialize, Serialize};
use shard::engine::{SEGMENT_BYTES, SHARD_PORT_OFFSET};

use crate::exit::{Failure, usage};
use crate::units::{Bytes, Cores};

/// Above any machine this runs on, and each still has 16 slots.
const SHARDS_MAX: usize = 1024;

/// Everything that `serve` can be told, as typed. Names in the file are the flags without the dashes in front.
#[derive(Args, Clone, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ServeFlags {
    /// Data directory; made if it is not there
    #[arg(
        long,
        env = "PINION_DATA",
        value_name = "DIR",
        default_value = "./data"
    )]
    pub data: PathBuf,
    /// Shards; without it one per physical core that the process may use, or what the directory was made with
    #[arg(long, env = "PINION_SHARDS", value_name = "N")]
    pub shards: Option<usize>,
    /// Cores for the shards, a list or ranges such as 0,2-5
    #[arg(long, env = "PINION_CORES", value_name = "LIST")]
    pub cores: Option<Cores>,
    /// Address to listen on; anything but loopback needs --token-file or --insecure
    #[arg(long, env = "PINION_LISTEN", value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST))]
    pub listen: IpAddr,
    /// Native protocol port; 0 takes any free one
    #[arg(long, env = "PINION_PORT", value_name = "PORT", default_value_t = 7600, value_parser = port)]
    pub port: u16,
    /// HTTP port; 0 takes any free one
    #[arg(long, env = "PINION_HTTP_PORT", value_name = "PORT", default_value_t = 7500, value_parser = port)]
    pub http_port: u16,
    /// Whether each shard also listens on a native port of its own (native port + 10001 + shard)
    #[arg(long, env = "PINION_SHARD_PORTS", value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set,
          value_parser = clap::builder::BoolishValueParser::new())]
    pub shard_ports: bool,
    /// File that holds the token which clients must show
    #[arg(long, env = "PINION_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Serve an address that is not loopback without a token: anyone who reaches it may read and write
    #[arg(long, env = "PINION_INSECURE", value_parser = clap::builder::BoolishValueParser::new())]
    pub insecure: bool,
    /// Bytes of a log segment; fixed when the data directory is made (then 64MiB without this)
    #[arg(long, env = "PINION_SEGMENT_BYTES", value_name = "SIZE")]
    pub segment_bytes: Option<Bytes>,
    /// Cap on the memory plan of all shards together; without it three quarters of the machine's memory
    #[arg(long, env = "PINION_MEMORY", value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// Read cache of each shard; without it a share of the memory plan
    #[arg(long, env = "PINION_CACHE", value_name = "SIZE")]
    pub cache: Option<Bytes>,
    /// Largest payload of a record
    #[arg(
        long,
        env = "PINION_PAYLOAD_BYTES_MAX",
        value_name = "SIZE",
        default_value = "1MiB"
    )]
    pub payload_bytes_max: Bytes,
    /// Connections of each shard at most
    #[arg(
        long,
        env = "PINION_CONNECTIONS_MAX",
        value_name = "N",
        default_value_t = 4096
    )]
    pub connections_max: u32,
    /// Seconds after which a request that was begun must be whole, and one more for every 64 KiB of it
    #[arg(
        long,
        env = "PINION_REQUEST_TIMEOUT_SECONDS",
        value_name = "SECONDS",
        default_value_t = 10
    )]
    pub request_timeout_seconds: u32,
    /// Microseconds that an idle shard polls at most before it sleeps; 0 never polls, without it 200
    #[arg(long, env = "PINION_SPIN_US", value_name = "MICROSECONDS")]
    pub spin_us: Option<u32>,
    /// Microseconds between small log writes under load; 0 writes at once, without it three times the measured sync latency
    #[arg(long, env = "PINION_COMMIT_WINDOW_US", value_name = "MICROSECONDS")]
    pub commit_window_us: Option<u32>,
    /// TCP congestion control of client connections; without it the system's
    #[arg(long, env = "PINION_CONGESTION", value_name = "NAME")]
    pub congestion: Option<String>,
    /// Prepared segments that wait behind the open one
    #[arg(long, env = "PINION_SEGMENTS_AHEAD", value_name = "N")]
    pub segments_ahead: Option<u32>,
    /// Bytes of log after which a shard writes a new checkpoint of its index
    #[arg(long, env = "PINION_CHECKPOINT_LOG_BYTES", value_name = "SIZE")]
    pub checkpoint_log_bytes: Option<Bytes>,
    /// Sealed segments are verified again at this rate per second and shard; 0 never does
    #[arg(
        long,
        env = "PINION_SCRUB_BYTES_PER_SECOND",
        value_name = "SIZE",
        default_value = "8MiB"
    )]
    pub scrub_bytes_per_second: Bytes,
    /// Log on disk over what of it can still be read, about, from which compaction holds it down; 0 frees nothing, without it 2
    #[arg(long, env = "PINION_SPACE_AMPLIFICATION", value_name = "TIMES")]
    pub space_amplification: Option<f64>,
    /// What is logged on standard error: a level, or tracing's target=level list
    #[arg(
        long,
        env = "PINION_LOG",
        value_name = "FILTER",
        default_value = "info"
    )]
    pub log: String,
    /// TOML file with the same settings; flags and environment go before it
    #[arg(long, env = "PINION_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Print the settings that would be in force, as TOML, and end
    #[arg(long)]
    #[serde(skip)]
    pub print_config: bool,
}

impl Default for ServeFlags {
    /// What clap makes of an empty command line. Only fills the fields that a file does not name while the file is checked.
    fn default() -> ServeFlags {
        let command = ServeFlags::augment_args(clap::Command::new("serve"));
        let matches = command.get_matches_from(["serve"]);
        ServeFlags::from_arg_matches(&matches).expect("clap accepts its own defaults")
    }
}

impl ServeFlags {
    /// How many shards are asked for, by number or by cores; None leaves it to the machine or to the directory.
    pub fn shard_count(&self) -> Option<usize> {
        self.shards
            .or(self.cores.as_ref().map(|cores| cores.0.len()))
    }
}

/// A port, with the one trap that its environment variable has.
fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| {
        if text.starts_with("tcp://") {
            "this is the link variable that Kubernetes sets for a service named pinion: \
             set enableServiceLinks: false in the pod, or type --port"
                .to_owned()
        } else {
            format!("{text:?} is not a port: type a number from 0 to 65535")
        }
    })
}

/// What `serve` runs with: merged, read and checked.
#[derive(Debug)]
pub struct ServeConfig {
    /// The settings in force.
    pub settings: ServeFlags,
    /// What clients must show, if anything.
    pub token: Option<Vec<u8>>,
    /// Things that are allowed and should be said aloud.
    pub warnings: Vec<String>,
}

/// Puts the file under what was typed. `matches` tells typed and environment values from defaults.
pub fn merge(flags: ServeFlags, matches: &ArgMatches) -> Result<ServeFlags, Failure> {
    let Some(path) = flags.config.clone() else {
        return Ok(flags);
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|error| usage(format!("--config {}: {error}", path.display())))?;
    let in_file = |error: toml::de::Error| usage(format!("--config {}: {error}", path.display()));
    // Parsed twice: as settings, which names a wrong key or value with its line, and as a table, which knows what was there.
    toml::from_str::<ServeFlags>(&text).map_err(in_file)?;
    let file: toml::Table = text.parse().map_err(in_file)?;

    let typed = |key: &str| {
        let id = key.replace('-', "_");
        matches!(
            matches.value_source(&id),
            Some(ValueSource::CommandLine | ValueSource::EnvVariable)
        )
    };
    let mut table = toml::Table::try_from(&flags)?;
    table.extend(file.into_iter().filter(|(key, _)| !typed(key)));
    let merged: ServeFlags = table.try_into().map_err(in_file)?;
    Ok(ServeFlags {
        config: flags.config,
        print_config: flags.print_config,
        ..merged
    })
}

/// Checks every range and the rule about who may connect; reads the token.
pub fn resolve(settings: ServeFlags) -> Result<ServeConfig, Failure> {
    let mut warnings = Vec::new();
    check_shards(&settings)?;
    check_sizes(&settings)?;
    check_ports(&settings)?;

    let token = settings
        .token_file
        .as_deref()
        .map(|path| read_token(path, &mut warnings))
        .transpose()?;
    if !settings.listen.is_loopback() && token.is_none() {
        if !settings.insecure {
            return Err(usage(format!(
                "--listen {} can be reached from other machines: add --token-file FILE (clients must then show the token), \
                 or --insecure to serve anyone",
                settings.listen
            )));
        }
        warnings.push(format!(
            "{} is served without a token: anyone who reaches it may read and write",
            settings.listen
        ));
    }
    Ok(ServeConfig {
        settings,
        token,
        warnings,
    })
}

fn check_shards(settings: &ServeFlags) -> Result<(), Failure> {
    if let Some(shards) = settings.shards
        && !(1..=SHARDS_MAX).contains(&shards)
    {
        return Err(usage(format!(
            "--shards {shards} is out of range: type 1 to {SHARDS_MAX}"
        )));
    }
    if let (Some(shards), Some(cores)) = (settings.shards, &settings.cores)
        && cores.0.len() != shards
    {
        return Err(usage(format!(
            "--shards {shards} and --cores {cores} do not agree: name {shards} cores, or leave one of the two away"
        )));
    }
    if let Some(cores) = &settings.cores {
        let allowed: Vec<usize> = core_affinity::get_core_ids()
            .unwrap_or_default()
            .iter()
            .map(|core| core.id)
            .collect();
        if let Some(core) = cores.0.iter().find(|core| !allowed.contains(core)) {
            return Err(usage(format!(
                "--cores names core {core}, which this process may not use: choose from {}",
                Cores(allowed)
            )));
        }
    }
    Ok(())
}

fn check_sizes(settings: &ServeFlags) -> Result<(), Failure> {
    let within = |flag: &str, value: Bytes, least: Bytes, most: Bytes| {
        if (least..=most).contains(&value) {
            Ok(())
        } else {
            Err(usage(format!(
                "--{flag} {value} is out of range: type {least} to {most}"
            )))
        }
    };
    const KIB: u64 = 1 << 10;
    const MIB: u64 = 1 << 20;
    within(
        "payload-bytes-max",
        settings.payload_bytes_max,
        Bytes(KIB),
        // An index entry knows records of up to 2 MiB, key, header and extensions included.
        Bytes(2 * MIB - 64 * KIB),
    )?;
    let segment = settings.segment_bytes.unwrap_or(Bytes(SEGMENT_BYTES));
    within("segment-bytes", segment, Bytes(MIB), Bytes(256 * MIB))?;
    let block = Bytes(wal::BLOCK_BYTES as u64);
    if !segment.0.is_multiple_of(block.0) {
        return Err(usage(format!(
            "--segment-bytes {segment} is not a multiple of {block}"
        )));
    }
    // A record never spans two segments; with room for four of the largest, rolling wastes at most a quarter.
    let least = Bytes(4 * settings.payload_bytes_max.0);
    if segment < least {
        return Err(usage(format!(
            "--segment-bytes {segment} is too small for --payload-bytes-max {}: type --segment-bytes {least} or more",
            settings.payload_bytes_max
        )));
    }
    if let Some(memory) = settings.memory {
        within("memory", memory, Bytes(32 * MIB), Bytes(1 << 50))?;
    }
    if let Some(checkpoint) = settings.checkpoint_log_bytes {
        within(
            "checkpoint-log-bytes",
            checkpoint,
            Bytes(MIB),
            Bytes(1 << 50),
        )?;
    }
    if let Some(times) = settings
        .space_amplification
        .filter(|times| *times != 0.0 && !(1.2..=100.0).contains(times))
    {
        return Err(usage(format!(
            "--space-amplification {times} is out of range: type 1.2 to 100, or 0 to free nothing"
        )));
    }
    if !(1..=1_000_000).contains(&settings.connections_max) {
        return Err(usage(format!(
            "--connections-max {} is out of range: type 1 to 1000000",
            settings.connections_max
        )));
    }
    if !(1..=3600).contains(&settings.request_timeout_seconds) {
        return Err(usage(format!(
            "--request-timeout-seconds {} is out of range: type 1 to 3600",
            settings.request_timeout_seconds
        )));
    }
    if let Some(spin_us) = settings.spin_us.filter(|spin_us| *spin_us > 10_000) {
        return Err(usage(format!(
            "--spin-us {spin_us} is out of range: type 0 to 10000"
        )));
    }
    if let Some(window) = settings.commit_window_us.filter(|window| *window > 10_000) {
        return Err(usage(format!(
            "--commit-window-us {window} is out of range: type 0 to 10000"
        )));
    }
    if let Some(ahead) = settings
        .segments_ahead
        .filter(|ahead| !(1..=64).contains(ahead))
    {
        return Err(usage(format!(
            "--segments-ahead {ahead} is out of range: type 1 to 64"
        )));
    }
    Ok(())
}

fn check_ports(settings: &ServeFlags) -> Result<(), Failure> {
    if settings.port != 0 && settings.port == settings.http_port {
        return Err(usage(format!(
            "--port and --http-port are both {}: type two different ports",
            settings.port
        )));
    }
    let shards = settings.shard_count().unwrap_or(1) as u64;
    let last = u64::from(settings.port) + u64::from(SHARD_PORT_OFFSET) + shards - 1;
    if settings.shard_ports && settings.port != 0 && last > u64::from(u16::MAX) {
        return Err(usage(format!(
            "--port {} leaves no room for the shards' own ports (the last would be {last}): type a lower --port, or --shard-ports false",
            settings.port
        )));
    }
    Ok(())
}

/// Reads a token file: one token, white space around it ignored.
pub fn read_token(path: &Path, warnings: &mut Vec<String>) -> Result<Vec<u8>, Failure> {
    let bytes = std::fs::read(path)
        .map_err(|error| usage(format!("--token-file {}: {error}", path.display())))?;
    let token = bytes.trim_ascii();
    if token.is_empty() {
        return Err(usage(format!(
            "--token-file {} is empty: put a token into it, as in: head -c 24 /dev/urandom | base64 > {}",
            path.display(),
            path.display()
        )));
    }
    if token
        .iter()
        .any(|byte| byte.is_ascii_whitespace() || byte.is_ascii_control())
    {
        return Err(usage(format!(
            "--token-file {} holds more than one word: keep only the token",
            path.display()
        )));
    }
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o004 != 0 {
        warnings.push(format!(
            "everyone on this machine can read the token: type chmod 600 {}",
            path.display()
        ));
    }
    Ok(token.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> ServeFlags {
        let command = ServeFlags::augment_args(clap::Command::new("serve").no_binary_name(true));
        let matches = command.get_matches_from(arguments);
        let flags = ServeFlags::from_arg_matches(&matches).expect("flags are good");
        merge(flags, &matches).unwrap_or_else(|failure| panic!("{failure:?}"))
    }

    fn refusal(arguments: &[&str]) -> String {
        match resolve(flags(arguments)) {
            Err(Failure::Usage(text)) => text,
            other => panic!("{arguments:?} gave {other:?}"),
        }
    }

    #[test]
    fn a_refusal_says_what_to_type() {
        for (arguments, wanted) in [
            (&["--shards", "0"][..], "type 1 to 1024"),
            (&["--shards", "2", "--cores", "0"], "name 2 cores"),
            (&["--cores", "4000"], "choose from"),
            (&["--segment-bytes", "1GiB"], "type 1MiB to 256MiB"),
            (&["--segment-bytes", "5000001"], "multiple of 4KiB"),
            (
                &["--segment-bytes", "2MiB"],
                "type --segment-bytes 4MiB or more",
            ),
            (&["--payload-bytes-max", "1"], "type 1KiB to 1984KiB"),
            (&["--port", "7500"], "two different ports"),
            (&["--port", "60000"], "--shard-ports false"),
            (&["--listen", "0.0.0.0"], "--token-file FILE"),
            (&["--listen", "::"], "--insecure"),
            (&["--token-file", "/does/not/exist"], "/does/not/exist"),
            (&["--connections-max", "0"], "type 1 to"),
            (&["--request-timeout-seconds", "0"], "type 1 to 3600"),
            (&["--spin-us", "10001"], "type 0 to 10000"),
            (&["--commit-window-us", "10001"], "type 0 to 10000"),
            (&["--memory", "1MiB"], "type 32MiB"),
        ] {
            let text = refusal(arguments);
            assert!(text.contains(wanted), "{arguments:?}: {text}");
        }
    }

    #[test]
    fn loopback_is_open_and_other_addresses_are_not() {
        for open in [
            &["--listen", "127.0.0.1"][..],
            &["--listen", "::1"],
            &["--listen", "127.9.9.9"],
            &[],
        ] {
            let config =
                resolve(flags(open)).unwrap_or_else(|failure| panic!("{open:?}: {failure:?}"));
            assert!(config.token.is_none() && config.warnings.is_empty());
        }
        let insecure =
            resolve(flags(&["--listen", "0.0.0.0", "--insecure"])).expect("insecure is allowed");
        assert_eq!(insecure.warnings.len(), 1);
    }

    #[test]
    fn the_token_is_one_trimmed_word_and_a_public_file_is_warned_about() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("token");
        let read = |text: &str, mode: u32| {
            std::fs::write(&path, text).expect("token file");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
                .expect("permissions");
            let mut warnings = Vec::new();
            read_token(&path, &mut warnings).map(|token| (token, warnings.len()))
        };
        assert_eq!(
            read("  secret\n", 0o600).expect("a good token"),
            (b"secret".to_vec(), 0)
        );
        assert_eq!(
            read("secret", 0o644).expect("a good token"),
            (b"secret".to_vec(), 1)
        );
        assert!(read(" \n", 0o600).is_err());
        assert!(read("two words", 0o600).is_err());
    }

    #[test]
    fn the_file_loses_to_flags_and_beats_defaults() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("pinion.toml");
        std::fs::write(&path, "port = 7001\nhttp-port = 7002\ncores = [0]\nsegment-bytes = \"32MiB\"\ninsecure = true\n").expect("file");
        let path = path.to_str().expect("UTF-8");
        let merged = flags(&["--config", path, "--port", "7003"]);
        assert_eq!(
            (merged.port, merged.http_port, merged.insecure),
            (7003, 7002, true)
        );
        assert_eq!(
            (merged.segment_bytes, merged.cores),
            (Some(Bytes(32 << 20)), Some(Cores(vec![0])))
        );
        assert_eq!(merged.payload_bytes_max, Bytes(1 << 20));
    }
}
