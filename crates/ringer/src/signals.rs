//! Signals that ask Ringer to end: the machine ends, the terminal is given back, and the status tells of the signal.

use crate::cli::EXIT_SIGNAL;
use crate::shared::Shared;
use crate::terminal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long an orderly end may take before it is forced, as when nobody reads our output.
const PATIENCE: Duration = Duration::from_secs(3);

/// Watches for them from now on.
///
/// # Errors
/// The host's.
pub fn watch(shared: &Arc<Shared>) -> io::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])?;
    let shared = Arc::clone(shared);
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        let Some(signal) = signals.forever().next() else { return };
        end(&shared, signal);
    })?;
    Ok(())
}

/// Ends the machine, with the status of this signal, and this process with it.
pub fn end(shared: &Shared, signal: i32) -> ! {
    let signal = u8::try_from(signal).unwrap_or(0);
    shared.signal.store(signal, Ordering::Relaxed);
    shared.stop();
    std::thread::sleep(PATIENCE);
    terminal::restore();
    std::process::exit(i32::from(EXIT_SIGNAL + signal));
}
