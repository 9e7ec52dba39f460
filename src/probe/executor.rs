//! The same writes and reads through glommio, as the offline tools do them: what its executor adds to the device's time.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use glommio::io::{DmaFile, OpenOptions};

use super::{SPAN_BYTES, Series};
use crate::offline::stream::plain;

/// Writes, each followed by fdatasync, and reads of `bytes`, at each of `depths`.
pub fn measure(
    data: &Path,
    bytes: usize,
    depths: &[usize],
    time: Duration,
) -> anyhow::Result<Vec<(usize, Series, Series)>> {
    let path = data.join(format!(".probe-executor-{}", std::process::id()));
    let depths = depths.to_vec();
    let handle = glommio::LocalExecutorBuilder::default()
        .name("probe")
        .spawn(move || async move {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .dma_open(&path)
                .await
                .map_err(plain)?;
            std::fs::remove_file(&path)?;
            let file = Rc::new(file);
            fill(&file).await?;
            let mut rows = Vec::new();
            for depth in depths {
                let writes = series(&file, bytes, depth, time, true).await?;
                let reads = series(&file, bytes, depth, time, false).await?;
                rows.push((depth, writes, reads));
            }
            // The last owner closes it; what it says of a file without a name is of no use.
            if let Ok(file) = Rc::try_unwrap(file) {
                let _ = file.close().await;
            }
            Ok::<_, anyhow::Error>(rows)
        })
        .map_err(plain)
        .context("starting an executor")?;
    handle.join().map_err(plain)?
}

async fn fill(file: &DmaFile) -> anyhow::Result<()> {
    const STEP: usize = 1 << 20;
    for offset in (0..SPAN_BYTES).step_by(STEP) {
        let mut buffer = file.alloc_dma_buffer(STEP);
        buffer.as_bytes_mut().fill(0x5a);
        file.write_at(buffer, offset).await.map_err(plain)?;
    }
    file.fdatasync().await.map_err(plain)?;
    Ok(())
}

async fn series(
    file: &Rc<DmaFile>,
    bytes: usize,
    depth: usize,
    time: Duration,
    write: bool,
) -> anyhow::Result<Series> {
    let started = Instant::now();
    let tasks: Vec<_> = (0..depth as u64)
        .map(|slot| {
            let file = Rc::clone(file);
            glommio::spawn_local(async move {
                let places = SPAN_BYTES / bytes as u64;
                let mut latencies = Vec::new();
                let mut next = slot;
                while started.elapsed() < time {
                    let begun = Instant::now();
                    if write {
                        let mut buffer = file.alloc_dma_buffer(bytes);
                        buffer.as_bytes_mut().fill(next as u8);
                        let offset = next % places * bytes as u64;
                        file.write_at(buffer, offset).await.map_err(plain)?;
                        file.fdatasync().await.map_err(plain)?;
                    } else {
                        let place = next.wrapping_mul(0x9e37_79b9_7f4a_7c15) % places;
                        file.read_at_aligned(place * bytes as u64, bytes)
                            .await
                            .map_err(plain)?;
                    }
                    latencies.push(begun.elapsed());
                    next += depth as u64;
                }
                Ok::<_, anyhow::Error>(latencies)
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await?);
    }
    Ok(Series::new(latencies, bytes, started.elapsed()))
}
