//! `ringer fetch`: makes a guest ahead of time.

use crate::cli::FetchArgs;
use ringer_image::debian::{Cache, Progress, guest};
use std::io::Write;
use std::process::ExitCode;

pub fn fetch(args: &FetchArgs) -> anyhow::Result<ExitCode> {
    let kind = args.guest.parse()?;
    let g = guest(&Cache::of_user()?, kind, &Progress::stderr())?;
    writeln!(std::io::stdout(), "kernel {}\ninitrd {}", g.kernel.display(), g.initrd.display())?;
    Ok(ExitCode::SUCCESS)
}
