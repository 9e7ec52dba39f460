//! Tools for a data directory while no server has it: `inspect` shows, `verify` judges, `repair` cuts, `reshard` lays
//! everything down anew in another number of logs.
//!
//! They read with the code that recovery uses (`wal::scan`, `wal::recovery`, `index::checkpoint`); only `repair --cut` and `reshard` write. The bytes come
//! through glommio executors, one pinned thread per log, whole segments at a time, so that the device is the limit.

pub mod dir;
pub mod inspect;
mod loose;
pub mod repair;
pub mod report;
pub mod reshard;
pub mod stream;
pub mod survey;
pub mod verify;

#[cfg(test)]
mod tests;

use std::path::Path;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use dir::Directory;
use report::LogSurvey;
use survey::Sink;
use wal::superblock::Superblock;

/// Surveys every log of the directory, one executor per core at most. The surveys come back in log order.
pub fn survey_all(directory: &Directory) -> anyhow::Result<Vec<LogSurvey>> {
    let progress = progress(directory.logs.iter().map(|log| log.bytes()).sum());
    let logs = directory.logs.iter().cloned();
    let logs = logs.map(|log| (log, survey::Nothing)).collect();
    let surveys = survey_each(logs, &directory.superblock, &progress)?;
    progress.finish_and_clear();
    Ok(surveys.into_iter().map(|(survey, _)| survey).collect())
}

/// The same of logs that somebody wants more of.
pub fn survey_each<S: Sink + Send + 'static>(
    logs: Vec<(dir::LogFiles, S)>,
    superblock: &Option<Superblock>,
    progress: &ProgressBar,
) -> anyhow::Result<Vec<(LogSurvey, S)>> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let workers = logs.len().min(cores.len().max(1));
    let mut shares: Vec<Vec<(dir::LogFiles, S)>> = (0..workers).map(|_| Vec::new()).collect();
    for (at, log) in logs.into_iter().enumerate() {
        shares[at % workers].push(log);
    }
    let mut handles = Vec::new();
    for (worker, share) in shares.into_iter().enumerate() {
        let (superblock, progress) = (superblock.clone(), progress.clone());
        handles.push(executor(cores.get(worker).copied(), move || async move {
            let mut surveys = Vec::new();
            for (log, mut sink) in share {
                let survey = survey::survey(log, &superblock, &progress, &mut sink).await?;
                surveys.push((survey, sink));
            }
            anyhow::Ok(surveys)
        })?);
    }
    let mut surveys = Vec::new();
    for handle in handles {
        surveys.extend(handle.join().map_err(stream::plain)??);
    }
    surveys.sort_by_key(|(survey, _)| survey.number);
    Ok(surveys)
}

/// A thread with a ring of its own, on this core.
fn executor<G, F, T>(
    core: Option<core_affinity::CoreId>,
    make: G,
) -> anyhow::Result<glommio::ExecutorJoinHandle<T>>
where
    G: FnOnce() -> F + Send + 'static,
    F: std::future::Future<Output = T> + 'static,
    T: Send + 'static,
{
    glommio::LocalExecutorBuilder::default()
        .name("offline")
        .spawn(move || async move {
            if let Some(core) = core {
                core_affinity::set_for_current(core);
            }
            make().await
        })
        .map_err(stream::plain)
        .context(
            "starting an executor (io_uring is needed: see pinion serve, which names what is missing)",
        )
}

/// Bytes read so far; nothing where standard error is not a terminal.
fn progress(bytes: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
    bar.set_style(
        ProgressStyle::with_template(
            "{wide_bar} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
        )
        .expect("the template is a constant"),
    );
    bar
}

/// What is told of a change of the number of shards that ended early.
fn unfinished(directory: &Directory) -> Option<String> {
    let reshard = directory.reshard.as_ref()?;
    Some(format!(
        "a change to {} ended early: logs of it that are not the store's are left out here; the next start of a server, or `pinion reshard`, removes them",
        crate::text::counted(reshard.to.len() as u64, "shard")
    ))
}

/// A path as it is shown: relative to the data directory, because that is what was typed.
fn shown(path: &Path, directory: &Path) -> String {
    path.strip_prefix(directory)
        .unwrap_or(path)
        .display()
        .to_string()
}
