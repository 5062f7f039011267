//! The user's terminal in raw mode, and back.

use crate::watcher::Watcher;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io;
use std::sync::{Mutex, PoisonError};

/// The settings to go back to, while the terminal is raw.
static RAW: Mutex<Option<Raw>> = Mutex::new(None);

struct Raw {
    before: Termios,
    watcher: Option<Watcher>,
}

/// Whether standard input is a terminal.
pub fn stdin_is_terminal() -> bool {
    isatty(io::stdin())
}

/// Whether standard output is a terminal.
pub fn stdout_is_terminal() -> bool {
    isatty(io::stdout())
}

/// Rows and columns of the terminal on standard output or input, if there is one that knows.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Keeps the terminal on standard input raw until it is dropped. Should Ringer die without dropping it, its watcher
/// gives the terminal back.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Sets it raw: every key goes to the guest, nothing is echoed or rewritten.
    ///
    /// # Errors
    /// The host's.
    pub fn enter() -> io::Result<RawTerminal> {
        let stdin = io::stdin();
        let before = tcgetattr(&stdin)?;
        // Without the watcher all still works but a crash would leave the terminal raw.
        let watcher = rustix::io::dup(&stdin).map_err(io::Error::from).and_then(Watcher::start).ok();
        let mut raw = before.clone();
        raw.make_raw();
        *lock() = Some(Raw { before, watcher });
        let guard = RawTerminal(());
        tcsetattr(&stdin, OptionalActions::Drain, &raw)?;
        Ok(guard)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal back, if it is raw. For those who end the process without unwinding.
pub fn restore() {
    if let Some(raw) = lock().take() {
        let restored = tcsetattr(io::stdin(), OptionalActions::Drain, &raw.before);
        if let (Ok(()), Some(w)) = (restored, raw.watcher) {
            w.release();
        }
    }
}

/// Panics are printed on a terminal that is itself again.
pub fn restore_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        restore();
        print(info);
    }));
}

fn lock() -> std::sync::MutexGuard<'static, Option<Raw>> {
    RAW.lock().unwrap_or_else(PoisonError::into_inner)
}
