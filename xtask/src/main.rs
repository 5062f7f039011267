//! Tasks on Ringer itself: `cargo xtask bench`.
#![forbid(unsafe_code)]

mod bench;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Tasks on Ringer itself.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Measure guests against the same programs on the host and under QEMU
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let Task::Bench(options) = Cli::parse().task;
    match bench::run(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            let words: Vec<_> = e.chain().map(ToString::to_string).collect();
            eprintln!("xtask: {}", words.join(": "));
            ExitCode::FAILURE
        }
    }
}
