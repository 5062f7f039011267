//! The long run of the differential test.

use clap::Parser;
use ringer_difftest::{Config, Progress, run};

/// Runs generated instructions on this machine's processor and in the interpreter, and compares.
#[derive(Parser)]
struct Args {
    /// Cases to compare, at least.
    #[arg(long, default_value_t = 1_000_000)]
    cases: u64,
    /// Seed: the same one makes the same cases.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only forms of this mnemonic, as the decoder names it (movaps).
    #[arg(long)]
    only: Option<String>,
    /// Only this batch: repeats a mismatch.
    #[arg(long)]
    batch: Option<u64>,
    /// Percentage of cases made of random bytes.
    #[arg(long, default_value_t = 20)]
    raw: u64,
    /// Worker threads, each with a child process.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Stop soon after the first mismatch.
    #[arg(long)]
    stop: bool,
    /// Write the cases of each form, and the forms that were not reached, to this file.
    #[arg(long)]
    coverage: Option<std::path::PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let a = Args::parse();
    let config = Config {
        seed: a.seed,
        cases: a.cases,
        workers: a.workers,
        only: a.only,
        batch: a.batch,
        raw: a.raw,
        stop_at_first: a.stop,
    };
    let started = std::time::Instant::now();
    let report = run(&config, &|p| match p {
        Progress::Cases(done, bad) => {
            let rate = done as f64 / started.elapsed().as_secs_f64();
            eprintln!("{done} of {} cases, {rate:.0}/s, {bad} mismatches", config.cases);
        }
        Progress::Found(m) => eprintln!("{} ({:?}, batch {}): {}", m.text, m.path, m.at.0, m.what.join("; ")),
    })?;
    print!("{}", report.mismatches(&config));
    println!("seed {}: {}", config.seed, report.summary());
    if let Some(path) = a.coverage {
        std::fs::write(path, report.coverage())?;
    }
    if !report.tally.clean() {
        std::process::exit(1);
    }
    Ok(())
}
