//! ethtool's words: which flag asks for a setting, which one changes it, and how its output is read.
//!
//! Everything that sysfs says is read there; these are the settings that only ethtool knows.

use serde::{Deserialize, Serialize};

/// A setting of a network card that ethtool reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Setting {
    /// Queues that receive and send.
    Channels,
    /// Descriptors in each receive ring.
    RingRx,
    /// Whether the card adapts its interrupt delay itself.
    AdaptiveRx,
    /// Microseconds that a received packet waits for others before the interrupt.
    RxUsecs,
}

/// A setting, the flags that query and change it, the option behind the changing flag, and the field in the query's output.
pub(crate) struct Words {
    pub setting: Setting,
    pub query: &'static str,
    pub change: &'static str,
    pub option: &'static str,
    pub field: &'static str,
}

pub(crate) const SETTINGS: [Words; 4] = [
    words(Setting::Channels, "-l", "-L", "combined", "Combined"),
    words(Setting::RingRx, "-g", "-G", "rx", "RX"),
    words(
        Setting::AdaptiveRx,
        "-c",
        "-C",
        "adaptive-rx",
        "Adaptive RX",
    ),
    words(Setting::RxUsecs, "-c", "-C", "rx-usecs", "rx-usecs"),
];

const fn words(
    setting: Setting,
    query: &'static str,
    change: &'static str,
    option: &'static str,
    field: &'static str,
) -> Words {
    Words {
        setting,
        query,
        change,
        option,
        field,
    }
}

impl Setting {
    pub(crate) fn words(self) -> &'static Words {
        SETTINGS
            .iter()
            .find(|words| words.setting == self)
            .expect("the table has every setting")
    }
}

const CURRENT: &str = "Current hardware settings:";

/// Where the value of a field stands in an output: the value in force, or the maximum in front of it.
fn position(text: &str, field: &str, maximum: bool) -> Option<(usize, usize)> {
    let (from, until) = match text.find(CURRENT) {
        Some(middle) if maximum => (0, middle),
        Some(middle) => (middle, text.len()),
        None if maximum => return None,
        None => (0, text.len()),
    };
    let mut at = from;
    for line in text[from..until].split_inclusive('\n') {
        let label = line.trim_start();
        if let Some(rest) = label
            .strip_prefix(field)
            .and_then(|rest| rest.strip_prefix(':'))
        {
            let value = rest.split_whitespace().next()?;
            let start = at + line.len() - rest.len() + rest.find(value)?;
            return Some((start, start + value.len()));
        }
        at += line.len();
    }
    None
}

/// The value of a field that is in force; None where the card has none (`n/a`).
pub(crate) fn current(text: &str, field: &str) -> Option<String> {
    let (start, end) = position(text, field, false)?;
    Some(text[start..end].to_owned()).filter(|value| value != "n/a")
}

/// The most that a field can be set to.
pub(crate) fn maximum(text: &str, field: &str) -> Option<u64> {
    let (start, end) = position(text, field, true)?;
    text[start..end].parse().ok()
}

/// The output as it would read with another value.
pub(crate) fn with(text: &str, field: &str, value: &str) -> Option<String> {
    let (start, end) = position(text, field, false)?;
    Some(format!("{}{value}{}", &text[..start], &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RINGS: &str = "Ring parameters for eth0:\nPre-set maximums:\nRX:\t\t4096\nRX Mini:\tn/a\nTX:\t\t2048\n\
        Current hardware settings:\nRX:\t\t512\nRX Mini:\tn/a\nTX:\t\t256\n";
    const COALESCE: &str = "Coalesce parameters for eth0:\nAdaptive RX: off  TX: n/a\nrx-usecs: 8\nrx-usecs-irq: n/a\n";

    #[test]
    fn what_is_in_force_is_told_from_what_is_possible() {
        assert_eq!(current(RINGS, "RX").as_deref(), Some("512"));
        assert_eq!(maximum(RINGS, "RX"), Some(4096));
        assert_eq!(current(RINGS, "RX Mini"), None);
        assert_eq!(maximum(RINGS, "Combined"), None);
        assert_eq!(current(COALESCE, "Adaptive RX").as_deref(), Some("off"));
        assert_eq!(current(COALESCE, "rx-usecs").as_deref(), Some("8"));
        assert_eq!(maximum(COALESCE, "rx-usecs"), None);
    }

    #[test]
    fn a_changed_output_reads_as_changed_and_nothing_else_moves() {
        let changed = with(RINGS, "RX", "4096").expect("RX is there");
        assert_eq!(current(&changed, "RX").as_deref(), Some("4096"));
        assert_eq!(with(&changed, "RX", "512").as_deref(), Some(RINGS));
    }
}
