//! Numbers for people: the one place that knows how counts and sizes are written.

use crate::units::Bytes;

/// `1 shard`, `2 shards`, `2 batches`.
pub fn counted(count: u64, noun: &str) -> String {
    match count {
        1 => format!("1 {noun}"),
        _ if noun.ends_with("ch") => format!("{count} {noun}es"),
        _ => format!("{count} {noun}s"),
    }
}

/// A size for reading: exact where it is round, else to a tenth of its unit.
pub fn human(bytes: u64) -> String {
    let exact = Bytes(bytes).to_string();
    match exact.find(|c: char| c.is_ascii_alphabetic()) {
        Some(unit) if unit <= 4 => format!("{} {}", &exact[..unit], &exact[unit..]),
        _ => bytesize::ByteSize::b(bytes).display().iec().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_counts_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (512, "512 B"),
            (4096, "4 KiB"),
            (9_437_184, "9 MiB"),
            (1_234_567, "1.2 MiB"),
            (3 << 30, "3 GiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
        assert_eq!(
            [
                counted(0, "shard"),
                counted(1, "batch"),
                counted(2, "batch")
            ],
            ["0 shards", "1 batch", "2 batches"]
        );
    }
}
