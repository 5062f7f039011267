//! [`MachineEvent`]: what a device tells the machine's owner.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

/// Something the guest asked of the machine as a whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MachineEvent {
    /// Power off (ACPI S5).
    PowerOff,
    /// Reset every processor and device.
    Reset,
    /// End the machine with this exit status (the debug-exit port).
    DebugExit(u8),
}

/// Where devices send [`MachineEvent`]s. Called on a processor's thread in the middle of an instruction: takes note
/// and returns at once. The processor goes on running until its owner stops it.
pub trait MachineEvents: Send + Sync {
    /// Takes note of `event`.
    fn event(&self, event: MachineEvent);
}

/// Sends them down a channel; once the receiver is gone they are dropped.
impl MachineEvents for Sender<MachineEvent> {
    fn event(&self, event: MachineEvent) {
        let _gone = self.send(event);
    }
}

/// Lets one event through until it is opened again: the first is what happens to the machine, and a guest that goes on
/// asking must not fill its owner's queue.
pub(crate) struct Latch {
    to: Arc<dyn MachineEvents>,
    closed: AtomicBool,
}

impl Latch {
    pub(crate) fn new(to: Arc<dyn MachineEvents>) -> Latch {
        Latch { to, closed: AtomicBool::new(false) }
    }

    /// Lets the next event through.
    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

impl MachineEvents for Latch {
    fn event(&self, event: MachineEvent) {
        if !self.closed.swap(true, Ordering::SeqCst) {
            self.to.event(event);
        }
    }
}
