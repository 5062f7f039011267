//! One debugger's session: bytes from its socket and news of the machine, one after the other, into gdbstub's state machine.

use super::target::{Guest, stop_reason};
use super::{Ask, Event, Why};
use crate::machine::{Message, Outcome};
use gdbstub::conn::Connection;
use gdbstub::stub::state_machine::GdbStubStateMachine as Gdb;
use gdbstub::stub::{DisconnectReason, GdbStub, MultiThreadStopReason};
use std::io::{self, Read};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};

/// The longest packet. All registers are a fifth of it.
const PACKET: usize = 16 << 10;

/// A debugger's connection.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn try_clone(&self) -> io::Result<Stream> {
        Ok(match self {
            Stream::Tcp(s) => Stream::Tcp(s.try_clone()?),
            Stream::Unix(s) => Stream::Unix(s.try_clone()?),
        })
    }

    fn close(&self) {
        let _closed_already = match self {
            Stream::Tcp(s) => s.shutdown(Shutdown::Both),
            Stream::Unix(s) => s.shutdown(Shutdown::Both),
        };
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(s) => s.read(buf),
            Stream::Unix(s) => s.read(buf),
        }
    }
}

/// What is written, gathered until it is flushed.
struct Out {
    stream: Stream,
    buf: Vec<u8>,
}

impl Out {
    /// Sends a packet past gdbstub.
    fn packet(&mut self, text: &str) -> io::Result<()> {
        let sum = text.bytes().fold(0, u8::wrapping_add);
        self.write_all(format!("${text}#{sum:02x}").as_bytes())?;
        self.flush()
    }
}

impl Connection for Out {
    type Error = io::Error;

    fn write(&mut self, byte: u8) -> io::Result<()> {
        self.buf.push(byte);
        if self.buf.len() < PACKET { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.buf);
        match &mut self.stream {
            Stream::Tcp(s) => io::Write::write_all(s, &bytes),
            Stream::Unix(s) => io::Write::write_all(s, &bytes),
        }
    }

    fn on_session_start(&mut self) -> io::Result<()> {
        // Packets are short, and each waits for its answer.
        if let Stream::Tcp(s) = &self.stream { s.set_nodelay(true) } else { Ok(()) }
    }
}

/// How a session ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// The debugger has gone.
    Left,
    /// The machine has.
    MachineGone,
}

/// Lets the machine go on when the session ends, however that comes.
struct Attached<'a>(&'a Sender<Message>);

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        let _ended = self.0.send(Message::Debugger(Ask::Detach));
    }
}

/// Talks to a debugger until it leaves or the machine ends.
pub fn serve(stream: Stream, machine: &Sender<Message>, vcpus: u32) -> End {
    let (events, inbox) = channel();
    // Dropped at the end: the machine may wait for it.
    let (_leave, left) = channel();
    if machine.send(Message::Debugger(Ask::Attach(events.clone(), left))).is_err() {
        return End::MachineGone;
    }
    let _attached = Attached(machine);
    let (Ok(reader), Ok(closer)) = (stream.try_clone(), stream.try_clone()) else { return End::Left };
    let (taken, wait) = channel();
    let thread =
        std::thread::Builder::new().name("gdb input".into()).spawn(move || read(reader, &events, &wait));
    let Ok(thread) = thread else { return End::Left };
    let mut guest = Guest::new(machine.clone(), vcpus);
    let end = talk(Out { stream, buf: Vec::new() }, &mut guest, &inbox, &taken);
    closer.close();
    drop(taken);
    let _panicked = thread.join();
    end
}

/// Passes on what the debugger sends, a piece at a time: the next is read when the last has been dealt with.
fn read(mut stream: Stream, events: &Sender<Event>, wait: &Receiver<()>) {
    let mut buf = [0; 4096];
    loop {
        let event = match stream.read(&mut buf) {
            Ok(0) => Event::Closed,
            Ok(n) => Event::Bytes(buf[..n].to_vec()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => Event::Closed,
        };
        let last = matches!(event, Event::Closed);
        if events.send(event).is_err() || last || wait.recv().is_err() {
            return;
        }
    }
}

type State<'a> = Gdb<'a, Guest, Out>;
/// A session that cannot go on: the connection broke, or what came is not the protocol.
struct Broken;

fn talk(out: Out, guest: &mut Guest, inbox: &Receiver<Event>, taken: &Sender<()>) -> End {
    let Ok(stub) = GdbStub::builder(out).packet_buffer_size(PACKET).build() else { return End::Left };
    let Ok(mut gdb) = stub.run_state_machine(guest) else { return End::Left };
    // The reader's thread keeps the channel open.
    while let Ok(event) = inbox.recv() {
        let next = match event {
            Event::Closed => return End::Left,
            Event::Bytes(bytes) => {
                let next = bytes.into_iter().try_fold(gdb, |gdb, b| byte(gdb, guest, b));
                let _reader_gone = taken.send(());
                next
            }
            Event::Machine(_, Why::Ended(outcome)) => {
                if let Gdb::Running(gdb) = gdb {
                    let _told = gdb.report_stop(guest, MultiThreadStopReason::Exited(status(outcome)));
                }
                return End::MachineGone;
            }
            // What was under way when the debugger gave its last order does not matter any more.
            Event::Machine(after, _) if after != guest.order() => Ok(gdb),
            Event::Machine(_, why) => stopped(gdb, guest, why),
        };
        match next {
            Ok(Gdb::Disconnected(mut gdb)) => {
                if gdb.get_reason() == DisconnectReason::Kill {
                    guest.kill();
                    // gdbstub does not answer, and gdb asks by `vKill`, which wants an answer.
                    let _gone = gdb.borrow_conn().packet("OK");
                }
                return End::Left;
            }
            Ok(next) => gdb = next,
            Err(Broken) => return End::Left,
        }
    }
    End::Left
}

fn byte<'a>(gdb: State<'a>, guest: &mut Guest, byte: u8) -> Result<State<'a>, Broken> {
    let next = match gdb {
        Gdb::Idle(gdb) => gdb.incoming_data(guest, byte),
        Gdb::Running(gdb) => gdb.incoming_data(guest, byte),
        other => return Ok(other),
    };
    let next = match next {
        Ok(Gdb::CtrlCInterrupt(gdb)) => {
            guest.interrupt();
            // The machine tells when it stands still.
            gdb.interrupt_handled(guest, None::<MultiThreadStopReason<u64>>)
        }
        other => other,
    };
    next.map_err(|e| {
        tracing::debug!(error = ?e, "a session with a debugger cannot go on");
        Broken
    })
}

fn stopped<'a>(gdb: State<'a>, guest: &mut Guest, why: Why) -> Result<State<'a>, Broken> {
    let Gdb::Running(mut gdb) = gdb else { return Ok(gdb) };
    if let Why::Refused(text) = &why {
        say(gdb.borrow_conn(), &format!("{text}\n")).map_err(|_| Broken)?;
    }
    gdb.report_stop(guest, stop_reason(&why)).map_err(|_| Broken)
}

/// Shows a text on the debugger's console (gdb manual, "Stop Reply Packets", `O`); only while it waits for the machine.
fn say(out: &mut Out, text: &str) -> io::Result<()> {
    out.packet(&text.bytes().fold("O".to_owned(), |hex, b| format!("{hex}{b:02x}")))
}

/// As the exit status of a process.
fn status(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::DebugExit(status) => status,
        Outcome::PowerOff | Outcome::Stopped => 0,
        Outcome::Reset | Outcome::TripleFault => 1,
    }
}
