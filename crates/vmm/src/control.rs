//! What a machine's owner may ask of it while it runs, from other threads.

use crate::VmmError;
use crate::machine::Message;
use ringer_engine::Engine;
use std::sync::mpsc::{Sender, SyncSender, sync_channel};
use thiserror::Error;

/// What an owner may ask of a running machine without waiting for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// Stand still; time stands still too.
    Pause,
    /// Go on.
    Resume,
    /// As the reset button.
    Reset,
    /// As the power button: the guest is told, and shuts down as it sees fit.
    PowerButton,
    /// End.
    Stop,
}

/// A machine between two things that it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Status {
    /// Its owner paused it, or a debugger has it stand still.
    pub paused: bool,
    /// Name of the engine that runs it.
    pub engine: &'static str,
    /// Processors.
    pub vcpus: u32,
    /// Bytes of guest RAM, and how many of them the host holds.
    pub memory: u64,
    /// See [`memory`](Status::memory).
    pub resident: u64,
    /// Nanoseconds for which it has run, pauses not counted.
    pub machine_ns: u64,
    /// Guest instructions that all processors have executed, under all engines; none if one of those did not count all of them.
    pub instructions: Option<u64>,
}

/// Why a machine did not do what it was asked. It runs on as it was.
#[derive(Debug, Error)]
pub enum ControlError {
    /// It has ended, or ended before it came to this.
    #[error("the machine has ended")]
    Ended,
    /// The new engine cannot run it.
    #[error("the machine stays on engine {old}: {why}")]
    Refused {
        /// The engine that it has.
        old: &'static str,
        /// One clause, or an error in a sentence.
        why: String,
    },
}

/// What is asked, and who waits for the answer.
pub(crate) struct Ask {
    pub(crate) request: Request,
    pub(crate) answer: SyncSender<Result<Status, ControlError>>,
}

/// What [`MachineHandle`] asks and waits for.
pub(crate) enum Request {
    Status,
    Do(Control),
    Engine(Box<dyn Engine>),
}

impl std::fmt::Debug for Ask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.request {
            Request::Status => f.write_str("Status"),
            Request::Do(c) => write!(f, "{c:?}"),
            Request::Engine(e) => write!(f, "Engine({})", e.name()),
        }
    }
}

/// Asks things of a machine from other threads. What comes after its end is dropped.
#[derive(Clone, Debug)]
pub struct MachineHandle(Sender<Message>);

impl MachineHandle {
    pub(crate) fn new(sender: Sender<Message>) -> MachineHandle {
        MachineHandle(sender)
    }

    /// Asks; returns at once.
    pub fn ask(&self, c: Control) {
        let _ended = self.0.send(Message::Control(c));
    }

    /// Asks, and waits until it is done; what the machine is then.
    ///
    /// # Errors
    /// [`ControlError::Ended`].
    pub fn control(&self, c: Control) -> Result<Status, ControlError> {
        self.request(Request::Do(c))
    }

    /// What the machine is now. Stops the processors for a moment, as each has its own counters.
    ///
    /// # Errors
    /// [`ControlError::Ended`].
    pub fn status(&self) -> Result<Status, ControlError> {
        self.request(Request::Status)
    }

    /// Hands the machine over to another engine, between two instructions of each processor. Machine time runs on meanwhile, unless
    /// the machine is paused; it stays so then.
    ///
    /// # Errors
    /// [`ControlError::Refused`] if the engine cannot run here, or cannot run this machine's processors; the old one goes on.
    pub fn change_engine(&self, engine: Box<dyn Engine>) -> Result<Status, ControlError> {
        self.request(Request::Engine(engine))
    }

    fn request(&self, request: Request) -> Result<Status, ControlError> {
        let (answer, answered) = sync_channel(1);
        self.0.send(Message::Ask(Ask { request, answer })).map_err(|_| ControlError::Ended)?;
        // The machine drops what it has not come to when it ends.
        answered.recv().unwrap_or(Err(ControlError::Ended))
    }
}

impl ControlError {
    pub(crate) fn refused(old: &'static str, why: &VmmError) -> ControlError {
        ControlError::Refused { old, why: chain(why) }
    }
}

/// An error and its causes in one sentence.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(s) = source {
        text += &format!(": {s}");
        source = s.source();
    }
    text
}
