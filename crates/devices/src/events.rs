//! [`MachineEvent`]: what a device tells the machine's owner.

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
