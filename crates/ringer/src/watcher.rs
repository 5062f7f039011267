//! A small process that outlives Ringer, whatever ends it, to give the terminal back as it was.
//!
//! It runs in a session of its own, so neither the keyboard's signals nor job control reach it. Its standard input is a
//! socket to Ringer: it sends a byte once it knows the terminal's settings, and then waits. A byte from Ringer means
//! that Ringer has restored them itself; the end of the connection without one, that Ringer is dead.

use rustix::process::setsid;
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};

/// The hidden command that it is started by.
pub const NAME: &str = "restore-terminal";

/// Ringer's end. Dropping it without [`release`](Watcher::release) lets the watcher restore the terminal.
#[derive(Debug)]
pub struct Watcher {
    socket: UnixStream,
}

impl Watcher {
    /// Starts it for `terminal`; it has taken note of the settings when this returns.
    ///
    /// # Errors
    /// The host's, if it cannot be started.
    pub fn start(terminal: OwnedFd) -> io::Result<Watcher> {
        let (mut ours, theirs) = UnixStream::pair()?;
        let mut child = Command::new("/proc/self/exe")
            .arg(NAME)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::from(terminal))
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        let mut ready = [0];
        if ours.read_exact(&mut ready).is_err() {
            let _already_dead = child.wait();
            return Err(io::Error::other("the terminal's watcher did not start"));
        }
        Ok(Watcher { socket: ours })
    }

    /// The terminal has been restored: nothing is left to do.
    pub fn release(mut self) {
        let _already_dead = self.socket.write_all(&[0]);
    }
}

/// The watcher's own life.
pub fn watch() -> ExitCode {
    let _leader_already = setsid();
    let Ok(before) = tcgetattr(io::stdout()) else { return ExitCode::FAILURE };
    let mut socket = io::stdin();
    let Ok(fd) = rustix::io::dup(&socket) else { return ExitCode::FAILURE };
    if UnixStream::from(fd).write_all(&[0]).is_err() {
        return ExitCode::FAILURE;
    }
    let mut byte = [0];
    if !matches!(socket.read(&mut byte), Ok(1)) {
        let _gone = tcsetattr(io::stdout(), OptionalActions::Now, &before);
    }
    ExitCode::SUCCESS
}
