//! `loadtest`: load for pinion as its clients see it. See README.md beside this crate for every flag by example.
//!
//! This file reads the flags and turns outcomes into exit codes: 0 done, 1 failed (errors, lost or wrong writes), 2 bad usage.

mod connection;
mod flags;
mod generator;
mod machine;
mod protocol;
mod records;
mod report;
mod run;
mod schedule;
mod tally;
mod timeline;
mod verify;

use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};

use crate::flags::{Flags, ProtocolName};

fn main() -> ExitCode {
    let flags = Flags::parse();
    if let Err(refusal) = flags.check() {
        Flags::command()
            .error(ErrorKind::ValueValidation, refusal)
            .exit();
    }
    let done = match flags.protocol {
        ProtocolName::Native => run::run::<protocol::native::Native>(&flags),
        ProtocolName::Http => run::run::<protocol::http::Http>(&flags),
        ProtocolName::Resp => unreachable!("check refuses it"),
    };
    let summary = match done {
        Ok(summary) => summary,
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let text = match flags.json {
        true => serde_json::to_string(&summary)
            .expect("a summary has only string keys and finite numbers"),
        false => summary.to_string(),
    };
    if let Err(error) = writeln!(std::io::stdout(), "{text}") {
        eprintln!("error: the result could not be written: {error}");
        return ExitCode::FAILURE;
    }
    let broken = summary
        .verify
        .is_some_and(|verdict| verdict.lost + verdict.wrong > 0);
    if broken || summary.errors > 0 {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
