//! `ringer engines`.

use ringer_engine::{Engine, Probe};
use std::io::Write;
use std::process::ExitCode;

pub fn engines() -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{:<14} ON THIS HOST", "ENGINE")?;
    for e in ringer_vmm::engines() {
        writeln!(out, "{:<14} {}", e.name(), verdict(e.as_ref()))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn verdict(engine: &dyn Engine) -> String {
    match engine.probe() {
        Probe::Works { rate } => format!("runs {:.1} million instructions a second", rate / 1e6),
        Probe::Slow(why) => format!("runs, but only with --engine {}: {why}", engine.name()),
        Probe::Missing(why) => format!("cannot run: {why}"),
    }
}
