//! The server for gdb: its remote protocol (by gdbstub) on a socket, on a thread of its own. It asks the machine's thread for
//! everything ([`Ask`]), and is told by it when processors stop ([`Event`]); `machine/debug.rs` is the other side.

mod memory;
mod registers;
mod session;
mod target;

use crate::VmmError;
use crate::machine::{Message, Outcome};
use crate::vcpus::Vcpus;
use ringer_arch::cpu::CpuModel;
use ringer_engine::{CpuIo, DebugRequest, DebugStop};
use ringer_memory::GuestMemory;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};

/// What becomes of a processor when the machine goes on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Go {
    Stay,
    Step,
    Run,
}

/// How the machine is to go on.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// For each processor, but for the step.
    pub request: DebugRequest,
    /// By index.
    pub vcpus: Vec<Go>,
    /// The number of this order, which what the machine tells after it bears.
    pub number: u64,
}

/// What the machine tells the debugger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Why {
    /// A processor stopped, and all with it.
    Vcpu(u32, DebugStop),
    /// The debugger asked for it.
    Interrupt,
    /// The engine cannot serve what the debugger wants: why.
    Refused(String),
    /// The machine has ended.
    Ended(Outcome),
}

/// What the debugger's thread waits for.
pub(crate) enum Event {
    Bytes(Vec<u8>),
    Closed,
    /// After which order, and why.
    Machine(u64, Why),
}

/// A machine whose processors stand still.
pub(crate) struct Halted<'a> {
    pub vcpus: &'a mut Vcpus,
    pub memory: &'a GuestMemory,
    pub model: &'a CpuModel,
    pub io: Vec<Arc<dyn CpuIo>>,
    /// A line about it.
    pub about: String,
}

/// What the debugger asks of the machine's thread.
pub(crate) enum Ask {
    /// It has come: the machine stands still from now on. It is told of through the sender; the receiver hangs up when the debugger has
    /// taken leave.
    Attach(Sender<Event>, Receiver<()>),
    /// To look at the machine, or change it; it stands still.
    Look(Box<dyn FnOnce(&mut Halted<'_>) + Send>),
    /// Go on.
    Go(Plan),
    /// Stand still.
    Interrupt,
    /// It has gone: the machine goes on.
    Detach,
    /// End.
    Kill,
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ask::Attach(..) => "Attach",
            Ask::Look(_) => "Look",
            Ask::Go(_) => "Go",
            Ask::Interrupt => "Interrupt",
            Ask::Detach => "Detach",
            Ask::Kill => "Kill",
        })
    }
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// The path of a socket, which is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct SocketPath(PathBuf);

impl Drop for SocketPath {
    fn drop(&mut self) {
        let _gone = std::fs::remove_file(&self.0);
    }
}

/// A socket that waits for a debugger. One at a path is removed when the machine that it serves, or this, is dropped.
pub struct GdbServer {
    listener: Listener,
    address: String,
    path: Option<SocketPath>,
}

impl GdbServer {
    /// Listens at `at`: a number is a TCP port of the loopback interface (0: any that is free), all else the path of a Unix socket,
    /// which its owner alone can connect to.
    ///
    /// # Errors
    /// [`VmmError::Host`].
    pub fn listen(at: &str) -> Result<GdbServer, VmmError> {
        let refused = |source| VmmError::Host { what: format!("a socket for gdb at {at}"), source };
        if let Ok(port) = at.parse::<u16>() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(refused)?;
            let address = listener.local_addr().map_err(refused)?.to_string();
            return Ok(GdbServer { listener: Listener::Tcp(listener), address, path: None });
        }
        let path = PathBuf::from(at);
        let listener = bind(&path).map_err(refused)?;
        let path = Some(SocketPath(path));
        Ok(GdbServer { listener: Listener::Unix(listener), address: at.to_owned(), path })
    }

    /// What gdb's `target remote` takes.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The path to be removed when the machine ends.
    pub(crate) fn take_path(&mut self) -> Option<SocketPath> {
        self.path.take()
    }

    /// Serves one debugger after the other, for as long as the machine is there.
    pub(crate) fn serve(&self, machine: &Sender<Message>, vcpus: u32) {
        loop {
            let stream = match &self.listener {
                Listener::Tcp(l) => l.accept().map(|(s, _)| session::Stream::Tcp(s)),
                Listener::Unix(l) => l.accept().map(|(s, _)| session::Stream::Unix(s)),
            };
            let stream = match stream {
                Ok(s) => s,
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(e) => {
                    tracing::warn!(error = %e, "no more debuggers can be served");
                    return;
                }
            };
            // On a thread of its own, so that a bug in what it does with a debugger's packets ends the session only.
            let machine = machine.clone();
            let session = std::thread::Builder::new()
                .name("gdb session".into())
                .spawn(move || session::serve(stream, &machine, vcpus));
            match session.map(std::thread::JoinHandle::join) {
                Ok(Ok(session::End::Left)) => {}
                Ok(Ok(session::End::MachineGone)) => return,
                Ok(Err(_)) => tracing::error!("a session with a debugger failed: this is a bug of Ringer's"),
                Err(e) => tracing::warn!(error = %e, "no thread for a debugger"),
            }
        }
    }
}

/// Binds a socket, in place of one that nobody listens at any more. It gets its name when it is ready: nobody finds it before it
/// listens, or with other rights.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let early = SocketPath(PathBuf::from(name));
    let listener = UnixListener::bind(&early.0)?;
    std::fs::set_permissions(&early.0, std::fs::Permissions::from_mode(0o600))?;
    let rename = || renameat_with(CWD, &early.0, CWD, path, RenameFlags::NOREPLACE);
    match rename() {
        Err(Errno::EXIST) if is_dead(path) => {
            std::fs::remove_file(path)?;
            rename()?;
        }
        other => other?,
    }
    Ok(listener)
}

fn is_dead(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket());
    is_socket && UnixStream::connect(path).is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
}

impl Halted<'_> {
    /// The state of processor `index`.
    pub(crate) fn state(&mut self, index: u32) -> Option<ringer_arch::VcpuState> {
        Some(self.vcpus.parked(index)?.state())
    }

    /// The memory that processor `index` sees.
    pub(crate) fn view(&mut self, index: u32) -> Option<memory::View<'_>> {
        let state = self.state(index)?;
        Some(memory::View::new(self.memory, self.model, &state))
    }
}
