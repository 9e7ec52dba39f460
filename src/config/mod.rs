//! What `serve` is told: flags over `PINION_…` environment over `--config FILE` over defaults, merged and checked.
//!
//! `flags` declares every setting, once. `resolve` checks every range and reads the token; every error says what to type.

mod flags;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use clap::ArgMatches;
use clap::parser::ValueSource;
use shard::engine::{SEGMENT_BYTES, SHARD_PORT_OFFSET};

pub use flags::ServeFlags;

use crate::exit::{Failure, usage};
use crate::units::{Bytes, Cores};

/// As many logs as a superblock names.
const SHARDS_MAX: usize = wal::superblock::LOGS_MAX;

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
    if let Some(cores) = &settings.io_worker_cores
        && let Some(core) = cores.0.iter().find(|core| !is_there(**core))
    {
        return Err(usage(format!(
            "--io-worker-cores names core {core}, which this machine does not have"
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

/// Workers of the kernel may run where this process may not; a core that is not there the kernel leaves out without a word.
fn is_there(core: usize) -> bool {
    Path::new(&format!("/sys/devices/system/cpu/cpu{core}")).exists()
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
    for (flag, seconds) in [
        (
            "tcp-user-timeout-seconds",
            settings.tcp_user_timeout_seconds,
        ),
        ("tcp-keepalive-seconds", settings.tcp_keepalive_seconds),
    ] {
        // The kernel takes no more than 32767 seconds of silence.
        if !(1..=32_767).contains(&seconds) {
            return Err(usage(format!(
                "--{flag} {seconds} is out of range: type 1 to 32767"
            )));
        }
    }
    if settings.napi_busy_poll_us > 10_000 {
        return Err(usage(format!(
            "--napi-busy-poll-us {} is out of range: type 0 to 10000",
            settings.napi_busy_poll_us
        )));
    }
    if settings.io_workers == Some(0) {
        return Err(usage(
            "--io-workers 0 is out of range: type 1 or more, or leave it away".to_owned(),
        ));
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
    use clap::{Args as _, FromArgMatches as _};

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
            (&["--shards", "0"][..], "type 1 to 75"),
            (&["--shards", "76"], "type 1 to 75"),
            (&["--shards", "2", "--cores", "0"], "name 2 cores"),
            (&["--cores", "4000"], "choose from"),
            (&["--io-worker-cores", "4000"], "does not have"),
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
            (&["--tcp-keepalive-seconds", "0"], "type 1 to 32767"),
            (&["--napi-busy-poll-us", "10001"], "type 0 to 10000"),
            (&["--io-workers", "0"], "type 1 or more"),
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
