//! The short run: a fixed seed, so that it is the same each time. The long one is `cargo run --release -p ringer-difftest`.

use ringer_difftest::{Config, native::Native, run};

#[test]
fn the_interpreter_equals_the_processor() {
    if let Err(e) = Native::spawn() {
        eprintln!("not run here: {e}");
        return;
    }
    let config = Config {
        seed: 0x5eed,
        cases: 200_000,
        workers: 2,
        only: None,
        batch: None,
        raw: 20,
        stop_at_first: false,
    };
    let report = run(&config, &|_| {}).unwrap();
    let told = format!("{}\n{}", report.mismatches(&config), report.summary());
    assert!(report.tally.compared() >= config.cases, "{told}");
    assert!(report.tally.clean(), "{told}");
}
