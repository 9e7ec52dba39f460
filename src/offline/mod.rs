//! Tools for a data directory while no server has it: `inspect` shows, `verify` judges, `repair` cuts.
//!
//! They read with the code that recovery uses (`wal::scan`, `wal::recovery`, `index::checkpoint`); only `repair --cut` writes. The bytes come
//! through glommio executors, one pinned thread per log, whole segments at a time, so that the device is the limit.

pub mod dir;
pub mod inspect;
mod loose;
pub mod repair;
pub mod report;
pub mod stream;
pub mod survey;
pub mod verify;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::rc::Rc;

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use dir::Directory;
use report::LogSurvey;

/// Surveys every log of the directory, one executor per core at most. The surveys come back in log order.
pub fn survey_all(directory: &Directory) -> anyhow::Result<Vec<LogSurvey>> {
    let progress = progress(directory.logs.iter().map(|log| log.bytes()).sum());
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let workers = directory.logs.len().min(cores.len().max(1));
    let mut handles = Vec::new();
    for worker in 0..workers {
        let logs: Vec<dir::LogFiles> = directory
            .logs
            .iter()
            .skip(worker)
            .step_by(workers)
            .cloned()
            .collect();
        let superblock = directory.superblock.clone();
        let progress = progress.clone();
        let core = cores.get(worker).copied();
        let handle = glommio::LocalExecutorBuilder::default()
            .name("offline")
            .spawn(move || async move {
                if let Some(core) = core {
                    core_affinity::set_for_current(core);
                }
                let superblock = Rc::new(superblock);
                let mut surveys = Vec::new();
                for log in logs {
                    surveys.push(survey::survey(log, &superblock, &progress).await?);
                }
                Ok::<_, anyhow::Error>(surveys)
            })
            .map_err(stream::plain)
            .context("starting an executor (io_uring is needed: see pinion serve, which names what is missing)")?;
        handles.push(handle);
    }
    let mut surveys = Vec::new();
    for handle in handles {
        surveys.extend(handle.join().map_err(stream::plain)??);
    }
    progress.finish_and_clear();
    surveys.sort_by_key(|survey: &LogSurvey| survey.number);
    Ok(surveys)
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

/// A path as it is shown: relative to the data directory, because that is what was typed.
fn shown(path: &Path, directory: &Path) -> String {
    path.strip_prefix(directory)
        .unwrap_or(path)
        .display()
        .to_string()
}
