//! Random programs on two engines.

use clap::Parser;
use ringer_engine_test::engines::engine;
use ringer_engine_test::handed::hand_overs;
use ringer_engine_test::pair::Engines;
use ringer_engine_test::run::{Config, run};

/// Runs random programs on two engines and compares where they end.
#[derive(Parser)]
struct Args {
    /// Programs to run.
    #[arg(long, default_value_t = 100_000)]
    programs: u64,
    /// Seed: the same one makes the same programs.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Number of the first program.
    #[arg(long, default_value_t = 0)]
    first: u64,
    /// The engines: the one that is trusted, and the one under test. `A>B` is both: processors are handed from one to the other at
    /// random instructions, and states compared.
    #[arg(long, value_delimiter = ',', default_value = "interpreter,translator")]
    engines: Vec<String>,
    /// Worker threads.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Stop after so many differences.
    #[arg(long, default_value_t = 5)]
    most: u64,
}

fn main() -> anyhow::Result<()> {
    let a = Args::parse();
    let [reference, tested] = &a.engines[..] else { anyhow::bail!("--engines takes two names") };
    let (reference, tested) = (engine(reference)?, engine(tested)?);
    let config =
        Config { seed: a.seed, programs: a.programs, first: a.first, workers: a.workers, most: a.most };
    let started = std::time::Instant::now();
    let engines = Engines { reference: reference.as_ref(), tested: tested.as_ref() };
    let t = run(&config, engines, &|line| eprintln!("{line}"))?;
    let done = t.same + t.dropped + t.found.len() as u64;
    println!(
        "seed {}: {done} programs in {:.1} s ({:.0}/s), {} instructions; {} did not end in time, {} differences",
        a.seed,
        started.elapsed().as_secs_f64(),
        done as f64 / started.elapsed().as_secs_f64(),
        t.instructions,
        t.dropped,
        t.found.len()
    );
    let handed = hand_overs();
    if handed != 0 {
        println!("{handed} hand-overs, each with the same state before and after");
    }
    if !t.found.is_empty() {
        std::process::exit(1);
    }
    Ok(())
}
