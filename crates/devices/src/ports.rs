//! Small ports: reset control (0xCF9), system control (0x92), debug exit (0xF4).

use crate::bus::{PioDevice, each_byte_read, each_byte_write};
use crate::component::{Component, Saved, StateError};
use crate::events::{MachineEvent, MachineEvents};
use crate::sync::lock;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};

/// Of the saved states.
const VERSION: u32 = 1;

/// The reset control register at 0xCF9 (Intel ICH9 datasheet §13.7.5). It sits inside the ports of PCI configuration
/// mechanism 1, whose address register takes 32-bit accesses, so it is registered at 0xCF8, four ports long, and only
/// a byte access of the second is its own.
pub struct ResetControl {
    events: Arc<dyn MachineEvents>,
    value: Mutex<u8>,
}

impl ResetControl {
    const RESET_CPU: u8 = 4;
    /// Its place behind the first port.
    const OFFSET: u16 = 1;

    /// A register that asks `events` for the reset.
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> ResetControl {
        ResetControl { events, value: Mutex::new(0) }
    }

    /// Power-up.
    pub fn reset(&self) {
        *lock(&self.value) = 0;
    }

    pub(crate) fn value(&self) -> u8 {
        *lock(&self.value)
    }

    pub(crate) fn set_value(&self, v: u8) {
        *lock(&self.value) = v;
    }
}

impl PioDevice for ResetControl {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        if let (Self::OFFSET, [b]) = (offset, data) {
            *b = *lock(&self.value);
        }
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        let (Self::OFFSET, [v]) = (offset, data) else { return };
        // A reset happens when RST_CPU goes from 0 to 1, and the register reads 0 after it.
        let old = std::mem::replace(&mut *lock(&self.value), v & 0x0e);
        if v & !old & Self::RESET_CPU != 0 {
            self.events.event(MachineEvent::Reset);
        }
    }
}

/// System control port A at 0x92: fast reset (bit 0) and the A20 gate (bit 1), which reads back but gates nothing.
pub struct SystemControl {
    events: Arc<dyn MachineEvents>,
    value: Mutex<u8>,
}

impl SystemControl {
    const A20: u8 = 2;

    /// A port that asks `events` for the reset.
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> SystemControl {
        SystemControl { events, value: Mutex::new(Self::A20) }
    }

    /// Power-up: A20 is on.
    pub fn reset(&self) {
        *lock(&self.value) = Self::A20;
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedSystemControl {
    value: u8,
}

impl Component for SystemControl {
    fn name(&self) -> String {
        "system-control".into()
    }

    fn reset(&self) {
        SystemControl::reset(self);
    }

    fn save(&self) -> Saved {
        Saved::of(self, VERSION, &SavedSystemControl { value: *lock(&self.value) })
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedSystemControl { value } = saved.read(self, VERSION)?;
        saved.ensure(value <= 3, "it has more than two bits")?;
        *lock(&self.value) = value;
        Ok(())
    }
}

impl PioDevice for SystemControl {
    fn pio_read(&self, offset: u16, data: &mut [u8]) {
        each_byte_read(offset, data, |_| *lock(&self.value));
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        each_byte_write(offset, data, |_, v| {
            let old = std::mem::replace(&mut *lock(&self.value), v & 3);
            if v & !old & 1 != 0 {
                self.events.event(MachineEvent::Reset);
            }
        });
    }
}

/// The debug-exit port: writing `v` ends the machine with status `(v << 1) | 1`, so never 0.
pub struct DebugExit {
    events: Arc<dyn MachineEvents>,
}

impl DebugExit {
    /// A port that tells `events`.
    #[must_use]
    pub fn new(events: Arc<dyn MachineEvents>) -> DebugExit {
        DebugExit { events }
    }
}

/// It holds nothing: what was written has gone to the machine's owner.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedDebugExit {}

impl Component for DebugExit {
    fn name(&self) -> String {
        "debug-exit".into()
    }

    fn reset(&self) {}

    fn save(&self) -> Saved {
        Saved::of(self, VERSION, &SavedDebugExit {})
    }

    fn restore(&self, saved: &Saved) -> Result<(), StateError> {
        let SavedDebugExit {} = saved.read(self, VERSION)?;
        Ok(())
    }
}

impl PioDevice for DebugExit {
    fn pio_read(&self, _offset: u16, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&self, offset: u16, data: &[u8]) {
        if let (0, Some(v)) = (offset, data.first()) {
            self.events.event(MachineEvent::DebugExit(v << 1 | 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn reset_control_acts_on_byte_writes_only() {
        let (tx, rx) = channel();
        let r = ResetControl::new(Arc::new(tx));
        r.pio_write(0, &[0, 6, 0, 0x80]);
        r.pio_write(1, &[6, 0]);
        r.pio_write(0, &[6]);
        r.pio_write(1, &[2]);
        assert!(rx.try_recv().is_err());
        let mut d = [0xff];
        r.pio_read(1, &mut d);
        assert_eq!(d, [2]);
        let mut d = [0xff; 4];
        r.pio_read(0, &mut d);
        assert_eq!(d, [0xff; 4]);
        r.pio_write(1, &[6]);
        r.pio_write(1, &[6]);
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [MachineEvent::Reset]);
    }

    #[test]
    fn fast_reset_and_a20() {
        let (tx, rx) = channel();
        let p = SystemControl::new(Arc::new(tx));
        p.pio_write(0, &[0]);
        let mut d = [0xff];
        p.pio_read(0, &mut d);
        assert_eq!(d, [0]);
        p.pio_write(0, &[3]);
        assert_eq!(rx.try_iter().collect::<Vec<_>>(), [MachineEvent::Reset]);
        p.reset();
        p.pio_read(0, &mut d);
        assert_eq!(d, [2]);
    }

    #[test]
    fn debug_exit_gives_the_status() {
        let (tx, rx) = channel();
        let p = DebugExit::new(Arc::new(tx));
        p.pio_write(0, &[0x10, 0, 0, 0]);
        p.pio_write(0, &[0xff]);
        let all: Vec<_> = rx.try_iter().collect();
        assert_eq!(all, [MachineEvent::DebugExit(0x21), MachineEvent::DebugExit(0xff)]);
    }
}
