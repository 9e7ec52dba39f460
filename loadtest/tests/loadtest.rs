//! The binary against a server that behaves, stalls, forgets and garbles.

mod mock;

use std::process::{Command, Output};
use std::time::Duration;

use mock::Faults;
use serde_json::Value;

fn loadtest(faults: Faults, arguments: &str) -> Output {
    let address = mock::start(faults);
    Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["--to", &address.to_string()])
        .args(arguments.split_whitespace())
        .output()
        .unwrap()
}

fn json(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(
        text.trim_end().lines().count(),
        1,
        "one object on one line: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_str(&text).unwrap()
}

fn number(summary: &Value, field: &str) -> f64 {
    summary[field]
        .as_f64()
        .unwrap_or_else(|| panic!("{field} is missing: {summary}"))
}

#[test]
fn json_has_the_fields_that_scripts_read() {
    let output = loadtest(
        Faults::default(),
        "--json --seconds 0.5 --warmup-seconds 0.1 --connections 4 --pipeline 4 --keys 1000",
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let summary = json(&output);
    for field in [
        "records_per_second",
        "requests_per_second",
        "p50_us",
        "p99_us",
        "p999_us",
        "max_us",
    ] {
        assert!(number(&summary, field) > 0.0, "{field}: {summary}");
    }
    assert_eq!(number(&summary, "errors"), 0.0);
    assert!(number(&summary, "p50_us") <= number(&summary, "p99_us"));
    assert_eq!(summary["run"]["durability"], "durable");
    assert_eq!(summary["run"]["loop"], "closed");
    assert_eq!(summary["server"]["store"], "mock");
    assert!(summary["machine"]["kernel"].is_string() && summary["commit"].is_string());
}

#[test]
fn open_loop_counts_latency_from_the_intended_time() {
    // The server answers nothing for 200 of 1,000 ms. A closed loop would send, and count, almost nothing in that time; here a
    // fifth of all requests was due in it.
    let faults = Faults {
        stall: Some((Duration::from_millis(400), Duration::from_millis(200))),
        ..Faults::default()
    };
    let output = loadtest(
        faults,
        "--json --rate 2000 --seconds 1 --warmup-seconds 0 --connections 2 --pipeline 1 --keys 1000",
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let summary = json(&output);
    assert_eq!(summary["run"]["loop"], "open");
    // Only two requests at a time are in flight, so that at most two waited for an answer that long: without the schedule
    // p99 would be a round trip. A slow machine can only add to these.
    assert!(number(&summary, "p90_us") > 50_000.0, "{summary}");
    assert!(number(&summary, "p99_us") > 150_000.0, "{summary}");
    assert!(
        (1..=2_000).contains(&summary["records"].as_u64().unwrap()),
        "{summary}"
    );
}

#[test]
fn what_was_due_before_the_end_is_measured_although_it_is_sent_later() {
    // Silent from 200 to 1,200 ms of a run of 500 ms: three fifths of the requests are due and cannot be sent.
    let stall = Some((Duration::from_millis(200), Duration::from_millis(1_000)));
    let output = loadtest(
        Faults {
            stall,
            ..Faults::default()
        },
        "--json --rate 1000 --seconds 0.5 --warmup-seconds 0 --connections 2 --pipeline 1 --keys 1000",
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let summary = json(&output);
    assert!(number(&summary, "p50_us") > 500_000.0, "{summary}");
    assert!(number(&summary, "max_us") > 900_000.0, "{summary}");
    assert!(
        number(&summary, "records") <= 300.0,
        "answers after the end are in no rate: {summary}"
    );
    assert_eq!(number(&summary, "unsent"), 0.0, "{summary}");
}

#[test]
fn verify_is_content_with_a_good_server() {
    let output = loadtest(
        Faults::default(),
        "--json --verify --seconds 0.5 --warmup-seconds 0.1 --connections 4 --batch 10 --keys 500 --distribution zipf",
    );
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let verdict = &json(&output)["verify"];
    assert!(
        verdict["acked_writes"].as_u64().unwrap() > 500
            && verdict["checked_keys"].as_u64().unwrap() > 100,
        "{verdict}"
    );
    assert_eq!(
        (verdict["lost"].as_u64(), verdict["wrong"].as_u64()),
        (Some(0), Some(0))
    );
}

/// So many keys that no other write covers the one that is lost.
const SPARSE: &str = "--json --verify --seconds 0.3 --warmup-seconds 0 --connections 2 --pipeline 1 --keys 20000000 --rate 2000";

#[test]
fn verify_finds_one_lost_write() {
    for protocol in ["native", "http"] {
        let faults = Faults {
            lose: Some(100),
            ..Faults::default()
        };
        let output = loadtest(faults, &format!("{SPARSE} --protocol {protocol}"));
        assert_eq!(output.status.code(), Some(1), "{protocol}");
        let verdict = &json(&output)["verify"];
        let found = (verdict["lost"].as_u64(), verdict["wrong"].as_u64());
        assert_eq!(found, (Some(1), Some(0)), "{protocol}: {verdict}");
    }
}

#[test]
fn verify_finds_one_turned_bit() {
    for protocol in ["native", "http"] {
        let faults = Faults {
            corrupt: Some(100),
            ..Faults::default()
        };
        let output = loadtest(faults, &format!("{SPARSE} --protocol {protocol}"));
        assert_eq!(output.status.code(), Some(1), "{protocol}");
        let verdict = &json(&output)["verify"];
        let found = (verdict["lost"].as_u64(), verdict["wrong"].as_u64());
        assert_eq!(found, (Some(0), Some(1)), "{protocol}: {verdict}");
    }
}

#[test]
fn a_lost_batch_of_lines_is_found_by_its_payloads() {
    // NDJSON appends are acknowledged without versions.
    let arguments = format!(
        "{} --protocol http --batch 10",
        SPARSE.replace("--rate 2000", "--rate 10000")
    );
    let output = loadtest(
        Faults {
            lose: Some(50),
            ..Faults::default()
        },
        &arguments,
    );
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(json(&output)["verify"]["lost"].as_u64(), Some(10));
    let good = loadtest(Faults::default(), &format!("{arguments} --keys 40"));
    assert_eq!(good.status.code(), Some(2), "--keys twice is bad usage");
    let good = loadtest(Faults::default(), &arguments.replace("20000000", "40"));
    assert_eq!(
        good.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&good.stdout)
    );
}

#[test]
fn gets_and_histories_find_what_was_preloaded() {
    for (protocol, workload) in [
        ("native", "get"),
        ("native", "history"),
        ("native", "mixed"),
        ("http", "get"),
        ("http", "history"),
        ("http", "mixed"),
    ] {
        let output = loadtest(
            Faults::default(),
            &format!(
                "--json --protocol {protocol} --workload {workload} --preload --seconds 0.3 --warmup-seconds 0 --connections 3 --keys 777"
            ),
        );
        assert_eq!(
            output.status.code(),
            Some(0),
            "{workload}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let summary = json(&output);
        assert!(number(&summary, "records_per_second") > 0.0);
        assert_eq!(
            (number(&summary, "not_found"), summary["read"].is_object()),
            (0.0, workload == "mixed"),
            "{summary}"
        );
    }
}

#[test]
fn a_get_of_keys_that_nobody_wrote_fails() {
    let output = loadtest(
        Faults::default(),
        "--json --workload get --seconds 0.2 --warmup-seconds 0 --connections 1",
    );
    assert_eq!(output.status.code(), Some(1));
    assert!(
        json(&output)["errors_by_code"]["not found"]
            .as_u64()
            .unwrap()
            > 0
    );
}

#[test]
fn refusals_are_counted_by_code() {
    let faults = Faults {
        refuse: true,
        ..Faults::default()
    };
    let output = loadtest(
        faults,
        "--json --seconds 0.2 --warmup-seconds 0 --connections 1 --pipeline 1",
    );
    assert_eq!(output.status.code(), Some(1));
    let summary = json(&output);
    let name = wire::Code::Overloaded.name();
    assert!(
        summary["errors_by_code"][name].as_u64().unwrap() > 0,
        "{summary}"
    );
}

#[test]
fn output_writes_every_file_and_the_log_holds_every_latency() {
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{IntervalLogIterator, LogEntry};

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("made/for/it");
    let arguments = format!(
        "--json --seconds 1.2 --warmup-seconds 0.1 --connections 4 --threads 2 --output {}",
        path.display()
    );
    let output = loadtest(Faults::default(), &arguments);
    assert_eq!(
        output.status.code(),
        Some(0),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let read = |name: &str| {
        std::fs::read_to_string(path.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    };

    let summary: Value = serde_json::from_str(&read("summary.json")).unwrap();
    assert_eq!(summary["records"], json(&output)["records"]);
    assert!(read("timeline.csv").lines().count() >= 3);
    assert!(
        read("latency.csv")
            .lines()
            .last()
            .unwrap()
            .starts_with("100.0")
    );
    let svg = read("latency.svg");
    assert!(
        svg.contains("<text")
            && svg.contains("percentile")
            && svg.contains("99.9")
            && svg.contains("<polyline")
    );

    let log = read("latency.hlog");
    let mut count = 0;
    for entry in IntervalLogIterator::new(log.as_bytes()) {
        let Ok(LogEntry::Interval(interval)) = entry else {
            continue;
        };
        let bytes = base64::Engine::decode(
            &base64::engine::general_purpose::STANDARD,
            interval.encoded_histogram(),
        )
        .unwrap();
        count += Deserializer::new()
            .deserialize::<u64, _>(&mut bytes.as_slice())
            .unwrap()
            .len();
    }
    // Answers after the end are in the log too, but in no rate.
    let requests = summary["requests"].as_u64().unwrap();
    assert!(
        (requests..=requests + 4 * 16).contains(&count),
        "{count} latencies for {requests} requests"
    );
}

#[test]
fn what_is_not_built_yet_is_bad_usage() {
    for (arguments, word) in [
        ("--protocol resp", "comes with the RESP server"),
        ("--workload queue", "comes with"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
            .args(arguments.split_whitespace())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains(word));
    }
}

#[test]
fn no_server_is_a_plain_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_loadtest"))
        .args(["--to", "127.0.0.1:1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.starts_with("error: cannot connect to 127.0.0.1:1: Connection refused"),
        "{stderr}"
    );
    assert_eq!(stderr.matches("refused").count(), 1, "{stderr}");
}
