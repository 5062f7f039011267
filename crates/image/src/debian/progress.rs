//! What the user sees while a guest is made: lines on standard error, and a bar if that is a terminal.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Width of the bar in columns.
const WIDTH: usize = 30;

/// Tells the user how the work goes.
#[derive(Debug)]
pub struct Progress {
    terminal: bool,
    quiet: bool,
    /// When the bar was last drawn, and whether it stands on the line now.
    bar: Mutex<(Option<Instant>, bool)>,
}

impl Progress {
    /// To standard error.
    #[must_use]
    pub fn stderr() -> Progress {
        Progress { terminal: std::io::stderr().is_terminal(), quiet: false, bar: Mutex::default() }
    }

    /// Tells nobody.
    #[must_use]
    pub fn silent() -> Progress {
        Progress { terminal: false, quiet: true, bar: Mutex::default() }
    }

    /// One line. Nothing that fails here matters: standard error may be closed.
    pub fn say(&self, line: &str) {
        if !self.quiet {
            self.done();
            let _closed = writeln!(std::io::stderr(), "ringer: {line}");
        }
    }

    /// `done` bytes of `total` are here. Draws at most ten times a second, on terminals only.
    pub fn bytes(&self, done: u64, total: u64) {
        let Ok(mut bar) = self.bar.lock() else { return };
        let due = bar.0.is_none_or(|t| t.elapsed() >= Duration::from_millis(100)) || done == total;
        if !self.terminal || self.quiet || !due || total == 0 {
            return;
        }
        *bar = (Some(Instant::now()), true);
        let _closed = write!(std::io::stderr(), "\r{}", render(done, total));
    }

    /// Ends the bar's line.
    pub fn done(&self) {
        let Ok(mut bar) = self.bar.lock() else { return };
        if std::mem::take(&mut bar.1) {
            let _closed = writeln!(std::io::stderr());
        }
    }
}

fn render(done: u64, total: u64) -> String {
    let share = done.min(total) as f64 / total as f64;
    let full = (share * WIDTH as f64) as usize;
    let (done, total) = (done as f64 / 1e6, total as f64 / 1e6);
    format!("  [{:<WIDTH$}] {:>3.0} %  {done:.1} of {total:.1} MB", "#".repeat(full), share * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar() {
        assert!(
            render(5_000_000, 10_000_000).contains("[###############               ]  50 %  5.0 of 10.0 MB")
        );
        assert!(render(20, 10).contains("100 %"));
    }
}
