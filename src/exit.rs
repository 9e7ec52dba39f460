//! What the process says when it ends: 0 done, 1 failed, 2 bad usage, and of `tune` 3, changes pending. Decided here and
//! nowhere else.
//!
//! A reader that goes away (`pinion scan s | head`) is not a failure.

use std::io;
use std::process::ExitCode;

/// Why the command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// What was typed cannot be done as typed; the text says what to type instead.
    Usage(String),
    /// It was understood and tried, and it failed.
    Failed(anyhow::Error),
    /// Nothing failed, and there is something that could be changed; what, is on standard output.
    Pending,
    /// clap's own verdict: bad usage, or help and version, which it counts as errors too.
    Parse(clap::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Failed(error.into())
    }
}

/// Shorthand for a usage failure.
pub fn usage(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}

/// Prints what went wrong on standard error and turns it into the exit code.
pub fn code(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Usage(text)) => {
            eprintln!("pinion: {text}");
            ExitCode::from(2)
        }
        Err(Failure::Pending) => ExitCode::from(3),
        Err(Failure::Parse(error)) => {
            // Printing help into a closed pipe is as fine as printing it to the end.
            if let Err(printing) = error.print()
                && printing.kind() != io::ErrorKind::BrokenPipe
            {
                return ExitCode::from(1);
            }
            ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2))
        }
        Err(Failure::Failed(error)) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            eprintln!("pinion: {}", chain_text(&error));
            ExitCode::from(1)
        }
    }
}

/// The causes in a row, outermost first, each said once: some errors already name their cause in their own text.
fn chain_text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text.push_str(": ");
            text.push_str(&cause);
        }
    }
    text
}

/// Marks an error as one of writing our own output, so that a broken pipe there is told from a broken connection.
#[derive(Debug)]
pub struct OutputClosed;

impl std::fmt::Display for OutputClosed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("cannot write to standard output")
    }
}

/// Result of a write to standard output, as an error that `code` recognises.
pub fn output(result: io::Result<()>) -> anyhow::Result<()> {
    use anyhow::Context as _;
    result.context(OutputClosed)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<OutputClosed>().is_some()
        && error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<io::Error>())
            .any(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let cause = || anyhow::anyhow!("address in use");
        assert_eq!(
            chain_text(&cause().context("cannot listen: address in use")),
            "cannot listen: address in use"
        );
        assert_eq!(
            chain_text(&cause().context("cannot listen")),
            "cannot listen: address in use"
        );
    }

    #[test]
    fn a_closed_output_is_success_and_a_closed_connection_is_not() {
        let closed = || io::Error::from(io::ErrorKind::BrokenPipe);
        let ours = output(Err(closed())).expect_err("an error went in");
        assert!(is_broken_pipe(&ours));
        let theirs = anyhow::Error::new(closed()).context("sending to 127.0.0.1:7600");
        assert!(!is_broken_pipe(&theirs));
    }
}
