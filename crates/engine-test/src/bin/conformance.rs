//! The conformance suite as a table: a row a check, a column an engine.

use clap::Parser;
use ringer_engine_test::conformance::{Cell, Config, column, columns, rows, run, table};
use std::time::Duration;

/// Runs the conformance suite and prints a table.
#[derive(Parser)]
struct Args {
    /// Columns: engines, or, joined by `>`, engines that processors are handed around at random instructions.
    #[arg(long, value_delimiter = ',')]
    engines: Vec<String>,
    /// Only checks with this in their name or area.
    #[arg(long, default_value = "")]
    only: String,
    /// The processor model.
    #[arg(long, default_value = "host")]
    cpu: String,
    /// Seed of the hand-overs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How often everything is run, each time with the next seed.
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// Seconds that a check may take.
    #[arg(long, default_value_t = 30)]
    limit: u64,
    /// Checks at a time.
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

fn main() -> anyhow::Result<()> {
    let a = Args::parse();
    let rows = rows(&a.only)?;
    let names = if a.engines.is_empty() { columns() } else { a.engines };
    let mut bad = false;
    for round in 0..a.rounds {
        let config = Config { cpu: a.cpu.clone(), seed: a.seed + round, limit: Duration::from_secs(a.limit) };
        let mut done = Vec::new();
        for name in &names {
            done.push(run(&rows, &column(name, &config)?, a.workers));
        }
        bad |= done.iter().flat_map(|d| &d.cells).any(|c| matches!(c, Cell::Failed(_)));
        print!("{}", table(&rows, &done));
    }
    // Threads of checks that were given up end with the process.
    std::process::exit(i32::from(bad));
}
