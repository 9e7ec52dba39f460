//! What can go wrong while settings are changed, in words that say what happened, where, and what to type.

use std::io;

/// A failure of `apply`, `revert`, `verify` or `persist`.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The state directory cannot be used.
    #[error(
        "{path}: {source}; --state DIR names another directory for what is needed to put settings back"
    )]
    State {
        /// File or directory.
        path: String,
        /// What the system said.
        source: io::Error,
    },
    /// The journal does not read as one.
    #[error(
        "{path} cannot be read ({what}): it holds the values to put back, so nothing was done. Look at it; when it is moved away, the settings count as untouched"
    )]
    Corrupt {
        /// The journal.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// Another run has the lock.
    #[error("another pinion tune is at work here (it holds {path}): wait until it has ended")]
    Busy {
        /// The lock.
        path: String,
    },
    /// The journal belongs to another network namespace.
    #[error(
        "{path} belongs to another network namespace ({there}, this is {here}): type --state with a directory of this namespace's own"
    )]
    OtherNamespace {
        /// The journal.
        path: String,
        /// Whose it is.
        there: String,
        /// Ours.
        here: String,
    },
    /// The process may not do what would have to be done.
    #[error(
        "{id} needs {capability}, which this process does not have: run it as root. Nothing was changed"
    )]
    NotPermitted {
        /// The first setting that needs it.
        id: String,
        /// What is missing.
        capability: &'static str,
    },
    /// A setting could not be changed; what had been changed was put back.
    #[error(
        "{id}: {what} ({command}). Everything that had been changed is as it was before; a profile file with skip = [{key:?}] leaves it out"
    )]
    RolledBack {
        /// The setting.
        id: String,
        /// Its name in the table.
        key: &'static str,
        /// What went wrong.
        what: String,
        /// What was tried, as a person would type it.
        command: String,
    },
    /// A setting could not be changed, and putting back failed too.
    #[error(
        "{id}: {what}, and these could not be put back: {left}. Their old values are in {path}; pinion tune revert --yes tries again"
    )]
    RollbackFailed {
        /// The setting.
        id: String,
        /// What went wrong.
        what: String,
        /// What is not as it was.
        left: String,
        /// The journal.
        path: String,
    },
    /// An earlier revert was cut short and cannot be finished.
    #[error(
        "an earlier revert has not ended: {left}. Type pinion tune revert --yes --force to put them back all the same, or --keep to leave them"
    )]
    RevertUnfinished {
        /// What is left.
        left: String,
    },
    /// A file that would be written or removed is not what we wrote.
    #[error("{path} {what}: nothing was done to it. {advice}")]
    NotOurs {
        /// The file.
        path: String,
        /// What it is instead.
        what: String,
        /// What to type.
        advice: &'static str,
    },
    /// This machine is not the place for it.
    #[error("{0}")]
    NotHere(String),
}

impl Error {
    pub(crate) fn state(path: &str, source: io::Error) -> Error {
        Error::State {
            path: path.to_owned(),
            source,
        }
    }
}
