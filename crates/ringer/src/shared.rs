//! What the serial lines, the input and the signals of one run tell each other.

use ringer_vmm::{Control, MachineHandle};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

/// Bytes kept of a console that is not shown.
const LAST_WORDS: usize = 64 << 10;
/// Lines of them that are shown if the guest dies.
const LAST_LINES: usize = 40;
/// The longest line that the status line may bear.
const MAX_LINE: usize = 64;

/// One run.
#[derive(Debug, Default)]
pub struct Shared {
    machine: OnceLock<MachineHandle>,
    /// Ctrl-A x.
    pub left: AtomicBool,
    /// The reader of standard output has gone.
    pub broken_pipe: AtomicBool,
    /// The signal that is to end this; 0: none.
    pub signal: AtomicU8,
    status: Mutex<Option<u8>>,
    ready: Mutex<bool>,
    became_ready: Condvar,
    words: Mutex<VecDeque<u8>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Whom to ask for the machine's end.
    pub fn set_machine(&self, m: MachineHandle) {
        let _once = self.machine.set(m);
    }

    /// Ends the machine.
    pub fn stop(&self) {
        if let Some(m) = self.machine.get() {
            m.ask(Control::Stop);
        }
    }

    /// The command's status, if the guest told it.
    pub fn status(&self) -> Option<u8> {
        *lock(&self.status)
    }

    /// Waits until the guest's session listens.
    pub fn wait_ready(&self) {
        let mut ready = lock(&self.ready);
        while !*ready {
            ready = self.became_ready.wait(ready).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The last lines of a console that was not shown, and before them the one that says why the kernel gave up: how long
    /// the trace behind it is depends on what is on the stack.
    pub fn last_words(&self) -> String {
        let bytes: Vec<u8> = lock(&self.words).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes).replace('\r', "");
        let lines: Vec<&str> = text.lines().collect();
        let (before, last) = lines.split_at(lines.len().saturating_sub(LAST_LINES));
        let reason = before.iter().rfind(|l| l.contains("Kernel panic - "));
        reason.into_iter().chain(last).copied().collect::<Vec<_>>().join("\n")
    }
}

/// A console that is kept, not shown.
pub struct Words(pub Arc<Shared>);

impl Write for Words {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut words = lock(&self.0.words);
        words.extend(buf);
        let excess = words.len().saturating_sub(LAST_WORDS);
        words.drain(..excess);
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The line on which the guest's session says "ready" and "exit N".
pub struct StatusLine {
    shared: Arc<Shared>,
    line: Vec<u8>,
}

impl StatusLine {
    pub fn new(shared: &Arc<Shared>) -> StatusLine {
        StatusLine { shared: Arc::clone(shared), line: Vec::new() }
    }

    fn end_of_line(&mut self) {
        let line = String::from_utf8_lossy(&self.line).trim().to_owned();
        self.line.clear();
        if line == "ready" {
            *lock(&self.shared.ready) = true;
            self.shared.became_ready.notify_all();
        } else if let Some(n) = line.strip_prefix("exit ").and_then(|n| n.parse().ok()) {
            *lock(&self.shared.status) = Some(n);
            self.shared.stop();
        }
    }
}

impl Write for StatusLine {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        for &b in buf {
            if b == b'\n' {
                self.end_of_line();
            } else if self.line.len() < MAX_LINE {
                self.line.push(b);
            }
        }
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Standard output or error, unbuffered. When its reader goes, the machine ends.
pub struct Out<F> {
    file: F,
    shared: Arc<Shared>,
}

impl<F: Write> Out<F> {
    pub fn new(file: F, shared: &Arc<Shared>) -> Out<F> {
        Out { file, shared: Arc::clone(shared) }
    }
}

impl<F: Write> Write for Out<F> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self.file.write_all(buf) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {
                self.shared.broken_pipe.store(true, Ordering::Relaxed);
                self.shared.stop();
            }
            // Whatever else it is (a full disk, a closed descriptor), the guest is not to blame: what it says is lost.
            Ok(()) | Err(_) => {}
        }
        Ok(buf.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_line() {
        let shared = Arc::new(Shared::default());
        let mut line = StatusLine::new(&shared);
        line.write_all(b"\x00noise\nexit x\nexit 256\nready\r\n").unwrap();
        shared.wait_ready();
        assert_eq!(shared.status(), None);
        line.write_all(b"exi").unwrap();
        line.write_all(b"t 7\r\n").unwrap();
        assert_eq!(shared.status(), Some(7));
        line.write_all(&[b'x'; 1000]).unwrap();
        assert!(line.line.len() <= MAX_LINE);
    }

    #[test]
    fn last_words_are_bounded() {
        let shared = Arc::new(Shared::default());
        let mut w = Words(Arc::clone(&shared));
        for i in 0..20_000 {
            writeln!(w, "line {i}\r").unwrap();
        }
        assert!(lock(&shared.words).len() <= LAST_WORDS);
        let text = shared.last_words();
        assert_eq!(text.lines().count(), LAST_LINES);
        assert!(text.ends_with("line 19999"));
    }

    /// However long a trace follows.
    #[test]
    fn last_words_say_why_the_kernel_panics() {
        let shared = Arc::new(Shared::default());
        let mut w = Words(Arc::clone(&shared));
        writeln!(w, "[    1.0] Kernel panic - not syncing: crash").unwrap();
        for i in 0..LAST_LINES - 1 {
            writeln!(w, "[    1.1]  ? function_{i}").unwrap();
        }
        assert_eq!(shared.last_words().matches("Kernel panic").count(), 1);
        writeln!(w, "[    1.2] Rebooting").unwrap();
        let text = shared.last_words();
        assert_eq!(text.lines().count(), LAST_LINES + 1);
        assert!(
            text.starts_with("[    1.0] Kernel panic - not syncing: crash\n[    1.1]  ? function_0\n"),
            "{text}"
        );
        assert!(text.ends_with("Rebooting"));
    }
}
