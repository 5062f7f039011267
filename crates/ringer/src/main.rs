//! The `ringer` command.
#![forbid(unsafe_code)]

mod cli;
mod control;
mod engines_table;
mod escape;
mod fetch;
mod run;
mod shared;
mod signals;
mod stats;
mod stdin_line;
mod terminal;
mod watcher;

use clap::Parser;
use clap::error::ErrorKind;
use control::commands;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let started = Instant::now();
    terminal::restore_on_panic();
    let args = match cli::Cli::try_parse() {
        Ok(args) => args,
        Err(e) => return usage(&e),
    };
    let done = match args.command {
        cli::Command::Run(args) => run::run(&args, started),
        cli::Command::Engines => engines_table::engines(),
        cli::Command::Ps(args) => commands::ps(args.json),
        cli::Command::Info(args) => commands::info(&args.name, args.json),
        cli::Command::Pause(args) => commands::pause(&args.name),
        cli::Command::Resume(args) => commands::resume(&args.name),
        cli::Command::Engine(args) => commands::engine(&args.name, &args.engine),
        cli::Command::Stop(args) => commands::stop(&args.name, Duration::from_secs(args.timeout)),
        cli::Command::Kill(args) => commands::kill(&args.name),
        cli::Command::Fetch(args) => fetch::fetch(&args),
        cli::Command::RestoreTerminal => Ok(watcher::watch()),
    };
    match done {
        Ok(code) => code,
        Err(e) => {
            eprintln!("ringer: {}", one_line(&e));
            ExitCode::from(cli::EXIT_ERROR)
        }
    }
}

/// Help and version as they are, mistakes in one sentence.
fn usage(e: &clap::Error) -> ExitCode {
    let text = e.to_string();
    if matches!(
        e.kind(),
        ErrorKind::DisplayHelp
            | ErrorKind::DisplayVersion
            | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        let _closed = e.print();
        return ExitCode::from(e.exit_code() as u8);
    }
    let sentence = text.lines().next().unwrap_or_default();
    eprintln!("ringer: {} (see ringer --help)", sentence.strip_prefix("error: ").unwrap_or(sentence));
    ExitCode::from(cli::EXIT_USAGE)
}

/// An error and its causes in one sentence.
fn one_line(e: &anyhow::Error) -> String {
    e.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
