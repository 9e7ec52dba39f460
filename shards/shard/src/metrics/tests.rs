//! The page parses, follows the naming rules, says what was recorded, and is documented.

use super::families::{FAMILIES, Type};
use super::process::ListenerDrops;
use super::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};

fn busy_shard(shard: usize) -> ShardMetrics {
    let mut metrics = ShardMetrics::new(shard);
    metrics.records(100, 25_600);
    metrics.requests(Protocol::Http, Operation::Append, 7);
    metrics.refusal(Code::TooLarge);
    metrics.refusal(Code::TooLarge);
    for operation in OPERATIONS {
        metrics.latency(operation, 120_000, 16);
    }
    metrics.latency(Operation::Append, 90_000_000_000, 1);
    metrics.device_read(88_000);
    metrics.batch(&WriteDone {
        commit_ns: 150_000,
        write_ns: 147_000,
        bytes: 28_672,
        records: 100,
        durable_lsn: Some(100),
    });
    metrics.accepted(false);
    metrics.accepted(shard == 0);
    metrics.slow_client();
    metrics.turn();
    metrics.counters.busy_ns = 1_500_000_000;
    metrics.recovered(&Recovered {
        seconds: 0.25,
        log_bytes: 10,
        checkpoint_bytes: 5,
        records: 3,
        ..Recovered::default()
    });
    metrics.gauges.state = ShardState::Ready;
    metrics.gauges.durable_lsn = 100;
    metrics.gauges.checkpoint_age_seconds = (shard == 0).then_some(12.0);
    metrics
}

fn page(shards: usize) -> String {
    let snapshots: Vec<ShardSnapshot> = (0..shards)
        .map(|shard| busy_shard(shard).snapshot())
        .collect();
    render(
        &snapshots,
        &ProcessUsage {
            resident_bytes: 1 << 20,
            open_files: 9,
            tuning_drift: 3,
            listeners: ListenerDrops {
                overflows: 4,
                drops: 5,
                syn_cookies: 6,
            },
        },
        "1.2.3",
    )
}

/// One sample line, taken apart.
#[derive(Debug)]
struct Sample {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `name{label="value",…} number`, by the letter of the exposition format.
fn parse_sample(line: &str) -> Option<Sample> {
    let name_end = line.find(['{', ' '])?;
    let (name, mut rest) = line.split_at(name_end);
    let mut labels = BTreeMap::new();
    if let Some(inside) = rest.strip_prefix('{') {
        rest = inside;
        loop {
            let (label, after) = rest.split_once("=\"")?;
            let value_end = after
                .find('"')
                .filter(|&end| !after[..end].contains(['\\', '\n']))?;
            let double = labels.insert(label.to_string(), after[..value_end].to_string());
            if double.is_some() || !is_name(label) {
                return None;
            }
            rest = &after[value_end + 1..];
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => break,
            }
        }
        rest = rest.strip_prefix('}')?;
    }
    let value = rest.strip_prefix(' ')?.parse().ok()?;
    is_name(name).then(|| Sample {
        name: name.to_string(),
        labels,
        value,
    })
}

/// The whole page: families in order, each with type and samples. Panics where the format is broken.
fn parse(text: &str) -> Vec<(String, String, Vec<Sample>)> {
    assert!(text.ends_with('\n'));
    let mut families: Vec<(String, String, Vec<Sample>)> = Vec::new();
    let mut helped = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a help text");
            assert!(helped.insert(name.to_string()), "second HELP of {name}");
            assert!(!help.trim().is_empty() && !help.contains('\\'));
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert!(helped.contains(name), "TYPE of {name} before its HELP");
            assert!(
                families.iter().all(|(other, ..)| other != name),
                "second TYPE of {name}"
            );
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            families.push((name.to_string(), kind.to_string(), Vec::new()));
        } else {
            let sample = parse_sample(line).unwrap_or_else(|| panic!("not a sample: {line}"));
            let (family, kind, samples) = families.last_mut().expect("a sample before any TYPE");
            let suffixes: &[&str] = if kind == "histogram" {
                &["_bucket", "_sum", "_count"]
            } else {
                &[""]
            };
            assert!(
                suffixes
                    .iter()
                    .any(|suffix| sample.name == format!("{family}{suffix}")),
                "{} is not of {family}",
                sample.name
            );
            samples.push(sample);
        }
    }
    families
}

#[test]
fn the_page_parses_and_holds_every_family_once() {
    for shards in 0..3 {
        let text = page(shards);
        let parsed = parse(&text);
        let names: Vec<&str> = parsed.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            FAMILIES
                .iter()
                .map(|family| family.name)
                .collect::<Vec<_>>()
        );
        let mut seen = BTreeSet::new();
        for (_, _, samples) in &parsed {
            for sample in samples {
                assert!(
                    seen.insert((sample.name.clone(), sample.labels.clone())),
                    "twice: {sample:?}"
                );
                assert!(
                    sample.value.is_finite() && sample.value >= 0.0,
                    "{sample:?}"
                );
            }
        }
    }
}

#[test]
fn histograms_are_cumulative_and_end_with_their_count() {
    let text = page(2);
    let mut checked = 0;
    for (name, kind, samples) in parse(&text) {
        if kind != "histogram" {
            continue;
        }
        let mut series: HashMap<BTreeMap<String, String>, Vec<(f64, f64)>> = HashMap::new();
        for sample in samples
            .iter()
            .filter(|sample| sample.name.ends_with("_bucket"))
        {
            let mut labels = sample.labels.clone();
            let edge = labels.remove("le").expect("a bucket has an edge");
            let edge = if edge == "+Inf" {
                f64::INFINITY
            } else {
                edge.parse().unwrap()
            };
            series.entry(labels).or_default().push((edge, sample.value));
        }
        assert!(!series.is_empty(), "{name}");
        for (labels, buckets) in series {
            assert!(
                buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1),
                "{name}: {buckets:?}"
            );
            let count = samples
                .iter()
                .find(|s| s.name.ends_with("_count") && s.labels == labels)
                .unwrap()
                .value;
            assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, count), "{name}");
            checked += 1;
        }
    }
    assert_eq!(checked, 2 * (OPERATIONS.len() + 5));
}

#[test]
fn names_say_what_they_are_in() {
    const UNITS: [&str; 15] = [
        "_total",
        "_seconds",
        "_bytes",
        "_ratio",
        "_records",
        "_keys",
        "_lsn",
        "_depth",
        "_state",
        "_info",
        "_connections",
        "_segments",
        "_files",
        "_settings",
        "_timestamp_seconds",
    ];
    for family in FAMILIES {
        assert!(family.name.starts_with("pinion_"), "{}", family.name);
        assert!(
            UNITS.iter().any(|unit| family.name.ends_with(unit)),
            "{} ends in no unit",
            family.name
        );
        assert_eq!(
            family.kind == Type::Counter,
            family.name.ends_with("_total"),
            "{}",
            family.name
        );
        assert!(
            !family.help.ends_with('.') && !family.help.contains(['\n', '\\', '|']),
            "{}",
            family.name
        );
        assert!(
            !family.labels.contains(&"shard") && !family.labels.contains(&"le"),
            "{}",
            family.name
        );
    }
}

#[test]
fn what_was_recorded_is_shown() {
    let text = page(2);
    for line in [
        "pinion_build_info{version=\"1.2.3\"} 1",
        "pinion_shard_state{shard=\"1\"} 1",
        "pinion_records_total{shard=\"0\"} 100",
        "pinion_requests_total{shard=\"0\",operation=\"append\",protocol=\"http\"} 7",
        "pinion_requests_total{shard=\"0\",operation=\"append\",protocol=\"native\"} 0",
        "pinion_refusals_total{shard=\"1\",code=\"too_large\"} 2",
        "pinion_request_seconds_count{shard=\"0\",operation=\"append\"} 17",
        "pinion_request_seconds_bucket{le=\"0.0001\",shard=\"0\",operation=\"append\"} 0",
        "pinion_request_seconds_bucket{le=\"0.0002\",shard=\"0\",operation=\"append\"} 16",
        "pinion_request_seconds_bucket{le=\"+Inf\",shard=\"0\",operation=\"append\"} 17",
        "pinion_batch_bytes_sum{shard=\"0\"} 28672.0",
        "pinion_connections_moved_total{shard=\"0\"} 1",
        "pinion_accept_skew_ratio{shard=\"0\"} 1.0",
        "pinion_busy_seconds_total{shard=\"0\"} 1.5",
        "pinion_recovery_bytes{shard=\"0\"} 15",
        "pinion_process_open_files 9",
        "pinion_tuning_drifted_settings 3",
        "pinion_host_listen_overflows_total 4",
        "pinion_host_listen_drops_total 5",
        "pinion_host_syn_cookies_total 6",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "no line {line}\n{text}"
        );
    }
}

#[test]
fn every_refusal_has_a_code_that_is_shown() {
    let mut metrics = ShardMetrics::new(0);
    metrics.refusal(Code::Ok);
    for code in CODES {
        metrics.refusal(code);
    }
    assert_eq!(
        metrics.counters.refusals.iter().sum::<u64>(),
        CODES.len() as u64 + 1
    );
    let names: BTreeSet<&str> = CODES.iter().map(|code| code.name()).collect();
    assert_eq!(names.len(), CODES.len());
    assert_eq!(
        CODES.map(|code| code as usize),
        std::array::from_fn(|at| at + 1),
        "all codes but Ok, in order"
    );
}

#[test]
fn the_arrays_are_in_the_order_of_their_numbers() {
    assert_eq!(
        OPERATIONS.map(|operation| operation as usize),
        std::array::from_fn(|at| at)
    );
    assert_eq!(
        Protocol::ALL.map(|protocol| protocol as usize),
        std::array::from_fn(|at| at)
    );
}

/// METRICS.md lists what there is: name, type, labels, meaning. The test prints the table that it wants.
#[test]
fn every_metric_is_documented() {
    let table: Vec<String> = FAMILIES
        .iter()
        .map(|family| {
            let kind = match family.kind {
                Type::Counter => "counter",
                Type::Gauge => "gauge",
                Type::Histogram => "histogram",
            };
            let shard = match family.source {
                families::Source::Process(_) | families::Source::Build => None,
                _ => Some("shard"),
            };
            let labels: Vec<&str> = shard
                .into_iter()
                .chain(family.labels.iter().copied())
                .collect();
            format!(
                "| `{}` | {kind} | {} | {} |",
                family.name,
                labels.join(", "),
                family.help
            )
        })
        .collect();
    let documented: Vec<&str> = include_str!("../../METRICS.md")
        .lines()
        .filter(|line| line.starts_with("| `pinion_"))
        .collect();
    assert!(
        documented == table,
        "METRICS.md should hold this table:\n{}",
        table.join("\n")
    );
}
