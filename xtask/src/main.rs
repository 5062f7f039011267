//! Tasks on Ringer itself: `cargo xtask bench`, `cargo xtask stress`.
#![forbid(unsafe_code)]

mod bench;
#[path = "../../tests/vm/log.rs"]
mod log;
mod stress;
mod tree;

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
    /// Run stress-ng in a guest and look at its kernel's log
    Stress(stress::Options),
}

fn main() -> ExitCode {
    let well = match Cli::parse().task {
        Task::Bench(options) => bench::run(&options),
        Task::Stress(options) => stress::run(&options),
    };
    match well {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            let words: Vec<_> = e.chain().map(ToString::to_string).collect();
            eprintln!("xtask: {}", words.join(": "));
            ExitCode::FAILURE
        }
    }
}
