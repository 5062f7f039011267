//! The asking side of the control socket.

use super::folder::{self, Claim, socket_path};
use super::name::VmName;
use super::protocol::{self, Answer, Info, Request};
use anyhow::{Context, anyhow, bail};
use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::{self, BufReader, Read};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a machine may take to answer. Changing engines takes milliseconds; a host may be busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to a running machine.
pub struct Connection {
    name: VmName,
    patience: Duration,
    stream: BufReader<UnixStream>,
}

/// What became of trying to connect.
pub enum Reached {
    Machine(Connection),
    /// There is no such machine.
    Nobody,
    /// There was one, which died; what it left has been removed.
    Dead,
}

impl Connection {
    /// Connects to the machine called `name` in `folder`.
    pub fn reach(folder: &Path, name: &VmName) -> anyhow::Result<Reached> {
        let path = socket_path(folder, name);
        let gone = match UnixStream::connect(&path) {
            Ok(stream) => return Ok(Reached::Machine(Connection::over(name, stream)?)),
            Err(e) => e,
        };
        match gone.kind() {
            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {}
            _ => return Err(gone).with_context(|| format!("cannot connect to {}", path.display())),
        }
        let left = folder::names(folder)?.contains(name);
        // One that is just starting has the lock, and no socket yet.
        if left && Claim::take(folder, name)?.is_some() {
            return Ok(Reached::Dead);
        }
        Ok(Reached::Nobody)
    }

    fn over(name: &VmName, stream: UnixStream) -> anyhow::Result<Connection> {
        let mut c = Connection { name: name.clone(), patience: PATIENCE, stream: BufReader::new(stream) };
        c.set_patience(PATIENCE)?;
        Ok(c)
    }

    /// Waits so long for answers from now on.
    pub fn set_patience(&mut self, patience: Duration) -> anyhow::Result<()> {
        self.patience = patience;
        self.stream.get_ref().set_read_timeout(Some(patience))?;
        self.stream.get_ref().set_write_timeout(Some(patience))?;
        Ok(())
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: &Request) -> anyhow::Result<Answer> {
        let (name, patience) = (self.name.clone(), self.patience.as_secs());
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                anyhow!("{name} does not answer (after {patience} s)")
            }
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                anyhow!("{name} ended before it answered")
            }
            _ => anyhow::Error::new(e).context(format!("{name} cannot be asked")),
        };
        self.set_patience(self.patience)?;
        protocol::send(self.stream.get_mut(), request).map_err(failed)?;
        match protocol::receive(&mut self.stream).map_err(failed)? {
            Some(Answer::Error(why)) => bail!("{name}: {why}"),
            Some(answer) => Ok(answer),
            None => bail!("{name} ended before it answered"),
        }
    }

    /// As [`ask`](Self::ask), of what is answered with the machine's state.
    pub fn info(&mut self, request: &Request) -> anyhow::Result<Info> {
        match self.ask(request)? {
            Answer::Ok(info) => Ok(info),
            other => bail!("{} gave an answer out of place: {other:?}", self.name),
        }
    }

    /// Waits until the machine's process has ended, but no longer than `limit`; whether it has.
    pub fn wait_end(&mut self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let _past_limit_at_worst = self.stream.get_ref().set_read_timeout(Some(left));
            match self.stream.read(&mut [0; 64]) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(e) => match e.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => {}
                    _ => return true,
                },
            }
        }
    }

    /// The process at the other end; `None` if this one cannot see it.
    pub fn pid(&self) -> Option<u32> {
        let pid = socket_peercred(self.stream.get_ref()).ok()?.pid;
        u32::try_from(pid.as_raw_nonzero().get()).ok()
    }

    /// Kills the process at the other end.
    pub fn kill_process(&mut self) -> anyhow::Result<()> {
        let pid = self.pid().and_then(|p| Pid::from_raw(i32::try_from(p).ok()?));
        let pid = pid.with_context(|| format!("the process of {} cannot be seen from here", self.name))?;
        let process = pidfd_open(pid, PidfdFlags::empty())?;
        // If the connection still stands, the process has not ended, and the number is no other's.
        if !self.wait_end(Duration::from_millis(1)) {
            pidfd_send_signal(&process, Signal::KILL)?;
        }
        Ok(())
    }
}
