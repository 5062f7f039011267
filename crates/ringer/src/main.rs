//! The `ringer` command.

mod cli;
mod fetch;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args = cli::Cli::parse();
    let done = match args.command {
        cli::Command::Fetch(args) => fetch::fetch(&args),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            eprintln!("ringer: {}", one_line(&e));
            ExitCode::from(cli::EXIT_ERROR)
        }
    }
}

/// An error and its causes in one sentence.
fn one_line(e: &anyhow::Error) -> String {
    e.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
