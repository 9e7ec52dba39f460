//! What a probe found, as tables for people and as one JSON object for programs.

use std::io::{self, Write};
use std::path::Path;

use shard::profile::Profile;

use super::{METHODS, Measured, Method, Series, WRITE_BYTES, WRITE_DEPTHS};

const CELL_WIDTH: usize = 20;
/// A p99 of so many medians is not the device's own.
const NOISY: f64 = 10.0;

impl Method {
    pub(super) fn title(self) -> &'static str {
        match self {
            Method::Dsync => "RWF_DSYNC",
            Method::OpenDsync => "O_DSYNC",
            Method::Fdatasync => "write + fdatasync",
        }
    }
}

/// Everything, and the profile that follows.
pub(super) fn json(out: &mut impl Write, measured: &Measured, profile: &Profile) -> io::Result<()> {
    let all = serde_json::json!({ "measured": measured, "profile": profile });
    serde_json::to_writer_pretty(&mut *out, &all)?;
    writeln!(out)
}

/// A table per method, then reads, extents, glommio, and who did the work.
pub(super) fn tables(
    out: &mut impl Write,
    measured: &Measured,
    profile: &Profile,
    seconds: f64,
) -> io::Result<()> {
    writeln!(
        out,
        "{} on {}, measured for {seconds:.1} s; a cell: p50 / p99 us, MB/s",
        profile.filesystem, profile.device
    )?;
    for method in METHODS {
        writeln!(out)?;
        header(
            out,
            &format!("durable, {}", method.title()),
            WRITE_DEPTHS.iter(),
        )?;
        for bytes in WRITE_BYTES {
            let cells = WRITE_DEPTHS.map(|depth| cell(measured.write(method, bytes, depth)));
            row(out, &format!("{} KiB", bytes >> 10), &cells)?;
        }
    }
    writeln!(out)?;
    let reads = &measured.reads_4k;
    header(out, "reads", reads.iter().map(|cell| &cell.depth))?;
    let cells: Vec<String> = reads.iter().map(|depth| cell(&depth.series)).collect();
    row(out, "4 KiB", &cells)?;
    writeln!(out)?;
    let executor = &measured.executor_4k;
    header(
        out,
        "through glommio",
        executor.iter().map(|cell| &cell.depth),
    )?;
    let of = |pick: fn(&super::ExecutorCell) -> &Series| -> Vec<String> {
        executor.iter().map(|depth| cell(pick(depth))).collect()
    };
    row(out, "4 KiB + fdatasync", &of(|c| &c.write_then_fdatasync))?;
    row(out, "4 KiB reads", &of(|c| &c.reads))?;
    writeln!(out)?;
    let (written, unwritten) = (&measured.written_4k, &measured.unwritten_4k);
    writeln!(
        out,
        "written extents {:.0} us, reserved ones {:.0} us at the median: {:.1} times (why segments are filled before use)",
        written.p50_us,
        unwritten.p50_us,
        unwritten.p50_us / written.p50_us.max(0.1)
    )?;
    let handed = match measured.workers_after_writes {
        0 => "the ring does them itself".to_owned(),
        count => format!(
            "{count} kernel threads (io-wq) had to do some: each costs a switch, and a newer kernel may not need it"
        ),
    };
    writeln!(
        out,
        "durable writes into written extents: {handed}; fdatasync always goes to such a thread: {} of them in the end",
        measured.workers_after_all
    )?;
    let latency = profile.latency();
    if latency.p99_us > NOISY * latency.p50_us {
        writeln!(
            out,
            "p99 of a durable write is {:.0} times its median: something else is busy here, measure again when it is quiet",
            latency.p99_us / latency.p50_us.max(0.1)
        )?;
    }
    Ok(())
}

/// What the next start will do, and what changes by it.
pub(super) fn conclusion(
    out: &mut impl Write,
    profile: &Profile,
    before: Option<Profile>,
    data: &Path,
    plot: &Path,
) -> io::Result<()> {
    writeln!(
        out,
        "\nserve will use {} ({:.0} us a durable write), {} large writes in flight, a commit window of {} us",
        profile.method_name(),
        profile.latency().p50_us,
        profile.large_writes_in_flight(),
        profile.commit_window().as_micros(),
    )?;
    if let Some(before) = before {
        writeln!(
            out,
            "before: {} ({:.0} us), {} large writes in flight, {} us",
            before.method_name(),
            before.latency().p50_us,
            before.large_writes_in_flight(),
            before.commit_window().as_micros(),
        )?;
    }
    writeln!(
        out,
        "kept in {}, read at the next start; plot: {}",
        data.join(Profile::FILE).display(),
        plot.display()
    )
}

fn header<'a>(
    out: &mut impl Write,
    title: &str,
    depths: impl Iterator<Item = &'a usize>,
) -> io::Result<()> {
    let depths: Vec<String> = depths.map(|depth| format!("depth {depth}")).collect();
    row(out, title, &depths)
}

fn row(out: &mut impl Write, label: &str, cells: &[String]) -> io::Result<()> {
    write!(out, "{label:<28}")?;
    for cell in cells {
        write!(out, "{cell:>CELL_WIDTH$}")?;
    }
    writeln!(out)
}

fn cell(series: &Series) -> String {
    format!(
        "{:.0} / {:.0}, {:.0}",
        series.p50_us,
        series.p99_us,
        series.bytes_per_second / 1e6
    )
}
