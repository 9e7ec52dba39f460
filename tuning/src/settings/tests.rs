use super::*;

#[test]
fn keys_are_unique_and_values_are_allowed_by_their_own_rows() {
    for (at, row) in TABLE.iter().enumerate() {
        assert!(
            TABLE[..at].iter().all(|other| other.key != row.key),
            "{}",
            row.key
        );
        assert!(!row.why.is_empty() && !row.risk.is_empty(), "{}", row.key);
        for value in [row.throughput, row.latency].into_iter().flatten() {
            match row.allowed {
                Allowed::Number(first, last) => {
                    let number: u64 = value
                        .parse()
                        .unwrap_or_else(|_| panic!("{}: {value}", row.key));
                    assert!((first..=last).contains(&number), "{}: {value}", row.key);
                }
                Allowed::Word(words) => assert!(words.contains(&value), "{}: {value}", row.key),
                Allowed::Nothing => assert!(
                    matches!(
                        row.rule,
                        Rule::FromTopology | Rule::Expected(_) | Rule::ExpectedAtLeast(_)
                    ),
                    "{}: a value that is written can be set",
                    row.key
                ),
            }
        }
    }
}

#[test]
fn what_must_never_be_changed_is_not_in_the_table() {
    for forbidden in ["tcp_mem", "write_cache", "mitigations", "nobarrier"] {
        assert!(
            TABLE.iter().all(|row| !row.key.contains(forbidden)),
            "{forbidden}"
        );
    }
    for read_only in [
        "net.core.busy_poll",
        "net.core.busy_read",
        "mount.barrier",
        "kernel.io_uring_disabled",
    ] {
        let row = Row::named(read_only).expect("in the table");
        assert!(matches!(row.rule, Rule::Expected(_)), "{read_only}");
    }
}

#[test]
fn a_profile_file_overrides_under_the_rule_of_the_row() {
    let text = "extends = \"latency\"\nskip = [\"vm.swappiness\"]\n[set]\n\"net.core.somaxconn\" = 8192\n\"block.scheduler\" = \"kyber\"\n";
    let profile = Profile::parse("mine.toml", text).expect("a good profile");
    let value = |key: &str| profile.value(Row::named(key).expect("in the table"));
    assert_eq!(profile.base, Base::Latency);
    assert_eq!(value("net.core.somaxconn"), Some("8192"));
    assert_eq!(value("block.scheduler"), Some("kyber"));
    assert_eq!(value("vm.swappiness"), None);
    assert_eq!(value("nic.rx_usecs"), Some("8"));
}

#[test]
fn a_bad_profile_is_refused_by_its_line() {
    let cases = [
        (
            "extends = \"latency\"\n[set]\n\"net.core.somaxcon\" = 1\n",
            3,
            "did you mean \"net.core.somaxconn\"?",
        ),
        (
            "extends = \"latency\"\n\n[set]\n\"net.core.somaxconn\" = 65536\n",
            4,
            "a number from 128 to 65535",
        ),
        (
            "extends = \"latency\"\n[set]\n\"net.core.somaxconn\" = -1\n",
            3,
            "a number from 128 to 65535",
        ),
        (
            "extends = \"latency\"\n[set]\n\"block.scheduler\" = \"cfq\"\n",
            3,
            "one of none, mq-deadline",
        ),
        (
            "extends = \"latency\"\n[set]\n\"block.scheduler\" = true\n",
            3,
            "a number or a word",
        ),
        (
            "extends = \"latency\"\n[set]\n\"net.ipv4.tcp_mem\" = 1\n",
            3,
            "no setting is called \"net.ipv4.tcp_mem\"",
        ),
        (
            "extends = \"latency\"\n[set]\n\"net.core.busy_poll\" = 50\n",
            3,
            "only looked at, never changed",
        ),
        (
            "extends = \"latency\"\n[set]\n\"nic.channels\" = 4\n",
            3,
            "follows from the machine",
        ),
        ("extends = \"speed\"\n", 1, "\"throughput\" or \"latency\""),
        ("skip = []\n", 1, "must say what it extends"),
        (
            "extends = \"latency\"\nskip = [\n\"vm.swappiness\",\n\"x\"]\n",
            4,
            "no setting is called \"x\"",
        ),
        ("extends = \"latency\"\nskip = 3\n", 2, "a list of settings"),
        ("extends = \"latency\"\nset = 3\n", 2, "set must be a table"),
        (
            "extends = \"latency\"\nwhatever = 1\n",
            2,
            "\"whatever\" means nothing here",
        ),
        ("extends = \"latency\"\n[set\n", 2, ""),
    ];
    for (text, line, wanted) in cases {
        let error = Profile::parse("mine.toml", text).expect_err(text);
        assert_eq!(error.line, line, "{text}: {error}");
        assert!(error.what.contains(wanted), "{error}");
        assert!(
            error
                .to_string()
                .starts_with(&format!("mine.toml, line {line}: "))
        );
    }
}
