//! The machine's side of the control socket.

use super::folder::Claim;
use super::protocol::{self, Answer, Info, Request, State};
use crate::shared::Shared;
use crate::signals;
use anyhow::Context;
use ringer_vmm::{Control, MachineHandle, Status, engines};
use rustix::net::sockopt::socket_peercred;
use rustix::process::geteuid;
use signal_hook::consts::SIGKILL;
use std::io::{self, BufReader};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Connections that are served at once.
const MOST_CONNECTIONS: u32 = 16;
/// A peer that does not take its answer is not waited for longer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a machine's control acts on.
pub struct Controlled {
    /// The machine.
    pub machine: MachineHandle,
    /// Its run.
    pub shared: Arc<Shared>,
    /// When it was started.
    pub started: Instant,
}

/// Serves the socket of `claim` from now on, on threads of its own.
///
/// # Errors
/// The host's.
pub fn listen(claim: &Claim, controlled: Controlled) -> anyhow::Result<()> {
    let path = claim.socket_path();
    let listener =
        bind(&path).with_context(|| format!("the control socket {} cannot be made", path.display()))?;
    let name = claim.name().to_string();
    let server = Arc::new(Server { controlled, name, connections: AtomicU32::new(0) });
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || server.accept(&listener))
        .context("cannot start a thread for the control socket")?;
    Ok(())
}

/// Binds a socket whose name nobody else uses. It gets its name when it is ready: who finds it finds somebody who listens.
fn bind(path: &Path) -> io::Result<UnixListener> {
    // Not longer: there is a limit to that.
    let early = path.with_extension("new");
    match std::fs::remove_file(&early) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        // Of one that died while it started.
        _ => {}
    }
    let listener = UnixListener::bind(&early)?;
    std::fs::rename(&early, path)?;
    Ok(listener)
}

struct Server {
    controlled: Controlled,
    name: String,
    connections: AtomicU32,
}

impl Server {
    fn accept(self: &Arc<Server>, listener: &UnixListener) {
        loop {
            let Ok((mut stream, _)) = listener.accept() else {
                // Too many files, or the like: it may pass.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            let _timeless = stream.set_write_timeout(Some(PATIENCE));
            if let Err(why) = self.admit(&stream) {
                let _gone = protocol::send(&mut stream, &Answer::Error(why));
                continue;
            }
            self.connections.fetch_add(1, Ordering::SeqCst);
            let server = Arc::clone(self);
            let thread = std::thread::Builder::new().name("control connection".into());
            let spawned = thread.spawn(move || {
                let _peer_gone = server.serve(stream);
                server.connections.fetch_sub(1, Ordering::SeqCst);
            });
            if spawned.is_err() {
                self.connections.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// Whether this peer is served: the user who runs the machine, or root. The folder keeps others out already.
    fn admit(&self, stream: &UnixStream) -> Result<(), String> {
        let peer = socket_peercred(stream).map_err(|e| format!("who is asking cannot be told: {e}"))?;
        if peer.uid != geteuid() && !peer.uid.is_root() {
            return Err(format!("user {} may not control this machine", peer.uid.as_raw()));
        }
        if self.connections.load(Ordering::SeqCst) >= MOST_CONNECTIONS {
            return Err(format!("{MOST_CONNECTIONS} others are connected already: try again later"));
        }
        Ok(())
    }

    fn serve(&self, stream: UnixStream) -> io::Result<()> {
        let mut to = stream.try_clone()?;
        let mut from = BufReader::new(stream);
        loop {
            let request = match protocol::receive(&mut from) {
                Ok(Some(r)) => r,
                Ok(None) => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    // Where the next request begins cannot be told after a line that is too long.
                    return protocol::send(&mut to, &Answer::Error(format!("not a request: {e}")));
                }
                Err(e) => return Err(e),
            };
            if request == Request::Kill {
                let _peer_gone = protocol::send(&mut to, &Answer::Done);
                signals::end(&self.controlled.shared, SIGKILL);
            }
            let answer = match self.request(request) {
                Ok(status) => Answer::Ok(self.info(&status)),
                Err(why) => Answer::Error(why),
            };
            protocol::send(&mut to, &answer)?;
        }
    }

    fn request(&self, request: Request) -> Result<Status, String> {
        let machine = &self.controlled.machine;
        let done = match request {
            Request::Info => machine.status(),
            Request::Kill => machine.control(Control::Stop),
            Request::Pause => machine.control(Control::Pause),
            Request::Resume => machine.control(Control::Resume),
            Request::PowerButton => machine.control(Control::PowerButton),
            Request::Engine { engine } => {
                let mut all = engines();
                let names = all.iter().map(|e| e.name()).collect::<Vec<_>>().join(", ");
                let Some(at) = all.iter().position(|e| e.name() == engine) else {
                    return Err(format!("no engine is called {engine:?}: choose {names}"));
                };
                machine.change_engine(all.swap_remove(at))
            }
        };
        done.map_err(|e| e.to_string())
    }

    fn info(&self, s: &Status) -> Info {
        Info {
            name: self.name.clone(),
            pid: std::process::id(),
            state: if s.paused { State::Paused } else { State::Running },
            engine: s.engine.to_owned(),
            vcpus: s.vcpus,
            memory: s.memory,
            resident: s.resident,
            uptime_ms: u64::try_from(self.controlled.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            run_ms: s.machine_ns / 1_000_000,
            instructions: s.instructions,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_that_is_there_is_listened_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.b.sock");
        // One that died before its socket had its name, and one after.
        drop(UnixListener::bind(folder.path().join("a.b.new")).unwrap());
        drop(UnixListener::bind(&path).unwrap());
        let listener = bind(&path).unwrap();
        let _peer = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
