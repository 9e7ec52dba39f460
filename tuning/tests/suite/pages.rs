//! Table, files and page say the same.

use std::collections::BTreeMap;

use tuning::persist::{RULES, SERVICE, sysctl_template};
use tuning::settings::{Base, Place, Rule, TABLE};

const PAGE: &str = include_str!("../../../sysctl/README.md");

/// Rows of the page's tables of settings: first cell without backquotes, then the others.
fn rows() -> BTreeMap<&'static str, Vec<&'static str>> {
    let cells = |line: &'static str| -> Vec<&'static str> {
        line.trim()
            .trim_matches('|')
            .split(" | ")
            .map(str::trim)
            .collect()
    };
    PAGE.lines()
        .take_while(|line| !line.starts_with("## Left out"))
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = cells(line);
            (cells.remove(0).trim_matches('`'), cells)
        })
        .collect()
}

#[test]
fn every_setting_has_its_row_with_the_values_of_the_table() {
    let rows = rows();
    for row in TABLE {
        let cells = rows
            .get(row.key)
            .unwrap_or_else(|| panic!("sysctl/README.md has no row for {}", row.key));
        assert_eq!(cells.len(), 6, "{}: {cells:?}", row.key);
        for (base, cell) in Base::ALL.into_iter().zip(cells) {
            let value = row.value(base).unwrap_or("as it is");
            let wanted = match row.rule {
                _ if row.value(base).is_none() => value.to_owned(),
                Rule::AtLeast | Rule::ExpectedAtLeast(_) => format!("≥ {value}"),
                Rule::AtMost => format!("≤ {value}"),
                Rule::LastAtLeast => format!("last ≥ {value}"),
                _ => value.to_owned(),
            };
            assert_eq!(*cell, wanted, "{} for {}", row.key, base.name());
        }
        assert_eq!(cells[3], row.why, "{}: why", row.key);
        assert_eq!(cells[5], row.risk, "{}: risk", row.key);
    }
    let unknown: Vec<_> = rows
        .keys()
        .filter(|key| TABLE.iter().all(|row| row.key != **key))
        .collect();
    assert!(unknown.is_empty(), "rows without a setting: {unknown:?}");
}

/// The fifth cell says what was measured and where, or why it was not; "–" stands only where nothing is ever changed.
#[test]
fn every_measured_effect_is_a_run_or_a_reason() {
    let changed = PAGE
        .split_once("## Looked at, never changed")
        .expect("the page has that part")
        .0;
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../sysctl");
    for (key, cells) in rows() {
        let said = cells[4];
        let is_changed = changed.contains(&format!("| `{key}` |"));
        let link = said
            .split_once("](")
            .and_then(|(_, rest)| rest.split_once(')'));
        let holds = match link {
            Some((path, _)) => path.contains("loadtest/runs/") && root.join(path).exists(),
            None => {
                said.strip_prefix("not measurable on our machine: ")
                    .is_some_and(|why| !why.is_empty())
                    || (said == "–" && !is_changed)
            }
        };
        assert!(holds, "{key}: {said:?}");
    }
}

#[test]
fn the_files_hold_the_values_of_the_table_and_nothing_else() {
    for base in Base::ALL {
        let file: BTreeMap<&str, &str> = sysctl_template(base)
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once(" = "))
            .collect();
        let table: BTreeMap<&str, String> = TABLE
            .iter()
            .filter(|row| row.place == Place::Sysctl)
            .filter_map(|row| {
                let value = row.value(base)?;
                let value = match row.rule {
                    Rule::LastAtLeast => format!("4096 131072 {value}"),
                    Rule::Exactly | Rule::AtLeast | Rule::AtMost => value.to_owned(),
                    _ => return None,
                };
                Some((row.key, value))
            })
            .collect();
        let table: BTreeMap<&str, &str> = table
            .iter()
            .map(|(key, value)| (*key, value.as_str()))
            .collect();
        assert_eq!(file, table, "{}", base.name());
    }
    let rules: BTreeMap<&str, &str> = RULES
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (_, attribute) = line
                .split_once("ATTR{queue/")
                .expect("a rule sets a queue's attribute");
            attribute.split_once("}=").expect("with a value")
        })
        .collect();
    let table: BTreeMap<&str, String> = TABLE
        .iter()
        .filter_map(|row| match row.place {
            Place::Disk(file) => Some((file, format!("\"{}\"", row.throughput?))),
            _ => None,
        })
        .collect();
    let table: BTreeMap<&str, &str> = table
        .iter()
        .map(|(key, value)| (*key, value.as_str()))
        .collect();
    assert_eq!(rules, table);
    assert!(SERVICE.contains("ExecStart=@pinion@ tune apply --yes @arguments@"));
}

#[test]
fn the_page_gives_a_reason_for_what_is_left_out() {
    let (_, left_out) = PAGE
        .split_once("## Left out")
        .expect("the page has that section");
    for setting in [
        "tcp_tw_recycle",
        "tcp_delack_min",
        "tcp_rfs_entries",
        "tcp_mem",
        "tcp_fack",
        "tcp_adv_win_scale",
        "tcp_low_latency",
        "tcp_max_syn_backlog",
        "tcp_tw_reuse",
        "tcp_fin_timeout",
        "ip_local_port_range",
        "tcp_fastopen",
        "default_qdisc",
        "rmem_max",
        "wmem_max",
        "rmem_default",
        "tcp_wmem",
        "netdev_budget_usecs",
        "busy_poll",
        "tcp_mtu_probing",
        "tcp_keepalive_time",
        "tcp_notsent_lowat",
        "nf_conntrack_max",
        "nobarrier",
        "write_cache",
        "mitigations=off",
        "CPUQuota",
        "MemoryHigh",
        "CPUAffinity",
        "limits.conf",
        "aio-max-nr",
        "isolcpus",
        "cpu_dma_latency",
    ] {
        let row = left_out
            .lines()
            .find(|line| line.starts_with('|') && line.contains(setting));
        let row = row.unwrap_or_else(|| panic!("nothing is said about {setting}"));
        assert!(row.matches(" | ").count() >= 1 && row.len() > 60, "{row}");
    }
}
